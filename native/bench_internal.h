/* SPDX-License-Identifier: Apache-2.0 */
/* bench_internal.h - what the measuring loops share; nobody else includes it. */
#ifndef MINT_BENCH_INTERNAL_H
#define MINT_BENCH_INTERNAL_H

#include "bench.h"
#include "port_internal.h"

#define MINT_BENCH_HEAD 22u /* Ethernet header and number */

/* Nanoseconds of CPU that this thread has used. */
uint64_t mint_bench_cpu(void);
/* The fixed pattern that payloads are stretches of; free() it. NULL: out of memory. */
uint8_t *mint_bench_pattern(void);
/* The c->distinct frames that are sent in turn, c->size_max bytes each; free() them. */
uint8_t *mint_bench_frames(const struct mint_bench_config *c, const uint8_t *pattern);
/* Bytes of frame `number`. */
uint32_t mint_bench_size(const struct mint_bench_config *c, uint64_t number);
/* Give a frame its number and the payload that belongs to it. */
void mint_bench_stamp(uint8_t *frame, const uint8_t *pattern, uint64_t number, uint32_t len);
/* Check one frame that was copied out; `expect` is the number that should come next. */
void mint_bench_verify(const struct mint_bench_config *c, const uint8_t *pattern, const uint8_t *f,
                       uint32_t len, uint64_t *expect, struct mint_bench_result *r);
/* Whether the sizes are within bounds. */
bool mint_bench_sizes_ok(const struct mint_bench_config *c);

#endif
