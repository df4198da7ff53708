/* SPDX-License-Identifier: Apache-2.0 */
/* deadline: 240 s */
/*
 * test_pool_death.c - a process dies at each point of each critical section of the shared pool in
 * turn, taking the lock along. The others must go on within HUNG_NS, with nothing corrupted,
 * nothing leaked, and nothing lost that is not counted.
 *
 * Ports: 0 and 2 live in this process and survive. Port 1 is served by children: the first always
 * dies half-way through a publish, so that its successor, the victim, begins by taking the lock
 * from the dead and making everything anew; the victim dies at its k-th point, k = 1, 2, ..., until
 * it gets through its whole programme alive.
 */
#include "pool_util.h"
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#define DIED 77
#define HUNG_NS 100000000ull

/* What the children tell the test; an anonymous shared mapping that outlives them. */
struct tally {
    uint32_t points[MINT_POINTS];         /* deaths at each */
    uint32_t to_0[2], to_2[2];            /* frames staged; frames whose publish() came back */
    uint32_t freed[2];                    /* frames released; frames whose recycle() came back */
    uint32_t forgotten[2];                /* frames to 0 that were to be forgotten; that were */
    mint_a64 counter[MINT_PORT_COUNTERS]; /* of port 1, whoever serves it */
};

static struct tally *tally;
static uint32_t batch[3]; /* frames staged, by destination */
static uint32_t reads;    /* frames released and not known to be freed */
static uint32_t points_left;
static enum mint_pool_point die_at;

static void die(enum mint_pool_point point)
{
    tally->points[point]++;
    _exit(DIED);
}

static void die_after_some(enum mint_pool_point point)
{
    if (--points_left == 0)
        die(point);
}

static void die_there(enum mint_pool_point point)
{
    if (point == die_at && --points_left == 0)
        die(point);
}

/* --- port 1 ---------------------------------------------------------------------------------- */

static void stage(struct station *s, uint8_t dst, uint32_t len)
{
    CHECK(station_send(s, dst, len), "no room for %u bytes to %u", len, dst);
    (dst ? tally->to_2 : tally->to_0)[0]++;
    batch[dst]++;
}

/* What was staged is published: it came back. */
static void published(void)
{
    tally->to_0[1] += batch[0];
    tally->to_2[1] += batch[2];
    batch[0] = batch[2] = 0;
}

static void publish(struct station *s)
{
    mint_pool_publish(s->end);
    published();
}

static void take(struct station *s, uint32_t frames)
{
    for (uint32_t i = 0; i < frames; i++) {
        tally->freed[0]++; /* before, since next() may free what was released */
        reads++;
        CHECK(station_recv(s, true), "no frame for port 1");
    }
}

static void recycle(struct station *s)
{
    mint_pool_recycle(s->end);
    tally->freed[1] += reads;
    reads = 0;
}

static void come(struct station *s, const struct region *r, uint16_t life)
{
    int err;

    *s = (struct station){.index = 1, .life = life};
    s->sent[0] = tally->to_0[0];
    s->sent[2] = tally->to_2[0];
    err = mint_pool_attach(&s->end, r->fd, 1, tally->counter);
    CHECK(err == 0, "attach: %d", err);
}

/* Leaves: records taken, records staged, a run taken ahead, a batch half cut, the lock held. */
static void first_life(const struct region *r)
{
    struct station s;

    come(&s, r, 0);
    for (uint32_t i = 0; i < 12; i++)
        stage(&s, i % 3 ? 0 : 2, 900 * i + 60);
    publish(&s);
    take(&s, 4);
    for (uint32_t i = 0; i < 4; i++)
        stage(&s, 2, 3000);
    points_left = 3;
    die_at = MINT_POINT_CUT;
    mint_pool_test_hook = die_there;
    publish(&s);
    CHECK(false, "the first life went on");
}

/* All that a port can do under the lock. */
static void programme(const struct region *r)
{
    struct station s;
    struct mint_rec *rec;

    mint_pool_test_hook = die_after_some;
    come(&s, r, 1);
    for (uint32_t i = 0; i < 10; i++) /* a batch, to both in turn, small and large */
        stage(&s, i % 2 ? 0 : 2, i == 5 ? MINT_FRAME_MAX : 100 + 400 * i);
    publish(&s);
    rec = mint_pool_reserve(s.end, 0, MINT_FRAME_MAX); /* stays in hand over a publish */
    CHECK(rec, "no room");
    stage(&s, 2, 5000);
    publish(&s);
    mint_pool_cancel(s.end, rec);
    rec = mint_pool_reserve(s.end, 2, 4000);
    CHECK(rec, "no room");
    stage(&s, 0, 70);
    mint_pool_cancel(s.end, rec);
    publish(&s);
    publish(&s); /* nothing staged: gives the run back */

    take(&s, 3);
    recycle(&s);
    take(&s, 2);
    recycle(&s);
    tally->forgotten[0] = tally->to_0[0];
    tally->forgotten[1] += mint_pool_forget(s.end, 0);
    stage(&s, 2, 200); /* published by detach; frames taken and not handed out are put back */
    mint_pool_detach(s.end);
    published();
}

/* Return: whether the child died at a point; otherwise it ended well. */
static bool child(const struct region *r, void (*life)(const struct region *))
{
    pid_t pid = fork();
    int status;

    CHECK(pid >= 0, "fork: %s", strerror(errno));
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        life(r);
        _exit(0);
    }
    CHECK(waitpid(pid, &status, 0) == pid, "waitpid: %s", strerror(errno));
    CHECK(WIFEXITED(status) && (WEXITSTATUS(status) == DIED || WEXITSTATUS(status) == 0),
          "a child ended with %#x", status);
    return WEXITSTATUS(status) == DIED;
}

/* --- the survivors --------------------------------------------------------------------------- */

/* Frames between 0 and 2, whatever happened to 1. Return: nanoseconds that the slowest call took. */
static uint64_t go_on(struct station *a, struct station *c)
{
    uint64_t worst = 0;

    for (uint32_t i = 0; i < 8; i++) {
        struct station *from = i % 2 ? a : c, *to = i % 2 ? c : a;
        uint64_t since = test_ns();

        CHECK(station_send(from, to->index, i < 6 ? 1514 : MINT_FRAME_MAX), "no room");
        mint_pool_publish(from->end);
        worst = test_ns() - since > worst ? test_ns() - since : worst;
        since = test_ns();
        while (station_recv(to, true)) /* and whatever 1 had published */
            ;
        mint_pool_recycle(to->end);
        worst = test_ns() - since > worst ? test_ns() - since : worst;
        CHECK(to->got[from->index] == from->sent[to->index], "frame %u between survivors", i);
    }
    return worst;
}

/* All frames between `sure` and `staged` are accounted for by `got`. */
static void check_count(const char *what, uint32_t got, uint32_t sure, uint32_t staged)
{
    CHECK(got >= sure && got <= staged, "%s: %u, not %u to %u", what, got, sure, staged);
}

/* Each frame to 1 was freed by one that had read it, counted as lost, or is still there. */
static void check_to_1(struct station *b, uint32_t sent)
{
    uint32_t lost = (uint32_t)load_relaxed(&tally->counter[MINT_PORT_DROP_RESTART]);
    uint32_t rest = station_drain(b, true);

    CHECK(rest + lost + tally->freed[1] <= sent && rest + lost + tally->freed[0] >= sent,
          "%u to port 1: %u left, %u counted as lost, %u..%u read", sent, rest, lost,
          tally->freed[1], tally->freed[0]);
}

/* What the first life finds queued for port 1. Return: frames. */
static uint32_t send_to_1(struct station *a, struct station *c)
{
    for (uint32_t i = 0; i < 30; i++) {
        CHECK(station_send(a, 1, 60 + 100 * i), "no room");
        CHECK(station_send(c, 1, 2000), "no room");
    }
    mint_pool_publish(a->end);
    mint_pool_publish(c->end);
    return a->sent[1] + c->sent[1];
}

/* Let the victim die at its k-th point. Return: whether there is one. */
static bool death(uint32_t k, uint64_t *worst)
{
    struct station a, b, c;
    struct region r;
    uint32_t to_1;
    bool died;

    memset(&tally->to_0, 0, sizeof(*tally) - offsetof(struct tally, to_0));
    region_make(&r, 3, 420);
    station_join(&a, &r, 0);
    station_join(&c, &r, 2);
    to_1 = send_to_1(&a, &c);
    CHECK(child(&r, first_life), "the first life ended well");
    points_left = k;
    died = child(&r, programme);
    if (k % 2) /* who comes upon the lock first: the dead one's successor, or another port? */
        come(&b, &r, 2);
    *worst = go_on(&a, &c);
    if (k % 2 == 0)
        come(&b, &r, 2);
    check_count("to 2", c.got[1], tally->to_2[1], tally->to_2[0]);
    CHECK(c.got_first[1] == 4, "%u of the first life: a batch was published in part",
          c.got_first[1]);
    check_count("to 0", a.got[1] + tally->forgotten[1], tally->forgotten[0] ? 0 : tally->to_0[1],
                tally->to_0[0]);
    check_to_1(&b, to_1);
    station_leave(&a);
    station_leave(&b);
    station_leave(&c);
    CHECK(region_audit(&r).free == r.blocks, "%u of %u blocks free after death %u",
          region_audit(&r).free, r.blocks, k);
    CHECK(load_relaxed(&r.head->damaged) == 0, "damaged after death %u", k);
    region_free(&r);
    return died;
}

static void every_death_is_survived(void)
{
    uint32_t deaths = 0, late = 0;
    uint64_t worst = 0, ns;

    while (death(deaths + 1, &ns)) {
        deaths++;
        late += ns > HUNG_NS;
        worst = ns > worst ? ns : worst;
        CHECK(ns < 20 * HUNG_NS, "hung for %llu ns after death %u", (unsigned long long)ns, deaths);
        CHECK(deaths < 5000, "the programme has no end");
    }
    for (uint32_t p = 0; p < MINT_POINTS; p++)
        CHECK(tally->points[p] > 0, "nobody died at point %u", p);
    /* A loaded machine may be late of itself, now and then; a hang would come with many deaths. */
    CHECK(late <= deaths / 20u, "%u of %u deaths held the others up", late, deaths);
    printf("%u deaths, the others waited %.1f ms at most\n", deaths, (double)worst / 1e6);
}

int main(int argc, char **argv)
{
    static const struct check_test tests[] = {CHECK_TEST(every_death_is_survived)};

    tally = mmap(NULL, sizeof(*tally), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(tally != MAP_FAILED, "mmap: %s", strerror(errno));
    return CHECK_MAIN(argc, argv, tests);
}
