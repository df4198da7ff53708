/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sandbox.c - what a worker may still do once it serves a port: move bytes between descriptors
 * that it was given, map memory that it was given, sleep. Everything else ends the process.
 *
 * Where root starts it, it also gets a mount namespace with nothing in it: there is no file that a
 * hole in the filter could open, and no mount of the host's that it keeps busy.
 */
#include "worker.h"
#include <errno.h>
#include <grp.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <stddef.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifdef __x86_64__
#define AUDIT_ARCH_HERE AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define AUDIT_ARCH_HERE AUDIT_ARCH_AARCH64
#else
#error "the seccomp filter does not know this architecture"
#endif

#define ALLOW(nr) \
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_##nr, 0, 1), \
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)

static const struct sock_filter program[] = {
    BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_HERE, 1, 0),
    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
    BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
    /* the device */
    ALLOW(read),
    ALLOW(write),
    ALLOW(writev),
    ALLOW(readv),
    /* sleeping and waking; clock_gettime only where the vDSO has none */
    ALLOW(epoll_pwait2),
    ALLOW(epoll_ctl),
    ALLOW(ppoll),
    ALLOW(sendto),
    ALLOW(recvfrom),
    ALLOW(futex),
    ALLOW(clock_gettime),
    ALLOW(sched_yield),
    ALLOW(restart_syscall),
    /* the supervisor, and descriptors from it */
    ALLOW(recvmsg),
    ALLOW(sendmsg),
    ALLOW(accept4),
    ALLOW(getsockopt),
    ALLOW(close),
    ALLOW(fstat),
    ALLOW(fcntl),
#ifdef __NR_newfstatat
    ALLOW(newfstatat), /* how newer C libraries spell fstat() */
#endif
    /* memory */
    ALLOW(mmap),
    ALLOW(munmap),
    ALLOW(mremap),
    ALLOW(madvise),
    ALLOW(brk),
    /* the end */
    ALLOW(exit_group),
    ALLOW(rt_sigreturn),
    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
};

/* Leave the host's file systems for an empty one, which cannot be written to. */
static int empty_root(void)
{
    const char *somewhere = "/proc"; /* a directory that is there; it is not the host's any more */

    if (unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
        mount("mint-worker", somewhere, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC,
              "size=4k,mode=0555") < 0 ||
        chdir(somewhere) < 0)
        return -errno;
    if (syscall(SYS_pivot_root, ".", ".") == 0)
        umount2(".", MNT_DETACH); /* the old root, which lies on top now */
    else if (chroot(".") < 0)     /* an initial RAM disk cannot be pivoted away from */
        return -errno;
    if (chdir("/") < 0 || mount(NULL, "/", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY, NULL) < 0)
        return -errno;
    return 0;
}

/* No program that this process could execute gets any capability. */
static int drop_bounding(void)
{
    for (unsigned long cap = 0; prctl(PR_CAPBSET_READ, cap) >= 0; cap++)
        if (prctl(PR_CAPBSET_DROP, cap) < 0)
            return -errno;
    return 0;
}

static int become(uint32_t uid, uint32_t gid)
{
    int err;

    if (geteuid() == 0) {
        err = empty_root();
        if (!err)
            err = drop_bounding();
        if (err)
            return err;
    }
    if (uid == getuid() && gid == getgid())
        return 0; /* an unprivileged lab: all its workers are one user's */
    if (setgroups(0, NULL) < 0 || setresgid(gid, gid, gid) < 0 || setresuid(uid, uid, uid) < 0)
        return -errno;
    return 0;
}

int mint_sandbox(uint32_t uid, uint32_t gid)
{
    struct sock_fprog filter = {.len = sizeof(program) / sizeof(program[0]),
                                .filter = (struct sock_filter *)(uintptr_t)program};
    int err = become(uid, gid);

    if (err)
        return err;
    if (prctl(PR_SET_DUMPABLE, 0) < 0 || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 ||
        prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) < 0)
        return -errno;
    return 0;
}
