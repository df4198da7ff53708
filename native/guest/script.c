/* SPDX-License-Identifier: Apache-2.0 */
/*
 * script.c - the script that makes a guest out of a kernel that has just booted.
 *
 * What it says is decided by the host (src/mint_vni/nodes/guest/script.py); here is only how each
 * operation is done. One a line: its name and its arguments, separated by tabs; \\, \t and \n stand
 * for a backslash, a tab and a line break in an argument. A `?` before the name: it may fail.
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

#define ARGS_MAX 32u
#define SCRIPT_MAX (1u << 20)
#define OCTAL 8
#define DECIMAL 10

static unsigned long number(const char *text, int base)
{
    return strtoul(text, NULL, base);
}

static const char *or_null(const char *text)
{
    return *text ? text : NULL;
}

static int op_mkdir(struct guest *g, char **a)
{
    (void)g;
    return files_mkdir(a[0], (mode_t)number(a[1], OCTAL));
}

static int op_mount(struct guest *g, char **a)
{
    (void)g;
    return mount(or_null(a[0]), a[1], or_null(a[2]), number(a[3], DECIMAL), or_null(a[4])) < 0
               ? -errno
               : 0;
}

static int op_write(struct guest *g, char **a)
{
    (void)g;
    return files_write(a[0], a[1]);
}

static int op_file(struct guest *g, char **a)
{
    return files_put(g->root, a[0], a[1], (mode_t)number(a[2], OCTAL));
}

static int op_link(struct guest *g, char **a)
{
    (void)g;
    return files_link(a[0], a[1]);
}

static int op_module(struct guest *g, char **a)
{
    return files_module(g->root, a[0], a[1]);
}

static int op_switch_root(struct guest *g, char **a)
{
    return files_switch_root(&g->root, a[0]);
}

static int op_hostname(struct guest *g, char **a)
{
    (void)g;
    return sethostname(a[0], strlen(a[0])) < 0 ? -errno : 0;
}

static int op_entropy(struct guest *g, char **a)
{
    (void)g;
    return files_entropy(a[0]);
}

static int op_cover_closed(struct guest *g, char **a)
{
    (void)g;
    return files_cover_closed(a[0], a[1]);
}

static int op_own(struct guest *g, char **a)
{
    (void)g;
    return files_own(a[0]);
}

static int op_env(struct guest *g, char **a)
{
    (void)g;
    return setenv(a[0], a[1], 1) < 0 ? -errno : 0;
}

static int op_shadow(struct guest *g, char **a)
{
    (void)g;
    (void)a;
    return accounts_write_shadow();
}

static int op_hide_ssh(struct guest *g, char **a)
{
    (void)g;
    (void)a;
    return accounts_hide_ssh();
}

static int op_loopback(struct guest *g, char **a)
{
    (void)g;
    (void)a;
    return net_loopback();
}

static int op_interface(struct guest *g, char **a)
{
    unsigned n = 0;

    while (a[n])
        n++;
    return net_interface(&g->net, a, n);
}

static int op_sshd(struct guest *g, char **a)
{
    return sshd_start(&g->sshd, a);
}

static int op_channel(struct guest *g, char **a)
{
    channel_name(g, a[0]);
    return 0;
}

static int op_console(struct guest *g, char **a)
{
    (void)a;
    return console_open(&g->console);
}

static int op_inodes(struct guest *g, char **a)
{
    trim_start(&g->trim, a[0]);
    return 0;
}

static const struct op {
    const char *name;
    unsigned args; /* as few at least */
    int (*run)(struct guest *g, char **args);
} ops[] = {
    {"mkdir", 2, op_mkdir},               /* path, octal mode */
    {"mount", 5, op_mount},               /* source, target, type, decimal flags, options */
    {"write", 2, op_write},               /* path, text */
    {"file", 3, op_file},                 /* path in the initramfs, path, octal mode */
    {"link", 2, op_link},                 /* what it points to, path */
    {"module", 2, op_module},             /* path in the initramfs, parameters */
    {"switch-root", 1, op_switch_root},   /* where the new root is mounted */
    {"hostname", 1, op_hostname},         /* name */
    {"entropy", 1, op_entropy},           /* hexadecimal digits */
    {"cover-closed", 2, op_cover_closed}, /* path, options of tmpfs */
    {"own", 1, op_own},                   /* path */
    {"env", 2, op_env},                   /* name, value */
    {"shadow", 0, op_shadow},             /* */
    {"hide-ssh", 0, op_hide_ssh},         /* */
    {"loopback", 0, op_loopback},         /* */
    {"interface", 4, op_interface},       /* MAC, name, MTU, queue length, addresses... */
    {"sshd", 1, op_sshd},                 /* program, arguments... */
    {"console", 0, op_console},           /* */
    {"inodes", 1, op_inodes},             /* as many at most */
    {"channel", 1, op_channel},           /* path, or port:NAME */
};

/* Undo the escapes of an argument, in place. */
static void unescape(char *text)
{
    char *to = text;

    for (const char *from = text; *from; from++) {
        char c = *from;

        if (c == '\\' && from[1]) {
            from++;
            c = *from;
            if (c == 't')
                c = '\t';
            else if (c == 'n')
                c = '\n';
        }
        *to++ = c;
    }
    *to = '\0';
}

static int run_line(struct guest *g, char *line)
{
    char *args[ARGS_MAX + 1] = {NULL}, *name = strsep(&line, "\t");
    unsigned n = 0;

    while (line && n < ARGS_MAX) {
        args[n] = strsep(&line, "\t");
        unescape(args[n++]);
    }
    if (line)
        return -E2BIG;
    for (size_t i = 0; i < sizeof(ops) / sizeof(ops[0]); i++)
        if (strcmp(ops[i].name, name) == 0)
            return n < ops[i].args ? -EINVAL : ops[i].run(g, args);
    return -ENOSYS;
}

static char *load(const char *path)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat st;
    char *text = NULL;
    ssize_t n = -1;

    if (fd >= 0 && fstat(fd, &st) == 0 && st.st_size < (off_t)SCRIPT_MAX)
        text = calloc(1, (size_t)st.st_size + 1);
    if (text)
        n = read(fd, text, (size_t)st.st_size);
    if (fd >= 0)
        close(fd);
    if (n < 0) {
        free(text);
        return NULL;
    }
    return text;
}

int script_run(struct guest *g, const char *path)
{
    char *text = load(path), *rest = text, *line;
    int err = 0;

    if (!text) {
        guest_say(g, "%s: %s", path, strerror(errno));
        return -1;
    }
    while (!err && (line = strsep(&rest, "\n"))) {
        bool may_fail = *line == '?';
        char shown[120];

        if (!*line)
            continue;
        line += may_fail;
        snprintf(shown, sizeof(shown), "%s", line);
        for (char *c = shown; *c; c++)
            if (*c == '\t')
                *c = ' ';
        err = run_line(g, line);
        if (err && !may_fail)
            guest_say(g, "cannot set the node up: %s: %s", shown, strerror(-err));
        if (may_fail)
            err = 0;
    }
    free(text);
    return err ? -1 : 0;
}
