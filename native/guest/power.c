/* SPDX-License-Identifier: Apache-2.0 */
/*
 * power.c - going down: asked for by the agent, by a signal, or by the commands reboot, poweroff,
 * halt and shutdown, which are links to mint-guest and signal process 1 as systemd's do.
 */
#include "guest.h"
#include <errno.h>
#include <linux/reboot.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/reboot.h>
#include <sys/wait.h>
#include <unistd.h>

#define ASK_MS 2000u /* what programs get to end by themselves */
#define KILL_MS 500u
#define STEP_US 5000u
#define TELL_MS 200
#define DELAY_MS 100u /* for a program that asked for it to end, and its end to be told */

void power_request(struct guest *g, enum guest_bye how)
{
    if (g->power_at != GUEST_NEVER)
        return;
    g->power = how;
    g->power_at = guest_now() + DELAY_MS;
}

void power_watch(const struct guest *g, struct watch *w)
{
    watch_until(w, g->power_at);
}

void power_serve(struct guest *g)
{
    if (guest_now() >= g->power_at)
        power_down(g, g->power);
}

/* Reap until nobody is left, or the time is over. Return: whether nobody is left. */
static bool all_ended(uint64_t milliseconds)
{
    uint64_t end = guest_now() + milliseconds;

    while (guest_now() < end) {
        pid_t pid = waitpid(-1, NULL, WNOHANG);

        if (pid < 0 && errno == ECHILD)
            return true;
        if (pid == 0)
            usleep(STEP_US);
    }
    return false;
}

/* Where there is an init of its own, that one knows how. */
static void ask_init(enum guest_bye how)
{
    char *args[] = {how == GUEST_REBOOT ? "reboot" : "poweroff", NULL};

    if (fork() == 0) {
        run_reset_signals();
        setsid();
        execvp(args[0], args);
        _exit(127);
    }
}

static void tell(struct guest *g, enum guest_bye how)
{
    uint8_t why = (uint8_t)how;

    channel_send(g, GUEST_BYE, 0, 0, &why, sizeof(why));
    channel_drain(g, TELL_MS);
}

void power_down(struct guest *g, enum guest_bye how)
{
    tell(g, how);
    if (getpid() != 1) {
        ask_init(how);
        for (;;) /* its stopping of services ends this one */
            pause();
    }
    kill(-1, SIGTERM);
    kill(-1, SIGHUP); /* what shells heed */
    kill(-1, SIGCONT);
    if (!all_ended(ASK_MS)) {
        kill(-1, SIGKILL);
        all_ended(KILL_MS);
    }
    sync();
    reboot(how == GUEST_REBOOT ? LINUX_REBOOT_CMD_RESTART : LINUX_REBOOT_CMD_POWER_OFF);
    guest_say(g, "cannot go down: %s", strerror(errno));
    _exit(1); /* the kernel panics, which somebody will see */
}

int power_command(const char *name, int argc, char **argv)
{
    bool again = strcmp(name, "reboot") == 0;

    for (int i = 1; i < argc && strcmp(name, "shutdown") == 0; i++)
        again |= strcmp(argv[i], "-r") == 0;
    if (kill(1, SIGRTMIN + (again ? 5 : 4)) == 0)
        return 0;
    fprintf(stderr, "%s: %s\n", name, strerror(errno));
    return 1;
}
