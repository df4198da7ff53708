/* SPDX-License-Identifier: Apache-2.0 */
/* bench_memory.c - what this machine's memory can do; see bench.h. */
#include "bench.h"
#include "clock.h"
#include <stdlib.h>
#include <string.h>

/* The compiler must not see that nobody reads what was written. */
static void keep(const void *p)
{
    __asm__ __volatile__("" : : "r"(p) : "memory");
}

uint64_t mint_bench_memcpy(uint64_t bytes, uint32_t rounds)
{
    uint8_t *a = malloc(bytes), *b = malloc(bytes);
    uint64_t t = 0;

    if (a && b && rounds) {
        memset(a, 1, bytes);
        memset(b, 2, bytes);
        t = now_ns();
        for (uint32_t i = 0; i < rounds; i++) {
            memcpy(b, a, bytes);
            keep(b);
        }
        t = (now_ns() - t) / rounds;
    }
    free(a);
    free(b);
    return t;
}

/* Eight sums at once, so that the loads are the limit and not one addition after the other. */
static uint64_t read_all(const uint8_t *p, uint64_t bytes)
{
    uint64_t sum[8] = {0};

    for (uint64_t i = 0; i + 64 <= bytes; i += 64) {
        uint64_t word[8];

        memcpy(word, p + i, sizeof(word));
        for (uint32_t k = 0; k < 8; k++)
            sum[k] += word[k];
    }
    return sum[0] + sum[1] + sum[2] + sum[3] + sum[4] + sum[5] + sum[6] + sum[7];
}

static uint64_t one_round(enum mint_bench_stream kind, uint8_t *a, uint8_t *b, uint64_t bytes)
{
    uint64_t sum;

    switch (kind) {
    case MINT_STREAM_READ:
        sum = read_all(a, bytes);
        keep(&sum);
        return bytes;
    case MINT_STREAM_WRITE:
        memset(b, 0x55, bytes); /* zeros are twice as fast on some processors, and no frame is */
        keep(b);
        return bytes;
    default:
        memcpy(b, a, bytes);
        keep(b);
        return 2 * bytes;
    }
}

uint8_t *mint_bench_area(uint64_t bytes)
{
    uint8_t *p = malloc(2 * bytes);

    if (p)
        memset(p, 1, 2 * bytes);
    return p;
}

double mint_bench_streaming(enum mint_bench_stream kind, uint8_t *area, uint64_t bytes, uint64_t ns)
{
    uint64_t moved = 0, start = now_ns(), now = start;

    while (now - start < ns) {
        moved += one_round(kind, area, area + bytes, bytes);
        now = now_ns();
    }
    return (double)moved / (double)(now - start);
}
