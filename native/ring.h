/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ring.h - one channel of layout "per-channel" (the paper's layout 2): a packet buffer with one
 * producer and one consumer, lock-free. Variable-length records, contiguous in both processes.
 *
 * Theory of operation
 *
 *   producer's control region          consumer's control region
 *     slot.head  ------ read by -------> consumer
 *     producer <------- read by -------  slot.tail
 *   payload region: written by the producer, mapped read-only by the consumer
 *
 * head and tail are positions that only grow; 0 <= head - tail <= capacity, both multiples of
 * MINT_LINE. Each side keeps a private copy of its own index (the truth) and a cached
 * copy of the other's, which it refreshes only when the cache says "full" or "empty": in steady
 * state a batch costs each side one miss on the other's line.
 *
 *   producer                             consumer
 *   reserve   room for a record          next      the oldest unread record
 *   commit    staged, private            release   read, still occupied
 *   publish   head: release store        recycle   tail: release store
 *
 * Neither side believes the other. An index that is out of range or off the grid, or a record
 * length that does not fit, is a broken rule: the channel is reset and nothing else is touched.
 *
 *   consumer: tail = where it stopped reading, rx_end = (a generation that neither is in, RESET)
 *   producer: sees another generation: head = that tail, tx_end = (that generation, OPEN)
 *   consumer: sees its generation at the producer: rx_end = (generation, OPEN), goes on
 *
 * Each step is one release store that the other side loads with acquire, so the index is seen
 * before the state that makes it count. What lay between tail and head is lost, and the producer
 * can count it. The same happens when a consumer closes its end and opens it again. A producer that
 * closes its end loses nothing: what it has published is read, and it goes on where it stopped. So
 * does a process that takes a port over from a dead one, for its own indices lie in its own control
 * region: the peer sees nothing.
 */
#ifndef MINT_RING_H
#define MINT_RING_H

#include "abi.h"
#include <stdbool.h>

#define MINT_POSITION_MAX (UINT64_MAX >> 2) /* more than a channel ever carries: no sum overflows */
/* Whether a number that lay in shared memory can be a position. */
#define MINT_NO_POSITION(pos) (((pos) & (MINT_LINE - 1u)) != 0 || (pos) > MINT_POSITION_MAX)

struct mint_lane;

/* The producer's end; private to its process. */
struct mint_ring_tx {
    uint8_t *data; /* mapped twice: offsets 0 .. 2 * cap - 1 are readable */
    uint32_t cap;
    uint32_t off;       /* head mod cap */
    uint64_t head;      /* end of the staged records */
    uint64_t published; /* what the consumer may see */
    uint64_t tail;      /* the consumer's, when last looked at; never goes back in a generation */
    uint32_t gen;
    uint32_t staged; /* records between published and head */
    struct mint_slot *own;
    const struct mint_slot *peer;
    struct mint_lane *lane; /* layout pooled: each line of the ring stands for a descriptor */
};

/* The consumer's end; private to its process. */
struct mint_ring_rx {
    const uint8_t *data;
    uint32_t cap;
    uint32_t off;      /* next mod cap */
    uint64_t next;     /* start of the oldest record not yet read */
    uint64_t released; /* start of the oldest record not yet released */
    uint64_t recycled; /* the tail that the producer sees */
    uint64_t head;     /* the producer's, when last looked at */
    uint32_t gen;
    bool open; /* the producer is in our generation */
    struct mint_slot *own;
    const struct mint_slot *peer;
    uint32_t resets; /* demands made; taken by the owner */
};

/*
 * mint_ring_tx_open() / mint_ring_rx_open() - start or, where the own slot says that the end was
 * open, go on where the dead predecessor stopped.
 * @data: the mirrored mapping; @cap: bytes, a multiple of the page size
 */
void mint_ring_tx_open(struct mint_ring_tx *r, uint8_t *data, uint32_t cap, struct mint_slot *own,
                       const struct mint_slot *peer);
void mint_ring_rx_open(struct mint_ring_rx *r, const uint8_t *data, uint32_t cap,
                       struct mint_slot *own, const struct mint_slot *peer);
/* Close the end; when the consumer is gone for good, what it has not read counts as lost. */
void mint_ring_tx_close(struct mint_ring_tx *r, bool gone);
void mint_ring_rx_close(struct mint_ring_rx *r);

/*
 * mint_lane_place() - layout pooled (pooled.c): the consumer will read nothing of what lies before
 * `head`; take its buffers back. The ring goes on at `at`.
 */
void mint_lane_place(struct mint_lane *lane, uint64_t head, uint64_t at);

/* The slow paths of the inline functions below. */
bool mint_ring_tx_refresh(struct mint_ring_tx *r, uint32_t need);
bool mint_ring_tx_join(struct mint_ring_tx *r);
bool mint_ring_rx_refresh(struct mint_ring_rx *r);
void mint_ring_rx_reset(struct mint_ring_rx *r);

/* Whether the consumer's end is open or opening: a frame sent now can arrive. */
static inline bool mint_ring_tx_up(const struct mint_ring_tx *r)
{
    uint32_t end = load_relaxed(&r->peer->rx_end);

    return MINT_END_STATE(end) != MINT_END_CLOSED &&
           MINT_END_STATE(load_relaxed(&r->own->tx_end)) != MINT_END_RESET;
}

/* Whether `need` bytes are free, as far as was seen when last looking at the consumer's tail. */
static inline bool mint_ring_room(const struct mint_ring_tx *r, uint32_t need)
{
    uint32_t end = load_relaxed(&r->peer->rx_end);

    return MINT_END_GEN(end) == r->gen && MINT_END_STATE(end) != MINT_END_CLOSED &&
           r->head + need - r->tail <= r->cap;
}

/* Whether the consumer can have given back what lies before `tail`, after what it gave before. */
static inline bool mint_ring_tx_believes(const struct mint_ring_tx *r, uint64_t tail)
{
    return tail - r->tail <= r->published - r->tail && !MINT_NO_POSITION(tail);
}

/*
 * A number that changes when the consumer gives room back, or demands a generation, which gives all
 * back; what it only feigns changes nothing. mint_ring_tx_seen() says what refresh has seen of it.
 */
static inline uint64_t mint_ring_progress(uint64_t tail, uint32_t gen)
{
    return tail ^ ((uint64_t)gen << 40);
}

static inline uint64_t mint_ring_tx_progress(const struct mint_ring_tx *r)
{
    uint32_t gen = MINT_END_GEN(load_acquire(&r->peer->rx_end));
    uint64_t tail = load_acquire(&r->peer->tail);

    return mint_ring_progress(mint_ring_tx_believes(r, tail) ? tail : r->tail, gen);
}

static inline uint64_t mint_ring_tx_seen(const struct mint_ring_tx *r)
{
    return mint_ring_progress(r->tail, r->gen);
}

/*
 * Whether so much is free that a producer which waits for room is worth waking: half. Woken for
 * each record that is given back, it would fill that, find no more, and sleep again; woken at half,
 * it is there again before the consumer has run dry. Half holds the longest record, in any ring.
 */
static inline bool mint_ring_tx_ample(const struct mint_ring_tx *r)
{
    return r->head - load_acquire(&r->peer->tail) <= r->cap / 2;
}

/* The same, as the consumer sees it; one that it has no common generation with is not its affair. */
static inline bool mint_ring_rx_ample(const struct mint_ring_rx *r)
{
    return !r->open || load_relaxed(&r->peer->head) - r->recycled <= r->cap / 2;
}

/*
 * mint_ring_reserve() - room for a record with a frame of up to `len` bytes.
 * Return: the record at the head, contiguous; NULL when there is no room, or the channel is down.
 * Reserving again without a commit gives the same place.
 */
static inline struct mint_rec *mint_ring_reserve(struct mint_ring_tx *r, uint32_t len)
{
    uint32_t need = MINT_REC_BYTES(len);

    if (__builtin_expect(!mint_ring_room(r, need), 0) && !mint_ring_tx_refresh(r, need))
        return NULL;
    return (struct mint_rec *)(void *)(r->data + r->off);
}

/* One more staged record, of `bytes` bytes. */
static inline void mint_ring_stage(struct mint_ring_tx *r, uint32_t bytes)
{
    r->head += bytes;
    r->off += bytes;
    if (r->off >= r->cap)
        r->off -= r->cap;
    r->staged++;
}

/* Stage the record at the head, now holding `len` bytes of frame. */
static inline void mint_ring_commit(struct mint_ring_tx *r, struct mint_rec *rec, uint32_t len)
{
    store_relaxed(&rec->len, len); /* ordered by the release store of head in publish */
    mint_ring_stage(r, MINT_REC_BYTES(len));
}

/*
 * mint_ring_publish() - let the consumer see what is staged.
 * Return: records published; 0 also when the consumer demanded a new generation meanwhile (what
 * was staged is lost then, and counted).
 */
static inline uint32_t mint_ring_publish(struct mint_ring_tx *r)
{
    uint32_t staged = r->staged;

    if (__builtin_expect(MINT_END_GEN(load_acquire(&r->peer->rx_end)) != r->gen, 0)) {
        mint_ring_tx_join(r);
        return 0;
    }
    store_release(&r->own->head, r->head); /* pairs with load_acquire in mint_ring_rx_refresh() */
    r->published = r->head;
    r->staged = 0;
    return staged;
}

/* The record of `bytes` bytes that comes next is read. */
static inline void mint_ring_step(struct mint_ring_rx *r, uint32_t bytes)
{
    r->next += bytes;
    r->off += bytes;
    if (r->off >= r->cap)
        r->off -= r->cap;
}

/*
 * mint_ring_next() - the oldest unread record.
 * @len: receives its frame length, fetched once and checked against the published bytes
 * Return: the record in shared memory; NULL: none (or the channel was reset).
 */
static inline const struct mint_rec *mint_ring_next(struct mint_ring_rx *r, uint32_t *len)
{
    if (r->next == r->head && !mint_ring_rx_refresh(r))
        return NULL;

    const struct mint_rec *rec = (const struct mint_rec *)(const void *)(r->data + r->off);
    uint32_t n = load_relaxed(&rec->len); /* once: the producer may change it at any time */

    if (__builtin_expect(
            n < MINT_FRAME_MIN || n > MINT_FRAME_MAX || MINT_REC_BYTES(n) > r->head - r->next, 0)) {
        mint_ring_rx_reset(r);
        return NULL;
    }
    mint_ring_step(r, MINT_REC_BYTES(n));
    *len = n;
    return rec;
}

/* The oldest record that was read, of `len` bytes, is no longer needed. */
static inline void mint_ring_release(struct mint_ring_rx *r, uint32_t len)
{
    r->released += MINT_REC_BYTES(len);
}

/* Give the room of released records back. Return: whether there was any. */
static inline bool mint_ring_recycle(struct mint_ring_rx *r)
{
    if (r->released == r->recycled)
        return false;
    store_release(&r->own->tail, r->released); /* pairs with load_acquire in _tx_refresh() */
    r->recycled = r->released;
    return true;
}

/* Whether next() would find something to do: the re-check before sleeping. */
static inline bool mint_ring_rx_pending(const struct mint_ring_rx *r)
{
    uint32_t end = load_acquire(&r->peer->tx_end);

    if (MINT_END_GEN(end) != r->gen || MINT_END_STATE(end) > MINT_END_RESET)
        return false;
    if (MINT_END_STATE(end) == MINT_END_RESET || !r->open)
        return true;
    return load_acquire(&r->peer->head) != r->next;
}

#endif
