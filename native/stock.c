/* SPDX-License-Identifier: Apache-2.0 */
/*
 * stock.c - see stock.h.
 *
 * Theory of operation
 *
 * A bitmap says which blocks are free. Buffers are not searched for one by one: a *run* of free
 * blocks is taken from the bitmap and cut up from its start, which costs an addition for each
 * buffer. The next run is the lowest that will do, and no longer than RUN blocks: so what was given
 * back lately is used again soon, while it is in the cache, and what was never needed stays
 * untouched, and so uncommitted, at the high end. (A place that only moves on, as in a ring, would
 * go through all of the pool however little of it is in use.)
 *
 * A buffer is a run of blocks of just the size of its record. Those of one size are neighbours more
 * often than not, and blocks of free neighbours are one run again without anything being merged. A
 * search that failed is not repeated for as many blocks before something was given back.
 */
#include "stock.h"
#include <errno.h>
#include <stdlib.h>

#define WORD 64u
#define RUN (4u * MINT_STOCK_REC_BLOCKS)

int mint_stock_init(struct mint_stock *s, uint32_t blocks)
{
    uint32_t words = (blocks + WORD - 1) / WORD;

    *s = (struct mint_stock){.blocks = blocks, .free = blocks, .failed = UINT32_MAX};
    s->bits = calloc(words, sizeof(s->bits[0]));
    s->extent = calloc(blocks, sizeof(s->extent[0]));
    if (!s->bits || !s->extent) {
        mint_stock_free(s);
        return -ENOMEM;
    }
    for (uint32_t i = 0; i < words; i++)
        s->bits[i] = blocks - i * WORD >= WORD ? UINT64_MAX : (1ull << blocks % WORD) - 1;
    return 0;
}

void mint_stock_free(struct mint_stock *s)
{
    free(s->bits);
    free(s->extent);
    s->bits = NULL;
    s->extent = NULL;
}

/* Set or clear the bits of [from, to). */
static void mark(struct mint_stock *s, uint32_t from, uint32_t to, bool is_free)
{
    while (from < to) {
        uint32_t word = from / WORD, first = from % WORD, n = WORD - first;
        uint64_t mask;

        if (n > to - from)
            n = to - from;
        mask = (n == WORD ? UINT64_MAX : (1ull << n) - 1) << first;
        if (is_free)
            s->bits[word] |= mask;
        else
            s->bits[word] &= ~mask;
        from += n;
    }
}

/* The first block of [from, to) whose bit is `wanted`; `to`: there is none. */
static uint32_t next_bit(const struct mint_stock *s, uint32_t from, uint32_t to, bool wanted)
{
    uint64_t mask = UINT64_MAX << from % WORD;

    for (uint32_t word = from / WORD; word * WORD < to; word++) {
        uint64_t bits = (wanted ? s->bits[word] : ~s->bits[word]) & mask;

        if (bits) {
            uint32_t found = word * WORD + (uint32_t)__builtin_ctzll(bits);

            return found < to ? found : to;
        }
        mask = UINT64_MAX;
    }
    return to;
}

/* Give [from, to) back to the bitmap. */
static void release(struct mint_stock *s, uint32_t from, uint32_t to)
{
    mark(s, from, to, true);
    if (from / WORD < s->lowest)
        s->lowest = from / WORD;
}

bool mint_stock_refill(struct mint_stock *s, uint32_t need)
{
    uint32_t most = need > RUN ? need : RUN, from;

    if (need >= s->failed)
        return false;
    if (s->run < s->run_end)
        release(s, s->run, s->run_end);
    s->run = s->run_end = 0;
    from = next_bit(s, s->lowest * WORD, s->blocks, true);
    s->lowest = from / WORD;
    while (s->blocks - from >= need) {
        uint32_t to = next_bit(s, from, s->blocks - from < most ? s->blocks : from + most, false);

        if (to - from >= need) {
            mark(s, from, to, false);
            s->run = from;
            s->run_end = to;
            return true;
        }
        from = next_bit(s, to, s->blocks, true);
    }
    s->failed = need;
    return false;
}

void mint_stock_return(struct mint_stock *s, uint32_t from, uint32_t to)
{
    release(s, from, to);
    s->free += to - from;
    s->failed = UINT32_MAX;
}

bool mint_stock_claim(struct mint_stock *s, uint32_t block, uint32_t need)
{
    if (block >= s->blocks || need > s->blocks - block)
        return false;
    if (s->extent[block].refs) {
        if (s->extent[block].blocks != need || s->extent[block].refs >= MINT_PORTS_MAX)
            return false;
        s->extent[block].refs++;
        return true;
    }
    if (next_bit(s, block, block + need, false) != block + need)
        return false;
    mark(s, block, block + need, false);
    s->free -= need;
    s->extent[block].refs = 1;
    s->extent[block].blocks = (uint16_t)need;
    return true;
}
