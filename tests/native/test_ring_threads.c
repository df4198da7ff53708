/* SPDX-License-Identifier: Apache-2.0 */
/* tsan: yes */
/*
 * test_ring_threads.c - the two ends of one per-channel buffer in two threads, over one mapping (a
 * thread sanitizer knows addresses, not what lies behind them). Both ends close, open and die at
 * any time while the other goes on: every frame comes once and in order, or is counted as lost.
 */
#include "ring_util.h"
#include <pthread.h>
#include <sched.h>
#include <time.h>

#define FRAMES 400000ull
#define LIMIT_S 60 /* far more than it takes, and less than the test's deadline */

struct race {
    struct channel *c;
    mint_a32 done;  /* the producer has published all */
    uint64_t lost;  /* by the producer's count */
    uint64_t got;   /* by the consumer's */
    uint64_t next;  /* no frame below may come any more */
    uint64_t reset; /* demands for a broken rule: there is none */
    uint32_t reopened_tx, reopened_rx;
    time_t end;
};

/* A generator for each thread. */
static uint32_t draw(uint64_t *state, uint32_t limit)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return (uint32_t)(*state >> 33) % limit;
}

static void reopen_tx(struct race *r, uint64_t *state)
{
    struct channel *c = r->c;

    mint_ring_publish(&c->tx);
    if (draw(state, 2)) /* else it dies, with nothing staged */
        mint_ring_tx_close(&c->tx, false);
    open_tx(c);
    r->reopened_tx++;
}

static void *produce(void *arg)
{
    struct race *r = arg;
    struct channel *c = r->c;
    uint64_t state = 0x1234567;

    for (uint64_t i = 0; i < FRAMES;) {
        uint32_t len = MINT_FRAME_MIN + draw(&state, draw(&state, 50) ? 120 : 9000);

        if (stage(c, i, len))
            i++;
        else
            sched_yield();
        if (draw(&state, 20) == 0)
            mint_ring_publish(&c->tx);
        if (draw(&state, 600) == 0)
            reopen_tx(r, &state);
        CHECK(time(NULL) < r->end, "frame %llu finds no room: %#x, %#x", (unsigned long long)i,
              load_relaxed(&c->sender->tx_end), load_relaxed(&c->receiver->rx_end));
    }
    mint_ring_publish(&c->tx);
    store_release(&r->done, 1);
    return NULL;
}

static void reopen_rx(struct race *r, uint64_t *state)
{
    struct channel *c = r->c;

    mint_ring_recycle(&c->rx);
    r->reset += c->rx.resets;
    if (draw(state, 2)) { /* else it dies, with nothing in hand */
        mint_ring_rx_close(&c->rx);
        if (draw(state, 2))
            sched_yield();
    }
    open_rx(c);
    r->reopened_rx++;
}

/* Take a frame, if there is one, and see that none comes twice or too late. */
static bool take_next(struct race *r)
{
    uint64_t number;
    uint32_t len;

    if (!take(r->c, &number, &len))
        return false;
    CHECK(number >= r->next && number < FRAMES, "frame %llu after %llu", (unsigned long long)number,
          (unsigned long long)r->next);
    r->next = number + 1;
    r->got++;
    return true;
}

static void *consume(void *arg)
{
    struct race *r = arg;
    uint64_t state = 0x7654321;

    while (!load_acquire(&r->done)) {
        if (!take_next(r))
            sched_yield();
        if (draw(&state, 10) == 0)
            mint_ring_recycle(&r->c->rx);
        if (draw(&state, 900) == 0)
            reopen_rx(r, &state);
        CHECK(time(NULL) < r->end, "frame %llu does not come", (unsigned long long)r->next);
    }
    return NULL;
}

static void ends_that_come_and_go(void)
{
    struct race r = {.c = new_channel(135168), .end = time(NULL) + LIMIT_S};
    pthread_t producer, consumer;

    munmap(r.c->rx_area, 2 * (size_t)r.c->cap + 2 * GUARD);
    r.c->rx_area = r.c->tx_area;
    frame_bytes(0); /* made here, before there are two threads */
    open_rx(r.c);
    open_tx(r.c);
    CHECK(pthread_create(&consumer, NULL, consume, &r) == 0, "thread");
    CHECK(pthread_create(&producer, NULL, produce, &r) == 0, "thread");
    pthread_join(producer, NULL);
    pthread_join(consumer, NULL);
    mint_ring_tx_join(&r.c->tx); /* the consumer may have opened last */
    while (take_next(&r))
        ;
    mint_ring_recycle(&r.c->rx);
    r.lost = lost(r.c);
    printf("%llu received, %llu lost while the ends were opened %u and %u times\n",
           (unsigned long long)r.got, (unsigned long long)r.lost, r.reopened_tx, r.reopened_rx);
    CHECK(r.got + r.lost == FRAMES, "%llu are missing",
          (unsigned long long)(FRAMES - r.got - r.lost));
    CHECK(r.reset + r.c->rx.resets == 0, "%llu resets", (unsigned long long)r.reset);
    CHECK(r.got > FRAMES / 4 && r.reopened_tx > 100 && r.reopened_rx > 20, "nothing much happened");
    r.c->rx_area = map_guarded(r.c->fd, r.c->cap, PROT_READ);
    free_channel(r.c);
}

static const struct check_test tests[] = {
    CHECK_TEST(ends_that_come_and_go),
};

int main(int argc, char **argv)
{
    return CHECK_MAIN(argc, argv, tests);
}
