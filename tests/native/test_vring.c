/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_vring.c - split queues in a guest's memory: chains of every shape, chains that lie,
 * notifications, and a guest that scribbles over everything or cuts its memory short.
 */
#include "check.h"
#include "vring.h"
#include <errno.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define SIZE 8u
#define PART 0x10000u         /* bytes of each of the two regions */
#define GPA 0x100000u         /* of the first; the second follows without a gap */
#define UVA 0x7f0000000000ull /* of the first; the second's is apart */
#define UVA2 0x7f5500000000ull
#define AVAIL 0x400u /* offsets of the queue's parts in region 0 */
#define USED 0x800u

struct guest {
    int fd[2], call[2];
    uint8_t *memory[2];
    struct mint_gmem map;
    struct mint_vring q;
    struct mint_vdesc *desc;
    uint16_t *avail, *used;
};

static void make(struct guest *g)
{
    const uint64_t uva[] = {UVA, UVA2};

    memset(g, 0, sizeof(*g));
    for (uint32_t i = 0; i < 2; i++) {
        g->fd[i] = memfd_create("guest", MFD_CLOEXEC);
        CHECK(g->fd[i] >= 0 && ftruncate(g->fd[i], PART + 4096) == 0, "memfd: %d", errno);
        g->memory[i] = mmap(NULL, PART, PROT_READ | PROT_WRITE, MAP_SHARED, g->fd[i], i ? 4096 : 0);
        CHECK(g->memory[i] != MAP_FAILED, "mmap: %d", errno);
        CHECK(mint_gmem_add(&g->map, GPA + i * PART, uva[i], PART, i ? 4096 : 0, g->fd[i]) == 0,
              "region %u", i);
    }
    g->desc = (struct mint_vdesc *)(void *)g->memory[0];
    g->avail = (uint16_t *)(void *)(g->memory[0] + AVAIL);
    g->used = (uint16_t *)(void *)(g->memory[0] + USED);
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, g->call) == 0, "socketpair: %d", errno);
    g->q.kick = -1;
    g->q.call = g->call[0];
    g->q.call_is_socket = g->q.indirect = g->q.enabled = true;
    CHECK(mint_vring_set(&g->q, &g->map, SIZE, UVA, UVA + AVAIL, UVA + USED) == 0, "set");
}

static void drop(struct guest *g)
{
    mint_gmem_clear(&g->map);
    for (uint32_t i = 0; i < 2; i++) {
        munmap(g->memory[i], PART);
        close(g->fd[i]);
        close(g->call[i]);
    }
}

static void put(struct guest *g, uint32_t i, uint64_t addr, uint32_t len, uint16_t flags,
                uint16_t next)
{
    g->desc[i] = (struct mint_vdesc){.addr = addr, .len = len, .flags = flags, .next = next};
}

static void offer(struct guest *g, uint16_t head)
{
    g->avail[2 + g->avail[1] % SIZE] = head;
    g->avail[1]++;
}

static int peek(struct guest *g, bool write, struct mint_chain *c)
{
    CHECK(mint_vring_ready(&g->q) > 0, "nothing ready");
    return mint_vring_peek(&g->q, &g->map, 0, write, c);
}

/* How often the driver was signalled since the last call. */
static uint32_t signals(struct guest *g)
{
    uint64_t one[16];
    ssize_t n = recv(g->call[1], one, sizeof(one), MSG_DONTWAIT);

    return n < 0 ? 0 : (uint32_t)(n / 8);
}

static void chains_are_resolved(void)
{
    struct guest g;
    struct mint_chain c;
    uint8_t out[300];

    make(&g);
    for (uint32_t i = 0; i < 300; i++)
        g.memory[i < 100 ? 0 : 1][i < 100 ? PART - 100 + i : i - 100] = (uint8_t)i;
    put(&g, 3, GPA + PART - 100, 150, MINT_VDESC_NEXT, 5); /* across the two regions */
    put(&g, 5, GPA + PART + 50, 0, MINT_VDESC_NEXT, 1);
    put(&g, 1, GPA + PART + 50, 150, 0, 0);
    offer(&g, 3);
    CHECK(peek(&g, false, &c) == 0, "refused");
    CHECK(c.id == 3 && c.bytes == 300 && c.count == 3, "%u pieces, %u", c.count, (unsigned)c.id);
    mint_chain_read(&c, 0, out, 300);
    for (uint32_t i = 0; i < 300; i++)
        CHECK(out[i] == (uint8_t)i, "byte %u", i);
    mint_chain_read(&c, 99, out, 100);
    CHECK(out[0] == 99 && out[99] == 198, "with a skip: %u %u", out[0], out[99]);
    CHECK(mint_vring_peek(&g.q, &g.map, 0, true, &c) == -EPROTO, "wrong direction");
    drop(&g);
}

/* A table that claims 268 million entries and runs in a circle of nothing: seconds of work, once. */
static void endless_tables_end_soon(void)
{
    struct guest g;
    struct mint_chain c;
    struct timespec from, to;

    make(&g);
    *(struct mint_vdesc *)(void *)(g.memory[0] + 0x2000) =
        (struct mint_vdesc){.addr = GPA, .len = 0, .flags = MINT_VDESC_NEXT, .next = 0};
    put(&g, 0, GPA + 0x2000, 0xfffffff0u, MINT_VDESC_INDIRECT, 0);
    offer(&g, 0);
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &from);
    CHECK(peek(&g, false, &c) == -EPROTO, "a circle");
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &to);
    CHECK((to.tv_sec - from.tv_sec) * 1000 + (to.tv_nsec - from.tv_nsec) / 1000000 < 100,
          "a guest keeps its worker busy");
    drop(&g);
}

static void indirect_tables(void)
{
    struct guest g;
    struct mint_chain c;
    struct mint_vdesc table[3] = {
        {.addr = GPA + 0x2000, .len = 10, .flags = MINT_VDESC_NEXT, .next = 2},
        {.addr = 1, .len = 1, .flags = 0, .next = 0},
        {.addr = GPA + 0x3000, .len = 20, .flags = 0, .next = 0},
    };

    make(&g);
    memcpy(g.memory[0] + PART - 24, table, 24); /* the table itself lies across the regions */
    memcpy(g.memory[1], (uint8_t *)table + 24, 24);
    put(&g, 0, GPA + PART - 24, sizeof(table), MINT_VDESC_INDIRECT, 0);
    offer(&g, 0);
    CHECK(peek(&g, false, &c) == 0 && c.bytes == 30 && c.count == 2, "refused a table");
    g.q.indirect = false;
    CHECK(peek(&g, false, &c) == -EPROTO, "not negotiated");
    g.q.indirect = true;
    put(&g, 0, GPA + PART - 24, 20, MINT_VDESC_INDIRECT, 0);
    CHECK(peek(&g, false, &c) == -EPROTO, "half a descriptor");
    put(&g, 0, GPA + PART - 24, 0, MINT_VDESC_INDIRECT, 0);
    CHECK(peek(&g, false, &c) == -EPROTO, "an empty table");
    put(&g, 0, GPA + PART - 24, 32, MINT_VDESC_INDIRECT, 0);
    CHECK(peek(&g, false, &c) == -EPROTO, "next beyond the table");
    put(&g, 0, GPA + PART - 24, 48, MINT_VDESC_INDIRECT | MINT_VDESC_NEXT, 1);
    CHECK(peek(&g, false, &c) == -EPROTO, "a table and a next");
    ((struct mint_vdesc *)(void *)(g.memory[1] + PART - 24))->flags = MINT_VDESC_NEXT;
    ((struct mint_vdesc *)(void *)(g.memory[1] + PART - 24))->next = 1;
    put(&g, 0, GPA + 2 * PART - 24, 48, MINT_VDESC_INDIRECT, 0);
    CHECK(peek(&g, false, &c) == -EPROTO, "a table that leaves the memory");
    put(&g, 0, GPA + PART - 24, 48, MINT_VDESC_INDIRECT, 0);
    g.memory[1][4] = MINT_VDESC_INDIRECT; /* of table[1], which is not in the chain */
    CHECK(peek(&g, false, &c) == 0, "an unused entry matters");
    ((struct mint_vdesc *)(void *)(g.memory[1] + 8))->flags = MINT_VDESC_INDIRECT;
    CHECK(peek(&g, false, &c) == -EPROTO, "a table in a table");
    drop(&g);
}

static void lies_are_refused(void)
{
    struct guest g;
    struct mint_chain c;
    const struct {
        const char *what;
        uint64_t addr;
        uint32_t len;
        uint16_t flags, next;
    } lies[] = {
        {"beyond the memory", GPA + 2 * PART, 1, 0, 0},
        {"before the memory", GPA - 1, 1, 0, 0},
        {"out of the memory", GPA + 2 * PART - 1, 2, 0, 0},
        {"around the end of all addresses", UINT64_MAX, 2, 0, 0},
        {"the whole world", GPA, UINT32_MAX, 0, 0},
        {"a circle", GPA, 1, MINT_VDESC_NEXT, 0},
        {"a next beyond the queue", GPA, 1, MINT_VDESC_NEXT, SIZE},
        {"for writing", GPA, 1, MINT_VDESC_WRITE, 0},
    };

    make(&g);
    offer(&g, 0);
    for (size_t i = 0; i < sizeof(lies) / sizeof(lies[0]); i++) {
        put(&g, 0, lies[i].addr, lies[i].len, lies[i].flags, lies[i].next);
        CHECK(peek(&g, false, &c) == -EPROTO, "accepted %s", lies[i].what);
    }
    put(&g, 0, GPA, 1, 0, 0);
    CHECK(peek(&g, false, &c) == 0, "refused the truth");
    g.avail[2] = SIZE;
    CHECK(peek(&g, false, &c) == -EPROTO, "accepted a head beyond the queue");
    g.avail[1] = (uint16_t)(g.q.next_avail + SIZE + 1);
    CHECK(mint_vring_ready(&g.q) == -EPROTO, "accepted more than the queue holds");
    drop(&g);
}

static void queues_that_are_none(void)
{
    struct guest g;
    struct mint_vring *q = &g.q;

    make(&g);
    for (uint32_t size = 0; size < 9; size++)
        CHECK((mint_vring_set(q, &g.map, size, UVA, UVA + AVAIL, UVA + USED) == 0) ==
                  (size && !(size & (size - 1))),
              "size %u", size);
    CHECK(mint_vring_set(q, &g.map, 65536, UVA, UVA, UVA) == -EINVAL, "65536");
    CHECK(mint_vring_set(q, &g.map, 8, UVA + 8, UVA, UVA) == -EINVAL, "descriptors at 8");
    CHECK(mint_vring_set(q, &g.map, 8, UVA, UVA + 1, UVA) == -EINVAL, "available ring at 1");
    CHECK(mint_vring_set(q, &g.map, 8, UVA, UVA, UVA + 2) == -EINVAL, "used ring at 2");
    CHECK(mint_vring_set(q, &g.map, 8, GPA, UVA, UVA) == -EFAULT, "a guest address");
    CHECK(mint_vring_set(q, &g.map, 8, UVA + PART - 112, UVA, UVA) == -EFAULT, "half outside");
    CHECK(!q->set, "set nevertheless");
    drop(&g);
}

static void positions_wrap(void)
{
    struct guest g;
    struct mint_chain c;

    make(&g);
    for (uint32_t n = 0; n < 200000; n++) {
        put(&g, n % SIZE, GPA + 0x4000 + n % 100, 1 + n % 50, MINT_VDESC_WRITE, 0);
        offer(&g, (uint16_t)(n % SIZE));
        CHECK(peek(&g, true, &c) == 0 && c.bytes == 1 + n % 50, "chain %u", n);
        mint_vring_used(&g.q, c.id, n);
        mint_vring_publish(&g.q);
        signals(&g);
        CHECK(g.used[1] == (uint16_t)(n + 1), "used index %u", g.used[1]);
        CHECK(((uint32_t *)(void *)(g.used + 2))[2 * (n % SIZE)] == n % SIZE, "id of %u", n);
        CHECK(((uint32_t *)(void *)(g.used + 2))[2 * (n % SIZE) + 1] == n, "length of %u", n);
    }
    CHECK(mint_vring_ready(&g.q) == 0, "something is left");
    /* A device that comes later goes on where this one stopped. */
    CHECK(mint_vring_set(&g.q, &g.map, SIZE, UVA, UVA + AVAIL, UVA + USED) == 0, "set again");
    CHECK(mint_vring_ready(&g.q) == 0 && g.q.next_used == (uint16_t)200000, "position");
    drop(&g);
}

static void use_one(struct guest *g)
{
    struct mint_chain c;

    put(g, 0, GPA, 1, 0, 0);
    offer(g, 0);
    CHECK(peek(g, false, &c) == 0, "peek");
    mint_vring_used(&g->q, c.id, 0);
}

static void signals_by_flag(void)
{
    struct guest g;

    make(&g);
    use_one(&g);
    CHECK(mint_vring_publish(&g.q) && signals(&g) == 1, "no signal");
    CHECK(!mint_vring_publish(&g.q) && signals(&g) == 0, "a signal for nothing");
    g.avail[0] = 1;
    use_one(&g);
    CHECK(!mint_vring_publish(&g.q) && signals(&g) == 0, "an unwanted signal");
    mint_vring_no_kick(&g.q);
    CHECK(g.used[0] == 1, "kicks are wanted");
    mint_vring_want_kick(&g.q);
    CHECK(g.used[0] == 0, "kicks are not wanted");
    drop(&g);
}

/* The device before this one was killed while it wanted no kicks: this one must not sleep for ever. */
static void the_last_device_died_awake(void)
{
    for (uint32_t event_idx = 0; event_idx < 2; event_idx++) {
        struct guest g;

        make(&g);
        mint_vring_no_kick(&g.q);
        CHECK(g.used[0] == 1, "kicks are wanted");
        g.q.event_idx = event_idx;
        CHECK(mint_vring_set(&g.q, &g.map, SIZE, UVA, UVA + AVAIL, UVA + USED) == 0, "set again");
        mint_vring_want_kick(&g.q);
        CHECK(g.used[0] == 0, "it sleeps, and the guest does not know");
        mint_vring_no_kick(&g.q);
        CHECK(g.used[0] == !event_idx, "kicks are wanted for nothing");
        drop(&g);
    }
}

static void signals_by_position(void)
{
    struct guest g;

    make(&g);
    g.q.event_idx = true;
    g.avail[2 + SIZE] = 0; /* the driver wants to hear of the first */
    use_one(&g);
    CHECK(mint_vring_publish(&g.q) && signals(&g) == 1, "no signal at first");
    g.avail[2 + SIZE] = 3; /* of the fourth */
    use_one(&g);
    use_one(&g);
    CHECK(!mint_vring_publish(&g.q) && signals(&g) == 0, "too early");
    use_one(&g);
    CHECK(mint_vring_publish(&g.q) && signals(&g) == 1, "not at its position");
    use_one(&g);
    CHECK(!mint_vring_publish(&g.q) && signals(&g) == 0, "once too often");
    mint_vring_want_kick(&g.q);
    CHECK(g.used[2 + 4 * SIZE] == 5, "wants a kick at %u", g.used[2 + 4 * SIZE]);
    drop(&g);
}

static void memory_that_is_none(void)
{
    struct mint_gmem m = {.count = 0};
    int fd = memfd_create("guest", MFD_CLOEXEC), pipes[2];

    CHECK(ftruncate(fd, 1 << 20) == 0 && pipe(pipes) == 0, "%d", errno);
    CHECK(mint_gmem_add(&m, 0, 0, 0, 0, fd) == -EINVAL, "empty");
    CHECK(mint_gmem_add(&m, UINT64_MAX, 0, 4096, 0, fd) == -EINVAL, "guest addresses wrap");
    CHECK(mint_gmem_add(&m, 0, UINT64_MAX, 4096, 0, fd) == -EINVAL, "user addresses wrap");
    CHECK(mint_gmem_add(&m, 0, 0, 4096, UINT64_MAX, fd) == -EINVAL, "the offset wraps");
    CHECK(mint_gmem_add(&m, 0, 0, 4096, 1 << 20, fd) == -ERANGE, "beyond the file");
    CHECK(mint_gmem_add(&m, 0, 0, 1ull << 60, 0, fd) == -ERANGE, "longer than the file");
    CHECK(mint_gmem_add(&m, 0, 0, 4096, 0, pipes[0]) == -EINVAL, "a pipe");
    CHECK(mint_gmem_add(&m, 4096, 4096, 8192, 0, fd) == 0, "the truth");
    CHECK(mint_gmem_add(&m, 8192, 1 << 20, 4096, 0, fd) == -EEXIST, "overlap of guest addresses");
    CHECK(mint_gmem_add(&m, 1 << 20, 8192, 4096, 0, fd) == -EEXIST, "overlap of user addresses");
    for (uint64_t i = 1; i < MINT_GMEM_MAX; i++)
        CHECK(mint_gmem_add(&m, i << 20, i << 20, 4096, 0, fd) == 0, "region %u", (unsigned)i);
    CHECK(mint_gmem_add(&m, 99ull << 20, 99ull << 20, 4096, 0, fd) == -ENOSPC, "one too many");
    mint_gmem_clear(&m);
    close(pipes[0]);
    close(pipes[1]);
    close(fd);
}

static void memory_cut_short(void)
{
    struct guest g;
    struct mint_chain c;
    uint8_t out[64];

    make(&g);
    CHECK(mint_gmem_guard() == 0, "guard: %d", errno);
    put(&g, 0, GPA + PART + 0x3000, 64, 0, 0);
    offer(&g, 0);
    CHECK(peek(&g, false, &c) == 0 && !mint_gmem_torn(), "before");
    CHECK(ftruncate(g.fd[1], 4096) == 0, "ftruncate: %d", errno);
    memset(out, 1, sizeof(out));
    mint_chain_read(&c, 0, out, sizeof(out));
    CHECK(mint_gmem_torn(), "nobody noticed");
    CHECK(out[0] == 0 && out[63] == 0, "something else than zeroes");
    mint_gmem_clear(&g.map);
    CHECK(!mint_gmem_torn(), "still torn");
    drop(&g);
}

/* Whatever the guest writes where, what is resolved lies in its memory. */
static void scribbling(void)
{
    struct guest g;
    struct mint_chain c;
    uint32_t good = 0;

    make(&g);
    srandom(1);
    for (uint32_t n = 0; n < 300000; n++) {
        struct mint_vdesc *d = &g.desc[random() % 16];
        uint8_t *raw = g.memory[0] + (random() % 0x900);

        d->addr = GPA - 64 + (uint64_t)(random() % (2 * PART + 128));
        d->len = (uint32_t)(random() % 8 ? random() % 300 : random());
        d->flags = (uint16_t)(random() % 8);
        d->next = (uint16_t)(random() % (SIZE + 1));
        if (n % 16 == 0)
            *raw = (uint8_t)random();
        offer(&g, (uint16_t)(random() % (SIZE + 1)));
        if (mint_vring_ready(&g.q) <= 0) {
            g.q.next_avail = (uint16_t)(g.avail[1] - 1);
            continue;
        }
        if (mint_vring_peek(&g.q, &g.map, 0, random() & 1, &c) < 0)
            continue;
        good++;
        CHECK(c.count <= MINT_CHAIN_SEGS, "%u pieces", c.count);
        for (uint32_t i = 0; i < c.count; i++) {
            const uint8_t *at = c.iov[i].iov_base;
            bool inside = false;

            for (uint32_t r = 0; r < g.map.count; r++)
                inside |= at >= g.map.region[r].base &&
                          at + c.iov[i].iov_len <= g.map.region[r].base + g.map.region[r].size;
            CHECK(inside, "piece %u of chain %u lies outside", i, n);
        }
    }
    CHECK(good > 1000, "only %u chains held; the test tests little", good);
    drop(&g);
}

int main(int argc, char **argv)
{
    static const struct check_test tests[] = {
        CHECK_TEST(chains_are_resolved),
        CHECK_TEST(endless_tables_end_soon),
        CHECK_TEST(indirect_tables),
        CHECK_TEST(lies_are_refused),
        CHECK_TEST(queues_that_are_none),
        CHECK_TEST(positions_wrap),
        CHECK_TEST(signals_by_flag),
        CHECK_TEST(signals_by_position),
        CHECK_TEST(the_last_device_died_awake),
        CHECK_TEST(memory_that_is_none),
        CHECK_TEST(memory_cut_short),
        CHECK_TEST(scribbling),
    };

    return CHECK_MAIN(argc, argv, tests);
}
