/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fuzz_ring.c - the per-channel packet buffer with a hostile other end.
 *
 * Two channels. In one the script plays the producer: it writes heads, states and records. In the
 * other it plays the consumer: tails and states. The honest end must stay within the region (guard
 * pages and sanitizers watch), keep its own words legal, and be of use again as soon as an honest
 * process opens the hostile end.
 */
#include "fuzz.h"

#define take ring_take /* both headers have one */
#include "ring_util.h"
#undef take

#define CAP 135168u /* the smallest that is whole pages */

/* The honest producer's word: a known state, and no generation of its own making. */
static void check_tx(struct channel *c)
{
    uint32_t tx = load_relaxed(&c->sender->tx_end), rx = load_relaxed(&c->receiver->rx_end);

    CHECK(MINT_END_STATE(tx) <= MINT_END_RESET, "the producer says %#x", tx);
    CHECK(MINT_END_GEN(tx) == MINT_END_GEN(c->tx_word) || MINT_END_GEN(tx) == MINT_END_GEN(rx),
          "the producer made %#x up: the consumer has %#x", tx, rx);
    c->tx_word = tx;
}

/* The honest consumer's word: a known state; it believes nobody who is not in its generation. */
static void check_rx(struct channel *c)
{
    uint32_t tx = load_relaxed(&c->sender->tx_end), rx = load_relaxed(&c->receiver->rx_end);

    CHECK(MINT_END_STATE(rx) <= MINT_END_RESET, "the consumer says %#x", rx);
    if (MINT_END_STATE(rx) == MINT_END_OPEN && rx != c->rx_word)
        CHECK(MINT_END_GEN(tx) == MINT_END_GEN(rx), "the consumer believes %#x, is %#x", tx, rx);
    c->rx_word = rx;
}

static void attack_words(struct script *s, mint_a64 *index, mint_a32 *end, uint64_t honest,
                         uint32_t gen)
{
    switch (take8(s) & 3u) {
    case 0:
        store_release(index, take_near(s, honest, MINT_LINE, CAP));
        break;
    case 1:
        store_release(end, MINT_END(gen, take8(s) & 3u));
        break;
    case 2:
        store_release(end, MINT_END(gen + (uint32_t)(int32_t)(int8_t)take8(s), take8(s)));
        break;
    default:
        store_release(end, take32(s));
    }
}

/* Write into the payload, mostly where the consumer is going to look. */
static void attack_payload(struct script *s, struct channel *c)
{
    uint8_t how = take8(s);
    uint64_t at = how & 1u ? c->rx.off + (how >> 1) * (uint64_t)MINT_LINE : take32(s);
    uint32_t len = how & 2u ? take_length(s, MINT_FRAME_MIN, MINT_FRAME_MAX) : take32(s);
    struct mint_rec *rec = (struct mint_rec *)(void *)(c->tx_area + GUARD + at % CAP / 64u * 64u);

    store_relaxed(&rec->len, len);
}

static void consume(struct script *s, struct channel *c)
{
    uint8_t how = take8(s);
    uint32_t len;

    mint_ring_rx_pending(&c->rx);
    for (uint32_t i = 0; i < (how & 7u); i++) {
        const struct mint_rec *rec = mint_ring_next(&c->rx, &len);

        if (!rec)
            break;
        CHECK(len >= MINT_FRAME_MIN && len <= MINT_FRAME_MAX, "a frame of %u bytes", len);
        CHECK((const uint8_t *)rec >= c->rx_area + GUARD &&
                  rec->frame + len <= c->rx_area + GUARD + 2u * (size_t)CAP,
              "a record outside of the region");
        touch(rec->frame, len);
        if (how & 8u)
            attack_payload(s, c); /* while it is being read */
        mint_ring_release(&c->rx, len);
    }
    if (how & 16u)
        mint_ring_recycle(&c->rx);
    if (how & 32u) /* its process dies, and the next goes on */
        open_rx(c);
    check_rx(c);
}

static void produce(struct script *s, struct channel *c)
{
    uint8_t how = take8(s);

    for (uint32_t i = 0; i < (how & 7u); i++) {
        uint32_t len = take_length(s, MINT_FRAME_MIN, MINT_FRAME_MAX);
        struct mint_rec *rec = mint_ring_reserve(&c->tx, len);

        if (!rec)
            break;
        CHECK((uint8_t *)rec >= c->tx_area + GUARD &&
                  rec->frame + len <= c->tx_area + GUARD + 2u * (size_t)CAP,
              "a record outside of the region");
        memset(rec->frame, 0x55, len);
        mint_ring_commit(&c->tx, rec, len);
    }
    if (how & 8u)
        mint_ring_publish(&c->tx);
    if (how & 16u)
        mint_ring_tx_join(&c->tx);
    if (how & 32u)
        open_tx(c);
    check_tx(c);
    CHECK(c->tx.head - c->tx.published <= CAP, "more staged than there is room");
}

/* The hostile process is replaced by an honest one, which finds the words that it left. */
static void heal(struct channel *c)
{
    open_tx(c);
    open_rx(c);
    c->tx_word = load_relaxed(&c->sender->tx_end);
    c->rx_word = load_relaxed(&c->receiver->rx_end);
    for (uint32_t i = 0; i < 4; i++) { /* both ends agree first */
        uint32_t len;

        mint_ring_tx_refresh(&c->tx, MINT_REC_BYTES(MINT_FRAME_MAX));
        while (mint_ring_next(&c->rx, &len))
            mint_ring_release(&c->rx, len);
        mint_ring_recycle(&c->rx);
    }
    works(c, 2);
}

static void reset(struct channel *c)
{
    memset(c->sender, 0, sizeof(*c->sender));
    memset(c->receiver, 0, sizeof(*c->receiver));
    open_tx(c);
    open_rx(c);
    c->tx_word = load_relaxed(&c->sender->tx_end);
    c->rx_word = load_relaxed(&c->receiver->rx_end);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct channel *from, *to; /* hostile producer; hostile consumer */
    struct script s = {data, size};

    if (!from) {
        from = new_channel(CAP);
        to = new_channel(CAP);
    }
    reset(from);
    reset(to);
    while (s.left) {
        switch (take8(&s) & 7u) {
        case 0:
        case 1:
            attack_words(&s, &from->sender->head, &from->sender->tx_end, from->rx.next,
                         from->rx.gen);
            break;
        case 2:
            attack_payload(&s, from);
            break;
        case 3:
            consume(&s, from);
            break;
        case 4:
        case 5:
            attack_words(&s, &to->receiver->tail, &to->receiver->rx_end, to->tx.published,
                         to->tx.gen);
            break;
        default:
            produce(&s, to);
        }
    }
    heal(from);
    heal(to);
    return 0;
}
