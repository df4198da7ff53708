/* SPDX-License-Identifier: Apache-2.0 */
/* pool_lock.c - theory of operation in pool_lock.h. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "pool_lock.h"
#include "pool_abi.h"
#include "pool_test.h"
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define SPINS 100          /* a few microseconds: longer than a critical section */
#define STALE_NS 20000000L /* how long a waiter sleeps before it asks whether the holder lives */

#ifdef MINT_TEST
/* NOLINTNEXTLINE(cppcoreguidelines-avoid-non-const-global-variables): tests set it */
void (*mint_pool_test_hook)(enum mint_pool_point point);
#endif

static struct flock byte_lock(uint32_t port)
{
    return (struct flock){
        .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = (off_t)port, .l_len = 1};
}

int mint_pool_lock_claim(int fd, uint32_t port)
{
    struct flock fl = byte_lock(port);

    if (fcntl(fd, F_OFD_SETLK, &fl) == 0)
        return 0;
    return errno == EAGAIN || errno == EACCES ? -EBUSY : -errno;
}

/* Whether the process of the port named by a lock word lives; if that cannot be known, it does. */
static bool holder_lives(const struct mint_pool_lock *lock, uint32_t word)
{
    struct flock fl = byte_lock((word & MINT_POOL_LOCK_OWNER) - 1u);

    if ((word & MINT_POOL_LOCK_OWNER) - 1u >= MINT_PORTS_MAX)
        return false; /* nobody ever wrote that */
    return fcntl(lock->fd, F_OFD_GETLK, &fl) != 0 || fl.l_type != F_UNLCK;
}

/*
 * Acquire on success: pairs with the release in mint_pool_lock_drop(), or for a dead holder with
 * nothing: all that it wrote is in shared memory, and what counts of it is checked.
 */
static bool swap_word(mint_a32 *word, uint32_t *seen, uint32_t wanted)
{
    return atomic_compare_exchange_strong_explicit(word, seen, wanted, memory_order_acquire,
                                                   memory_order_relaxed);
}

static bool spin(struct mint_pool_lock *lock)
{
    for (int i = 0; i < SPINS; i++) {
        uint32_t seen = load_relaxed(lock->word);

        if (seen == 0 && swap_word(lock->word, &seen, lock->mine))
            return true;
        cpu_relax();
    }
    return false;
}

/* Sleep while the word is `seen`. Return: whether the time ran out or a signal came. */
static bool sleep_on(const struct mint_pool_lock *lock, uint32_t seen)
{
    const struct timespec limit = {.tv_sec = 0, .tv_nsec = STALE_NS};
    long rc = syscall(SYS_futex, lock->word, FUTEX_WAIT, seen, &limit, NULL, 0);

    return rc != 0 && errno != EAGAIN;
}

/*
 * From here on we take the lock with MINT_POOL_LOCK_WAITERS set: others may sleep too, and only
 * the word knows. Return: whether it was taken from a dead holder.
 */
static bool wait_for(struct mint_pool_lock *lock)
{
    const uint32_t mine = lock->mine | MINT_POOL_LOCK_WAITERS;
    uint32_t seen = load_relaxed(lock->word);

    for (;;) {
        if (seen == 0) {
            if (swap_word(lock->word, &seen, mine))
                return false;
        } else if ((seen & MINT_POOL_LOCK_OWNER) == (mine & MINT_POOL_LOCK_OWNER)) {
            /* we hold our port's byte, so this is a predecessor, and it is dead */
            if (swap_word(lock->word, &seen, mine))
                return true;
        } else if (!(seen & MINT_POOL_LOCK_WAITERS)) {
            if (swap_word(lock->word, &seen, seen | MINT_POOL_LOCK_WAITERS))
                seen |= MINT_POOL_LOCK_WAITERS;
        } else if (!sleep_on(lock, seen) || holder_lives(lock, seen)) {
            seen = load_relaxed(lock->word);
        } else if (swap_word(lock->word, &seen, mine)) {
            return true;
        }
    }
}

static uint64_t now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static void count(struct mint_pool_lock *lock, enum mint_port_counter which, uint64_t n)
{
    store_relaxed(&lock->counter[which], load_relaxed(&lock->counter[which]) + n);
}

bool mint_pool_lock_take(struct mint_pool_lock *lock)
{
    uint32_t seen = 0;
    uint64_t since;
    bool stolen;

    count(lock, MINT_PORT_LOCKS, 1);
    if (swap_word(lock->word, &seen, lock->mine))
        return false;
    since = now_ns();
    stolen = !spin(lock) && wait_for(lock);
    count(lock, MINT_PORT_LOCK_WAITS, 1);
    count(lock, MINT_PORT_LOCK_WAIT_NS, now_ns() - since);
    count(lock, MINT_PORT_LOCK_STEALS, stolen);
    return stolen;
}

void mint_pool_lock_drop(struct mint_pool_lock *lock)
{
    /* Release: pairs with the acquire in swap_word(). */
    uint32_t old = atomic_exchange_explicit(lock->word, 0u, memory_order_release);

    MINT_POOL_TEST_DIE(MINT_POINT_DROPPED);
    if (old & MINT_POOL_LOCK_WAITERS)
        syscall(SYS_futex, lock->word, FUTEX_WAKE, 1, NULL, NULL, 0);
}
