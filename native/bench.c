/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench.c - see bench.h.
 *
 * Every frame is copied in from one of `distinct` different frames and copied out to private
 * memory, as a protocol stack on either side would. In verify runs a frame carries its number
 * (8 bytes after the Ethernet header), its length follows from the number, and its payload is a
 * stretch of a fixed pattern chosen by the number, so that the receiver can check every byte.
 */
#include "bench_internal.h"
#include <errno.h>
#include <sched.h>
#include <stdlib.h>

#define HEAD MINT_BENCH_HEAD
#define PATTERN 131072u

static uint64_t hash64(uint64_t x)
{
    x ^= x >> 33;
    x *= 0xff51afd7ed558ccdull;
    x ^= x >> 33;
    x *= 0xc4ceb9fe1a85ec53ull;
    return x ^ x >> 33;
}

uint64_t mint_bench_cpu(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
    return (uint64_t)ts.tv_sec * 1000000000ull + (uint64_t)ts.tv_nsec;
}

uint8_t *mint_bench_pattern(void)
{
    uint8_t *p = malloc(PATTERN);

    for (uint32_t i = 0; p && i < PATTERN; i += 8) {
        uint64_t h = hash64(i + 1);

        memcpy(p + i, &h, 8);
    }
    return p;
}

uint32_t mint_bench_size(const struct mint_bench_config *c, uint64_t number)
{
    uint32_t span = c->size_max - c->size_min + 1;

    return span == 1 ? c->size_min : c->size_min + (uint32_t)(hash64(number) % span);
}

static const uint8_t *payload_of(const uint8_t *pattern, uint64_t number)
{
    return pattern + hash64(~number) % (PATTERN - MINT_FRAME_MAX);
}

void mint_bench_stamp(uint8_t *frame, const uint8_t *pattern, uint64_t number, uint32_t len)
{
    memcpy(frame + MINT_FRAME_MIN, &number, 8);
    memcpy(frame + HEAD, payload_of(pattern, number), len - HEAD);
}

bool mint_bench_sizes_ok(const struct mint_bench_config *c)
{
    uint32_t least = c->verify ? HEAD : MINT_FRAME_MIN;

    return c->size_min >= least && c->size_min <= c->size_max && c->size_max <= MINT_FRAME_MAX &&
           c->distinct > 0 && c->batch > 0;
}

/* The frames that are sent in turn. */
uint8_t *mint_bench_frames(const struct mint_bench_config *c, const uint8_t *pattern)
{
    uint8_t *frames = malloc((size_t)c->distinct * c->size_max);

    for (uint32_t i = 0; frames && i < c->distinct; i++) {
        uint8_t *f = frames + (size_t)i * c->size_max;

        memcpy(f, c->dst, 6);
        memcpy(f + 6, c->src, 6);
        f[12] = 0x88; /* IEEE 802 local experimental EtherType */
        f[13] = 0xb5;
        if (c->size_max > MINT_FRAME_MIN)
            memcpy(f + MINT_FRAME_MIN, payload_of(pattern, i), c->size_max - MINT_FRAME_MIN);
    }
    return frames;
}

/*
 * Wait for room: spin for the port's poll_us, then for a doorbell. With more processes than cores
 * spinning would only keep the others from running: give the core away instead.
 */
static int await_room(struct mint_port *port, const struct mint_bench_config *c, uint32_t peer,
                      uint64_t *since)
{
    uint64_t left, now;

    mint_port_flush(port);
    if (c->yield)
        sched_yield();
    else if (mint_port_spin_room(port, peer))
        return 0;
    now = now_ns();
    if (*since && now - *since > c->timeout_ns)
        return -ETIMEDOUT;
    left = mint_port_wait_room(port, peer);
    if (left && *since && !c->yield) /* the first time, try again: that is the re-check */
        mint_port_wait_peer(port, peer, left);
    *since = *since ? *since : now;
    return 0;
}

static int send_all(struct mint_port *port, const struct mint_bench_config *c, uint8_t *frames,
                    const uint8_t *pattern, struct mint_bench_result *r)
{
    uint32_t peer = 0, turn = 0, staged = 0;

    for (uint64_t i = 0; i < c->frames; i++) {
        uint8_t *f = frames + (size_t)turn * c->size_max;
        uint32_t len = mint_bench_size(c, i);
        uint64_t since = 0;
        enum mint_sent sent;

        if (c->verify)
            mint_bench_stamp(f, pattern, i, len);
        while (unlikely((sent = mint_port_send(port, NULL, f, len, &peer)) == MINT_FULL)) {
            int err = await_room(port, c, peer, &since);

            if (err)
                return err;
        }
        r->frames += sent == MINT_SENT;
        r->dropped += sent == MINT_DROPPED;
        r->bytes += len;
        mint_port_took(port, len);
        turn = turn + 1 < c->distinct ? turn + 1 : 0;
        if (++staged == c->batch) {
            mint_port_flush(port);
            staged = 0;
        }
    }
    mint_port_flush(port);
    return 0;
}

int mint_bench_send(struct mint_port *port, const struct mint_bench_config *c,
                    struct mint_bench_result *r)
{
    uint8_t *pattern = NULL, *frames = NULL;
    uint64_t cpu;
    int err = mint_bench_sizes_ok(c) ? 0 : -EINVAL;

    memset(r, 0, sizeof(*r));
    if (!err) {
        pattern = mint_bench_pattern();
        frames = pattern ? mint_bench_frames(c, pattern) : NULL;
        err = frames ? 0 : -ENOMEM;
    }
    if (!err) {
        cpu = mint_bench_cpu();
        r->begin_ns = now_ns();
        err = send_all(port, c, frames, pattern, r);
        r->end_ns = now_ns();
        r->cpu_ns = mint_bench_cpu() - cpu;
    }
    free(frames);
    free(pattern);
    return err;
}

/* Check one frame that was copied out. Return: its number, or the expected one when unreadable. */
void mint_bench_verify(const struct mint_bench_config *c, const uint8_t *pattern, const uint8_t *f,
                       uint32_t len, uint64_t *expect, struct mint_bench_result *r)
{
    uint64_t number;

    if (len < HEAD) {
        r->corrupted++;
        return;
    }
    memcpy(&number, f + MINT_FRAME_MIN, 8);
    if (number >= c->frames || len != mint_bench_size(c, number) ||
        memcmp(f + HEAD, payload_of(pattern, number), len - HEAD) != 0) {
        r->corrupted++;
        return;
    }
    if (number < *expect) {
        r->reordered++;
        return;
    }
    r->lost += number - *expect;
    *expect = number + 1;
}

/* Nothing to receive: spin for the port's poll_us, then sleep. */
static int await_frame(struct mint_port *port, const struct mint_bench_config *c)
{
    int events;

    mint_port_recycle(port);
    if (c->yield)
        sched_yield();
    events = mint_port_wait(port, (int64_t)c->timeout_ns);
    return events == (int)MINT_EV_TIMER ? -ETIMEDOUT : events < 0 ? events : 0;
}

static int recv_all(struct mint_port *port, const struct mint_bench_config *c, uint8_t *out,
                    const uint8_t *pattern, struct mint_bench_result *r)
{
    uint32_t held = 0;
    uint64_t expect = 0;
    struct mint_view v;

    while (r->frames + r->lost < c->frames) {
        if (!mint_port_recv(port, &v)) {
            int err = await_frame(port, c);

            if (err)
                return err;
            held = 0;
            continue;
        }
        if (!r->begin_ns)
            r->begin_ns = now_ns();
        memcpy(out, v.head, sizeof(v.head));
        memcpy(out + sizeof(v.head), v.frame + sizeof(v.head), v.len - sizeof(v.head));
        r->frames++;
        r->bytes += v.len;
        mint_port_release(port, &v);
        if (c->verify)
            mint_bench_verify(c, pattern, out, v.len, &expect, r);
        if (++held == c->batch) {
            mint_port_recycle(port);
            held = 0;
        }
    }
    return 0;
}

int mint_bench_recv(struct mint_port *port, const struct mint_bench_config *c,
                    struct mint_bench_result *r)
{
    uint8_t *out = malloc(MINT_FRAME_MAX), *pattern = mint_bench_pattern();
    uint64_t cpu = mint_bench_cpu();
    int err = !out || !pattern ? -ENOMEM : !mint_bench_sizes_ok(c) ? -EINVAL : 0;

    memset(r, 0, sizeof(*r));
    if (!err) {
        err = recv_all(port, c, out, pattern, r);
        r->end_ns = now_ns();
        r->cpu_ns = mint_bench_cpu() - cpu;
        mint_port_recycle(port);
        mint_port_gave(port, (uint32_t)r->frames, r->bytes);
    }
    free(out);
    free(pattern);
    return err;
}
