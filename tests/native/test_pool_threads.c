/* SPDX-License-Identifier: Apache-2.0 */
/* tsan: yes */
/*
 * test_pool_threads.c - two handles of the shared pool, each used by a thread of its own, over one
 * mapping: a thread sanitizer knows addresses, and would not see that two of them are one place.
 */
#include "pool_util.h"
#include <pthread.h>
#include <sched.h>

#define FRAMES 20000u

struct worker {
    struct station *station;
    uint8_t peer;
    uint64_t random;
};

/* Send FRAMES frames in lots of random size while receiving as many. */
static void *exchange(void *arg)
{
    struct worker *w = arg;
    struct station *s = w->station;
    uint64_t deadline = test_ns() + 60u * 1000000000ull, mark = 0;

    while (s->sent[w->peer] < FRAMES || s->got[w->peer] < FRAMES) {
        uint32_t n = test_random(&w->random) % 40u, moved = 0;

        for (; n > 0 && s->sent[w->peer] < FRAMES; n--, moved++)
            if (!station_send(s, w->peer, test_length(&w->random)))
                break;
        mint_pool_publish(s->end);
        for (n = test_random(&w->random) % 40u; n > 0 && station_recv(s, false); n--)
            moved++;
        mint_pool_recycle(s->end);
        if (moved == 0 && !mint_pool_pending(s->end) && mint_pool_progress(s->end, w->peer) == mark)
            sched_yield();
        mark = mint_pool_progress(s->end, w->peer);
        CHECK(test_ns() < deadline, "port %u: sent %u, got %u", s->index, s->sent[w->peer],
              s->got[w->peer]);
    }
    return NULL;
}

static void two_threads_exchange_frames(void)
{
    static struct station s[2];
    struct worker w[2] = {{&s[0], 1, 1111}, {&s[1], 0, 2222}};
    pthread_t thread[2];
    struct region r;
    int err;

    region_make(&r, 2, 400);
    stamp_pattern(0); /* made before there are threads */
    station_join(&s[0], &r, 0);
    s[1].index = 1;
    err = mint_pool_test_attach_beside(&s[1].end, s[0].end, r.fd, 1, s[1].counter);
    CHECK(err == 0, "attach beside: %d", err);
    for (uint32_t i = 0; i < 2; i++)
        CHECK(pthread_create(&thread[i], NULL, exchange, &w[i]) == 0, "no thread");
    for (uint32_t i = 0; i < 2; i++)
        pthread_join(thread[i], NULL);
    station_leave(&s[1]);
    station_leave(&s[0]);
    CHECK(region_audit(&r).free == r.blocks, "blocks are lost");
    CHECK(load_relaxed(&r.head->rebuilds) == 0, "something was damaged");
    region_free(&r);
}

int main(int argc, char **argv)
{
    static const struct check_test tests[] = {CHECK_TEST(two_threads_exchange_frames)};

    return CHECK_MAIN(argc, argv, tests);
}
