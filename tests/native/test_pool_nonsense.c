/* SPDX-License-Identifier: Apache-2.0 */
/* test_pool_nonsense.c - the shared pool when what lies in shared memory makes no sense. */
#include "pool_util.h"

/* A lock that nobody can hold is taken; one whose word is a dead process's, too. */
static void a_lock_without_a_holder_is_taken(void)
{
    static const uint32_t words[] = {0x7ffu, 0x7feu, 0x80000003u, 0x12345003u, 0xfffff800u};
    struct region r;
    struct station a, b;

    region_make(&r, 4, 100);
    station_join(&a, &r, 0);
    station_join(&b, &r, 1);
    for (uint32_t i = 0; i < sizeof(words) / sizeof(words[0]); i++) {
        uint64_t before = test_ns();

        store_relaxed(&r.head->lock, words[i]); /* port 2 and others, which nobody serves */
        CHECK(station_send(&a, 1, 1000), "no room");
        mint_pool_publish(a.end);
        CHECK(test_ns() - before < 1000000000u, "hung for a second at %#x", words[i]);
        CHECK(load_relaxed(&a.counter[MINT_PORT_LOCK_STEALS]) == i + 1, "not stolen");
        CHECK(station_drain(&b, false) == 1, "no frame");
        region_audit(&r);
    }
    CHECK(load_relaxed(&a.counter[MINT_PORT_LOCK_WAITS]) >= 5, "waits are not counted");
    CHECK(load_relaxed(&a.counter[MINT_PORT_LOCK_WAIT_NS]) >= 5ull * 15000000u, "nor their time");
    station_leave(&a);
    station_leave(&b);
    region_free(&r);
}

/* Overwrite something in the tables; not the lock's word, which has a living port's name then. */
static void scribble(const struct region *r, uint64_t *random)
{
    uint8_t *base = (uint8_t *)r->head;
    uint32_t kind = test_random(random) % 4u, value = test_random(random), at;

    switch (kind) {
    case 0:
        at = 128u + test_random(random) % 112u;
        break;
    case 1:
        at = (uint32_t)r->head->ports_at + test_random(random) % (r->ports * 128u);
        break;
    case 2:
        at = (uint32_t)r->head->table_at + test_random(random) % (r->blocks * 32u);
        break;
    default:
        at = (uint32_t)r->head->bitmap_at + test_random(random) % (r->blocks / 8u);
    }
    at &= ~3u;
    if (value % 3 == 0)
        value %= 300u;
    else if (value % 3 == 1)
        value = load_relaxed((mint_a32 *)(void *)(base + at)) ^ (1u << value % 32u);
    store_relaxed((mint_a32 *)(void *)(base + at), value);
}

static void receive_anything(const struct region *r, struct station *s)
{
    const struct mint_rec *rec;
    uint32_t src, len, sum = 0;

    for (uint32_t i = 0; i < 40 && (rec = mint_pool_next(s->end, &src, &len)); i++) {
        CHECK(src < r->ports, "sender %u", src);
        CHECK(len >= MINT_FRAME_MIN && len <= MINT_FRAME_MAX, "length %u", len);
        for (uint32_t b = 0; b < len; b++)
            sum += rec->frame[b]; /* all of it is mapped */
        mint_pool_release(s->end, rec);
    }
    CHECK(sum < UINT32_MAX, "unreachable");
    mint_pool_recycle(s->end);
    mint_pool_pending(s->end);
}

/* Whatever the tables say: no crash, no endless loop, nothing outside the region. */
static void nonsense_does_no_harm(void)
{
    uint64_t random = 987654321, damaged = 0;

    for (uint32_t life = 0; life < 60; life++) {
        struct region r;
        struct station s[3];

        region_make(&r, 3, 128 + life);
        for (uint8_t i = 0; i < 3; i++)
            station_join(&s[i], &r, i);
        for (uint32_t round = 0; round < 60; round++) {
            struct station *from = &s[round % 3];

            for (uint32_t i = 0; i < 12; i++)
                station_send(from, (uint8_t)(test_random(&random) % 3u), test_length(&random));
            if (round % 4 == 0)
                scribble(&r, &random);
            mint_pool_publish(from->end);
            for (uint32_t i = test_random(&random) % 3u; i > 0; i--)
                scribble(&r, &random);
            receive_anything(&r, &s[test_random(&random) % 3u]);
            mint_pool_progress(from->end, round % 3);
            if (round % 30 == 29)
                mint_pool_forget(from->end, round % 3);
        }
        damaged += load_relaxed(&r.head->damaged) > 0;
        for (uint32_t i = 0; i < 3; i++)
            station_leave(&s[i]);
        region_free(&r);
    }
    CHECK(damaged > 30, "hardly anything was noticed: %llu", (unsigned long long)damaged);
}

/* One wrong value at a time: it is counted, and what is derived is right again afterwards. */
static void derived_state_is_repaired(void)
{
    for (uint32_t what = 0; what < 4; what++) {
        struct region r;
        struct station a, b;
        uint64_t damaged;

        region_make(&r, 2, 300);
        station_join(&a, &r, 0);
        station_join(&b, &r, 1);
        for (uint32_t i = 0; i < 20; i++)
            CHECK(station_send(&a, 1, 3000), "no room");
        mint_pool_publish(a.end);
        mint_pool_publish(a.end);
        damaged = load_relaxed(&r.head->damaged);
        if (what == 0)
            store_relaxed(&r.port[1].first, 1u << 30);
        else if (what == 1)
            store_relaxed(&r.port[1].last, 299 * 1000);
        else if (what == 2)
            store_relaxed(&r.block[load_relaxed(&r.port[1].first)].next, 7u << 20);
        else
            store_relaxed(&r.bitmap[0], 0), store_relaxed(&r.head->hint, 0);
        CHECK(station_send(&a, 1, 3000), "no room");
        mint_pool_publish(a.end);
        CHECK(station_drain(&b, false) == 21, "frames are missing after %u", what);
        mint_pool_publish(a.end);
        CHECK(load_relaxed(&r.head->damaged) > damaged, "%u was not noticed", what);
        station_leave(&a);
        station_leave(&b);
        CHECK(region_audit(&r).free == r.blocks, "blocks are lost");
        region_free(&r);
    }
}

int main(int argc, char **argv)
{
    static const struct check_test tests[] = {
        CHECK_TEST(a_lock_without_a_holder_is_taken),
        CHECK_TEST(nonsense_does_no_harm),
        CHECK_TEST(derived_state_is_repaired),
    };

    return CHECK_MAIN(argc, argv, tests);
}
