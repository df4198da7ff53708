/* SPDX-License-Identifier: Apache-2.0 */
/* ring.c - the slow paths of the per-channel packet buffer; theory of operation in ring.h. */
#include "ring.h"

/* Where a generation may begin at most: far from the largest position, or a hostile end could have
 * the channel begin so close to it that no later, honest end ever gets anywhere. */
#define START_MAX (MINT_POSITION_MAX >> 1)

/* Count the records in [from, to) of our own payload region. */
static uint64_t count_records(const struct mint_ring_tx *r, uint64_t from, uint64_t to)
{
    uint64_t n = 0;

    if (r->lane)
        return (to - from) / MINT_LINE;
    while (from < to) {
        const struct mint_rec *rec =
            (const struct mint_rec *)(const void *)(r->data + from % r->cap);
        uint32_t len = load_relaxed(&rec->len);

        if (len < MINT_FRAME_MIN || len > MINT_FRAME_MAX)
            break; /* the consumer's tail was a lie; what lies before it cannot be counted */
        from += MINT_REC_BYTES(len);
        n++;
    }
    return n;
}

/* Forget all that is in the channel, of which the producer alone knows now; go on at `at`. */
static void tx_place(struct mint_ring_tx *r, uint64_t at)
{
    if (r->lane)
        mint_lane_place(r->lane, r->head, at);
    r->head = r->published = r->tail = at;
    r->off = (uint32_t)(at % r->cap);
    r->staged = 0;
    store_release(&r->own->head, at); /* nobody's load: what was counted is to be stored first */
}

/*
 * What the consumer will never read, for its end is closed or demands another generation, is lost:
 * count it, and go on where the consumer stopped reading. In this order: a process that dies in
 * between leaves the old head, and its successor counts twice what could have been counted never.
 */
static void tx_settle(struct mint_ring_tx *r)
{
    uint64_t tail = load_acquire(&r->peer->tail) & START_MAX & ~(uint64_t)(MINT_LINE - 1u);
    bool between = tail - r->tail <= r->head - r->tail;

    /* Another consumer's tail, or a lie, says nothing of what was read: then the last one counts.
     * What lies before that was given back already: it is not lost, and not looked at again. */
    bump(&r->own->tx_counter[MINT_TX_DROP_RESET],
         count_records(r, between ? tail : r->tail, r->head));
    tx_place(r, tail);
}

void mint_ring_tx_open(struct mint_ring_tx *r, uint8_t *data, uint32_t cap, struct mint_slot *own,
                       const struct mint_slot *peer)
{
    uint32_t end = load_relaxed(&own->tx_end);

    *r = (struct mint_ring_tx){.data = data, .cap = cap, .own = own, .peer = peer};
    r->gen = MINT_END_GEN(end);
    r->head = r->published = load_relaxed(&own->head);
    r->off = (uint32_t)(r->head % cap);
    r->tail = load_acquire(&peer->tail);
    if (r->head - r->tail > cap || MINT_NO_POSITION(r->tail))
        r->tail = r->head - cap; /* "full": the first reserve looks again, and judges */
    if (MINT_END_STATE(end) != MINT_END_OPEN && MINT_END_STATE(end) != MINT_END_RESET)
        store_release(&own->tx_end, MINT_END(r->gen, MINT_END_OPEN));
    if (MINT_NO_POSITION(r->head)) {
        /* What the predecessor left is no index of ours: start over, as after a broken rule. */
        tx_place(r, 0);
        store_release(&own->tx_end, MINT_END(r->gen, MINT_END_RESET));
    }
}

void mint_ring_tx_close(struct mint_ring_tx *r, bool gone)
{
    uint32_t end = load_acquire(&r->peer->rx_end);

    if (gone || MINT_END_STATE(end) == MINT_END_CLOSED || MINT_END_GEN(end) != r->gen)
        tx_settle(r);
    store_release(&r->own->tx_end, MINT_END(r->gen, MINT_END_CLOSED));
}

/* Follow the consumer into the generation that it demands. */
bool mint_ring_tx_join(struct mint_ring_tx *r)
{
    uint32_t end = load_acquire(&r->peer->rx_end);

    if (MINT_END_STATE(end) == MINT_END_CLOSED || MINT_END_GEN(end) == r->gen)
        return false;
    if (r->gen != 0 || r->head != 0) /* the first generation of all is no reset */
        bump(&r->own->tx_counter[MINT_TX_RESETS], 1);
    tx_settle(r);
    r->gen = MINT_END_GEN(end);
    /* Pairs with load_acquire in mint_ring_rx_refresh(): the new head is seen before the state. */
    store_release(&r->own->tx_end, MINT_END(r->gen, MINT_END_OPEN));
    return true;
}

/*
 * Look at the consumer's end again. Return: whether `need` bytes are free now.
 * A generation that the consumer raised is joined first; a tail that makes no sense asks it to. One
 * that goes back makes none: a consumer could feign progress with it for ever, and be waited for.
 */
bool mint_ring_tx_refresh(struct mint_ring_tx *r, uint32_t need)
{
    uint32_t end = load_acquire(&r->peer->rx_end);

    if (MINT_END_STATE(end) == MINT_END_CLOSED) {
        tx_settle(r);
        return false;
    }
    if (MINT_END_GEN(end) != r->gen)
        mint_ring_tx_join(r);
    else if (MINT_END_STATE(load_relaxed(&r->own->tx_end)) == MINT_END_RESET)
        return false;

    /* Pairs with store_release in mint_ring_recycle(): the consumer is done with what lies before. */
    uint64_t tail = load_acquire(&r->peer->tail);

    if (!mint_ring_tx_believes(r, tail)) {
        store_release(&r->own->tx_end, MINT_END(r->gen, MINT_END_RESET));
        return false;
    }
    r->tail = tail;
    return r->head + need - tail <= r->cap;
}

/*
 * Demand a generation that neither end is in, from where reading stopped: so the producer knows
 * what was lost, and positions of another life of this channel are never taken for ours.
 */
static void rx_demand(struct mint_ring_rx *r)
{
    uint32_t theirs = MINT_END_GEN(load_relaxed(&r->peer->tx_end));

    r->gen = (r->gen + 1u) & 0xffffffu;
    if (r->gen == theirs)
        r->gen = (r->gen + 1u) & 0xffffffu;
    if (r->released > START_MAX)
        r->released = 0;
    r->next = r->recycled = r->head = r->released;
    r->off = (uint32_t)(r->next % r->cap);
    r->open = false;
    /* It may give room back, as in mint_ring_recycle(), and may be seen before the demand is. */
    store_release(&r->own->tail, r->released);
    /* Pairs with load_acquire in mint_ring_tx_join(): the tail is seen before the demand. */
    store_release(&r->own->rx_end, MINT_END(r->gen, MINT_END_RESET));
}

void mint_ring_rx_open(struct mint_ring_rx *r, const uint8_t *data, uint32_t cap,
                       struct mint_slot *own, const struct mint_slot *peer)
{
    uint32_t end = load_relaxed(&own->rx_end), state = MINT_END_STATE(end);
    uint64_t tail = load_relaxed(&own->tail);

    *r = (struct mint_ring_rx){.data = data, .cap = cap, .own = own, .peer = peer};
    r->gen = MINT_END_GEN(end);
    r->released = MINT_NO_POSITION(tail) ? 0 : tail;
    if ((state != MINT_END_OPEN && state != MINT_END_RESET) || MINT_NO_POSITION(tail)) {
        rx_demand(r);
        return;
    }
    r->open = state == MINT_END_OPEN; /* else the predecessor's demand stands */
    r->next = r->recycled = r->head = r->released;
    r->off = (uint32_t)(r->next % cap);
}

void mint_ring_rx_close(struct mint_ring_rx *r)
{
    store_release(&r->own->rx_end, MINT_END(r->gen, MINT_END_CLOSED));
}

/* The producer broke a rule: demand a new generation. */
void mint_ring_rx_reset(struct mint_ring_rx *r)
{
    r->resets++;
    rx_demand(r);
}

/* Look at the producer's end again. Return: whether there is an unread record. */
bool mint_ring_rx_refresh(struct mint_ring_rx *r)
{
    uint32_t end = load_acquire(&r->peer->tx_end); /* pairs with mint_ring_tx_join() */

    if (__builtin_expect(end != MINT_END(r->gen, MINT_END_OPEN), 0)) {
        if (end == MINT_END(r->gen, MINT_END_RESET))
            mint_ring_rx_reset(r); /* the producer asks for it */
        if (end != MINT_END(r->gen, MINT_END_CLOSED))
            return false; /* it has not joined yet */
        /* What was published before it closed is read all the same. */
    }
    if (!r->open) {
        r->open = true;
        store_release(&r->own->rx_end, MINT_END(r->gen, MINT_END_OPEN));
    }
    /* Pairs with store_release in mint_ring_publish(): the records before it are complete. */
    uint64_t head = load_acquire(&r->peer->head);

    if (head - r->next > r->cap || MINT_NO_POSITION(head)) {
        mint_ring_rx_reset(r);
        return false;
    }
    r->head = head;
    return head != r->next;
}
