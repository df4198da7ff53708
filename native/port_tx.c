/* SPDX-License-Identifier: Apache-2.0 */
/*
 * port_tx.c - sending.
 *
 * A frame is copied (or read) into the channel of its receiver and staged; mint_port_flush()
 * publishes all that is staged, once a batch, then looks who of the receivers sleeps and rings.
 *
 * Back-pressure. When a channel is full the sender waits, for as long as the receiver makes
 * progress, but no longer than stall_us without any. Then the channel is stalled: frames for it
 * are dropped at once and counted, until its consumer moves. So a receiver that stopped costs its
 * senders one time-out, not their traffic to others. Flooded frames never wait. How long a receiver
 * may get on too slowly is for the caller to say: see hold.h.
 */
#include "port_internal.h"

#define TEND_EVERY \
    1024u /* flushes of a port that never sleeps between looks at its idle channels */

/*
 * Say in our slots whether we wait for room: odd when we do, and each odd value but once. Where
 * others may have to give the room, all are asked.
 */
static void set_want(struct mint_port *port, struct mint_peer *peer, bool on)
{
    bool all = port->pool || (port->pooled && (!on || room_is_others(port, peer)));
    uint32_t n = all ? port->count : 1;

    for (uint32_t i = 0; i < n; i++) {
        struct mint_peer *whom = all ? port->list[i] : peer;
        mint_a32 *want = &whom->own->tx_want;
        uint32_t was = load_relaxed(want);

        whom->wished |= on;
        store_relaxed(want, on ? (was + 1) | 1u : (was + 1) & ~1u);
    }
}

/* The sender no longer waits for this peer. */
static void end_wait(struct mint_port *port, struct mint_peer *peer)
{
    peer->waiting = false;
    set_want(port, peer, false);
    if (port->waiting == peer)
        port->waiting = NULL;
}

static void end_stall(struct mint_peer *peer)
{
    peer->stalled = false;
    store_relaxed(&peer->own->tx_stalled, 0);
}

bool mint_port_stalled(struct mint_port *port, struct mint_peer *peer)
{
    if (peer_progress(port, peer) == peer->wait_mark)
        /* A peer that has nothing to give back is not to blame: a shorter frame may find room. */
        return !(port->pooled && room_is_others(port, peer));
    end_stall(peer);
    return false;
}

void mint_port_found_room(struct mint_port *port, struct mint_peer *peer)
{
    peer->wait_since = 0;
    if (peer->stalled)
        end_stall(peer);
    if (peer->waiting)
        end_wait(port, peer);
}

/* Room in the channel of `peer`, or NULL with the reason to be found by mint_port_no_room(). */
static struct mint_rec *reserve(struct mint_port *port, struct mint_peer *peer, uint32_t len)
{
    struct mint_rec *rec;

    if (unlikely(peer->stalled) && mint_port_stalled(port, peer))
        return NULL;
    if (port->pooled)
        rec = mint_pooled_reserve(port->pooled, peer->index, len);
    else if (likely(!port->pool))
        rec = mint_ring_reserve(&peer->tx, len);
    else
        rec = peer_up(port, peer) ? mint_pool_reserve(port->pool, peer->index, len) : NULL;
    if (unlikely(rec && peer->wait_since))
        mint_port_found_room(port, peer);
    return rec;
}

static void commit(struct mint_port *port, struct mint_peer *peer, struct mint_rec *rec,
                   uint32_t len)
{
    if (port->pooled) {
        mint_pooled_commit(port->pooled, peer->index, rec, len);
    } else if (port->pool) {
        store_relaxed(&rec->len, len);
        mint_pool_commit(port->pool, peer->index, rec, len);
    } else {
        mint_ring_commit(&peer->tx, rec, len);
    }
    mint_port_staged(port, peer, len);
}

/* Why there was no room: count a drop, or let the caller wait. */
enum mint_sent mint_port_no_room(struct mint_port *port, struct mint_peer *peer, bool may_wait)
{
    if (peer->stalled)
        bump(&peer->own->tx_counter[MINT_TX_DROP_STALLED], 1);
    else if (!peer_up(port, peer))
        bump(&peer->own->tx_counter[MINT_TX_DROP_DOWN], 1);
    else if (!may_wait)
        bump(&peer->own->tx_counter[MINT_TX_DROP_FULL], 1);
    else
        return MINT_FULL;
    if (peer->waiting)
        end_wait(port, peer);
    return MINT_DROPPED;
}

/* Layout pooled: room for a frame of `len` bytes that is staged already. */
static struct mint_rec *push(struct mint_port *port, struct mint_peer *peer, uint32_t len)
{
    struct mint_rec *rec;

    if (unlikely(peer->stalled) && mint_port_stalled(port, peer))
        return NULL;
    rec = mint_pooled_push(&peer->tx, len);
    if (unlikely(!rec))
        return NULL;
    if (unlikely(peer->wait_since))
        mint_port_found_room(port, peer);
    mint_port_staged(port, peer, len);
    return rec;
}

static enum mint_sent send_to(struct mint_port *port, struct mint_peer *peer,
                              const struct mint_vnet *vnet, const uint8_t *frame, uint32_t len,
                              bool may_wait)
{
    struct mint_rec *rec = port->pooled ? push(port, peer, len) : reserve(port, peer, len);

    if (unlikely(!rec))
        return mint_port_no_room(port, peer, may_wait);
    if (vnet) {
        rec->vnet = *vnet;
        rec->vnet.num_buffers = 0;
    } else {
        memset(&rec->vnet, 0, sizeof(rec->vnet));
    }
    memcpy(rec->frame, frame, len);
    if (!port->pooled)
        commit(port, peer, rec, len);
    return MINT_SENT;
}

/* Copy a frame to all peers, or to the bridges among them. */
static enum mint_sent flood(struct mint_port *port, const struct mint_vnet *vnet,
                            const uint8_t *frame, uint32_t len, bool bridges_only, uint32_t *full)
{
    bool any = false;

    for (uint32_t i = 0; i < port->count; i++) {
        struct mint_peer *peer = port->list[i];

        if (bridges_only && !(peer->flags & MINT_PORT_BRIDGE))
            continue;
        if (port->count == 1) { /* one receiver: no reason not to wait for it */
            enum mint_sent sent = send_to(port, peer, vnet, frame, len, true);

            if (sent == MINT_FULL) {
                *full = peer->index;
                return sent;
            }
        } else {
            send_to(port, peer, vnet, frame, len, false);
        }
        any = true;
    }
    if (any)
        bump_port(port, MINT_PORT_FLOODED, 1);
    else
        bump_port(port, bridges_only ? MINT_PORT_DROP_UNKNOWN : MINT_PORT_DROP_NO_PEER, 1);
    return any ? MINT_SENT : MINT_DROPPED;
}

static enum mint_sent send_other(struct mint_port *port, int dst, const struct mint_vnet *vnet,
                                 const uint8_t *frame, uint32_t len, uint32_t *full)
{
    if (dst == MINT_DST_SELF) {
        bump_port(port, MINT_PORT_DROP_SELF, 1);
        return MINT_DROPPED;
    }
    return flood(port, vnet, frame, len, dst == MINT_DST_UNKNOWN, full);
}

enum mint_sent mint_port_send(struct mint_port *port, const struct mint_vnet *vnet,
                              const uint8_t *frame, uint32_t len, uint32_t *peer)
{
    uint32_t ignored;
    enum mint_sent sent;
    int dst;

    if (unlikely(len < MINT_FRAME_MIN || len > MINT_FRAME_MAX)) {
        bump_port(port, len < MINT_FRAME_MIN ? MINT_PORT_DROP_SHORT : MINT_PORT_DROP_LONG, 1);
        port->in_done++;
        return MINT_DROPPED;
    }
    if (!peer)
        peer = &ignored;
    dst = mint_port_lookup(port, frame);
    if (likely(dst >= 0)) {
        *peer = (uint32_t)dst;
        sent = send_to(port, port->peers[dst], vnet, frame, len, true);
    } else if (port->pooled && dst != MINT_DST_SELF) {
        return mint_port_send_once(port, vnet, frame, len, dst, peer);
    } else {
        sent = send_other(port, dst, vnet, frame, len, peer);
    }
    port->in_done += sent != MINT_FULL;
    return sent;
}

struct mint_rec *mint_port_reserve(struct mint_port *port, uint32_t peer, uint32_t len)
{
    return peer < port->config.slots && port->peers[peer] ? reserve(port, port->peers[peer], len)
                                                          : NULL;
}

void mint_port_commit(struct mint_port *port, uint32_t peer, struct mint_rec *rec, uint32_t len)
{
    commit(port, port->peers[peer], rec, len);
    port->in_done++;
}

void mint_port_cancel(struct mint_port *port, uint32_t peer, struct mint_rec *rec)
{
    (void)peer; /* a ring's reservation is nothing but the place at its head */
    if (port->pooled)
        mint_pooled_cancel(port->pooled, rec);
    else if (port->pool)
        mint_pool_cancel(port->pool, rec);
}

enum mint_sent mint_port_refuse(struct mint_port *port, uint32_t peer)
{
    enum mint_sent sent = mint_port_no_room(port, port->peers[peer], true);

    port->in_done += sent != MINT_FULL;
    return sent;
}

void mint_port_bad(struct mint_port *port, enum mint_port_counter why)
{
    bump_port(port, why, 1);
    port->in_done++;
}

void mint_port_count(struct mint_port *port, enum mint_port_counter what)
{
    bump_port(port, what, 1);
}

void mint_port_took(struct mint_port *port, uint32_t len)
{
    port->activity++;
    port->sent_last = true;
    bump_port(port, MINT_PORT_IN_FRAMES, 1);
    bump_port(port, MINT_PORT_IN_BYTES, len);
}

static void publish(struct mint_port *port)
{
    if (port->pool)
        mint_pool_publish(port->pool);
    for (uint32_t i = 0; i < port->tx_dirty_count; i++) {
        struct mint_peer *peer = port->tx_dirty[i];

        if (!port->pool)
            mint_ring_publish(&peer->tx);
        bump(&peer->own->tx_counter[MINT_TX_FRAMES], peer->tx_frames);
        bump(&peer->own->tx_counter[MINT_TX_BYTES], peer->tx_bytes);
        peer->tx_frames = 0;
        peer->tx_bytes = 0;
    }
}

void mint_port_flush(struct mint_port *port)
{
    if (unlikely(++port->flushes % TEND_EVERY == 0))
        mint_port_tend(port);
    if (port->tx_dirty_count)
        publish(port);
    if (port->in_done) {
        /* After publishing: a crash in between counts as lost what arrived, never the reverse. */
        bump_port(port, MINT_PORT_IN_DONE, port->in_done);
        port->in_done = 0;
    }
    if (!port->tx_dirty_count)
        return;
    port->sent = true;
    full_fence(); /* pairs with the one in mint_port_wait(): published before looking who sleeps */
    for (uint32_t i = 0; i < port->tx_dirty_count; i++) {
        struct mint_peer *peer = port->tx_dirty[i];
        uint32_t wake = load_relaxed(&peer->ctl->wake);

        peer->tx_dirty = false;
        if ((wake & 1) && wake != peer->rung_wake) {
            peer->rung_wake = wake; /* one ring wakes it; more would only cost */
            bump(&peer->own->tx_counter[MINT_TX_RINGS], 1);
            mint_bell_ring(peer->bell);
        }
    }
    port->tx_dirty_count = 0;
}

bool mint_port_ask_room(struct mint_port *port, uint32_t index)
{
    struct mint_peer *peer = port->peers[index];
    uint64_t progress = peer_look(port, peer);
    bool room = peer_room(port, peer);
    bool moved = progress != peer->wait_mark || !peer->wait_since;

    if (moved) {
        peer->wait_since = now_ns();
        peer->wait_mark = progress;
    }
    if (peer->waiting && port->asked && !room)
        return false;
    if (!peer->waiting) {
        mint_port_flush(port); /* what is staged must be seen, or there is nothing to free */
        if (port->waiting)
            end_wait(port, port->waiting);
        port->waiting = peer;
        peer->waiting = true;
        bump(&peer->own->tx_counter[MINT_TX_WAITS], 1);
    }
    peer->tried_mark = progress;
    port->asked = true;
    set_want(port, peer, true);
    full_fence(); /* pairs with the one in mint_port_recycle(): wanted before looking for room */
    return true;
}

void mint_port_stop_waiting(struct mint_port *port, uint32_t index)
{
    if (port->peers[index]->waiting)
        end_wait(port, port->peers[index]);
}

uint64_t mint_port_stall_ns(const struct mint_port *port)
{
    return (uint64_t)port->config.stall_us * 1000u;
}

uint64_t mint_port_wait_room(struct mint_port *port, uint32_t index)
{
    struct mint_peer *peer = port->peers[index];
    uint64_t limit = mint_port_stall_ns(port), waited;

    if (mint_port_ask_room(port, index))
        return 1;
    waited = now_ns() - peer->wait_since;
    if (waited < limit)
        return limit - waited;
    if (peer->tried_mark != peer->wait_mark) {
        peer->tried_mark = peer->wait_mark; /* it gave some room, if not ample: a frame may fit */
        return 1;
    }
    peer->stalled = true;
    store_relaxed(&peer->own->tx_stalled, 1);
    bump(&peer->own->tx_counter[MINT_TX_STALLS], 1);
    end_wait(port, peer);
    return 0;
}

void mint_port_give_up(struct mint_port *port, uint32_t index)
{
    mint_port_no_room(port, port->peers[index], false);
    port->in_done++;
}

int mint_port_sole_peer(const struct mint_port *port)
{
    return port->count == 1 ? (int)port->list[0]->index : -1;
}

bool mint_port_is_bridge(const struct mint_port *port, uint32_t peer)
{
    return port->peers[peer] && (port->peers[peer]->flags & MINT_PORT_BRIDGE);
}

void mint_port_drop(struct mint_port *port, int dst)
{
    bump_port(port, dst == MINT_DST_SELF ? MINT_PORT_DROP_SELF : MINT_PORT_DROP_UNKNOWN, 1);
    port->in_done++;
}
