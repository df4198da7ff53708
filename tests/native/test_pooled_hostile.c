/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_pooled_hostile.c - layout pooled with a peer, or a predecessor, that breaks its rules: it
 * costs its own channel and nothing else, and an honest successor finds a channel that works.
 */
#include "port_util.h"

#define CAPACITY 393216u
#define BLOCKS (CAPACITY / MINT_STOCK_BLOCK)

static uint64_t random_state = 0x9e3779b97f4a7c15ull; // NOLINT(*-non-const-global-variables)

static uint64_t random_bits(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state;
}

static uint32_t below(uint32_t limit)
{
    return (uint32_t)(random_bits() >> 33) % limit;
}

static struct fabric *open_fabric(uint32_t ports)
{
    return fabric_open(fabric_new(ports, MINT_LAYOUT_POOLED, CAPACITY));
}

/* Take all that waits; a port answers resets by doing so. */
static uint32_t drain(struct fabric *f, uint32_t at)
{
    uint32_t n = 0;

    for (uint32_t idle = 0; idle < 2; idle++)
        while (recv_mark(f, at) >= 0)
            n++;
    return n;
}

/* Both ends agree after a few rounds at most, and then nothing is lost. */
static void works(struct fabric *f, uint32_t from, uint32_t to)
{
    uint32_t tries = 0;

    while (send_frame(f, from, to, 100, 201) != MINT_SENT || recv_mark(f, to) != 201) {
        CHECK(++tries < 8, "%u -> %u does not come to itself", from, to);
        drain(f, to);
        mint_port_wait(f->port[from], 0);
        mint_port_wait(f->port[to], 0);
    }
    drain(f, to);
    for (uint32_t i = 0; i < 200; i++) {
        CHECK(send_frame(f, from, to, 100 + 300 * (i % 7), (uint8_t)i) == MINT_SENT, "not sent");
        CHECK(recv_mark(f, to) == (int)(i % 256), "frame %u does not come", i);
    }
}

static void nothing_is_missing(struct fabric *f, uint32_t i)
{
    struct mint_pooled *p = f->port[i]->pooled;

    for (uint32_t q = 0; q < f->ports; q++)
        if (p->lanes[q].tx)
            mint_lane_admits_now(&p->lanes[q], 1);
    CHECK(p->stock.free == BLOCKS && p->common == (int32_t)(BLOCKS / 2),
          "port %u: %u blocks are missing, %d common", i, BLOCKS - p->stock.free, p->common);
}

/* ---------------------------------------------------------------------------- a bad receiver */

static void bad_tail(uint64_t tail, bool back)
{
    struct fabric *f = open_fabric(3);
    struct mint_lane *lane = &f->port[0]->pooled->lanes[1];
    struct mint_slot *theirs = &f->port[1]->slots[0];

    for (uint8_t i = 0; i < 20; i++)
        CHECK(send_frame(f, 0, 1, 300, i) == MINT_SENT && recv_mark(f, 1) == i, "does not work");
    CHECK(send_frame(f, 0, 1, 300, 1) == MINT_SENT, "not sent");
    CHECK(mint_lane_admits_now(lane, 1), "an honest tail is refused");
    store_release(&theirs->tail, back ? lane->settled - tail : lane->tx->head + tail);
    CHECK(!mint_lane_admits_now(lane, 1), "it is believed");
    CHECK(load_relaxed(&f->port[0]->slots[1].tx_end) == MINT_END(lane->tx->gen, MINT_END_RESET),
          "no reset");
    CHECK(send_frame(f, 0, 1, MINT_FRAME_MAX, 1) == MINT_DROPPED ||
              MINT_END_STATE(load_relaxed(&f->port[0]->slots[1].tx_end)) == MINT_END_RESET,
          "goes on");
    CHECK(f->port[0]->pooled->stock.free < BLOCKS, "it may read what is free");
    works(f, 0, 2);
    works(f, 0, 1);
    CHECK(rx_counter(f, 1, 0, MINT_RX_RESETS) == 1, "not counted");
    CHECK(tx_counter(f, 0, 1, MINT_TX_RESETS) == 1, "not counted");
    nothing_is_missing(f, 0);
    fabric_free(f);
}

static void completions_of_nothing(void)
{
    bad_tail(MINT_LINE, false);
    bad_tail(100 * MINT_LINE, false);
    bad_tail(1ull << 40, false);
    bad_tail(1ull << 63, false);
    bad_tail(MINT_LINE, true); /* what was completed long ago */
    bad_tail(19 * MINT_LINE, true);
    bad_tail(1, true);
    bad_tail(17, false);
}

static void check_frame(const struct mint_view *v, uint32_t number)
{
    uint32_t got;

    memcpy(&got, v->frame + 14, sizeof(got));
    CHECK(got == number, "frame %u came instead of %u", got, number);
    for (uint32_t i = 18; i < v->len; i++)
        CHECK(v->frame[i] == (uint8_t)(number + i), "frame %u: byte %u is damaged", number, i);
}

static bool send_number(struct fabric *f, uint32_t to, uint32_t number, uint32_t len)
{
    uint8_t frame[5000], src[6], dst[6];
    enum mint_sent sent;

    mac_of(0, src);
    mac_of(to, dst);
    make_frame(frame, dst, src, len, 0);
    memcpy(frame + 14, &number, sizeof(number));
    for (uint32_t i = 18; i < len; i++)
        frame[i] = (uint8_t)(number + i);
    sent = mint_port_send(f->port[0], NULL, frame, len, NULL);
    mint_port_flush(f->port[0]);
    return sent == MINT_SENT;
}

static uint64_t nonsense(uint64_t around)
{
    switch (below(5)) {
    case 0:
        return random_bits();
    case 1:
        return around + below(2 * MINT_LANE_CAP);
    case 2:
        return around - below(2 * MINT_LANE_CAP);
    default:
        return around + (uint64_t)MINT_LINE * below(MINT_LANE_DESCS + 1);
    }
}

static uint32_t nonsense_word(uint32_t gen)
{
    return MINT_END(below(8) ? gen : gen + below(3) - 1, below(4));
}

/* Port 1 lies about all that it has read; port 2 gets what is sent to it, whole and in order. */
static void a_receiver_of_nonsense(void)
{
    struct fabric *f = open_fabric(3);
    struct mint_slot *theirs = &f->port[1]->slots[0];
    uint32_t sent = 0, number = 0, expect = 0;

    for (uint32_t i = 0; i < 60000; i++) {
        struct mint_lane *lane = &f->port[0]->pooled->lanes[1];
        struct mint_view v;

        if (below(3))
            store_relaxed(&theirs->tail, nonsense(lane->tx->head));
        store_relaxed(&theirs->rx_end, below(4) ? MINT_END(lane->tx->gen, MINT_END_OPEN)
                                                : nonsense_word(lane->tx->gen));
        for (uint32_t n = below(5); n; n--)
            sent += send_number(f, 1, 0, 60 + below(3000));
        for (uint32_t n = 0; n < 7 && send_number(f, 2, number, 60 + below(3000)); n++)
            number++;
        while (below(20) && mint_port_recv(f->port[2], &v)) {
            check_frame(&v, expect++);
            mint_port_release(f->port[2], &v);
        }
        mint_port_recycle(f->port[2]);
        if (i % 1000 == 0) {
            crash_port(f, 0); /* it dies of something else now and then */
            open_port(f, 0);
        }
        if (i % 50 == 0) /* an honest word, or it would ask for a reset for ever */
            store_release(&theirs->rx_end,
                          MINT_END(f->port[0]->pooled->lanes[1].tx->gen + 1, MINT_END_RESET));
    }
    CHECK(sent > 1000 && number > 50000, "%u and %u frames found room", sent, number);
    crash_port(f, 1); /* an honest successor */
    open_port(f, 1);
    works(f, 0, 1);
    drain(f, 2);
    works(f, 0, 2);
    nothing_is_missing(f, 0);
    fabric_free(f);
}

/* One that reads nothing keeps its share, whoever serves the sender, and no more. */
static void a_receiver_that_never_completes(void)
{
    struct fabric *f = open_fabric(4);
    uint32_t used = 0;

    for (uint32_t life = 0; life < 10; life++) {
        while (send_frame(f, 0, 1, 1500, 1) == MINT_SENT)
            ;
        CHECK(!used || f->port[0]->pooled->lanes[1].used == used, "more in life %u", life);
        used = f->port[0]->pooled->lanes[1].used;
        CHECK(used <= BLOCKS / 6 + BLOCKS / 4, "%u of %u blocks", used, BLOCKS);
        works(f, 0, 2);
        works(f, 0, 3);
        crash_port(f, 0);
        open_port(f, 0);
    }
    fabric_free(f);
}

/* ------------------------------------------------------------------------------ a bad sender */

static void bad_descriptor(uint64_t desc)
{
    struct fabric *f = open_fabric(3);
    struct mint_view v;

    for (uint8_t i = 0; i < 20; i++)
        CHECK(send_frame(f, 0, 1, 300, i) == MINT_SENT && recv_mark(f, 1) == i, "does not work");
    for (uint8_t i = 0; i < 3; i++)
        CHECK(send_frame(f, 0, 1, 300, i) == MINT_SENT, "not sent");
    store_relaxed(&f->port[0]->pooled->lanes[1].desc[20], desc);
    CHECK(!mint_port_recv(f->port[1], &v), "descriptor %#llx is believed",
          (unsigned long long)desc);
    CHECK(rx_counter(f, 1, 0, MINT_RX_RESETS) == 1, "not counted");
    works(f, 2, 1);
    works(f, 0, 1);
    works(f, 0, 2);
    CHECK(rx_counter(f, 1, 0, MINT_RX_RESETS) == 1, "reset again");
    CHECK(tx_counter(f, 0, 1, MINT_TX_DROP_RESET) == 3, "%llu counted",
          (unsigned long long)tx_counter(f, 0, 1, MINT_TX_DROP_RESET));
    fabric_free(f);
}

static void bad_descriptors(void)
{
    bad_descriptor(0);
    bad_descriptor(MINT_DESC(0, 13));
    bad_descriptor(MINT_DESC(0, MINT_FRAME_MAX + 1));
    bad_descriptor(MINT_DESC(0, UINT32_MAX));
    bad_descriptor(MINT_DESC(BLOCKS, 100));
    bad_descriptor(MINT_DESC(BLOCKS - 1, 1500));
    bad_descriptor(MINT_DESC(BLOCKS - 512, MINT_FRAME_MAX));
    bad_descriptor(MINT_DESC(UINT32_MAX, 100));
    bad_descriptor(UINT64_MAX);
}

/* Who breaks rules is shunned for a while; here that while is over at once. */
static void let_time_pass(struct fabric *f, uint32_t receiver, uint32_t sender)
{
    struct mint_peer *peer = f->port[receiver]->peers[sender];

    if (peer->shunned_until)
        peer->shunned_until = 1;
}

/* Whatever a sender writes, its receiver stays within the region, and others reach it. */
static void a_sender_of_nonsense(void)
{
    struct fabric *f = open_fabric(3);
    struct mint_lane *lane = &f->port[0]->pooled->lanes[1];
    const struct mint_lane_rx *rx = &f->port[1]->peers[0]->lane;
    static uint8_t out[MINT_FRAME_MAX];

    for (uint32_t i = 0; i < 100000; i++) {
        struct mint_slot *ours = &f->port[0]->slots[1];
        struct mint_view v;

        let_time_pass(f, 1, 0);
        for (uint32_t n = below(4); n; n--)
            store_relaxed(&lane->desc[below(MINT_LANE_DESCS)],
                          below(3) ? MINT_DESC(below(BLOCKS + 10), below(4000)) : random_bits());
        if (below(3))
            store_relaxed(&ours->head, nonsense(f->port[1]->peers[0]->rx.next));
        store_relaxed(&ours->tx_end, below(3)
                                         ? MINT_END(f->port[1]->peers[0]->rx.gen, MINT_END_OPEN)
                                         : nonsense_word(f->port[1]->peers[0]->rx.gen));
        for (uint32_t n = 0; n < 20 && mint_port_recv(f->port[1], &v); n++) {
            size_t at = (size_t)(v.frame - rx->data);

            CHECK(at % MINT_STOCK_BLOCK == 16 && at + v.len <= CAPACITY, "%zu + %u", at, v.len);
            memcpy(out, v.frame, v.len);
            mint_port_release(f->port[1], &v);
        }
        mint_port_recycle(f->port[1]);
        if (i % 500 == 0)
            works(f, 2, 1);
    }
    CHECK(rx_counter(f, 1, 0, MINT_RX_RESETS) > 1000, "few breaches were noticed");
    CHECK(rx_counter(f, 1, 0, MINT_RX_SHUNNED) > 0, "never shunned");
    let_time_pass(f, 1, 0);
    crash_port(f, 0);
    open_port(f, 0);
    works(f, 0, 1);
    works(f, 0, 2);
    nothing_is_missing(f, 0);
    fabric_free(f);
}

/* -------------------------------------------------------------------------- a bad predecessor */

static void a_predecessor_of_nonsense(void)
{
    struct fabric *f = open_fabric(3);

    for (uint32_t i = 0; i < 3000; i++) {
        struct mint_pooled *p = f->port[0]->pooled;

        for (uint32_t n = below(200); n; n--)
            send_frame(f, 0, 1 + below(2), 60 + below(4000), 1);
        for (uint32_t q = 0; q < 3; q++) {
            struct mint_slot *ours = &f->port[0]->slots[q];

            for (uint32_t n = below(600); n; n--)
                store_relaxed(&p->lanes[q].desc[below(MINT_LANE_DESCS)],
                              below(3) ? MINT_DESC(below(BLOCKS), 14 + below(3000))
                                       : random_bits());
            if (below(2))
                store_relaxed(p->lanes[q].note, nonsense(load_relaxed(&ours->head)));
            if (below(2))
                store_relaxed(&ours->head, nonsense(load_relaxed(&ours->head)));
            if (below(4) == 0)
                store_relaxed(&ours->tx_end, nonsense_word((uint32_t)random_bits() & 0xffffff));
        }
        crash_port(f, 0);
        open_port(f, 0);
        if (i % 10 == 0) {
            works(f, 0, 1);
            works(f, 0, 2);
            nothing_is_missing(f, 0);
        }
    }
    fabric_free(f);
}

static const struct check_test tests[] = {
    CHECK_TEST(completions_of_nothing),
    CHECK_TEST(a_receiver_of_nonsense),
    CHECK_TEST(a_receiver_that_never_completes),
    CHECK_TEST(bad_descriptors),
    CHECK_TEST(a_sender_of_nonsense),
    CHECK_TEST(a_predecessor_of_nonsense),
};

int main(int argc, char **argv)
{
    return CHECK_MAIN(argc, argv, tests);
}
