/* SPDX-License-Identifier: Apache-2.0 */
/*
 * probe_init.c - the first and only program of a probe boot: says that the kernel got here, and
 * switches the machine off.
 *
 * Before that it does what a machine can still fail at when its kernel has booted: a second process,
 * and a signal whose handler must find and restore the floating-point state (User-Mode Linux keeps
 * it by itself, and on CPUs whose state is larger than it expected goes wrong there).
 */
#include <signal.h>
#include <stdio.h>
#include <sys/reboot.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

/* NOLINTNEXTLINE(cppcoreguidelines-avoid-non-const-global-variables): a handler can set no other */
static volatile sig_atomic_t handled;

static void handle(int number)
{
    handled = number;
}

/* Returns 0 if a signal was handled and the sum around it is right. */
static int child(void)
{
    volatile double sum = 0;
    for (int i = 1; i <= 100; i++) {
        sum += i;
        if (i == 50 && raise(SIGUSR1) != 0) {
            return 1;
        }
    }
    return handled == SIGUSR1 && sum == 5050.0 ? 0 : 2;
}

int main(void)
{
    struct utsname name;
    struct sigaction action = {.sa_handler = handle};
    int status = 0;

    sigaction(SIGUSR1, &action, NULL);
    pid_t pid = fork();
    if (pid == 0) {
        _exit(child());
    }
    if (pid < 0 || waitpid(pid, &status, 0) != pid || status != 0) {
        printf("\nmint-probe-failed: its processes do not work (status %d)\n", status);
    } else if (uname(&name) == 0) {
        printf("\nmint-probe-ok %s\n", name.release);
    }
    (void)fflush(stdout);
    sync();
    reboot(RB_POWER_OFF);
    for (;;) {
        pause();
    }
}
