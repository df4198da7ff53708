/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tap.c - frames between a node's TAP device and its port.
 *
 * In. One readv() takes one frame with its vnet header. With a single possible receiver it is read
 * straight into the channel; with more, the receiver is known only after reading, and a frame for
 * c must never have been readable by b, so it is read into private memory and copied. In layout
 * pooled it is read into the port's own pool and sent from there, whoever is to get it.
 *
 * Out. One writev() hands one frame over: the headers that were checked from a private copy, the
 * rest straight from the channel. A device without offloads gets plain frames instead.
 *
 * Back-pressure: see hold.h.
 */
#include "clock.h"
#include "worker.h"
#include <errno.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#define IN_BATCH 64u
#define IN_FLUSH_BYTES (32u * 1024u)     /* publish at least this often within a batch */
#define OUT_BATCH 32u                    /* well below what a socket's receive buffer holds */
#define OUT_RECYCLE_BYTES (128u * 1024u) /* give room back at least this often within a batch */
#define DOWN_NS (50ull * 1000000ull)

static void set_watched(struct mint_worker *w, bool on)
{
    struct mint_tap *t = &w->tap;

    if (t->watched == on)
        return;
    if (on)
        mint_port_watch(w->port, t->fd, MINT_EV_DEVICE);
    else
        mint_port_unwatch(w->port, t->fd);
    t->watched = on;
}

/* Read one frame with its vnet header. Return: bytes of frame, or -1 when there is none now. */
static ssize_t read_frame(struct mint_worker *w, struct mint_vnet *vnet, uint8_t *frame)
{
    struct iovec iov[2] = {
        {.iov_base = vnet, .iov_len = sizeof(*vnet)},
        {.iov_base = frame, .iov_len = MINT_FRAME_MAX},
    };
    ssize_t n = readv(w->tap.fd, iov, 2);

    if (n >= (ssize_t)(sizeof(*vnet) + MINT_FRAME_MIN)) {
        vnet->num_buffers = 0;
        return n - (ssize_t)sizeof(*vnet);
    }
    if (n < 0 && errno != EAGAIN && errno != EINTR)
        w->tap.down_until = now_ns() + DOWN_NS; /* EBADFD: the interface is gone or down */
    return -1;
}

/* Send what `rec`, or else staging, holds. Return: whether it is settled; otherwise it is held. */
static bool send_read(struct mint_worker *w, struct mint_rec *rec, uint32_t len)
{
    struct mint_tap *t = &w->tap;
    uint32_t peer = UINT32_MAX;
    enum mint_sent sent =
        rec ? mint_port_send_reserved(w->port, rec, len, &peer)
            : mint_port_send(w->port, &t->staging.vnet, t->staging.frame, len, &peer);

    t->held = sent == MINT_FULL ? rec : NULL;
    if (sent == MINT_FULL) {
        t->held_len = len;
        mint_hold_full(&w->hold, peer);
        return false;
    }
    mint_hold_settled(&w->hold, sent == MINT_SENT ? peer : UINT32_MAX);
    return true;
}

/* Read straight into the channel of the only peer. Return: 1 done, 0 nothing to read, -1 no room. */
static int in_place(struct mint_worker *w, uint32_t peer, uint32_t *bytes)
{
    struct mint_rec *rec = mint_port_reserve(w->port, peer, MINT_FRAME_MAX);
    ssize_t len;
    int dst;

    if (!rec)
        return -1;
    len = read_frame(w, &rec->vnet, rec->frame);
    if (len < 0) {
        mint_port_cancel(w->port, peer, rec);
        return 0;
    }
    mint_port_took(w->port, (uint32_t)len);
    dst = mint_port_lookup(w->port, rec->frame);
    if (dst == (int)peer || dst == MINT_DST_FLOOD ||
        (dst == MINT_DST_UNKNOWN && mint_port_is_bridge(w->port, peer))) {
        mint_port_commit(w->port, peer, rec, (uint32_t)len);
    } else {
        mint_port_cancel(w->port, peer, rec);
        mint_port_drop(w->port, dst);
    }
    *bytes += (uint32_t)len;
    return 1;
}

/* Take one frame from the TAP. Return: false when there is none, or it is held. */
static bool take_one(struct mint_worker *w, int sole, uint32_t *bytes)
{
    struct mint_tap *t = &w->tap;
    struct mint_rec *rec = mint_port_reserve_any(w->port, MINT_FRAME_MAX);
    ssize_t len;

    if (!rec && sole >= 0) {
        int r = in_place(w, (uint32_t)sole, bytes);

        if (r >= 0)
            return r > 0;
    }
    if (rec)
        len = read_frame(w, &rec->vnet, rec->frame);
    else
        len = read_frame(w, &t->staging.vnet, t->staging.frame);
    if (len < 0) {
        if (rec)
            mint_port_cancel(w->port, 0, rec);
        return false;
    }
    mint_port_took(w->port, (uint32_t)len);
    *bytes += (uint32_t)len;
    return send_read(w, rec, (uint32_t)len);
}

/* The held frame, if it lies in a record, has been given up. */
static void forget_held(struct mint_worker *w)
{
    if (w->tap.held)
        mint_port_cancel(w->port, 0, w->tap.held);
    w->tap.held = NULL;
}

/* Try again to send the held frame. Return: whether it is settled now. */
static bool retry_held(struct mint_worker *w)
{
    struct mint_tap *t = &w->tap;

    if (send_read(w, t->held, t->held_len) || !mint_hold_wait(&w->hold, w->port))
        return true;
    return send_read(w, t->held, t->held_len);
}

static bool tap_in(struct mint_worker *w)
{
    int sole = mint_port_sole_peer(w->port);
    uint32_t bytes = 0, n = 0;

    if (w->hold.on && !retry_held(w)) {
        mint_port_flush(w->port);
        return false;
    }
    forget_held(w);
    while (n < IN_BATCH && take_one(w, sole, &bytes)) {
        n++;
        if (bytes >= IN_FLUSH_BYTES) {
            mint_port_flush(w->port);
            bytes = 0;
        }
    }
    mint_port_flush(w->port);
    return n > 0;
}

/* Hand one frame over as it is. */
static bool write_view(struct mint_tap *t, struct mint_view *v)
{
    struct iovec iov[2] = {
        {.iov_base = &v->vnet, .iov_len = sizeof(v->vnet) + sizeof(v->head)},
        {.iov_base = (void *)(uintptr_t)(v->frame + sizeof(v->head)),
         .iov_len = v->len - sizeof(v->head)},
    };

    return writev(t->fd, iov, 2) >= 0;
}

static bool out_offload(struct mint_worker *w)
{
    struct mint_tap *t = &w->tap;
    uint32_t n = 0, given = 0, bytes = 0;
    uint64_t total = 0;
    struct mint_view v;

    while (n < OUT_BATCH && mint_port_recv(w->port, &v)) {
        n++;
        if (write_view(t, &v)) {
            given++;
            total += v.len;
        } else {
            mint_port_refused(w->port, &v, MINT_RX_DROP_DEVICE);
        }
        mint_port_release(w->port, &v);
        bytes += v.len;
        if (bytes >= OUT_RECYCLE_BYTES) {
            mint_port_recycle(w->port);
            bytes = 0;
        }
    }
    mint_port_recycle(w->port);
    if (given)
        mint_port_gave(w->port, given, total);
    return n > 0;
}

static bool out_plain(struct mint_worker *w)
{
    struct mint_tap *t = &w->tap;
    struct {
        struct mint_vnet vnet;
        uint8_t frame[MINT_FRAME_MAX];
    } out;
    uint32_t n = 0, given = 0, len;
    uint64_t total = 0;

    memset(&out.vnet, 0, sizeof(out.vnet));
    while (n < OUT_BATCH &&
           (len = mint_plain_recv(t->plain, w->port, out.frame, sizeof(out.frame))) != 0) {
        n++;
        if (write(t->fd, &out, sizeof(out.vnet) + len) >= 0) {
            given++;
            total += len;
        } else {
            mint_port_refused_plain(w->port);
        }
    }
    mint_port_recycle(w->port);
    if (given)
        mint_port_gave(w->port, given, total);
    return n > 0;
}

static bool tap_out(struct mint_worker *w)
{
    return w->tap.offload ? out_offload(w) : out_plain(w);
}

static int64_t tap_timeout(struct mint_worker *w)
{
    struct mint_tap *t = &w->tap;
    uint64_t now;

    if (w->hold.on) {
        set_watched(w, false);
        return mint_hold_timeout(&w->hold, w->port);
    }
    if (t->down_until) {
        now = now_ns();
        if (now < t->down_until) {
            set_watched(w, false);
            return (int64_t)(t->down_until - now);
        }
        t->down_until = 0;
    }
    set_watched(w, true);
    return -1;
}

static const struct mint_device tap_device = {
    .in = tap_in,
    .out = tap_out,
    .timeout = tap_timeout,
};

int mint_tap_attach(struct mint_worker *w, int fd, bool offload)
{
    struct mint_tap *t = &w->tap;

    if (!offload && !t->plain) {
        t->plain = mint_plain_new();
        if (!t->plain)
            return -ENOMEM;
    }
    if (t->fd >= 0 && t->watched)
        mint_port_unwatch(w->port, t->fd);
    t->watched = false;
    t->fd = fd;
    t->offload = offload;
    w->device = &tap_device;
    return 0;
}
