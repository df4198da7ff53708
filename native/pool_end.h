/* SPDX-License-Identifier: Apache-2.0 */
/* pool_end.h - what pool.c and pool_attach.c share; nobody else includes it. */
#ifndef MINT_POOL_END_H
#define MINT_POOL_END_H

#include "pool.h"
#include "pool_lock.h"
#include "pool_state.h"
#include "pool_test.h"

#define PIECES 64u    /* records that may be in hand or staged at once */
#define HELD_MAX 128u /* records that may be taken and not yet recycled */
#define BATCH 32u     /* records taken from the queue at once */
#define AHEAD 31u     /* blocks taken beyond what is asked for */
#define BUSY 8u       /* records of a batch that make it worth keeping a run for the next */
#define IDLE_CALLS 8u /* recycles without a reserve between them after which a run is given back */

enum mint_pool_piece_state { IN_HAND, STAGED, CANCELLED };

/* A record between reserve and publish. */
struct mint_pool_piece {
    uint32_t start;
    uint16_t blocks; /* what it was given */
    uint16_t need;   /* what it uses; the rest is freed at publish */
    uint16_t dst;
    uint8_t state; /* enum mint_pool_piece_state */
    bool in_run;   /* part of the run; else an extent of its own */
};

/* A record between next and recycle. */
struct mint_pool_held {
    struct mint_pool_record rec;
    bool released;
};

struct mint_pool_end {
    struct mint_pool_map map;
    struct mint_pool_lock lock;
    uint32_t port;
    bool owns_map;

    /* sending */
    uint64_t seq; /* of the next record */
    struct {
        uint32_t start, blocks, used; /* one RESERVED extent; the first `used` are in pieces */
    } run;
    uint32_t pieces, staged, in_hand;
    uint32_t burst;                       /* records committed since the last publish */
    uint32_t last_need;                   /* blocks of the last record asked for */
    uint32_t idle;                        /* recycles since the last reserve */
    struct mint_pool_piece piece[PIECES]; /* those in the run by rising address */
    uint8_t order[PIECES];                /* the staged ones, in order of commit */

    /* receiving */
    uint32_t helds, given, released;
    struct mint_pool_held held[HELD_MAX];

    uint32_t waiting[]; /* by destination: blocks in hand or staged */
};

/* Take the lock; if its holder died with it, make good what that one left half-done. */
static inline void mint_pool_enter(struct mint_pool_end *end)
{
    bool stolen = mint_pool_lock_take(&end->lock);

    MINT_POOL_TEST_DIE(MINT_POINT_TAKEN);
    if (stolen)
        mint_pool_rebuild(&end->map);
}

static inline void mint_pool_leave(struct mint_pool_end *end)
{
    mint_pool_lock_drop(&end->lock);
}

/* These need the lock. */
/* Publish what is staged; what is in hand stays so. The run has no pieces afterwards. */
void mint_pool_settle(struct mint_pool_end *end);
/* Free the run; it has no pieces. */
void mint_pool_drop_run(struct mint_pool_end *end);
/* Free what was released. */
void mint_pool_free_released(struct mint_pool_end *end);

#endif
