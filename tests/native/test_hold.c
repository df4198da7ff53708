/* SPDX-License-Identifier: Apache-2.0 */
/* test_hold.c - for how long a frame is held that finds its channel full. */
#include "hold.h"
#include "port_util.h"

#define CAPACITY 393216u
#define STALL_US 10000u
#define MOST (MINT_HOLD_STALLS * STALL_US * 1000ull)
#define SOON (2000 * MS) /* what takes longer does not happen */

/* Channels that are full, so that port 0 finds room for nobody. */
static struct fabric *full_fabric(uint32_t layout)
{
    struct fabric *f = fabric_new(3, layout, CAPACITY);

    f->stall_us = STALL_US;
    fabric_open(f);
    while (post(f, 0, 1, 1000, 0) == MINT_SENT)
        ;
    mint_port_flush(f->port[0]);
    return f;
}

/* Hold a frame for port 1, longer than what drips away meanwhile, as a worker does, until it is settled. Return: whether it was sent. */
static bool hold_one(struct fabric *f, struct mint_hold *h, bool drips, uint64_t *took)
{
    uint64_t start = now_ns(), dripped = start;
    enum mint_sent sent;

    while ((sent = post(f, 0, 1, 60000, 7)) == MINT_FULL) {
        CHECK(now_ns() - start < SOON, "held for ever");
        mint_hold_full(h, 1);
        if (!mint_hold_wait(h, f->port[0]))
            break;
        if (drips && now_ns() - dripped > STALL_US * 300u) {
            CHECK(recv_mark(f, 1) == 0, "nothing to give back");
            dripped = now_ns();
        }
        mint_port_wait(f->port[0], mint_hold_timeout(h, f->port[0]));
    }
    if (sent != MINT_FULL)
        mint_hold_settled(h, sent == MINT_SENT ? 1 : UINT32_MAX);
    CHECK(!h->on, "still held");
    *took = now_ns() - start;
    return sent == MINT_SENT;
}

/* A receiver that gives a little room all the time, and never enough, is not waited for for ever. */
static void a_receiver_that_drips(void)
{
    for (uint32_t layout = MINT_LAYOUT_PER_CHANNEL; layout <= MINT_LAYOUT_POOLED; layout++) {
        struct fabric *f = full_fabric(layout);
        struct mint_hold h = {.peer = UINT32_MAX};
        uint64_t took, drops;

        CHECK(!hold_one(f, &h, true, &took), "sent");
        CHECK(took >= MOST && took < SOON, "given up after %llu ns", (unsigned long long)took);
        drops = tx_counter(f, 0, 1, MINT_TX_DROP_FULL);
        CHECK(drops == 1, "%llu counted", (unsigned long long)drops);
        CHECK(tx_counter(f, 0, 1, MINT_TX_STALLS) == 0, "stalled though it moves");
        /* Now those come to their turn that may be behind it: the next one is not waited with. */
        for (uint32_t i = 0; i < 5; i++) {
            CHECK(!hold_one(f, &h, false, &took), "sent");
            CHECK(took < MOST / 2, "frame %u is held for %llu ns", i, (unsigned long long)took);
        }
        fabric_free(f);
    }
}

/* One that does not move costs one time-out. */
static void a_receiver_that_stopped(void)
{
    struct fabric *f = full_fabric(MINT_LAYOUT_PER_CHANNEL);
    struct mint_hold h = {.peer = UINT32_MAX};
    uint64_t took;

    CHECK(!hold_one(f, &h, false, &took), "sent");
    CHECK(took >= STALL_US * 1000u && tx_counter(f, 0, 1, MINT_TX_STALLS) == 1, "not waited for");
    CHECK(!hold_one(f, &h, false, &took), "sent");
    CHECK(tx_counter(f, 0, 1, MINT_TX_DROP_STALLED) == 2, "not stalled");
    fabric_free(f);
}

/* With frames for others about, a tenth of the time is waited, not half a millisecond a frame. */
static void others_traffic_is_not_held_up(void)
{
    struct fabric *f = full_fabric(MINT_LAYOUT_PER_CHANNEL);
    struct mint_hold h = {.peer = 1};
    uint64_t took, before, waited = 0;

    for (uint32_t i = 0; i < 20; i++) {
        CHECK(send_frame(f, 0, 2, 100, 3) == MINT_SENT && recv_mark(f, 2) == 3, "others");
        mint_hold_settled(&h, 2);
        before = tx_counter(f, 0, 1, MINT_TX_WAITS);
        CHECK(recv_mark(f, 1) == 0, "nothing to give back"); /* it is not stalled */
        CHECK(!hold_one(f, &h, false, &took), "sent");
        waited += tx_counter(f, 0, 1, MINT_TX_WAITS) > before;
    }
    CHECK(waited >= 1 && waited <= 10, "%llu of 20 frames were waited with",
          (unsigned long long)waited);
    fabric_free(f);
}

static const struct check_test tests[] = {
    CHECK_TEST(a_receiver_that_drips),
    CHECK_TEST(a_receiver_that_stopped),
    CHECK_TEST(others_traffic_is_not_held_up),
};

int main(int argc, char **argv)
{
    return CHECK_MAIN(argc, argv, tests);
}
