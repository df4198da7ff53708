/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vring.h - the device's side of one split virtqueue (VIRTIO 1.2, section 2.7) in a guest's
 * memory. Theory of operation in vring.c.
 */
#ifndef MINT_VRING_H
#define MINT_VRING_H

#include "gmem.h"
#include <sys/uio.h>

#define MINT_VRING_SIZE_MAX 32768u /* section 2.7: a power of two up to this */
#define MINT_CHAIN_SEGS 320u       /* pieces of memory in one chain, after cutting at regions */
#define MINT_CHAIN_STEPS 1024u     /* descriptors in one chain, also those of no bytes */

/* Section 2.7.5. */
struct mint_vdesc {
    uint64_t addr;
    uint32_t len;
    uint16_t flags;
    uint16_t next;
};
_Static_assert(sizeof(struct mint_vdesc) == 16, "virtqueue descriptor");
#define MINT_VDESC_NEXT 1u
#define MINT_VDESC_WRITE 2u
#define MINT_VDESC_INDIRECT 4u

struct mint_vused_elem {
    uint32_t id;
    uint32_t len;
};

/* struct mint_vring - a queue; all zero: not set up. */
struct mint_vring {
    bool set;     /* addresses are known and lie in the guest's memory */
    bool enabled; /* by the front end */
    bool broken;  /* the guest broke a rule: nothing happens any more until it is set up anew */
    bool event_idx, indirect; /* features */
    bool call_is_socket;
    bool suppressed; /* the guest was told not to kick */
    uint16_t size;
    uint16_t next_avail; /* position of the next chain to take */
    uint16_t next_used;  /* position of the next used element; not published before push */
    uint16_t signalled;  /* used position at the last signal */
    bool signalled_valid;
    uint16_t avail_seen; /* the driver's index when last looked at */
    int kick, call;      /* descriptors; -1: none */

    struct mint_vdesc *desc; /* these three are the guest's memory */
    uint16_t *avail;         /* flags, idx, ring[size], used_event */
    uint16_t *used;          /* flags, idx, ring[size] of struct mint_vused_elem, avail_event */
};

/* struct mint_chain - one chain of descriptors, resolved. */
struct mint_chain {
    uint16_t id;    /* its first descriptor */
    uint32_t count; /* pieces */
    uint64_t bytes; /* in all of them */
    struct iovec iov[MINT_CHAIN_SEGS];
};

/*
 * mint_vring_set() - find the three parts in the guest's memory and take the queue up where the
 * used ring says that the last device left it, awake. Kicks are wanted until mint_vring_no_kick().
 * @desc, @avail, @used: the front end's addresses
 * Return: 0; -EINVAL: no such size, or not aligned; -EFAULT: not within one region.
 */
int mint_vring_set(struct mint_vring *q, struct mint_gmem *m, uint32_t size, uint64_t desc,
                   uint64_t avail, uint64_t used);

static inline bool mint_vring_live(const struct mint_vring *q)
{
    return q->set && q->enabled && !q->broken;
}

/*
 * mint_vring_ready() - chains that the driver has made available and nobody has taken.
 * Return: their number; -EPROTO when it claims more than the queue holds.
 */
int mint_vring_ready(struct mint_vring *q);

/*
 * mint_vring_peek() - resolve the chain that is `ahead` positions from the next; nothing is taken.
 * @write: all of it must be for the device to write, otherwise all for it to read
 * Return: 0 or -EPROTO.
 */
int mint_vring_peek(const struct mint_vring *q, struct mint_gmem *m, uint16_t ahead, bool write,
                    struct mint_chain *c);

/* The next chain, which was peeked at, is done: `len` bytes of it were written. */
void mint_vring_used(struct mint_vring *q, uint16_t id, uint32_t len);
/* Show the driver what was used, and signal it if it wants that. Return: whether it was. */
bool mint_vring_publish(struct mint_vring *q);
/* Signal regardless: after set-up, when the driver may wait for what it had before. */
void mint_vring_signal(struct mint_vring *q);

/* Ask for a kick with the next chain; whoever asks then looks at mint_vring_ready() once more. */
void mint_vring_want_kick(struct mint_vring *q);
void mint_vring_no_kick(struct mint_vring *q);

/* Copy between a chain, from `skip` bytes on, and memory; both must have `len` bytes there. */
void mint_chain_read(const struct mint_chain *c, uint64_t skip, void *to, uint64_t len);
void mint_chain_write(const struct mint_chain *c, uint64_t skip, const void *from, uint64_t len);

#endif
