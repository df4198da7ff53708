/* SPDX-License-Identifier: Apache-2.0 */
/* test_ring.c - the per-channel buffer between ends that keep the rules; crashes and restarts. */
#include "ring_util.h"

static const uint32_t capacities[] = {135168, 393216, 41 * 4096, 57 * 4096, 96 * 4096, 1u << 20};
#define CAPACITIES (sizeof(capacities) / sizeof(capacities[0]))

/* ------------------------------------------------------------------------------ room and order */

static void an_unopened_channel_is_down(void)
{
    struct channel *c = new_channel(capacities[0]);

    open_tx(c);
    watch(c, true);
    CHECK(!mint_ring_tx_up(&c->tx), "up without a consumer");
    CHECK(!mint_ring_reserve(&c->tx, 64), "room without a consumer");
    open_rx(c);
    watch(c, true);
    CHECK(mint_ring_tx_up(&c->tx), "down with a consumer");
    works(c, 10);
    free_channel(c);

    c = new_channel(capacities[0]); /* the other order */
    open_rx(c);
    watch(c, true);
    CHECK(!mint_ring_rx_pending(&c->rx), "pending without a producer");
    CHECK(!mint_ring_next(&c->rx, &(uint32_t){0}), "a record without a producer");
    open_tx(c);
    watch(c, true);
    works(c, 10);
    free_channel(c);
}

static void wraps_at_every_capacity(void)
{
    for (size_t i = 0; i < CAPACITIES; i++) {
        struct channel *c = open_channel(capacities[i]);

        works(c, 600); /* some ten megabytes: dozens of times around */
        CHECK(lost(c) == 0 && c->rx.resets == 0 && rejoins(c) == 0, "a quiet run was not");
        CHECK(load_relaxed(&c->sender->head) > 5ull * c->cap, "not often around");
        free_channel(c);
    }
}

/* Fill with records of one size until nothing fits: all but less than one record is used. */
static void fills_to_the_last_line(void)
{
    for (size_t i = 0; i < CAPACITIES; i++)
        for (uint32_t len = MINT_FRAME_MIN; len <= MINT_FRAME_MAX; len = len * 3 + 7) {
            struct channel *c = open_channel(capacities[i]);
            uint32_t most = c->cap / MINT_REC_BYTES(len), shift = random_below(600);

            works(c, shift); /* so that filling begins somewhere in the middle */
            for (uint32_t n = 0; n < most; n++)
                CHECK(stage(c, n, len), "%u of %u frames of %u bytes fit", n, most, len);
            CHECK(!mint_ring_reserve(&c->tx, len), "one too many");
            mint_ring_publish(&c->tx);
            CHECK(!mint_ring_reserve(&c->tx, len), "one too many, published");
            CHECK(drain(c) == most, "not all came");
            CHECK(mint_ring_reserve(&c->tx, len), "no room after all was read");
            free_channel(c);
        }
}

static void full_means_head_minus_tail_is_the_capacity(void)
{
    struct channel *c = open_channel(135168); /* 2112 lines: as many smallest records */
    uint64_t number;
    uint32_t len;

    works(c, 100);
    for (uint64_t n = 0; n < c->cap / MINT_LINE; n++)
        CHECK(stage(c, n, 48), "frame %u", (uint32_t)n);
    CHECK(mint_ring_publish(&c->tx) == c->cap / MINT_LINE, "not all published");
    CHECK(load_relaxed(&c->sender->head) - load_relaxed(&c->receiver->tail) == c->cap, "not full");
    CHECK(!stage(c, 0, MINT_FRAME_MIN), "room in a full channel");
    CHECK(take(c, &number, &len) && number == 0, "the oldest");
    CHECK(!stage(c, 0, MINT_FRAME_MIN), "room before it was given back");
    CHECK(mint_ring_recycle(&c->rx), "nothing to give back");
    CHECK(stage(c, c->cap / MINT_LINE, 48), "no room for one");
    CHECK(!stage(c, 0, MINT_FRAME_MIN), "room for two");
    mint_ring_publish(&c->tx);
    for (uint64_t n = 1; n <= c->cap / MINT_LINE; n++)
        CHECK(take(c, &number, &len) && number == n, "frame %u", (uint32_t)n);
    free_channel(c);
}

/* What is reserved may be committed shorter, and what is not published is not seen. */
static void commits_less_than_reserved(void)
{
    struct channel *c = open_channel(393216);
    uint32_t len = 0;

    works(c, 1);
    for (uint32_t n = 0; n < 1000; n++) {
        struct mint_rec *rec = mint_ring_reserve(&c->tx, MINT_FRAME_MAX);
        uint32_t wanted = MINT_FRAME_MIN + random_below(3000);

        CHECK(rec, "no room");
        CHECK(mint_ring_reserve(&c->tx, wanted) == rec, "reserving again gives another place");
        mint_ring_commit(&c->tx, rec, wanted);
        CHECK(!mint_ring_rx_pending(&c->rx) && !mint_ring_next(&c->rx, &len), "seen unpublished");
        CHECK(mint_ring_publish(&c->tx) == 1, "not published");
        CHECK(mint_ring_next(&c->rx, &len) && len == wanted, "%u bytes, not %u", len, wanted);
        mint_ring_release(&c->rx, len);
        mint_ring_recycle(&c->rx);
        CHECK(load_relaxed(&c->receiver->tail) == load_relaxed(&c->sender->head), "a gap");
    }
    free_channel(c);
}

/* ------------------------------------------------------------------------ crashes and restarts */

/* What a run of random steps has seen; gaps in the numbers must be explained by losses. */
struct tally {
    uint64_t committed;   /* number of the next frame */
    uint64_t unpublished; /* frames that were staged when their producer died */
    uint64_t lost;        /* frames that the ring counted as lost */
    uint64_t got;         /* different frames received */
    uint64_t expect;      /* no frame below has come, or it may come again */
    uint64_t recycled;    /* where a new consumer goes on */
};

static void step_send(struct channel *c, struct tally *t)
{
    for (uint32_t n = random_below(6); n > 0; n--)
        t->committed += stage(c, t->committed, random_length());
    if (random_below(4))
        mint_ring_publish(&c->tx);
}

static void step_receive(struct channel *c, struct tally *t)
{
    uint64_t number;
    uint32_t len;

    for (uint32_t n = random_below(8); n > 0 && take(c, &number, &len); n--) {
        CHECK(number >= t->expect, "frame %llu after %llu", (unsigned long long)number,
              (unsigned long long)t->expect);
        CHECK(number < t->committed, "a frame that nobody sent");
        t->got++;
        t->expect = number + 1;
    }
    if (random_below(3)) {
        mint_ring_recycle(&c->rx);
        t->recycled = t->got;
    }
}

static void step_crash(struct channel *c, struct tally *t)
{
    if (random_below(2)) {
        t->unpublished += c->tx.staged;
        open_tx(c); /* as a new process does, on what the old one left */
    } else {
        uint64_t again = t->got - t->recycled;

        t->expect = 0; /* what was not given back comes again, and in order */
        t->got -= again;
        open_rx(c);
    }
}

static void step_reopen(struct channel *c, struct tally *t)
{
    if (random_below(2)) {
        mint_ring_publish(&c->tx);
        watch(c, false);
        mint_ring_tx_close(&c->tx, false);
        watch(c, false);
        if (random_below(2))
            step_receive(c, t);
        watch(c, false);
        open_tx(c);
    } else {
        mint_ring_recycle(&c->rx);
        t->recycled = t->got;
        mint_ring_rx_close(&c->rx);
        watch(c, false);
        if (random_below(2))
            step_send(c, t);
        watch(c, false);
        open_rx(c);
    }
}

/* Random steps of both ends. Every frame is received once, or counted once. */
static void random_run(uint32_t cap, uint32_t steps, bool crashes, bool reopenings)
{
    struct channel *c = open_channel(cap);
    struct tally t = {0};

    for (uint32_t i = 0; i < steps; i++) {
        uint32_t what = random_below(100);
        bool opened = true;

        if (crashes && what < 3)
            step_crash(c, &t);
        else if (reopenings && what >= 97)
            step_reopen(c, &t);
        else if ((opened = false, what % 2))
            step_send(c, &t);
        else
            step_receive(c, &t);
        watch(c, opened);
        CHECK(c->rx.resets == 0, "step %u: the consumer saw a broken rule", i);
        CHECK(load_relaxed(&c->sender->head) % MINT_LINE == 0, "the head is off the grid");
    }
    mint_ring_publish(&c->tx);
    for (uint32_t i = 0; i < 4; i++) { /* both ends agree, and all is read */
        t.committed += stage(c, t.committed, 100);
        mint_ring_publish(&c->tx);
        for (uint32_t n = 0; n < 500; n++)
            step_receive(c, &t);
        mint_ring_recycle(&c->rx);
    }
    t.lost = lost(c);
    CHECK(t.got + t.lost + t.unpublished == t.committed,
          "%llu received, %llu lost, %llu never published, of %llu", (unsigned long long)t.got,
          (unsigned long long)t.lost, (unsigned long long)t.unpublished,
          (unsigned long long)t.committed);
    CHECK(crashes || reopenings || t.lost == 0, "lost without a reason");
    free_channel(c);
}

static void random_steps(void)
{
    for (size_t i = 0; i < CAPACITIES; i++)
        random_run(capacities[i], 4000, false, false);
}

/* A process that dies and its successor: nothing published is lost, nothing comes out of order. */
static void random_crashes(void)
{
    for (size_t i = 0; i < CAPACITIES; i++)
        random_run(capacities[i], 4000, true, false);
}

static void random_reopenings(void)
{
    for (size_t i = 0; i < CAPACITIES; i++)
        random_run(capacities[i], 4000, false, true);
}

static void random_everything(void)
{
    for (size_t i = 0; i < CAPACITIES; i++)
        random_run(capacities[i], 8000, true, true);
}

/* A consumer that dies before it has looked at all: what was published for it is not lost. */
static void a_consumer_dies_before_its_first_look(void)
{
    struct channel *c = new_channel(393216);
    uint64_t number;
    uint32_t len;

    open_tx(c);
    watch(c, true);
    open_rx(c);
    watch(c, true);
    for (uint64_t n = 0; n < 10; n++)
        CHECK(stage(c, n, 200), "no room");
    mint_ring_publish(&c->tx);
    watch(c, false);
    open_rx(c);
    watch(c, false);
    for (uint64_t n = 0; n < 10; n++)
        CHECK(take(c, &number, &len) && number == n, "frame %u is lost", (uint32_t)n);
    mint_ring_recycle(&c->rx);
    works(c, 10);
    CHECK(lost(c) == 0, "%u counted as lost", (uint32_t)lost(c));
    free_channel(c);
}

static void what_was_published_before_closing_arrives(void)
{
    struct channel *c = open_channel(393216);
    uint64_t number;
    uint32_t len;

    works(c, 50);
    for (uint64_t n = 0; n < 10; n++)
        CHECK(stage(c, n, 200), "no room");
    mint_ring_publish(&c->tx);
    mint_ring_tx_close(&c->tx, false);
    watch(c, false);
    CHECK(mint_ring_rx_pending(&c->rx), "not pending");
    for (uint64_t n = 0; n < 5; n++)
        CHECK(take(c, &number, &len) && number == n, "frame %u is lost", (uint32_t)n);
    open_tx(c); /* before the consumer has noticed, or read it all */
    watch(c, true);
    for (uint64_t n = 10; n < 15; n++)
        CHECK(stage(c, n, 200), "no room");
    mint_ring_publish(&c->tx);
    for (uint64_t n = 5; n < 15; n++)
        CHECK(take(c, &number, &len) && number == n, "frame %u is lost", (uint32_t)n);
    CHECK(lost(c) == 0 && c->rx.resets == 0, "lost %u, reset %u", (uint32_t)lost(c), c->rx.resets);
    free_channel(c);
}

/*
 * A consumer that closes loses what it has not read; the producer counts that, and that alone. In its
 * slot, by the time that the new head is there: it may die right then, and no successor could count.
 */
static void what_a_closed_consumer_left_is_counted(void)
{
    struct channel *c = open_channel(393216);
    uint64_t number;
    uint32_t len;

    works(c, 50);
    for (uint64_t n = 0; n < 10; n++)
        CHECK(stage(c, n, 200), "no room");
    mint_ring_publish(&c->tx);
    CHECK(stage(c, 10, 200), "no room"); /* and one that is only staged */
    for (uint64_t n = 0; n < 4; n++)
        CHECK(take(c, &number, &len) && number == n, "frame %u is lost", (uint32_t)n);
    mint_ring_recycle(&c->rx);
    mint_ring_rx_close(&c->rx);
    watch(c, false);
    CHECK(!mint_ring_reserve(&c->tx, 64) && !mint_ring_tx_up(&c->tx), "up without a consumer");
    CHECK(lost(c) == 7, "%u lost while it is closed, not 7", (uint32_t)lost(c));
    open_rx(c);
    watch(c, true);
    CHECK(!mint_ring_next(&c->rx, &len), "something old");
    works(c, 10);
    CHECK(lost(c) == 7, "%u lost, not 7", (uint32_t)lost(c));
    free_channel(c);
}

/* Slots are used again for other ports, whose control regions begin with zeroes. */
static void a_slot_is_used_again(void)
{
    for (uint32_t stale = 0; stale < 4; stale++) { /* generations that the old ones got to */
        struct channel *c = open_channel(393216);

        for (uint32_t i = 0; i < stale; i++) {
            works(c, 3);
            mint_ring_rx_close(&c->rx);
            open_rx(c);
        }
        works(c, 20);
        mint_ring_tx_close(&c->tx, false);
        mint_ring_rx_close(&c->rx);
        memset(c->receiver, 0, sizeof(*c->receiver)); /* a new consumer, the old producer */
        c->rx_word = 0;
        watch(c, false);
        CHECK(madvise(c->tx_area + GUARD, c->cap, MADV_REMOVE) == 0, "a new payload region");
        open_rx(c);
        open_tx(c);
        watch(c, true);
        works(c, 20);
        memset(c->sender, 0, sizeof(*c->sender)); /* the other way round */
        c->tx_word = 0;
        open_tx(c);
        watch(c, true);
        works(c, 20);
        free_channel(c);
    }
}

static void generations_wrap(void)
{
    struct channel *c = new_channel(135168);

    store_relaxed(&c->receiver->rx_end, MINT_END(0xfffffe, MINT_END_CLOSED));
    store_relaxed(&c->sender->tx_end, MINT_END(0xfffffe, MINT_END_CLOSED));
    c->tx_word = c->rx_word = MINT_END(0xfffffe, MINT_END_CLOSED);
    open_tx(c);
    watch(c, true);
    for (uint32_t i = 0; i < 5; i++) {
        open_rx(c);
        watch(c, true);
        CHECK(c->rx.gen == ((0xffffff + i) & 0xffffff), "generation %#x", c->rx.gen);
        works(c, 20);
        mint_ring_rx_close(&c->rx);
        watch(c, false);
    }
    free_channel(c);
}

static const struct check_test tests[] = {
    CHECK_TEST(an_unopened_channel_is_down),
    CHECK_TEST(wraps_at_every_capacity),
    CHECK_TEST(fills_to_the_last_line),
    CHECK_TEST(full_means_head_minus_tail_is_the_capacity),
    CHECK_TEST(commits_less_than_reserved),
    CHECK_TEST(random_steps),
    CHECK_TEST(random_crashes),
    CHECK_TEST(random_reopenings),
    CHECK_TEST(random_everything),
    CHECK_TEST(a_consumer_dies_before_its_first_look),
    CHECK_TEST(what_was_published_before_closing_arrives),
    CHECK_TEST(what_a_closed_consumer_left_is_counted),
    CHECK_TEST(a_slot_is_used_again),
    CHECK_TEST(generations_wrap),
};

int main(int argc, char **argv)
{
    return CHECK_MAIN(argc, argv, tests);
}
