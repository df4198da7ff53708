/* SPDX-License-Identifier: Apache-2.0 */
/* pool_state.c - see pool_state.h; theory of operation in pool.c. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "pool_state.h"
#include "pool_test.h"
#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#define PAGE 4096u
#define RUN_GOOD 7u /* blocks beyond the least that make a run good enough to take */

static uint64_t round_up(uint64_t n, uint64_t to)
{
    return (n + to - 1) / to * to;
}

size_t mint_pool_geometry(uint32_t ports, uint64_t blocks, struct mint_pool *out)
{
    if (ports < 1 || ports > MINT_PORTS_MAX || blocks < MINT_POOL_BLOCKS_MIN ||
        blocks > MINT_POOL_BLOCKS_MAX)
        return 0;
    out->version = MINT_POOL_VERSION;
    out->ports = ports;
    out->blocks = (uint32_t)blocks;
    out->block_bytes = MINT_POOL_BLOCK;
    out->ports_at = sizeof(struct mint_pool);
    out->table_at = out->ports_at + (uint64_t)ports * sizeof(struct mint_pool_port);
    out->bitmap_at = out->table_at + blocks * sizeof(struct mint_block);
    out->data_at = round_up(out->bitmap_at + (blocks + 63u) / 64u * 8u, PAGE);
    out->bytes = round_up(out->data_at + blocks * MINT_POOL_BLOCK, PAGE);
    return (size_t)out->bytes;
}

void mint_pool_state_init(struct mint_pool *h)
{
    struct mint_pool_map m = {.head = h,
                              .port = (struct mint_pool_port *)(void *)((uint8_t *)h + h->ports_at),
                              .ports = h->ports,
                              .blocks = h->blocks};
    mint_a64 *bitmap = (mint_a64 *)(void *)((uint8_t *)h + h->bitmap_at);

    if (m.blocks % 64u)
        store_relaxed(&bitmap[m.blocks / 64u], ~0ull << (m.blocks % 64u));
    store_relaxed(&h->free, m.blocks);
    mint_pool_share_out(&m);
}

static size_t scratch_bytes(const struct mint_pool_map *m)
{
    return m->blocks * sizeof(m->found[0]) + m->ports * sizeof(m->tally[0]);
}

/* Read a header's geometry, where it is one for a region of `bytes`. Return: whether it is. */
static bool read_geometry(const struct mint_pool *h, size_t bytes, struct mint_pool *g)
{
    uint32_t ports = h->ports, blocks = h->blocks; /* once: the rest follows from them */

    *g = (struct mint_pool){0};
    return bytes > 0 && mint_pool_geometry(ports, blocks, g) == bytes && h->version == g->version &&
           h->block_bytes == g->block_bytes && h->ports_at == g->ports_at &&
           h->table_at == g->table_at && h->bitmap_at == g->bitmap_at && h->data_at == g->data_at &&
           h->bytes == g->bytes;
}

int mint_pool_map_init(struct mint_pool_map *m, void *region, size_t bytes)
{
    struct mint_pool *h = region;
    struct mint_pool g;
    uint8_t *base = region;
    void *scratch;

    /* Pairs with store_release() in mint_pool_format(). */
    if (load_acquire(&h->magic) != MINT_POOL_MAGIC)
        return -EPROTO;
    if (!read_geometry(h, bytes, &g))
        return -EPROTO;
    m->head = h;
    m->ports = g.ports;
    m->blocks = g.blocks;
    m->port = (struct mint_pool_port *)(void *)(base + g.ports_at);
    m->block = (struct mint_block *)(void *)(base + g.table_at);
    m->bitmap = (mint_a64 *)(void *)(base + g.bitmap_at);
    m->data = base + g.data_at;
    m->bytes = bytes;
    /* Taken now, so that a rebuild cannot fail; not committed before it is used. */
    scratch = mmap(NULL, scratch_bytes(m), PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (scratch == MAP_FAILED)
        return -ENOMEM;
    m->found = scratch;
    m->tally = (struct mint_pool_tally *)(m->found + m->blocks);
    return 0;
}

void mint_pool_map_fini(struct mint_pool_map *m)
{
    munmap(m->found, scratch_bytes(m));
}

void mint_pool_damage(struct mint_pool_map *m)
{
    store_relaxed(&m->head->damaged, load_relaxed(&m->head->damaged) + 1);
}

/* --- the bitmap ------------------------------------------------------------------------------ */

/* Set or clear bits. Return: how many of them changed. */
static uint32_t mark(struct mint_pool_map *m, uint32_t start, uint32_t blocks, bool taken)
{
    uint32_t changed = 0;

    while (blocks > 0) {
        uint32_t shift = start % 64u, n = 64u - shift < blocks ? 64u - shift : blocks;
        uint64_t bits = (n == 64u ? ~0ull : (1ull << n) - 1) << shift;
        mint_a64 *word = &m->bitmap[start / 64u];
        uint64_t old = load_relaxed(word), now = taken ? old | bits : old & ~bits;

        store_relaxed(word, now);
        changed += (uint32_t)__builtin_popcountll(old ^ now);
        start += n;
        blocks -= n;
    }
    return changed;
}

/* The first block at or after `at` whose bit differs from `taken`; m->blocks: none. */
static uint32_t skip(const struct mint_pool_map *m, uint32_t at, bool taken)
{
    uint64_t flip = taken ? ~0ull : 0ull;

    while (at < m->blocks) {
        uint64_t differ = (load_relaxed(&m->bitmap[at / 64u]) ^ flip) >> (at % 64u);

        if (differ) {
            at += (uint32_t)__builtin_ctzll(differ);
            return at < m->blocks ? at : m->blocks;
        }
        at = (at / 64u + 1u) * 64u;
    }
    return m->blocks;
}

/* --- taking and freeing ---------------------------------------------------------------------- */

/* The lowest run that is good enough, else the longest that will do; its length, 0: none. */
static uint32_t find_run(struct mint_pool_map *m, uint32_t min, uint32_t want, uint32_t *start)
{
    uint32_t good = min + RUN_GOOD < want ? min + RUN_GOOD : want, best = 0;
    uint32_t at = skip(m, load_relaxed(&m->head->hint), true);

    store_relaxed(&m->head->hint, at); /* nothing is free before the first that we found */
    while (at < m->blocks && best < good) {
        uint32_t end = skip(m, at, false), n = end - at < want ? end - at : want;

        if (n >= min && n > best) {
            best = n;
            *start = at;
        }
        at = skip(m, end, true);
    }
    return best;
}

uint32_t mint_pool_alloc(struct mint_pool_map *m, uint32_t port, uint32_t min, uint32_t want,
                         uint32_t *start)
{
    for (int tries = 0; tries < 2; tries++) {
        uint32_t n = find_run(m, min, want, start);

        if (n == 0)
            return 0;
        if (load_relaxed(&m->block[*start].word) == 0) {
            store_release(&m->block[*start].word, MINT_BLOCK_WORD(MINT_BLOCK_RESERVED, n, port, 0));
            MINT_POOL_TEST_DIE(MINT_POINT_ALLOC_WORD);
            store_relaxed(&m->head->free, load_relaxed(&m->head->free) - mark(m, *start, n, true));
            MINT_POOL_TEST_DIE(MINT_POINT_ALLOC_DONE);
            return n;
        }
        mint_pool_damage(m); /* the bitmap says free, the table does not: the table is right */
        mint_pool_rebuild(m);
    }
    return 0;
}

void mint_pool_unmark(struct mint_pool_map *m, uint32_t start, uint32_t blocks)
{
    uint32_t n = mark(m, start, blocks, false);

    store_relaxed(&m->head->free, load_relaxed(&m->head->free) + n);
    if (start < load_relaxed(&m->head->hint))
        store_relaxed(&m->head->hint, start);
    store_relaxed(&m->head->frees, load_relaxed(&m->head->frees) + 1);
}

void mint_pool_free(struct mint_pool_map *m, uint32_t start, uint32_t blocks)
{
    store_release(&m->block[start].word, 0);
    MINT_POOL_TEST_DIE(MINT_POINT_FREE_WORD);
    mint_pool_unmark(m, start, blocks);
    MINT_POOL_TEST_DIE(MINT_POINT_FREE_DONE);
}

/* --- queues ---------------------------------------------------------------------------------- */

void mint_pool_chain_add(struct mint_pool_map *m, struct mint_pool_chain *c, uint32_t block,
                         uint32_t blocks)
{
    if (c->records)
        store_relaxed(&m->block[c->last].next, block);
    else
        c->first = block;
    c->last = block;
    c->records++;
    c->blocks += blocks;
}

bool mint_pool_chain_link(struct mint_pool_map *m, const struct mint_pool_chain *c)
{
    struct mint_pool_port *q = &m->port[c->dst];
    uint32_t queued = load_relaxed(&q->queued), last = load_relaxed(&q->last);

    if (queued > 0 && last >= m->blocks) {
        mint_pool_damage(m);
        mint_pool_rebuild(m); /* the words are stored: it links this chain and all others */
        return false;
    }
    if (queued > 0)
        store_relaxed(&m->block[last].next, c->first);
    else
        store_relaxed(&q->first, c->first);
    store_relaxed(&q->last, c->last);
    MINT_POOL_TEST_DIE(MINT_POINT_LINK);
    store_relaxed(&q->used, load_relaxed(&q->used) + c->blocks);
    /* Pairs with load_acquire() in mint_pool_pending(). */
    store_release(&q->queued, queued + c->records);
    return true;
}

/* The extent that begins at a block. Return: whether its word makes sense. */
static bool read_extent(const struct mint_pool_map *m, uint32_t start, struct mint_pool_extent *e)
{
    uint64_t word = load_acquire(&m->block[start].word);

    *e = (struct mint_pool_extent){.start = start,
                                   .blocks = MINT_BLOCK_COUNT(word),
                                   .state = MINT_BLOCK_STATE(word),
                                   .holder = MINT_BLOCK_HOLDER(word),
                                   .peer = MINT_BLOCK_PEER(word)};
    return e->state >= MINT_BLOCK_RESERVED && e->state <= MINT_BLOCK_HELD && e->blocks > 0 &&
           e->blocks <= MINT_POOL_EXTENT_MAX && e->blocks <= m->blocks - start &&
           e->holder < m->ports && e->peer < m->ports;
}

/* The frame length of a record. Return: whether it is one that the extent can hold. */
static bool read_len(const struct mint_pool_map *m, const struct mint_pool_extent *e, uint32_t *len)
{
    *len = load_relaxed(&m->block[e->start].len);
    return *len >= MINT_FRAME_MIN && *len <= MINT_FRAME_MAX &&
           MINT_POOL_BLOCKS_FOR(*len) <= e->blocks;
}

/* A record that is queued for `port`. Return: whether it is one. */
static bool read_record(const struct mint_pool_map *m, uint32_t port, uint32_t at,
                        struct mint_pool_record *rec)
{
    struct mint_pool_extent e;

    if (at >= m->blocks || !read_extent(m, at, &e) || e.state != MINT_BLOCK_QUEUED ||
        e.peer != port || !read_len(m, &e, &rec->len))
        return false;
    rec->block = at;
    rec->blocks = e.blocks;
    rec->src = e.holder;
    return true;
}

uint32_t mint_pool_take(struct mint_pool_map *m, uint32_t port, struct mint_pool_record *rec,
                        uint32_t max)
{
    struct mint_pool_port *q = &m->port[port];
    uint32_t at = load_relaxed(&q->first), queued = load_relaxed(&q->queued), n = 0;
    bool anew = false;

    while (n < max && queued > 0) {
        if (!read_record(m, port, at, &rec[n])) {
            mint_pool_damage(m);
            if (!anew)
                mint_pool_rebuild(m);
            at = load_relaxed(&q->first);
            queued = anew ? 0 : load_relaxed(&q->queued);
            anew = true;
            continue;
        }
        store_release(&m->block[at].word,
                      MINT_BLOCK_WORD(MINT_BLOCK_HELD, rec[n].blocks, port, rec[n].src));
        MINT_POOL_TEST_DIE(MINT_POINT_HOLD);
        at = load_relaxed(&m->block[at].next);
        queued--;
        n++;
    }
    store_relaxed(&q->first, at);
    MINT_POOL_TEST_DIE(MINT_POINT_HOLD_DONE);
    store_relaxed(&q->queued, queued);
    return n;
}

void mint_pool_returned(struct mint_pool_map *m, uint32_t port, uint32_t records, uint32_t blocks)
{
    struct mint_pool_port *q = &m->port[port];
    uint32_t used = load_relaxed(&q->used);

    store_relaxed(&q->used, used > blocks ? used - blocks : 0);
    /* Pairs with load_acquire() in mint_pool_progress(). */
    store_release(&q->released, load_relaxed(&q->released) + records);
}

/* --- making it all anew ---------------------------------------------------------------------- */

bool mint_pool_each(struct mint_pool_map *m, uint32_t *at, struct mint_pool_extent *e)
{
    for (; *at < m->blocks; ++*at) {
        if (load_relaxed(&m->block[*at].word) == 0)
            continue;
        if (read_extent(m, *at, e)) {
            *at += e->blocks;
            return true;
        }
        mint_pool_damage(m);
        store_relaxed(&m->block[*at].word, 0);
    }
    return false;
}

/* What a rebuild finds in one extent. Return: whether the extent stays. */
static bool tally(struct mint_pool_map *m, const struct mint_pool_extent *e, uint32_t *found)
{
    uint32_t len;

    for (uint32_t i = 1; i < e->blocks; i++) /* a batch may have been half cut */
        if (load_relaxed(&m->block[e->start + i].word) != 0)
            store_relaxed(&m->block[e->start + i].word, 0);
    if (e->state == MINT_BLOCK_HELD)
        m->tally[e->holder].used += e->blocks;
    if (e->state != MINT_BLOCK_QUEUED)
        return true;
    if (!read_len(m, e, &len)) {
        mint_pool_damage(m);
        store_relaxed(&m->block[e->start].word, 0);
        return false;
    }
    m->found[(*found)++] = (struct mint_pool_found){
        .seq = load_relaxed(&m->block[e->start].seq), .block = e->start, .dst = e->peer};
    m->tally[e->peer].used += e->blocks;
    return true;
}

static void sift(struct mint_pool_found *f, uint32_t root, uint32_t n)
{
    struct mint_pool_found v = f[root];

    for (uint32_t child; (child = 2 * root + 1) < n; root = child) {
        child += child + 1 < n && f[child].seq < f[child + 1].seq;
        if (f[child].seq <= v.seq)
            break;
        f[root] = f[child];
    }
    f[root] = v;
}

/* Heap sort by seq: needs no memory and no system call, wherever a rebuild is needed. */
static void sort_found(struct mint_pool_found *f, uint32_t n)
{
    for (uint32_t i = n / 2; i-- > 0;)
        sift(f, i, n);
    for (uint32_t i = n; i-- > 1;) {
        struct mint_pool_found top = f[0];

        f[0] = f[i];
        f[i] = top;
        sift(f, 0, i);
    }
}

/* Go through the table: bitmap and scratch. Return: records that are queued. */
static uint32_t scan(struct mint_pool_map *m)
{
    uint32_t found = 0, at = 0, taken = 0, words = (m->blocks + 63u) / 64u;
    struct mint_pool_extent e;

    for (uint32_t i = 0; i < words; i++)
        store_relaxed(&m->bitmap[i], 0);
    mark(m, m->blocks, words * 64u - m->blocks, true);
    while (mint_pool_each(m, &at, &e)) {
        if (tally(m, &e, &found))
            taken += mark(m, e.start, e.blocks, true);
        MINT_POOL_TEST_DIE(MINT_POINT_REBUILD);
    }
    store_relaxed(&m->head->free, m->blocks - taken);
    store_relaxed(&m->head->hint, 0);
    return found;
}

void mint_pool_rebuild(struct mint_pool_map *m)
{
    uint32_t n;

    memset(m->tally, 0, m->ports * sizeof(m->tally[0]));
    n = scan(m);
    sort_found(m->found, n);
    for (uint32_t i = 0; i < n; i++) {
        struct mint_pool_tally *t = &m->tally[m->found[i].dst];

        if (t->queued++ == 0)
            t->first = m->found[i].block;
        else
            store_relaxed(&m->block[t->last].next, m->found[i].block);
        t->last = m->found[i].block;
    }
    /* One store each: a port that looks without the lock never sees a queue that is not empty as
     * empty, or it would go to sleep with nobody left to wake it. */
    for (uint32_t p = 0; p < m->ports; p++) {
        store_relaxed(&m->port[p].first, m->tally[p].first);
        store_relaxed(&m->port[p].last, m->tally[p].last);
        store_relaxed(&m->port[p].used, m->tally[p].used);
        MINT_POOL_TEST_DIE(MINT_POINT_REBUILD_STORE);
        store_release(&m->port[p].queued, m->tally[p].queued);
    }
    mint_pool_share_out(m);
    store_relaxed(&m->head->rebuilds, load_relaxed(&m->head->rebuilds) + 1);
    MINT_POOL_TEST_DIE(MINT_POINT_REBUILD_DONE);
}

/*
 * A port's share: with `live` ports attached, all receivers but one together can have all but an
 * eighth of the pool (or room for one largest record, if that is more), so the last one always
 * finds room. Two ports: seven eighths for each direction alone. A share is never less than a
 * largest record; in a pool with less than about 33 blocks a port the shares overlap, and the last
 * receiver may have to wait.
 */
void mint_pool_share_out(struct mint_pool_map *m)
{
    uint32_t live = 0, keep = m->blocks / 8u, share;

    for (uint32_t p = 0; p < m->ports; p++)
        live += load_relaxed(&m->port[p].attached) == 1;
    if (live < 2)
        live = 2;
    if (keep < MINT_POOL_REC_BLOCKS)
        keep = MINT_POOL_REC_BLOCKS;
    share = (m->blocks - keep) / (live - 1);
    store_relaxed(&m->head->live, live);
    store_relaxed(&m->head->share, share > MINT_POOL_REC_BLOCKS ? share : MINT_POOL_REC_BLOCKS);
}
