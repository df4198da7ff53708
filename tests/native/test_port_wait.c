/* SPDX-License-Identifier: Apache-2.0 */
/* test_port_wait.c - full channels, stalls, and the doorbells that end a sleep. */
#include "port_util.h"
#include <pthread.h>

#define CAPACITY 393216u
#define SOON (2000 * MS) /* what takes longer does not happen */

#define EACH_LAYOUT(layout) \
    for (uint32_t layout = MINT_LAYOUT_PER_CHANNEL; layout <= MINT_LAYOUT_POOLED; layout++)

static struct fabric *open_fabric(uint32_t ports, uint32_t layout, uint32_t stall_us)
{
    struct fabric *f = fabric_new(ports, layout, CAPACITY);

    f->stall_us = stall_us;
    return fabric_open(f);
}

/* Send until the channel is full. Return: frames. */
static uint32_t fill(struct fabric *f, uint32_t from, uint32_t to, uint32_t len)
{
    uint32_t n = 0;

    while (post(f, from, to, len, (uint8_t)n) == MINT_SENT)
        CHECK(++n < 100000, "it is never full");
    mint_port_flush(f->port[from]);
    return n;
}

static uint32_t drain(struct fabric *f, uint32_t at)
{
    uint32_t n = 0;

    while (recv_mark(f, at) >= 0)
        n++;
    return n;
}

/* Wait until the channel counts as stalled. Return: nanoseconds that it took. */
static uint64_t wait_stalled(struct fabric *f, uint32_t from, uint32_t to)
{
    uint64_t start = now_ns(), left;

    CHECK(post(f, from, to, 1000, 0) == MINT_FULL, "there is room");
    while ((left = mint_port_wait_room(f->port[from], to)) != 0) {
        mint_port_wait_peer(f->port[from], to, left);
        CHECK(now_ns() - start < SOON, "it never stalls");
    }
    return now_ns() - start;
}

/* ---------------------------------------------------------------------------- full and stalled */

static void a_full_channel_counts_nothing(void)
{
    EACH_LAYOUT(layout)
    {
        struct fabric *f = open_fabric(3, layout, 20000);
        uint32_t n = fill(f, 0, 1, 1000);

        CHECK(post(f, 0, 1, 1000, 0) == MINT_FULL, "room");
        CHECK(tx_counter(f, 0, 1, MINT_TX_FRAMES) == n, "%u", n);
        CHECK(port_counter(f, 0, MINT_PORT_IN_DONE) == n, "a frame that was refused is settled");
        CHECK(send_frame(f, 0, 2, 1000, 3) == MINT_SENT, "it blocks another");
        CHECK(recv_mark(f, 2) == 3, "nothing comes");
        mint_port_give_up(f->port[0], 1);
        mint_port_flush(f->port[0]);
        CHECK(tx_counter(f, 0, 1, MINT_TX_DROP_FULL) == 1, "not counted");
        CHECK(port_counter(f, 0, MINT_PORT_IN_DONE) == n + 2, "not settled");
        CHECK(drain(f, 1) == n, "not all came");
        CHECK(send_frame(f, 0, 1, 1000, 5) == MINT_SENT, "no room after all was read");
        fabric_free(f);
    }
}

static void a_receiver_that_stopped_is_stalled(void)
{
    EACH_LAYOUT(layout)
    {
        struct fabric *f = open_fabric(3, layout, 10000);
        uint32_t n = fill(f, 0, 1, 1000);
        uint64_t took = wait_stalled(f, 0, 1);

        CHECK(took >= 10 * MS, "stalled after %llu ns", (unsigned long long)took);
        CHECK(tx_counter(f, 0, 1, MINT_TX_STALLS) == 1, "not counted");
        CHECK(tx_counter(f, 0, 1, MINT_TX_WAITS) == 1, "%llu waits",
              (unsigned long long)tx_counter(f, 0, 1, MINT_TX_WAITS));
        CHECK(load_relaxed(&f->port[0]->slots[1].tx_stalled) == 1, "its slot does not say so");
        for (uint32_t i = 0; i < 50; i++) {
            CHECK(send_frame(f, 0, 1, 1000, 0) == MINT_DROPPED, "not dropped at once");
            CHECK(send_frame(f, 0, 2, 1000, 9) == MINT_SENT && recv_mark(f, 2) == 9, "others");
        }
        CHECK(tx_counter(f, 0, 1, MINT_TX_DROP_STALLED) == 50, "not counted");
        CHECK(recv_mark(f, 1) == 0, "the oldest");
        CHECK(send_frame(f, 0, 1, 1000, 8) == MINT_SENT, "stalled although it moved");
        CHECK(load_relaxed(&f->port[0]->slots[1].tx_stalled) == 0, "its slot still says so");
        CHECK(drain(f, 1) == n, "what was published before is lost");
        fabric_free(f);
    }
}

/* However slowly: as long as it drains it is waited for. */
static void a_slow_receiver_is_waited_for(void)
{
    EACH_LAYOUT(layout)
    {
        struct fabric *f = open_fabric(2, layout, 200000);
        uint64_t start;

        fill(f, 0, 1, 1000);
        CHECK(post(f, 0, 1, 65000, 0) == MINT_FULL, "room");
        start = now_ns();
        for (uint32_t i = 0; now_ns() - start < 500u * MS; i++) {
            struct timespec nap = {.tv_nsec = 20 * MS};

            CHECK(mint_port_wait_room(f->port[0], 1) > 0, "stalled after %u frames", i);
            CHECK(recv_mark(f, 1) >= 0, "nothing to drain");
            nanosleep(&nap, NULL);
        }
        CHECK(tx_counter(f, 0, 1, MINT_TX_STALLS) == 0, "stalled");
        fabric_free(f);
    }
}

/*
 * One that only says so, by moving its tail on and back, is not; whether the sender tries again in
 * between or only looks how much longer it may wait.
 */
static void feigned_progress_is_none(bool tries)
{
    const uint32_t layouts[] = {MINT_LAYOUT_PER_CHANNEL, MINT_LAYOUT_POOLED};

    for (uint32_t i = 0; i < 2; i++) {
        struct fabric *f = open_fabric(3, layouts[i], 10000);
        struct mint_slot *theirs = &f->port[1]->slots[0];
        uint64_t tail = load_relaxed(&theirs->tail), start;
        enum mint_sent sent;

        fill(f, 0, 1, 30000);
        CHECK(post(f, 0, 1, 30000, 0) == MINT_FULL, "room");
        start = now_ns();
        for (uint32_t n = 0; mint_port_wait_room(f->port[0], 1); n++) {
            store_release(&theirs->tail, tail + (n % 2 ? 0 : MINT_LINE));
            sent = tries ? post(f, 0, 1, 30000, 0) : MINT_FULL;
            if (sent == MINT_DROPPED)
                break;
            CHECK(now_ns() - start < SOON, "layout %u: waited for after %u steps", layouts[i], n);
        }
        CHECK(send_frame(f, 0, 1, 30000, 0) == MINT_DROPPED, "not given up");
        CHECK(send_frame(f, 0, 2, 1000, 9) == MINT_SENT && recv_mark(f, 2) == 9, "others");
        store_release(&theirs->tail, tail); /* an honest successor */
        crash_port(f, 1);
        open_port(f, 1);
        drain(f, 1);
        mint_port_wait(f->port[0], 0);
        drain(f, 1);
        CHECK(send_frame(f, 0, 1, 1000, 8) == MINT_SENT && recv_mark(f, 1) == 8, "not healed");
        fabric_free(f);
    }
}

static void a_feint_is_not_waited_for(void)
{
    feigned_progress_is_none(true);
}

static void a_feint_is_no_reason_to_wait_on(void)
{
    feigned_progress_is_none(false);
}

static void floods_do_not_wait(void)
{
    EACH_LAYOUT(layout)
    {
        struct fabric *f = open_fabric(3, layout, 10000);
        uint8_t all[6], src[6];
        uint32_t n = fill(f, 0, 1, 1000);

        memset(all, 0xff, sizeof(all));
        mac_of(0, src);
        CHECK(send_macs(f, 0, all, src, 42) == MINT_SENT, "not sent");
        CHECK(recv_mark(f, 2) == 42, "the others do not get it");
        CHECK(tx_counter(f, 0, 1, MINT_TX_DROP_FULL) == 1, "not counted");
        CHECK(drain(f, 1) == n, "it was sent after all");
        fabric_free(f);
    }
}

/* With one receiver there is nobody to be kept waiting. */
static void a_flood_to_one_waits(void)
{
    EACH_LAYOUT(layout)
    {
        struct fabric *f = open_fabric(2, layout, 10000);
        uint8_t frame[1000], all[6], src[6];
        uint32_t n = fill(f, 0, 1, 1000), peer = 9;

        memset(all, 0xff, sizeof(all));
        mac_of(0, src);
        make_frame(frame, all, src, sizeof(frame), 5);
        CHECK(mint_port_send(f->port[0], NULL, frame, sizeof(frame), &peer) == MINT_FULL, "room");
        CHECK(peer == 1, "waits for %u", peer);
        CHECK(port_counter(f, 0, MINT_PORT_FLOODED) == 0, "counted");
        CHECK(drain(f, 1) == n, "not all came");
        CHECK(mint_port_send(f->port[0], NULL, frame, sizeof(frame), &peer) == MINT_SENT,
              "no room");
        fabric_free(f);
    }
}

static void a_closed_receiver_is_down(void)
{
    EACH_LAYOUT(layout)
    {
        struct fabric *f = open_fabric(3, layout, 10000);

        CHECK(send_frame(f, 0, 1, 100, 1) == MINT_SENT, "not sent");
        CHECK(recv_mark(f, 1) == 1, "does not come");
        leave_port(f, 1);
        for (uint32_t i = 0; i < 10; i++)
            CHECK(send_frame(f, 0, 1, 100, 2) == MINT_DROPPED, "sent to a closed port");
        CHECK(tx_counter(f, 0, 1, MINT_TX_DROP_DOWN) == 10, "not counted");
        open_port(f, 1);
        CHECK(send_frame(f, 0, 1, 100, 3) == MINT_SENT, "not sent to the open port");
        CHECK(recv_mark(f, 1) == 3, "something old, or nothing");
        fabric_free(f);
    }
}

/* ------------------------------------------------------------------------- waiting for room */

struct waiter {
    struct fabric *f;
    uint32_t len;
    int result;
    uint32_t done;
    int64_t timeout_ns;
    mint_a32 finished;
};

/* Send one frame from port 0 to port 1, however long it takes. */
static void *wait_and_send(void *arg)
{
    struct waiter *w = arg;
    uint8_t *frame = malloc(w->len), dst[6], src[6];

    mac_of(1, dst);
    mac_of(0, src);
    make_frame(frame, dst, src, w->len, 0xee);
    w->result = mint_port_send_packed(w->f->port[0], frame, &w->len, 1, w->timeout_ns, &w->done);
    store_release(&w->finished, 1);
    free(frame);
    return NULL;
}

static void wait_for_want(struct fabric *f, uint32_t beyond)
{
    uint64_t start = now_ns();

    while (load_relaxed(&f->port[0]->slots[1].tx_want) <= beyond ||
           !(load_relaxed(&f->port[0]->slots[1].tx_want) & 1u)) {
        CHECK(now_ns() - start < SOON, "the sender does not wait for room");
        sched_yield();
    }
}

/*
 * A sender needs more room than its receiver gives back at once. Each step wakes it, and it must go
 * on to ask: else it would sleep until the stall time-out, which is far away here.
 */
static void room_that_comes_in_crumbs(void)
{
    EACH_LAYOUT(layout)
    {
        struct fabric *f = open_fabric(2, layout, 60u * 1000000u);
        struct waiter w = {.f = f, .len = 60000, .timeout_ns = -1};
        uint64_t start = now_ns();
        pthread_t thread;
        uint32_t n = fill(f, 0, 1, 1000), got = 0;

        CHECK(pthread_create(&thread, NULL, wait_and_send, &w) == 0, "thread");
        wait_for_want(f, 0);
        while (!load_acquire(&w.finished)) {
            int mark = recv_mark(f, 1);
            struct timespec nap = {.tv_nsec = MS / 2}; /* so that it sleeps again in between */

            got += mark >= 0;
            CHECK(mark >= 0 || got >= n, "the channel is damaged");
            CHECK(now_ns() - start < SOON, "the sender sleeps: %u of %u frames are read", got, n);
            nanosleep(&nap, NULL);
        }
        pthread_join(thread, NULL);
        CHECK(w.result == 0 && w.done == 1, "%d", w.result);
        CHECK(drain(f, 1) + got == n + 1, "a frame is lost");
        fabric_free(f);
    }
}

/* In layout shared, room for one receiver may be given by another. */
static void room_that_another_receiver_gives(void)
{
    struct fabric *f = fabric_new(3, MINT_LAYOUT_SHARED, 3 * 67 * 2048);
    struct waiter w = {.len = 60000, .timeout_ns = -1};
    uint64_t start = now_ns();
    pthread_t thread;

    f->stall_us = 60u * 1000000u;
    w.f = fabric_open(f);
    fill(f, 0, 2, 1000);
    fill(f, 2, 1, 60000); /* others' frames take what is left */
    fill(f, 1, 0, 60000);
    CHECK(drain(f, 1) > 0, "port 1 has nothing to give");
    fill(f, 1, 0, 1000);
    CHECK(post(f, 0, 1, 60000, 0) == MINT_FULL, "there is room; the test tests nothing");
    CHECK(pthread_create(&thread, NULL, wait_and_send, &w) == 0, "thread");
    wait_for_want(f, 0);
    while (!load_acquire(&w.finished)) {
        drain(f, 2);
        CHECK(now_ns() - start < SOON, "the sender sleeps though there is room");
        sched_yield();
    }
    pthread_join(thread, NULL);
    CHECK(w.result == 0 && w.done == 1, "%d", w.result);
    fabric_free(f);
}

/* There, too, it may be given by another sender, which rings nobody. */
static void room_that_another_sender_gives(void)
{
    struct fabric *f = fabric_new(3, MINT_LAYOUT_SHARED, 3 * 67 * 2048);
    struct waiter w = {.len = 60000, .timeout_ns = 60000 * MS};
    uint64_t start = now_ns();
    pthread_t thread;

    w.f = fabric_open(f);
    fill(f, 2, 1, 1000);
    CHECK(post(f, 0, 1, 60000, 0) == MINT_FULL, "there is room; the test tests nothing");
    CHECK(pthread_create(&thread, NULL, wait_and_send, &w) == 0, "thread");
    wait_for_want(f, 0);
    mint_port_wait(f->port[2], 50 * MS); /* so that the sender sleeps */
    CHECK(!load_acquire(&w.finished), "it finds room");
    CHECK(mint_port_drop_peer(f->port[2], 1) == 0, "drop");
    while (!load_acquire(&w.finished)) {
        CHECK(now_ns() - start < SOON, "the sender sleeps though there is room");
        sched_yield();
    }
    pthread_join(thread, NULL);
    CHECK(w.result == 0 && w.done == 1, "%d", w.result);
    fabric_free(f);
}

/* One ring for each time that the sender asks, however often room is given. */
static void one_ring_for_one_wish(void)
{
    EACH_LAYOUT(layout)
    {
        struct fabric *f = open_fabric(2, layout, 20000);
        uint32_t n = fill(f, 0, 1, 1000), want;

        CHECK(recv_mark(f, 1) >= 0, "nothing comes");
        CHECK(rx_counter(f, 1, 0, MINT_RX_RINGS) == 0, "rung for nobody");
        CHECK(post(f, 0, 1, 60000, 0) == MINT_FULL, "room");
        mint_port_wait_room(f->port[0], 1);
        want = load_relaxed(&f->port[0]->slots[1].tx_want);
        CHECK(want & 1u, "it does not say that it waits");
        for (uint32_t i = 0; i < n * 3 / 4; i++)
            CHECK(recv_mark(f, 1) >= 0, "nothing comes");
        CHECK(rx_counter(f, 1, 0, MINT_RX_RINGS) == 1, "%llu rings",
              (unsigned long long)rx_counter(f, 1, 0, MINT_RX_RINGS));
        drain(f, 1);
        CHECK(send_frame(f, 0, 1, 60000, 0) == MINT_SENT, "no room");
        CHECK(!(load_relaxed(&f->port[0]->slots[1].tx_want) & 1u), "it still says that it waits");
        fabric_free(f);
    }
}

/*
 * Layout per-channel: who waits is not woken for less than half of the channel, and finds no reason
 * to stay up for less; but before the channel counts as stalled, what room there is is tried.
 */
static void woken_for_half_of_the_room(void)
{
    struct fabric *f = open_fabric(2, MINT_LAYOUT_PER_CHANNEL, 10000);
    uint32_t n = fill(f, 0, 1, 1000), got = 0;
    uint64_t start = now_ns(), left;

    CHECK(post(f, 0, 1, 1000, 0) == MINT_FULL, "room");
    CHECK(mint_port_wait_room(f->port[0], 1) == 1, "not asked");
    for (; got < n / 4; got++) {
        CHECK(recv_mark(f, 1) >= 0, "nothing comes");
        CHECK(mint_port_wait_room(f->port[0], 1) > 1, "up for %u frames", got);
    }
    CHECK(rx_counter(f, 1, 0, MINT_RX_RINGS) == 0, "woken for a quarter");
    while ((left = mint_port_wait_room(f->port[0], 1)) > 1) {
        mint_port_wait_peer(f->port[0], 1, left);
        CHECK(now_ns() - start < SOON, "it sleeps on");
    }
    CHECK(left == 1, "stalled though a quarter is free");
    CHECK(send_frame(f, 0, 1, 1000, 0) == MINT_SENT, "no room");
    while (post(f, 0, 1, 1000, 0) == MINT_SENT)
        n++;
    mint_port_flush(f->port[0]);
    mint_port_wait_room(f->port[0], 1);
    for (n++; got < n - n / 4; got++)
        CHECK(recv_mark(f, 1) >= 0, "nothing comes");
    CHECK(rx_counter(f, 1, 0, MINT_RX_RINGS) == 1, "not woken");
    CHECK(mint_port_wait_room(f->port[0], 1) == 1, "not to try again");
    fabric_free(f);
}

/*
 * A ring may come for room that was seen already: the receiver was slow between giving the room and
 * looking who waits. Then the wish is used up, and whoever goes on waiting must ask again.
 */
static void a_late_ring_uses_up_the_wish(void)
{
    EACH_LAYOUT(layout)
    {
        struct fabric *f = open_fabric(2, layout, 10000000);
        uint64_t left;
        uint32_t n = fill(f, 0, 1, 1000), want;

        CHECK(post(f, 0, 1, 1000, 0) == MINT_FULL, "room");
        CHECK(mint_port_wait_room(f->port[0], 1) == 1, "not asked");
        want = load_relaxed(&f->port[0]->slots[1].tx_want);
        CHECK(mint_port_wait_room(f->port[0], 1) > 1, "asked twice for nothing");
        CHECK(load_relaxed(&f->port[0]->slots[1].tx_want) == want, "asked twice for nothing");
        f->port[1]->peers[0]->rung_want = want;
        mint_bell_ring(f->bell[1][0]);
        CHECK(mint_port_wait_peer(f->port[0], 1, SOON) == 0, "interrupted");
        left = mint_port_wait_room(f->port[0], 1);
        CHECK(left == 1 && load_relaxed(&f->port[0]->slots[1].tx_want) > want, "not asked again");
        for (uint32_t i = 0; i < n * 3 / 4; i++)
            CHECK(recv_mark(f, 1) >= 0, "nothing comes");
        CHECK(rx_counter(f, 1, 0, MINT_RX_RINGS) == 1, "the receiver does not ring");
        fabric_free(f);
    }
}

/* After a time-out nobody waits any more: a later sleep is a sleep. */
static void a_time_out_ends_the_wait(void)
{
    EACH_LAYOUT(layout)
    {
        struct fabric *f = open_fabric(2, layout, 1000000);
        struct waiter w = {.f = f, .len = 1000, .timeout_ns = 0};
        uint64_t sleeps, start;

        fill(f, 0, 1, 1000);
        for (uint32_t i = 0; i < 3; i++) {
            w.timeout_ns = i * 5 * MS;
            start = now_ns();
            wait_and_send(&w);
            CHECK(w.result == -ETIMEDOUT && w.done == 0, "%d", w.result);
            CHECK(now_ns() - start >= (uint64_t)w.timeout_ns, "too early");
        }
        CHECK(!(load_relaxed(&f->port[0]->slots[1].tx_want) & 1u), "it still says that it waits");
        drain(f, 1);
        sleeps = port_counter(f, 0, MINT_PORT_SLEEPS);
        CHECK(mint_port_wait(f->port[0], 30 * MS) == MINT_EV_TIMER, "woken by the room of before");
        CHECK(port_counter(f, 0, MINT_PORT_SLEEPS) == sleeps + 1, "it did not sleep");
        fabric_free(f);
    }
}

/* A time limit of the caller's own is that, and no stall: nothing is dropped behind its back. */
static void a_time_limit_does_not_drop(void)
{
    EACH_LAYOUT(layout)
    {
        struct fabric *f = open_fabric(2, layout, 2000);
        struct waiter w = {.f = f, .len = 1000};
        uint32_t n = fill(f, 0, 1, 1000);

        for (uint32_t i = 0; i < 10; i++) {
            w.timeout_ns = i * MS;
            wait_and_send(&w);
            CHECK(w.result == -ETIMEDOUT && w.done == 0, "try %u: %d, %u", i, w.result, w.done);
        }
        CHECK(tx_counter(f, 0, 1, MINT_TX_DROP_STALLED) == 0, "dropped");
        w.timeout_ns = -1;
        wait_and_send(&w);
        CHECK(w.result == 0 && w.done == 1, "%d", w.result);
        CHECK(tx_counter(f, 0, 1, MINT_TX_DROP_STALLED) == 1, "not stalled");
        CHECK(drain(f, 1) == n, "not all came");
        fabric_free(f);
    }
}

/* --------------------------------------------------------------------------------- doorbells */

static void rings_once_for_each_sleep(void)
{
    EACH_LAYOUT(layout)
    {
        struct fabric *f = open_fabric(3, layout, 20000);

        for (uint32_t i = 0; i < 10; i++)
            send_frame(f, 0, 1, 100, 1);
        CHECK(tx_counter(f, 0, 1, MINT_TX_RINGS) == 0, "rung for one who is awake");
        for (uint32_t round = 1; round <= 5; round++) {
            mint_port_arm(f->port[1]);
            CHECK(load_relaxed(&f->port[1]->ctl->wake) & 1u, "not armed");
            for (uint32_t i = 0; i < 10; i++)
                send_frame(f, 0, 1, 100, 1);
            send_frame(f, 2, 1, 100, 1);
            CHECK(tx_counter(f, 0, 1, MINT_TX_RINGS) == round, "round %u: %llu rings", round,
                  (unsigned long long)tx_counter(f, 0, 1, MINT_TX_RINGS));
            CHECK(tx_counter(f, 2, 1, MINT_TX_RINGS) == round, "the other sender");
            mint_port_disarm(f->port[1]);
            drain(f, 1);
        }
        CHECK(tx_counter(f, 0, 2, MINT_TX_RINGS) == 0, "rung for a stranger");
        fabric_free(f);
    }
}

static void does_not_sleep_over_a_frame(void)
{
    EACH_LAYOUT(layout)
    {
        struct fabric *f = open_fabric(2, layout, 20000);
        uint64_t sleeps = port_counter(f, 1, MINT_PORT_SLEEPS);
        uint64_t timers = port_counter(f, 1, MINT_PORT_WAKES_TIMER);

        for (uint32_t i = 0; i < 10; i++) {
            send_frame(f, 0, 1, 100, 1);
            CHECK(mint_port_wait(f->port[1], SOON) == MINT_EV_BELL, "it sleeps");
            CHECK(recv_mark(f, 1) == 1, "nothing comes");
        }
        CHECK(port_counter(f, 1, MINT_PORT_SLEEPS) == sleeps, "it slept");
        CHECK(mint_port_wait(f->port[1], 5 * MS) == MINT_EV_TIMER, "woken by nothing");
        CHECK(mint_port_wait(f->port[1], 0) == MINT_EV_TIMER, "woken by nothing");
        CHECK(port_counter(f, 1, MINT_PORT_WAKES_TIMER) == timers + 2, "not counted");
        fabric_free(f);
    }
}

static void *send_later(void *arg)
{
    struct fabric *f = arg;
    uint64_t start = now_ns();

    while (!(load_relaxed(&f->port[1]->ctl->wake) & 1u)) {
        CHECK(now_ns() - start < SOON, "the receiver does not sleep");
        sched_yield();
    }
    send_frame(f, 0, 1, 100, 1);
    return NULL;
}

static void a_frame_ends_a_sleep(void)
{
    EACH_LAYOUT(layout)
    {
        struct fabric *f = open_fabric(2, layout, 20000);

        for (uint32_t i = 1; i <= 20; i++) {
            pthread_t thread;

            CHECK(pthread_create(&thread, NULL, send_later, f) == 0, "thread");
            CHECK(mint_port_wait(f->port[1], SOON) == MINT_EV_BELL, "round %u: not woken", i);
            pthread_join(thread, NULL);
            CHECK(recv_mark(f, 1) == 1, "nothing comes");
        }
        fabric_free(f);
    }
}

static void watched_descriptors_end_a_sleep(void)
{
    struct fabric *f = open_fabric(2, MINT_LAYOUT_PER_CHANNEL, 20000);
    int device[2], control[2];

    CHECK(pipe2(device, O_CLOEXEC) == 0 && pipe2(control, O_CLOEXEC) == 0, "pipe");
    CHECK(mint_port_watch(f->port[1], device[0], MINT_EV_DEVICE) == 0, "watch");
    CHECK(mint_port_watch(f->port[1], control[0], MINT_EV_CONTROL) == 0, "watch");
    CHECK(write(device[1], "x", 1) == 1, "write");
    CHECK(mint_port_wait(f->port[1], SOON) == MINT_EV_DEVICE, "not woken");
    CHECK(write(control[1], "x", 1) == 1, "write");
    CHECK(mint_port_wait(f->port[1], SOON) == (MINT_EV_DEVICE | MINT_EV_CONTROL), "not woken");
    CHECK(mint_port_unwatch(f->port[1], device[0]) == 0, "unwatch");
    CHECK(mint_port_wait(f->port[1], SOON) == MINT_EV_CONTROL, "not woken");
    CHECK(mint_port_unwatch(f->port[1], control[0]) == 0, "unwatch");
    CHECK(mint_port_wait(f->port[1], 5 * MS) == MINT_EV_TIMER, "still watched");
    for (uint32_t i = 0; i < 2; i++) {
        close(device[i]);
        close(control[i]);
    }
    fabric_free(f);
}

/* Somebody rings without a reason: it is counted, then not listened to, and frames still come. */
static void spurious_rings_are_masked(void)
{
    EACH_LAYOUT(layout)
    {
        struct fabric *f = open_fabric(2, layout, 20000);
        uint64_t start = now_ns(), masked;

        while (rx_counter(f, 1, 0, MINT_RX_MASKED) == 0) {
            mint_bell_ring(f->bell[0][1]);
            mint_port_wait(f->port[1], MS);
            CHECK(now_ns() - start < SOON, "a storm of %llu rings is listened to",
                  (unsigned long long)rx_counter(f, 1, 0, MINT_RX_SPURIOUS));
        }
        CHECK(rx_counter(f, 1, 0, MINT_RX_SPURIOUS) >= 64, "masked too early");
        masked = now_ns();
        for (uint32_t i = 0; i < 100; i++)
            mint_bell_ring(f->bell[0][1]);
        CHECK(mint_port_wait(f->port[1], 5 * MS) == MINT_EV_TIMER || now_ns() - masked > 8 * MS,
              "a masked bell wakes");
        send_frame(f, 0, 1, 100, 6);
        CHECK(mint_port_wait(f->port[1], SOON) == MINT_EV_BELL && recv_mark(f, 1) == 6, "lost");
        start = now_ns(); /* it is listened to again before long */
        while (f->port[1]->masked) {
            mint_port_wait(f->port[1], MS);
            CHECK(now_ns() - start < SOON, "masked for good");
        }
        a_frame_ends_a_sleep();
        fabric_free(f);
    }
}

/* A ring that comes after its reason was found without it is no storm, however often. */
static void late_rings_are_no_storm(void)
{
    EACH_LAYOUT(layout)
    {
        struct fabric *f = open_fabric(2, layout, 20000);
        uint64_t spurious;

        mint_port_wait(f->port[1], 0); /* the other end may have rung that it is open */
        spurious = rx_counter(f, 1, 0, MINT_RX_SPURIOUS);
        for (uint32_t i = 0; i < 200; i++) { /* for a frame that was taken */
            send_frame(f, 0, 1, 100, 7);
            CHECK(recv_mark(f, 1) == 7, "nothing comes");
            mint_bell_ring(f->bell[0][1]);
            mint_port_wait(f->port[1], 0);
        }
        for (uint32_t i = 0; i < 200; i++) { /* for room that was asked for, and found */
            fill(f, 1, 0, 60000);
            mint_port_wait_room(f->port[1], 0);
            drain(f, 0);
            CHECK(send_frame(f, 1, 0, 100, 8) == MINT_SENT && drain(f, 0) == 1, "no room");
            mint_bell_ring(f->bell[0][1]);
            mint_port_wait(f->port[1], 0);
        }
        CHECK(rx_counter(f, 1, 0, MINT_RX_MASKED) == 0, "masked");
        CHECK(rx_counter(f, 1, 0, MINT_RX_SPURIOUS) == spurious, "%llu spurious",
              (unsigned long long)(rx_counter(f, 1, 0, MINT_RX_SPURIOUS) - spurious));
        fabric_free(f);
    }
}

/* While the bell is masked nobody hears it ring: the channel is looked at by timer. */
static void a_masked_channel_is_looked_at(void)
{
    struct fabric *f = open_fabric(2, MINT_LAYOUT_PER_CHANNEL, 20000);

    for (uint32_t round = 0; round < 5; round++) {
        uint64_t start = now_ns();
        pthread_t thread;

        while (!f->port[1]->masked) {
            mint_bell_ring(f->bell[0][1]);
            mint_port_wait(f->port[1], MS);
            CHECK(now_ns() - start < SOON, "never masked");
        }
        CHECK(pthread_create(&thread, NULL, send_later, f) == 0, "thread");
        start = now_ns();
        while (recv_mark(f, 1) < 0) {
            mint_port_wait(f->port[1], 60000 * MS);
            CHECK(now_ns() - start < SOON, "it sleeps over the frame");
        }
        pthread_join(thread, NULL);
    }
    fabric_free(f);
}

/* The other end of a bell is gone: nothing spins, and frames of others still come. */
static void deaf_bells(void)
{
    EACH_LAYOUT(layout)
    {
        struct fabric *f = open_fabric(3, layout, 3000);
        uint64_t sleeps;

        close(f->bell[0][1]);
        f->bell[0][1] = -1;
        mint_port_wait(f->port[1], MS);
        sleeps = port_counter(f, 1, MINT_PORT_SLEEPS);
        CHECK(mint_port_wait(f->port[1], 20 * MS) == MINT_EV_TIMER, "a dead bell wakes");
        CHECK(port_counter(f, 1, MINT_PORT_SLEEPS) == sleeps + 1, "it spins");
        mint_bell_ring(f->bell[1][0]); /* no SIGPIPE, no error */
        send_frame(f, 2, 1, 100, 3);
        CHECK(mint_port_wait(f->port[1], SOON) == MINT_EV_BELL && recv_mark(f, 1) == 3, "others");
        fill(f, 1, 0, 1000);
        CHECK(wait_stalled(f, 1, 0) >= 3 * MS, "the wait for room does not wait");
        CHECK(mint_port_drop_peer(f->port[1], 0) == 0, "drop");
        fabric_free(f);
    }
}

/* A bell that is full of rings neither blocks who rings nor loses the ring. */
static void a_full_bell(void)
{
    struct fabric *f = open_fabric(2, MINT_LAYOUT_PER_CHANNEL, 20000);

    for (uint32_t i = 0; i < 200000; i++)
        mint_bell_ring(f->bell[0][1]);
    mint_port_arm(f->port[1]);
    send_frame(f, 0, 1, 100, 4);
    mint_port_disarm(f->port[1]);
    CHECK(mint_port_wait(f->port[1], SOON) == MINT_EV_BELL && recv_mark(f, 1) == 4, "lost");
    fabric_free(f);
}

/* Whatever a port waits for, a poll that finds nothing ends after poll_us. */
static void polling_is_bounded(void)
{
    EACH_LAYOUT(layout)
    {
        struct fabric *f = fabric_new(2, layout, CAPACITY);
        uint64_t polled, sleeps;

        f->poll_us = 2000;
        fabric_open(f);
        sleeps = port_counter(f, 1, MINT_PORT_SLEEPS);
        CHECK(mint_port_wait(f->port[1], 50 * MS) == MINT_EV_TIMER, "woken by nothing");
        polled = port_counter(f, 1, MINT_PORT_POLL_NS);
        CHECK(polled >= MS && polled < 45u * MS, "polled for %llu ns", (unsigned long long)polled);
        CHECK(port_counter(f, 1, MINT_PORT_SLEEPS) == sleeps + 1, "it did not sleep then");
        send_frame(f, 0, 1, 100, 1);
        CHECK(mint_port_wait(f->port[1], SOON) == MINT_EV_BELL, "not woken");
        CHECK(port_counter(f, 1, MINT_PORT_POLL_HITS) == 1, "not found by polling");
        CHECK(recv_mark(f, 1) == 1, "nothing comes");
        fabric_free(f);
    }
}

static const struct check_test tests[] = {
    CHECK_TEST(a_full_channel_counts_nothing),
    CHECK_TEST(a_receiver_that_stopped_is_stalled),
    CHECK_TEST(a_slow_receiver_is_waited_for),
    CHECK_TEST(a_feint_is_not_waited_for),
    CHECK_TEST(a_feint_is_no_reason_to_wait_on),
    CHECK_TEST(floods_do_not_wait),
    CHECK_TEST(a_flood_to_one_waits),
    CHECK_TEST(a_closed_receiver_is_down),
    CHECK_TEST(room_that_comes_in_crumbs),
    CHECK_TEST(room_that_another_receiver_gives),
    CHECK_TEST(room_that_another_sender_gives),
    CHECK_TEST(one_ring_for_one_wish),
    CHECK_TEST(woken_for_half_of_the_room),
    CHECK_TEST(a_late_ring_uses_up_the_wish),
    CHECK_TEST(a_time_out_ends_the_wait),
    CHECK_TEST(a_time_limit_does_not_drop),
    CHECK_TEST(rings_once_for_each_sleep),
    CHECK_TEST(does_not_sleep_over_a_frame),
    CHECK_TEST(a_frame_ends_a_sleep),
    CHECK_TEST(watched_descriptors_end_a_sleep),
    CHECK_TEST(spurious_rings_are_masked),
    CHECK_TEST(late_rings_are_no_storm),
    CHECK_TEST(a_masked_channel_is_looked_at),
    CHECK_TEST(deaf_bells),
    CHECK_TEST(a_full_bell),
    CHECK_TEST(polling_is_bounded),
};

int main(int argc, char **argv)
{
    return CHECK_MAIN(argc, argv, tests);
}
