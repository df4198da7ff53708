/* SPDX-License-Identifier: Apache-2.0 */
/*
 * port_idle.c - giving memory back.
 *
 * A region's memory is committed page by page when it is first written, and a ring goes through all
 * of its region in time, however little traffic there is. So that the real cost follows the pairs
 * that talk, and not all pairs that ever did, a sender gives the memory of an idle channel back:
 * it punches a hole into its payload region (or, in layout pooled, into its pool).
 *
 * A channel is idle when its head has not moved since the last look and its receiver has given back
 * all that was published. Then the receiver reads nothing there, and the sender holds nothing:
 * records are committed before a port waits or flushes. Positions stay as they are; what is
 * written next commits the pages anew. A receiver that reads where it has nothing to read finds
 * zeroes, and may commit the pages again, which is as far as that goes.
 *
 * The data path pays nothing for it: a look happens when the port is about to sleep, or once in a
 * thousand flushes, and only every idle_ds while some channel may hold memory. A look that finds
 * none ends the looking until frames are sent again: an idle port sleeps without a time-out. So
 * memory goes between one and two idle_ds after the last frame.
 */
#include "port_internal.h"
#include <sys/mman.h>

/* The memory of a channel of layout per-channel, unless it is in use. Return: whether it is kept. */
static bool keep_channel(struct mint_port *port, struct mint_peer *peer)
{
    struct mint_ring_tx *tx = &peer->tx;
    bool still = tx->head == peer->idle_head;

    if (tx->head == peer->bare_head)
        return false;
    peer->idle_head = tx->head;
    if (!still)
        return true;
    mint_ring_tx_refresh(tx, 0); /* its receiver may have left, and what it had not read is lost */
    peer->idle_head = tx->head;
    if (tx->tail != tx->head)
        return true;
    peer->bare_head = tx->head;
    if (madvise(tx->data, tx->cap, MADV_REMOVE) == 0)
        bump_port(port, MINT_PORT_RECLAIMS, 1);
    return false;
}

/* The same for a pool: it goes as a whole. */
static bool keep_pool(struct mint_port *port)
{
    struct mint_pooled *p = port->pooled;
    uint64_t sum = 0;
    bool still;

    for (uint32_t i = 0; i < port->count; i++)
        sum += port->list[i]->tx.head;
    still = sum == port->idle_sum;
    port->idle_sum = sum;
    if (sum == port->bare_sum)
        return false;
    if (!still || !mint_pooled_unused(p))
        return true;
    port->bare_sum = sum;
    if (mint_pooled_punch(p) == 0)
        bump_port(port, MINT_PORT_RECLAIMS, 1);
    return false;
}

static bool look(struct mint_port *port)
{
    bool kept = false;

    if (port->pooled)
        return keep_pool(port);
    for (uint32_t i = 0; i < port->count; i++)
        kept |= keep_channel(port, port->list[i]);
    return kept;
}

int64_t mint_port_tend(struct mint_port *port)
{
    uint64_t every = (uint64_t)port->config.idle_ds * 100000000u, now;

    if (!every || port->pool || (!port->idle_due && !port->sent))
        return -1;
    now = now_ns();
    if (!port->idle_due || now >= port->idle_due) {
        bool kept = look(port) || port->sent;

        port->sent = false;
        port->idle_due = kept ? now + every : 0;
        if (!kept)
            return -1;
    }
    return (int64_t)(port->idle_due - now);
}
