/* SPDX-License-Identifier: Apache-2.0 */
/*
 * hold.h - a frame that waits for room in its channel, and how long it may.
 *
 * A frame that finds its channel full is held, and the node's device is not read meanwhile: its
 * queue fills and the node's own stack feels it. That is right as long as nobody else's traffic
 * waits behind it. When frames for other receivers were seen lately, holding is paid from a budget
 * (a tenth of the time); with the budget spent the frame is dropped and counted. What a sleep took
 * beyond it is owed, and saved again before the next frame is waited with.
 *
 * What lies behind a held frame is not seen, so that nobody else's was seen proves nothing in the
 * long run. No frame is therefore held for longer than MINT_HOLD_STALLS times the stall time-out,
 * however its receiver gets on; after that, others count as seen.
 */
#ifndef MINT_HOLD_H
#define MINT_HOLD_H

#include "port.h"

#define MINT_HOLD_STALLS 5u

struct mint_hold {
    bool on;        /* a frame for `peer` waits */
    uint32_t peer;  /* whose channel was full last; UINT32_MAX: nobody's yet */
    uint64_t began; /* when its waiting began; 0: not yet */
    uint64_t since; /* up to when it was paid */
    int64_t budget; /* ns that frames may still wait while other receivers have traffic */
    uint64_t budget_at;
    uint64_t others_at; /* when a frame last went to another receiver than the full one, or
                           might have */
};

/* A frame for `peer` was answered by MINT_FULL. */
void mint_hold_full(struct mint_hold *h, uint32_t peer);
/* A frame went to `peer`, or (UINT32_MAX) was settled in another way; nothing waits now. */
void mint_hold_settled(struct mint_hold *h, uint32_t peer);
/* The held frame was tried once more and still has no room. Return: false: it was given up. */
bool mint_hold_wait(struct mint_hold *h, struct mint_port *port);
/* Nanoseconds until the held frame needs attention without an event. */
int64_t mint_hold_timeout(struct mint_hold *h, struct mint_port *port);

#endif
