/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_sandbox.c - what a worker can still do behind mint_sandbox(), and what ends it. Each call is
 * first made without the sandbox: it must work there, or its failure behind it would say nothing.
 */
#include "check.h"
#include "worker.h"
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef __has_feature
#define __has_feature(x) 0
#endif

struct attempt {
    const char *name;
    bool (*make)(void); /* whether it worked */
};

static bool open_file(void)
{
    return syscall(SYS_openat, AT_FDCWD, "/", O_RDONLY | O_DIRECTORY, 0) >= 0;
}

static bool make_socket(void)
{
    return syscall(SYS_socket, AF_UNIX, SOCK_STREAM, 0) >= 0;
}

static bool connect_socket(void)
{
    const char address[2] = {AF_UNIX, 0};

    return syscall(SYS_connect, -1, address, sizeof(address)) == -1 && errno == EBADF;
}

static bool signal_parent(void)
{
    return syscall(SYS_kill, getppid(), 0) == 0;
}

static bool new_process(void)
{
    long pid = syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);

    if (pid == 0)
        syscall(SYS_exit_group, 0);
    return pid > 0;
}

static bool execute(void)
{
    return syscall(SYS_execve, "/nonexistent", NULL, NULL) == -1 && errno == ENOENT;
}

static bool make_executable(void)
{
    void *p = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    return syscall(SYS_mprotect, p, 4096, PROT_READ | PROT_EXEC) == 0;
}

static bool trace(void)
{
    return syscall(SYS_process_vm_readv, getpid(), NULL, 0, NULL, 0, 0) == 0;
}

static bool new_namespace(void)
{
    return syscall(SYS_unshare, 0) == 0;
}

static bool limits(void)
{
    struct rlimit r;

    return syscall(SYS_prlimit64, 0, RLIMIT_NOFILE, NULL, &r) == 0;
}

static bool memory_file(void)
{
    return syscall(SYS_memfd_create, "x", 0) >= 0;
}

static bool control_process(void)
{
    return syscall(SYS_prctl, PR_GET_DUMPABLE, 0, 0, 0, 0) >= 0;
}

#ifdef __x86_64__
/* The same machine has a second table of system calls, by another entry. */
static bool old_table(void)
{
    long result = 20; /* getpid() of i386 */

    __asm__ __volatile__("int $0x80" : "+a"(result) : : "memory", "r8", "r9", "r10", "r11");
    return result == getpid();
}
#endif

static const struct attempt forbidden[] = {
    {"open a file", open_file},
    {"make a socket", make_socket},
    {"connect", connect_socket},
    {"signal a process", signal_parent},
    {"make a process", new_process},
    {"execute a program", execute},
    {"make memory executable", make_executable},
    {"read a process's memory", trace},
    {"make a namespace", new_namespace},
    {"look at limits", limits},
    {"make a memory file", memory_file},
    {"change what it is", control_process},
#ifdef __x86_64__
    {"use 32-bit system calls", old_table},
#endif
};

static bool map_and_sleep(void)
{
    void *p = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    char c;

    memset(p, 1, 1 << 20);
    return munmap(p, 1 << 20) == 0 && recv(1000, &c, 1, MSG_DONTWAIT) == -1 && errno == EBADF &&
           fcntl(STDERR_FILENO, F_GETFD) >= 0;
}

/* The status of a child that makes the attempt: 0 it worked, 1 it did not, -N killed by signal N. */
static int in_child(bool (*make)(void), bool sandboxed)
{
    int status;
    pid_t pid = fork();

    CHECK(pid >= 0, "fork: %s", strerror(errno));
    if (pid == 0) {
        if (sandboxed && mint_sandbox(getuid(), getgid()) != 0)
            syscall(SYS_exit_group, 99);
        syscall(SYS_exit_group, make() ? 0 : 1);
    }
    CHECK(waitpid(pid, &status, 0) == pid, "waitpid");
    return WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
}

static void what_is_forbidden_ends_it(void)
{
    for (size_t i = 0; i < sizeof(forbidden) / sizeof(forbidden[0]); i++) {
        int without = in_child(forbidden[i].make, false), within;

        if (without != 0 && forbidden[i].make != map_and_sleep) {
            printf("skipped here, it does not work anyway: %s (%d)\n", forbidden[i].name, without);
            continue;
        }
        within = in_child(forbidden[i].make, true);
        CHECK(within == -SIGSYS, "%s: status %d", forbidden[i].name, within);
    }
}

static void what_it_needs_still_works(void)
{
    CHECK(in_child(map_and_sleep, true) == 0, "it cannot do its work");
}

/* One line of /proc/PID/status, looked at from outside. */
static void expect_line(pid_t pid, const char *line)
{
    char path[64], text[8192];
    size_t n;
    FILE *f;

    snprintf(path, sizeof(path), "/proc/%d/status", pid);
    f = fopen(path, "re");
    CHECK(f, "%s: %s", path, strerror(errno));
    n = fread(text, 1, sizeof(text) - 1, f);
    text[n] = 0;
    fclose(f);
    CHECK(strstr(text, line), "no line '%s' in:\n%s", line, text);
}

static void root_becomes_nobody_in_an_empty_place(void)
{
    static const char *const lines[] = {
        "Uid:\t1879048999\t1879048999\t1879048999\t1879048999\n",
        "Gid:\t1879048999\t1879048999\t1879048999\t1879048999\n",
        "Groups:\t \n",
        "CapInh:\t0000000000000000\n",
        "CapPrm:\t0000000000000000\n",
        "CapEff:\t0000000000000000\n",
        "CapBnd:\t0000000000000000\n",
        "CapAmb:\t0000000000000000\n",
        "NoNewPrivs:\t1\n",
        "Seccomp:\t2\n",
    };
    char path[64], root[64];
    int ready[2], status;
    pid_t pid;
    ssize_t n;

    if (getuid() != 0) {
        printf("skipped: only root can become another\n");
        return;
    }
    CHECK(pipe(ready) == 0, "pipe");
    pid = fork();
    if (pid == 0) {
        char c = (char)(mint_sandbox(1879048999u, 1879048999u) == 0);

        if (write(ready[1], &c, 1) == 1)
            while (read(ready[0], &c, 1) > 0 && c != 'q')
                (void)!write(ready[1], &c, 1);
        syscall(SYS_exit_group, 0);
    }
    n = read(ready[0], root, 1);
    CHECK(n == 1 && root[0] == 1, "mint_sandbox() failed");
    for (size_t i = 0; i < sizeof(lines) / sizeof(lines[0]); i++)
        expect_line(pid, lines[i]);
    snprintf(path, sizeof(path), "/proc/%d/root/etc", pid);
    CHECK(access(path, F_OK) < 0 && errno == ENOENT, "it sees the host's files");
    snprintf(path, sizeof(path), "/proc/%d/mounts", pid);
    FILE *f = fopen(path, "re");
    char line[512];
    uint32_t mounts = 0;

    CHECK(f, "%s", path);
    while (fgets(line, sizeof(line), f)) {
        mounts++;
        CHECK(strstr(line, "mint-worker / tmpfs ro"), "it keeps %s", line);
    }
    fclose(f);
    CHECK(mounts == 1, "%u mounts", mounts);
    kill(pid, SIGKILL);
    CHECK(waitpid(pid, &status, 0) == pid, "waitpid");
    close(ready[0]);
    close(ready[1]);
}

static const struct check_test tests[] = {
    CHECK_TEST(what_is_forbidden_ends_it),
    CHECK_TEST(what_it_needs_still_works),
    CHECK_TEST(root_becomes_nobody_in_an_empty_place),
};

int main(int argc, char **argv)
{
    return CHECK_MAIN(argc, argv, tests);
}
