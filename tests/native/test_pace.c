/* SPDX-License-Identifier: Apache-2.0 */
/* test_pace.c - the token bucket of a worker's log. */
#include "check.h"
#include "pace.h"

#define SECOND 1000000000ull
#define START (123456 * SECOND)

/* How many of a thousand may be, all at one time. */
static unsigned at_once(struct mint_pace *p, uint64_t now)
{
    unsigned count = 0;

    for (int i = 0; i < 1000; i++)
        count += mint_pace(p, now);
    return count;
}

static void a_burst_and_no_more(void)
{
    struct mint_pace p = {0};
    unsigned count = at_once(&p, START);

    CHECK(count == MINT_PACE_BURST, "%u", count);
    CHECK(p.left_out == 1000 - MINT_PACE_BURST, "%u", p.left_out);
    count = at_once(&p, START + MINT_PACE_NS - 1);
    CHECK(count == 0, "%u", count);
}

static void then_one_at_a_time(void)
{
    struct mint_pace p = {0};
    unsigned count = 0;

    at_once(&p, START);
    for (uint64_t s = 1; s <= 3600; s++)
        for (int i = 0; i < 20; i++)
            count += mint_pace(&p, START + s * SECOND);
    CHECK(count == 360, "%u in an hour", count);
}

static void a_burst_comes_back(void)
{
    struct mint_pace p = {0};
    uint64_t now = START;
    unsigned count;

    at_once(&p, now);
    now += 25 * SECOND;
    count = at_once(&p, now);
    CHECK(count == 2, "%u", count);
    count = at_once(&p, now + 5 * SECOND);
    CHECK(count == 1, "what was half paid is not lost: %u", count);
    now += 1000000 * SECOND;
    count = at_once(&p, now);
    CHECK(count == MINT_PACE_BURST, "%u", count);
}

int main(int argc, char **argv)
{
    static const struct check_test tests[] = {
        CHECK_TEST(a_burst_and_no_more),
        CHECK_TEST(then_one_at_a_time),
        CHECK_TEST(a_burst_comes_back),
    };

    return CHECK_MAIN(argc, argv, tests);
}
