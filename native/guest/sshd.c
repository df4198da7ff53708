/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sshd.c - the node's sshd: started, its log passed on, and asked for its banner, which is what
 * makes a node ready.
 *
 * What it logs is caused by others, too: what the agent does not take at once is dropped.
 */
#include "guest.h"
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define ASK_MS 100u     /* between two looks for the banner */
#define AWAIT_MS 500u   /* ... of somebody else's sshd */
#define ANSWER_MS 5000u /* for which to wait for an answer */
#define SSH_PORT 22
#define BANNER "SSH-"
#define BANNER_BYTES 4

int sshd_start(struct sshd *sshd, char *const *args)
{
    int p[2];

    if (pipe2(p, O_CLOEXEC) < 0)
        return -errno;
    fcntl(p[0], F_SETFL, O_NONBLOCK);
    sshd->log = p[0];
    sshd->log_in = p[1];
    sshd->pid = fork();
    if (sshd->pid == 0) {
        int null = open("/dev/null", O_RDWR);

        setsid();
        run_reset_signals();
        if (null >= 0) {
            dup2(null, STDIN_FILENO);
            dup2(null, STDOUT_FILENO);
        }
        dup2(p[1], STDERR_FILENO);
        execv(args[0], args);
        dprintf(STDERR_FILENO, "%s: %s\n", args[0], strerror(errno));
        _exit(127);
    }
    sshd->wanted = true;
    sshd->pause = ASK_MS;
    sshd->at = guest_now() + ASK_MS;
    return sshd->pid < 0 ? -errno : 0;
}

void sshd_await(struct sshd *sshd)
{
    sshd->wanted = true;
    sshd->pause = AWAIT_MS;
    sshd->at = guest_now();
}

bool sshd_child(struct guest *g, pid_t pid, int status)
{
    struct sshd *sshd = &g->sshd;

    if (pid != sshd->pid || pid == 0)
        return false;
    sshd->pid = 0;
    sshd->wanted = sshd->answers = false;
    if (WIFSIGNALED(status))
        guest_say(g, "sshd was ended by signal %d", WTERMSIG(status));
    else
        guest_say(g, "sshd ended with status %d", WEXITSTATUS(status));
    return true;
}

static void stop_asking(struct sshd *sshd, uint64_t again)
{
    guest_close(&sshd->asking);
    sshd->at = guest_now() + again;
}

static void ask(struct sshd *sshd)
{
    struct sockaddr_in to = {
        .sin_family = AF_INET, .sin_port = htons(SSH_PORT), .sin_addr = {htonl(INADDR_LOOPBACK)}};

    sshd->asking = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (sshd->asking < 0 ||
        (connect(sshd->asking, (struct sockaddr *)&to, sizeof(to)) < 0 && errno != EINPROGRESS))
        stop_asking(sshd, sshd->pause);
    else
        sshd->at = guest_now() + ANSWER_MS;
}

static void answer(struct sshd *sshd)
{
    char banner[256];
    ssize_t n;

    if (sshd->asking < 0)
        return;
    n = recv(sshd->asking, banner, sizeof(banner), 0);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    sshd->answers = n >= BANNER_BYTES && memcmp(banner, BANNER, BANNER_BYTES) == 0;
    stop_asking(sshd, sshd->pause);
}

static void pass_log(struct guest *g)
{
    struct sshd *sshd = &g->sshd;
    static const char listening[] = "Server listening";
    char text[4096];
    ssize_t n = read(sshd->log, text, sizeof(text));

    if (n <= 0)
        return;
    if (channel_room(g, (size_t)n))
        channel_send(g, GUEST_LOG, GUEST_LOG_SSHD, 0, text, (size_t)n);
    /* No need to wait for the time to ask. */
    if (!sshd->answers && sshd->asking < 0 &&
        memmem(text, (size_t)n, listening, sizeof(listening) - 1))
        sshd->at = 0;
}

void ready_again(struct guest *g)
{
    g->sshd.told = false;
}

void sshd_watch(struct sshd *sshd, struct watch *w)
{
    sshd->log_entry = watch_fd(w, sshd->log, POLLIN);
    sshd->asking_entry = watch_fd(w, sshd->asking, POLLIN);
    if (sshd->wanted && !sshd->answers)
        watch_until(w, sshd->at);
}

void sshd_serve(struct guest *g, const struct watch *w)
{
    struct sshd *sshd = &g->sshd;

    if (watch_got(w, sshd->log_entry))
        pass_log(g);
    if (watch_got(w, sshd->asking_entry))
        answer(sshd);
    if (sshd->wanted && !sshd->answers && guest_now() >= sshd->at) {
        if (sshd->asking < 0)
            ask(sshd);
        else
            stop_asking(sshd, 0);
    }
    if (sshd->answers && net_ready(&g->net) && !sshd->told)
        sshd->told = channel_send(g, GUEST_READY, 0, 0, NULL, 0);
}
