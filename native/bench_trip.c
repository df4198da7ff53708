/* SPDX-License-Identifier: Apache-2.0 */
/* bench_trip.c - round trips: of frames through the ports, of bare doorbells; see bench.h. */
#include "bench_internal.h"
#include <errno.h>
#include <sys/epoll.h>
#include <unistd.h>

/* Wait for one frame and copy it out. Return: its length, or a negative errno. */
static int take(struct mint_port *port, const struct mint_bench_config *c, uint8_t *out)
{
    struct mint_view v;
    int len;

    while (!mint_port_recv(port, &v)) {
        int events = mint_port_wait(port, (int64_t)c->timeout_ns);

        if (events == (int)MINT_EV_TIMER)
            return -ETIMEDOUT;
        if (events < 0)
            return events;
    }
    len = (int)v.len;
    memcpy(out, v.head, sizeof(v.head));
    memcpy(out + sizeof(v.head), v.frame + sizeof(v.head), v.len - sizeof(v.head));
    mint_port_release(port, &v);
    mint_port_recycle(port);
    mint_port_gave(port, 1, v.len);
    return len;
}

static int give(struct mint_port *port, const uint8_t *frame, uint32_t len)
{
    if (mint_port_send(port, NULL, frame, len, NULL) != MINT_SENT)
        return -EIO; /* one frame at a time always has room */
    mint_port_took(port, len);
    mint_port_flush(port);
    return 0;
}

static void address(uint8_t *frame, const struct mint_bench_config *c)
{
    memcpy(frame, c->dst, 6);
    memcpy(frame + 6, c->src, 6);
    frame[12] = 0x88; /* IEEE 802 local experimental EtherType */
    frame[13] = 0xb5;
}

int mint_bench_ask(struct mint_port *port, const struct mint_bench_config *c, uint32_t *ns)
{
    static uint8_t frame[MINT_FRAME_MAX], answer[MINT_FRAME_MAX];
    int err = mint_bench_sizes_ok(c) ? 0 : -EINVAL;

    address(frame, c);
    for (uint64_t i = 0; !err && i < c->frames; i++) {
        uint64_t start = now_ns();

        err = give(port, frame, c->size_max);
        if (!err) {
            int len = take(port, c, answer);

            err = len < 0 ? len : 0;
        }
        ns[i] = (uint32_t)(now_ns() - start);
    }
    return err;
}

int mint_bench_answer(struct mint_port *port, const struct mint_bench_config *c)
{
    static uint8_t frame[MINT_FRAME_MAX];
    int len = 0;

    for (uint64_t i = 0; len >= 0 && i < c->frames; i++) {
        len = take(port, c, frame);
        if (len < 0)
            break;
        address(frame, c);
        len = give(port, frame, (uint32_t)len);
    }
    return len < 0 ? len : 0;
}

/* Sleep until the bell rings, as a port does, and take the ring. */
static int await_ring(int epfd, int fd)
{
    struct timespec limit = {.tv_sec = 10};
    struct epoll_event ev;
    int n = epoll_pwait2(epfd, &ev, 1, &limit, NULL);

    if (n <= 0)
        return n < 0 ? -errno : -ETIMEDOUT;
    return mint_bell_drain(fd) ? 0 : -EPIPE;
}

int mint_bench_bells(int fd, bool first, uint32_t rounds, uint32_t *ns)
{
    struct epoll_event ev = {.events = EPOLLIN};
    int epfd = epoll_create1(EPOLL_CLOEXEC), err = 0;

    if (epfd < 0 || epoll_ctl(epfd, EPOLL_CTL_ADD, fd, &ev) < 0)
        err = -errno;
    for (uint32_t i = 0; !err && i < rounds; i++) {
        uint64_t start = now_ns();

        if (first)
            mint_bell_ring(fd);
        err = await_ring(epfd, fd);
        if (!first)
            mint_bell_ring(fd);
        ns[i] = (uint32_t)(now_ns() - start);
    }
    if (epfd >= 0)
        close(epfd);
    return err;
}

uint64_t mint_bench_ring(int ringer, int hearer, uint32_t rounds)
{
    uint64_t spent = 0;

    for (uint32_t i = 0; i < rounds; i++) {
        uint64_t start = now_ns();

        mint_bell_ring(ringer);
        spent += now_ns() - start;
        mint_bell_drain(hearer);
    }
    return rounds ? spent / rounds : 0;
}
