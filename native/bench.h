/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench.h - the loops of `mint bench frames` and of the integrity test: frames through the ports'
 * own entry points, with all checks, look-up and counters on.
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
    uint64_t cpu_ns; /* of this thread, in between */
};

/* Return: 0, -ENOMEM, -ETIMEDOUT, -EINTR or -EINVAL (sizes out of bounds). */
int mint_bench_send(struct mint_port *port, const struct mint_bench_config *config,
                    struct mint_bench_result *result);
int mint_bench_recv(struct mint_port *port, const struct mint_bench_config *config,
                    struct mint_bench_result *result);

/*
 * mint_bench_memcpy() - copy `bytes` from one buffer to another `rounds` times, after one
 * round that touches the pages. Return: nanoseconds of an average round; 0: out of memory.
 */
uint64_t mint_bench_memcpy(uint64_t bytes, uint32_t rounds);

#endif
