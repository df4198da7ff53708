/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pooled.c - layout "pooled": sending through descriptors into one's own pool.
 *
 * Theory of operation
 *
 *   sender                                          receiver
 *   reserve  a buffer from the pool (private)       next     the next descriptor, checked
 *   commit   a descriptor in the receiver's ring    release  read, still occupied
 *   publish  head: release store                    recycle  tail: release store
 *   settle   tail moved: take those buffers back
 *
 * A lane is the sending end of a ring.h channel whose records are descriptors, one line each; its
 * positions, states and generations are kept by ring.c. What is added is which buffers the
 * descriptors between `settled` and the head stand for. A buffer has as many references as there
 * are descriptors of it, and is free with the last of them.
 *
 * References go when the tail moves (settle), and all at once when the ring is placed anew
 * (mint_lane_place()): the receiver closed its end, demands another generation, or is gone. In each
 * case it has stopped reading. A receiver that lies about its tail has itself to blame: it may read
 * a buffer that is used again, and nobody else's channel knows of it. A tail that goes back, or
 * beyond what was published, is a broken rule; ring.c sees to that, so that `settled`, which is where
 * the tail was last seen, is never overtaken.
 *
 * Receivers complete in order, so the tail of each is all there is to look at. Doing that costs a
 * miss on a line of the receiver's: it is done for a few lanes in turn each time that the pool is
 * searched for a run (some 170 frames of 1500 bytes), for all of them when that finds nothing, and
 * for one when its ring or its share is full.
 *
 * The share. Half of the pool is divided into equal parts, one for each other port that the fabric
 * has room for: what waits for a receiver may always come to its part. The other half is common:
 * beyond its part a receiver may have no more of it than it leaves to others (a dynamic threshold),
 * but for one record while it has nothing else: so the longest fits into the smallest pool.
 * So one that stalls holds its part and half of the common half, a second one its part and a
 * quarter, and however many stall, and whoever comes last, each still has its part. A buffer counts
 * for each receiver that it waits for. A fabric of two ports has nobody to starve, and no share.
 *
 * Death. Rings, heads and `settled` lie in the port's own regions; the references follow from them.
 * `settled` is stored before any buffer is used again, and the head with release after that, so
 * what a successor finds between the two is in use. Records that were not published are free. What
 * was for a peer that has gone meanwhile (nobody opens its lane again) is an orphan; it is let go
 * when the pool has no room without it, and its descriptors are wiped first.
 *
 * Trust. The region is our own, but a predecessor may have been hostile, and live on: what is
 * claimed at the start is checked, and so is each block number that is read again from a ring.
 */
#include "pooled.h"
#include "region.h"
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>

#define TURN 8u /* lanes that are settled when a run is searched for */
#define RING_AT(pos) ((uint32_t)((pos) / MINT_LINE % MINT_LANE_DESCS))

/* --- what is in use -------------------------------------------------------------------------- */

/* Drop the references of the descriptors up to `to`; neighbours are freed with one stroke. */
static void give_back(struct mint_lane *lane, uint64_t to)
{
    struct mint_stock *s = &lane->of->stock;
    struct mint_extent *const extent = s->extent;
    mint_a64 *const desc = lane->desc;
    const uint32_t blocks = s->blocks;
    uint32_t from = 0, end = 0, used = 0;

    for (uint64_t at = lane->settled; at != to; at += MINT_LINE) {
        uint32_t block = MINT_DESC_BLOCK(load_relaxed(&desc[RING_AT(at)]));
        struct mint_extent e;

        if (block >= blocks || (e = extent[block]).refs == 0)
            continue; /* not what we wrote */
        used += e.blocks;
        extent[block].refs = (uint16_t)(e.refs - 1);
        if (e.refs > 1)
            continue;
        if (block != end) {
            if (from != end)
                mint_stock_return(s, from, end);
            from = block;
        }
        end = block + e.blocks;
    }
    if (from != end)
        mint_stock_return(s, from, end);
    mint_lane_use(lane, used < lane->used ? lane->used - used : 0);
}

static void settle_at(struct mint_lane *lane, uint64_t at)
{
    lane->settled = at;
    store_relaxed(lane->note, at); /* ordered by the release store of the next head */
}

void mint_lane_place(struct mint_lane *lane, uint64_t head, uint64_t at)
{
    give_back(lane, head);
    mint_lane_use(lane, 0);
    settle_at(lane, at);
}

/* Look at the receiver's end again. Return: false: it broke a rule. */
static bool settle(struct mint_lane *lane)
{
    struct mint_ring_tx *tx = lane->tx;

    mint_ring_tx_refresh(tx, MINT_LINE);
    if (tx->tail != lane->settled) {
        give_back(lane, tx->tail);
        settle_at(lane, tx->tail);
    }
    return MINT_END_STATE(load_relaxed(&tx->own->tx_end)) != MINT_END_RESET;
}

static void settle_some(struct mint_pooled *p, uint32_t most)
{
    for (uint32_t n = p->count < most ? p->count : most; n; n--) {
        struct mint_lane *lane = p->list[p->turn = p->turn + 1 < p->count ? p->turn + 1 : 0];

        if (lane->settled != lane->tx->published)
            settle(lane);
    }
}

/* Let go of what a predecessor left for peers that are not there. Return: whether there was any. */
static bool drop_orphans(struct mint_pooled *p)
{
    if (!p->orphans)
        return false;
    p->orphans = 0;
    for (uint32_t q = 0; q < p->slots; q++) {
        struct mint_lane *lane = &p->lanes[q];
        uint64_t head = load_relaxed(&p->own[q].head), unread = (head - lane->settled) / MINT_LINE;

        if (lane->tx || q == p->port || head - lane->settled > MINT_LANE_CAP)
            continue;
        bump(&p->own[q].tx_counter[MINT_TX_DROP_RESET], unread);
        give_back(lane, head);
        for (uint64_t at = lane->settled; at != head; at += MINT_LINE)
            store_relaxed(&lane->desc[RING_AT(at)], 0); /* no record: whoever reads it sees that */
        mint_lane_use(lane, 0);
        settle_at(lane, head);
    }
    return true;
}

/* --- room ------------------------------------------------------------------------------------ */

bool mint_lane_admits_now(struct mint_lane *lane, uint32_t need)
{
    struct mint_pooled *p = lane->of;

    if (!settle(lane) || !mint_ring_room(lane->tx, MINT_LINE * (p->in_hand + 1)))
        return false;
    if (mint_lane_admits(lane, need))
        return true;
    settle_some(p, p->count);
    if (!mint_lane_admits(lane, need))
        drop_orphans(p);
    return mint_lane_admits(lane, need);
}

uint32_t mint_pooled_take_slow(struct mint_pooled *p, uint32_t need)
{
    uint32_t block;

    settle_some(p, TURN);
    block = mint_stock_take(&p->stock, need);
    if (block == MINT_STOCK_NONE) {
        settle_some(p, p->count);
        block = mint_stock_take(&p->stock, need);
        if (block == MINT_STOCK_NONE && drop_orphans(p))
            block = mint_stock_take(&p->stock, need);
    }
    return block;
}

static uint64_t progress(const struct mint_pooled *p, uint32_t q,
                         uint64_t (*of)(const struct mint_ring_tx *))
{
    uint64_t sum = 0;

    if (!mint_pooled_idle(p, q))
        return of(p->lanes[q].tx);
    for (uint32_t i = 0; i < p->count; i++)
        sum += of(p->list[i]->tx);
    return sum;
}

uint64_t mint_pooled_progress(const struct mint_pooled *p, uint32_t q)
{
    return progress(p, q, mint_ring_tx_progress);
}

uint64_t mint_pooled_look(struct mint_pooled *p, uint32_t q)
{
    settle(&p->lanes[q]);
    if (mint_pooled_idle(p, q))
        settle_some(p, p->count);
    return progress(p, q, mint_ring_tx_seen);
}

struct mint_rec *mint_pooled_push_slow(struct mint_lane *lane, uint32_t len)
{
    uint32_t q = (uint32_t)(lane - lane->of->lanes);
    struct mint_rec *rec = mint_pooled_reserve(lane->of, q, len);

    if (rec)
        mint_pooled_commit(lane->of, q, rec, len);
    return rec;
}

bool mint_pooled_unused(struct mint_pooled *p)
{
    settle_some(p, p->count);
    return p->stock.free == p->stock.blocks;
}

int mint_pooled_punch(struct mint_pooled *p)
{
    size_t at = MINT_STOCK_RINGS_AT(p->slots); /* the notes before it stay */

    return madvise(p->map + at, p->bytes - at, MADV_REMOVE);
}

/* --- coming and going ------------------------------------------------------------------------ */

/* Claim what a predecessor has published to port q and q has not given back. */
static bool claim(struct mint_lane *lane, uint64_t head)
{
    uint64_t settled = load_relaxed(lane->note), at = settled;

    lane->settled = settled;
    if (MINT_NO_POSITION(head) || MINT_NO_POSITION(settled) || head - settled > MINT_LANE_CAP) {
        lane->settled = head;
        return false;
    }
    for (; at != head; at += MINT_LINE) {
        uint64_t desc = load_relaxed(&lane->desc[RING_AT(at)]);
        uint32_t len = MINT_DESC_LEN(desc), need = MINT_STOCK_BLOCKS_FOR(len);

        if (len < MINT_FRAME_MIN || len > MINT_FRAME_MAX ||
            !mint_stock_claim(&lane->of->stock, MINT_DESC_BLOCK(desc), need))
            break;
        mint_lane_use(lane, lane->used + need);
    }
    if (at == head)
        return true;
    mint_lane_place(lane, at, head);
    return false;
}

static void open_lanes(struct mint_pooled *p, bool fresh)
{
    mint_a64 *notes = (mint_a64 *)(void *)p->map;
    struct mint_lane_ring *rings =
        (struct mint_lane_ring *)(void *)(p->map + MINT_STOCK_RINGS_AT(p->slots));

    for (uint32_t q = 0; q < p->slots; q++) {
        struct mint_lane *lane = &p->lanes[q];
        uint64_t head = load_relaxed(&p->own[q].head);

        lane->of = p;
        lane->desc = rings[q].desc;
        lane->note = &notes[q];
        if (fresh && load_relaxed(lane->note) != head)
            store_relaxed(lane->note, head);
        if (q == p->port)
            continue;
        lane->nonsense = !claim(lane, head);
        p->orphans += lane->used != 0;
    }
}

/* Half of the pool in equal parts for all that there may be; a sole receiver may have all. */
static void share_out(struct mint_pooled *p, uint32_t blocks)
{
    p->part = p->slots > 2 ? blocks / 2 / (p->slots - 1) : blocks;
    p->common = (int32_t)(blocks / 2);
}

static bool capacity_ok(uint32_t bytes)
{
    return bytes >= MINT_CAP_MIN && bytes <= MINT_CAP_MAX && bytes % MINT_STOCK_PAGE == 0;
}

static int pooled_map(struct mint_pooled *p, int fd)
{
    struct stat st;
    size_t capacity;

    if (fstat(fd, &st) < 0 || st.st_size < 0)
        return -EPROTO;
    p->bytes = (size_t)st.st_size;
    capacity = p->bytes - MINT_STOCK_DATA_AT(p->slots);
    if (p->bytes < MINT_STOCK_DATA_AT(p->slots) || capacity > MINT_CAP_MAX ||
        !capacity_ok((uint32_t)capacity) || mint_region_check(fd, p->bytes))
        return -EPROTO;
    p->map = mint_region_map(fd, p->bytes, true);
    if (!p->map)
        return -errno;
    p->data = p->map + MINT_STOCK_DATA_AT(p->slots);
    share_out(p, (uint32_t)(capacity / MINT_STOCK_BLOCK));
    return mint_stock_init(&p->stock, (uint32_t)(capacity / MINT_STOCK_BLOCK));
}

int mint_pooled_open(struct mint_pooled **out, int fd, uint32_t port, uint32_t slots,
                     struct mint_slot *own, bool fresh)
{
    struct mint_pooled *p = calloc(1, sizeof(*p));
    int err = -ENOMEM;

    if (!p)
        return err;
    p->port = port;
    p->slots = slots;
    p->own = own;
    p->lanes = calloc(slots, sizeof(p->lanes[0]));
    p->list = calloc(slots, sizeof(p->list[0]));
    if (p->lanes && p->list)
        err = pooled_map(p, fd);
    if (err) {
        mint_pooled_close(p);
        return err;
    }
    open_lanes(p, fresh);
    *out = p;
    return 0;
}

void mint_pooled_close(struct mint_pooled *p)
{
    if (!p)
        return;
    if (p->map)
        munmap(p->map, p->bytes);
    mint_stock_free(&p->stock);
    free(p->lanes);
    free(p->list);
    free(p);
}

void mint_pooled_tx_open(struct mint_pooled *p, uint32_t q, struct mint_ring_tx *tx,
                         const struct mint_slot *peer)
{
    struct mint_lane *lane = &p->lanes[q];

    p->orphans -= p->orphans && lane->used;
    mint_ring_tx_open(tx, NULL, MINT_LANE_CAP, &p->own[q], peer);
    tx->lane = lane;
    lane->tx = tx;
    if (lane->nonsense) {
        lane->nonsense = false;
        settle_at(lane, tx->head);
        store_release(&tx->own->tx_end, MINT_END(tx->gen, MINT_END_RESET));
    }
    if (tx->tail - lane->settled > tx->head - lane->settled)
        tx->tail = lane->settled; /* settle() looks again, and judges */
    lane->place = p->count;
    p->list[p->count++] = lane;
}

void mint_pooled_tx_close(struct mint_pooled *p, uint32_t q, bool gone)
{
    struct mint_lane *lane = &p->lanes[q], *last = p->list[--p->count];

    mint_ring_tx_close(lane->tx, gone);
    lane->tx = NULL;
    p->list[lane->place] = last;
    last->place = lane->place;
    p->turn = 0;
}

/* --- the receiving end ----------------------------------------------------------------------- */

int mint_lane_rx_map(struct mint_lane_rx *l, int fd, uint32_t self, uint32_t slots,
                     uint32_t capacity)
{
    const struct mint_lane_ring *rings;
    int err;

    if (!capacity_ok(capacity))
        return -EINVAL;
    l->bytes = MINT_STOCK_BYTES(slots, capacity);
    err = mint_region_check(fd, l->bytes);
    if (err)
        return err;
    l->map = mint_region_map(fd, l->bytes, false);
    if (!l->map)
        return -errno;
    rings = (const struct mint_lane_ring *)(const void *)(l->map + MINT_STOCK_RINGS_AT(slots));
    l->desc = rings[self].desc;
    l->data = l->map + MINT_STOCK_DATA_AT(slots);
    l->blocks = capacity / MINT_STOCK_BLOCK;
    return 0;
}

void mint_lane_rx_unmap(struct mint_lane_rx *l)
{
    if (l->map)
        munmap((void *)(uintptr_t)l->map, l->bytes);
    l->map = NULL;
}
