/* SPDX-License-Identifier: Apache-2.0 */
/*
 * main.c - mint-guest, the inside of a node with a kernel of its own.
 *
 *   /init (as process 1)         runs /mint/script, then serves the exec channel, reaps, powers off
 *   mint-guest --service WHERE   serves the exec channel, beside another init; WHERE is port:NAME,
 *                                a device, or fd:N
 *   mint-guest --load FILE | --unload NAME   a kernel module; roots without kmod need it, too
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

void guest_say(struct guest *g, const char *fmt, ...)
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
    if (channel_room(g, (size_t)n))
        channel_send(g, GUEST_LOG, GUEST_LOG_SELF, 0, line, (size_t)n);
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

static void reap(struct guest *g)
{
    int status;
    pid_t pid;

    while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
        if (!sessions_child(g, pid, status) && !console_child(&g->console, pid))
            sshd_child(g, pid, status);
}

static void on_signals(struct guest *g)
{
    struct signalfd_siginfo got;

    while (read(g->signals, &got, sizeof(got)) == (ssize_t)sizeof(got)) {
        int number = (int)got.ssi_signo;

        if (number == SIGCHLD)
            reap(g);
        else if (!g->init)
            _exit(0); /* stopped, as a service */
        else if (number == SIGINT || number == SIGRTMIN + 5)
            power_request(g, GUEST_REBOOT); /* SIGINT: Ctrl-Alt-Del */
        else
            power_request(g, GUEST_POWER_OFF);
    }
}

static int open_signals(struct guest *g)
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
    g->signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    return g->signals < 0 ? -1 : 0;
}

/* --------------------------------------------------------------------------------------- main */

static void serve(struct guest *g)
{
    static struct watch w;

    while (!g->ending || !sessions_over(g)) {
        int entry;

        w.n = 0;
        w.deadline = GUEST_NEVER;
        entry = watch_fd(&w, g->signals, POLLIN);
        channel_watch(g, &w);
        sessions_watch(g, &w);
        net_watch(&g->net, &w);
        sshd_watch(&g->sshd, &w);
        console_watch(&g->console, &w);
        power_watch(g, &w);
        trim_watch(&g->trim, &w);
        if (poll(w.fds, w.n, left(&w)) < 0 && errno != EINTR)
            guest_say(g, "poll: %s", strerror(errno));
        if (watch_got(&w, entry))
            on_signals(g);
        channel_serve(g, &w);
        net_serve(g, &w);
        sshd_serve(g, &w);
        console_serve(&g->console, &w);
        sessions_serve(g, &w);
        channel_flush(g);
        power_serve(g);
        trim_serve(&g->trim);
    }
}

/* Have 0, 1 and 2 open, whatever the kernel found. The console must not make us wait. */
static void open_streams(bool init)
{
    int fd;

    do
        fd = open(init ? "/dev/console" : "/dev/null", O_RDWR | O_NOCTTY | O_NONBLOCK);
    while (fd >= 0 && fd < STDERR_FILENO);
    if (fd < 0)
        return;
    if (init)
        for (int i = 0; i <= STDERR_FILENO; i++)
            dup2(fd, i);
    if (fd > STDERR_FILENO)
        close(fd);
}

static int run_init(struct guest *g)
{
    setenv("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", 1);
    if (open_signals(g) < 0 || script_run(g, SCRIPT) < 0)
        power_down(g, GUEST_POWER_OFF);
    serve(g);
    return 1;
}

static int run_service(struct guest *g, const char *where)
{
    static const char fd[] = "fd:";

    if (open_signals(g) < 0)
        return 1;
    if (strncmp(where, fd, sizeof(fd) - 1) == 0)
        channel_use(g, (int)strtol(where + sizeof(fd) - 1, NULL, DECIMAL));
    else {
        channel_name(g, where);
        sshd_await(&g->sshd);
    }
    serve(g);
    return 0;
}

static int told(int err, const char *what)
{
    if (err)
        fprintf(stderr, "mint-guest: %s: %s\n", what, strerror(-err));
    return err ? 1 : 0;
}

int main(int argc, char **argv)
{
    static struct guest guest = {.root = AT_FDCWD,
                                 .signals = -1,
                                 .power_at = GUEST_NEVER,
                                 .channel = {.fd = -1, .entry = -1, .retry_at = GUEST_NEVER},
                                 .net = {.events = -1, .entry = -1},
                                 .sshd = {.log = -1, .log_in = -1, .asking = -1},
                                 .console = {.fd = -1, .entry = -1}};
    struct guest *g = &guest;
    const char *name = argc ? argv[0] : "";
    const char *slash = strrchr(name, '/');

    name = slash ? slash + 1 : name;
    g->init = getpid() == 1;
    if (!g->init && strncmp(name, "mint-guest", sizeof("mint-guest") - 1) != 0 &&
        strcmp(name, "init") != 0)
        return power_command(name, argc, argv);
    umask(022);
    open_streams(g->init);
    if (g->init)
        return run_init(g);
    if (argc == 3 && strcmp(argv[1], "--service") == 0)
        return run_service(g, argv[2]);
    if (argc == 3 && strcmp(argv[1], "--load") == 0)
        return told(files_module(AT_FDCWD, argv[2], ""), argv[2]);
    if (argc == 3 && strcmp(argv[1], "--unload") == 0)
        return told(files_unload(argv[2]), argv[2]);
    fprintf(stderr, "usage: mint-guest --service port:NAME|DEVICE|fd:N, --load FILE, "
                    "--unload MODULE\n");
    return 2;
}
