/* SPDX-License-Identifier: Apache-2.0 */
/*
 * first.c - mint-first PID NAME: the first process of a confined program's PID namespace.
 *
 * The kernel ignores signals that the first process of a namespace sends to itself, and the abort()
 * with which a program ends when something is wrong with it would hang: User-Mode Linux ends so when
 * its kernel panics. So the program is the second process, and this one waits for its end, says on
 * standard error how it ended, and ends too, with which the kernel ends all others in the namespace.
 * Meanwhile it reaps orphans. It has no privileges, like the program.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

static int tell(const char *name, int status)
{
    if (WIFSIGNALED(status))
        fprintf(stderr, "%s was ended by signal %d (%s)\n", name, WTERMSIG(status),
                strsignal(WTERMSIG(status)));
    else if (WEXITSTATUS(status) != 0)
        fprintf(stderr, "%s ended with status %d\n", name, WEXITSTATUS(status));
    return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

int main(int argc, char **argv)
{
    long program = argc == 3 ? strtol(argv[1], NULL, 10) : 0;

    if (program <= 0)
        return 2;
    for (;;) {
        int status;
        pid_t pid = wait(&status);

        if (pid == program)
            return tell(argv[2], status);
        if (pid < 0 && errno != EINTR)
            return 1;
    }
}
