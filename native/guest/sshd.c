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
#define ANSWER_MS 5000u /* for which to wait for an answer */
#define SSH_PORT 22
#define BANNER "SSH-"
#define BANNER_BYTES 4

static struct {
    pid_t pid;
    int log;      /* what it and `sshd -i` say */
    int log_in;   /* the other end, for those that are still to be started */
    int asking;   /* connection on which the banner is awaited */
    bool answers; /* the banner was seen */
    bool told;    /* READY was sent */
    uint64_t at;  /* when to ask, or to give up asking */
    int log_entry, asking_entry;
} sshd = {.log = -1, .log_in = -1, .asking = -1, .log_entry = -1, .asking_entry = -1};

int sshd_log_fd(void)
{
    return sshd.log_in;
}

int sshd_start(char *const *args)
{
    int p[2];

    if (pipe2(p, O_CLOEXEC) < 0)
        return -errno;
    fcntl(p[0], F_SETFL, O_NONBLOCK);
    sshd.log = p[0];
    sshd.log_in = p[1];
    sshd.pid = fork();
    if (sshd.pid == 0) {
        int null = open("/dev/null", O_RDWR);

        setsid();
        run_reset_signals();
        dup2(null, STDIN_FILENO);
        dup2(null, STDOUT_FILENO);
        dup2(p[1], STDERR_FILENO);
        execv(args[0], args);
        dprintf(STDERR_FILENO, "%s: %s\n", args[0], strerror(errno));
        _exit(127);
    }
    sshd.at = guest_now() + ASK_MS;
    return sshd.pid < 0 ? -errno : 0;
}

bool sshd_child(pid_t pid, int status)
{
    if (pid != sshd.pid || pid == 0)
        return false;
    sshd.pid = 0;
    if (WIFSIGNALED(status))
        guest_say("sshd was ended by signal %d", WTERMSIG(status));
    else
        guest_say("sshd ended with status %d", WEXITSTATUS(status));
    return true;
}

static void stop_asking(uint64_t again)
{
    guest_close(&sshd.asking);
    sshd.at = guest_now() + again;
}

static void ask(void)
{
    struct sockaddr_in to = {
        .sin_family = AF_INET, .sin_port = htons(SSH_PORT), .sin_addr = {htonl(INADDR_LOOPBACK)}};

    sshd.asking = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (sshd.asking < 0 ||
        (connect(sshd.asking, (struct sockaddr *)&to, sizeof(to)) < 0 && errno != EINPROGRESS))
        stop_asking(ASK_MS);
    else
        sshd.at = guest_now() + ANSWER_MS;
}

static void answer(void)
{
    char banner[256];
    ssize_t n = recv(sshd.asking, banner, sizeof(banner), 0);

    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    sshd.answers = n >= BANNER_BYTES && memcmp(banner, BANNER, BANNER_BYTES) == 0;
    stop_asking(ASK_MS);
}

static void pass_log(void)
{
    static const char listening[] = "Server listening";
    char text[4096];
    ssize_t n = read(sshd.log, text, sizeof(text));

    if (n <= 0)
        return;
    if (channel_room((size_t)n))
        channel_send(GUEST_LOG, GUEST_LOG_SSHD, 0, text, (size_t)n);
    /* No need to wait for the time to ask. */
    if (!sshd.answers && sshd.asking < 0 && memmem(text, (size_t)n, listening, sizeof(listening) - 1))
        sshd.at = 0;
}

void ready_again(void)
{
    sshd.told = false;
}

void sshd_watch(struct watch *w)
{
    sshd.log_entry = watch_fd(w, sshd.log, POLLIN);
    sshd.asking_entry = watch_fd(w, sshd.asking, POLLIN);
    if (sshd.pid > 0 && !sshd.answers)
        watch_until(w, sshd.at);
}

void sshd_serve(const struct watch *w)
{
    if (watch_got(w, sshd.log_entry))
        pass_log();
    if (watch_got(w, sshd.asking_entry))
        answer();
    if (sshd.pid > 0 && !sshd.answers && guest_now() >= sshd.at) {
        if (sshd.asking < 0)
            ask();
        else
            stop_asking(0);
    }
    if (sshd.answers && net_ready() && !sshd.told)
        sshd.told = channel_send(GUEST_READY, 0, 0, NULL, 0);
}
