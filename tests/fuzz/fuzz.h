/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fuzz.h - what the fuzz targets share: an input that is read as a script.
 *
 * An input is no image of memory but a sequence of steps of an attacker, each an operation and its
 * arguments. So a changed byte changes one step, and the fuzzer finds its way through states that
 * random memory would hardly ever reach. An input that is used up gives zeroes: every sequence of
 * bytes is a script, and every script ends.
 *
 * A CHECK() that fails (check.h) ends the program, which libFuzzer reports with the input.
 */
#ifndef MINT_FUZZ_H
#define MINT_FUZZ_H

#include "check.h"
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

/* The entry that libFuzzer calls with each input. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct script {
    const uint8_t *at;
    size_t left;
};

static inline uint64_t take(struct script *s, size_t bytes)
{
    uint64_t value = 0;
    size_t n = bytes < s->left ? bytes : s->left;

    memcpy(&value, s->at, n);
    s->at += n;
    s->left -= n;
    return value;
}

static inline uint8_t take8(struct script *s)
{
    return (uint8_t)take(s, 1);
}

static inline uint16_t take16(struct script *s)
{
    return (uint16_t)take(s, 2);
}

static inline uint32_t take32(struct script *s)
{
    return (uint32_t)take(s, 4);
}

/* Copy bytes of the input; zeroes when it is used up. */
static inline void take_bytes(struct script *s, void *to, size_t bytes)
{
    size_t n = bytes < s->left ? bytes : s->left;

    memset(to, 0, bytes);
    memcpy(to, s->at, n);
    s->at += n;
    s->left -= n;
}

/*
 * A number near one that matters, or any: indices that are wrong by a little find other mistakes
 * than indices that are wrong by far.
 */
static inline uint64_t take_near(struct script *s, uint64_t base, uint64_t unit, uint64_t span)
{
    uint8_t how = take8(s);

    switch (how & 3u) {
    case 0:
        return base + (uint64_t)(int64_t)(int8_t)take8(s) * unit;
    case 1:
        return base + span + (uint64_t)(int64_t)(int8_t)take8(s) * unit;
    case 2:
        return base + take16(s);
    default:
        return take(s, 8);
    }
}

/* A frame length: small, any, or a bound. */
static inline uint32_t take_length(struct script *s, uint32_t least, uint32_t most)
{
    uint16_t how = take16(s);

    switch (how & 7u) {
    case 0:
        return least;
    case 1:
        return most;
    case 2:
        return least + (uint32_t)how * 7u % (most - least + 1);
    default:
        return least + (uint32_t)(how >> 3) % 2000u;
    }
}

/* Touch every byte, so that the sanitizers see whether all of it is there. */
static inline uint32_t touch(const uint8_t *p, size_t n)
{
    uint32_t sum = 0;

    for (size_t i = 0; i < n; i++)
        sum += p[i];
    __asm__ __volatile__("" : : "r"(sum)); /* the reads count */
    return sum;
}

#endif
