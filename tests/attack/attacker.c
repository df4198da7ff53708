/* SPDX-License-Identifier: Apache-2.0 */
/*
 * attacker.c - a hostile worker: it has taken a port's place and writes whatever it can, wherever
 * it can, as fast as it can.
 *
 *     attacker INDEX SLOTS CAPACITY CONTROL_FD MAC [PEER:CTL:TX:RX:BELL ...]
 *
 * It obeys its standard input, a letter at a time: `a` attack, `b` burn, `q` quit. Burning is the
 * same code on memory and a socket pair of its own: it costs this machine's cores the same and does
 * nobody harm, so it is what an attack is compared with. Digits choose one way of attacking, `*` all
 * in turn. What the ways are stands at each function.
 */
#include "clock.h"
#include "region.h"
#include "ring.h"
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#define PEERS_MAX 64
#define LOOK_EVERY 64u /* steps between two looks at standard input */
#define WAY_STEPS 512u /* steps before the next way's turn */

/* One victim: what we can write of the channels with it, and what we can read. */
struct victim {
    struct mint_slot *mine;         /* our slot about it */
    const struct mint_slot *theirs; /* its slot about us */
    uint8_t *payload;               /* from us to it, mapped twice */
    int bell;
    uint8_t mac[6]; /* ours, as it knows it */
};

struct side {
    struct mint_ctl *ctl;
    struct victim victim[PEERS_MAX];
    uint32_t count, cap;
    uint8_t mac[6];
};

static uint64_t random_state = 88172645463325252ull; // NOLINT(*-non-const-global-variables)

static uint64_t any(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state;
}

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static void ring(const struct victim *v, size_t bytes)
{
    static const char much[8192];

    (void)send(v->bell, much, bytes, MSG_DONTWAIT | MSG_NOSIGNAL);
}

/* Any word of ours becomes any number. */
static void any_words(struct side *s, struct victim *v)
{
    uint32_t *word = (uint32_t *)(void *)v->mine + any() % 36u;

    store_relaxed((mint_a32 *)(void *)word, (uint32_t)any());
    store_relaxed(&s->ctl->wake, (uint32_t)any());
    if (any() % 16u == 0)
        ring(v, 1);
}

/* Follow the receiver's generation as an honest sender does, so that it believes us. */
static uint64_t join(struct victim *v)
{
    uint32_t gen = MINT_END_GEN(load_acquire(&v->theirs->rx_end));
    uint64_t tail = load_acquire(&v->theirs->tail);

    if (MINT_END_GEN(load_relaxed(&v->mine->tx_end)) != gen) {
        store_release(&v->mine->head, tail);
        store_release(&v->mine->tx_end, MINT_END(gen, MINT_END_OPEN));
    }
    return tail;
}

/* Records that are right, and change while they are read: length, headers, payload. */
static void changing_records(struct side *s, struct victim *v)
{
    uint64_t tail = join(v);
    struct mint_rec *rec = (struct mint_rec *)(void *)(v->payload + tail % s->cap);
    uint32_t len = 60u + (uint32_t)(any() % 1400u);

    memset(&rec->vnet, 0, sizeof(rec->vnet));
    memset(rec->frame, 0xff, 6);
    memcpy(rec->frame + 6, v->mac, 6);
    store_relaxed(&rec->len, len);
    store_release(&v->mine->head, tail + MINT_REC_BYTES(len));
    ring(v, 1);
    for (uint32_t i = 0; i < 200; i++) {
        store_relaxed(&rec->len, i & 1u ? len : (uint32_t)any());
        rec->vnet.gso_type = (uint8_t)i;
        rec->vnet.gso_size = (uint16_t)(i & 3u);
        rec->frame[6] = (uint8_t)i;
        rec->frame[12 + i % 48u] = (uint8_t)i;
    }
}

/* As many frames with somebody else's MAC, or with headers that make no sense, as fit. */
static void spoofed_flood(struct side *s, struct victim *v)
{
    uint64_t tail = join(v), head = load_relaxed(&v->mine->head);
    uint32_t len = 50;

    for (uint32_t i = 0; i < 64 && head + MINT_REC_BYTES(len) - tail <= s->cap; i++) {
        struct mint_rec *rec = (struct mint_rec *)(void *)(v->payload + head % s->cap);

        memset(&rec->vnet, i & 1u ? 0 : 0xff, sizeof(rec->vnet));
        memset(rec->frame, 0x02, len);
        store_relaxed(&rec->len, len);
        head += MINT_REC_BYTES(len);
    }
    store_release(&v->mine->head, head);
    ring(v, 1);
}

/* Ask for a new generation as soon as there is one. */
static void resets(struct side *s, struct victim *v)
{
    uint32_t gen = MINT_END_GEN(load_acquire(&v->theirs->rx_end));

    (void)s;
    store_release(&v->mine->tx_end, MINT_END(gen, MINT_END_RESET));
    ring(v, 1);
}

/* Demand one generation after the other, with a tail anywhere, and say that we sleep. */
static void demands(struct side *s, struct victim *v)
{
    static uint32_t gen;

    store_relaxed(&v->mine->tail, any() % 2u ? any() : load_relaxed(&v->theirs->head));
    store_release(&v->mine->rx_end, MINT_END(++gen & 0xffffffu, any() % 3u));
    store_relaxed(&s->ctl->wake, load_relaxed(&s->ctl->wake) + 2u);
    ring(v, 1);
}

/* Ring for nothing, and never listen. */
static void bell_storm(struct side *s, struct victim *v)
{
    (void)s;
    ring(v, any() % 4u ? 1 : 8192);
}

/* Sleep and wait for room, ever anew: each odd value has to be rung for. */
static void wants(struct side *s, struct victim *v)
{
    store_relaxed(&v->mine->tx_want, (load_relaxed(&v->mine->tx_want) + 2u) | 1u);
    store_relaxed(&s->ctl->wake, (load_relaxed(&s->ctl->wake) + 2u) | 1u);
}

/* Scribble over all of the payload region. */
static void scribble(struct side *s, struct victim *v)
{
    uint64_t at = any() % s->cap, n = any() % 65536u;

    memset(v->payload + at, (int)any(), n);
}

/*
 * Receive nothing, and move our tail on and back, so that whoever waits for room sees it change. A
 * channel that is reset for it begins anew, not too often: what it takes to fill it is no harm of ours.
 */
static void false_progress(struct side *s, struct victim *v)
{
    static uint64_t began;
    uint32_t end = load_relaxed(&v->mine->rx_end), gen = MINT_END_GEN(end);

    (void)s;
    if (end == MINT_END(gen, MINT_END_OPEN) && load_acquire(&v->theirs->tx_end) == end) {
        store_release(&v->mine->tail, load_relaxed(&v->mine->tail) ^ MINT_LINE);
    } else if (now_ns() - began > 50000000u) {
        began = now_ns();
        store_release(&v->mine->tail,
                      load_acquire(&v->theirs->head) & ~(uint64_t)(2 * MINT_LINE - 1));
        store_release(&v->mine->rx_end, MINT_END((gen + 1) & 0xffffffu, MINT_END_OPEN));
        ring(v, 1);
    }
}

static void (*const ways[])(struct side *, struct victim *) = {
    any_words, changing_records, spoofed_flood, resets, demands, bell_storm,
    wants,     scribble,         false_progress};
#define WAYS (sizeof(ways) / sizeof(ways[0]))

static void *map(int fd, size_t bytes, bool writable)
{
    void *p = mint_region_map(fd, bytes, writable);

    if (!p)
        die("mmap");
    return p;
}

static void take_place(struct side *s, uint32_t index, uint32_t slots, int argc, char **argv)
{
    for (int i = 0; i < argc && s->count < PEERS_MAX; i++) {
        struct victim *v = &s->victim[s->count++];
        uint32_t peer;
        int ctl, tx, rx;

        if (sscanf(argv[i], "%u:%d:%d:%d:%d", &peer, &ctl, &tx, &rx, &v->bell) != 5)
            die("not PEER:CTL:TX:RX:BELL");
        v->mine = (struct mint_slot *)(void *)(s->ctl + 1) + peer;
        v->theirs =
            (const struct mint_slot *)(const void *)((struct mint_ctl *)map(
                                                         ctl, MINT_CTL_BYTES(slots), false) +
                                                     1) +
            index;
        v->payload = mint_region_map_twice(tx, s->cap, true);
        if (!v->payload)
            die("mmap");
        memcpy(v->mac, s->mac, 6);
    }
}

/* The same with nobody at the other end. */
static void play_alone(struct side *alone, const struct side *real, uint32_t slots)
{
    const int flags = MAP_SHARED | MAP_ANONYMOUS;

    *alone = *real;
    alone->ctl = mmap(NULL, MINT_CTL_BYTES(slots), PROT_READ | PROT_WRITE, flags, -1, 0);
    for (uint32_t i = 0; i < real->count; i++) {
        struct victim *v = &alone->victim[i];
        int pair[2], fd = memfd_create("alone", MFD_CLOEXEC);

        v->mine = (struct mint_slot *)(void *)(alone->ctl + 1) + i;
        v->theirs = (struct mint_slot *)(void *)(alone->ctl + 1) + i;
        if (fd < 0 || ftruncate(fd, real->cap) < 0 ||
            socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
            die("set-up");
        v->payload = mint_region_map_twice(fd, real->cap, true);
        v->bell = pair[0];
        if (!v->payload)
            die("mmap");
    }
}

/* What standard input says next; 0: nothing. */
static char order(void)
{
    struct pollfd p = {.fd = STDIN_FILENO, .events = POLLIN};
    char c;

    if (poll(&p, 1, 0) <= 0)
        return 0;
    return read(STDIN_FILENO, &c, 1) == 1 ? c : 'q';
}

int main(int argc, char **argv)
{
    static struct side real, alone;
    struct side *now = &alone;
    uint32_t index, slots, way = 0;
    bool all = true;
    char c;

    if (argc < 7)
        die("usage: attacker INDEX SLOTS CAPACITY CONTROL_FD MAC PEER:CTL:TX:RX:BELL...");
    index = (uint32_t)atoi(argv[1]);
    slots = (uint32_t)atoi(argv[2]);
    real.cap = (uint32_t)atoi(argv[3]);
    real.ctl = map(atoi(argv[4]), MINT_CTL_BYTES(slots), true);
    if (sscanf(argv[5], "%2hhx:%2hhx:%2hhx:%2hhx:%2hhx:%2hhx", &real.mac[0], &real.mac[1],
               &real.mac[2], &real.mac[3], &real.mac[4], &real.mac[5]) != 6)
        die("not a MAC");
    take_place(&real, index, slots, argc - 6, argv + 6);
    play_alone(&alone, &real, slots);
    puts("ready");
    fflush(stdout);
    for (uint64_t step = 0;; step++) {
        if (step % LOOK_EVERY == 0 && (c = order()) != 0) {
            if (c == 'q')
                return 0;
            if (c == 'a' || c == 'b')
                now = c == 'a' ? &real : &alone;
            else if (c == '*')
                all = true;
            else if (c >= '0' && c < '0' + (int)WAYS) {
                all = false;
                way = (uint32_t)(c - '0');
            }
        }
        if (all && step % WAY_STEPS == 0)
            way = (uint32_t)(any() % WAYS);
        ways[way](now, &now->victim[any() % now->count]);
    }
}
