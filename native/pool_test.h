/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pool_test.h - places in the critical sections of the pool where a test may have its process die.
 * Without MINT_TEST they are nothing.
 */
#ifndef MINT_POOL_TEST_H
#define MINT_POOL_TEST_H

enum mint_pool_point {
    MINT_POINT_TAKEN,         /* the lock is held, nothing is done */
    MINT_POINT_DROPPED,       /* the lock is free, whoever sleeps on it is not woken */
    MINT_POINT_ALLOC_WORD,    /* an extent is RESERVED, the bitmap says free */
    MINT_POINT_ALLOC_DONE,    /* the handle does not know yet that it has it */
    MINT_POINT_FREE_WORD,     /* an extent is FREE, the bitmap says taken */
    MINT_POINT_FREE_DONE,     /* the receiver's count of blocks still has it */
    MINT_POINT_CUT,           /* some words of a batch are stored */
    MINT_POINT_CUT_DONE,      /* all are; no queue has them */
    MINT_POINT_LINK,          /* some records are linked, and not counted */
    MINT_POINT_LINK_DONE,     /* all are linked */
    MINT_POINT_HOLD,          /* a record is HELD, its queue has it */
    MINT_POINT_HOLD_DONE,     /* some are HELD and unlinked, the progress is not told */
    MINT_POINT_REBUILD,       /* damaged or half-done extents are being cleared */
    MINT_POINT_REBUILD_STORE, /* some queues are stored */
    MINT_POINT_REBUILD_DONE,
    MINT_POINT_ATTACH,   /* part of a predecessor's extents are freed */
    MINT_POINT_ATTACHED, /* the port says attached, its quota is not reckoned */
    MINT_POINT_PUT_BACK, /* some held records are QUEUED again, no queue has them */
    MINT_POINT_FORGET,   /* some queued records are FREE, their queue has them */
    MINT_POINT_DETACH,   /* all is given back, the port says attached */
    MINT_POINTS
};

#ifdef MINT_TEST
#include "pool.h"

/* Called at each point if not NULL. */
/* NOLINTNEXTLINE(cppcoreguidelines-avoid-non-const-global-variables): tests set it */
extern void (*mint_pool_test_hook)(enum mint_pool_point point);
#define MINT_POOL_TEST_DIE(point) \
    do { \
        if (mint_pool_test_hook) \
            mint_pool_test_hook(point); \
    } while (0)

/*
 * mint_pool_test_attach_beside() - mint_pool_attach() over the mapping of another handle of this
 * process, which must be detached later: a thread sanitizer knows addresses, not what lies behind.
 */
int mint_pool_test_attach_beside(struct mint_pool_end **out, const struct mint_pool_end *other,
                                 int fd, uint32_t port, mint_a64 *counter);
#else
#define MINT_POOL_TEST_DIE(point) ((void)0)
#endif

#endif
