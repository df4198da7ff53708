/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fuzz_control.c - a worker's control socket: messages of every type, length and order, with any
 * descriptors, and frames of garbage at the TAP that came with one of them.
 *
 * The supervisor is trusted, but a mistake of its own must not take a worker down. A datagram socket
 * stands in for the TAP: one packet is one frame with its vnet header.
 */
#include "fuzz.h"
#include "port_util.h"
#include "vhost.h"
#include "worker.h"
#include <sys/uio.h>

#define CAP 135168u

struct world {
    struct fabric *f;
    struct mint_worker w;
    int supervisor, tap[2];
    bool hung_up;
    int first_fd; /* descriptors from here on are those of one input */
};

void mint_log(const char *fmt, ...)
{
    (void)fmt;
}

/* The fuzzer keeps its privileges. */
int mint_sandbox(uint32_t uid, uint32_t gid)
{
    return uid == 12345u && gid ? -EPERM : 0;
}

static void say(struct world *w, const void *data, size_t bytes, const int *fds, uint32_t n)
{
    union {
        char buf[CMSG_SPACE(sizeof(int) * 8)];
        struct cmsghdr align;
    } c;
    struct iovec iov = {.iov_base = (void *)(uintptr_t)data, .iov_len = bytes};
    struct msghdr h = {.msg_iov = &iov, .msg_iovlen = 1};
    char answer[256];

    memset(&c, 0, sizeof(c));
    if (n) {
        struct cmsghdr *cm;

        h.msg_control = c.buf;
        h.msg_controllen = CMSG_SPACE(sizeof(int) * n);
        cm = CMSG_FIRSTHDR(&h);
        cm->cmsg_level = SOL_SOCKET;
        cm->cmsg_type = SCM_RIGHTS;
        cm->cmsg_len = CMSG_LEN(sizeof(int) * n);
        memcpy(CMSG_DATA(cm), fds, sizeof(int) * n);
    }
    if (sendmsg(w->supervisor, &h, MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
        return;
    mint_control_serve(&w->w);
    w->hung_up = w->w.control_fd < 0;
    while (recv(w->supervisor, answer, sizeof(answer), MSG_DONTWAIT) > 0)
        continue;
}

static struct mint_msg message(enum mint_msg_type type)
{
    struct mint_msg m = {.magic = MINT_MSG_MAGIC, .version = MINT_ABI_VERSION, .type = type};

    return m;
}

static void say_open(struct world *w)
{
    struct mint_msg m = message(MINT_MSG_OPEN);

    m.u.open.port = port_config(w->f, 0);
    say(w, &m, sizeof(m), &w->f->ctl[0], 1);
}

static void say_peer(struct world *w, uint32_t i)
{
    struct mint_msg m = message(MINT_MSG_ADD_PEER);
    const int fds[4] = {w->f->ctl[i], w->f->payload[0][i], w->f->payload[i][0], w->f->bell[0][i]};

    m.u.peer = peer_config(w->f, 0, i);
    say(w, &m, sizeof(m), fds, 4);
}

static void say_tap(struct world *w, bool offload)
{
    struct mint_msg m = message(MINT_MSG_TAP);

    m.u.tap.offload = offload;
    say(w, &m, sizeof(m), &w->tap[1], 1);
}

static void begin(struct script *s, struct world *w)
{
    static uint8_t zero[MINT_CTL_BYTES(3)];
    uint8_t how = take8(s);
    int pair[2];

    for (uint32_t i = 0; i < 3; i++)
        CHECK(pwrite(w->f->ctl[i], zero, sizeof(zero), 0) == (ssize_t)sizeof(zero), "pwrite");
    memset(&w->w, 0, sizeof(w->w));
    w->w.hold.peer = UINT32_MAX;
    w->w.tap.fd = w->w.listen_fd = w->w.open_fds[0] = w->w.open_fds[1] = -1;
    CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) == 0,
          "socketpair");
    w->supervisor = pair[0];
    w->w.control_fd = pair[1];
    w->hung_up = false;
    CHECK(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, w->tap) == 0, "tap");
    if (how & 1u)
        return;
    say_open(w);
    say_peer(w, 1);
    if (how & 2u)
        say_peer(w, 2);
    say_tap(w, how & 4u);
}

/* Any message, with any descriptors; the parts that make it succeed more often than chance. */
static void say_something(struct script *s, struct world *w)
{
    const int all[8] = {w->f->ctl[0],     w->f->ctl[1], w->f->payload[0][1], w->f->payload[1][0],
                        w->f->bell[0][1], w->tap[1],    w->supervisor,       w->f->payload[2][0]};
    struct mint_msg m = message(take8(s) % 9u);
    uint8_t how = take8(s), peer = take8(s) & 3u;
    uint16_t which = take16(s);
    uint32_t n = how & 7u, bytes = sizeof(m);
    int fds[8];

    for (uint32_t i = 0; i < n; i++)
        fds[i] = all[(which >> (2u * i)) & 7u];
    if (m.type == MINT_MSG_OPEN && how & 8u)
        m.u.open.port = port_config(w->f, 0);
    else if (m.type == MINT_MSG_ADD_PEER && how & 8u && peer < 3)
        m.u.peer = peer_config(w->f, 0, peer);
    else
        take_bytes(s, m.u.bytes, sizeof(m.u.bytes));
    if (how & 16u)
        ((uint8_t *)&m)[take8(s) % sizeof(m)] = take8(s);
    if ((how & 0xe0u) == 0xe0u)
        bytes = take8(s);
    say(w, &m, bytes < sizeof(m) ? bytes : sizeof(m), fds, n);
}

static void garbage_frame(struct script *s, struct world *w)
{
    uint8_t frame[12 + 14 + 200];
    uint32_t len = take8(s) % sizeof(frame);
    uint8_t how = take8(s);

    take_bytes(s, frame, len);
    if (how & 1u && len >= 18)
        mac_of(1u + (how >> 7), frame + 12);
    if (how & 2u && len >= 24)
        mac_of(0, frame + 18);
    (void)send(w->tap[0], frame, len, MSG_DONTWAIT | MSG_NOSIGNAL);
}

static void pump(struct world *w)
{
    char sink[MINT_FRAME_MAX];

    if (!w->w.device)
        return;
    w->w.device->in(&w->w);
    w->w.device->out(&w->w);
    w->w.device->timeout(&w->w);
    while (recv(w->tap[0], sink, sizeof(sink), MSG_DONTWAIT) >= 0)
        continue;
}

static void end(struct world *w)
{
    struct mint_msg stop = message(MINT_MSG_STOP);

    if (!w->hung_up)
        say(w, &stop, sizeof(stop), NULL, 0);
    mint_port_close(w->w.port);
    free(w->w.peers);
    mint_plain_free(w->w.tap.plain);
    if (w->w.vhost) {
        mint_plain_free(w->w.vhost->plain);
        free(w->w.vhost);
    }
    /* The worker ends with its process and leaves the rest to it: everything beyond our own. */
    CHECK(close_range((unsigned)w->first_fd, ~0u, 0) == 0, "close_range");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct world w;
    struct script s = {data, size};

    if (!w.f) {
        w.f = fabric_new(3, MINT_LAYOUT_PER_CHANNEL, CAP);
        for (uint32_t i = 0; i < 3; i++) /* what is taken for a TAP does not block, like a TAP */
            for (uint32_t j = 0; j < 3; j++)
                if (i != j)
                    CHECK(fcntl(w.f->bell[i][j], F_SETFL, O_RDWR | O_NONBLOCK) == 0, "fcntl");
        w.first_fd = dup(STDERR_FILENO);
        close(w.first_fd);
    }
    begin(&s, &w);
    while (s.left && !w.hung_up && !w.w.stop) {
        uint8_t op = take8(&s);

        if (op & 1u)
            say_something(&s, &w);
        else if (op & 2u)
            garbage_frame(&s, &w);
        else
            pump(&w);
    }
    end(&w);
    return 0;
}
