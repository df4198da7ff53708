/* SPDX-License-Identifier: Apache-2.0 */
/* deadline: 180 s */
/*
 * test_pooled_death.c - layout pooled when processes are killed at any instruction: a sender whose
 * next process goes on, a receiver whose next process does. What arrives is whole and in order, and
 * no buffer is lost.
 */
#include "port_util.h"
#include <signal.h>
#include <sys/wait.h>

#define CAPACITY 393216u
#define BLOCKS (CAPACITY / MINT_STOCK_BLOCK)
#define LIVES 60u

/* What outlives the processes. */
struct shared {
    mint_a32 next;    /* number of the next frame to send */
    mint_a32 seen[3]; /* receivers: number of the last frame */
    mint_a32 wrong;   /* frames out of order or damaged */
};

static struct shared *new_shared(void)
{
    struct shared *s =
        mmap(NULL, sizeof(*s), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

    CHECK(s != MAP_FAILED, "mmap");
    return s;
}

/* Frames of all sizes, each filled from its number; every fourth is for all. */
static void send_for_ever(struct fabric *f, struct shared *s)
{
    static uint8_t frame[20000];

    open_port(f, 0);
    for (;;) {
        uint32_t number = load_relaxed(&s->next), len = 60 + number * 2654435761u % 17000, peer;

        mac_of(1 + number % 2, frame);
        mac_of(0, frame + 6);
        if (number % 4 == 0)
            memset(frame, 0xff, 6);
        memcpy(frame + 14, &number, sizeof(number));
        memset(frame + 18, (int)(number % 251), len - 18);
        store_relaxed(&s->next, number + 1);
        while (mint_port_send(f->port[0], NULL, frame, len, &peer) == MINT_FULL)
            mint_port_flush(f->port[0]);
        if (number % 8 == 0)
            mint_port_flush(f->port[0]);
    }
}

static void receive(struct fabric *f, uint32_t me, struct shared *s, bool repeats)
{
    struct mint_view v;
    uint32_t number, last = load_relaxed(&s->seen[me]), bad = 0;

    if (!mint_port_recv(f->port[me], &v))
        return;
    memcpy(&number, v.frame + 14, sizeof(number));
    bad += number <= last && !(repeats && last - number < 64);
    for (uint32_t i = 18; i < v.len; i += 7)
        bad += v.frame[i] != number % 251;
    bad += v.len != 60 + number * 2654435761u % 17000;
    if (bad)
        store_relaxed(&s->wrong, load_relaxed(&s->wrong) + 1);
    store_relaxed(&s->seen[me], number);
    mint_port_release(f->port[me], &v);
    mint_port_recycle(f->port[me]);
}

static pid_t start(struct fabric *f, struct shared *s,
                   void (*run)(struct fabric *, struct shared *))
{
    pid_t pid = fork();

    CHECK(pid >= 0, "fork: %s", strerror(errno));
    if (pid == 0) {
        run(f, s);
        _exit(0);
    }
    return pid;
}

static void kill_child(pid_t pid)
{
    int status;

    CHECK(kill(pid, SIGKILL) == 0 && waitpid(pid, &status, 0) == pid, "kill");
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL, "it ended by itself: %#x", status);
}

static void all_comes_back(struct fabric *f)
{
    struct mint_pooled *p = f->port[0]->pooled;

    for (uint32_t q = 1; q < 3; q++) {
        while (recv_mark(f, q) >= 0)
            ;
        mint_lane_admits_now(&p->lanes[q], 1);
    }
    CHECK(p->stock.free == BLOCKS, "%u blocks are lost", BLOCKS - p->stock.free);
}

static void a_sender_is_killed(void)
{
    struct fabric *f = fabric_new(3, MINT_LAYOUT_POOLED, CAPACITY);
    struct shared *s = new_shared();

    store_relaxed(&s->next, 1);
    open_port(f, 1);
    open_port(f, 2);
    for (uint32_t life = 0; life < LIVES; life++) {
        pid_t pid = start(f, s, send_for_ever);
        uint32_t from = load_relaxed(&s->seen[1]);
        uint64_t begin = now_ns();

        while (load_relaxed(&s->seen[1]) < from + 200 + life * 37 % 300) {
            receive(f, 1, s, false);
            receive(f, 2, s, false);
            mint_port_wait(f->port[1], 0); /* joins what is demanded of our sending ends */
            CHECK(now_ns() - begin < 20000 * MS, "nothing comes in life %u", life);
        }
        kill_child(pid);
        CHECK(load_relaxed(&s->wrong) == 0, "%u frames are wrong in life %u",
              load_relaxed(&s->wrong), life);
    }
    open_port(f, 0);
    all_comes_back(f);
    CHECK(rx_counter(f, 1, 0, MINT_RX_RESETS) == 0 && rx_counter(f, 2, 0, MINT_RX_RESETS) == 0,
          "the receivers noticed");
    fabric_free(f);
    munmap(s, sizeof(*s));
}

static void receive_for_ever(struct fabric *f, struct shared *s)
{
    open_port(f, 1);
    for (;;)
        receive(f, 1, s, true);
}

/* The other receiver gets all that is for it, whatever becomes of the one. */
static void a_receiver_is_killed(void)
{
    struct fabric *f = fabric_new(3, MINT_LAYOUT_POOLED, CAPACITY);
    struct shared *s = new_shared();
    static uint8_t frame[20000];
    uint32_t number = 1, peer;

    open_port(f, 0);
    open_port(f, 2);
    for (uint32_t life = 0; life < LIVES; life++) {
        pid_t pid = start(f, s, receive_for_ever);
        uint32_t from = load_relaxed(&s->seen[1]);
        uint64_t begin = now_ns();

        while (load_relaxed(&s->seen[1]) < from + 100 + life * 37 % 100) {
            uint32_t len = 60 + number * 2654435761u % 17000;

            mac_of(1 + number % 2, frame);
            mac_of(0, frame + 6);
            memcpy(frame + 14, &number, sizeof(number));
            memset(frame + 18, (int)(number % 251), len - 18);
            if (mint_port_send(f->port[0], NULL, frame, len, &peer) == MINT_SENT)
                number++;
            else if (number % 2)
                CHECK(load_relaxed(&s->seen[2]) + 2 >= number - 1, "2 starves");
            mint_port_flush(f->port[0]);
            mint_port_wait(f->port[0], 0);
            for (uint32_t i = 0; i < 4; i++)
                receive(f, 2, s, false);
            CHECK(now_ns() - begin < 20000 * MS, "nothing comes in life %u", life);
        }
        kill_child(pid);
        CHECK(load_relaxed(&s->wrong) == 0, "%u frames are wrong", load_relaxed(&s->wrong));
    }
    open_port(f, 1);
    all_comes_back(f);
    fabric_free(f);
    munmap(s, sizeof(*s));
}

static const struct check_test tests[] = {
    CHECK_TEST(a_sender_is_killed),
    CHECK_TEST(a_receiver_is_killed),
};

int main(int argc, char **argv)
{
    return CHECK_MAIN(argc, argv, tests);
}
