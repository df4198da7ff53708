/* SPDX-License-Identifier: Apache-2.0 */
/*
 * port_rx.c - receiving.
 *
 * Frames are taken from all channels in turn, at most TURN from one before the next has its
 * chance. What is decided upon (vnet header, Ethernet header) is copied out of shared memory
 * first, checked in the copy and used from the copy; the sender may scribble over the rest
 * meanwhile, which then arrives scribbled over, as on any wire.
 *
 * The source MAC is checked here, not at the sender: a hostile sender would not check itself.
 *
 * What is refused costs time, too, and a hostile sender has as much of it as it likes. So a peer that
 * breaks rules or sends what is refused, more often than a mistake explains, is shunned for a while:
 * its channel is not looked at. What it does then costs it only.
 */
#include "offload.h"
#include "port_internal.h"

#define TURN 32u                    /* frames from one peer before the next one's turn */
#define DROPS_MAX 64u               /* frames that one call drops at most, so that it ends */
#define BAD_MAX 256u                /* broken rules and refused frames ... */
#define BAD_NS (10ull * 1000000ull) /* ... within this time are too many */
#define RESET_BAD 16u               /* what a reset counts for */

void mint_port_blame(struct mint_port *port, struct mint_peer *peer, uint32_t n)
{
    uint64_t now;

    peer->bad += n;
    if (peer->bad < BAD_MAX || peer->shunned_until || port->pool)
        return;
    now = now_ns();
    if (now - peer->bad_since <= BAD_NS) {
        peer->shunned_until = mint_port_punish(peer, now);
        mint_port_mask(port, peer, peer->shunned_until);
        port->shunned++;
        bump(&peer->own->rx_counter[MINT_RX_SHUNNED], 1);
    }
    peer->bad_since = now;
    peer->bad = 0;
}

void mint_port_forgive(struct mint_port *port)
{
    uint64_t now = now_ns();

    for (uint32_t i = 0; i < port->count; i++) {
        struct mint_peer *peer = port->list[i];

        if (peer->shunned_until && now >= peer->shunned_until) {
            peer->shunned_until = 0;
            peer->bad_since = now;
            peer->bad = 0;
            port->shunned--;
        }
    }
}

static void mark_rx(struct mint_port *port, struct mint_peer *peer)
{
    if (!peer->rx_dirty) {
        peer->rx_dirty = true;
        port->rx_dirty[port->rx_dirty_count++] = peer;
    }
}

/* Whether a bridge may use this source MAC; learns it. */
static bool learn(struct mint_port *port, struct mint_peer *peer, uint64_t key, const uint8_t *mac)
{
    int owner;

    if (mint_mac_is_group(mac) || key == port->mac_key)
        return false;
    owner = mint_macs_fixed(&port->macs, key);
    if (owner >= 0)
        return (uint32_t)owner == peer->index;
    if (mint_macs_learn(&port->macs, key, peer->index, now_ns()))
        bump_port(port, MINT_PORT_LEARNED, 1);
    return true;
}

/* Check a view's private copies. Return: the counter of the drop, or -1 when all is well. */
static int check(struct mint_port *port, struct mint_peer *peer, const struct mint_view *v)
{
    uint64_t key = mint_mac_key(v->head + 6);
    static const struct mint_vnet none;

    if (unlikely(key != peer->mac_key) &&
        !((peer->flags & MINT_PORT_BRIDGE) && learn(port, peer, key, v->head + 6)))
        return MINT_RX_DROP_SPOOF;
    if (unlikely(memcmp(&v->vnet, &none, sizeof(none)) != 0) && !mint_vnet_ok(&v->vnet, v->len))
        return MINT_RX_DROP_VNET;
    if (unlikely(v->len > port->config.frame_max) && v->vnet.gso_type == MINT_GSO_NONE)
        return MINT_RX_DROP_TOO_BIG;
    return -1;
}

static void fill_view(struct mint_view *v, const struct mint_peer *peer, const struct mint_rec *rec,
                      uint32_t len)
{
    v->src = peer->index;
    v->len = len;
    v->generation = peer->rx.gen;
    v->rec = rec;
    v->frame = rec->frame;
    memcpy(&v->vnet, &rec->vnet, sizeof(v->vnet));
    memcpy(v->head, rec->frame, sizeof(v->head));
    v->vnet.num_buffers = 0;
}

/* Return: whether the frame is to be handed over; otherwise it is counted and released. */
static bool accept_frame(struct mint_port *port, struct mint_peer *peer, struct mint_view *v)
{
    int drop = check(port, peer, v);

    mark_rx(port, peer);
    if (unlikely(drop >= 0)) {
        bump(&peer->own->rx_counter[drop], 1);
        mint_port_release(port, v);
        mint_port_blame(port, peer, 1);
        return false;
    }
    peer->rx_frames++;
    peer->rx_bytes += v->len;
    port->activity++;
    port->sent_last = false;
    return true;
}

static bool recv_pool(struct mint_port *port, struct mint_view *v)
{
    for (uint32_t drops = 0; drops < DROPS_MAX; drops++) {
        uint32_t src, len;
        const struct mint_rec *rec = mint_pool_next(port->pool, &src, &len);
        struct mint_peer *peer;

        if (!rec)
            return false;
        peer = src < port->config.slots ? port->peers[src] : NULL;
        if (!peer) { /* its sender is gone: nobody here may have that MAC */
            if (src < port->config.slots)
                bump(&port->slots[src].rx_counter[MINT_RX_DROP_SPOOF], 1);
            mint_pool_release(port->pool, rec);
            mint_pool_recycle(port->pool);
            continue;
        }
        fill_view(v, peer, rec, len);
        if (accept_frame(port, peer, v))
            return true;
    }
    return false;
}

static void next_turn(struct mint_port *port)
{
    port->rr = port->rr + 1 < port->count ? port->rr + 1 : 0;
    port->rr_left = TURN;
}

void mint_port_settle_rx(struct mint_port *port, struct mint_peer *peer)
{
    if (unlikely(peer->rx.resets)) {
        mint_port_blame(port, peer, RESET_BAD * peer->rx.resets);
        bump(&peer->own->rx_counter[MINT_RX_RESETS], peer->rx.resets);
        peer->rx.resets = 0;
    }
}

bool mint_port_recv(struct mint_port *port, struct mint_view *v)
{
    uint32_t drops = 0;

    if (port->pool)
        return recv_pool(port, v);
    if (unlikely(port->shunned))
        mint_port_forgive(port);
    for (uint32_t tried = 0; tried <= port->count && port->count; tried++) {
        struct mint_peer *peer = port->list[port->rr];

        while (port->rr_left && likely(!peer->shunned_until)) {
            uint32_t len;
            const struct mint_rec *rec = port->pooled ? mint_lane_next(&peer->lane, &peer->rx, &len)
                                                      : mint_ring_next(&peer->rx, &len);

            if (!rec)
                break;
            port->rr_left--;
            fill_view(v, peer, rec, len);
            if (likely(accept_frame(port, peer, v)))
                return true;
            if (++drops >= DROPS_MAX)
                return false;
        }
        mint_port_settle_rx(port, peer);
        next_turn(port);
    }
    return false;
}

void mint_port_release(struct mint_port *port, const struct mint_view *v)
{
    struct mint_peer *peer = port->peers[v->src];

    if (port->pool)
        mint_pool_release(port->pool, v->rec);
    else if (unlikely(v->generation != peer->rx.gen))
        return; /* the channel was reset meanwhile */
    else if (port->pooled)
        mint_lane_release(&peer->rx);
    else
        mint_ring_release(&peer->rx, v->len);
}

void mint_port_refused(struct mint_port *port, const struct mint_view *v, enum mint_rx_counter why)
{
    struct mint_peer *peer = port->peers[v->src];

    bump(&peer->own->rx_counter[why], 1);
    peer->rx_frames--;
    peer->rx_bytes -= v->len;
}

/* Wake a sender that waits for room, once for each time it began to, when there is enough. */
static void ring_for_room(const struct mint_port *port, struct mint_peer *peer)
{
    uint32_t want = load_relaxed(&peer->slot->tx_want);
    bool ample = port->pool || port->pooled || mint_ring_rx_ample(&peer->rx);

    if ((want & 1) && want != peer->rung_want && ample) {
        peer->rung_want = want;
        bump(&peer->own->rx_counter[MINT_RX_RINGS], 1);
        mint_bell_ring(peer->bell);
    }
}

void mint_port_recycle(struct mint_port *port)
{
    if (!port->rx_dirty_count)
        return;
    if (port->pool)
        mint_pool_recycle(port->pool);
    for (uint32_t i = 0; i < port->rx_dirty_count; i++) {
        struct mint_peer *peer = port->rx_dirty[i];

        if (!port->pool)
            mint_ring_recycle(&peer->rx);
        bump(&peer->own->rx_counter[MINT_RX_FRAMES], peer->rx_frames);
        bump(&peer->own->rx_counter[MINT_RX_BYTES], peer->rx_bytes);
        peer->rx_frames = 0;
        peer->rx_bytes = 0;
        peer->rx_dirty = false;
    }
    full_fence(); /* pairs with the one in mint_port_wait_room(): room given before looking who waits */
    if (port->pool) { /* the room may be anybody's */
        for (uint32_t i = 0; i < port->count; i++)
            ring_for_room(port, port->list[i]);
    } else {
        for (uint32_t i = 0; i < port->rx_dirty_count; i++)
            ring_for_room(port, port->rx_dirty[i]);
    }
    port->rx_dirty_count = 0;
}

void mint_port_refused_plain(struct mint_port *port)
{
    bump_port(port, MINT_PORT_DROP_DEVICE, 1);
}

void mint_port_gave(struct mint_port *port, uint32_t frames, uint64_t bytes)
{
    bump_port(port, MINT_PORT_OUT_FRAMES, frames);
    bump_port(port, MINT_PORT_OUT_BYTES, bytes);
}
