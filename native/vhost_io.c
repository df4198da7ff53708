/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vhost_io.c - frames between a guest's queues and its port; see vhost.c.
 *
 * From the guest. Headers are copied to private memory and decided upon there; then the frame is
 * gathered from the guest's memory straight into the channel of its receiver. A frame for several
 * receivers goes through private memory (layout pooled: lies once in the port's pool). One that finds its channel full stays in the queue, which
 * is not looked at meanwhile: see hold.h. Chains are shown to the guest as used only after the
 * frames were published, so a worker that dies in between repeats them and loses none.
 *
 * To the guest. What the guest agreed to take goes straight from the channel into its buffers; the
 * rest is completed or cut in private memory first. A frame that finds no buffer is moved to
 * private memory and waits there for half of stall_us at most, so that those who send to this
 * guest are not held up for longer; then it is dropped and counted, as is all that follows until
 * there is a buffer.
 */
#include "clock.h"
#include "hold.h"
#include "offload.h"
#include "vhost.h"
#include <string.h>

#define IN_BATCH 64u
#define IN_FLUSH_BYTES (32u * 1024u)
#define OUT_BATCH 64u
#define OUT_RECYCLE_BYTES (128u * 1024u)
#define HEAD 14u /* Ethernet header */

/* ---------------------------------------------------------------------------- from the guest */

/* What the guest wrote as a vnet header, without what it may not say. Return: whether it may. */
static bool clean_vnet(const struct mint_vhost *v, struct mint_vnet *h, uint32_t len)
{
    uint8_t gso = h->gso_type & (uint8_t)~MINT_GSO_ECN;

    h->num_buffers = 0;
    h->flags &= MINT_VNET_NEEDS_CSUM;
    if (!h->flags && gso == MINT_GSO_NONE) {
        memset(h, 0, sizeof(*h));
        return true;
    }
    if (gso == MINT_GSO_NONE)
        h->gso_size = h->hdr_len = h->gso_type = 0;
    if ((h->flags && !(v->features & MINT_VF_CSUM)) ||
        (gso == MINT_GSO_TCPV4 && !(v->features & MINT_VF_HOST_TSO4)) ||
        (gso == MINT_GSO_TCPV6 && !(v->features & MINT_VF_HOST_TSO6)) || gso == MINT_GSO_UDP_L4)
        return false;
    return mint_vnet_ok(h, len);
}

/* Send a frame for one receiver straight from the guest's memory. */
static enum mint_sent send_direct(struct mint_vhost *v, uint32_t peer, const struct mint_vnet *vnet,
                                  const uint8_t *head, uint32_t len)
{
    struct mint_rec *rec = mint_port_reserve(v->port, peer, len);

    if (!rec)
        return mint_port_refuse(v->port, peer);
    rec->vnet = *vnet;
    memcpy(rec->frame, head, HEAD);
    mint_chain_read(&v->first, v->header + HEAD, rec->frame + HEAD, len - HEAD);
    mint_port_commit(v->port, peer, rec, len);
    return MINT_SENT;
}

static enum mint_sent send_copied(struct mint_vhost *v, const struct mint_vnet *vnet,
                                  const uint8_t *head, uint32_t len, uint32_t *peer)
{
    struct mint_rec *rec = mint_port_reserve_any(v->port, len);

    if (rec) { /* where it lies all receivers can have it */
        enum mint_sent sent;

        rec->vnet = *vnet;
        memcpy(rec->frame, head, HEAD);
        mint_chain_read(&v->first, v->header + HEAD, rec->frame + HEAD, len - HEAD);
        sent = mint_port_send_reserved(v->port, rec, len, peer);
        if (sent == MINT_FULL) /* it stays in the guest's queue */
            mint_port_cancel(v->port, *peer, rec);
        return sent;
    }
    memcpy(v->staging.frame, head, HEAD);
    mint_chain_read(&v->first, v->header + HEAD, v->staging.frame + HEAD, len - HEAD);
    return mint_port_send(v->port, vnet, v->staging.frame, len, peer);
}

/* Send the frame in v->first. Return: whether it is settled; otherwise it is held. */
static bool send_chain(struct mint_vhost *v, uint32_t len)
{
    struct mint_vnet vnet = {0};
    uint8_t head[HEAD];
    uint32_t peer = UINT32_MAX;
    enum mint_sent sent;
    int dst;

    mint_chain_read(&v->first, 0, &vnet, v->header);
    mint_chain_read(&v->first, v->header, head, HEAD);
    if (!clean_vnet(v, &vnet, len)) {
        mint_port_took(v->port, len);
        mint_port_bad(v->port, MINT_PORT_DROP_BAD);
        return true;
    }
    dst = mint_port_lookup(v->port, head);
    if (dst >= 0) {
        peer = (uint32_t)dst;
        sent = send_direct(v, peer, &vnet, head, len);
    } else {
        sent = send_copied(v, &vnet, head, len, &peer);
    }
    if (sent == MINT_FULL) {
        mint_hold_full(v->hold, peer);
        return false;
    }
    mint_hold_settled(v->hold, sent == MINT_SENT ? peer : UINT32_MAX);
    mint_port_took(v->port, len);
    return true;
}

/* Take one frame from the guest. Return: its bytes; 0: there is none, or it is held. */
static uint32_t take_one(struct mint_vhost *v)
{
    struct mint_vring *q = &v->ring[MINT_VQ_TX];
    int ready = mint_vring_ready(q);
    uint32_t len;

    if (ready <= 0) {
        if (ready < 0)
            mint_vhost_broke(v, MINT_VQ_TX, "claims more chains than it holds");
        else if (v->hold->on) /* or v->first would not be the held one any more */
            mint_vhost_broke(v, MINT_VQ_TX, "takes back what it made available");
        return 0;
    }
    if (mint_vring_peek(q, &v->memory, 0, false, &v->first) < 0) {
        mint_vhost_broke(v, MINT_VQ_TX, "has a chain that is none");
        return 0;
    }
    if (v->first.bytes < v->header + MINT_FRAME_MIN ||
        v->first.bytes > v->header + MINT_FRAME_MAX) {
        bool is_short = v->first.bytes < v->header + MINT_FRAME_MIN;

        mint_port_took(v->port, 0);
        mint_port_bad(v->port, is_short ? MINT_PORT_DROP_SHORT : MINT_PORT_DROP_LONG);
        len = 1; /* something was done */
    } else {
        len = (uint32_t)v->first.bytes - v->header;
        if (!send_chain(v, len))
            return 0;
    }
    v->hold->on = false;
    mint_vring_used(q, v->first.id, 0);
    return len;
}

/* Show the guest what was taken, once it is published. */
static void finish_in(struct mint_vhost *v)
{
    mint_port_flush(v->port);
    if (mint_vring_publish(&v->ring[MINT_VQ_TX]))
        mint_port_count(v->port, MINT_PORT_CALLS);
}

/* Try the held frame again. Return: whether it is settled now. */
static bool retry_held(struct mint_vhost *v)
{
    if (take_one(v) || !mint_vring_live(&v->ring[MINT_VQ_TX]) || !v->hold->on)
        return true;
    if (mint_hold_wait(v->hold, v->port))
        return take_one(v) || !v->hold->on;
    mint_port_took(v->port, (uint32_t)v->first.bytes - v->header); /* given up, and counted */
    mint_vring_used(&v->ring[MINT_VQ_TX], v->first.id, 0);
    return true;
}

bool mint_vhost_in(struct mint_vhost *v)
{
    uint32_t bytes = 0, n = 0, len;

    if (!mint_vring_live(&v->ring[MINT_VQ_TX]))
        return false;
    if (v->hold->on && !retry_held(v)) {
        finish_in(v);
        return false;
    }
    while (n < IN_BATCH && mint_vring_live(&v->ring[MINT_VQ_TX]) && (len = take_one(v)) != 0) {
        n++;
        bytes += len;
        if (bytes >= IN_FLUSH_BYTES) {
            finish_in(v);
            bytes = 0;
        }
    }
    finish_in(v);
    if (mint_gmem_torn())
        mint_vhost_broke(v, MINT_VQ_TX, "lies in memory that was cut short");
    return n > 0;
}

/* ------------------------------------------------------------------------------ to the guest */

enum delivery { DELIVERED, NO_BUFFER, REFUSED };

/* What precedes a frame's payload in a guest's buffer, private: as it was checked. */
struct prefix {
    uint8_t bytes[sizeof(struct mint_vnet) + HEAD];
    uint32_t len;
};

/* Write `n` bytes of prefix and frame, from `at` on, to the beginning of a chain. */
static void put(const struct mint_chain *c, const struct prefix *p, const uint8_t *frame,
                uint32_t at, uint32_t n)
{
    uint32_t own = 0;

    if (at < p->len) {
        own = n < p->len - at ? n : p->len - at;
        mint_chain_write(c, 0, p->bytes + at, own);
    }
    if (n > own)
        mint_chain_write(c, own, frame + (at + own) - (p->len - HEAD), n - own);
}

/* Spread a frame over the guest's next buffers. Nothing is used up unless all of it fits. */
static enum delivery spread(struct mint_vhost *v, const struct prefix *p, const uint8_t *frame,
                            uint32_t len, uint32_t ready)
{
    struct mint_vring *q = &v->ring[MINT_VQ_RX];
    uint32_t most = v->features & MINT_VF_MRG_RXBUF ? MINT_VHOST_MERGE_MAX : 1, n = 0, at = 0;
    uint32_t total = v->header + len, lens[MINT_VHOST_MERGE_MAX];
    uint16_t ids[MINT_VHOST_MERGE_MAX], count;

    for (; at < total; at += lens[n++]) {
        struct mint_chain *c = n ? &v->more : &v->first;

        if (n == most)
            return REFUSED;
        if (n == ready)
            return NO_BUFFER;
        if (mint_vring_peek(q, &v->memory, (uint16_t)n, true, c) < 0 ||
            c->bytes < (n ? 1 : v->header)) {
            mint_vhost_broke(v, MINT_VQ_RX, "has a buffer that is none");
            return REFUSED;
        }
        ids[n] = c->id;
        lens[n] = c->bytes < total - at ? (uint32_t)c->bytes : total - at;
        put(c, p, frame, at, lens[n]);
    }
    count = (uint16_t)n;
    if (v->header == sizeof(struct mint_vnet))
        mint_chain_write(&v->first, offsetof(struct mint_vnet, num_buffers), &count, sizeof(count));
    for (uint32_t i = 0; i < n; i++)
        mint_vring_used(q, ids[i], lens[i]);
    return DELIVERED;
}

/* @head: the first HEAD bytes of the frame; @frame: all of it, whose first HEAD are not looked at */
static enum delivery deliver(struct mint_vhost *v, const struct mint_vnet *vnet,
                             const uint8_t *head, const uint8_t *frame, uint32_t len)
{
    int ready = mint_vring_ready(&v->ring[MINT_VQ_RX]);
    struct prefix p = {.len = v->header + HEAD};

    if (ready < 0) {
        mint_vhost_broke(v, MINT_VQ_RX, "claims more buffers than it holds");
        return REFUSED;
    }
    memcpy(p.bytes, vnet, v->header);
    memcpy(p.bytes + v->header, head, HEAD);
    return spread(v, &p, frame, len, (uint32_t)ready);
}

/* Whether the guest agreed to take such a frame as it is. */
static bool takes(const struct mint_vhost *v, const struct mint_vnet *h)
{
    if (h->gso_type & MINT_GSO_ECN && !(v->features & MINT_VF_GUEST_ECN))
        return false;
    switch (h->gso_type & (uint8_t)~MINT_GSO_ECN) {
    case MINT_GSO_NONE:
        return !(h->flags & MINT_VNET_NEEDS_CSUM) || (v->features & MINT_VF_GUEST_CSUM);
    case MINT_GSO_TCPV4:
        return v->features & MINT_VF_GUEST_TSO4;
    case MINT_GSO_TCPV6:
        return v->features & MINT_VF_GUEST_TSO6;
    default:
        return false;
    }
}

/* A frame is in v->out: to wait there for buffers. */
static void wait_for_buffer(struct mint_vhost *v, uint32_t len)
{
    v->out_len = len;
    v->out_since = now_ns();
    mint_port_count(v->port, MINT_PORT_RING_EMPTY);
}

struct tally {
    uint32_t frames, taken;
    uint64_t bytes;
    bool settled; /* the frame that waited is given, or counted as dropped */
};

/* Hand v->out over. Return: false when it has to wait. */
static bool give_out(struct mint_vhost *v, uint32_t len, struct tally *t)
{
    enum delivery d = deliver(v, &v->out_vnet, v->out, v->out, len);

    if (d == DELIVERED) {
        v->out_stalled = false;
        t->frames++;
        t->bytes += len;
    } else if (d == NO_BUFFER && !v->out_stalled) {
        if (!v->out_len)
            wait_for_buffer(v, len);
        if (now_ns() - v->out_since < v->patience_ns)
            return false;
        v->out_stalled = true;
        mint_port_refused_plain(v->port);
    } else {
        mint_port_refused_plain(v->port);
    }
    t->settled |= v->out_len != 0;
    v->out_len = 0;
    return true;
}

/* Hand a received frame over, as it is. Return: false when it was moved to v->out, to wait. */
static bool give_view(struct mint_vhost *v, struct mint_view *view, struct tally *t)
{
    enum delivery d;

    if (view->vnet.flags & MINT_VNET_DATA_VALID && !(v->features & MINT_VF_GUEST_CSUM))
        view->vnet.flags &= (uint8_t)~MINT_VNET_DATA_VALID;
    d = deliver(v, &view->vnet, view->head, view->frame, view->len);
    if (d == DELIVERED) {
        v->out_stalled = false;
        t->frames++;
        t->bytes += view->len;
        return true;
    }
    if (d == REFUSED || v->out_stalled) {
        mint_port_refused(v->port, view, MINT_RX_DROP_DEVICE);
        return true;
    }
    v->out_vnet = view->vnet;
    memcpy(v->out, view->head, HEAD);
    memcpy(v->out + HEAD, view->frame + HEAD, view->len - HEAD);
    wait_for_buffer(v, view->len);
    return false;
}

/* Hand over what was cut from the last frame. Return: false when it has to wait. */
static bool give_cut(struct mint_vhost *v, struct tally *t)
{
    uint32_t len;

    while ((len = mint_plain_cut(v->plain, v->port, v->out, sizeof(v->out))) != 0) {
        memset(&v->out_vnet, 0, sizeof(v->out_vnet));
        if (!give_out(v, len, t))
            return false;
    }
    return true;
}

/* Take the next frame from the fabric. Return: false when there is none, or it has to wait. */
static bool give_next(struct mint_vhost *v, struct tally *t)
{
    struct mint_view view;
    uint32_t len;
    bool go_on;

    if (!mint_port_recv(v->port, &view))
        return false;
    t->taken += view.len;
    if (takes(v, &view.vnet)) {
        go_on = give_view(v, &view, t);
        mint_port_release(v->port, &view);
        return go_on;
    }
    len = mint_plain_take(v->plain, v->port, &view, v->out, sizeof(v->out));
    mint_port_release(v->port, &view);
    memset(&v->out_vnet, 0, sizeof(v->out_vnet));
    return len ? give_out(v, len, t) : give_cut(v, t);
}

static void finish_out(struct mint_vhost *v, struct tally *t)
{
    bool called = false;

    /* First the guest, then the channels: a worker that dies in between repeats, and loses none. */
    if (mint_vring_live(&v->ring[MINT_VQ_RX]))
        called = mint_vring_publish(&v->ring[MINT_VQ_RX]);
    mint_port_recycle(v->port);
    if (t->frames)
        mint_port_gave(v->port, t->frames, t->bytes);
    if (called)
        mint_port_count(v->port, MINT_PORT_CALLS);
    if (t->settled)
        mint_port_count(v->port, MINT_PORT_RING_SETTLED);
    memset(t, 0, sizeof(*t));
}

/* Nobody is there to take frames: drop them. */
static bool drain(struct mint_vhost *v)
{
    struct mint_view view;
    uint32_t n = 0;

    if (v->out_len) {
        mint_port_refused_plain(v->port);
        mint_port_count(v->port, MINT_PORT_RING_SETTLED);
        v->out_len = 0;
    }
    while (n < OUT_BATCH && mint_port_recv(v->port, &view)) {
        n++;
        mint_port_refused(v->port, &view, MINT_RX_DROP_DEVICE);
        mint_port_release(v->port, &view);
    }
    mint_port_recycle(v->port);
    return n > 0;
}

bool mint_vhost_out(struct mint_vhost *v)
{
    struct tally t = {0};
    uint32_t n = 0;
    bool some = false;

    if (!v->started)
        return false; /* frames wait in their channels until it is known where to put them */
    if (!mint_vring_live(&v->ring[MINT_VQ_RX]))
        return drain(v);
    if (v->out_len && !give_out(v, v->out_len, &t))
        return false;
    if (!give_cut(v, &t)) {
        finish_out(v, &t);
        return true;
    }
    while (n < OUT_BATCH && mint_vring_live(&v->ring[MINT_VQ_RX]) && give_next(v, &t)) {
        n++;
        if (t.taken >= OUT_RECYCLE_BYTES)
            finish_out(v, &t);
    }
    some = n > 0 || t.frames;
    finish_out(v, &t);
    if (mint_gmem_torn())
        mint_vhost_broke(v, MINT_VQ_RX, "lies in memory that was cut short");
    return some;
}

/* -------------------------------------------------------------------------------- waiting */

int64_t mint_vhost_timeout(struct mint_vhost *v)
{
    int64_t left = -1, gone;

    mint_port_block(v->port, !v->started || v->out_len);
    if (v->hold->on)
        left = mint_hold_timeout(v->hold, v->port);
    if (!v->out_len)
        return left;
    gone = (int64_t)(now_ns() - v->out_since);
    gone = gone < (int64_t)v->patience_ns ? (int64_t)v->patience_ns - gone : 0;
    return left < 0 || gone < left ? gone : left;
}

static bool pending(void *context)
{
    struct mint_vhost *v = context;
    struct mint_vring *tx = &v->ring[MINT_VQ_TX], *rx = &v->ring[MINT_VQ_RX];

    if (mint_vring_live(tx) && !v->hold->on && mint_vring_ready(tx) != 0)
        return true;
    if (v->out_len && mint_vring_live(rx)) {
        uint16_t seen = rx->avail_seen;
        bool more = mint_vring_ready(rx) < 0 || rx->avail_seen != seen;

        rx->avail_seen = seen; /* until the frame is tried again, this is what was seen */
        return more;
    }
    return false;
}

static void arm(void *context)
{
    struct mint_vhost *v = context;

    if (mint_vring_live(&v->ring[MINT_VQ_TX]) && !v->hold->on)
        mint_vring_want_kick(&v->ring[MINT_VQ_TX]);
    if (mint_vring_live(&v->ring[MINT_VQ_RX]) && v->out_len)
        mint_vring_want_kick(&v->ring[MINT_VQ_RX]);
}

static void disarm(void *context)
{
    struct mint_vhost *v = context;

    for (int i = 0; i < MINT_VQ_COUNT; i++)
        if (mint_vring_live(&v->ring[i]))
            mint_vring_no_kick(&v->ring[i]);
}

const struct mint_waiter mint_vhost_waiter = {.arm = arm, .pending = pending, .disarm = disarm};
