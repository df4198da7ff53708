/* SPDX-License-Identifier: Apache-2.0 */
/* test_pool_share.c - the shared pool: what each may take of it, and that nobody starves. */
#include "pool_util.h"

static void two_ports_have_nearly_all(void)
{
    static const uint32_t len[3] = {64, 1514, MINT_FRAME_MAX};

    for (uint32_t i = 0; i < 3; i++) {
        struct region r;
        struct station a, b;
        uint32_t n;

        region_make(&r, 2, 1000);
        station_join(&a, &r, 0);
        station_join(&b, &r, 1);
        n = station_flood(&a, 1, len[i], 32) * MINT_POOL_BLOCKS_FOR(len[i]);
        CHECK(n > 840 && n <= 875, "%u of 1000 blocks hold frames of %u bytes", n, len[i]);
        CHECK(station_send(&b, 0, MINT_FRAME_MAX), "no room the other way");
        mint_pool_publish(b.end);
        CHECK(station_drain(&a, false) == 1, "and it arrives");
        station_drain(&b, false);
        station_leave(&a);
        station_leave(&b);
        CHECK(region_audit(&r).free == r.blocks, "blocks are lost");
        region_free(&r);
    }
}

static void stalled_receivers_starve_nobody(void)
{
    struct region r;
    struct station s[5];
    uint32_t share;

    region_make(&r, 5, 600);
    for (uint8_t i = 0; i < 5; i++)
        station_join(&s[i], &r, i);
    share = load_relaxed(&r.head->share);
    CHECK(share == (600 - 75) / 4, "share %u", share);
    /* 1, 2 and 3 take nothing. Everyone sends to them, in small and in large frames at once. */
    for (uint32_t round = 0; round < 600; round++)
        for (uint8_t from = 0; from < 5; from++) {
            for (uint8_t to = 1; to < 4; to++)
                if (to != from)
                    station_send(&s[from], to, round % 5 ? 500 : 20000);
            if (round % 7 == 0)
                mint_pool_publish(s[from].end);
        }
    for (uint8_t i = 0; i < 5; i++)
        mint_pool_publish(s[i].end);
    for (uint8_t i = 1; i < 4; i++) {
        uint32_t used = load_relaxed(&r.port[i].used);

        CHECK(used + MINT_POOL_BLOCKS_FOR(20000) > share, "port %u got only %u", i, used);
        CHECK(used <= share + 3 * MINT_POOL_BLOCKS_FOR(20000), "port %u took %u", i, used);
    }
    for (uint32_t i = 0; i < 200; i++) { /* 0 and 4 go on, in frames of any size */
        CHECK(station_send(&s[0], 4, i % 3 ? 1500 : MINT_FRAME_MAX), "no room at %u", i);
        mint_pool_publish(s[0].end);
        CHECK(station_drain(&s[4], false) == 1, "frame %u is missing", i);
    }
    region_audit(&r);
    for (uint8_t i = 0; i < 5; i++) {
        station_drain(&s[i], false);
        station_leave(&s[i]);
    }
    CHECK(region_audit(&r).free == r.blocks, "blocks are lost");
    region_free(&r);
}

/* Four senders that all see the same room, and publish nothing before they are refused. */
static void shares_are_not_overrun(void)
{
    struct region r;
    struct station s[5];
    uint32_t share, used, n = 0;
    bool more = true;

    region_make(&r, 5, 600);
    for (uint8_t i = 0; i < 5; i++)
        station_join(&s[i], &r, i);
    share = load_relaxed(&r.head->share);
    while (more) {
        more = false;
        for (uint32_t i = 1; i < 5; i++) {
            bool sent = station_send(&s[i], 0, 5000);

            n += sent;
            more |= sent;
        }
    }
    for (uint32_t i = 1; i < 5; i++)
        mint_pool_publish(s[i].end);
    used = load_relaxed(&r.port[0].used);
    CHECK(used == n * 3 && used > share - 3, "%u of %u blocks", used, share);
    CHECK(used <= share + 3 * 3, "%u blocks, of a share of %u", used, share);
    station_drain(&s[0], false);
    for (uint32_t i = 0; i < 5; i++)
        station_leave(&s[i]);
    CHECK(region_audit(&r).free == r.blocks, "blocks are lost");
    region_free(&r);
}

/* One receiver sits on single blocks, sent in turn with another's: long runs must stay free. */
static void single_blocks_stay_together(void)
{
    struct region r;
    struct station a, slow, fast;

    region_make(&r, 3, 512);
    station_join(&a, &r, 0);
    station_join(&slow, &r, 1);
    station_join(&fast, &r, 2);
    while (station_send(&a, 1, 1000)) {
        for (uint32_t i = 0; i < 3; i++)
            CHECK(station_send(&a, 2, 1000), "no room for the fast one");
        mint_pool_publish(a.end);
        CHECK(station_drain(&fast, false) == 3, "frames are missing");
    }
    CHECK(region_audit(&r).queued > 200, "the slow one has only %u", region_audit(&r).queued);
    for (uint32_t i = 0; i < 4; i++)
        CHECK(station_send(&a, 2, MINT_FRAME_MAX), "no long run left for %u", i);
    mint_pool_publish(a.end);
    CHECK(station_drain(&fast, false) == 4, "frames are missing");
    station_drain(&slow, false);
    station_leave(&a);
    station_leave(&slow);
    station_leave(&fast);
    CHECK(region_audit(&r).free == r.blocks, "blocks are lost");
    region_free(&r);
}

/* The worst case by hand: every other block free, so nothing longer than one. */
static void fragments_are_used_and_heal(void)
{
    struct region r;
    struct station a, b, c;
    uint32_t n = 0;

    region_make(&r, 3, 128);
    station_join(&a, &r, 0);
    station_join(&b, &r, 1);
    station_join(&c, &r, 2);
    for (bool more = true; more; n++) {
        more = station_send(&a, 1 + n % 2, 1000);
        mint_pool_publish(a.end);
        mint_pool_publish(a.end); /* nothing staged: gives the run back, so that all are in a row */
    }
    station_drain(&b, false);
    CHECK(region_audit(&r).free >= 70, "%u free", region_audit(&r).free);
    for (n = 0; station_send(&a, 1, MINT_FRAME_MAX); n++)
        ;
    CHECK(n <= 1, "%u largest records between fragments", n);
    mint_pool_publish(a.end);
    station_drain(&b, false);
    for (n = 0; station_send(&a, 1, 1000) && n < 20; n++)
        ;
    CHECK(n == 20, "only %u small records between fragments", n);
    mint_pool_publish(a.end);
    region_audit(&r);
    station_drain(&b, false);
    station_drain(&c, false);
    mint_pool_publish(a.end);
    CHECK(station_send(&a, 1, MINT_FRAME_MAX), "the fragments did not heal");
    station_leave(&a);
    station_drain(&b, false);
    station_leave(&b);
    station_leave(&c);
    CHECK(region_audit(&r).free == r.blocks, "blocks are lost");
    region_free(&r);
}

int main(int argc, char **argv)
{
    static const struct check_test tests[] = {
        CHECK_TEST(two_ports_have_nearly_all),   CHECK_TEST(stalled_receivers_starve_nobody),
        CHECK_TEST(shares_are_not_overrun),      CHECK_TEST(single_blocks_stay_together),
        CHECK_TEST(fragments_are_used_and_heal),
    };

    return CHECK_MAIN(argc, argv, tests);
}
