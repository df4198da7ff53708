/* SPDX-License-Identifier: Apache-2.0 */
/* test_port.c - where frames go: look-up, flooding, bridges; what a receiver does not accept. */
#include "port_util.h"

#define CAPACITY 393216u

static const uint8_t broadcast[6] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff};
static const uint8_t multicast[6] = {0x33, 0x33, 0, 0, 0, 1};
static const uint8_t stranger[6] = {0x02, 0, 0, 0, 0x12, 0x34};

static struct fabric *open_fabric(uint32_t ports, uint32_t layout)
{
    return fabric_open(fabric_new(ports, layout, CAPACITY));
}

/* Each test runs in each layout. */
#define EACH_LAYOUT(layout) \
    for (uint32_t layout = MINT_LAYOUT_PER_CHANNEL; layout <= MINT_LAYOUT_POOLED; layout++)

static void nothing_comes(struct fabric *f, uint32_t at)
{
    CHECK(recv_mark(f, at) == -1, "port %u received something", at);
}

static void comes(struct fabric *f, uint32_t at, uint8_t mark)
{
    int got = recv_mark(f, at);

    CHECK(got == mark, "port %u received %d, not %u", at, got, mark);
}

/* ------------------------------------------------------------------------- where frames go */

static void looks_up(void)
{
    struct fabric *f = open_fabric(3, MINT_LAYOUT_PER_CHANNEL);
    struct mint_port *p = f->port[0];
    uint8_t mac[6];

    for (uint32_t round = 0; round < 3; round++)
        for (uint32_t i = 0; i < 3; i++) {
            mac_of(i, mac);
            CHECK(mint_port_lookup(p, mac) == (i ? (int)i : MINT_DST_SELF), "port %u", i);
            CHECK(mint_port_lookup(p, mac) == (i ? (int)i : MINT_DST_SELF), "port %u again", i);
        }
    CHECK(mint_port_lookup(p, broadcast) == MINT_DST_FLOOD, "broadcast");
    CHECK(mint_port_lookup(p, multicast) == MINT_DST_FLOOD, "multicast");
    CHECK(mint_port_lookup(p, stranger) == MINT_DST_UNKNOWN, "a stranger");
    mac_of(2, mac);
    CHECK(mint_port_lookup(p, mac) == 2, "port 2");
    CHECK(mint_port_drop_peer(p, 2) == 0, "drop");
    CHECK(mint_port_lookup(p, mac) == MINT_DST_UNKNOWN, "a port that is gone");
    CHECK(mint_port_drop_peer(p, 2) == -ENOENT, "gone twice");
    join_peer(f, 0, 2);
    CHECK(mint_port_lookup(p, mac) == 2, "back again");
    fabric_free(f);
}

static void unicast_goes_to_one(void)
{
    EACH_LAYOUT(layout)
    {
        struct fabric *f = open_fabric(4, layout);

        for (uint32_t from = 0; from < 4; from++)
            for (uint32_t to = 0; to < 4; to++) {
                uint8_t mark = (uint8_t)(10 * from + to);

                if (from == to)
                    continue;
                CHECK(send_frame(f, from, to, 60 + to, mark) == MINT_SENT, "not sent");
                for (uint32_t other = 0; other < 4; other++)
                    if (other != to)
                        nothing_comes(f, other);
                comes(f, to, mark);
                CHECK(tx_counter(f, from, to, MINT_TX_FRAMES) == 1, "not counted");
                CHECK(tx_counter(f, from, to, MINT_TX_BYTES) == 60 + to, "bytes");
                CHECK(rx_counter(f, to, from, MINT_RX_FRAMES) == 1, "not counted");
                CHECK(rx_counter(f, to, from, MINT_RX_BYTES) == 60 + to, "bytes");
            }
        CHECK(port_counter(f, 1, MINT_PORT_IN_FRAMES) == 3, "in");
        CHECK(port_counter(f, 1, MINT_PORT_IN_DONE) == 3, "done");
        CHECK(port_counter(f, 1, MINT_PORT_OUT_FRAMES) == 3, "out");
        fabric_free(f);
    }
}

static void floods_go_to_all(void)
{
    EACH_LAYOUT(layout)
    {
        struct fabric *f = open_fabric(4, layout);
        uint8_t src[6];

        mac_of(1, src);
        CHECK(send_macs(f, 1, broadcast, src, 7) == MINT_SENT, "broadcast");
        CHECK(send_macs(f, 1, multicast, src, 8) == MINT_SENT, "multicast");
        for (uint32_t i = 0; i < 4; i++) {
            if (i != 1) {
                comes(f, i, 7);
                comes(f, i, 8);
            }
            nothing_comes(f, i);
        }
        CHECK(port_counter(f, 1, MINT_PORT_FLOODED) == 2, "not counted");
        CHECK(port_counter(f, 1, MINT_PORT_IN_DONE) == 2, "not settled once each");
        fabric_free(f);
    }
}

static void a_lonely_port_drops(void)
{
    EACH_LAYOUT(layout)
    {
        struct fabric *f = fabric_new(2, layout, CAPACITY);
        struct mint_port_config c = port_config(f, 0);
        uint8_t src[6];

        CHECK(mint_port_open(&f->port[0], &c, f->ctl[0], own_region(f, 0)) == 0, "open");
        mac_of(0, src);
        CHECK(send_macs(f, 0, broadcast, src, 1) == MINT_DROPPED, "a broadcast to nobody");
        CHECK(send_macs(f, 0, stranger, src, 1) == MINT_DROPPED, "a unicast to nobody");
        CHECK(port_counter(f, 0, MINT_PORT_DROP_NO_PEER) == 1, "not counted");
        CHECK(port_counter(f, 0, MINT_PORT_DROP_UNKNOWN) == 1, "not counted");
        CHECK(mint_port_sole_peer(f->port[0]) == -1, "a peer");
        nothing_comes(f, 0);
        fabric_free(f);
    }
}

static void unknown_and_own_are_dropped(void)
{
    EACH_LAYOUT(layout)
    {
        struct fabric *f = open_fabric(3, layout);
        uint8_t src[6];

        mac_of(0, src);
        CHECK(send_macs(f, 0, stranger, src, 1) == MINT_DROPPED, "sent to a stranger");
        CHECK(send_macs(f, 0, src, src, 1) == MINT_DROPPED, "sent to oneself");
        CHECK(port_counter(f, 0, MINT_PORT_DROP_UNKNOWN) == 1, "unknown");
        CHECK(port_counter(f, 0, MINT_PORT_DROP_SELF) == 1, "self");
        CHECK(port_counter(f, 0, MINT_PORT_IN_DONE) == 2, "not settled");
        for (uint32_t i = 0; i < 3; i++)
            nothing_comes(f, i);
        fabric_free(f);
    }
}

static void lengths_have_bounds(void)
{
    EACH_LAYOUT(layout)
    {
        struct fabric *f = open_fabric(2, layout);

        CHECK(send_frame(f, 0, 1, MINT_FRAME_MAX, 5) == MINT_SENT, "the longest is refused");
        comes(f, 1, 5);
        CHECK(post(f, 0, 1, MINT_FRAME_MIN, 0) == MINT_SENT, "the shortest is refused");
        mint_port_flush(f->port[0]);
        CHECK(recv_mark(f, 1) >= 0, "the shortest does not come");
        for (uint32_t len = 0; len < MINT_FRAME_MIN; len++) {
            uint8_t frame[MINT_FRAME_MIN] = {0x02};

            CHECK(mint_port_send(f->port[0], NULL, frame, len, NULL) == MINT_DROPPED, "%u", len);
        }
        CHECK(mint_port_send(f->port[0], NULL, broadcast, MINT_FRAME_MAX + 1, NULL) == MINT_DROPPED,
              "too long");
        CHECK(mint_port_send(f->port[0], NULL, broadcast, UINT32_MAX, NULL) == MINT_DROPPED,
              "far too long");
        mint_port_flush(f->port[0]);
        nothing_comes(f, 1);
        CHECK(port_counter(f, 0, MINT_PORT_DROP_SHORT) == MINT_FRAME_MIN, "short");
        CHECK(port_counter(f, 0, MINT_PORT_DROP_LONG) == 2, "long");
        fabric_free(f);
    }
}

static void in_place(void)
{
    EACH_LAYOUT(layout)
    {
        struct fabric *f = open_fabric(2, layout);
        struct mint_rec *rec;
        uint8_t dst[6], src[6];

        CHECK(mint_port_sole_peer(f->port[0]) == 1, "not the only peer");
        CHECK(!mint_port_reserve(f->port[0], 0, 100) && !mint_port_reserve(f->port[0], 9, 100),
              "room towards nobody");
        mac_of(1, dst);
        mac_of(0, src);
        for (uint32_t i = 0; i < 300; i++) {
            rec = mint_port_reserve(f->port[0], 1, MINT_FRAME_MAX);
            CHECK(rec, "no room");
            memset(&rec->vnet, 0, sizeof(rec->vnet));
            make_frame(rec->frame, dst, src, 1000, (uint8_t)i);
            if (i % 3 == 2) {
                mint_port_cancel(f->port[0], 1, rec);
                mint_port_drop(f->port[0], MINT_DST_UNKNOWN);
            } else {
                mint_port_commit(f->port[0], 1, rec, 1000);
            }
            mint_port_took(f->port[0], 1000);
            mint_port_flush(f->port[0]);
            if (i % 3 == 2)
                nothing_comes(f, 1);
            else
                comes(f, 1, (uint8_t)i);
        }
        CHECK(port_counter(f, 0, MINT_PORT_IN_DONE) == 300, "not settled");
        CHECK(port_counter(f, 0, MINT_PORT_DROP_UNKNOWN) == 100, "not counted");
        fabric_free(f);
    }
}

/* ---------------------------------------------------------------------------------- bridges */

static struct fabric *fabric_with_bridges(uint32_t layout)
{
    struct fabric *f = fabric_new(5, layout, CAPACITY);

    f->flags[1] = f->flags[2] = MINT_PORT_BRIDGE;
    return fabric_open(f);
}

static void unknown_goes_to_bridges(void)
{
    EACH_LAYOUT(layout)
    {
        struct fabric *f = fabric_with_bridges(layout);
        uint8_t src[6];

        mac_of(0, src);
        CHECK(send_macs(f, 0, stranger, src, 3) == MINT_SENT, "not sent");
        comes(f, 1, 3);
        comes(f, 2, 3);
        nothing_comes(f, 3);
        nothing_comes(f, 4);
        CHECK(port_counter(f, 0, MINT_PORT_FLOODED) == 1, "not counted");
        mac_of(1, src);
        CHECK(send_macs(f, 1, stranger, src, 4) == MINT_SENT, "from a bridge to the other");
        comes(f, 2, 4);
        nothing_comes(f, 0);
        fabric_free(f);
    }
}

static void learns_behind_bridges(void)
{
    EACH_LAYOUT(layout)
    {
        struct fabric *f = fabric_with_bridges(layout);
        uint8_t dst[6], src[6];

        mac_of(0, dst);
        mac_of(0, src);
        CHECK(send_macs(f, 1, dst, stranger, 1) == MINT_SENT, "from behind a bridge");
        comes(f, 0, 1);
        CHECK(mint_port_lookup(f->port[0], stranger) == 1, "not learned");
        CHECK(port_counter(f, 0, MINT_PORT_LEARNED) == 1, "not counted");
        CHECK(send_macs(f, 0, stranger, src, 2) == MINT_SENT, "to it");
        comes(f, 1, 2);
        nothing_comes(f, 2);
        CHECK(send_macs(f, 2, dst, stranger, 3) == MINT_SENT, "it moved");
        comes(f, 0, 3);
        CHECK(mint_port_lookup(f->port[0], stranger) == 2, "its move was not learned");
        CHECK(mint_port_lookup(f->port[3], stranger) == MINT_DST_UNKNOWN, "learned unseen");
        for (uint32_t i = 0; i < MINT_MACS_LEARNED; i++) /* as if long ago */
            if (f->port[0]->macs.learned[i].key)
                f->port[0]->macs.learned[i].seen -= MINT_MACS_AGE_NS + 1;
        CHECK(mint_port_lookup(f->port[0], stranger) == MINT_DST_UNKNOWN, "it does not age");
        CHECK(send_macs(f, 1, dst, stranger, 4) == MINT_SENT, "seen again");
        comes(f, 0, 4);
        CHECK(mint_port_drop_peer(f->port[0], 1) == 0, "drop");
        CHECK(mint_port_lookup(f->port[0], stranger) == MINT_DST_UNKNOWN, "outlives its bridge");
        fabric_free(f);
    }
}

static void a_bridge_may_not_take_others_macs(void)
{
    EACH_LAYOUT(layout)
    {
        struct fabric *f = fabric_with_bridges(layout);
        uint8_t dst[6], src[6];

        mac_of(0, dst);
        for (uint32_t victim = 0; victim < 5; victim++) {
            mac_of(victim, src);
            send_macs(f, 1, dst, src, (uint8_t)victim);
            if (victim == 1)
                comes(f, 0, 1); /* its own */
            else
                nothing_comes(f, 0);
            CHECK(mint_port_lookup(f->port[0], src) == (victim ? (int)victim : MINT_DST_SELF),
                  "the MAC of port %u was taken over", victim);
        }
        send_macs(f, 1, dst, multicast, 9);
        send_macs(f, 1, dst, broadcast, 9);
        nothing_comes(f, 0);
        CHECK(rx_counter(f, 0, 1, MINT_RX_DROP_SPOOF) == 6, "%llu counted",
              (unsigned long long)rx_counter(f, 0, 1, MINT_RX_DROP_SPOOF));
        CHECK(port_counter(f, 0, MINT_PORT_LEARNED) == 0, "something was learned");
        fabric_free(f);
    }
}

static void learning_is_bounded(void)
{
    struct fabric *f = fabric_with_bridges(MINT_LAYOUT_PER_CHANNEL);
    uint8_t dst[6], src[6] = {0x02, 1, 2}, known[6];

    mac_of(0, dst);
    mac_of(3, known);
    for (uint32_t i = 0; i < 5000; i++) {
        memcpy(src + 3, &i, 3);
        send_macs(f, 1, dst, src, (uint8_t)i);
        comes(f, 0, (uint8_t)i);
        CHECK(mint_port_lookup(f->port[0], src) == 1, "MAC %u is not learned", i);
    }
    CHECK(port_counter(f, 0, MINT_PORT_LEARNED) == 5000, "not counted");
    CHECK(mint_port_lookup(f->port[0], known) == 3, "a port was forgotten");
    fabric_free(f);
}

/* ------------------------------------------------------------------ what is not accepted */

static void foreign_source_macs_are_dropped(void)
{
    EACH_LAYOUT(layout)
    {
        struct fabric *f = open_fabric(3, layout);
        uint8_t dst[6], src[6];

        mac_of(1, dst);
        mac_of(2, src);
        send_macs(f, 0, dst, src, 1);
        send_macs(f, 0, dst, stranger, 2);
        send_macs(f, 0, dst, broadcast, 3);
        send_frame(f, 0, 1, 100, 4);
        comes(f, 1, 4);
        nothing_comes(f, 1);
        CHECK(rx_counter(f, 1, 0, MINT_RX_DROP_SPOOF) == 3, "not counted");
        CHECK(rx_counter(f, 1, 0, MINT_RX_FRAMES) == 1, "counted as received");
        fabric_free(f);
    }
}

static enum mint_sent send_vnet(struct fabric *f, struct mint_vnet vnet, uint32_t len, uint8_t mark)
{
    static uint8_t frame[MINT_FRAME_MAX];
    uint8_t dst[6], src[6];
    enum mint_sent sent;

    mac_of(1, dst);
    mac_of(0, src);
    make_frame(frame, dst, src, len, mark);
    sent = mint_port_send(f->port[0], &vnet, frame, len, NULL);
    mint_port_flush(f->port[0]);
    return sent;
}

static void nonsense_in_the_vnet_header_is_dropped(void)
{
    EACH_LAYOUT(layout)
    {
        struct fabric *f = open_fabric(2, layout);
        const struct mint_vnet good = {
            .flags = MINT_VNET_NEEDS_CSUM, .csum_start = 34, .csum_offset = 16};
        const struct mint_vnet bad = {
            .flags = MINT_VNET_NEEDS_CSUM, .csum_start = 1490, .csum_offset = 16};
        const struct mint_vnet gso1 = {1, MINT_GSO_TCPV4, 66, 1, 34, 16, 0};
        struct mint_view v;

        CHECK(send_vnet(f, bad, 1500, 1) == MINT_SENT, "the sender judges");
        CHECK(send_vnet(f, gso1, 60000, 2) == MINT_SENT, "the sender judges");
        CHECK(send_vnet(f, good, 1500, 3) == MINT_SENT, "a good one is refused");
        CHECK(mint_port_recv(f->port[1], &v), "a good one does not come");
        CHECK(v.frame[1499] == 3 && memcmp(&v.vnet, &good, sizeof(good)) == 0, "damaged");
        CHECK(memcmp(v.head, v.frame, sizeof(v.head)) == 0 && v.src == 0 && v.len == 1500, "view");
        mint_port_release(f->port[1], &v);
        mint_port_recycle(f->port[1]);
        nothing_comes(f, 1);
        CHECK(rx_counter(f, 1, 0, MINT_RX_DROP_VNET) == 2, "not counted");
        fabric_free(f);
    }
}

static void longer_than_the_mtu_is_dropped(void)
{
    EACH_LAYOUT(layout)
    {
        struct fabric *f = fabric_new(2, layout, CAPACITY);
        const struct mint_vnet gso = {1, MINT_GSO_TCPV4, 66, 1448, 34, 16, 0};

        f->frame_max = 1522;
        fabric_open(f);
        send_frame(f, 0, 1, 1522, 1);
        comes(f, 1, 1);
        send_frame(f, 0, 1, 1523, 2);
        nothing_comes(f, 1);
        CHECK(rx_counter(f, 1, 0, MINT_RX_DROP_TOO_BIG) == 1, "not counted");
        CHECK(send_vnet(f, gso, 30000, 3) == MINT_SENT, "not sent");
        comes(f, 1, 3); /* it will be cut */
        fabric_free(f);
    }
}

/* A number of buffers means something in a virtqueue only: no receiver sees one. */
static void num_buffers_is_cleared(void)
{
    EACH_LAYOUT(layout)
    {
        struct fabric *f = open_fabric(2, layout);
        struct mint_rec *rec = mint_port_reserve(f->port[0], 1, 100);
        struct mint_view v;
        uint8_t dst[6], src[6];

        CHECK(rec, "no room");
        mac_of(1, dst);
        mac_of(0, src);
        make_frame(rec->frame, dst, src, 100, 1);
        rec->vnet = (struct mint_vnet){.num_buffers = 7};
        mint_port_commit(f->port[0], 1, rec, 100);
        mint_port_flush(f->port[0]);
        CHECK(mint_port_recv(f->port[1], &v) && v.vnet.num_buffers == 0, "%u buffers",
              v.vnet.num_buffers);
        mint_port_release(f->port[1], &v);
        mint_port_recycle(f->port[1]);
        fabric_free(f);
    }
}

/* The sender breaks a rule while a frame of its is in hand: that frame is of another generation. */
static void a_reset_with_a_frame_in_hand(void)
{
    struct fabric *f = open_fabric(2, MINT_LAYOUT_PER_CHANNEL);
    const struct mint_peer *peer = f->port[0]->peers[1];
    struct mint_view held, v;

    CHECK(send_frame(f, 0, 1, 100, 1) == MINT_SENT, "not sent");
    CHECK(mint_port_recv(f->port[1], &held), "nothing comes");
    store_release(&f->port[0]->slots[1].head, peer->tx.head + 1);
    CHECK(!mint_port_recv(f->port[1], &v), "a head off the grid is believed");
    mint_port_release(f->port[1], &held);
    mint_port_recycle(f->port[1]);
    CHECK(rx_counter(f, 1, 0, MINT_RX_RESETS) == 1, "not counted");
    for (uint8_t i = 0; i < 10; i++) {
        CHECK(send_frame(f, 0, 1, 1000, i) == MINT_SENT, "not sent after the reset");
        comes(f, 1, i);
    }
    CHECK(rx_counter(f, 1, 0, MINT_RX_RESETS) == 1 && tx_counter(f, 0, 1, MINT_TX_RESETS) == 1,
          "reset again");
    fabric_free(f);
}

/* A run of bad frames is got over in steps that end. */
static void many_bad_frames_do_not_hide_a_good_one(void)
{
    EACH_LAYOUT(layout)
    {
        struct fabric *f = open_fabric(2, layout);
        uint8_t dst[6];
        uint32_t calls = 0;

        mac_of(1, dst);
        for (uint32_t i = 0; i < 150; i++)
            send_macs(f, 0, dst, stranger, 0);
        send_frame(f, 0, 1, 100, 77);
        while (recv_mark(f, 1) != 77)
            CHECK(++calls < 5, "the good one does not come");
        CHECK(rx_counter(f, 1, 0, MINT_RX_DROP_SPOOF) == 150, "not counted");
        fabric_free(f);
    }
}

/* One sender's frames do not keep another's from being received. */
static void senders_take_turns(void)
{
    EACH_LAYOUT(layout)
    {
        struct fabric *f = fabric_open(fabric_new(4, layout, 4 * CAPACITY));
        uint32_t got[3] = {0};

        for (uint32_t i = 0; i < 100; i++)
            CHECK(send_frame(f, 0, 3, 100, 10) == MINT_SENT, "not sent");
        for (uint32_t i = 0; i < 30; i++) {
            CHECK(send_frame(f, 1, 3, 100, 11) == MINT_SENT, "not sent");
            CHECK(send_frame(f, 2, 3, 100, 12) == MINT_SENT, "not sent");
        }
        for (uint32_t i = 0; i < 160; i++) {
            int mark = recv_mark(f, 3);

            CHECK(mark >= 10 && mark <= 12, "frame %u: %d", i, mark);
            got[mark - 10]++;
            if (layout == MINT_LAYOUT_PER_CHANNEL && i == 95) /* three turns */
                CHECK(got[1] == 30 && got[2] == 30, "%u, %u, %u", got[0], got[1], got[2]);
        }
        CHECK(got[0] == 100 && got[1] == 30 && got[2] == 30, "%u, %u, %u", got[0], got[1], got[2]);
        fabric_free(f);
    }
}

/* Frames for an interface that refuses them are counted as that, and not as received. */
static void refused_frames_are_counted(void)
{
    EACH_LAYOUT(layout)
    {
        struct fabric *f = open_fabric(2, layout);
        struct mint_view v;

        send_frame(f, 0, 1, 100, 1);
        CHECK(mint_port_recv(f->port[1], &v), "it does not come");
        mint_port_refused(f->port[1], &v, MINT_RX_DROP_DEVICE);
        mint_port_release(f->port[1], &v);
        mint_port_recycle(f->port[1]);
        CHECK(rx_counter(f, 1, 0, MINT_RX_DROP_DEVICE) == 1, "not counted");
        CHECK(rx_counter(f, 1, 0, MINT_RX_FRAMES) == 0, "counted as received");
        CHECK(rx_counter(f, 1, 0, MINT_RX_BYTES) == 0, "counted as received");
        fabric_free(f);
    }
}

static const struct check_test tests[] = {
    CHECK_TEST(looks_up),
    CHECK_TEST(unicast_goes_to_one),
    CHECK_TEST(floods_go_to_all),
    CHECK_TEST(a_lonely_port_drops),
    CHECK_TEST(unknown_and_own_are_dropped),
    CHECK_TEST(lengths_have_bounds),
    CHECK_TEST(in_place),
    CHECK_TEST(unknown_goes_to_bridges),
    CHECK_TEST(learns_behind_bridges),
    CHECK_TEST(a_bridge_may_not_take_others_macs),
    CHECK_TEST(learning_is_bounded),
    CHECK_TEST(foreign_source_macs_are_dropped),
    CHECK_TEST(nonsense_in_the_vnet_header_is_dropped),
    CHECK_TEST(longer_than_the_mtu_is_dropped),
    CHECK_TEST(num_buffers_is_cleared),
    CHECK_TEST(a_reset_with_a_frame_in_hand),
    CHECK_TEST(many_bad_frames_do_not_hide_a_good_one),
    CHECK_TEST(senders_take_turns),
    CHECK_TEST(refused_frames_are_counted),
};

int main(int argc, char **argv)
{
    return CHECK_MAIN(argc, argv, tests);
}
