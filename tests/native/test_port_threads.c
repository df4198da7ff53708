/* SPDX-License-Identifier: Apache-2.0 */
/* tsan: yes */
/*
 * test_port_threads.c - two threads, two ports, one mapping, in both lock-free layouts: what one writes and the other reads
 * without ordering, a thread sanitizer sees.
 *
 * A sanitizer knows addresses, not what lies behind them; so the ports must meet at the same ones.
 * The functions of region.h are defined here for that, and take the place of the core's: whoever
 * maps a region that is mapped already gets the same mapping.
 */
#include "port_util.h"
#include "region.h"
#include <pthread.h>
#include <sys/stat.h>

#define CAPACITY 135168u
#define LIMIT_NS (60000 * MS) /* far more than it takes, and less than the test's deadline */

/* ------------------------------------------------------------------------------ shared mappings */

static struct {
    ino_t inode;
    void *at;
} maps[64];

static void *map_once(int fd, size_t bytes, uint32_t times)
{
    struct stat st;
    uint8_t *at;
    uint32_t i;

    CHECK(fstat(fd, &st) == 0, "fstat: %s", strerror(errno));
    for (i = 0; maps[i].at; i++)
        if (maps[i].inode == st.st_ino)
            return maps[i].at;
    CHECK(i + 1 < sizeof(maps) / sizeof(maps[0]), "too many regions");
    at = mmap(NULL, times * bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (uint32_t n = 0; n < times; n++)
        CHECK(mmap(at + n * bytes, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) !=
                  MAP_FAILED,
              "mmap: %s", strerror(errno));
    maps[i].inode = st.st_ino;
    maps[i].at = at;
    return at;
}

int mint_region_check(int fd, size_t bytes)
{
    (void)fd;
    (void)bytes;
    return 0;
}

void *mint_region_map(int fd, size_t bytes, bool writable)
{
    (void)writable;
    return map_once(fd, bytes, 1);
}

void *mint_region_map_twice(int fd, size_t bytes, bool writable)
{
    (void)writable;
    return map_once(fd, bytes, 2);
}

/* Never freed: each port would unmap what the other has mapped, too. */
static struct fabric *fabrics[8];

static struct fabric *open_pair(uint32_t layout, uint32_t poll_us)
{
    struct fabric *f = fabric_new(2, layout, CAPACITY);
    static uint32_t count;

    fabrics[count++] = f;
    f->poll_us = poll_us;
    f->stall_us = 60u * 1000000u; /* nothing may be dropped */
    return fabric_open(f);
}

/* --------------------------------------------------------------------------------- one direction */

/* Numbered frames from port 0 to port 1. */
struct stream {
    struct fabric *f;
    uint32_t frames;
    uint32_t batch; /* frames between two publications */
    uint64_t start;
};

static uint32_t length_of(uint32_t number)
{
    uint32_t h = number * 2654435761u;

    return h >> 27 == 0 ? 14 + (h >> 8) % 60000 : 60 + (h >> 8) % 200;
}

/* Every byte of a frame follows from its number, so that a race is seen as a wrong one, too. */
static void fill_frame(uint8_t *frame, uint32_t number, uint32_t len)
{
    for (uint32_t i = 14; i < len; i += 61)
        frame[i] = (uint8_t)(number + i);
    memcpy(frame + 14, &number, sizeof(number));
}

static void check_frame(const struct mint_view *v, uint32_t number)
{
    uint32_t got;

    memcpy(&got, v->frame + 14, sizeof(got));
    CHECK(got == number, "frame %u came instead of %u", got, number);
    CHECK(v->len == length_of(number) + 4, "frame %u has %u bytes", number, v->len);
    for (uint32_t i = 14 + 61; i < v->len; i += 61)
        CHECK(v->frame[i] == (uint8_t)(number + i), "frame %u: byte %u is damaged", number, i);
}

static void *produce(void *arg)
{
    struct stream *s = arg;
    struct mint_port *port = s->f->port[0];
    uint8_t *frame = calloc(1, MINT_FRAME_MAX);
    uint32_t peer;

    CHECK(frame, "out of memory");
    mac_of(1, frame);
    mac_of(0, frame + 6);
    for (uint32_t i = 0; i < s->frames; i++) {
        uint32_t len = length_of(i) + 4;

        fill_frame(frame, i, len);
        while (mint_port_send(port, NULL, frame, len, &peer) == MINT_FULL) {
            uint64_t left;

            CHECK(now_ns() - s->start < LIMIT_NS, "frame %u finds no room", i);
            mint_port_flush(port);
            left = mint_port_wait_room(port, peer);
            if (left > 1)
                mint_port_wait_peer(port, peer, left);
        }
        if (i % s->batch == 0)
            mint_port_flush(port);
    }
    mint_port_flush(port);
    free(frame);
    return NULL;
}

static void *consume(void *arg)
{
    struct stream *s = arg;
    struct mint_port *port = s->f->port[1];
    struct mint_view v;

    for (uint32_t i = 0; i < s->frames;) {
        if (!mint_port_recv(port, &v)) {
            int events;

            mint_port_recycle(port);
            events = mint_port_wait(port, LIMIT_NS);
            CHECK(events > 0 && !((uint32_t)events & MINT_EV_TIMER), "frame %u does not come", i);
            continue;
        }
        check_frame(&v, i++);
        mint_port_release(port, &v);
        if (i % 16 == 0)
            mint_port_recycle(port);
    }
    mint_port_recycle(port);
    return NULL;
}

static void stream(uint32_t layout, uint32_t frames, uint32_t batch, uint32_t poll_us)
{
    struct stream s = {
        .f = open_pair(layout, poll_us), .frames = frames, .batch = batch, .start = now_ns()};
    pthread_t producer, consumer;

    CHECK(pthread_create(&consumer, NULL, consume, &s) == 0, "thread");
    CHECK(pthread_create(&producer, NULL, produce, &s) == 0, "thread");
    pthread_join(producer, NULL);
    pthread_join(consumer, NULL);
    CHECK(rx_counter(s.f, 1, 0, MINT_RX_FRAMES) == frames, "not all were counted");
    CHECK(tx_counter(s.f, 0, 1, MINT_TX_FRAMES) == frames, "not all were counted");
    CHECK(rx_counter(s.f, 1, 0, MINT_RX_RESETS) == 0, "a rule was broken");
    printf("%u frames in %.1f s: %llu sleeps, %llu rings, %llu waits for room\n", frames,
           (double)(now_ns() - s.start) / 1e9,
           (unsigned long long)port_counter(s.f, 1, MINT_PORT_SLEEPS),
           (unsigned long long)tx_counter(s.f, 0, 1, MINT_TX_RINGS),
           (unsigned long long)tx_counter(s.f, 0, 1, MINT_TX_WAITS));
}

static void batches_by_doorbell(void)
{
    stream(MINT_LAYOUT_PER_CHANNEL, 1000000, 32, 0);
}

static void single_frames_by_doorbell(void)
{
    stream(MINT_LAYOUT_PER_CHANNEL, 150000, 1, 0);
}

static void batches_by_polling(void)
{
    stream(MINT_LAYOUT_PER_CHANNEL, 400000, 32, 50);
}

static void pooled_by_doorbell(void)
{
    stream(MINT_LAYOUT_POOLED, 500000, 32, 0);
    stream(MINT_LAYOUT_POOLED, 100000, 1, 0);
}

static void pooled_by_polling(void)
{
    stream(MINT_LAYOUT_POOLED, 400000, 32, 50);
}

/* -------------------------------------------------------------------------------- to and fro */

#define ROUNDS 20000u

/* Each frame is answered before the next: both sides sleep between any two. */
static void *answer(void *arg)
{
    struct fabric *f = arg;

    for (uint32_t i = 0; i < ROUNDS; i++) {
        int mark;

        while ((mark = recv_mark(f, 1)) < 0) {
            int events = mint_port_wait(f->port[1], LIMIT_NS);

            CHECK(events > 0 && !((uint32_t)events & MINT_EV_TIMER), "question %u is lost", i);
        }
        CHECK(mark == (int)(i % 200u), "question %u is %d", i, mark);
        while (send_macs(f, 1, f->port[0]->ctl->mac, f->port[1]->ctl->mac, (uint8_t)mark) !=
               MINT_SENT)
            CHECK(false, "answer %u is not sent", i);
    }
    return NULL;
}

static void to_and_fro(uint32_t layout)
{
    struct fabric *f = open_pair(layout, 0);
    pthread_t thread;

    CHECK(pthread_create(&thread, NULL, answer, f) == 0, "thread");
    for (uint32_t i = 0; i < ROUNDS; i++) {
        int mark;

        CHECK(send_macs(f, 0, f->port[1]->ctl->mac, f->port[0]->ctl->mac, (uint8_t)(i % 200u)) ==
                  MINT_SENT,
              "question %u is not sent", i);
        while ((mark = recv_mark(f, 0)) < 0) {
            int events = mint_port_wait(f->port[0], LIMIT_NS);

            CHECK(events > 0 && !((uint32_t)events & MINT_EV_TIMER), "answer %u is lost", i);
        }
        CHECK(mark == (int)(i % 200u), "answer %u is %d", i, mark);
    }
    pthread_join(thread, NULL);
}

static void every_sleep_ends(void)
{
    to_and_fro(MINT_LAYOUT_PER_CHANNEL);
    to_and_fro(MINT_LAYOUT_POOLED);
}

static const struct check_test tests[] = {
    CHECK_TEST(batches_by_doorbell), CHECK_TEST(single_frames_by_doorbell),
    CHECK_TEST(batches_by_polling),  CHECK_TEST(pooled_by_doorbell),
    CHECK_TEST(pooled_by_polling),   CHECK_TEST(every_sleep_ends),
};

int main(int argc, char **argv)
{
    return CHECK_MAIN(argc, argv, tests);
}
