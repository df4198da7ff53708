/* SPDX-License-Identifier: Apache-2.0 */
/* hold.c - see hold.h. */
#include "hold.h"
#include "clock.h"

#define BUDGET_MAX (5ll * 1000000ll)
#define OTHERS_NS (20ull * 1000000ull)

void mint_hold_full(struct mint_hold *h, uint32_t peer)
{
    if (!h->on)
        h->began = 0;
    h->on = true;
    h->peer = peer;
}

void mint_hold_settled(struct mint_hold *h, uint32_t peer)
{
    if (h->peer != UINT32_MAX && peer != UINT32_MAX && peer != h->peer)
        h->others_at = now_ns(); /* traffic that holding frames for the full channel delays */
    h->on = false;
}

/* Whether the held frame may go on waiting, although others' frames may be behind it. */
static bool may_wait(struct mint_hold *h, uint64_t most, uint64_t now)
{
    uint64_t held;

    h->budget += (int64_t)((now - h->budget_at) / 10);
    if (h->budget > BUDGET_MAX)
        h->budget = BUDGET_MAX;
    h->budget_at = now;
    if (!h->began)
        h->began = h->since = now;
    held = now - h->since;
    h->since = now;
    if (now - h->began >= most) {
        h->others_at = now;
        h->budget = 0;
        return false;
    }
    if (now - h->others_at > OTHERS_NS)
        return true;
    h->budget -= (int64_t)held; /* it may be owed: else each frame would get a sleep of its own */
    if (h->budget < -BUDGET_MAX)
        h->budget = -BUDGET_MAX;
    return h->budget > 0;
}

bool mint_hold_wait(struct mint_hold *h, struct mint_port *port)
{
    if (!may_wait(h, MINT_HOLD_STALLS * mint_port_stall_ns(port), now_ns())) {
        mint_port_give_up(port, h->peer);
        h->on = false;
        return false;
    }
    mint_port_wait_room(port, h->peer); /* announces the wait; one more try is the re-check */
    return true;
}

int64_t mint_hold_timeout(struct mint_hold *h, struct mint_port *port)
{
    uint64_t left = mint_port_wait_room(port, h->peer);

    return left < BUDGET_MAX / 10 ? (int64_t)left : BUDGET_MAX / 10; /* look at the budget, too */
}
