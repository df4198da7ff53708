/* SPDX-License-Identifier: Apache-2.0 */
/* port_internal.h - what the files of the port share; nobody else includes it. */
#ifndef MINT_PORT_INTERNAL_H
#define MINT_PORT_INTERNAL_H

#include "bell.h"
#include "clock.h"
#include "macs.h"
#include "pool.h"
#include "pooled.h"
#include "port.h"
#include "ring.h"
#include <string.h>

#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

/* struct mint_peer - one other port as this one sees it; private to the process. */
struct mint_peer {
    uint32_t index;
    uint32_t flags;
    uint64_t mac_key;
    struct mint_slot *own;        /* in our control region */
    const struct mint_ctl *ctl;   /* the peer's control region */
    const struct mint_slot *slot; /* its slot about us */
    size_t ctl_bytes;
    int bell;

    struct mint_ring_tx tx; /* layouts per-channel and pooled */
    struct mint_ring_rx rx;
    struct mint_lane_rx lane;      /* layout pooled */
    uint64_t idle_head;            /* the head when last looked at for idleness */
    uint64_t bare_head;            /* the head when its memory was given back; at first 0 */
    bool tx_dirty, rx_dirty;       /* listed in port->tx_dirty, port->rx_dirty */
    uint32_t tx_frames, rx_frames; /* not yet added to the counters */
    uint64_t tx_bytes, rx_bytes;
    uint32_t rung_wake; /* the last wake word that we rang for */
    uint32_t rung_want; /* the last tx_want that we rang for */

    bool waiting, stalled;
    uint64_t wait_since; /* when the consumer was last seen to make progress, or waiting for it
                            began; 0: it gave room since */
    uint64_t wait_mark;  /* its progress then, as peer_look() said */
    uint64_t tried_mark; /* its progress when a frame last found no room */

    bool wished;             /* asked for room since it last rang */
    uint64_t taken_at_ring;  /* frames taken from it when it last rang */
    uint32_t spurious;       /* rings without a reason since spurious_since */
    uint64_t spurious_since; /* start of the window they are counted in */
    uint64_t masked_until;   /* the bell is not listened to before; 0: it is */
    bool deaf;               /* the bell's other end is gone */

    uint32_t bad;           /* broken rules and refused frames since bad_since */
    uint64_t bad_since;     /* start of the window they are counted in */
    uint64_t shunned_until; /* its frames are not looked at before; 0: they are */
    uint64_t punished_until;
    uint32_t punished; /* times in a row: each doubles the span */
};

struct mint_port {
    struct mint_port_config config;
    uint64_t mac_key;
    struct mint_ctl *ctl;
    struct mint_slot *slots; /* our own */
    size_t ctl_bytes;
    struct mint_pool_end *pool; /* layout shared, else NULL */
    struct mint_pooled *pooled; /* layout pooled, else NULL */
    int epfd;
    int control_fd; /* the first that is watched as MINT_EV_CONTROL; -1: none */

    struct mint_peer **peers; /* by index; NULL: none */
    struct mint_peer **list;  /* those present, without gaps */
    uint32_t count, bridges, masked, shunned, watched;
    uint32_t rr, rr_left; /* whose turn it is in mint_port_recv() */

    struct mint_peer **tx_dirty, **rx_dirty;
    uint32_t tx_dirty_count, rx_dirty_count;
    uint32_t in_done; /* frames settled since the last flush */

    bool sent;                   /* frames, since memory to be given back was last looked for */
    uint16_t flushes;            /* counts on and on */
    uint64_t idle_due;           /* when to look next; 0: there is nothing to look for */
    uint64_t idle_sum, bare_sum; /* layout pooled: as a peer's idle_head and bare_head, of all */

    struct mint_peer *waiting; /* whom the sender waits for, or NULL */
    bool asked;       /* no bell has rung since it was asked for room: its ring is still to come */
    uint32_t wake;    /* our wake word */
    bool shares_core; /* with those whose frames are waited for */
    bool blocked;     /* the device takes no frames */
    const struct mint_waiter *waiter; /* the device, if it is one to be looked at; or NULL */
    uint64_t activity;                /* frames seen in either direction */
    bool sent_last;                   /* the last of them was sent, not received */
    bool slept;                       /* since the current wait began */
    uint64_t spun_at;                 /* activity when it began */
    uint64_t spun_ns;                 /* spun in it so far */
    uint64_t crowded_ns;              /* for how long the core counts as crowded the next time */
    uint64_t crowded_until;           /* others want the core: no spinning before; 0: they do not */
    /* How long to spin before sleeping, 0 .. poll_us: after receiving [0], after sending [1]. */
    uint64_t spin_ns[2];
    uint64_t cached_key; /* the last look-up */
    int cached_dst;
    struct mint_macs macs;
};

static inline void bump_port(struct mint_port *port, enum mint_port_counter c, uint64_t by)
{
    bump(&port->ctl->counter[c], by);
}

/* Whether a frame sent to the peer now could ever arrive. */
static inline bool peer_up(const struct mint_port *port, const struct mint_peer *peer)
{
    if (port->pool)
        return MINT_END_STATE(load_relaxed(&peer->slot->rx_end)) != MINT_END_CLOSED;
    return mint_ring_tx_up(&peer->tx);
}

/* How far the peer's receiving has got, in a unit of the layout's own. */
static inline uint64_t peer_progress(const struct mint_port *port, const struct mint_peer *peer)
{
    if (port->pool)
        return mint_pool_progress(port->pool, peer->index);
    if (port->pooled)
        return mint_pooled_progress(port->pooled, peer->index);
    return mint_ring_tx_progress(&peer->tx);
}

/*
 * The same, and take what it gave: what was seen once is not seen again. Only this may prolong a wait:
 * a peer can let its numbers change for ever, but not what it has given.
 */
static inline uint64_t peer_look(struct mint_port *port, struct mint_peer *peer)
{
    if (port->pool)
        return mint_pool_progress(port->pool, peer->index);
    if (port->pooled)
        return mint_pooled_look(port->pooled, peer->index);
    mint_ring_tx_refresh(&peer->tx, 0);
    return mint_ring_tx_seen(&peer->tx);
}

/* Whether it is time to look again for the room that is waited for in the peer's channel. */
static inline bool peer_room(const struct mint_port *port, const struct mint_peer *peer)
{
    if (port->pool || port->pooled)
        return peer_progress(port, peer) != peer->wait_mark;
    return mint_ring_tx_ample(&peer->tx);
}

/* Whether others than the peer may have to give the room that a frame for it waits for. */
static inline bool room_is_others(const struct mint_port *port, const struct mint_peer *peer)
{
    return port->pool || (port->pooled && mint_pooled_idle(port->pooled, peer->index));
}

/* Whether mint_port_recv() would find something to do for this peer. */
static inline bool peer_pending(const struct mint_port *port, const struct mint_peer *peer)
{
    return port->pool ? mint_pool_pending(port->pool) : mint_ring_rx_pending(&peer->rx);
}

void mint_port_unmask(struct mint_port *port, struct mint_peer *peer);
/* Do not listen to the bell until then. */
void mint_port_mask(struct mint_port *port, struct mint_peer *peer, uint64_t until);
/* Until when a peer that misbehaves again is not to be heard: longer each time. */
uint64_t mint_port_punish(struct mint_peer *peer, uint64_t now);

/* Count `n` broken rules or refused frames; too many, and the peer is shunned for a while. */
void mint_port_blame(struct mint_port *port, struct mint_peer *peer, uint32_t n);
/* Look again at the frames of those who were shunned for long enough. */
void mint_port_forgive(struct mint_port *port);

/* One more frame is staged for the peer. */
static inline void mint_port_staged(struct mint_port *port, struct mint_peer *peer, uint32_t len)
{
    peer->tx_frames++;
    peer->tx_bytes += len;
    if (!peer->tx_dirty) {
        peer->tx_dirty = true;
        port->tx_dirty[port->tx_dirty_count++] = peer;
    }
}

/* port_tx.c, for port_pooled.c too: whether a peer that stalled is still not to be sent to; the
 * end of waiting for room; why there was none: a drop, which is counted, or MINT_FULL. */
bool mint_port_stalled(struct mint_port *port, struct mint_peer *peer);
void mint_port_found_room(struct mint_port *port, struct mint_peer *peer);
enum mint_sent mint_port_no_room(struct mint_port *port, struct mint_peer *peer, bool may_wait);

/* port_pooled.c: send to several, `dst` from mint_port_lookup(): copied once, whoever gets it. */
enum mint_sent mint_port_send_once(struct mint_port *port, const struct mint_vnet *vnet,
                                   const uint8_t *frame, uint32_t len, int dst, uint32_t *full);

/* port_idle.c: give back the memory of channels that have been idle, if it is time to look.
 * Return: ns until it will be again; negative: not before frames are sent. */
int64_t mint_port_tend(struct mint_port *port);

/* Move the resets that a ring counted itself into the shared counter, and blame the peer. */
void mint_port_settle_rx(struct mint_port *port, struct mint_peer *peer);

#endif
