/* SPDX-License-Identifier: Apache-2.0 */
/*
 * run.c - starting a session's program.
 *
 * Without a terminal: a child in a session and process group of its own, on pipes.
 *
 * With one, its warden: a child that leads the session which has the terminal, and does for the
 * program what a shell does for a job, so that it can be stopped and continued (the kernel stops
 * nobody from the keyboard whose parent is not of the same session). It reports what happens.
 */
#include "guest.h"
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#define CANNOT_ENTER 125
#define CANNOT_RUN 126
#define NOT_FOUND 127

void run_reset_signals(void)
{
    sigset_t none;

    for (int i = 1; i < NSIG; i++)
        signal(i, SIG_DFL); /* some it can't: they are as they should be */
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
}

/* ------------------------------------------------------------------------------- in the child */

static void hostname(char *name, size_t size)
{
    if (gethostname(name, size) < 0)
        snprintf(name, size, "?");
    name[size - 1] = '\0';
}

/* Set what the caller left to the guest: who root is. */
static void set_default(const char *name, const char *value)
{
    if (!getenv(name))
        setenv(name, value, 1);
}

/* Whether a program can be found; a directory of the search path that is closed says nothing. */
static bool exists(const char *name)
{
    const char *at = getenv("PATH");

    if (strchr(name, '/'))
        return access(name, F_OK) == 0;
    while (at && *at) {
        const char *end = strchrnul(at, ':');
        char path[1024];

        snprintf(path, sizeof(path), "%.*s/%s", (int)(end - at), at, name);
        if (access(path, F_OK) == 0)
            return true;
        at = *end ? end + 1 : end;
    }
    return false;
}

/* Become the program, on streams that are in place. Return: exit status, if it can't be. */
static int become(const struct program *p)
{
    char node[65], dash_l[] = "-l", *login[3];
    struct account root;
    char *const *args = p->args;

    hostname(node, sizeof(node));
    accounts_root(&root);
    environ = p->env;
    set_default("HOME", root.home);
    set_default("USER", root.name);
    set_default("LOGNAME", root.name);
    set_default("SHELL", root.shell);
    login[0] = root.shell;
    login[1] = dash_l;
    login[2] = NULL;
    if (!args[0])
        args = login;
    umask(022);
    if (chdir(*p->cwd ? p->cwd : root.home) < 0) {
        dprintf(STDERR_FILENO, "node %s cannot be entered: %s: %s\n", node,
                *p->cwd ? p->cwd : root.home, strerror(errno));
        return CANNOT_ENTER;
    }
    run_reset_signals();
    execvp(args[0], args);
    if (errno == ENOENT || (errno == EACCES && !exists(args[0]))) {
        dprintf(STDERR_FILENO, "%s: not found in node %s\n", args[0], node);
        return NOT_FOUND;
    }
    dprintf(STDERR_FILENO, "%s: %s\n", args[0], strerror(errno));
    return CANNOT_RUN;
}

/* Put the streams in place. Several may be the same; none is 0, 1 or 2 (main.c sees to that). */
static void take_streams(const int fds[3])
{
    for (int i = 0; i < 3; i++)
        if (fds[i] >= 0)
            dup2(fds[i], i);
}

static void report(int fd, enum report_kind what, int value)
{
    struct report r = {.what = what, .value = value};
    ssize_t n;

    do
        n = write(fd, &r, sizeof(r));
    while (n < 0 && errno == EINTR);
}

/* The child of the warden: lead a process group in the foreground of the terminal. */
static int become_job(const struct program *p, const int fds[3], int terminal)
{
    setpgid(0, 0);
    tcsetpgrp(terminal, getpgrp());
    take_streams(fds);
    return become(p);
}

static void become_warden(const struct program *p, const int fds[3], int terminal, int to)
{
    pid_t job;

    setsid();
    signal(SIGTTOU, SIG_IGN); /* for tcsetpgrp() from a group in the background */
    signal(SIGINT, SIG_IGN);
    signal(SIGQUIT, SIG_IGN);
    signal(SIGTSTP, SIG_IGN);
    signal(SIGHUP, SIG_DFL);
    signal(SIGCHLD, SIG_DFL);
    ioctl(terminal, TIOCSCTTY, 0);
    job = fork();
    if (job == 0)
        _exit(become_job(p, fds, terminal));
    if (job < 0)
        _exit(CANNOT_RUN);
    setpgid(job, job);
    tcsetpgrp(terminal, job);
    report(to, REPORT_GROUP, job);
    /* Other sessions' ends of pipes among them: who reads there is to see the end. */
    dup2(to, 3);
    close_range(4, ~0u, 0);
    for (;;) {
        int status;
        pid_t pid = waitpid(job, &status, WUNTRACED);

        if (pid == job && WIFSTOPPED(status)) {
            report(3, REPORT_STOPPED, WSTOPSIG(status));
        } else if (pid == job) {
            report(3, REPORT_ENDED, status);
            _exit(0);
        }
    }
}

/* ------------------------------------------------------------------------------ in the parent */

struct ends {
    int ours[3], theirs[3];
    int terminal, master;
    int report[2];
};

static void close_ends(struct ends *e, bool ours)
{
    for (int i = 0; i < 3; i++) {
        if (e->theirs[i] != e->terminal)
            guest_close(&e->theirs[i]);
        if (ours)
            guest_close(&e->ours[i]);
    }
    guest_close(&e->terminal);
    guest_close(&e->report[1]);
    if (!ours)
        return;
    guest_close(&e->master);
    guest_close(&e->report[0]);
}

static int open_terminal(struct ends *e, const struct guest_open *open_)
{
    struct winsize ws = {.ws_row = open_->rows, .ws_col = open_->columns};
    int unlock = 0;

    e->master = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK);
    if (e->master < 0 || ioctl(e->master, TIOCSPTLCK, &unlock) < 0)
        return -errno;
    e->terminal = ioctl(e->master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (e->terminal < 0)
        return -errno;
    ioctl(e->master, TIOCSWINSZ, &ws);
    if (pipe2(e->report, O_CLOEXEC) < 0)
        return -errno;
    fcntl(e->report[0], F_SETFL, O_NONBLOCK);
    return 0;
}

/* One stream: the terminal, the log, or a pipe whose our end is the one that `in` says. */
static int open_stream(struct ends *e, int i, unsigned flags, int log)
{
    int p[2];

    if (flags & (GUEST_TTY_IN << i)) {
        e->theirs[i] = e->terminal;
        if (i == 0)
            e->ours[0] = fcntl(e->master, F_DUPFD_CLOEXEC, 3);
        return i == 0 && e->ours[0] < 0 ? -errno : 0;
    }
    if (i == 2 && (flags & GUEST_LOG_ERR)) {
        e->theirs[i] = log >= 0 ? fcntl(log, F_DUPFD_CLOEXEC, 3) : open("/dev/null", O_WRONLY);
        return e->theirs[i] < 0 ? -errno : 0;
    }
    if (pipe2(p, O_CLOEXEC) < 0)
        return -errno;
    e->theirs[i] = p[i == 0 ? 0 : 1];
    e->ours[i] = p[i == 0 ? 1 : 0];
    fcntl(e->ours[i], F_SETFL, O_NONBLOCK);
    return 0;
}

int run_program(const struct guest *g, struct session *s, const struct program *p)
{
    struct ends e = {{-1, -1, -1}, {-1, -1, -1}, -1, -1, {-1, -1}};
    int err = p->open.flags & GUEST_TTY ? open_terminal(&e, &p->open) : 0;
    pid_t pid = -1;

    for (int i = 0; i < 3 && !err; i++)
        err = open_stream(&e, i, p->open.flags, g->sshd.log_in);
    if (!err) {
        pid = fork();
        err = pid < 0 ? -errno : 0;
    }
    if (pid == 0 && e.terminal >= 0)
        become_warden(p, e.theirs, e.terminal, e.report[1]);
    if (pid == 0) {
        setsid();
        take_streams(e.theirs);
        _exit(become(p));
    }
    close_ends(&e, err != 0);
    if (err)
        return err;
    s->pid = pid;
    s->in = e.ours[0];
    s->out = e.ours[1];
    s->err = e.ours[2];
    s->pty = e.master;
    s->report = e.report[0];
    return 0;
}
