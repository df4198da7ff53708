/* SPDX-License-Identifier: Apache-2.0 */
/* packed.c - see packed.h. */
#include "packed.h"
#include "offload.h"
#include "port_internal.h"
#include <errno.h>
#include <stdlib.h>

struct mint_plain {
    bool cutting; /* seg is in use */
    struct mint_seg seg;
    uint8_t frame[MINT_FRAME_MAX]; /* private: a checksum over shared memory could be made wrong */
};

struct mint_plain *mint_plain_new(void)
{
    return calloc(1, sizeof(struct mint_plain));
}

void mint_plain_free(struct mint_plain *plain)
{
    free(plain);
}

/* A private copy of a view's frame, with the header that was checked. */
static void copy_out(uint8_t *to, const struct mint_view *v)
{
    memcpy(to, v->head, sizeof(v->head));
    memcpy(to + sizeof(v->head), v->frame + sizeof(v->head), v->len - sizeof(v->head));
}

uint32_t mint_plain_take(struct mint_plain *plain, struct mint_port *port,
                         const struct mint_view *v, uint8_t *out, uint32_t size)
{
    if (v->vnet.gso_type != MINT_GSO_NONE) {
        copy_out(plain->frame, v);
        plain->cutting = mint_seg_begin(&plain->seg, &v->vnet, plain->frame, v->len);
        if (plain->cutting)
            bump_port(port, MINT_PORT_SEGMENTED, 1);
        else
            mint_port_refused(port, v, MINT_RX_DROP_VNET);
        return 0;
    }
    if (v->len > size) {
        mint_port_refused(port, v, MINT_RX_DROP_TOO_BIG);
        return 0;
    }
    copy_out(out, v);
    if (v->vnet.flags & MINT_VNET_NEEDS_CSUM) {
        mint_csum_complete(&v->vnet, out, v->len);
        bump_port(port, MINT_PORT_CHECKSUMMED, 1);
    }
    return v->len;
}

uint32_t mint_plain_cut(struct mint_plain *plain, struct mint_port *port, uint8_t *out,
                        uint32_t size)
{
    uint32_t n;

    if (!plain->cutting)
        return 0;
    n = mint_seg_next(&plain->seg, out, size);
    if (n)
        return n;
    if (plain->seg.next < plain->seg.len) /* a segment that out cannot hold */
        bump_port(port, MINT_PORT_DROP_LONG, 1);
    plain->cutting = false;
    /* Its record may have been given back long ago: a successor counts what was not settled. */
    bump_port(port, MINT_PORT_SEG_SETTLED, 1);
    return 0;
}

uint32_t mint_plain_recv(struct mint_plain *plain, struct mint_port *port, uint8_t *out,
                         uint32_t size)
{
    struct mint_view v;

    for (;;) {
        uint32_t n = mint_plain_cut(plain, port, out, size);

        if (n)
            return n;
        if (!mint_port_recv(port, &v))
            return 0;
        n = mint_plain_take(plain, port, &v, out, size);
        mint_port_release(port, &v);
        if (n)
            return n;
    }
}

/* Time left of a limit that began at `start`; negative limit: none. */
static int64_t left_of(int64_t limit, uint64_t start)
{
    uint64_t gone;

    if (limit < 0)
        return INT64_MAX;
    gone = now_ns() - start;
    return gone >= (uint64_t)limit ? 0 : limit - (int64_t)gone;
}

/*
 * Wait for room. Return: 0: try again; -ETIMEDOUT; -EINTR. Without a time limit the stall time-out
 * ends the wait: then trying again drops the frame.
 */
static int await_room(struct mint_port *port, uint32_t peer, int64_t timeout_ns, uint64_t *start)
{
    uint64_t room = UINT64_MAX;
    int64_t left;

    mint_port_flush(port);
    if (timeout_ns != 0 && mint_port_spin_room(port, peer))
        return 0;
    if (timeout_ns < 0)
        room = mint_port_wait_room(port, peer);
    if (room <= 1 || (timeout_ns >= 0 && mint_port_ask_room(port, peer)))
        return 0; /* the drop, or the re-check */
    if (!*start)
        *start = now_ns();
    left = left_of(timeout_ns, *start);
    if (!left)
        return -ETIMEDOUT;
    return mint_port_wait_peer(port, peer, (uint64_t)left < room ? (uint64_t)left : room);
}

/* Send one frame, waiting for room. Return: as await_room(). */
static int send_waiting(struct mint_port *port, const uint8_t *frame, uint32_t len,
                        int64_t timeout_ns, uint64_t *start)
{
    uint32_t peer;

    while (mint_port_send(port, NULL, frame, len, &peer) == MINT_FULL) {
        int err = await_room(port, peer, timeout_ns, start);

        if (err) {
            mint_port_stop_waiting(port, peer);
            return err;
        }
    }
    return 0;
}

int mint_port_send_packed(struct mint_port *port, const uint8_t *frames, const uint32_t *lens,
                          uint32_t n, int64_t timeout_ns, uint32_t *done)
{
    uint64_t start = 0;
    int err = 0;

    for (*done = 0; *done < n; ++*done) {
        uint32_t len = lens[*done];

        if (unlikely(len < MINT_FRAME_MIN || len > MINT_FRAME_MAX)) {
            bump_port(port, len < MINT_FRAME_MIN ? MINT_PORT_DROP_SHORT : MINT_PORT_DROP_LONG, 1);
            err = -EMSGSIZE;
            break;
        }
        err = send_waiting(port, frames, len, timeout_ns, &start);
        if (err)
            break;
        mint_port_took(port, len);
        frames += len;
    }
    mint_port_flush(port);
    return err;
}

static uint32_t recv_some(struct mint_port *port, struct mint_plain *plain, uint8_t *out,
                          uint64_t size, uint32_t *lens, uint32_t max)
{
    uint64_t used = 0;
    uint32_t n;

    for (n = 0; n < max && size - used >= MINT_FRAME_MAX; n++) {
        lens[n] = mint_plain_recv(plain, port, out + used, MINT_FRAME_MAX);
        if (!lens[n])
            break;
        used += lens[n];
    }
    mint_port_recycle(port);
    if (n)
        mint_port_gave(port, n, used);
    return n;
}

int mint_port_recv_packed(struct mint_port *port, struct mint_plain *plain, uint8_t *out,
                          uint64_t size, uint32_t *lens, uint32_t max, int64_t timeout_ns)
{
    uint64_t start = 0;

    for (;;) {
        uint32_t n = recv_some(port, plain, out, size, lens, max);
        int64_t left;
        int events;

        if (n || timeout_ns == 0)
            return (int)n;
        if (!start)
            start = now_ns();
        left = left_of(timeout_ns, start);
        if (!left)
            return 0;
        events = mint_port_wait(port, timeout_ns < 0 ? -1 : left);
        if (events < 0 || ((uint32_t)events & MINT_EV_CONTROL))
            return -EINTR;
    }
}
