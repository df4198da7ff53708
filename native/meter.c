/* SPDX-License-Identifier: Apache-2.0 */
/*
 * meter.c - mint-meter: what `mint bench` runs inside nodes and beside them.
 *
 *   mint-meter echo PORT                        answer TCP and UDP on PORT until ended
 *   mint-meter ask tcp|udp ADDRESS PORT BYTES N send BYTES, wait for as many back; N times
 *   mint-meter sink PORT SECONDS                take datagrams, as fast as they come
 *   mint-meter flood ADDRESS PORT BYTES RATE SECONDS
 *                                               send RATE datagrams a second; 0: as fast as they go
 *   mint-meter burn SECONDS                     do nothing but use a core
 *   mint-meter seqpacket BYTES SECONDS CPU CPU  packets from one process to another
 *   mint-meter seqtrip BYTES N CPU CPU          packets to and fro between two processes
 *
 * A line "ready" says that a server listens; results are one line of JSON. Nothing here knows of
 * Mint VNI: it uses sockets as any program does.
 */
#include "clock.h"
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define BYTES_MAX 65507u
#define TRIPS_MAX 10000000u
#define LOST_AFTER_MS 500
#define CONNECT_TRIES 100u
#define BATCH 64u
#define CLIENTS_MAX 16u

/* One program, one thread, one packet at a time. */
static uint8_t buffer[BYTES_MAX]; // NOLINT(cppcoreguidelines-avoid-non-const-global-variables)

static void die(const char *what)
{
    fprintf(stderr, "mint-meter: %s: %s\n", what, strerror(errno));
    exit(EXIT_FAILURE);
}

static uint32_t number(const char *text, uint32_t most)
{
    char *end;
    unsigned long value = strtoul(text, &end, 10);

    if (!*text || *end || value > most) {
        fprintf(stderr, "mint-meter: %s is not a number from 0 to %u\n", text, most);
        exit(2);
    }
    return (uint32_t)value;
}

static uint64_t seconds_from_now(const char *text)
{
    return now_ns() + (uint64_t)(strtod(text, NULL) * 1e9);
}

static void ready(void)
{
    puts("ready");
    fflush(stdout);
}

static void pin(uint32_t cpu)
{
    cpu_set_t set;

    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    if (sched_setaffinity(0, sizeof(set), &set) < 0)
        die("sched_setaffinity");
}

/* ---------------------------------------------------------------------------- results */

static int by_size(const void *a, const void *b)
{
    uint32_t x, y;

    memcpy(&x, a, sizeof(x));
    memcpy(&y, b, sizeof(y));
    return x < y ? -1 : x > y;
}

static uint32_t quantile(const uint32_t *ns, uint32_t n, double q)
{
    uint32_t at = (uint32_t)((double)n * q);

    return ns[at < n ? at : n - 1];
}

static void print_trips(uint32_t *ns, uint32_t n, uint32_t lost)
{
    double sum = 0;

    if (!n) {
        puts("{\"error\": \"no answer at all\"}");
        return;
    }
    for (uint32_t i = 0; i < n; i++)
        sum += ns[i];
    qsort(ns, n, sizeof(*ns), by_size);
    printf("{\"trips\": %u, \"lost\": %u, \"min\": %u, \"p50\": %u, \"p99\": %u, \"p999\": %u,"
           " \"max\": %u, \"mean\": %.0f}\n",
           n, lost, ns[0], quantile(ns, n, 0.5), quantile(ns, n, 0.99), quantile(ns, n, 0.999),
           ns[n - 1], sum / n);
}

static void print_flow(uint64_t packets, uint64_t bytes, uint64_t ns)
{
    printf("{\"packets\": %llu, \"bytes\": %llu, \"ns\": %llu}\n", (unsigned long long)packets,
           (unsigned long long)bytes, (unsigned long long)ns);
}

/* ---------------------------------------------------------------------------- sockets */

static struct sockaddr_in address(const char *host, const char *port)
{
    struct sockaddr_in at = {.sin_family = AF_INET,
                             .sin_port = htons((uint16_t)number(port, UINT16_MAX))};

    if (host && inet_pton(AF_INET, host, &at.sin_addr) != 1) {
        fprintf(stderr, "mint-meter: %s is no IPv4 address\n", host);
        exit(2);
    }
    return at;
}

static int new_socket(int type)
{
    int fd = socket(AF_INET, type | SOCK_CLOEXEC, 0), on = 1;

    if (fd < 0)
        die("socket");
    if (type == SOCK_STREAM)
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    return fd;
}

static int listening(int type, const char *port)
{
    struct sockaddr_in at = address(NULL, port);
    int fd = new_socket(type), on = 1;

    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    if (bind(fd, (struct sockaddr *)&at, sizeof(at)) < 0)
        die("bind");
    if (type == SOCK_STREAM && listen(fd, CLIENTS_MAX) < 0)
        die("listen");
    return fd;
}

/* The server may not be listening yet. */
static int connected(int type, const char *host, const char *port)
{
    struct sockaddr_in at = address(host, port);

    for (uint32_t i = 0;; i++) {
        int fd = new_socket(type);

        if (connect(fd, (struct sockaddr *)&at, sizeof(at)) == 0)
            return fd;
        if (errno != ECONNREFUSED || i == CONNECT_TRIES)
            die("connect");
        close(fd);
        usleep(20000);
    }
}

/* ------------------------------------------------------------------------------- echo */

static void echo_datagram(int fd)
{
    struct sockaddr_in from;
    socklen_t size = sizeof(from);
    ssize_t n = recvfrom(fd, buffer, sizeof(buffer), 0, (struct sockaddr *)&from, &size);

    if (n >= 0)
        (void)sendto(fd, buffer, (size_t)n, 0, (struct sockaddr *)&from, size);
}

static bool write_all(int fd, const uint8_t *data, size_t len)
{
    while (len) {
        ssize_t n = send(fd, data, len, MSG_NOSIGNAL);

        if (n <= 0)
            return false;
        data += n;
        len -= (size_t)n;
    }
    return true;
}

static bool echo_stream(int fd)
{
    ssize_t n = recv(fd, buffer, sizeof(buffer), 0);

    return n > 0 && write_all(fd, buffer, (size_t)n);
}

/* One more client, or none if there is no place. */
static void admit(struct pollfd *p, int listener)
{
    int on = 1, fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);

    for (uint32_t i = 2; fd >= 0 && i < 2 + CLIENTS_MAX; i++)
        if (p[i].fd < 0) {
            setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
            p[i].fd = fd;
            return;
        }
    if (fd >= 0)
        close(fd);
}

static int echo(char **args)
{
    struct pollfd p[2 + CLIENTS_MAX];

    for (uint32_t i = 0; i < 2 + CLIENTS_MAX; i++)
        p[i] = (struct pollfd){.fd = -1, .events = POLLIN};
    p[0].fd = listening(SOCK_DGRAM, args[0]);
    p[1].fd = listening(SOCK_STREAM, args[0]);
    ready();
    while (poll(p, 2 + CLIENTS_MAX, -1) > 0) {
        if (p[0].revents)
            echo_datagram(p[0].fd);
        if (p[1].revents)
            admit(p, p[1].fd);
        for (uint32_t i = 2; i < 2 + CLIENTS_MAX; i++)
            if (p[i].revents && !echo_stream(p[i].fd)) {
                close(p[i].fd);
                p[i].fd = -1;
            }
    }
    return EXIT_FAILURE;
}

/* -------------------------------------------------------------------------------- ask */

/* Return: whether all came back. */
static bool trip(int fd, size_t bytes, bool stream)
{
    size_t got = 0;

    if (!write_all(fd, buffer, bytes))
        return false;
    while (got < bytes) {
        ssize_t n = recv(fd, buffer, sizeof(buffer), 0);

        if (n <= 0)
            return false;
        got += (size_t)n;
        if (!stream)
            return got == bytes;
    }
    return true;
}

static uint32_t *new_samples(uint32_t n)
{
    uint32_t *ns = calloc(n ? n : 1, sizeof(*ns));

    if (!ns)
        die("calloc");
    return ns;
}

static int ask(char **args)
{
    bool stream = strcmp(args[0], "tcp") == 0;
    int fd = connected(stream ? SOCK_STREAM : SOCK_DGRAM, args[1], args[2]);
    size_t bytes = number(args[3], BYTES_MAX);
    uint32_t n = number(args[4], TRIPS_MAX), done = 0, lost = 0, *ns = new_samples(n);
    struct timeval limit = {.tv_usec = LOST_AFTER_MS * 1000L};

    if (!stream) /* a lost segment is sent again; a lost datagram is waited for in vain */
        setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
    for (uint32_t i = 0; i < n && (lost < 20 || done); i++) {
        uint64_t start = now_ns();

        if (trip(fd, bytes, stream))
            ns[done++] = (uint32_t)(now_ns() - start);
        else if (stream)
            die("the connection ended");
        else
            lost++;
    }
    print_trips(ns, done, lost);
    free(ns);
    close(fd);
    return EXIT_SUCCESS;
}

/* ---------------------------------------------------------------------- flood and sink */

static void sleep_until(uint64_t ns)
{
    uint64_t now = now_ns();

    if (ns > now)
        usleep((useconds_t)((ns - now) / 1000u));
}

static int flood(char **args)
{
    int fd = connected(SOCK_DGRAM, args[0], args[1]);
    uint32_t bytes = number(args[2], BYTES_MAX), rate = number(args[3], UINT32_MAX);
    uint64_t start = now_ns(), end = seconds_from_now(args[4]), sent = 0, due = 0;
    struct iovec iov = {.iov_base = buffer, .iov_len = bytes};
    struct mmsghdr many[BATCH];

    memset(many, 0, sizeof(many));
    for (uint32_t i = 0; i < BATCH; i++)
        many[i].msg_hdr = (struct msghdr){.msg_iov = &iov, .msg_iovlen = 1};
    while (now_ns() < end) {
        int n = sendmmsg(fd, many, BATCH, 0);

        if (n > 0) /* else nobody listens, or the queue is full: go on */
            sent += (uint64_t)n;
        due += BATCH;
        if (rate)
            sleep_until(start + due * 1000000000u / rate);
    }
    print_flow(sent, sent * bytes, now_ns() - start);
    return EXIT_SUCCESS;
}

static int sink(char **args)
{
    int fd = listening(SOCK_DGRAM, args[0]);
    uint64_t start = now_ns(), end = seconds_from_now(args[1]), packets = 0, bytes = 0;
    struct timeval limit = {.tv_usec = 50000};

    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
    ready();
    while (now_ns() < end) {
        ssize_t n = recv(fd, buffer, sizeof(buffer), 0);

        packets += n >= 0;
        bytes += n > 0 ? (uint64_t)n : 0;
    }
    print_flow(packets, bytes, now_ns() - start);
    return EXIT_SUCCESS;
}

static int burn(char **args)
{
    uint64_t end = seconds_from_now(args[0]), rounds = 0;

    while (now_ns() < end)
        rounds++;
    print_flow(rounds, 0, 0);
    return EXIT_SUCCESS;
}

/* -------------------------------------------------------------------------- seqpacket */

/* Two processes, each with its end of a pair of sockets. Return: this one's; *child: in the child. */
static int two(const char *first, const char *second, bool *child)
{
    uint32_t cpus[2] = {number(first, CPU_SETSIZE - 1), number(second, CPU_SETSIZE - 1)};
    int fds[2];
    pid_t pid;

    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds) < 0)
        die("socketpair");
    pid = fork();
    if (pid < 0)
        die("fork");
    *child = pid == 0;
    if (*child)
        prctl(PR_SET_PDEATHSIG, SIGKILL);
    pin(cpus[*child]);
    close(fds[*child ? 0 : 1]);
    return fds[*child ? 1 : 0];
}

/* The receiver counts, and tells what it got when the sender is done. */
static int seqpacket(char **args)
{
    bool child;
    size_t bytes = number(args[0], BYTES_MAX);
    int fd = two(args[2], args[3], &child);
    uint64_t start = now_ns(), end = seconds_from_now(args[1]), got[2] = {0, 0};

    if (!child) {
        while (now_ns() < end && send(fd, buffer, bytes, 0) >= 0)
            ;
        (void)send(fd, "", 1, 0); /* one byte: the end */
        if (recv(fd, got, sizeof(got), 0) != (ssize_t)sizeof(got))
            die("seqpacket");
        print_flow(got[0], got[0] * bytes, got[1] - start);
        wait(NULL);
        return EXIT_SUCCESS;
    }
    while (recv(fd, buffer, sizeof(buffer), 0) > 1)
        got[0]++;
    got[1] = now_ns();
    return send(fd, got, sizeof(got), 0) < 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}

static int seqtrip(char **args)
{
    bool child;
    size_t bytes = number(args[0], BYTES_MAX);
    uint32_t n = number(args[1], TRIPS_MAX), *ns = new_samples(n);
    int fd = two(args[2], args[3], &child);

    for (uint32_t i = 0; i < n; i++) {
        uint64_t start = now_ns();

        if (child ? !(recv(fd, buffer, bytes, 0) > 0 && write_all(fd, buffer, bytes))
                  : !trip(fd, bytes, false))
            die("seqtrip");
        ns[i] = (uint32_t)(now_ns() - start);
    }
    if (!child) {
        print_trips(ns, n, 0);
        wait(NULL);
    }
    free(ns);
    return EXIT_SUCCESS;
}

static const struct {
    const char *name;
    int args;
    int (*run)(char **args);
} verbs[] = {
    {"echo", 1, echo},       {"ask", 5, ask},   {"sink", 2, sink},
    {"flood", 5, flood},     {"burn", 1, burn}, {"seqpacket", 4, seqpacket},
    {"seqtrip", 4, seqtrip},
};

int main(int argc, char **argv)
{
    for (size_t i = 0; argc > 1 && i < sizeof(verbs) / sizeof(verbs[0]); i++)
        if (strcmp(argv[1], verbs[i].name) == 0 && argc == verbs[i].args + 2)
            return verbs[i].run(argv + 2);
    fputs("mint-meter: see the head of native/meter.c for what it does\n", stderr);
    return 2;
}
