/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pooled_abi.h - what lies in the stock region of a port in layout "pooled"; part of the contract
 * of abi.h.
 *
 *   stock region of port p           one per port; written by p alone, mapped read-only by all of
 *                                    p's peers
 *   +------------------------------+ 0
 *   | mint_a64 settled [slots]     | p's own notes: up to where it has taken back what was for q
 *   +------------------------------+ MINT_STOCK_RINGS_AT(slots)
 *   | struct mint_lane_ring [slots]| 4096 B each: the descriptors of p -> 0, p -> 1, ...
 *   +------------------------------+ MINT_STOCK_DATA_AT(slots)
 *   | 128 B [blocks]               | the buffers: records, each at the start of a block
 *   +------------------------------+ MINT_STOCK_DATA_AT(slots) + capacity
 *
 * The channel p -> q is a ring of descriptors. Its positions, states, generations and rules are
 * those of a payload region (abi.h) of capacity MINT_LANE_CAP in which every record is one line
 * long: slot.head and slot.tail grow by MINT_LINE for each descriptor. What lies between the tail
 * of q and the head of p is q's to read, and p leaves its buffers alone.
 */
#ifndef MINT_POOLED_ABI_H
#define MINT_POOLED_ABI_H

#include "abi.h"

#define MINT_LANE_DESCS 512u  /* descriptors of a channel */
#define MINT_LANE_CAP 32768u  /* its capacity, in the unit of positions */
#define MINT_STOCK_BLOCK 128u /* bytes of a block */
#define MINT_STOCK_PAGE 4096u

_Static_assert(MINT_LANE_CAP == MINT_LANE_DESCS * MINT_LINE, "a line for each descriptor");

/* Blocks that a record with a frame of `len` bytes takes; those of the largest: 513. */
#define MINT_STOCK_BLOCKS_FOR(len) \
    ((MINT_REC_BYTES(len) + (MINT_STOCK_BLOCK - 1u)) / MINT_STOCK_BLOCK)
#define MINT_STOCK_REC_BLOCKS MINT_STOCK_BLOCKS_FOR(MINT_FRAME_MAX)
_Static_assert(MINT_STOCK_REC_BLOCKS == 513u, "blocks of the largest record");
_Static_assert(2u * MINT_STOCK_REC_BLOCKS * MINT_STOCK_BLOCK <=
                   ((MINT_CAP_MIN + MINT_STOCK_PAGE - 1u) & ~(MINT_STOCK_PAGE - 1u)),
               "the smallest stock holds two of the largest records");

/*
 * A descriptor: one record.
 *
 *   bits  0..31  the block that it begins at
 *   bits 32..63  bytes of frame; those in the record's header are not used
 *
 * The writer may change it at any time; a reader loads it once and checks it.
 */
#define MINT_DESC(block, len) ((uint64_t)(block) | ((uint64_t)(len) << 32))
#define MINT_DESC_BLOCK(desc) ((uint32_t)(desc))
#define MINT_DESC_LEN(desc) ((uint32_t)((desc) >> 32))

/* struct mint_lane_ring - the descriptors of one channel: one page, written by the sender. */
struct mint_lane_ring {
    mint_a64 desc[MINT_LANE_DESCS];
};
_Static_assert(sizeof(struct mint_lane_ring) == MINT_STOCK_PAGE, "a ring is a page");

#define MINT_STOCK_RINGS_AT(slots) \
    (((size_t)(slots) * sizeof(mint_a64) + MINT_STOCK_PAGE - 1u) & ~((size_t)MINT_STOCK_PAGE - 1u))
#define MINT_STOCK_DATA_AT(slots) \
    (MINT_STOCK_RINGS_AT(slots) + (size_t)(slots) * sizeof(struct mint_lane_ring))
#define MINT_STOCK_BYTES(slots, capacity) (MINT_STOCK_DATA_AT(slots) + (size_t)(capacity))

#endif
