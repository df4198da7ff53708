/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pool.h - layout "shared" (the paper's layout 1): one packet buffer for all frames of all ports,
 * under a lock. Built to be compared with the per-channel buffers; theory of operation in pool.c.
 */
#ifndef MINT_POOL_H
#define MINT_POOL_H

#include "abi.h"
#include <stdbool.h>

/* One port's handle on the pool; private to its process. */
struct mint_pool_end;

/*
 * mint_pool_bytes() - size of a pool region for `ports` ports with `data_bytes` of packet buffer.
 * Return: bytes, page-rounded; 0 when the arguments are out of bounds.
 */
size_t mint_pool_bytes(uint32_t ports, size_t data_bytes);

/*
 * mint_pool_format() - initialise a fresh pool region.
 * @fd:         descriptor open for reading and writing, of mint_pool_bytes() bytes, all zero
 * @ports:      ports that the region is for
 * @data_bytes: as given to mint_pool_bytes()
 * Return: 0, or a negative errno.
 */
int mint_pool_format(int fd, uint32_t ports, size_t data_bytes);

/*
 * mint_pool_attach() - join the pool as port `port`.
 * @fd:      descriptor of the region; reopened, so that the liveness lock is this handle's own
 * @counter: the port's counters (MINT_PORT_LOCKS ...), which this handle adds to
 *
 * What a predecessor of the same port held when it died is freed and counted in
 * MINT_PORT_DROP_RESTART; what was queued for it stays queued.
 * Return: 0, or a negative errno: -EBUSY when a living process has this port, -EPROTO when the
 * region is not a pool of this version or its size or seals are wrong.
 */
int mint_pool_attach(struct mint_pool_end **out, int fd, uint32_t port, mint_a64 *counter);

/*
 * mint_pool_detach() - leave the pool. What is staged is published, what is in hand is dropped; what
 * was queued for this port stays, for its next process, with what mint_pool_next() has not handed
 * out yet.
 */
void mint_pool_detach(struct mint_pool_end *end);

/* In a forked child: let go of the parent's handle, and so of its byte lock. Nothing shared is
 * touched. */
void mint_pool_disown(struct mint_pool_end *end);

/*
 * mint_pool_reserve() - room for one record with a frame of up to `len` bytes, for port `dst`.
 * Return: the record, contiguous and private to the caller until mint_pool_commit(); NULL when
 * the pool, or the share of it that frames waiting for `dst` may take, is used up, or 64 records
 * are in hand already. When it has to take the lock, it also publishes what is staged.
 */
struct mint_rec *mint_pool_reserve(struct mint_pool_end *end, uint32_t dst, uint32_t len);

/* Stage a reserved record, now holding `len` (at most what was reserved) bytes of frame. */
void mint_pool_commit(struct mint_pool_end *end, uint32_t dst, struct mint_rec *rec, uint32_t len);

/* Give a reserved record back unsent. */
void mint_pool_cancel(struct mint_pool_end *end, struct mint_rec *rec);

/*
 * Make all staged records visible to their receivers, in the order of their commits. The caller
 * rings the doorbells. With nothing staged it gives back what the handle took in advance, if
 * anything (otherwise it takes no lock): so call it before going to sleep, too.
 */
void mint_pool_publish(struct mint_pool_end *end);

/*
 * mint_pool_next() - the next record for this port; the caller reads it and mint_pool_release()s it.
 * Return: the record with its sender in *src and its checked frame length in *len; NULL: none, or
 * 128 records are taken and not released.
 */
const struct mint_rec *mint_pool_next(struct mint_pool_end *end, uint32_t *src, uint32_t *len);
void mint_pool_release(struct mint_pool_end *end, const struct mint_rec *rec);

/* Hand released records back to the pool. */
void mint_pool_recycle(struct mint_pool_end *end);

/* Whether a record waits for this port: the re-check before sleeping; takes no lock. */
bool mint_pool_pending(const struct mint_pool_end *end);

/*
 * mint_pool_progress() - a number that changes whenever port `dst` has given buffers back: how a
 * sender that waits for room sees that its receiver lives. While `dst` has nothing to give back,
 * it changes whenever anybody has: then it is others who must give room. Takes no lock.
 */
uint64_t mint_pool_progress(const struct mint_pool_end *end, uint32_t dst);

/*
 * mint_pool_forget() - free what this port has queued for port `dst`, which is gone for good: as
 * closing a channel does in layout per-channel. Goes through the whole table.
 * Return: records dropped.
 */
uint32_t mint_pool_forget(struct mint_pool_end *end, uint32_t dst);

#endif
