/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_ring_hostile.c - the per-channel buffer with a peer that breaks its rules: each breach
 * resets the channel, is counted, and leaves it working; nothing outside the region is touched.
 */
#include "ring_util.h"

#define CAP (41u * 4096u)

/* The header of the record that the consumer reads next, as its producer can change it. */
static struct mint_rec *next_record(struct channel *c)
{
    return (struct mint_rec *)(void *)(c->tx_area + GUARD + c->rx.next % c->cap);
}

/* A channel in which a few frames were exchanged and `unread` ones are published. */
static struct channel *channel_with(uint32_t unread)
{
    struct channel *c = open_channel(CAP);

    works(c, 30);
    for (uint32_t i = 0; i < unread; i++)
        CHECK(stage(c, i, 500), "no room");
    mint_ring_publish(&c->tx);
    return c;
}

/*
 * The consumer has seen a breach: it made a demand, the producer follows, and all works again.
 * @gen: the generation before; @unread: frames that were unread
 */
static void recovers(struct channel *c, uint32_t gen, uint64_t unread)
{
    CHECK(c->rx.resets == 1, "%u resets", c->rx.resets);
    CHECK(load_relaxed(&c->receiver->rx_end) == MINT_END(gen + 1, MINT_END_RESET),
          "the consumer is at %#x", load_relaxed(&c->receiver->rx_end));
    CHECK(!mint_ring_next(&c->rx, &(uint32_t){0}), "a record before the producer has joined");
    CHECK(c->rx.resets == 1, "reset again without a reason");
    watch(c, false);
    works(c, 200);
    CHECK(c->rx.resets == 1 && rejoins(c) == 1, "%u resets, %u rejoins", c->rx.resets,
          (uint32_t)rejoins(c));
    CHECK(lost(c) == unread, "%llu lost, not %llu", (unsigned long long)lost(c),
          (unsigned long long)unread);
    CHECK(c->tx.gen == gen + 1 && c->rx.gen == gen + 1, "generations %u, %u", c->tx.gen, c->rx.gen);
    free_channel(c);
}

/* ------------------------------------------------------------------ the producer breaks a rule */

static void bad_head(uint64_t offset)
{
    struct channel *c = channel_with(3);
    uint32_t gen = c->rx.gen, len;

    store_release(&c->sender->head, c->rx.next + offset);
    CHECK(mint_ring_rx_pending(&c->rx), "the consumer would sleep");
    CHECK(!mint_ring_next(&c->rx, &len), "a record, head %#llx on", (unsigned long long)offset);
    recovers(c, gen, 3);
}

static void head_beyond_the_capacity(void)
{
    bad_head((uint64_t)CAP + MINT_LINE);
    bad_head(1ull << 40);
    bad_head(1ull << 63);
}

static void head_before_the_tail(void)
{
    bad_head(-(uint64_t)MINT_LINE);
    bad_head(-(uint64_t)CAP);
}

static void head_off_the_grid(void)
{
    for (uint32_t off = 1; off < MINT_LINE; off += 3)
        bad_head(MINT_LINE + off);
    bad_head(1);
    bad_head(3 * MINT_REC_BYTES(500) + 1); /* behind records that are in order */
}

static void bad_length(uint32_t bad)
{
    struct channel *c = channel_with(3);
    uint32_t gen = c->rx.gen, len;

    store_relaxed(&next_record(c)->len, bad);
    CHECK(!mint_ring_next(&c->rx, &len), "a record of %u bytes", bad);
    /* The producer cannot count over a record that it has spoilt itself. */
    recovers(c, gen, 0);
}

static void record_lengths(void)
{
    static const uint32_t bad[] = {
        0,          1,        13,       MINT_FRAME_MAX + 1, 65585,
        1u << 17,   1u << 30, 1u << 31, UINT32_MAX - 63,    UINT32_MAX - 15,
        UINT32_MAX,
    };

    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        bad_length(bad[i]);
}

/* However much is published, a record is never longer than the longest. */
static void the_longest_record(void)
{
    struct channel *c = channel_with(0);
    uint32_t gen = c->rx.gen, len;

    for (uint32_t i = 0; i < 2; i++)
        CHECK(stage(c, i, MINT_FRAME_MAX), "no room");
    mint_ring_publish(&c->tx);
    store_relaxed(&next_record(c)->len, MINT_FRAME_MAX + 1);
    CHECK(!mint_ring_next(&c->rx, &len), "a record of %u bytes", len);
    recovers(c, gen, 0);
}

/* A record that would reach behind what is published. */
static void record_beyond_the_head(void)
{
    struct channel *c = channel_with(1);
    uint32_t gen = c->rx.gen, len;

    store_relaxed(&next_record(c)->len, 500 + MINT_LINE);
    CHECK(!mint_ring_next(&c->rx, &len), "more than was published");
    recovers(c, gen, 1); /* the producer counts by its own length: one record */

    c = channel_with(1);
    gen = c->rx.gen;
    store_relaxed(&next_record(c)->len, MINT_FRAME_MAX);
    CHECK(!mint_ring_next(&c->rx, &len), "more than was published");
    recovers(c, gen, 1);
}

/* What was read before the breach was received, and is not counted as lost. */
static void breach_in_the_middle(void)
{
    struct channel *c = channel_with(5);
    uint32_t gen = c->rx.gen, len;
    uint64_t number;

    CHECK(take(c, &number, &len) && take(c, &number, &len), "nothing comes");
    store_release(&c->sender->head, c->rx.next + 1);
    CHECK(take(c, &number, &len) && take(c, &number, &len) && take(c, &number, &len),
          "what was seen before is gone");
    CHECK(number == 4 && !mint_ring_next(&c->rx, &len), "the breach goes unnoticed");
    recovers(c, gen, 0);
}

static void the_producer_asks_for_a_reset(void)
{
    struct channel *c = channel_with(3);
    uint32_t gen = c->rx.gen, len;

    store_release(&c->sender->tx_end, MINT_END(gen, MINT_END_RESET));
    c->tx_word = MINT_END(gen, MINT_END_RESET);
    CHECK(mint_ring_rx_pending(&c->rx), "the consumer would sleep");
    CHECK(!mint_ring_next(&c->rx, &len), "a record");
    recovers(c, gen, 3);
}

/* It asks before the consumer has seen it join: both would wait for ever. */
static void the_producer_asks_at_once(void)
{
    struct channel *c = new_channel(CAP);
    uint32_t len;

    open_rx(c);
    watch(c, true);
    open_tx(c);
    CHECK(stage(c, 0, 100), "no room");
    store_release(&c->sender->tx_end, MINT_END(c->tx.gen, MINT_END_RESET));
    CHECK(mint_ring_rx_pending(&c->rx), "the consumer would sleep");
    CHECK(!mint_ring_next(&c->rx, &len), "a record");
    c->tx_word = load_relaxed(&c->sender->tx_end);
    watch(c, false);
    works(c, 100);
    free_channel(c);
}

/* Words that no version of ours writes are like a producer that is not there. */
static void unknown_states_are_waited_out(void)
{
    static const uint32_t words[] = {3, 0x7f, 0xff, 0xffffff00u | MINT_END_OPEN};

    for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++) {
        struct channel *c = channel_with(0);
        uint32_t good = load_relaxed(&c->sender->tx_end), len;

        CHECK(stage(c, 0, 100) && mint_ring_publish(&c->tx) == 1, "no room");
        store_release(&c->sender->tx_end, words[i] > 0xff ? words[i] : (good & ~0xffu) | words[i]);
        CHECK(!mint_ring_rx_pending(&c->rx), "the consumer would never sleep");
        CHECK(!mint_ring_next(&c->rx, &len), "a record");
        store_release(&c->sender->tx_end, good);
        CHECK(take(c, &(uint64_t){0}, &len) && c->rx.resets == 0, "it does not go on");
        mint_ring_recycle(&c->rx);
        works(c, 10);
        free_channel(c);
    }
}

/* ------------------------------------------------------------------ the consumer breaks a rule */

static void bad_tail(uint64_t offset)
{
    struct channel *c = channel_with(3);
    uint32_t gen = c->rx.gen, tries = 0;

    CHECK(mint_ring_tx_refresh(&c->tx, MINT_LINE), "no room"); /* it knows what was given back */
    store_release(&c->receiver->tail, c->tx.published + offset);
    while (mint_ring_reserve(&c->tx, MINT_FRAME_MAX)) { /* until it looks */
        CHECK(stage(c, 10 + tries, MINT_FRAME_MAX), "no room");
        CHECK(++tries < 10, "a tail %#llx on is believed", (unsigned long long)offset);
    }
    CHECK(load_relaxed(&c->sender->tx_end) == MINT_END(gen, MINT_END_RESET), "no reset: %#x",
          load_relaxed(&c->sender->tx_end));
    CHECK(!mint_ring_tx_up(&c->tx), "the channel looks up");
    CHECK(!mint_ring_reserve(&c->tx, MINT_FRAME_MAX), "room meanwhile");
    watch(c, false);
    mint_ring_publish(&c->tx);
    CHECK(mint_ring_rx_pending(&c->rx), "the consumer would sleep");
    CHECK(!mint_ring_next(&c->rx, &(uint32_t){0}), "a record of a channel to be reset");
    recovers(c, gen, 3 + tries);
}

static void tail_beyond_the_head(void)
{
    bad_tail(MINT_LINE);
    bad_tail(1ull << 50);
    bad_tail(1ull << 63);
}

static void tail_too_far_back(void)
{
    bad_tail(-(uint64_t)CAP - MINT_LINE);
}

/* To before what the producer has seen, however little: what was given back is in use again. */
static void tail_that_goes_back(void)
{
    bad_tail(-3ull * MINT_REC_BYTES(500u) - MINT_LINE);
    bad_tail(-3ull * MINT_REC_BYTES(500u) - 100 * MINT_LINE);
    bad_tail(-(uint64_t)CAP);
}

static void tail_off_the_grid(void)
{
    bad_tail(-1ull);
    bad_tail(-(uint64_t)MINT_LINE - 32);
}

/* A consumer may begin a generation anywhere; off the grid or not, the producer stays in bounds. */
static void a_demand_from_anywhere(void)
{
    static const uint64_t tails[] = {1, 63, CAP - 1, CAP, 1ull << 33, UINT64_MAX, UINT64_MAX - 127};

    for (size_t i = 0; i < sizeof(tails) / sizeof(tails[0]); i++) {
        struct channel *c = channel_with(2);

        store_relaxed(&c->receiver->tail, tails[i]);
        store_release(&c->receiver->rx_end, MINT_END(0x500 + i, MINT_END_RESET));
        for (uint32_t n = 0; n < 5; n++)
            stage(c, n, random_length()); /* the guards are around */
        mint_ring_publish(&c->tx);
        CHECK(load_relaxed(&c->sender->head) % MINT_LINE == 0, "the head is off the grid");
        CHECK(c->tx.gen == 0x500 + i, "it has not joined");
        open_rx(c); /* an honest successor */
        c->rx_word = load_relaxed(&c->receiver->rx_end);
        c->tx_word = load_relaxed(&c->sender->tx_end);
        drain(c);
        works(c, 100);
        free_channel(c);
    }
}

/* What was given back is not lost, wherever a new generation is said to begin, however often. */
static void a_demand_from_before(void)
{
    struct channel *c = channel_with(0);
    uint64_t back = c->tx.head, number;
    uint32_t len;

    for (uint64_t i = 0; i < 50; i++) {
        CHECK(stage(c, i, 500) && mint_ring_publish(&c->tx) == 1, "no room");
        CHECK(take(c, &number, &len) && mint_ring_recycle(&c->rx), "frame %u does not come",
              (uint32_t)i);
    }
    CHECK(mint_ring_tx_refresh(&c->tx, MINT_LINE), "no room in an empty channel");
    for (uint32_t i = 1; i <= 10; i++) {
        store_relaxed(&c->receiver->tail, i % 2 ? back : back + 25u * MINT_REC_BYTES(500u));
        store_release(&c->receiver->rx_end, MINT_END(c->tx.gen + 1, MINT_END_RESET));
        CHECK(mint_ring_publish(&c->tx) == 0, "demand %u is not seen", i);
        CHECK(lost(c) == 0, "demand %u: %llu lost that were read", i, (unsigned long long)lost(c));
    }
    free_channel(c);
}

/* ----------------------------------------------------------------------------- random nonsense */

static uint64_t nonsense(uint64_t around)
{
    switch (random_below(5)) {
    case 0:
        return random_bits();
    case 1:
        return around + random_below(2 * CAP);
    case 2:
        return around - random_below(2 * CAP);
    default:
        return around + (uint64_t)MINT_LINE * random_below(CAP / MINT_LINE + 1);
    }
}

static uint32_t nonsense_word(uint32_t gen)
{
    return MINT_END(random_below(8) ? gen : gen + random_below(3) - 1, random_below(4));
}

/* What the consumer does must stay within the region, end, and keep its own slot in order. */
static void consume(struct channel *c)
{
    for (uint32_t n = 0; n < 40; n++) {
        uint32_t len, at;
        const struct mint_rec *rec = mint_ring_next(&c->rx, &len);
        static uint8_t out[MINT_FRAME_MAX];

        if (!rec)
            break;
        at = (uint32_t)((const uint8_t *)rec - (c->rx_area + GUARD));
        CHECK(at < CAP && at % MINT_LINE == 0, "a record at %u", at);
        CHECK(len >= MINT_FRAME_MIN && len <= MINT_FRAME_MAX, "a frame of %u bytes", len);
        memcpy(out, rec->frame, len); /* the guards are around */
        mint_ring_release(&c->rx, len);
    }
    mint_ring_recycle(&c->rx);
    CHECK(load_relaxed(&c->receiver->tail) % MINT_LINE == 0, "the tail is off the grid");
}

static void a_producer_of_nonsense(void)
{
    struct channel *c = open_channel(CAP);
    uint32_t resets = 0;

    for (uint32_t i = 0; i < 60000; i++) {
        uint32_t at = MINT_LINE * random_below(CAP / MINT_LINE);
        struct mint_rec *rec = (struct mint_rec *)(void *)(c->tx_area + GUARD + at);

        store_relaxed(&rec->len, random_below(4) ? random_length() : (uint32_t)random_bits());
        if (random_below(3))
            store_relaxed(&c->sender->head, nonsense(c->rx.next));
        store_relaxed(&c->sender->tx_end, random_below(3) ? MINT_END(c->rx.gen, MINT_END_OPEN)
                                                          : nonsense_word(c->rx.gen));
        consume(c);
        resets += c->rx.resets;
        c->rx.resets = 0;
        if (i % 500 == 0)
            open_rx(c); /* it dies of something else now and then */
    }
    CHECK(resets > 1000, "only %u breaches were noticed", resets);
    open_tx(c); /* an honest successor, on whatever was left */
    drain(c);
    c->rx_word = load_relaxed(&c->receiver->rx_end);
    c->tx_word = load_relaxed(&c->sender->tx_end);
    works(c, 200);
    free_channel(c);
}

static void a_consumer_of_nonsense(void)
{
    struct channel *c = open_channel(CAP);
    uint64_t sent = 0;

    for (uint32_t i = 0; i < 60000; i++) {
        if (random_below(3))
            store_relaxed(&c->receiver->tail, nonsense(c->tx.head));
        store_relaxed(&c->receiver->rx_end, random_below(4) ? MINT_END(c->tx.gen, MINT_END_OPEN)
                                                            : nonsense_word(c->tx.gen));
        for (uint32_t n = 0; n < 4; n++)
            sent += stage(c, i, random_below(20) ? 14 + random_below(3000) : MINT_FRAME_MAX);
        mint_ring_publish(&c->tx);
        CHECK(load_relaxed(&c->sender->head) % MINT_LINE == 0, "the head is off the grid");
        CHECK(c->tx.off < CAP && c->tx.off == c->tx.head % CAP, "offset %u", c->tx.off);
        if (i % 500 == 0)
            open_tx(c);
        if (i % 50 == 0) /* an honest word, or it would ask for a reset for ever */
            store_release(&c->receiver->rx_end, MINT_END(c->tx.gen + 1, MINT_END_RESET));
    }
    CHECK(sent > 1000, "only %llu frames found room", (unsigned long long)sent);
    CHECK(lost(c) <= sent, "more lost than sent");
    open_rx(c);
    c->rx_word = load_relaxed(&c->receiver->rx_end);
    drain(c);
    c->tx_word = load_relaxed(&c->sender->tx_end);
    works(c, 200);
    free_channel(c);
}

/* A control region that its own port's predecessor filled with nonsense. */
static void a_predecessor_of_nonsense(void)
{
    for (uint32_t i = 0; i < 2000; i++) {
        struct channel *c = channel_with(2);
        uint32_t gen = (uint32_t)random_bits() & 0xffffff;

        store_relaxed(&c->sender->head, nonsense(c->tx.head));
        store_relaxed(&c->sender->tx_end, nonsense_word(gen) & ~0xfcu);
        store_relaxed(&c->receiver->tail, nonsense(c->rx.next));
        store_relaxed(&c->receiver->rx_end, nonsense_word(gen) & ~0xfcu);
        open_tx(c);
        open_rx(c);
        for (uint32_t n = 0; n < 6; n++) {
            consume(c);
            stage(c, n, 100);
            mint_ring_publish(&c->tx);
        }
        drain(c);
        c->rx_word = load_relaxed(&c->receiver->rx_end);
        c->tx_word = load_relaxed(&c->sender->tx_end);
        works(c, 20);
        free_channel(c);
    }
}

static const struct check_test tests[] = {
    CHECK_TEST(head_beyond_the_capacity),  CHECK_TEST(head_before_the_tail),
    CHECK_TEST(head_off_the_grid),         CHECK_TEST(record_lengths),
    CHECK_TEST(the_longest_record),        CHECK_TEST(record_beyond_the_head),
    CHECK_TEST(breach_in_the_middle),      CHECK_TEST(the_producer_asks_for_a_reset),
    CHECK_TEST(the_producer_asks_at_once), CHECK_TEST(unknown_states_are_waited_out),
    CHECK_TEST(tail_beyond_the_head),      CHECK_TEST(tail_too_far_back),
    CHECK_TEST(tail_that_goes_back),       CHECK_TEST(tail_off_the_grid),
    CHECK_TEST(a_demand_from_anywhere),    CHECK_TEST(a_demand_from_before),
    CHECK_TEST(a_producer_of_nonsense),    CHECK_TEST(a_consumer_of_nonsense),
    CHECK_TEST(a_predecessor_of_nonsense),
};

int main(int argc, char **argv)
{
    return CHECK_MAIN(argc, argv, tests);
}
