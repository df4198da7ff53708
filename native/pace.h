/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pace.h - a token bucket for what others can cause: MINT_PACE_BURST times at once, and then once in
 * MINT_PACE_NS.
 */
#ifndef MINT_PACE_H
#define MINT_PACE_H

#include <stdbool.h>
#include <stdint.h>

#define MINT_PACE_BURST 100u
#define MINT_PACE_NS 10000000000ull

/* All zero at first. */
struct mint_pace {
    uint64_t paid_ns; /* until when what was spent has been paid back */
    uint32_t spent;
    uint32_t left_out; /* how often it was refused; for the caller to tell and reset */
};

/* Return: whether it may be once more; what may not is counted. */
static inline bool mint_pace(struct mint_pace *p, uint64_t now_ns)
{
    uint64_t back = (now_ns - p->paid_ns) / MINT_PACE_NS;

    if (back >= p->spent) {
        p->spent = 0;
        p->paid_ns = now_ns;
    } else {
        p->spent -= (uint32_t)back;
        p->paid_ns += back * MINT_PACE_NS;
    }
    if (p->spent == MINT_PACE_BURST) {
        p->left_out++;
        return false;
    }
    p->spent++;
    return true;
}

#endif
