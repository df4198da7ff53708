/* SPDX-License-Identifier: Apache-2.0 */
/* fuzz_pooled.c - fuzz_port.c in layout pooled: the attacker writes its descriptors and buffers. */
#define FUZZ_POOLED
#include "fuzz_port.c"
