/* SPDX-License-Identifier: Apache-2.0 */
/*
 * stock.h - which blocks of a sender's pool are free, and who uses the others (layout "pooled").
 * Private to the sender's process; nothing here lies in shared memory. Theory in stock.c.
 */
#ifndef MINT_STOCK_H
#define MINT_STOCK_H

#include "pooled_abi.h"
#include <stdbool.h>

#define MINT_STOCK_NONE UINT32_MAX

/* struct mint_extent - a buffer, at the number of its first block. */
struct mint_extent {
    uint16_t refs; /* receivers that it waits for, and 1 while it is in hand; 0: no buffer here */
    uint16_t blocks;
};

struct mint_stock {
    uint32_t blocks;  /* all that there are */
    uint32_t free;    /* of these free, the run included */
    uint32_t run;     /* blocks [run, run_end) are cut up for the next buffers */
    uint32_t run_end; /* run == run_end: there is none */
    uint32_t lowest;  /* no word of the bitmap before this one has a free block */
    uint32_t failed;  /* so many blocks in a row were not there, and nothing was freed since */
    uint64_t *bits;   /* a bit for each block: free, and not in the run */
    struct mint_extent *extent;
};

/* All blocks free. Return: 0 or -ENOMEM. */
int mint_stock_init(struct mint_stock *s, uint32_t blocks);
void mint_stock_free(struct mint_stock *s);

/* The slow path of mint_stock_take(): another run of at least `need` blocks. */
bool mint_stock_refill(struct mint_stock *s, uint32_t need);
/* Blocks [from, to), whose buffers nobody refers to any more, are free. */
void mint_stock_return(struct mint_stock *s, uint32_t from, uint32_t to);

/* Whether mint_stock_take() needs no search. */
static inline bool mint_stock_at_hand(const struct mint_stock *s, uint32_t need)
{
    return s->run_end - s->run >= need;
}

/*
 * mint_stock_take() - a buffer of `need` blocks in a row, with one reference: the caller's.
 * Return: its first block; MINT_STOCK_NONE: there is none.
 */
static inline uint32_t mint_stock_take(struct mint_stock *s, uint32_t need)
{
    uint32_t block;

    if (!mint_stock_at_hand(s, need) && !mint_stock_refill(s, need))
        return MINT_STOCK_NONE;
    block = s->run;
    s->run += need;
    s->free -= need;
    s->extent[block].refs = 1;
    s->extent[block].blocks = (uint16_t)need;
    return block;
}

/* Give back what a buffer has beyond `need` blocks. */
static inline void mint_stock_trim(struct mint_stock *s, uint32_t block, uint32_t need)
{
    uint32_t had = s->extent[block].blocks;

    if (had == need)
        return;
    s->extent[block].blocks = (uint16_t)need;
    if (s->run == block + had) { /* it was the last to be cut off */
        s->run = block + need;
        s->free += had - need;
    } else {
        mint_stock_return(s, block + need, block + had);
    }
}

/* One more reference, one less. */
static inline void mint_stock_hold(struct mint_stock *s, uint32_t block)
{
    s->extent[block].refs++;
}

static inline void mint_stock_drop(struct mint_stock *s, uint32_t block)
{
    if (--s->extent[block].refs == 0)
        mint_stock_return(s, block, block + s->extent[block].blocks);
}

/*
 * mint_stock_claim() - one reference to a buffer that a predecessor took, at [block, block + need).
 * Return: false: it can't be, for it lies outside or across another one.
 */
bool mint_stock_claim(struct mint_stock *s, uint32_t block, uint32_t need);

#endif
