/* SPDX-License-Identifier: Apache-2.0 */
/*
 * main.c - mint-guest, the inside of a node with a kernel of its own.
 *
 *   /init (as process 1)         runs /mint/script, then serves the exec channel, reaps, powers off
 *   mint-guest --service WHERE   serves the exec channel, beside another init; WHERE is port:NAME,
 *                                a device, or fd:N
 *   reboot, poweroff, halt, shutdown (links to it)   tell process 1
 *
 * Theory of operation: one process and one poll(2), nothing that waits for anybody. It is static and
 * needs nothing of the root file system. System calls are dear in some guests (50-100 us), so what
 * moves much data moves it in large pieces.
 *
 * It trusts the agent as far as power goes, and what runs in the guest not at all: programs get at
 * it by their streams only, which are bounded (session.c). When the agent dies, sessions end and the
 * guest goes on.
 */
#include "guest.h"
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define SCRIPT "/mint/script"
#define DECIMAL 10

static bool is_init;
static int signals = -1;

uint64_t guest_now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000u + (uint64_t)t.tv_nsec / 1000000u;
}

void guest_close(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

void guest_say(const char *fmt, ...)
{
    char line[256];
    va_list ap;
    int n;

    va_start(ap, fmt);
    n = vsnprintf(line, sizeof(line) - 1, fmt, ap);
    va_end(ap);
    if (n < 0)
        return;
    if (n > (int)sizeof(line) - 2)
        n = (int)sizeof(line) - 2;
    line[n++] = '\n';
    line[n] = '\0';
    dprintf(STDERR_FILENO, "mint-guest: %s", line);
    if (channel_room((size_t)n))
        channel_send(GUEST_LOG, GUEST_LOG_SELF, 0, line, (size_t)n);
}

/* ------------------------------------------------------------------------------------ waiting */

int watch_fd(struct watch *w, int fd, short events)
{
    if (fd < 0 || !events || w->n == WATCH_MAX)
        return -1;
    w->fds[w->n] = (struct pollfd){.fd = fd, .events = events};
    return (int)w->n++;
}

short watch_got(const struct watch *w, int entry)
{
    return entry < 0 ? 0 : w->fds[entry].revents;
}

void watch_until(struct watch *w, uint64_t deadline)
{
    if (deadline < w->deadline)
        w->deadline = deadline;
}

static int left(const struct watch *w)
{
    uint64_t now = guest_now();

    if (w->deadline == GUEST_NEVER)
        return -1;
    if (w->deadline <= now)
        return 0;
    return w->deadline - now > INT32_MAX ? INT32_MAX : (int)(w->deadline - now);
}

/* ------------------------------------------------------------------------------------ signals */

static void reap(void)
{
    int status;
    pid_t pid;

    while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
        if (!sessions_child(pid, status))
            sshd_child(pid, status);
}

static void on_signals(void)
{
    struct signalfd_siginfo got;

    while (read(signals, &got, sizeof(got)) == (ssize_t)sizeof(got)) {
        int number = (int)got.ssi_signo;

        if (number == SIGCHLD)
            reap();
        else if (!is_init)
            _exit(0); /* stopped, as a service */
        else if (number == SIGINT || number == SIGRTMIN + 5)
            power_request(GUEST_REBOOT); /* SIGINT: Ctrl-Alt-Del */
        else
            power_request(GUEST_POWER_OFF);
    }
}

static int open_signals(void)
{
    sigset_t set;

    sigemptyset(&set);
    sigaddset(&set, SIGCHLD);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGRTMIN + 3); /* halt, in systemd's words */
    sigaddset(&set, SIGRTMIN + 4); /* power off */
    sigaddset(&set, SIGRTMIN + 5); /* reboot */
    signal(SIGPIPE, SIG_IGN);
    sigprocmask(SIG_BLOCK, &set, NULL);
    signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    return signals < 0 ? -1 : 0;
}

/* --------------------------------------------------------------------------------------- main */

static void serve(void)
{
    static struct watch w;

    for (;;) {
        int entry;

        w.n = 0;
        w.deadline = GUEST_NEVER;
        entry = watch_fd(&w, signals, POLLIN);
        channel_watch(&w);
        sessions_watch(&w);
        net_watch(&w);
        sshd_watch(&w);
        power_watch(&w);
        if (poll(w.fds, w.n, left(&w)) < 0 && errno != EINTR)
            guest_say("poll: %s", strerror(errno));
        if (watch_got(&w, entry))
            on_signals();
        channel_serve(&w);
        net_serve(&w);
        sshd_serve(&w);
        sessions_serve(&w);
        channel_flush();
        power_serve();
    }
}

/* Have 0, 1 and 2 open, whatever the kernel found. The console must not make us wait. */
static void open_streams(void)
{
    int fd;

    do
        fd = open(is_init ? "/dev/console" : "/dev/null", O_RDWR | O_NOCTTY | O_NONBLOCK);
    while (fd >= 0 && fd < STDERR_FILENO);
    if (fd < 0)
        return;
    if (is_init)
        for (int i = 0; i <= STDERR_FILENO; i++)
            dup2(fd, i);
    if (fd > STDERR_FILENO)
        close(fd);
}

static int run_init(void)
{
    setenv("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", 1);
    if (open_signals() < 0 || script_run(SCRIPT) < 0)
        power_down(GUEST_POWER_OFF);
    serve();
    return 1;
}

static int run_service(const char *where)
{
    static const char fd[] = "fd:";

    if (open_signals() < 0)
        return 1;
    if (strncmp(where, fd, sizeof(fd) - 1) == 0)
        channel_use((int)strtol(where + sizeof(fd) - 1, NULL, DECIMAL));
    else
        channel_name(where);
    serve();
    return 0;
}

int main(int argc, char **argv)
{
    const char *name = argc ? argv[0] : "";
    const char *slash = strrchr(name, '/');

    name = slash ? slash + 1 : name;
    is_init = getpid() == 1;
    if (!is_init && strncmp(name, "mint-guest", sizeof("mint-guest") - 1) != 0 &&
        strcmp(name, "init") != 0)
        return power_command(name, argc, argv);
    umask(022);
    open_streams();
    if (is_init)
        return run_init();
    if (argc == 3 && strcmp(argv[1], "--service") == 0)
        return run_service(argv[2]);
    fprintf(stderr, "usage: mint-guest --service port:NAME|DEVICE|fd:N\n");
    return 2;
}
