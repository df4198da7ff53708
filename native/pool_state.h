/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pool_state.h - the state of the pool in shared memory: blocks taken and freed, queues, and how
 * all that is derived is made anew from the table. Theory of operation in pool.c.
 *
 * Each function here needs the lock, but for mint_pool_map_*() and those that say so.
 */
#ifndef MINT_POOL_STATE_H
#define MINT_POOL_STATE_H

#include "pool_abi.h"
#include <stdbool.h>

/* A record that a rebuild found queued; private scratch. */
struct mint_pool_found {
    uint64_t seq;
    uint32_t block;
    uint32_t dst;
};

/* A queue as a rebuild makes it; private scratch. */
struct mint_pool_tally {
    uint32_t first, last, queued, used;
};

/*
 * struct mint_pool_map - where things are in this process. Counts and addresses were checked once
 * against the size of the file and are never read from shared memory again.
 */
struct mint_pool_map {
    struct mint_pool *head;
    struct mint_pool_port *port;
    struct mint_block *block;
    mint_a64 *bitmap;
    uint8_t *data;
    uint32_t ports;
    uint32_t blocks;
    size_t bytes;
    struct mint_pool_found *found; /* [blocks]; scratch of a rebuild, committed only by one */
    struct mint_pool_tally *tally; /* [ports]; the same */
};

/* Fill in a pool's geometry. Return: the bytes of its region, 0 when out of bounds. Lock-free. */
size_t mint_pool_geometry(uint32_t ports, uint64_t blocks, struct mint_pool *out);

/* Write the state of a fresh pool, whose geometry is filled in and all else zero. */
void mint_pool_state_init(struct mint_pool *h);

/*
 * mint_pool_map_init() - check a mapped region and note where things are. Lock-free.
 * Return: 0, -EPROTO, -ENOMEM.
 */
int mint_pool_map_init(struct mint_pool_map *m, void *region, size_t bytes);
/* Give the scratch back; the region stays mapped. */
void mint_pool_map_fini(struct mint_pool_map *m);

/* Note a value that made no sense. */
void mint_pool_damage(struct mint_pool_map *m);

/*
 * mint_pool_alloc() - take the lowest run of blocks as one RESERVED extent.
 * @min:   blocks that it must have
 * @want:  blocks that it should have, at most MINT_POOL_EXTENT_MAX
 * @start: where to store its first block
 * Return: blocks that it has; 0: there is no such run.
 */
uint32_t mint_pool_alloc(struct mint_pool_map *m, uint32_t port, uint32_t min, uint32_t want,
                         uint32_t *start);

/* Free an extent by its word, and its blocks in the bitmap. */
void mint_pool_free(struct mint_pool_map *m, uint32_t start, uint32_t blocks);

/* Free blocks in the bitmap alone: their words are zero, or about to be. */
void mint_pool_unmark(struct mint_pool_map *m, uint32_t start, uint32_t blocks);

/* A chain of records for one port, to be put at the end of its queue; their words say QUEUED. */
struct mint_pool_chain {
    uint32_t dst, first, last, records, blocks;
};
/* Add a record to a chain. */
void mint_pool_chain_add(struct mint_pool_map *m, struct mint_pool_chain *c, uint32_t block,
                         uint32_t blocks);
/*
 * mint_pool_chain_link() - put a chain of at least one record at the end of its queue.
 * Return: false when the queue made no sense: then all queues have been made anew from the table,
 * and hold this chain and any other whose words say QUEUED.
 */
bool mint_pool_chain_link(struct mint_pool_map *m, const struct mint_pool_chain *c);

/* struct mint_pool_record - a record's place, checked. */
struct mint_pool_record {
    uint32_t block, blocks, src, len;
};

/*
 * mint_pool_take() - take the oldest records from a port's queue: HELD from now on.
 * @rec: where to store up to `max`
 * Return: how many.
 */
uint32_t mint_pool_take(struct mint_pool_map *m, uint32_t port, struct mint_pool_record *rec,
                        uint32_t max);

/* Reckon with records that `port` held and that were mint_pool_free()d. */
void mint_pool_returned(struct mint_pool_map *m, uint32_t port, uint32_t records, uint32_t blocks);

/* The extents of the table, from block 0 on: */
struct mint_pool_extent {
    uint32_t start, blocks, state, holder, peer;
};
/*
 * mint_pool_each() - the first extent at or after *at that is not free; moves *at behind it.
 * Return: whether there is one.
 */
bool mint_pool_each(struct mint_pool_map *m, uint32_t *at, struct mint_pool_extent *e);

/* Make all that is derived anew: bitmap, queues, counts, quota. */
void mint_pool_rebuild(struct mint_pool_map *m);

/* Reckon the quota anew, after a port came or went. */
void mint_pool_share_out(struct mint_pool_map *m);

#endif
