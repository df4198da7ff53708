/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_mix.c - one port that sends to several and receives from several at once; see bench.h.
 *
 * Nobody may wait for room alone here: two ports that wait for each other's room, and receive
 * nothing meanwhile, would wait for ever. So a port sends what there is room for, receives what
 * has come, and sleeps only when neither is possible.
 */
#include "bench_internal.h"
#include <errno.h>
#include <sched.h>
#include <stdlib.h>

struct mix {
    struct mint_port *port;
    const struct mint_bench_config *c;
    const struct mint_bench_mix *m;
    struct mint_bench_result *r;
    uint8_t *frames, *pattern, *out;
    uint64_t *next;   /* number of the next frame for each target */
    uint64_t *expect; /* verify: number of the next frame from each port */
    uint64_t sent, total;
    uint32_t turn;     /* which of the distinct frames is next */
    int64_t full_peer; /* somebody whose channel was full at the last try; -1: none */
    uint64_t idle_at;  /* when nothing could be done for the first time; 0: something could */
};

/* Send at most a batch to one target. */
static void send_to_one(struct mix *x, uint32_t target)
{
    const struct mint_bench_config *c = x->c;

    for (uint32_t n = 0; n < c->batch && x->next[target] < c->frames; n++) {
        uint8_t *f = x->frames + (size_t)x->turn * c->size_max;
        uint32_t len = mint_bench_size(c, x->next[target]), peer = 0;
        enum mint_sent sent;

        memcpy(f, x->m->dst[target], 6);
        if (c->verify)
            mint_bench_stamp(f, x->pattern, x->next[target], len);
        sent = mint_port_send(x->port, NULL, f, len, &peer);
        if (sent == MINT_FULL) {
            x->full_peer = peer;
            return;
        }
        x->r->frames += sent == MINT_SENT;
        x->r->dropped += sent == MINT_DROPPED;
        x->next[target]++;
        x->sent++;
        mint_port_took(x->port, len);
        x->turn = x->turn + 1 < c->distinct ? x->turn + 1 : 0;
    }
}

static bool send_some(struct mix *x)
{
    uint64_t before = x->sent;

    x->full_peer = -1;
    for (uint32_t t = 0; t < x->m->targets && x->sent < x->total; t++) {
        send_to_one(x, t);
        mint_port_flush(x->port);
    }
    return x->sent != before;
}

static bool recv_some(struct mix *x)
{
    struct mint_view v;
    uint32_t n = 0;

    while (n < x->c->batch && mint_port_recv(x->port, &v)) {
        uint32_t src = v.src, len = v.len;

        memcpy(x->out, v.head, sizeof(v.head));
        memcpy(x->out + sizeof(v.head), v.frame + sizeof(v.head), len - sizeof(v.head));
        mint_port_release(x->port, &v);
        x->r->received++;
        x->r->bytes += len;
        if (x->c->verify)
            mint_bench_verify(x->c, x->pattern, x->out, len, &x->expect[src], x->r);
        n++;
    }
    mint_port_recycle(x->port);
    return n > 0;
}

/* Neither room nor frames. Return: 0 or a negative errno. */
static int await(struct mix *x)
{
    int events;

    if (x->c->yield)
        sched_yield();
    if (x->full_peer >= 0 && mint_port_ask_room(x->port, (uint32_t)x->full_peer))
        return 0; /* asked just now: try once more, that is the re-check */
    if (!x->idle_at)
        x->idle_at = now_ns();
    /* It may return early, to look at a channel whose doorbell is not listened to for a while. */
    events = mint_port_wait(x->port, (int64_t)x->c->timeout_ns);
    if (events < 0)
        return events;
    return now_ns() - x->idle_at > x->c->timeout_ns ? -ETIMEDOUT : 0;
}

static int mix_all(struct mix *x)
{
    while (x->sent < x->total || x->r->received + x->r->lost < x->m->expect) {
        bool moved = send_some(x);

        moved |= recv_some(x);
        if (!moved) {
            int err = await(x);

            if (err)
                return err;
        } else {
            x->idle_at = 0;
        }
    }
    return 0;
}

static int mix_timed(struct mix *x)
{
    uint64_t cpu = mint_bench_cpu();
    int err;

    x->r->begin_ns = now_ns();
    err = mix_all(x);
    x->r->end_ns = now_ns();
    x->r->cpu_ns = mint_bench_cpu() - cpu;
    mint_port_gave(x->port, (uint32_t)x->r->received, x->r->bytes);
    return err;
}

int mint_bench_mixed(struct mint_port *port, const struct mint_bench_config *c,
                     const struct mint_bench_mix *m, struct mint_bench_result *r)
{
    struct mix x = {.port = port, .c = c, .m = m, .r = r, .total = c->frames * m->targets};
    int err = mint_bench_sizes_ok(c) && m->targets <= MINT_BENCH_TARGETS ? 0 : -EINVAL;

    memset(r, 0, sizeof(*r));
    if (!err) {
        x.pattern = mint_bench_pattern();
        x.frames = x.pattern ? mint_bench_frames(c, x.pattern) : NULL;
        x.out = malloc(MINT_FRAME_MAX);
        x.next = calloc(MINT_BENCH_TARGETS, sizeof(*x.next));
        x.expect = calloc(port->config.slots, sizeof(*x.expect));
        err = x.frames && x.out && x.next && x.expect ? mix_timed(&x) : -ENOMEM;
    }
    free(x.pattern);
    free(x.frames);
    free(x.out);
    free(x.next);
    free(x.expect);
    return err;
}
