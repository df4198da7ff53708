/* SPDX-License-Identifier: Apache-2.0 */
/*
 * accounts.c - the guest's /etc/passwd: read here, since the C library's own reading of it would load
 * modules of the guest's, which a static program must not.
 */
#include "guest.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#define PASSWD "/etc/passwd"
#define SHADOW "/etc/shadow"
#define SHADOW_NEW "/etc/.mint-shadow"
#define DECIMAL 10

static bool copy_field(char *to, size_t size, const char *from)
{
    return snprintf(to, size, "%s", from) < (int)size;
}

/* NAME:PASSWORD:UID:GID:GECOS:HOME:SHELL */
static bool parse(char *line, struct account *a)
{
    char *field[7], *end = strchr(line, '\n');
    unsigned n = 0;

    if (end)
        *end = '\0';
    while (n < 7 && (field[n] = strsep(&line, ":")))
        n++;
    if (n < 7 || line)
        return false;
    a->uid = (unsigned)strtoul(field[2], NULL, DECIMAL);
    a->gid = (unsigned)strtoul(field[3], NULL, DECIMAL);
    return copy_field(a->name, sizeof(a->name), field[0]) &&
           copy_field(a->home, sizeof(a->home), field[5]) &&
           copy_field(a->shell, sizeof(a->shell), field[6]);
}

void accounts_each(bool (*each)(const struct account *, void *), void *data)
{
    FILE *file = fopen(PASSWD, "re");
    char *line = NULL;
    size_t size = 0;

    while (file && getline(&line, &size, file) > 0) {
        struct account a;

        if (parse(line, &a) && !each(&a, data))
            break;
    }
    free(line);
    if (file)
        fclose(file);
}

static bool is_root(const struct account *a, void *data)
{
    if (a->uid != 0)
        return true;
    memcpy(data, a, sizeof(*a));
    return false;
}

void accounts_root(struct account *root)
{
    *root = (struct account){.name = "root", .home = "/", .shell = "/bin/sh"};
    accounts_each(is_root, root);
    if (!*root->shell)
        copy_field(root->shell, sizeof(root->shell), "/bin/sh");
}

/* ------------------------------------------------------------------------------------- shadow */

static bool shadow_line(const struct account *a, void *file)
{
    fprintf(file, "%s:*:19000:0:99999:7:::\n", a->name);
    return true;
}

/*
 * Leave all accounts open, for keys alone: the host's own hashes can't be read here, and are none of
 * the guest's business. `*` means that no password fits; sshd takes `!` for a locked account.
 */
int accounts_write_shadow(void)
{
    struct stat st;
    FILE *file;
    int err = 0;

    if (stat(SHADOW, &st) < 0)
        return 0;
    file = fopen(SHADOW_NEW, "we");
    if (!file)
        return -errno;
    if (fchmod(fileno(file), st.st_mode & 0777) < 0 || fchown(fileno(file), 0, st.st_gid) < 0)
        err = -errno;
    accounts_each(shadow_line, file);
    if (fclose(file) != 0 && !err)
        err = -errno;
    if (!err && rename(SHADOW_NEW, SHADOW) < 0)
        err = -errno;
    return err;
}

/* --------------------------------------------------------------------------------------- keys */

static bool hide(const struct account *a, void *data)
{
    char path[sizeof(a->home) + 8], options[64];
    struct stat st;
    int *err = data;

    if (a->home[0] != '/')
        return true;
    snprintf(path, sizeof(path), "%s/.ssh", a->home);
    if (stat(path, &st) < 0 || !S_ISDIR(st.st_mode))
        return true;
    snprintf(options, sizeof(options), "mode=700,size=1m,uid=%u,gid=%u", a->uid, a->gid);
    if (mount("tmpfs", path, "tmpfs", MS_NOSUID | MS_NODEV, options) < 0)
        *err = -errno;
    return true;
}

/* Hide the SSH keys and settings of all users behind empty directories. */
int accounts_hide_ssh(void)
{
    int err = 0;

    accounts_each(hide, &err);
    return err;
}
