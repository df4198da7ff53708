/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench.h - the measuring loops of `mint bench` and of the integrity test: frames through the
 * ports' own entry points, with all checks, look-up and counters on.
 *
 *   bench.c         one sender, one receiver
 *   bench_mix.c     several of both
 *   bench_trip.c    round trips of frames and of doorbells
 *   bench_memory.c  the machine's memory, to compare with
 */
#ifndef MINT_BENCH_H
#define MINT_BENCH_H

#include "port.h"

struct mint_bench_config {
    uint64_t frames;   /* to send, or to receive */
    uint32_t size_min; /* bytes of frame; sizes vary between the two by a hash of the number */
    uint32_t size_max;
    uint32_t distinct;   /* different frames, sent in turn */
    uint32_t batch;      /* frames between two publications, or two returns of room */
    uint32_t verify;     /* number and check every byte */
    uint32_t yield;      /* give the core away while waiting (more processes than cores) */
    uint64_t timeout_ns; /* give up when nothing moved for so long */
    uint8_t dst[6];
    uint8_t src[6];
};

struct mint_bench_result {
    uint64_t frames; /* sent (not dropped), or received */
    uint64_t bytes;
    uint64_t dropped;   /* sender: settled by a drop */
    uint64_t lost;      /* receiver, verify: numbers that never came */
    uint64_t reordered; /* receiver, verify: numbers that came late or twice */
    uint64_t corrupted; /* receiver, verify: frames with a wrong byte or length */
    uint64_t begin_ns;  /* CLOCK_MONOTONIC: first frame sent or received */
    uint64_t end_ns;
    uint64_t cpu_ns;   /* of this thread, in between */
    uint64_t received; /* mint_bench_mixed() alone, where `frames` are those sent */
};

/* Return: 0, -ENOMEM, -ETIMEDOUT, -EINTR or -EINVAL (sizes out of bounds). */
int mint_bench_send(struct mint_port *port, const struct mint_bench_config *config,
                    struct mint_bench_result *result);
int mint_bench_recv(struct mint_port *port, const struct mint_bench_config *config,
                    struct mint_bench_result *result);

#define MINT_BENCH_TARGETS 64u

/* struct mint_bench_mix - whom a port sends to, and what it is to get. */
struct mint_bench_mix {
    uint32_t targets; /* c->frames frames go to each; 0: it only receives */
    uint8_t dst[MINT_BENCH_TARGETS][6];
    uint64_t expect; /* frames to receive in all; 0: it only sends */
};

/* Send and receive at the same time, until both are done. Return: as mint_bench_send(). */
int mint_bench_mixed(struct mint_port *port, const struct mint_bench_config *config,
                     const struct mint_bench_mix *mix, struct mint_bench_result *result);

/*
 * mint_bench_ask() - send one frame of size_max bytes, wait for the answer, config->frames times;
 * mint_bench_answer() - the other side. ns[i] is how long the i-th round trip took.
 */
int mint_bench_ask(struct mint_port *port, const struct mint_bench_config *config, uint32_t *ns);
int mint_bench_answer(struct mint_port *port, const struct mint_bench_config *config);

/*
 * mint_bench_bells() - bare doorbells to and fro over a socket pair, each side asleep until it is
 * rung for, as ports sleep. @first: whether this side rings first; its ns[i] are round trips.
 * Return: 0, or a negative errno (-ETIMEDOUT: no ring within 10 s).
 */
int mint_bench_bells(int fd, bool first, uint32_t rounds, uint32_t *ns);
/* Nanoseconds that ringing takes when nobody sleeps at the other end. */
uint64_t mint_bench_ring(int ringer, int hearer, uint32_t rounds);

/*
 * mint_bench_memcpy() - copy `bytes` from one buffer to another `rounds` times, after one
 * round that touches the pages. Return: nanoseconds of an average round; 0: out of memory.
 */
uint64_t mint_bench_memcpy(uint64_t bytes, uint32_t rounds);

enum mint_bench_stream { MINT_STREAM_READ, MINT_STREAM_WRITE, MINT_STREAM_COPY };

/* Memory of 2 x `bytes`, each page touched, for mint_bench_streaming(); NULL: there is not enough. */
uint8_t *mint_bench_area(uint64_t bytes);
/*
 * mint_bench_streaming() - read, write or copy `bytes` of an area again and again for at least `ns`.
 * Return: bytes read plus bytes written a nanosecond.
 */
double mint_bench_streaming(enum mint_bench_stream kind, uint8_t *area, uint64_t bytes,
                            uint64_t ns);

#endif
