/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_port_shun.c - a peer whose frames are refused, or that breaks rules, all the time: it is not
 * looked at for a while, and costs next to nothing then.
 */
#include "port_util.h"

#define CAP 397312u
#define BAD 256u

/* Send frames with another port's MAC. Return: how many. */
static uint32_t spoof(struct fabric *f, uint32_t from, uint32_t to, uint32_t count)
{
    uint8_t dst[6], src[6];
    uint32_t n = 0;

    mac_of(to, dst);
    mac_of(4, src);
    while (n < count && send_macs(f, from, dst, src, 1) == MINT_SENT)
        n++;
    return n;
}

static uint32_t refused(struct fabric *f, uint32_t at, uint32_t from)
{
    for (uint32_t i = 0; i < 10; i++) /* one call refuses a bounded number only */
        while (recv_mark(f, at) >= 0)
            continue;
    return (uint32_t)rx_counter(f, at, from, MINT_RX_DROP_SPOOF);
}

static void who_is_refused_too_often_is_shunned(void)
{
    struct fabric *f = fabric_open(fabric_new(3, MINT_LAYOUT_PER_CHANNEL, CAP));
    uint32_t before, after, marks = 0;

    CHECK(spoof(f, 1, 0, 1000) == 1000, "no room");
    for (uint32_t i = 0; i < 100; i++)
        refused(f, 0, 1);
    before = refused(f, 0, 1);
    CHECK(rx_counter(f, 0, 1, MINT_RX_SHUNNED) == 1, "not shunned");
    CHECK(before >= BAD && before < 1000, "%u were looked at", before);
    CHECK(mint_port_wait(f->port[0], 0) != MINT_EV_BELL, "its frames keep the port awake");

    /* Others are served meanwhile. */
    for (uint32_t i = 0; i < 50; i++)
        CHECK(send_frame(f, 2, 0, 100, 7) == MINT_SENT, "no room");
    while (recv_mark(f, 0) == 7)
        marks++;
    CHECK(marks == 50, "%u of 50 honest frames", marks);

    /* It is given another chance, also by a port that sleeps. */
    CHECK(mint_port_wait(f->port[0], 200 * MS) >= 0, "wait");
    after = refused(f, 0, 1);
    CHECK(after > before, "shunned for ever");
    fabric_free(f);
}

static void a_few_mistakes_are_forgiven(void)
{
    struct fabric *f = fabric_open(fabric_new(2, MINT_LAYOUT_PER_CHANNEL, CAP));

    CHECK(spoof(f, 1, 0, BAD - 1) == BAD - 1, "no room");
    CHECK(refused(f, 0, 1) == BAD - 1, "not all looked at");
    CHECK(send_frame(f, 1, 0, 100, 9) == MINT_SENT && recv_mark(f, 0) == 9, "shunned too early");
    CHECK(rx_counter(f, 0, 1, MINT_RX_SHUNNED) == 0, "counted");
    fabric_free(f);
}

/* A sender that asks for a new generation as often as it can. */
static void who_resets_too_often_is_shunned(void)
{
    struct fabric *f = fabric_open(fabric_new(2, MINT_LAYOUT_PER_CHANNEL, CAP));
    struct mint_slot *evil = &f->port[1]->slots[0];
    struct mint_view v;
    uint32_t resets;

    for (uint32_t i = 0; i < 5000; i++) {
        store_release(&evil->tx_end, MINT_END(f->port[0]->peers[1]->rx.gen, MINT_END_RESET));
        CHECK(!mint_port_recv(f->port[0], &v), "a frame");
    }
    resets = (uint32_t)rx_counter(f, 0, 1, MINT_RX_RESETS);
    CHECK(rx_counter(f, 0, 1, MINT_RX_SHUNNED) >= 1, "not shunned after %u", resets);
    CHECK(resets < 5000, "shunned, and obeyed all the same");
    mint_port_drop_peer(f->port[0], 1);
    CHECK(f->port[0]->shunned == 0, "a peer that is gone is still shunned");
    fabric_free(f);
}

static const struct check_test tests[] = {
    CHECK_TEST(who_is_refused_too_often_is_shunned),
    CHECK_TEST(a_few_mistakes_are_forgiven),
    CHECK_TEST(who_resets_too_often_is_shunned),
};

int main(int argc, char **argv)
{
    return CHECK_MAIN(argc, argv, tests);
}
