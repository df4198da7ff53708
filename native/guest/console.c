/* SPDX-License-Identifier: Apache-2.0 */
/*
 * console.c - a root shell on the guest's console, once somebody presses Enter there: the console is
 * root's on the host, so it needs no password. After the shell it waits for the next Enter.
 */
#include "guest.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

#define ACTIVE "/sys/class/tty/console/active"

/* The device behind /dev/console, which itself can be nobody's controlling terminal. */
static bool find_device(struct console *console)
{
    char names[64];
    const char *last;
    ssize_t n;
    int fd = open(ACTIVE, O_RDONLY | O_CLOEXEC);

    if (fd < 0)
        return false;
    n = read(fd, names, sizeof(names) - 1);
    close(fd);
    if (n <= 0)
        return false;
    names[n] = '\0';
    names[strcspn(names, "\n")] = '\0';
    last = strrchr(names, ' ');
    snprintf(console->path, sizeof(console->path), "/dev/%s", last ? last + 1 : names);
    return true;
}

static int listen_to(struct console *console)
{
    console->fd = open(console->path, O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
    if (console->fd < 0)
        return -errno;
    dprintf(console->fd, "\r\nPress Enter for a shell.\r\n");
    return 0;
}

int console_open(struct console *console)
{
    int err;

    if (!find_device(console))
        return -ENODEV;
    err = listen_to(console);
    if (!err && tcgetattr(console->fd, &console->usual) < 0)
        err = -errno;
    return err;
}

static void become_shell(const struct console *console)
{
    struct account root;
    char dash_l[] = "-l", *args[3];
    int fd;

    setsid();
    run_reset_signals();
    fd = open(console->path, O_RDWR); /* which makes it this session's terminal */
    if (fd < 0)
        _exit(1);
    for (int i = 0; i <= STDERR_FILENO; i++)
        dup2(fd, i);
    ioctl(STDIN_FILENO, TIOCSCTTY, 0);
    tcflush(STDIN_FILENO, TCIFLUSH);
    accounts_root(&root);
    setenv("HOME", root.home, 1);
    setenv("USER", root.name, 1);
    setenv("LOGNAME", root.name, 1);
    setenv("SHELL", root.shell, 1);
    setenv("TERM", "vt100", 0);
    if (chdir(root.home) < 0 && chdir("/") < 0)
        _exit(1);
    args[0] = root.shell;
    args[1] = dash_l;
    args[2] = NULL;
    execv(args[0], args);
    dprintf(STDERR_FILENO, "%s: %s\n", args[0], strerror(errno));
    _exit(1);
}

bool console_child(struct console *console, pid_t pid)
{
    if (!pid || pid != console->shell)
        return false;
    console->shell = 0;
    if (listen_to(console) == 0)
        tcsetattr(console->fd, TCSAFLUSH, &console->usual); /* whatever the shell has left */
    return true;
}

void console_watch(struct console *console, struct watch *w)
{
    console->entry = watch_fd(w, console->fd, POLLIN);
}

void console_serve(struct console *console, const struct watch *w)
{
    if (!watch_got(w, console->entry))
        return;
    guest_close(&console->fd);
    console->shell = fork();
    if (console->shell == 0)
        become_shell(console);
}
