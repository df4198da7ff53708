/* SPDX-License-Identifier: Apache-2.0 */
/*
 * port_pooled.c - sending by reference: what layout "pooled" offers besides.
 *
 * A frame lies in the sender's own pool before it is known who is to get it, so it can be read from
 * a device straight into its place, and reaches any number of receivers without being written
 * again: each gets a descriptor of the same buffer.
 */
#include "port_internal.h"

/* Stage a record for one peer, if it has room. */
static enum mint_sent refer(struct mint_port *port, struct mint_peer *peer, struct mint_rec *rec,
                            uint32_t len, bool may_wait)
{
    if ((unlikely(peer->stalled) && mint_port_stalled(port, peer)) ||
        unlikely(!mint_pooled_refer(port->pooled, peer->index, rec, len)))
        return mint_port_no_room(port, peer, may_wait);
    if (unlikely(peer->wait_since))
        mint_port_found_room(port, peer);
    mint_port_staged(port, peer, len);
    return MINT_SENT;
}

/*
 * Stage a record for all peers, or for the bridges among them; NULL: there was no room in the pool
 * for it. A peer without room goes without, unless it is the only one.
 */
static enum mint_sent refer_all(struct mint_port *port, struct mint_rec *rec, uint32_t len,
                                bool bridges_only, uint32_t *full)
{
    bool any = false, only = port->count == 1;

    for (uint32_t i = 0; i < port->count; i++) {
        struct mint_peer *peer = port->list[i];
        enum mint_sent sent;

        if (bridges_only && !(peer->flags & MINT_PORT_BRIDGE))
            continue;
        sent = rec ? refer(port, peer, rec, len, only) : mint_port_no_room(port, peer, only);
        if (sent == MINT_FULL) {
            *full = peer->index;
            return sent;
        }
        any = true;
    }
    if (any)
        bump_port(port, MINT_PORT_FLOODED, 1);
    else
        bump_port(port, bridges_only ? MINT_PORT_DROP_UNKNOWN : MINT_PORT_DROP_NO_PEER, 1);
    return any ? MINT_SENT : MINT_DROPPED;
}

enum mint_sent mint_port_send_once(struct mint_port *port, const struct mint_vnet *vnet,
                                   const uint8_t *frame, uint32_t len, int dst, uint32_t *full)
{
    struct mint_rec *rec = mint_pooled_reserve_any(port->pooled, len);
    static const struct mint_vnet none;
    enum mint_sent sent;

    if (rec) {
        rec->vnet = vnet ? *vnet : none;
        rec->vnet.num_buffers = 0;
        memcpy(rec->frame, frame, len);
    }
    sent = refer_all(port, rec, len, dst == MINT_DST_UNKNOWN, full);
    if (rec)
        mint_pooled_cancel(port->pooled, rec);
    port->in_done += sent != MINT_FULL;
    return sent;
}

struct mint_rec *mint_port_reserve_any(struct mint_port *port, uint32_t len)
{
    return port->pooled ? mint_pooled_reserve_any(port->pooled, len) : NULL;
}

enum mint_sent mint_port_send_reserved(struct mint_port *port, struct mint_rec *rec, uint32_t len,
                                       uint32_t *peer)
{
    enum mint_sent sent = MINT_DROPPED;
    int dst = mint_port_lookup(port, rec->frame);

    mint_pooled_trim(port->pooled, rec, len);
    if (likely(dst >= 0)) {
        *peer = (uint32_t)dst;
        sent = refer(port, port->peers[dst], rec, len, true);
    } else if (dst == MINT_DST_SELF) {
        bump_port(port, MINT_PORT_DROP_SELF, 1);
    } else {
        sent = refer_all(port, rec, len, dst == MINT_DST_UNKNOWN, peer);
    }
    if (sent == MINT_FULL)
        return sent;
    mint_pooled_cancel(port->pooled, rec);
    port->in_done++;
    return sent;
}
