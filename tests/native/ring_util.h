/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ring_util.h - what the tests of the per-channel buffer share: a channel between guard pages, so
 * that whoever reads or writes outside the region dies, frames that tell their number, and a watch
 * over the states of both ends.
 */
#ifndef MINT_TEST_RING_UTIL_H
#define MINT_TEST_RING_UTIL_H

#include "check.h"
#include "ring.h"
#include <errno.h>
#include <stdbool.h>
#include <sys/mman.h>
#include <unistd.h>

#define GUARD 65536u /* inaccessible bytes on either side of a mapping */

/* A channel: both ends, each with a mapping of its own. */
struct channel {
    uint32_t cap;
    int fd;
    uint8_t *tx_area, *rx_area; /* mappings with their guards */
    struct mint_slot *sender;   /* the producer's slot, in a page of its own */
    struct mint_slot *receiver; /* the consumer's */
    struct mint_ring_tx tx;
    struct mint_ring_rx rx;
    uint32_t tx_word, rx_word; /* the ends' words when last watched */
};

/* xorshift64: the same numbers in every run. */
static uint64_t random_state = 0x9e3779b97f4a7c15ull; // NOLINT(*-non-const-global-variables)

static inline uint64_t random_bits(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state;
}

static inline uint32_t random_below(uint32_t limit)
{
    return (uint32_t)(random_bits() >> 33) % limit;
}

/* A frame length: mostly small, some of all sizes, the bounds themselves not seldom. */
static inline uint32_t random_length(void)
{
    switch (random_below(8)) {
    case 0:
        return MINT_FRAME_MIN;
    case 1:
        return MINT_FRAME_MAX;
    case 2:
        return MINT_FRAME_MIN + random_below(MINT_FRAME_MAX - MINT_FRAME_MIN + 1);
    case 3:
        return 1500 + random_below(8000);
    default:
        return MINT_FRAME_MIN + random_below(1500);
    }
}

/* --- the channel ----------------------------------------------------------------------------- */

static inline uint8_t *map_guarded(int fd, uint32_t cap, int protection)
{
    size_t bytes = 2 * (size_t)cap + 2 * GUARD;
    uint8_t *area = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    CHECK(area != MAP_FAILED, "mmap: %s", strerror(errno));
    for (size_t at = GUARD; at < GUARD + 2 * (size_t)cap; at += cap)
        CHECK(mmap(area + at, cap, protection, MAP_SHARED | MAP_FIXED, fd, 0) != MAP_FAILED,
              "mmap: %s", strerror(errno));
    return area;
}

static inline struct mint_slot *new_slot(void)
{
    void *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

    CHECK(page != MAP_FAILED, "mmap: %s", strerror(errno));
    return page;
}

static inline void open_tx(struct channel *c)
{
    mint_ring_tx_open(&c->tx, c->tx_area + GUARD, c->cap, c->sender, c->receiver);
}

static inline void open_rx(struct channel *c)
{
    mint_ring_rx_open(&c->rx, c->rx_area + GUARD, c->cap, c->receiver, c->sender);
}

/* A channel with neither end open. */
static inline struct channel *new_channel(uint32_t cap)
{
    struct channel *c = calloc(1, sizeof(*c));

    CHECK(c, "out of memory");
    c->cap = cap;
    c->fd = memfd_create("channel", MFD_CLOEXEC);
    CHECK(c->fd >= 0 && ftruncate(c->fd, cap) == 0, "memfd: %s", strerror(errno));
    c->tx_area = map_guarded(c->fd, cap, PROT_READ | PROT_WRITE);
    c->rx_area = map_guarded(c->fd, cap, PROT_READ);
    c->sender = new_slot();
    c->receiver = new_slot();
    return c;
}

static inline void free_channel(struct channel *c)
{
    munmap(c->tx_area, 2 * (size_t)c->cap + 2 * GUARD);
    munmap(c->rx_area, 2 * (size_t)c->cap + 2 * GUARD);
    munmap(c->sender, 4096);
    munmap(c->receiver, 4096);
    close(c->fd);
    free(c);
}

/* --- the watch ------------------------------------------------------------------------------- */

/*
 * Check what the last step did to the ends' words against the table in abi.h. `reopened`: it was
 * an opening (a step may do several transitions, but only an opening leaves CLOSED).
 */
static inline void watch(struct channel *c, bool reopened)
{
    uint32_t tx = load_relaxed(&c->sender->tx_end), rx = load_relaxed(&c->receiver->rx_end);
    uint32_t tx_was = c->tx_word, rx_was = c->rx_word;

    CHECK(MINT_END_STATE(tx) <= MINT_END_RESET && MINT_END_STATE(rx) <= MINT_END_RESET,
          "unknown states %#x %#x", tx, rx);
    if (MINT_END_GEN(tx) != MINT_END_GEN(tx_was))
        CHECK(MINT_END_GEN(tx) == MINT_END_GEN(rx) && MINT_END_STATE(tx) == MINT_END_OPEN,
              "the producer made %#x up: the consumer has %#x", tx, rx);
    if (MINT_END_STATE(tx_was) == MINT_END_CLOSED && tx != tx_was)
        CHECK(reopened && MINT_END_STATE(tx) == MINT_END_OPEN, "producer: %#x -> %#x", tx_was, tx);
    if (MINT_END_STATE(rx_was) == MINT_END_CLOSED && rx != rx_was)
        CHECK(reopened && MINT_END_STATE(rx) == MINT_END_RESET &&
                  MINT_END_GEN(rx) != MINT_END_GEN(rx_was) && MINT_END_GEN(rx) != MINT_END_GEN(tx),
              "consumer: %#x -> %#x, the producer has %#x", rx_was, rx, tx);
    if (MINT_END_STATE(rx) == MINT_END_OPEN && rx != rx_was)
        CHECK(MINT_END_GEN(tx) == MINT_END_GEN(rx), "the consumer believes %#x, is %#x", tx, rx);
    c->tx_word = tx;
    c->rx_word = rx;
}

static inline struct channel *open_channel(uint32_t cap)
{
    struct channel *c = new_channel(cap);

    open_tx(c);
    watch(c, true);
    open_rx(c);
    watch(c, true);
    return c;
}

/* --- frames ---------------------------------------------------------------------------------- */

/* The bytes of frame `number`, of any length, start here. */
static inline const uint8_t *frame_bytes(uint64_t number)
{
    static uint8_t pattern[MINT_FRAME_MAX + 251u];

    if (!pattern[1])
        for (size_t i = 0; i < sizeof(pattern); i++)
            pattern[i] = (uint8_t)(1u + i * 7u % 251u);
    return pattern + number % 251u;
}

/* Stage frame `number`, of `len` bytes. Return: whether there was room. */
static inline bool stage(struct channel *c, uint64_t number, uint32_t len)
{
    struct mint_rec *rec = mint_ring_reserve(&c->tx, len);

    if (!rec)
        return false;
    memset(&rec->vnet, (int)(number % 256u), sizeof(rec->vnet));
    memcpy(rec->frame, frame_bytes(number), len);
    memcpy(rec->frame, &number, sizeof(number));
    mint_ring_commit(&c->tx, rec, len);
    return true;
}

/* Take the next frame and release it, checked. Return: whether there was one. */
static inline bool take(struct channel *c, uint64_t *number, uint32_t *len)
{
    const struct mint_rec *rec = mint_ring_next(&c->rx, len);
    uint8_t vnet[sizeof(rec->vnet)];

    if (!rec)
        return false;
    memcpy(number, rec->frame, sizeof(*number));
    memset(vnet, (int)(*number % 256u), sizeof(vnet));
    CHECK(memcmp(&rec->vnet, vnet, sizeof(vnet)) == 0, "frame %llu: vnet header damaged",
          (unsigned long long)*number);
    CHECK(memcmp(rec->frame + sizeof(*number), frame_bytes(*number) + sizeof(*number),
                 *len - sizeof(*number)) == 0,
          "frame %llu of %u bytes is damaged", (unsigned long long)*number, *len);
    mint_ring_release(&c->rx, *len);
    return true;
}

/* What the producer has counted in its slot. */
static inline uint64_t lost(const struct channel *c)
{
    return load_relaxed(&c->sender->tx_counter[MINT_TX_DROP_RESET]);
}

static inline uint64_t rejoins(const struct channel *c)
{
    return load_relaxed(&c->sender->tx_counter[MINT_TX_RESETS]);
}

/* Exchange `count` frames, one by one: the channel works. */
static inline void works(struct channel *c, uint32_t count)
{
    for (uint64_t i = 0; i < count; i++) {
        uint32_t len = random_length(), got = 0;
        uint64_t number = 0;
        bool staged = stage(c, i, len);

        for (uint32_t tries = 0; !staged && tries < 4; tries++) { /* both ends agree first */
            take(c, &number, &got);
            staged = stage(c, i, len);
        }
        CHECK(staged, "no room for frame %u of %u bytes in an empty channel", (uint32_t)i, len);
        CHECK(mint_ring_publish(&c->tx) == 1, "not published");
        CHECK(mint_ring_rx_pending(&c->rx), "frame %u is not pending", (uint32_t)i);
        CHECK(take(c, &number, &got), "frame %u does not come", (uint32_t)i);
        CHECK(number == i && got == len, "frame %u of %u bytes came as %u of %u", (uint32_t)i, len,
              (uint32_t)number, got);
        CHECK(mint_ring_recycle(&c->rx) && !mint_ring_recycle(&c->rx), "recycled wrongly");
        CHECK(load_relaxed(&c->sender->tx_end) == MINT_END(c->tx.gen, MINT_END_OPEN) &&
                  load_relaxed(&c->receiver->rx_end) == MINT_END(c->tx.gen, MINT_END_OPEN),
              "it works, and says %#x, %#x", load_relaxed(&c->sender->tx_end),
              load_relaxed(&c->receiver->rx_end));
        CHECK(!mint_ring_rx_pending(&c->rx), "an empty channel is pending");
        watch(c, false);
    }
}

/* Take frames one by one until nothing happens any more. Return: how many came. */
static inline uint32_t drain(struct channel *c)
{
    uint32_t n = 0, len;
    uint64_t number;

    for (uint32_t idle = 0; idle < 3;) {
        if (take(c, &number, &len)) {
            n++;
            idle = 0;
        } else {
            idle++;
        }
    }
    mint_ring_recycle(&c->rx);
    return n;
}

#endif
