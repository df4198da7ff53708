/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pooled.h - layout "pooled": each sender has one pool of buffers for all its receivers, each pair
 * a ring of descriptors. Lock-free, memory O(n). Theory of operation in pooled.c; what lies in
 * shared memory is in pooled_abi.h; who uses which buffer in stock.h; positions, states and
 * generations of a channel are those of ring.h, whose ends a lane extends.
 */
#ifndef MINT_POOLED_H
#define MINT_POOLED_H

#include "pooled_abi.h"
#include "ring.h"
#include "stock.h"
#include <stdbool.h>

/* struct mint_lane - the sending end of one channel; private to its process. */
struct mint_lane {
    struct mint_ring_tx *tx; /* NULL: the peer is not there */
    struct mint_pooled *of;
    mint_a64 *desc;   /* its ring */
    mint_a64 *note;   /* `settled`, for the next process */
    uint64_t settled; /* the buffers of what lies before this position were taken back */
    uint32_t used;    /* blocks of the buffers between there and the head */
    uint32_t place;   /* in the list of lanes that are open */
    bool nonsense;    /* what a predecessor left can't be: the channel is to be reset */
};

/* struct mint_pooled - a port's pool and its lanes; private to its process. */
struct mint_pooled {
    struct mint_stock stock;
    uint8_t *map; /* the stock region */
    size_t bytes;
    uint8_t *data; /* the buffers in it */
    uint32_t port, slots;
    uint32_t part;    /* blocks that any receiver can have, whatever the others have */
    int32_t common;   /* blocks of the common half that are nobody's now */
    uint32_t in_hand; /* records that are reserved and neither sent nor given back */
    uint32_t orphans; /* lanes that a predecessor left and nobody has opened since */
    struct mint_slot *own;
    struct mint_lane *lanes; /* by index */
    struct mint_lane **list; /* those that are open */
    uint32_t count, turn;
};

/*
 * mint_pooled_open() - join with a port's own stock region.
 * @fd:    the region, writable; its size says what capacity it has
 * @own:   the port's slots
 * @fresh: the port is new, so what the region holds is nobody's
 * Return: 0, -EPROTO: not a region for so many slots; -ENOMEM or what mmap() says.
 */
int mint_pooled_open(struct mint_pooled **out, int fd, uint32_t port, uint32_t slots,
                     struct mint_slot *own, bool fresh);
/* Let go of it. Nothing shared is touched. */
void mint_pooled_close(struct mint_pooled *p);

/* mint_pooled_tx_open() - start the sending end towards port `q`, or go on where it stopped.
 * @peer: q's slot about us */
void mint_pooled_tx_open(struct mint_pooled *p, uint32_t q, struct mint_ring_tx *tx,
                         const struct mint_slot *peer);
/* Close it; see mint_ring_tx_close(). */
void mint_pooled_tx_close(struct mint_pooled *p, uint32_t q, bool gone);

/* The slow paths of the inline functions below: they look again at those who can give room. */
bool mint_lane_admits_now(struct mint_lane *lane, uint32_t need);
uint32_t mint_pooled_take_slow(struct mint_pooled *p, uint32_t need);
struct mint_rec *mint_pooled_push_slow(struct mint_lane *lane, uint32_t len);

/* Blocks of the common half that a lane has when it has `used` in all. */
static inline uint32_t mint_lane_excess(const struct mint_pooled *p, uint32_t used)
{
    return used > p->part ? used - p->part : 0;
}

/* Account for what a lane has now. */
static inline void mint_lane_use(struct mint_lane *lane, uint32_t used)
{
    struct mint_pooled *p = lane->of;

    p->common += (int32_t)mint_lane_excess(p, lane->used) - (int32_t)mint_lane_excess(p, used);
    lane->used = used;
}

/*
 * Whether `need` more blocks are within the lane's share. A receiver that has nothing may have one
 * record whatever it leaves of the common half: else a small pool could not carry the longest.
 */
static inline bool mint_lane_share(const struct mint_lane *lane, uint32_t need)
{
    const struct mint_pooled *p = lane->of;
    int32_t has = (int32_t)mint_lane_excess(p, lane->used);
    int32_t wants = (int32_t)mint_lane_excess(p, lane->used + need);

    return wants == 0 || wants <= p->common + has - wants ||
           (lane->used == 0 && wants <= p->common);
}

/* Whether the lane may take `need` more blocks, as far as was seen. */
static inline bool mint_lane_admits(const struct mint_lane *lane, uint32_t need)
{
    return mint_ring_room(lane->tx, MINT_LINE * (lane->of->in_hand + 1)) &&
           mint_lane_share(lane, need);
}

static inline bool mint_lane_may(struct mint_lane *lane, uint32_t need)
{
    return __builtin_expect(mint_lane_admits(lane, need), 1) || mint_lane_admits_now(lane, need);
}

/*
 * mint_pooled_reserve_any() - a buffer for one record with a frame of up to `len` bytes, for
 * receivers yet unknown. Return: NULL: the pool has no room.
 */
static inline struct mint_rec *mint_pooled_reserve_any(struct mint_pooled *p, uint32_t len)
{
    uint32_t need = MINT_STOCK_BLOCKS_FOR(len);
    uint32_t block = __builtin_expect(mint_stock_at_hand(&p->stock, need), 1)
                         ? mint_stock_take(&p->stock, need)
                         : mint_pooled_take_slow(p, need);

    if (__builtin_expect(block == MINT_STOCK_NONE, 0))
        return NULL;
    p->in_hand++;
    return (struct mint_rec *)(void *)(p->data + (size_t)block * MINT_STOCK_BLOCK);
}

/*
 * mint_pooled_reserve() - the same for port `q`. Return: NULL when its ring is full, the pool or
 * its share of it is used up, or it is down.
 */
static inline struct mint_rec *mint_pooled_reserve(struct mint_pooled *p, uint32_t q, uint32_t len)
{
    return mint_lane_may(&p->lanes[q], MINT_STOCK_BLOCKS_FOR(len)) ? mint_pooled_reserve_any(p, len)
                                                                   : NULL;
}

static inline uint32_t mint_pooled_block(const struct mint_pooled *p, const struct mint_rec *rec)
{
    return (uint32_t)((size_t)((const uint8_t *)rec - p->data) / MINT_STOCK_BLOCK);
}

/* Stage a descriptor; a reference to its buffer goes with it. */
static inline void mint_lane_put(struct mint_lane *lane, struct mint_ring_tx *tx, uint32_t block,
                                 uint32_t len)
{
    store_relaxed(&lane->desc[tx->off / MINT_LINE], MINT_DESC(block, len));
    mint_ring_stage(tx, MINT_LINE);
}

static inline void mint_lane_stage(struct mint_lane *lane, uint32_t block, uint32_t len)
{
    mint_lane_put(lane, lane->tx, block, len);
    mint_lane_use(lane, lane->used + lane->of->stock.extent[block].blocks);
}

/* Stage a record that was reserved for q, now holding `len` bytes of frame. */
static inline void mint_pooled_commit(struct mint_pooled *p, uint32_t q, const struct mint_rec *rec,
                                      uint32_t len)
{
    uint32_t block = mint_pooled_block(p, rec);

    mint_stock_trim(&p->stock, block, MINT_STOCK_BLOCKS_FOR(len));
    mint_lane_stage(&p->lanes[q], block, len);
    p->in_hand--;
}

/*
 * mint_pooled_push() - reserve and commit in one: the record is staged, and to be filled with `len`
 * bytes of frame before the next publish. Return: as mint_pooled_reserve().
 */
static inline struct mint_rec *mint_pooled_push(struct mint_ring_tx *tx, uint32_t len)
{
    struct mint_lane *lane = tx->lane;
    struct mint_pooled *p = lane->of;
    const uint32_t need = MINT_STOCK_BLOCKS_FOR(len), used = lane->used + need;
    const uint32_t block = p->stock.run;
    uint8_t *const data = p->data;

    if (__builtin_expect(p->stock.run_end - block < need || used > p->part ||
                             !mint_ring_room(tx, MINT_LINE * (p->in_hand + 1)),
                         0))
        return mint_pooled_push_slow(lane, len);
    lane->used = used;
    p->stock.run = block + need;
    p->stock.free -= need;
    p->stock.extent[block] = (struct mint_extent){.refs = 1, .blocks = (uint16_t)need};
    mint_lane_put(lane, tx, block, len);
    return (struct mint_rec *)(void *)(data + (size_t)block * MINT_STOCK_BLOCK);
}

/*
 * By reference: trim a record to what it holds, refer any number of receivers to it, and let go.
 * mint_pooled_refer() stages it for q. Return: false: no room there, as for reserve.
 * mint_pooled_cancel() gives the caller's own reference back: sent or not.
 */
static inline void mint_pooled_trim(struct mint_pooled *p, const struct mint_rec *rec, uint32_t len)
{
    mint_stock_trim(&p->stock, mint_pooled_block(p, rec), MINT_STOCK_BLOCKS_FOR(len));
}

static inline bool mint_pooled_refer(struct mint_pooled *p, uint32_t q, const struct mint_rec *rec,
                                     uint32_t len)
{
    uint32_t block = mint_pooled_block(p, rec);

    if (!mint_lane_may(&p->lanes[q], p->stock.extent[block].blocks))
        return false;
    mint_stock_hold(&p->stock, block);
    mint_lane_stage(&p->lanes[q], block, len);
    return true;
}

static inline void mint_pooled_cancel(struct mint_pooled *p, const struct mint_rec *rec)
{
    mint_stock_drop(&p->stock, mint_pooled_block(p, rec));
    p->in_hand--;
}

/* Whether nothing waits for q: if it finds no room then it is for others to give it. */
static inline bool mint_pooled_idle(const struct mint_pooled *p, uint32_t q)
{
    return p->lanes[q].settled == p->lanes[q].tx->head;
}

/* Look at all receivers. Return: whether no buffer is in use, by them or in hand. */
bool mint_pooled_unused(struct mint_pooled *p);
/* Give the memory of an unused pool back. Return: 0, or -1 with errno set. */
int mint_pooled_punch(struct mint_pooled *p);

/*
 * mint_pooled_progress() - a number that changes whenever q gives room; while q is idle, whenever
 * anybody does. mint_pooled_look() takes what was given, and says how far that has got: what a
 * receiver only feigns does not come back from there.
 */
uint64_t mint_pooled_progress(const struct mint_pooled *p, uint32_t q);
uint64_t mint_pooled_look(struct mint_pooled *p, uint32_t q);

/* struct mint_lane_rx - the receiving end of one channel, beside its struct mint_ring_rx. */
struct mint_lane_rx {
    const uint8_t *map; /* the sender's stock region, read-only; NULL: none */
    size_t bytes;
    const mint_a64 *desc;
    const uint8_t *data;
    uint32_t blocks;
};

/*
 * mint_lane_rx_map() - map the sender's region: port `self` of `slots` ports is to read it.
 * @capacity: bytes of its buffers
 */
int mint_lane_rx_map(struct mint_lane_rx *l, int fd, uint32_t self, uint32_t slots,
                     uint32_t capacity);
void mint_lane_rx_unmap(struct mint_lane_rx *l);

/*
 * mint_lane_next() - the oldest unread record of a channel.
 * @len: receives its frame length
 * The descriptor is fetched once and checked. Return: NULL: none (or the channel was reset).
 */
static inline const struct mint_rec *mint_lane_next(const struct mint_lane_rx *l,
                                                    struct mint_ring_rx *r, uint32_t *len)
{
    uint64_t desc;
    uint32_t n, block;

    if (r->next == r->head && !mint_ring_rx_refresh(r))
        return NULL;
    desc = load_relaxed(&l->desc[r->off / MINT_LINE]); /* once: it may change at any time */
    n = MINT_DESC_LEN(desc);
    block = MINT_DESC_BLOCK(desc);
    if (__builtin_expect(n < MINT_FRAME_MIN || n > MINT_FRAME_MAX || block >= l->blocks ||
                             MINT_STOCK_BLOCKS_FOR(n) > l->blocks - block,
                         0)) {
        mint_ring_rx_reset(r);
        return NULL;
    }
    mint_ring_step(r, MINT_LINE);
    *len = n;
    return (const struct mint_rec *)(const void *)(l->data + (size_t)block * MINT_STOCK_BLOCK);
}

/* The oldest record that was read is no longer needed. */
static inline void mint_lane_release(struct mint_ring_rx *r)
{
    r->released += MINT_LINE;
}

#endif
