/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pool_util.h - what the tests of the shared pool have in common: a region, frames that tell where
 * they come from, and an audit that reckons all that is derived anew from the table by itself.
 */
#ifndef MINT_TEST_POOL_UTIL_H
#define MINT_TEST_POOL_UTIL_H

#ifndef MINT_TEST
#define MINT_TEST /* what pool_test.h declares is wanted, also where a file is only compiled */
#endif

#include "check.h"
#include "pool.h"
#include "pool_abi.h"
#include "pool_test.h"
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define TEST_PORTS_MAX 8u

/* A pool region, and the test's own view of it. */
struct region {
    int fd;
    size_t bytes;
    uint32_t ports, blocks;
    struct mint_pool *head;
    struct mint_pool_port *port;
    struct mint_block *block;
    mint_a64 *bitmap;
    uint8_t *data;
};

static inline uint64_t test_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

/* xorshift64: the same numbers in every run. */
static inline uint32_t test_random(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return (uint32_t)(*state >> 32);
}

/* A memory file of `bytes` bytes with the given seals. */
static inline int region_file(size_t bytes, int seals)
{
    int fd = memfd_create("pool", MFD_CLOEXEC | MFD_ALLOW_SEALING);

    CHECK(fd >= 0, "memfd_create: %s", strerror(errno));
    CHECK(ftruncate(fd, (off_t)bytes) == 0, "ftruncate: %s", strerror(errno));
    CHECK(fcntl(fd, F_ADD_SEALS, seals) == 0, "seals: %s", strerror(errno));
    return fd;
}

static inline void region_make(struct region *r, uint32_t ports, uint32_t blocks)
{
    size_t data = (size_t)blocks * MINT_POOL_BLOCK;
    int err;

    r->bytes = mint_pool_bytes(ports, data);
    CHECK(r->bytes > data, "%zu bytes for %u blocks", r->bytes, blocks);
    r->fd = region_file(r->bytes, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
    err = mint_pool_format(r->fd, ports, data);
    CHECK(err == 0, "format: %d", err);
    r->head = mmap(NULL, r->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, r->fd, 0);
    CHECK(r->head != MAP_FAILED, "mmap: %s", strerror(errno));
    r->ports = ports;
    r->blocks = blocks;
    r->port = (struct mint_pool_port *)(void *)((uint8_t *)r->head + r->head->ports_at);
    r->block = (struct mint_block *)(void *)((uint8_t *)r->head + r->head->table_at);
    r->bitmap = (mint_a64 *)(void *)((uint8_t *)r->head + r->head->bitmap_at);
    r->data = (uint8_t *)r->head + r->head->data_at;
}

static inline void region_free(struct region *r)
{
    munmap(r->head, r->bytes);
    close(r->fd);
}

/* What an audit found. */
struct audit {
    uint32_t free, reserved, queued, held; /* blocks by state */
};

static inline void audit_bit(const struct region *r, uint32_t block, bool taken)
{
    uint64_t word = load_relaxed(&r->bitmap[block / 64u]);

    CHECK((word >> (block % 64u) & 1u) == taken, "block %u: the bitmap does not say %s", block,
          taken ? "taken" : "free");
}

/* Follow a port's queue: each record queued once, each sender's in order. */
static inline void audit_queue(const struct region *r, uint32_t port, uint32_t records)
{
    const struct mint_pool_port *q = &r->port[port];
    uint64_t next_seq[TEST_PORTS_MAX] = {0};
    uint32_t at = load_relaxed(&q->first), queued = load_relaxed(&q->queued);

    CHECK(queued == records, "port %u: %u queued, the table has %u", port, queued, records);
    for (uint32_t i = 0; i < queued; i++) {
        uint64_t word, seq;
        uint32_t src;

        CHECK(at < r->blocks, "port %u: record %u at %u", port, i, at);
        word = load_relaxed(&r->block[at].word);
        seq = load_relaxed(&r->block[at].seq);
        src = MINT_BLOCK_HOLDER(word);
        CHECK(MINT_BLOCK_STATE(word) == MINT_BLOCK_QUEUED && MINT_BLOCK_PEER(word) == port,
              "port %u: record %u is %#llx", port, i, (unsigned long long)word);
        CHECK(seq >= next_seq[src], "port %u: out of order from %u", port, src);
        CHECK(seq < load_relaxed(&r->port[src].seq), "port %u: seq of %u ran ahead", port, src);
        next_seq[src] = seq + 1; /* strictly rising, so no record comes twice */
        CHECK(i + 1 < queued || at == load_relaxed(&q->last), "port %u: wrong last", port);
        at = load_relaxed(&r->block[at].next);
    }
}

/* Check all that is derived against the table, while nobody is in the pool. */
static inline struct audit region_audit(const struct region *r)
{
    uint32_t records[TEST_PORTS_MAX] = {0}, used[TEST_PORTS_MAX] = {0}, lowest = r->blocks;
    struct audit a = {0};

    CHECK(load_relaxed(&r->head->lock) == 0, "the lock is held: %#x", load_relaxed(&r->head->lock));
    for (uint32_t at = 0; at < r->blocks;) {
        uint64_t word = load_relaxed(&r->block[at].word);
        uint32_t state = MINT_BLOCK_STATE(word), n = word ? MINT_BLOCK_COUNT(word) : 1;
        uint32_t whose =
            state == MINT_BLOCK_QUEUED ? MINT_BLOCK_PEER(word) : MINT_BLOCK_HOLDER(word);

        CHECK(n > 0 && n <= r->blocks - at && whose < r->ports && state <= MINT_BLOCK_HELD,
              "block %u: word %#llx", at, (unsigned long long)word);
        for (uint32_t i = 0; i < n; i++)
            audit_bit(r, at + i, word != 0);
        for (uint32_t i = 1; i < n; i++)
            CHECK(load_relaxed(&r->block[at + i].word) == 0, "block %u inside an extent", at + i);
        a.free += word == 0;
        a.reserved += state == MINT_BLOCK_RESERVED ? n : 0;
        a.queued += state == MINT_BLOCK_QUEUED ? n : 0;
        a.held += state == MINT_BLOCK_HELD ? n : 0;
        records[whose] += state == MINT_BLOCK_QUEUED;
        used[whose] += state >= MINT_BLOCK_QUEUED ? n : 0;
        lowest = word == 0 && at < lowest ? at : lowest;
        at += n;
    }
    CHECK(a.free == load_relaxed(&r->head->free), "%u free, the header says %u", a.free,
          load_relaxed(&r->head->free));
    CHECK(load_relaxed(&r->head->hint) <= lowest, "the hint hides block %u", lowest);
    for (uint32_t p = 0; p < r->ports; p++) {
        CHECK(used[p] == load_relaxed(&r->port[p].used), "port %u uses %u, not %u", p, used[p],
              load_relaxed(&r->port[p].used));
        audit_queue(r, p, records[p]);
    }
    return a;
}

/* --- frames ---------------------------------------------------------------------------------- */

/* The start of each test frame; the rest is a pattern that depends on `seq`. */
struct stamp {
    uint32_t seq;
    uint16_t life; /* of the sender: raised with each new process */
    uint8_t src, dst;
    uint32_t len;
};
_Static_assert(sizeof(struct stamp) <= MINT_FRAME_MIN, "a stamp fits the shortest frame");

static inline const uint8_t *stamp_pattern(uint32_t seq)
{
    static uint8_t pattern[MINT_FRAME_MAX + 251u];
    static bool made;

    if (!made) { /* by the main thread, before there are others */
        for (size_t i = 0; i < sizeof(pattern); i++)
            pattern[i] = (uint8_t)(i * 7u % 251u + i / 1009u);
        made = true;
    }
    return pattern + seq % 251u;
}

static inline void stamp_write(struct mint_rec *rec, const struct stamp *s)
{
    memset(&rec->vnet, (int)(s->seq & 0xff), sizeof(rec->vnet));
    memcpy(rec->frame, s, sizeof(*s));
    memcpy(rec->frame + sizeof(*s), stamp_pattern(s->seq), s->len - sizeof(*s));
}

static inline struct stamp stamp_check(const struct mint_rec *rec, uint32_t src, uint32_t dst,
                                       uint32_t len)
{
    struct mint_vnet vnet;
    struct stamp s;

    memcpy(&s, rec->frame, sizeof(s));
    CHECK(s.src == src && s.dst == dst && s.len == len,
          "frame %u->%u of %u bytes came as %u->%u of %u", s.src, s.dst, s.len, src, dst, len);
    CHECK(load_relaxed(&rec->len) == len, "the record says %u bytes", load_relaxed(&rec->len));
    memset(&vnet, (int)(s.seq & 0xff), sizeof(vnet));
    CHECK(memcmp(&vnet, &rec->vnet, sizeof(vnet)) == 0, "frame %u: vnet header damaged", s.seq);
    CHECK(memcmp(rec->frame + sizeof(s), stamp_pattern(s.seq), len - sizeof(s)) == 0,
          "frame %u of %u bytes damaged", s.seq, len);
    return s;
}

/* A port with its counters, what it sent, and what it saw of each sender. */
struct station {
    struct mint_pool_end *end;
    uint8_t index;
    uint16_t life;
    uint32_t sent[TEST_PORTS_MAX];      /* by destination: frames, and so the next seq */
    uint32_t got[TEST_PORTS_MAX];       /* by sender */
    uint32_t got_first[TEST_PORTS_MAX]; /* of these, from its first life */
    struct stamp last[TEST_PORTS_MAX];
    mint_a64 counter[MINT_PORT_COUNTERS];
};

static inline void station_join(struct station *s, const struct region *r, uint8_t index)
{
    int err;

    *s = (struct station){.index = index};
    err = mint_pool_attach(&s->end, r->fd, index, s->counter);
    CHECK(err == 0, "attach port %u: %d", index, err);
}

static inline void station_leave(struct station *s)
{
    mint_pool_detach(s->end);
    s->end = NULL;
}

/* Stage one frame. Return: whether there was room. */
static inline bool station_send(struct station *s, uint8_t dst, uint32_t len)
{
    struct stamp stamp = {
        .seq = s->sent[dst], .life = s->life, .src = s->index, .dst = dst, .len = len};
    struct mint_rec *rec = mint_pool_reserve(s->end, dst, len);

    if (!rec)
        return false;
    stamp_write(rec, &stamp);
    mint_pool_commit(s->end, dst, rec, len);
    s->sent[dst]++;
    return true;
}

/* Take and release one frame, checked. @gaps: frames may be missing. Return: whether there was. */
static inline bool station_recv(struct station *s, bool gaps)
{
    uint32_t src, len;
    const struct mint_rec *rec = mint_pool_next(s->end, &src, &len);
    struct stamp now, *last;

    if (!rec)
        return false;
    CHECK(src < TEST_PORTS_MAX, "sender %u", src);
    now = stamp_check(rec, src, s->index, len);
    last = &s->last[src];
    if (!gaps)
        CHECK(now.seq == s->got[src], "frame %u from %u, not %u", now.seq, src, s->got[src]);
    else if (s->got[src])
        CHECK(now.life > last->life || (now.life == last->life && now.seq > last->seq),
              "%u: frame %u.%u after %u.%u", src, now.life, now.seq, last->life, last->seq);
    *last = now;
    s->got[src]++;
    s->got_first[src] += now.life == 0;
    mint_pool_release(s->end, rec);
    return true;
}

/* Receive all there is, recycling now and then. Return: frames. */
static inline uint32_t station_drain(struct station *s, bool gaps)
{
    uint32_t n = 0;

    while (station_recv(s, gaps))
        if (++n % 16 == 0)
            mint_pool_recycle(s->end);
    mint_pool_recycle(s->end);
    return n;
}

/* Send to a receiver that takes nothing until there is no room. Return: frames. */
static inline uint32_t station_flood(struct station *s, uint8_t dst, uint32_t len, uint32_t batch)
{
    uint32_t n = 0;

    while (station_send(s, dst, len))
        if (++n % batch == 0)
            mint_pool_publish(s->end);
    mint_pool_publish(s->end);
    CHECK(!station_send(s, dst, len), "full, and then not");
    return n;
}

/* A frame length: mostly small, some jumbo, some of the largest kinds. */
static inline uint32_t test_length(uint64_t *state)
{
    static const uint32_t most[8] = {64, 200, 1514, 1514, 1514, 3000, 9018, MINT_FRAME_MAX};
    uint32_t limit = most[test_random(state) % 8u];

    return MINT_FRAME_MIN + test_random(state) % (limit - MINT_FRAME_MIN + 1u);
}

#endif
