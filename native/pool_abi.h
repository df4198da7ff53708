/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pool_abi.h - what lies in the pool region of layout "shared"; part of the contract of abi.h.
 *
 *   +--------------------------------+ 0
 *   | struct mint_pool       (256 B) | geometry; the lock; what is free; the quota
 *   +--------------------------------+ ports_at
 *   | struct mint_pool_port [ports]  | 128 B each: the port's queue as a receiver; its own line
 *   +--------------------------------+ table_at
 *   | struct mint_block [blocks]     | 32 B each: THE TRUTH about each extent of blocks
 *   +--------------------------------+ bitmap_at
 *   | uint64_t [(blocks + 63) / 64]  | bit set: block taken (or beyond the end); derived
 *   +--------------------------------+ data_at, a multiple of the page size
 *   | 2048 B [blocks]                | the packet buffer: records, one an extent
 *   +--------------------------------+ bytes, page-rounded
 *
 * An extent is a run of blocks that is taken, queued or freed as one; its first block's word says
 * so. The words of its other blocks are 0 (free) whenever the lock is free, so that one store takes
 * or frees an extent of any length, and a region of zeroes is a pool with everything free.
 *
 *   queue of port q                      table
 *   first ------------------------------> [ word: QUEUED, 1 block, 3 -> q; next ] --.
 *                                         [ word: HELD ... ]                        |
 *                                         [ word: QUEUED, 33 blocks, 5 -> q; next ] <
 *   last  ------------------------------> [ word: QUEUED, 1 block, 3 -> q ] <-------'
 *   queued = 3; `next` counts only while another record follows: there is no terminator
 *
 * Who writes what: words, `next`, bitmap, queues and the lines "free" and "quota" whoever holds the
 * lock; `len` and `seq` of a block, and its data, the port that the extent is RESERVED by, without
 * the lock; a port's own line that port. Memory grows with blocks + ports, never with their
 * product: a ring of descriptors for each receiver would need a place for every block.
 */
#ifndef MINT_POOL_ABI_H
#define MINT_POOL_ABI_H

#include "abi.h"

#define MINT_POOL_VERSION 1u
#define MINT_POOL_BLOCK 2048u
/* Blocks that a record with a frame of `len` bytes takes; those of the largest: 33. */
#define MINT_POOL_BLOCKS_FOR(len) ((MINT_REC_BYTES(len) + (MINT_POOL_BLOCK - 1u)) / MINT_POOL_BLOCK)
#define MINT_POOL_REC_BLOCKS MINT_POOL_BLOCKS_FOR(MINT_FRAME_MAX)
#define MINT_POOL_EXTENT_MAX 64u /* blocks of the longest extent: a run taken in advance */
#define MINT_POOL_BLOCKS_MIN 66u /* two of the largest records */
#define MINT_POOL_BLOCKS_MAX (1u << 20)
_Static_assert(MINT_POOL_REC_BLOCKS == 33u, "blocks of the largest record");
_Static_assert(MINT_POOL_BLOCKS_MIN == 2u * MINT_POOL_REC_BLOCKS, "blocks of the smallest pool");

/*
 * The word of an extent's first block.
 *
 *   bits  0..7   enum mint_block_state
 *   bits 16..31  blocks in the extent
 *   bits 32..47  RESERVED: its owner; QUEUED: its sender; HELD: its receiver
 *   bits 48..63  QUEUED: its receiver; HELD: its sender
 *
 *   from \ to     FREE   RESERVED  QUEUED  HELD
 *   FREE           -       yes       no     no    taken by a sender, for one or more records
 *   RESERVED      yes      yes      yes     no    given back; cut up; published
 *   QUEUED        yes       no       -      yes   the channel was closed; taken by its receiver
 *   HELD          yes       no      yes      -    read; put back by a receiver that leaves
 *
 * Prohibited: FREE -> QUEUED and FREE -> HELD (nobody filled it), RESERVED -> HELD (nobody
 * published it), QUEUED -> RESERVED and HELD -> RESERVED (a sender would write under a reader).
 */
enum mint_block_state {
    MINT_BLOCK_FREE = 0,
    MINT_BLOCK_RESERVED = 1,
    MINT_BLOCK_QUEUED = 2,
    MINT_BLOCK_HELD = 3
};
#define MINT_BLOCK_WORD(state, blocks, holder, peer) \
    ((uint64_t)(state) | ((uint64_t)(blocks) << 16) | ((uint64_t)(holder) << 32) | \
     ((uint64_t)(peer) << 48))
#define MINT_BLOCK_STATE(word) ((uint32_t)((word) & 0xffu))
#define MINT_BLOCK_COUNT(word) ((uint32_t)((word) >> 16) & 0xffffu)
#define MINT_BLOCK_HOLDER(word) ((uint32_t)((word) >> 32) & 0xffffu)
#define MINT_BLOCK_PEER(word) ((uint32_t)((word) >> 48))

/* struct mint_block - one block of the packet buffer. */
struct mint_block {
    mint_a64 word; /* stored last (release) when it makes the others count */
    mint_a64 seq;  /* order among the records of one sender */
    mint_a32 len;  /* bytes of frame */
    mint_a32 next; /* derived: block of the next record in its receiver's queue */
    uint8_t reserved[8];
};
_Static_assert(sizeof(struct mint_block) == 32, "block size");
_Static_assert(offsetof(struct mint_block, word) == 0, "block word");
_Static_assert(offsetof(struct mint_block, seq) == 8, "block seq");
_Static_assert(offsetof(struct mint_block, len) == 16, "block len");
_Static_assert(offsetof(struct mint_block, next) == 20, "block next");

/* struct mint_pool_port - what the pool keeps about each port. */
struct mint_pool_port {
    /* line 0: the queue of records for this port; all derived but `released` */
    mint_a32 first;  /* block of the oldest record, if queued > 0 */
    mint_a32 last;   /* block of the newest */
    mint_a32 queued; /* records; also read without the lock, by the receiver */
    mint_a32 used;   /* blocks of records QUEUED for or HELD by this port; read without the lock */
    mint_a64 released; /* records that the port gave back, ever; read without the lock */
    uint8_t pad0[40];
    /* line 1: written by the port itself */
    mint_a64 seq;      /* no record that was visible has a sequence number as high */
    mint_a32 attached; /* 1 from attach to detach; stays 1 when the process dies */
    mint_a32 epoch;    /* processes that have attached, ever */
    uint8_t pad1[48];
};
_Static_assert(sizeof(struct mint_pool_port) == 128, "pool port size");
_Static_assert(offsetof(struct mint_pool_port, queued) == 8, "pool port queued");
_Static_assert(offsetof(struct mint_pool_port, used) == 12, "pool port used");
_Static_assert(offsetof(struct mint_pool_port, released) == 16, "pool port released");
_Static_assert(offsetof(struct mint_pool_port, seq) == 64, "pool port seq");
_Static_assert(offsetof(struct mint_pool_port, attached) == 72, "pool port attached");
_Static_assert(offsetof(struct mint_pool_port, epoch) == 76, "pool port epoch");

/*
 * The lock's word: 0 when it is free, else
 *
 *   bits  0..10  its holder's port + 1
 *   bits 11..30  its holder's epoch: a port's next process has another word, so that whoever found
 *                the old one dead cannot take the lock from the new one
 *   bit  31      somebody sleeps on the word
 */
#define MINT_POOL_LOCK_OWNER 0x7ffu
#define MINT_POOL_LOCK_WAITERS 0x80000000u
#define MINT_POOL_LOCK_WORD(port, epoch) (((port) + 1u) | (((epoch) & 0xfffffu) << 11))
_Static_assert(MINT_PORTS_MAX < MINT_POOL_LOCK_OWNER, "every port fits the lock's word");

/* struct mint_pool - the header of the region. `magic` is stored last (release). */
struct mint_pool {
    /* line 0: written once */
    mint_a64 magic;
    uint32_t version; /* MINT_POOL_VERSION */
    uint32_t ports;
    uint32_t blocks;
    uint32_t block_bytes; /* MINT_POOL_BLOCK */
    uint64_t ports_at;    /* offsets from the start of the region */
    uint64_t table_at;
    uint64_t bitmap_at;
    uint64_t data_at;
    uint64_t bytes;
    /* line 1: the lock */
    mint_a32 lock;
    uint8_t pad0[60];
    /* line 2: changes with every batch */
    mint_a32 free;  /* derived: blocks that are free; read without the lock */
    mint_a32 hint;  /* derived: no block before this one is free */
    mint_a64 frees; /* extents that were freed, ever; read without the lock */
    uint8_t pad1[48];
    /* line 3: changes seldom; read without the lock by every sender */
    mint_a32 live;     /* derived: ports attached */
    mint_a32 share;    /* derived: blocks that records for one port may take */
    mint_a64 rebuilds; /* times that what is derived was made anew from the table */
    mint_a64 damaged;  /* values in here that made no sense and were passed over */
    uint8_t pad2[40];
};
_Static_assert(sizeof(struct mint_pool) == 256, "pool header size");
_Static_assert(offsetof(struct mint_pool, ports_at) == 24, "pool ports_at");
_Static_assert(offsetof(struct mint_pool, bytes) == 56, "pool bytes");
_Static_assert(offsetof(struct mint_pool, lock) == 64, "pool lock");
_Static_assert(offsetof(struct mint_pool, free) == 128, "pool free");
_Static_assert(offsetof(struct mint_pool, frees) == 136, "pool frees");
_Static_assert(offsetof(struct mint_pool, live) == 192, "pool live");
_Static_assert(offsetof(struct mint_pool, share) == 196, "pool share");
_Static_assert(offsetof(struct mint_pool, rebuilds) == 200, "pool rebuilds");
_Static_assert(offsetof(struct mint_pool, damaged) == 208, "pool damaged");

#endif
