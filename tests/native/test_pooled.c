/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_pooled.c - what layout pooled does beyond the others: one buffer for many receivers, shares,
 * sending by reference; what becomes of buffers when somebody dies or goes.
 */
#include "port_util.h"

#define CAPACITY 393216u
#define BLOCKS (CAPACITY / MINT_STOCK_BLOCK)

static const uint8_t broadcast[6] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff};
static const uint8_t stranger[6] = {0x02, 0, 0, 0, 0x12, 0x34};

static struct fabric *open_fabric(uint32_t ports)
{
    return fabric_open(fabric_new(ports, MINT_LAYOUT_POOLED, CAPACITY));
}

static const struct mint_stock *stock_of(const struct fabric *f, uint32_t i)
{
    return &f->port[i]->pooled->stock;
}

/* Have port `i` look at all its receivers, as it does when it needs room; blocks free then. */
static uint32_t free_blocks(struct fabric *f, uint32_t i)
{
    struct mint_pooled *p = f->port[i]->pooled;

    for (uint32_t q = 0; q < f->ports; q++)
        if (p->lanes[q].tx)
            mint_lane_admits_now(&p->lanes[q], 1);
    return p->stock.free;
}

static void all_is_free(struct fabric *f, uint32_t i)
{
    CHECK(free_blocks(f, i) == BLOCKS, "port %u: %u blocks are missing", i,
          BLOCKS - free_blocks(f, i));
    CHECK(f->port[i]->pooled->in_hand == 0, "port %u: %u in hand", i, f->port[i]->pooled->in_hand);
}

static void comes(struct fabric *f, uint32_t at, int mark)
{
    int got = recv_mark(f, at);

    CHECK(got == mark, "port %u received %d, not %d", at, got, mark);
}

static uint32_t fill(struct fabric *f, uint32_t from, uint32_t to, uint32_t len)
{
    uint32_t n = 0;

    while (send_frame(f, from, to, len, (uint8_t)n) == MINT_SENT)
        n++;
    return n;
}

/* ------------------------------------------------------------------------------ many receivers */

static void a_broadcast_lies_once(void)
{
    struct fabric *f = open_fabric(5);
    uint8_t src[6];

    mac_of(0, src);
    for (uint32_t i = 0; i < 50; i++)
        CHECK(send_macs(f, 0, broadcast, src, (uint8_t)i) == MINT_SENT, "not sent");
    CHECK(stock_of(f, 0)->free == BLOCKS - 50, "%u blocks for 50 frames",
          BLOCKS - stock_of(f, 0)->free);
    for (uint32_t to = 1; to < 5; to++) {
        CHECK(free_blocks(f, 0) == BLOCKS - 50, "freed before all have read");
        CHECK(f->port[0]->pooled->lanes[to].used == 50, "not counted for %u", to);
        for (int i = 0; i < 50; i++)
            comes(f, to, i);
    }
    all_is_free(f, 0);
    CHECK(port_counter(f, 0, MINT_PORT_FLOODED) == 50, "not counted");
    CHECK(port_counter(f, 0, MINT_PORT_IN_DONE) == 50, "not settled");
    fabric_free(f);
}

/* One that has no room goes without; the others get theirs. */
static void a_broadcast_passes_the_full_by(void)
{
    struct fabric *f = open_fabric(4);
    uint32_t n = fill(f, 0, 1, 64);
    uint8_t src[6];

    CHECK(n == MINT_LANE_DESCS, "%u descriptors", n);
    mac_of(0, src);
    CHECK(send_macs(f, 0, broadcast, src, 9) == MINT_SENT, "not sent");
    comes(f, 2, 9);
    comes(f, 3, 9);
    CHECK(tx_counter(f, 0, 1, MINT_TX_DROP_FULL) == 1, "not counted");
    for (uint32_t i = 0; i < n; i++)
        comes(f, 1, (uint8_t)i);
    comes(f, 1, -1);
    all_is_free(f, 0);
    fabric_free(f);
}

/* --------------------------------------------------------------------------------------- shares */

/* Frames for `to` go through, many more than the pool holds. */
static void flows(struct fabric *f, uint32_t to, uint32_t len)
{
    for (uint32_t i = 0; i < 2000; i++) {
        CHECK(send_frame(f, 0, to, len, (uint8_t)i) == MINT_SENT, "frame %u to %u starves", i, to);
        comes(f, to, (uint8_t)i);
    }
}

static void a_stalled_receiver_starves_nobody(void)
{
    struct fabric *f = open_fabric(5);
    uint32_t left = BLOCKS;

    for (uint32_t stalled = 1; stalled <= 3; stalled++) {
        fill(f, 0, stalled, 1500);
        left -= BLOCKS / 8 + (BLOCKS / 4 >> (stalled - 1));
        CHECK(stock_of(f, 0)->free >= left && stock_of(f, 0)->free < left + 2 * 12,
              "%u stalled and %u of %u free", stalled, stock_of(f, 0)->free, BLOCKS);
        flows(f, 4, 1500);
        flows(f, 4, 60);
    }
    while (recv_mark(f, 1) >= 0 || recv_mark(f, 2) >= 0 || recv_mark(f, 3) >= 0)
        ;
    all_is_free(f, 0);
    flows(f, 1, MINT_FRAME_MAX);
    fabric_free(f);
}

/* With two ports there is nobody to starve: the one receiver may have it all. */
static void two_ports_know_no_share(void)
{
    struct fabric *f = open_fabric(2);
    uint32_t n = fill(f, 0, 1, 1500);

    CHECK(n == CAPACITY / 1536, "%u frames", n);
    CHECK(stock_of(f, 0)->free == 0, "%u blocks are free", stock_of(f, 0)->free);
    fabric_free(f);
}

/* A long frame for one that has nothing waits for room that others have; a short one goes. */
static void the_idle_are_not_to_blame(void)
{
    struct fabric *f = fabric_new(5, MINT_LAYOUT_POOLED, 262144);

    f->stall_us = 1000;
    fabric_open(f);
    for (uint32_t stalled = 1; stalled <= 3; stalled++)
        fill(f, 0, stalled, 1500);
    CHECK(send_frame(f, 0, 4, MINT_FRAME_MAX, 1) == MINT_FULL, "there is room");
    for (uint64_t left = 1; left;) {
        left = mint_port_wait_room(f->port[0], 4);
        if (left > 1)
            mint_port_wait_peer(f->port[0], 4, left);
    }
    CHECK(send_frame(f, 0, 4, MINT_FRAME_MAX, 1) == MINT_DROPPED, "waits for ever");
    CHECK(send_frame(f, 0, 4, 1500, 2) == MINT_SENT, "held for stalled though it owes nothing");
    comes(f, 4, 2);
    CHECK(!load_relaxed(&f->port[0]->slots[4].tx_stalled), "still said to be stalled");
    fabric_free(f);
}

/* The longest frame finds room in the smallest pool, however many others there might be. */
static void the_longest_fits_the_smallest(void)
{
    for (uint32_t ports = 2; ports <= 5; ports++) {
        struct fabric *f = fabric_open(fabric_new(ports, MINT_LAYOUT_POOLED, 135168));

        for (uint32_t i = 0; i < 20; i++)
            for (uint32_t to = 1; to < ports; to++) {
                CHECK(send_frame(f, 0, to, MINT_FRAME_MAX, (uint8_t)i) == MINT_SENT, "no room");
                comes(f, to, (int)i);
            }
        fabric_free(f);
    }
}

/* Room that one receiver gives wakes a sender that waits with a frame for another. */
static void others_room_wakes(void)
{
    struct fabric *f = fabric_new(5, MINT_LAYOUT_POOLED, 262144);

    f->stall_us = 60u * 1000000u;
    fabric_open(f);
    for (uint32_t full = 1; full <= 3; full++)
        fill(f, 0, full, 1500);
    CHECK(send_frame(f, 0, 4, MINT_FRAME_MAX, 1) == MINT_FULL, "there is room");
    CHECK(mint_port_wait_room(f->port[0], 4) == 1, "not asked");
    CHECK(send_frame(f, 0, 4, MINT_FRAME_MAX, 1) == MINT_FULL, "there is room");
    while (recv_mark(f, 1) >= 0)
        ;
    CHECK(rx_counter(f, 1, 0, MINT_RX_RINGS) == 1, "port 1 did not ring");
    CHECK(mint_port_wait_peer(f->port[0], 4, 10000 * MS) == 0, "not woken");
    CHECK(send_frame(f, 0, 4, MINT_FRAME_MAX, 1) == MINT_SENT, "no room");
    comes(f, 4, 1);
    fabric_free(f);
}

/* ------------------------------------------------------------------------------- taking it back */

static void shares_come_back(void)
{
    struct fabric *f = open_fabric(4);

    for (uint32_t round = 0; round < 30; round++) {
        uint32_t n = fill(f, 0, 1, 100 + 60 * round);
        uint64_t lost = tx_counter(f, 0, 1, MINT_TX_DROP_RESET);

        switch (round % 3) {
        case 0: /* it is gone for good */
            CHECK(mint_port_drop_peer(f->port[0], 1) == 0, "drop");
            all_is_free(f, 0);
            leave_port(f, 1);
            open_port(f, 1);
            join_peer(f, 0, 1);
            break;
        case 1: /* it leaves, and the sender sees that */
            leave_port(f, 1);
            CHECK(send_frame(f, 0, 1, 100, 1) == MINT_DROPPED, "sent to a closed port");
            all_is_free(f, 0);
            open_port(f, 1);
            break;
        default: /* it leaves, and is back before the sender looks */
            leave_port(f, 1);
            open_port(f, 1);
            break;
        }
        CHECK(send_frame(f, 0, 1, 100, 5) == MINT_SENT, "not sent");
        comes(f, 1, 5);
        comes(f, 1, -1);
        all_is_free(f, 0);
        CHECK(tx_counter(f, 0, 1, MINT_TX_DROP_RESET) == lost + n, "%llu of %u counted",
              (unsigned long long)(tx_counter(f, 0, 1, MINT_TX_DROP_RESET) - lost), n);
    }
    CHECK(rx_counter(f, 1, 0, MINT_RX_RESETS) == 0, "a rule was broken");
    fabric_free(f);
}

/* What was published is the receivers', however much the next process sends meanwhile. */
static void a_successor_knows_what_is_in_use(void)
{
    struct fabric *f = open_fabric(4);
    uint8_t src[6];

    mac_of(0, src);
    for (uint32_t life = 0; life < 20; life++) {
        uint32_t in_use;

        for (uint32_t i = 0; i < 20; i++) {
            CHECK(send_frame(f, 0, 1, 1000 + i, (uint8_t)i) == MINT_SENT, "not sent");
            CHECK(send_macs(f, 0, broadcast, src, (uint8_t)(100 + i)) == MINT_SENT, "not sent");
        }
        for (int i = 0; i < 20; i++)
            comes(f, 2, 100 + i);
        in_use = BLOCKS - free_blocks(f, 0);
        CHECK(post(f, 0, 1, 500, 99) == MINT_SENT, "not staged");
        CHECK(mint_port_reserve_any(f->port[0], 5000), "nothing in hand");
        if (life % 2)
            crash_port(f, 0);
        else
            leave_port(f, 0);
        open_port(f, 0);
        if (life % 2) /* what was staged is gone */
            CHECK(stock_of(f, 0)->free == BLOCKS - in_use, "%u in use, not %u",
                  BLOCKS - stock_of(f, 0)->free, in_use);
        flows(f, 2, 3000);
        for (int i = 0; i < 20; i++) {
            comes(f, 1, i);
            comes(f, 1, 100 + i);
            comes(f, 3, 100 + i);
        }
        if (life % 2 == 0)
            comes(f, 1, 99); /* a port that leaves publishes what is staged */
        comes(f, 1, -1);
        all_is_free(f, 0);
    }
    CHECK(rx_counter(f, 1, 0, MINT_RX_RESETS) + rx_counter(f, 3, 0, MINT_RX_RESETS) == 0,
          "a rule was broken");
    fabric_free(f);
}

/* A peer that went while nobody served this port keeps nothing of the pool. */
static void orphans_are_let_go(void)
{
    struct fabric *f = open_fabric(3);
    struct mint_port_config c = port_config(f, 0);
    uint32_t n = fill(f, 0, 1, 1500);

    crash_port(f, 0);
    CHECK(mint_port_open(&f->port[0], &c, f->ctl[0], f->stock[0]) == 0, "open");
    join_peer(f, 0, 2);
    CHECK(stock_of(f, 0)->free < BLOCKS, "what 1 may read is free");
    CHECK(fill(f, 0, 2, 1500) >= n, "the share of one who is gone is kept");
    CHECK(load_relaxed(&f->port[0]->slots[1].tx_counter[MINT_TX_DROP_RESET]) == n, "not counted");
    while (recv_mark(f, 2) >= 0)
        ;
    all_is_free(f, 0);
    for (uint32_t i = 0; i < n && recv_mark(f, 1) != -1; i++)
        CHECK(false, "1 is there after all, and reads what is not its own");
    join_peer(f, 0, 1);
    for (uint32_t tries = 0; send_frame(f, 0, 1, 100, 7) != MINT_SENT; tries++) {
        CHECK(recv_mark(f, 1) == -1 && tries < 5, "something old");
        mint_port_wait(f->port[0], 0);
    }
    for (int got = recv_mark(f, 1), tries = 0; got != 7; got = recv_mark(f, 1)) {
        CHECK(got == -1 && tries++ < 5, "something old: %d", got);
        mint_port_wait(f->port[0], 0);
        send_frame(f, 0, 1, 100, 7);
    }
    fabric_free(f);
}

/* --------------------------------------------------------------------------------- by reference */

static struct mint_rec *read_in(struct fabric *f, const uint8_t *dst, uint32_t len, uint8_t mark)
{
    struct mint_rec *rec = mint_port_reserve_any(f->port[0], MINT_FRAME_MAX);
    uint8_t src[6];

    CHECK(rec, "no room");
    mac_of(0, src);
    memset(&rec->vnet, 0, sizeof(rec->vnet));
    make_frame(rec->frame, dst, src, len, mark);
    mint_port_took(f->port[0], len);
    return rec;
}

static enum mint_sent send_in(struct fabric *f, struct mint_rec *rec, uint32_t len)
{
    uint32_t peer;
    enum mint_sent sent = mint_port_send_reserved(f->port[0], rec, len, &peer);

    mint_port_flush(f->port[0]);
    return sent;
}

static void where_a_frame_was_read_it_is_sent(void)
{
    struct fabric *f = fabric_new(4, MINT_LAYOUT_POOLED, CAPACITY);
    uint8_t dst[6], self[6];

    f->flags[3] = MINT_PORT_BRIDGE;
    fabric_open(f);
    mac_of(0, self);
    for (uint32_t i = 0; i < 300; i++) {
        uint32_t to = 1 + i % 3;
        struct mint_view v;
        struct mint_rec *rec;

        mac_of(to, dst);
        rec = read_in(f, dst, 14 + 50 * i, (uint8_t)i);
        CHECK(send_in(f, rec, 14 + 50 * i) == MINT_SENT, "not sent");
        CHECK(mint_port_recv(f->port[to], &v) && v.len == 14 + 50 * i, "not received");
        CHECK((const uint8_t *)v.rec - f->port[to]->peers[0]->lane.data ==
                  (const uint8_t *)rec - f->port[0]->pooled->data,
              "copied");
        mint_port_release(f->port[to], &v);
        mint_port_recycle(f->port[to]);
    }
    CHECK(send_in(f, read_in(f, broadcast, 60, 7), 60) == MINT_SENT, "a broadcast");
    for (uint32_t to = 1; to < 4; to++)
        comes(f, to, 7);
    CHECK(send_in(f, read_in(f, stranger, 60, 8), 60) == MINT_SENT, "to bridges");
    comes(f, 3, 8);
    comes(f, 1, -1);
    CHECK(send_in(f, read_in(f, self, 60, 9), 60) == MINT_DROPPED, "to oneself");
    CHECK(port_counter(f, 0, MINT_PORT_DROP_SELF) == 1, "not counted");
    CHECK(port_counter(f, 0, MINT_PORT_IN_DONE) == 303, "not settled");
    all_is_free(f, 0);
    fabric_free(f);
}

static void a_held_frame_can_be_sent_later(void)
{
    struct fabric *f = open_fabric(4);
    uint8_t dst[6];
    struct mint_rec *rec;
    uint32_t n = fill(f, 0, 1, 64);

    mac_of(1, dst);
    rec = read_in(f, dst, 500, 77);
    for (uint32_t tries = 0; tries < 3; tries++)
        CHECK(send_in(f, rec, 500) == MINT_FULL, "there is room");
    CHECK(send_frame(f, 0, 2, 500, 3) == MINT_SENT, "others have to wait");
    comes(f, 2, 3);
    CHECK(port_counter(f, 0, MINT_PORT_IN_DONE) == n + 1, "settled too early");
    comes(f, 1, 0);
    comes(f, 1, 1);
    CHECK(send_in(f, rec, 500) == MINT_SENT, "no room");
    for (uint32_t i = 2; i < n; i++)
        comes(f, 1, (uint8_t)i);
    comes(f, 1, 77);
    rec = read_in(f, dst, 500, 78);
    mint_port_cancel(f->port[0], 0, rec);
    all_is_free(f, 0);
    fabric_free(f);
}

/* Other layouts offer no such thing. */
static void others_do_not_offer_it(void)
{
    for (uint32_t layout = MINT_LAYOUT_PER_CHANNEL; layout <= MINT_LAYOUT_SHARED; layout++) {
        struct fabric *f = fabric_open(fabric_new(2, layout, CAPACITY));

        CHECK(!mint_port_reserve_any(f->port[0], 100), "offered");
        fabric_free(f);
    }
}

/* ------------------------------------------------------------------------------ what is refused */

static void bad_regions_are_refused(void)
{
    struct fabric *f = fabric_new(3, MINT_LAYOUT_POOLED, CAPACITY);
    size_t right = MINT_STOCK_BYTES(3, CAPACITY);
    int bad[] = {
        region_file(right, F_SEAL_GROW),
        region_file(MINT_STOCK_DATA_AT(3), SEALS),
        region_file(MINT_STOCK_DATA_AT(3) - 4096, SEALS),
        region_file(MINT_STOCK_BYTES(3, 126976), SEALS), /* less than two of the largest records */
        region_file(right + 64, SEALS),
        -1,
    };
    uint32_t descriptors = open_descriptors(), mappings = mapped_regions();
    struct mint_port_config c = port_config(f, 0);
    struct mint_peer_config peer;

    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        int err = mint_port_open(&f->port[0], &c, f->ctl[0], bad[i]);

        CHECK(err == -EPROTO, "region %zu: %d", i, err);
    }
    CHECK(mint_port_open(&f->port[0], &c, f->ctl[0], f->stock[0]) == 0, "the right one");
    mappings += 2;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        peer = peer_config(f, 0, 1);
        peer.rx_fd = bad[i];
        CHECK(mint_port_add_peer(f->port[0], &peer) == -EPROTO, "region %zu of a peer", i);
    }
    peer = peer_config(f, 0, 1);
    peer.capacity += 4096;
    CHECK(mint_port_add_peer(f->port[0], &peer) == -EPROTO, "another capacity");
    peer.capacity = CAPACITY + 64;
    CHECK(mint_port_add_peer(f->port[0], &peer) == -EINVAL, "no whole pages");
    CHECK(open_descriptors() == descriptors + 1, "descriptors leak"); /* the port's epoll */
    CHECK(mapped_regions() == mappings, "mappings leak");
    open_port(f, 1);
    join_peer(f, 0, 1);
    for (size_t i = 0; i + 1 < sizeof(bad) / sizeof(bad[0]); i++)
        close(bad[i]);
    fabric_free(f);
}

static const struct check_test tests[] = {
    CHECK_TEST(a_broadcast_lies_once),
    CHECK_TEST(a_broadcast_passes_the_full_by),
    CHECK_TEST(a_stalled_receiver_starves_nobody),
    CHECK_TEST(two_ports_know_no_share),
    CHECK_TEST(the_idle_are_not_to_blame),
    CHECK_TEST(the_longest_fits_the_smallest),
    CHECK_TEST(others_room_wakes),
    CHECK_TEST(shares_come_back),
    CHECK_TEST(a_successor_knows_what_is_in_use),
    CHECK_TEST(orphans_are_let_go),
    CHECK_TEST(where_a_frame_was_read_it_is_sent),
    CHECK_TEST(a_held_frame_can_be_sent_later),
    CHECK_TEST(others_do_not_offer_it),
    CHECK_TEST(bad_regions_are_refused),
};

int main(int argc, char **argv)
{
    return CHECK_MAIN(argc, argv, tests);
}
