/* SPDX-License-Identifier: Apache-2.0 */
/*
 * order.h - the memory-ordering rules of the fabric, as named wrappers over C11 atomics.
 *
 * Two processes share memory and no lock, so every access to a shared word goes through one of
 * these. There are three rules and no others:
 *
 * 1. Publish and observe. A writer fills the payload, then store_release()s the index; the reader
 *    load_acquire()s the index, then reads the payload. Each pair is named where it is used.
 *
 * 2. Publish meets sleep. A sender publishes, then looks whether the receiver sleeps; a receiver
 *    announces its sleep, then looks whether something was published. Acquire and release alone
 *    let both see the old value (a store may pass a later load, on x86 too) and the wake-up is
 *    lost. Both sides therefore put full_fence() between their store and their load.
 *
 * 3. Words that only inform (counters, names) are load_relaxed() and store_relaxed().
 *
 * Nothing here depends on x86's stronger ordering.
 */
#ifndef MINT_ORDER_H
#define MINT_ORDER_H

#include <stdatomic.h>
#include <stdint.h>

typedef _Atomic uint32_t mint_a32;
typedef _Atomic uint64_t mint_a64;

_Static_assert(sizeof(mint_a32) == 4 && sizeof(mint_a64) == 8, "atomics must have no hidden lock");
_Static_assert(ATOMIC_INT_LOCK_FREE == 2 && ATOMIC_LLONG_LOCK_FREE == 2,
               "32- and 64-bit atomics must be lock-free: a lock would be private to a process");

/* Pairs with store_release() on the same word by the one that owns it. */
#define load_acquire(p) atomic_load_explicit((p), memory_order_acquire)
/* Pairs with load_acquire() on the same word by its reader. */
#define store_release(p, v) atomic_store_explicit((p), (v), memory_order_release)
/* No ordering: own words, counters, and re-checks that a fence orders. */
#define load_relaxed(p) atomic_load_explicit((p), memory_order_relaxed)
#define store_relaxed(p, v) atomic_store_explicit((p), (v), memory_order_relaxed)

/* Add to a counter in shared memory that has one writer: us. */
static inline void bump(mint_a64 *counter, uint64_t by)
{
    store_relaxed(counter, load_relaxed(counter) + by);
}

/* Pairs with the full_fence() of the other side wherever publish meets sleep (rule 2). */
static inline void full_fence(void)
{
    atomic_thread_fence(memory_order_seq_cst);
}

/* Tells the core that this is a spin loop; no ordering. */
static inline void cpu_relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

#endif
