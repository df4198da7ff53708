/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_pool_processes.c - the shared pool between processes: four that send to each other all the
 * time, first undisturbed, then killed at random moments and started again.
 */
#include "pool_util.h"
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#define PORTS 4u
#define RUN_NS 2500000000ull
#define LATE_NS 100000000ull  /* longer than a call should ever take, a dead holder included */
#define HUNG_NS 3000000000ull /* longer than any machine's load explains */

/* What the processes tell the test; one anonymous shared mapping. */
struct board {
    mint_a32 stop;    /* send no more */
    mint_a32 stopped; /* processes that send no more */
    mint_a64 sent[PORTS][PORTS], got[PORTS][PORTS];
    mint_a64 worst_ns[PORTS];      /* the longest call */
    mint_a64 late[PORTS];          /* calls that took LATE_NS */
    mint_a32 ready, round;         /* the waiter attached; the holder has the lock */
    mint_a64 dropped_ns, taken_ns; /* when the holder gave it back; when the waiter had it */
    mint_a32 taken, steals;        /* rounds in which the waiter got it; by theft */
};

static struct board *board_make(void)
{
    struct board *b =
        mmap(NULL, sizeof(*b), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

    CHECK(b != MAP_FAILED, "mmap: %s", strerror(errno));
    return b;
}

static void note_time(struct board *b, uint32_t port, uint64_t since)
{
    uint64_t ns = test_ns() - since;

    if (ns > load_relaxed(&b->worst_ns[port]))
        store_relaxed(&b->worst_ns[port], ns);
    if (ns > LATE_NS)
        store_relaxed(&b->late[port], load_relaxed(&b->late[port]) + 1);
}

/* One lot in, one lot out. Return: frames moved. */
static uint32_t turn(struct station *s, struct board *b, uint64_t *random, bool gaps)
{
    uint8_t dst = (uint8_t)((s->index + 1u + test_random(random) % (PORTS - 1u)) % PORTS);
    uint32_t moved = 0, n = test_random(random) % 48u;
    uint64_t since = test_ns();

    for (; n > 0 && !load_relaxed(&b->stop); n--, moved++)
        if (!station_send(s, dst, test_length(random)))
            break;
    mint_pool_publish(s->end);
    note_time(b, s->index, since);
    store_relaxed(&b->sent[s->index][dst], s->sent[dst]);
    since = test_ns();
    for (n = test_random(random) % 48u; n > 0 && station_recv(s, gaps); n--)
        moved++;
    mint_pool_recycle(s->end);
    note_time(b, s->index, since);
    return moved;
}

/* The life of a process; it ends when all have stopped sending and its queue is empty. */
static void live(const struct region *r, struct board *b, uint8_t port, uint16_t life, bool gaps)
{
    uint64_t random = 1000u * port + life + 7u;
    struct station s;
    bool stopped = false;

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    station_join(&s, r, port);
    s.life = life;
    for (;;) {
        bool last = load_acquire(&b->stopped) == PORTS;

        if (turn(&s, b, &random, gaps) == 0) {
            if (last && !mint_pool_pending(s.end))
                break;
            sched_yield();
        }
        if (!stopped && load_relaxed(&b->stop)) {
            stopped = true;
            atomic_fetch_add(&b->stopped, 1); /* release: what it sent is seen before */
        }
    }
    for (uint32_t p = 0; p < PORTS; p++)
        store_relaxed(&b->got[port][p], s.got[p]);
    station_leave(&s);
}

static pid_t begin(const struct region *r, struct board *b, uint8_t port, uint16_t life, bool gaps)
{
    pid_t pid = fork();

    CHECK(pid >= 0, "fork: %s", strerror(errno));
    if (pid == 0) {
        live(r, b, port, life, gaps);
        _exit(0);
    }
    return pid;
}

static void end_well(pid_t pid)
{
    int status;

    CHECK(waitpid(pid, &status, 0) == pid, "waitpid: %s", strerror(errno));
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, "a process ended with %#x", status);
}

static void nap(uint64_t ns)
{
    const struct timespec ts = {.tv_sec = (time_t)(ns / 1000000000u),
                                .tv_nsec = (long)(ns % 1000000000u)};

    nanosleep(&ts, NULL);
}

static void nothing_is_lost_among_four(void)
{
    struct board *b = board_make();
    struct region r;
    pid_t pid[PORTS];
    uint64_t frames = 0;

    region_make(&r, PORTS, 700);
    for (uint8_t p = 0; p < PORTS; p++)
        pid[p] = begin(&r, b, p, 0, false);
    nap(RUN_NS);
    store_relaxed(&b->stop, 1);
    for (uint32_t p = 0; p < PORTS; p++)
        end_well(pid[p]);
    for (uint32_t p = 0; p < PORTS; p++) {
        CHECK(load_relaxed(&b->worst_ns[p]) < HUNG_NS, "port %u hung", p);
        for (uint32_t q = 0; q < PORTS; q++) {
            uint64_t sent = load_relaxed(&b->sent[p][q]), got = load_relaxed(&b->got[q][p]);

            CHECK(sent == got, "%u->%u: %llu of %llu", p, q, (unsigned long long)got,
                  (unsigned long long)sent);
            frames += got;
        }
    }
    CHECK(frames > 10000, "only %llu frames", (unsigned long long)frames);
    CHECK(region_audit(&r).free == r.blocks, "blocks are lost");
    CHECK(load_relaxed(&r.head->rebuilds) == 0, "something was damaged");
    printf("%llu frames among %u processes\n", (unsigned long long)frames, PORTS);
    region_free(&r);
    munmap(b, sizeof(*b));
}

/* Kill one process after another, wherever it is, and start the port's next. Return: how many. */
static uint32_t kill_some(const struct region *r, struct board *b, pid_t *pid)
{
    uint64_t random = 99, until = test_ns() + RUN_NS;
    uint32_t kills = 0;

    while (test_ns() < until) {
        uint8_t p = (uint8_t)(test_random(&random) % PORTS);
        int status;

        nap(1000000u + test_random(&random) % 15000000u);
        kill(pid[p], SIGKILL);
        CHECK(waitpid(pid[p], &status, 0) == pid[p], "waitpid: %s", strerror(errno));
        CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL, "port %u ended with %#x", p,
              status);
        pid[p] = begin(r, b, p, (uint16_t)++kills, true);
    }
    return kills;
}

static void the_killed_take_nobody_along(void)
{
    struct board *b = board_make();
    struct region r;
    pid_t pid[PORTS];
    uint32_t kills;
    uint64_t late = 0;

    region_make(&r, PORTS, 700);
    for (uint8_t p = 0; p < PORTS; p++)
        pid[p] = begin(&r, b, p, 0, true);
    kills = kill_some(&r, b, pid);
    store_relaxed(&b->stop, 1);
    for (uint32_t p = 0; p < PORTS; p++)
        end_well(pid[p]);
    for (uint32_t p = 0; p < PORTS; p++) {
        CHECK(load_relaxed(&b->worst_ns[p]) < HUNG_NS, "port %u hung for %llu ns", p,
              (unsigned long long)load_relaxed(&b->worst_ns[p]));
        late += load_relaxed(&b->late[p]);
    }
    /* A loaded machine may be late of itself, now and then. */
    CHECK(late <= kills / 10u + 2u, "%llu late calls after %u kills", (unsigned long long)late,
          kills);
    CHECK(region_audit(&r).free == r.blocks, "blocks are lost");
    CHECK(load_relaxed(&r.head->damaged) == 0, "something was damaged");
    printf("%u killed, %llu of them in the critical section\n", kills,
           (unsigned long long)load_relaxed(&r.head->rebuilds));
    region_free(&r);
    munmap(b, sizeof(*b));
}

/* --- one process holds the lock, another waits for it ------------------------------------------ */

#define ROUNDS 20u

static struct board *watched; /* what the hooks write to */
static const struct region *watched_region;
static uint64_t hold_ns;

/* Spin until the other side has got as far as `n`. */
static void wait_until(mint_a32 *word, uint32_t n)
{
    uint64_t deadline = test_ns() + 20u * 1000000000ull;

    while (load_acquire(word) < n) {
        CHECK(test_ns() < deadline, "the other process is gone");
        sched_yield();
    }
}

/* The holder, once it has the lock: let the waiter begin, and go to sleep on it. */
static void hold(enum mint_pool_point point)
{
    if (point == MINT_POINT_TAKEN) {
        store_release(&watched->round, load_relaxed(&watched->round) + 1);
        wait_until(&watched_region->head->lock, MINT_POOL_LOCK_WAITERS);
        nap(hold_ns);
    } else if (point == MINT_POINT_DROPPED) {
        store_release(&watched->dropped_ns, test_ns());
    }
}

static void note_taken(enum mint_pool_point point)
{
    if (point == MINT_POINT_TAKEN)
        store_relaxed(&watched->taken_ns, test_ns());
}

/* Takes the lock once a round. */
static void waiter(const struct region *r, struct board *b, uint32_t rounds)
{
    struct station s;

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    station_join(&s, r, 1);
    store_release(&b->ready, 1);
    for (uint32_t i = 1; i <= rounds; i++) {
        wait_until(&b->round, i);
        mint_pool_test_hook = note_taken;
        CHECK(mint_pool_forget(s.end, 0) == 0, "nothing was sent");
        mint_pool_test_hook = NULL;
        store_relaxed(&b->steals, (uint32_t)load_relaxed(&s.counter[MINT_PORT_LOCK_STEALS]));
        store_release(&b->taken, i);
    }
    station_leave(&s);
}

/* Return: how long after the lock was given back the waiter had it, in the best round. */
static int64_t hand_over(uint32_t rounds, uint64_t ns)
{
    struct board *b = board_make();
    struct region r;
    struct station s;
    int64_t best = INT64_MAX;
    pid_t pid;

    region_make(&r, 2, 100);
    station_join(&s, &r, 0);
    watched = b;
    watched_region = &r;
    hold_ns = ns;
    pid = fork();
    CHECK(pid >= 0, "fork: %s", strerror(errno));
    if (pid == 0) {
        waiter(&r, b, rounds);
        _exit(0);
    }
    wait_until(&b->ready, 1);
    for (uint32_t i = 1; i <= rounds; i++) {
        int64_t took;

        mint_pool_test_hook = hold;
        mint_pool_forget(s.end, 1);
        mint_pool_test_hook = NULL;
        wait_until(&b->taken, i);
        took = (int64_t)(load_acquire(&b->taken_ns) - load_acquire(&b->dropped_ns));
        best = took < best ? took : best;
    }
    end_well(pid);
    CHECK(load_relaxed(&b->steals) == 0, "taken from a living holder");
    station_leave(&s);
    region_audit(&r);
    region_free(&r);
    munmap(b, sizeof(*b));
    return best;
}

/* A holder may take its time: here five times what makes a waiter ask whether it lives. */
static void a_living_holder_keeps_the_lock(void)
{
    hand_over(1, 100000000u);
}

/* The waiter does not sleep its time out: then it would have the lock after 20 ms. */
static void a_waiter_is_woken(void)
{
    int64_t best = hand_over(ROUNDS, 0);

    CHECK(best < 10000000, "the waiter slept on for %lld ns", (long long)best);
}

int main(int argc, char **argv)
{
    static const struct check_test tests[] = {
        CHECK_TEST(nothing_is_lost_among_four),
        CHECK_TEST(the_killed_take_nobody_along),
        CHECK_TEST(a_living_holder_keeps_the_lock),
        CHECK_TEST(a_waiter_is_woken),
    };

    return CHECK_MAIN(argc, argv, tests);
}
