/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pool.c - layout "shared": one packet buffer for all, under a lock (pool_lock.h). What lies in
 * shared memory is in pool_abi.h, what is done to it under the lock in pool_state.c; here are the
 * calls of a port that move frames; how a port comes and goes is in pool_attach.c.
 *
 * Theory of operation
 *
 *   sender                                      receiver
 *   reserve  cut a record off the private run   next     the next of the private batch, or ...
 *            (lock: take a run of blocks)                (lock: take up to 32 from the queue)
 *   commit   private; the data is written       release  private
 *   publish  lock: queue all that is staged,    recycle  lock: free all that was released,
 *            take or free a run                          take the next batch
 *
 * Mutual exclusion is kept minimal: no payload is copied under the lock, and a batch costs a sender
 * one critical section and a receiver one, of some hundred nanoseconds. A run is one RESERVED
 * extent in the table; how the sender cuts it into records is nobody's business before publish.
 *
 * Allocation takes the lowest run of free blocks that will do: what is taken stays together at the
 * low end, so long runs stay free at the high end even when a receiver sits on many single blocks,
 * and the blocks in use are those still in the cache and already committed. (A hint that goes round
 * would spread them over the whole pool.)
 *
 * What is the truth. The table's words, and nothing else: bitmap, queues, counts and the quota are
 * derived from them. Each word changes by one store, which takes effect whole or not at all; `len`
 * and `seq` are stored before the word that makes them count. So death at any instruction leaves a
 * table that says for each block who has it, and whoever takes the lock from the dead makes all the
 * rest anew (mint_pool_rebuild()); if that one dies too, the next does. At each moment of
 *
 *   taking a run       before its word: free. After: RESERVED by the sender
 *   publish            words are stored from the last record of the run to the first. Before the
 *                      last store: all still one RESERVED run. After it: all QUEUED, in order of
 *                      `seq`, though no queue has them. (A record that was still being written when
 *                      an earlier batch was published is an extent of its own: published alone.)
 *   taking a record    before its word: QUEUED. After: HELD by the receiver
 *   freeing            before its word: HELD. After: free
 *   going on after     a port's next process frees what is RESERVED or HELD by the port
 *   a death            (HELD: counted in MINT_PORT_DROP_RESTART; the frames in hand of a sender are
 *                      counted by the port, MINT_PORT_IN_DONE). What was QUEUED stays
 *
 * Quota. The records that wait for a receiver take at most its share (mint_pool_share_out()); what
 * a stalled receiver sits on is bounded, and the others go on. A sender sees its share without the
 * lock: several at once may overshoot, by one record each, as none stages more than its part of
 * what is left.
 *
 * What a sender takes in advance is bounded too: a run holds at most 31 blocks more than asked for,
 * and no more than 1/(2 * ports) of what is free; it is given back at publish when the batch was
 * small or less than a quarter of the pool is free, and at a publish with nothing staged.
 *
 * Trust. The ports of a pool trust each other (each can write all of it), so this is no defence
 * against a hostile one; but a value that makes no sense is never used: it is counted, and the
 * derived state is made anew.
 */
#include "pool_end.h"

static uint32_t min_u32(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

static struct mint_rec *rec_at(const struct mint_pool_end *end, uint32_t block)
{
    return (struct mint_rec *)(void *)(end->map.data + (size_t)block * MINT_POOL_BLOCK);
}

static uint32_t block_of(const struct mint_pool_end *end, const struct mint_rec *rec)
{
    return (uint32_t)((size_t)((const uint8_t *)rec - end->map.data) / MINT_POOL_BLOCK);
}

/* --- under the lock -------------------------------------------------------------------------- */

static uint64_t piece_word(const struct mint_pool_end *end, const struct mint_pool_piece *p)
{
    if (p->state == CANCELLED)
        return 0;
    return p->state == STAGED ? MINT_BLOCK_WORD(MINT_BLOCK_QUEUED, p->need, end->port, p->dst)
                              : MINT_BLOCK_WORD(MINT_BLOCK_RESERVED, p->blocks, end->port, 0);
}

/* Make each piece an extent of its own, last one first: the run's first word hides all others. */
static void cut(struct mint_pool_end *end)
{
    struct mint_pool_map *m = &end->map;
    uint32_t rest = end->run.blocks - end->run.used;

    if (end->run.used > 0 && rest > 0)
        store_release(&m->block[end->run.start + end->run.used].word,
                      MINT_BLOCK_WORD(MINT_BLOCK_RESERVED, rest, end->port, 0));
    for (uint32_t i = end->pieces; i-- > 0;) {
        MINT_POOL_TEST_DIE(MINT_POINT_CUT);
        store_release(&m->block[end->piece[i].start].word, piece_word(end, &end->piece[i]));
    }
    MINT_POOL_TEST_DIE(MINT_POINT_CUT_DONE);
    for (uint32_t i = 0; i < end->pieces; i++) {
        const struct mint_pool_piece *p = &end->piece[i];
        uint32_t keep = MINT_BLOCK_COUNT(piece_word(end, p));

        if (keep < p->blocks)
            mint_pool_unmark(m, p->start + keep, p->blocks - keep);
    }
    end->run.start += end->run.used;
    end->run.blocks = rest;
    end->run.used = 0;
}

static void link_staged(struct mint_pool_end *end)
{
    struct mint_pool_chain c = {0};
    bool linked = true;

    for (uint32_t i = 0; i < end->staged && linked; i++) {
        const struct mint_pool_piece *p = &end->piece[end->order[i]];

        if (c.records && c.dst != p->dst) {
            linked = mint_pool_chain_link(&end->map, &c);
            c.records = c.blocks = 0;
        }
        c.dst = p->dst;
        mint_pool_chain_add(&end->map, &c, p->start, p->need);
    }
    if (linked && c.records)
        mint_pool_chain_link(&end->map, &c);
    MINT_POOL_TEST_DIE(MINT_POINT_LINK_DONE);
}

void mint_pool_settle(struct mint_pool_end *end)
{
    uint32_t kept = 0;

    if (end->pieces == 0)
        return;
    /* Before any of them is visible: a successor must not use their sequence numbers again. */
    store_relaxed(&end->map.port[end->port].seq, end->seq);
    cut(end);
    link_staged(end);
    for (uint32_t i = 0; i < end->pieces; i++) {
        struct mint_pool_piece p = end->piece[i];

        if (p.state == STAGED)
            end->waiting[p.dst] -= p.need;
        if (p.state != IN_HAND)
            continue;
        p.in_run = false;
        end->piece[kept++] = p;
    }
    end->pieces = kept;
    end->staged = 0;
}

void mint_pool_drop_run(struct mint_pool_end *end)
{
    if (end->run.blocks)
        mint_pool_free(&end->map, end->run.start, end->run.blocks);
    end->run.blocks = end->run.used = 0;
}

static uint32_t live_ports(const struct mint_pool_end *end)
{
    uint32_t live = load_relaxed(&end->map.head->live);

    return live >= 2 && live <= MINT_PORTS_MAX ? live : MINT_PORTS_MAX;
}

/* Take a run with room for `need` blocks and somewhat more, in place of the one at hand. */
static void take_run(struct mint_pool_end *end, uint32_t need)
{
    uint32_t free, more;

    mint_pool_drop_run(end);
    free = min_u32(load_relaxed(&end->map.head->free), end->map.blocks);
    if (free < need)
        return;
    more = min_u32((free - need) / (2u * live_ports(end)), AHEAD);
    end->run.blocks = mint_pool_alloc(&end->map, end->port, need, need + more, &end->run.start);
}

/* Whether little is left in the pool, so that nobody should take anything in advance. */
static bool is_short(const struct mint_pool_end *end)
{
    return load_relaxed(&end->map.head->free) < end->map.blocks / 4u;
}

/* After a publish: keep a run for the next batch, if there is likely to be one. */
static void provide(struct mint_pool_end *end)
{
    if (end->burst < BUSY || is_short(end))
        mint_pool_drop_run(end);
    else if (end->run.blocks < end->last_need + AHEAD / 2u)
        take_run(end, end->last_need);
}

void mint_pool_free_released(struct mint_pool_end *end)
{
    uint32_t kept = 0, given = 0, blocks = 0;

    if (end->released == 0)
        return;
    for (uint32_t i = 0; i < end->helds; i++) {
        struct mint_pool_held *h = &end->held[i];

        if (h->released) {
            mint_pool_free(&end->map, h->rec.block, h->rec.blocks);
            blocks += h->rec.blocks;
            continue;
        }
        given += i < end->given;
        end->held[kept++] = *h;
    }
    mint_pool_returned(&end->map, end->port, end->released, blocks);
    end->helds = kept;
    end->given = given;
    end->released = 0;
}

/* Take the next batch, if the last one is used up. */
static void take_batch(struct mint_pool_end *end)
{
    struct mint_pool_record rec[BATCH];
    uint32_t n;

    if (end->given < end->helds || end->helds == HELD_MAX)
        return;
    n = mint_pool_take(&end->map, end->port, rec, min_u32(BATCH, HELD_MAX - end->helds));
    for (uint32_t i = 0; i < n; i++)
        end->held[end->helds++] = (struct mint_pool_held){.rec = rec[i]};
}

/* --- sending --------------------------------------------------------------------------------- */

/* Whether `dst` may be sent `need` more blocks. */
static bool within_share(const struct mint_pool_end *end, uint32_t dst, uint32_t need)
{
    uint32_t share = load_relaxed(&end->map.head->share);
    uint32_t used = load_relaxed(&end->map.port[dst].used), mine = end->waiting[dst];

    if (used > share || need > share - used)
        return false;
    return mine == 0 || (uint64_t)(mine + need) * (live_ports(end) - 1u) <= share - used;
}

static bool has_room(const struct mint_pool_end *end, uint32_t dst, uint32_t need)
{
    return within_share(end, dst, need) && end->run.blocks - end->run.used >= need &&
           end->pieces < PIECES;
}

/* Publish what is staged, and take blocks, if that can help at all. Return: whether it did. */
static bool make_room(struct mint_pool_end *end, uint32_t dst, uint32_t need)
{
    const struct mint_pool *head = end->map.head;
    uint32_t used = load_relaxed(&end->map.port[dst].used), share = load_relaxed(&head->share);

    if (used > share || need > share - used || end->in_hand == PIECES)
        return false;
    if (end->pieces == 0 && (uint64_t)load_relaxed(&head->free) + end->run.blocks < need)
        return false;
    mint_pool_enter(end);
    mint_pool_settle(end);
    mint_pool_free_released(end);
    if (end->run.blocks < need)
        take_run(end, need);
    mint_pool_leave(end);
    return has_room(end, dst, need);
}

struct mint_rec *mint_pool_reserve(struct mint_pool_end *end, uint32_t dst, uint32_t len)
{
    uint32_t need = MINT_POOL_BLOCKS_FOR(len), start;

    if (dst >= end->map.ports || len > MINT_FRAME_MAX)
        return NULL;
    end->idle = 0;
    end->last_need = need;
    if (!has_room(end, dst, need) && !make_room(end, dst, need))
        return NULL;
    start = end->run.start + end->run.used;
    end->piece[end->pieces++] = (struct mint_pool_piece){.start = start,
                                                         .blocks = (uint16_t)need,
                                                         .need = (uint16_t)need,
                                                         .dst = (uint16_t)dst,
                                                         .state = IN_HAND,
                                                         .in_run = true};
    end->in_hand++;
    end->run.used += need;
    end->waiting[dst] += need;
    return rec_at(end, start);
}

/* The index of the piece in hand that `rec` is; end->pieces: none. */
static uint32_t find_piece(const struct mint_pool_end *end, const struct mint_rec *rec)
{
    uint32_t start = block_of(end, rec);

    for (uint32_t i = end->pieces; i-- > 0;)
        if (end->piece[i].start == start && end->piece[i].state == IN_HAND)
            return i;
    return end->pieces;
}

/* Whether the piece is the last that was cut off the run. */
static bool is_last(const struct mint_pool_end *end, const struct mint_pool_piece *p)
{
    return p->in_run && p->start + p->blocks == end->run.start + end->run.used;
}

void mint_pool_commit(struct mint_pool_end *end, uint32_t dst, struct mint_rec *rec, uint32_t len)
{
    uint32_t i = find_piece(end, rec), need = MINT_POOL_BLOCKS_FOR(len);
    struct mint_pool_piece *p = &end->piece[i];

    if (i == end->pieces)
        return;
    if (len < MINT_FRAME_MIN || len > MINT_FRAME_MAX || need > p->blocks || dst >= end->map.ports) {
        mint_pool_cancel(end, rec);
        return;
    }
    if (is_last(end, p)) { /* what it does not use goes back to the run at once */
        end->run.used -= p->blocks - need;
        end->waiting[p->dst] -= p->blocks - need;
        p->blocks = (uint16_t)need;
    }
    end->waiting[p->dst] -= p->blocks;
    end->waiting[dst] += need;
    p->need = (uint16_t)need;
    p->dst = (uint16_t)dst;
    p->state = STAGED;
    end->in_hand--;
    end->order[end->staged++] = (uint8_t)i;
    end->burst++;
    store_relaxed(&rec->len, len);
    store_relaxed(&end->map.block[p->start].len, len);
    store_relaxed(&end->map.block[p->start].seq, end->seq++);
}

void mint_pool_cancel(struct mint_pool_end *end, struct mint_rec *rec)
{
    uint32_t i = find_piece(end, rec);
    struct mint_pool_piece *p = &end->piece[i];

    if (i == end->pieces)
        return;
    end->in_hand--;
    end->waiting[p->dst] -= p->blocks;
    if (is_last(end, p)) { /* then it is the last of the array, too */
        end->run.used -= p->blocks;
        end->pieces--;
    } else {
        p->state = CANCELLED;
    }
}

/* Give back a run that was not used for a while. */
static void stop_sending(struct mint_pool_end *end)
{
    if (end->run.blocks == 0 || end->in_hand || end->staged)
        return;
    mint_pool_enter(end);
    mint_pool_settle(end);
    mint_pool_drop_run(end);
    mint_pool_leave(end);
}

void mint_pool_publish(struct mint_pool_end *end)
{
    if (end->staged) {
        mint_pool_enter(end);
        mint_pool_settle(end);
        mint_pool_free_released(end);
        provide(end);
        mint_pool_leave(end);
    } else if (end->burst == 0 || is_short(end)) {
        stop_sending(end);
    }
    end->burst = 0;
}

/* --- receiving ------------------------------------------------------------------------------- */

static bool fetch(struct mint_pool_end *end)
{
    /* Pairs with store_release() in mint_pool_chain_link(); a queue that is empty costs no lock. */
    if (load_acquire(&end->map.port[end->port].queued) == 0 ||
        end->helds - end->released == HELD_MAX)
        return false;
    mint_pool_enter(end);
    mint_pool_free_released(end);
    take_batch(end);
    mint_pool_leave(end);
    return end->given < end->helds;
}

const struct mint_rec *mint_pool_next(struct mint_pool_end *end, uint32_t *src, uint32_t *len)
{
    const struct mint_pool_record *rec;

    if (end->given == end->helds && !fetch(end))
        return NULL;
    rec = &end->held[end->given++].rec;
    *src = rec->src;
    *len = rec->len;
    return rec_at(end, rec->block);
}

void mint_pool_release(struct mint_pool_end *end, const struct mint_rec *rec)
{
    uint32_t block = block_of(end, rec);

    /* In order, the next one is where the released ones end. */
    for (uint32_t i = 0, at = end->released; i < end->given; i++, at++) {
        struct mint_pool_held *h = &end->held[at < end->given ? at : at - end->given];

        if (h->rec.block == block && !h->released) {
            h->released = true;
            end->released++;
            return;
        }
    }
}

void mint_pool_recycle(struct mint_pool_end *end)
{
    if (end->released) {
        mint_pool_enter(end);
        mint_pool_free_released(end);
        take_batch(end);
        mint_pool_leave(end);
    }
    if (end->run.blocks && ++end->idle >= IDLE_CALLS)
        stop_sending(end);
}

bool mint_pool_pending(const struct mint_pool_end *end)
{
    /* Pairs with store_release() in mint_pool_chain_link() and mint_pool_rebuild(). */
    return end->given < end->helds || load_acquire(&end->map.port[end->port].queued) > 0;
}

uint64_t mint_pool_progress(const struct mint_pool_end *end, uint32_t dst)
{
    const struct mint_pool_port *q;

    if (dst >= end->map.ports)
        return 0;
    q = &end->map.port[dst];
    /* A port that has nothing to give back is not to blame: then others must give room. */
    if (load_relaxed(&q->used) == 0)
        return load_acquire(&q->released) + load_acquire(&end->map.head->frees);
    return load_acquire(&q->released); /* pairs with store_release() in mint_pool_returned() */
}
