/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pool_lock.h - the lock of layout "shared": between processes, and able to survive the death of
 * its holder at any instruction.
 *
 * Theory of operation
 *
 * The lock is one word in the pool region (pool_abi.h): who holds it, or 0. Taking it is one
 * compare-and-swap, giving it back one exchange; when it is not free, a bounded spin, then a
 * futex wait of STALE_NS at most (the word lies in shared memory, so the futex is a shared one).
 *
 * A waiter whose sleep was not ended by a wake-up asks whether the holder lives. No pointer and no
 * pid is believed for that: each handle reopens the region's file and so has an open file
 * description of its own, with which it holds an exclusive lock on the byte `port` of the file
 * (an open-file-description lock). The kernel drops it with the last descriptor, at death at the
 * latest, whatever the pid namespaces; F_OFD_GETLK asks for it. If the byte is free the holder is
 * dead, and the waiter takes the lock by compare-and-swap from the very word that it saw. So:
 *
 * - A dead holder costs the others STALE_NS, and the winner is told, because it has to make good
 *   what the dead one left half-done.
 * - A living holder keeps the lock however long it takes. A process that is stopped (SIGSTOP) in
 *   the critical section stops all others: that is what a lock is.
 * - A child that was forked with the handle open keeps its parent's byte locked until it execs
 *   (the descriptor is O_CLOEXEC), exits, or calls mint_pool_disown().
 */
#ifndef MINT_POOL_LOCK_H
#define MINT_POOL_LOCK_H

#include "abi.h"
#include <stdbool.h>

/* struct mint_pool_lock - one handle's way to the lock. */
struct mint_pool_lock {
    mint_a32 *word;
    mint_a64 *counter; /* of the port: MINT_PORT_LOCKS ... */
    int fd;            /* open file description of this handle alone */
    uint32_t mine;     /* the word while this handle holds the lock */
};

/*
 * mint_pool_lock_claim() - hold the byte `port` of the file, from now to close() or death.
 * Return: 0, -EBUSY when another handle holds it, or what fcntl() says.
 */
int mint_pool_lock_claim(int fd, uint32_t port);

/* Take the lock. Return: whether it was taken from a dead holder. */
bool mint_pool_lock_take(struct mint_pool_lock *lock);

/* Give it back, and wake one of those who sleep on it. */
void mint_pool_lock_drop(struct mint_pool_lock *lock);

#endif
