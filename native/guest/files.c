/* SPDX-License-Identifier: Apache-2.0 */
/* files.c - what the script does to the file system, one function each: 0, or -errno. */
#include "guest.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/random.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define SEED_MAX 512u
#define HEX 16

/* Sources are of the initramfs, whatever the root is now. */
static int open_source(int root, const char *path)
{
    while (root != AT_FDCWD && *path == '/')
        path++;
    return openat(root, path, O_RDONLY | O_CLOEXEC);
}

int files_mkdir(const char *path, mode_t mode)
{
    struct stat st;

    if (mkdir(path, mode) == 0)
        return chmod(path, mode) < 0 ? -errno : 0;
    if (errno == EEXIST && stat(path, &st) == 0 && S_ISDIR(st.st_mode))
        return 0;
    return -errno;
}

int files_write(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC | O_TRUNC);
    ssize_t n;
    int err = 0;

    if (fd < 0)
        return -errno;
    n = write(fd, text, strlen(text));
    if (n < 0)
        err = -errno;
    close(fd);
    return err;
}

static int copy(int from, int to)
{
    char buf[65536];
    ssize_t n;

    while ((n = read(from, buf, sizeof(buf))) > 0)
        if (write(to, buf, (size_t)n) != n)
            return errno ? -errno : -ENOSPC;
    return n < 0 ? -errno : 0;
}

/* A file in place of whatever has its name: renamed over it, so that nothing of that is copied. */
int files_put(int root, const char *source, const char *target, mode_t mode)
{
    char beside[512];
    int from, to, err;

    if (snprintf(beside, sizeof(beside), "%s.mint-new", target) >= (int)sizeof(beside))
        return -ENAMETOOLONG;
    from = open_source(root, source);
    if (from < 0)
        return -errno;
    to = open(beside, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (to < 0) {
        err = -errno;
        close(from);
        return err;
    }
    err = copy(from, to);
    if (!err && fchmod(to, mode) < 0)
        err = -errno;
    close(from);
    close(to);
    if (!err && rename(beside, target) < 0)
        err = -errno;
    return err;
}

int files_link(const char *target, const char *path)
{
    if (unlink(path) < 0 && errno != ENOENT)
        return -errno;
    return symlink(target, path) < 0 ? -errno : 0;
}

int files_module(int root, const char *path, const char *parameters)
{
    int fd = open_source(root, path), err = 0;

    if (fd < 0)
        return -errno;
    if (syscall(SYS_finit_module, fd, parameters, 0) < 0 && errno != EEXIST)
        err = -errno;
    close(fd);
    return err;
}

int files_unload(const char *module)
{
    return syscall(SYS_delete_module, module, O_NONBLOCK) < 0 ? -errno : 0;
}

/* Have the root of the tree be what is mounted here. The initramfs stays open as `root`. */
int files_switch_root(int *root, const char *path)
{
    int old = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);

    if (old < 0 || chdir(path) < 0 || mount(".", "/", NULL, MS_MOVE, NULL) < 0 || chroot(".") < 0 ||
        chdir("/") < 0)
        return -errno;
    *root = old;
    return 0;
}

/* Random numbers of the host's: a fresh kernel has none, and sshd would wait for them. */
int files_entropy(const char *hex)
{
    /* struct rand_pool_info: bits of entropy, bytes, then those */
    struct {
        int bits, size;
        unsigned char bytes[SEED_MAX];
    } pool;
    size_t n = strlen(hex) / 2;
    int fd, err = 0;

    if (n > SEED_MAX)
        n = SEED_MAX;
    for (size_t i = 0; i < n; i++) {
        char two[3] = {hex[2 * i], hex[2 * i + 1], '\0'};

        pool.bytes[i] = (unsigned char)strtoul(two, NULL, HEX);
    }
    pool.bits = (int)(8 * n);
    pool.size = (int)n;
    fd = open("/dev/urandom", O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    if (ioctl(fd, RNDADDENTROPY, &pool) < 0)
        err = -errno;
    close(fd);
    return err;
}

/* An empty directory over one that is closed even to root here: it is private to a user outside. */
int files_cover_closed(const char *path, const char *options)
{
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    if (fd >= 0 && faccessat(fd, ".", X_OK, 0) == 0) {
        close(fd);
        return 0;
    }
    guest_close(&fd);
    if (errno == ENOENT)
        return 0;
    return mount("tmpfs", path, "tmpfs", MS_NOSUID | MS_NODEV, options) < 0 ? -errno : 0;
}

/* sshd trusts no path that somebody else than root owns. */
int files_own(const char *path)
{
    struct stat st;

    if (stat(path, &st) < 0)
        return -errno;
    if (st.st_uid == 0 && !(st.st_mode & (S_IWGRP | S_IWOTH)))
        return 0;
    if (chown(path, 0, 0) < 0 || chmod(path, st.st_mode & 0755) < 0)
        return -errno;
    return 0;
}
