/* SPDX-License-Identifier: Apache-2.0 */
/*
 * abi.h - what lies in shared memory: the contract between processes of different versions.
 *
 * docs/abi.md explains every byte of it; change both together and raise MINT_ABI_VERSION.
 * All fields are little-endian. There are offsets and indices here, never pointers.
 *
 *   control region of port p          one per port; written by p's worker alone,
 *   +----------------------------+    mapped read-only by all of p's peers
 *   | struct mint_ctl   (4096 B) |    identity, wake word, port counters
 *   +----------------------------+
 *   | struct mint_slot [0]       |    p's ends of its two channels with port 0:
 *   | struct mint_slot [1]       |    its head as producer, its tail as consumer,
 *   |  ...                       |    their states, generations and counters
 *   +----------------------------+
 *
 *   payload region of channel p->q    one per channel (layout per-channel); written by p alone,
 *   +----------------------------+    mapped read-only by q, unknown to everyone else
 *   | records, back to back      |    nothing but records: geometry comes from the supervisor
 *   +----------------------------+    and is checked against the descriptor's sealed size
 *
 *   pool region                       one per fabric (layout shared); see struct mint_pool
 *   stock region of port p            one per port (layout pooled); see pooled_abi.h
 *
 * A payload region is mapped twice, back to back, so that a record which runs over the end is
 * still contiguous for whoever reads or writes it: there is no wrap marker and no wasted tail.
 * head and tail are byte positions that only grow; a record lies at (position mod capacity).
 */
#ifndef MINT_ABI_H
#define MINT_ABI_H

#include "order.h"
#include <assert.h>
#include <stddef.h>
#include <stdint.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the ABI is little-endian and this build has no byte swapping"
#endif

#define MINT_ABI_VERSION 1u
#define MINT_CTL_MAGIC 0x314c54434e494dull  /* "MINCTL1" */
#define MINT_POOL_MAGIC 0x314c4f504e494dull /* "MINPOL1" */

#define MINT_PORTS_MAX 1024u /* ports a fabric can have; slot and pool tables are sized by it */
#define MINT_NAME_MAX 32u    /* a port's name with its terminating zero */
#define MINT_LINE 64u        /* records and fields of different writers lie this far apart */

/* Ethernet: 14 bytes at least; at most a 65,535-byte IP packet, its header and two VLAN tags,
 * rounded up so that the largest record is a whole number of lines. */
#define MINT_FRAME_MIN 14u
#define MINT_FRAME_MAX 65584u

/*
 * struct mint_vnet - virtio_net_hdr_v1 (VIRTIO 1.2, section 5.1.6), as TAP devices and virtqueues
 * use it; it travels with every frame, so that checksum and segmentation offload stay valid from
 * the sender's protocol stack to the receiver's.
 */
struct mint_vnet {
    uint8_t flags;    /* MINT_VNET_NEEDS_CSUM, MINT_VNET_DATA_VALID */
    uint8_t gso_type; /* MINT_GSO_*, possibly with MINT_GSO_ECN */
    uint16_t hdr_len; /* Ethernet + IP + transport header; a hint, never trusted */
    uint16_t gso_size;
    uint16_t csum_start;
    uint16_t csum_offset;
    uint16_t num_buffers; /* meaningful in a virtqueue only; 0 in a record */
};
_Static_assert(sizeof(struct mint_vnet) == 12, "virtio_net_hdr_v1 is 12 bytes");

#define MINT_VNET_NEEDS_CSUM 1u
#define MINT_VNET_DATA_VALID 2u
#define MINT_GSO_NONE 0u
#define MINT_GSO_TCPV4 1u
#define MINT_GSO_TCPV6 4u
#define MINT_GSO_UDP_L4 5u
#define MINT_GSO_ECN 0x80u

/*
 * struct mint_rec - one record: this header, then `len` bytes of Ethernet frame, then padding to
 * the next line. Header and frame are contiguous from `vnet` on, so that one readv() from a TAP
 * with a 12-byte vnet header fills a record, and one writev() empties it.
 *
 * The writer may change a record at any time. A reader loads `len` once, copies what it decides
 * upon, checks the copy and uses only the copy.
 */
struct mint_rec {
    mint_a32 len; /* bytes of frame, MINT_FRAME_MIN..MINT_FRAME_MAX */
    struct mint_vnet vnet;
    uint8_t frame[];
};
_Static_assert(sizeof(struct mint_rec) == 16, "record header");
_Static_assert(offsetof(struct mint_rec, vnet) == 4, "record vnet header");
_Static_assert(offsetof(struct mint_rec, frame) == 16, "record frame");

/* Bytes that a record with a frame of `len` bytes takes. */
#define MINT_REC_BYTES(len) \
    (((uint32_t)sizeof(struct mint_rec) + (uint32_t)(len) + (MINT_LINE - 1u)) & ~(MINT_LINE - 1u))
#define MINT_REC_MAX MINT_REC_BYTES(MINT_FRAME_MAX)
_Static_assert(MINT_REC_MAX == 65600u, "the largest record");

/* Bounds of a channel's capacity; it is also a multiple of the page size. */
#define MINT_CAP_MIN (2u * MINT_REC_MAX)
#define MINT_CAP_MAX (1u << 30)

/*
 * The state of one end of a channel, in the low 8 bits of its word; the upper 24 hold the
 * generation, which the consumer changes to demand that both ends start again: at the position
 * where it stopped reading, its tail.
 *
 *   from \ to    CLOSED  OPEN   RESET
 *   CLOSED         -      (1)    (2)
 *   OPEN          (3)      -     (4)
 *   RESET         (3)     (5)     -
 *
 *   (1) a producer opens, where it stopped and in the generation that it was in
 *   (2) a consumer opens: it demands a generation of its own, so that nothing old is believed
 *   (3) the port is told that the peer is gone
 *   (4) the other end broke a rule: a consumer raises the generation; a producer keeps its own
 *       and asks the consumer to raise it
 *   (5) a consumer sees that the producer has joined its generation; a producer joins it
 *
 * Prohibited: CLOSED -> OPEN by a consumer (it might believe positions of an earlier generation);
 * CLOSED -> RESET by a producer, and any generation of a producer's that the consumer did not set
 * (two sides that both demand would never meet).
 */
enum mint_end_state { MINT_END_CLOSED = 0, MINT_END_OPEN = 1, MINT_END_RESET = 2 };
#define MINT_END(gen, state) (((uint32_t)(gen) << 8) | (uint32_t)(state))
#define MINT_END_GEN(word) ((word) >> 8)
#define MINT_END_STATE(word) ((word) & 0xffu)

/* Counters of a channel's sending end; names in mint_tx_counter_name(). */
enum mint_tx_counter {
    MINT_TX_FRAMES,       /* frames published */
    MINT_TX_BYTES,        /* bytes of frame published */
    MINT_TX_RINGS,        /* doorbells rung towards the receiver */
    MINT_TX_DROP_FULL,    /* dropped: no room, and waiting was not allowed (a flooded frame) */
    MINT_TX_DROP_STALLED, /* dropped: the receiver has not drained for the stall time-out */
    MINT_TX_DROP_DOWN,    /* dropped: the receiver's end is closed or being reset */
    MINT_TX_STALLS,       /* times the channel became stalled */
    MINT_TX_DROP_RESET,   /* dropped: published, unread when the channel was reset */
    MINT_TX_WAITS,        /* times the sender waited for room */
    MINT_TX_RESETS,       /* times this end joined a new generation */
    MINT_TX_COUNTERS = 16
};

/* Counters of a channel's receiving end; names in mint_rx_counter_name(). */
enum mint_rx_counter {
    MINT_RX_FRAMES,       /* frames handed to the node */
    MINT_RX_BYTES,        /* their bytes */
    MINT_RX_RINGS,        /* doorbells rung towards a sender that waited for room */
    MINT_RX_DROP_SPOOF,   /* dropped: the source MAC is not the sender's */
    MINT_RX_DROP_VNET,    /* dropped: vnet header that makes no sense */
    MINT_RX_DROP_DEVICE,  /* dropped: the node's interface refused the frame */
    MINT_RX_RESETS,       /* times this end demanded a new generation */
    MINT_RX_SPURIOUS,     /* doorbells that rang without a record */
    MINT_RX_MASKED,       /* times the doorbell was masked for ringing without records */
    MINT_RX_DROP_TOO_BIG, /* dropped: longer than the receiver's MTU admits, and not segmentable */
    MINT_RX_SHUNNED, /* times the channel was not looked at for a while: too much was refused */
    MINT_RX_COUNTERS = 16
};

/* Counters of a port as a whole; names in mint_port_counter_name(). */
enum mint_port_counter {
    MINT_PORT_IN_FRAMES,    /* frames taken from the node */
    MINT_PORT_IN_DONE,      /* of these, frames that were published or counted as dropped */
    MINT_PORT_IN_BYTES,     /* their bytes */
    MINT_PORT_OUT_FRAMES,   /* frames given to the node (segments count one each) */
    MINT_PORT_OUT_BYTES,    /* their bytes */
    MINT_PORT_DROP_UNKNOWN, /* dropped: no port has the destination MAC */
    MINT_PORT_DROP_SHORT,   /* dropped: shorter than an Ethernet header */
    MINT_PORT_DROP_LONG,    /* dropped: longer than MINT_FRAME_MAX */
    MINT_PORT_DROP_SELF,    /* dropped: addressed to the port's own MAC */
    MINT_PORT_DROP_RESTART, /* dropped: in hand when the worker before this one died */
    MINT_PORT_DROP_NO_PEER, /* dropped: flooded while the fabric had no other port */
    MINT_PORT_FLOODED,      /* broadcast, multicast and unknown frames sent to several ports */
    MINT_PORT_SLEEPS,       /* times the worker went to sleep */
    MINT_PORT_WAKES_BELL,   /* times a doorbell ended a sleep */
    MINT_PORT_WAKES_DEVICE, /* times the node's device ended a sleep */
    MINT_PORT_WAKES_TIMER,  /* times a time-out ended a sleep */
    MINT_PORT_POLL_NS,      /* time spent polling without finding work */
    MINT_PORT_POLL_HITS,    /* polls that found work before they gave up */
    MINT_PORT_LOCKS,        /* layout shared: times the lock was taken */
    MINT_PORT_LOCK_WAITS,   /* layout shared: times it was not free at once */
    MINT_PORT_LOCK_WAIT_NS, /* layout shared: time spent waiting for it */
    MINT_PORT_LOCK_STEALS,  /* layout shared: times it was taken from a dead holder */
    MINT_PORT_SEGMENTED,    /* frames segmented in software for a node without the offload */
    MINT_PORT_CHECKSUMMED,  /* checksums completed in software for a node without the offload */
    MINT_PORT_LEARNED,      /* MACs learned behind bridge ports */
    MINT_PORT_RESTARTS,     /* workers that took this port over from a dead one */
    MINT_PORT_DROP_DEVICE,  /* dropped: the node's interface refused a plain frame */
    MINT_PORT_DROP_BAD,     /* dropped: from the node, with offloads that make no sense */
    MINT_PORT_CALLS,        /* interrupts sent to a guest */
    MINT_PORT_RING_EMPTY,   /* times a guest's receive queue had no buffer for a frame */
    MINT_PORT_RING_ERRORS,  /* a guest's queues that were disabled because it broke a rule */
    MINT_PORT_RING_SETTLED, /* of MINT_PORT_RING_EMPTY, frames that were given or dropped since */
    MINT_PORT_RECLAIMS,     /* times the memory of an idle channel, or pool, was given back */
    MINT_PORT_SEG_SETTLED,  /* of MINT_PORT_SEGMENTED, frames of which nothing is left to give */
    MINT_PORT_COUNTERS = 64
};

/*
 * struct mint_slot - port p's ends of its channels p->q (tx) and q->p (rx), as slot q of p's
 * control region. Each line has one purpose: the lines of head and tail bounce between two cores
 * with every batch, the line of states is read with every batch and hardly ever written.
 */
struct mint_slot {
    /* line 0, read by q: the sending end */
    mint_a64 head; /* end of what is published, in bytes; only grows within a generation */
    uint8_t pad0[56];
    /* line 1, read by q: the receiving end */
    mint_a64 tail; /* end of what is released, in bytes; only grows */
    uint8_t pad1[56];
    /* line 2, read by q: states */
    mint_a32 tx_end;     /* MINT_END() */
    mint_a32 rx_end;     /* MINT_END() */
    mint_a32 tx_want;    /* odd: p waits for room in p->q; q rings once for each odd value */
    mint_a32 tx_stalled; /* 1: p drops frames for q, which does not drain; it informs only */
    uint8_t pad2[48];
    /* lines 3..6, read by whoever observes */
    mint_a64 tx_counter[MINT_TX_COUNTERS];
    mint_a64 rx_counter[MINT_RX_COUNTERS];
};
_Static_assert(sizeof(struct mint_slot) == 448, "slot size");
_Static_assert(offsetof(struct mint_slot, head) == 0, "slot head");
_Static_assert(offsetof(struct mint_slot, tail) == 64, "slot tail");
_Static_assert(offsetof(struct mint_slot, tx_end) == 128, "slot tx_end");
_Static_assert(offsetof(struct mint_slot, rx_end) == 132, "slot rx_end");
_Static_assert(offsetof(struct mint_slot, tx_want) == 136, "slot tx_want");
_Static_assert(offsetof(struct mint_slot, tx_stalled) == 140, "slot tx_stalled");
_Static_assert(offsetof(struct mint_slot, tx_counter) == 192, "slot tx counters");
_Static_assert(offsetof(struct mint_slot, rx_counter) == 320, "slot rx counters");

/*
 * struct mint_ctl - the first 4096 bytes of a control region. `magic` is stored last (release), so
 * that a peer which sees it sees the rest.
 */
struct mint_ctl {
    mint_a64 magic;
    uint32_t version;
    uint32_t port;  /* this port's index */
    uint32_t slots; /* slots that follow */
    uint32_t layout;
    uint8_t mac[6];
    uint8_t reserved0[2];
    char name[MINT_NAME_MAX];
    mint_a32 pid;        /* of the process that serves the port now; 0: none. It informs only */
    mint_a32 generation; /* raised by each process that takes the port over */
    uint8_t pad0[120];
    /* line 3, read by every sender after it published */
    mint_a32 wake; /* odd: asleep. Senders ring once for each odd value */
    uint8_t pad1[60];
    mint_a64 counter[MINT_PORT_COUNTERS];
    uint8_t pad2[4096 - 256 - 8 * MINT_PORT_COUNTERS];
};
_Static_assert(sizeof(struct mint_ctl) == 4096, "control header size");
_Static_assert(offsetof(struct mint_ctl, mac) == 24, "control mac");
_Static_assert(offsetof(struct mint_ctl, name) == 32, "control name");
_Static_assert(offsetof(struct mint_ctl, pid) == 64, "control pid");
_Static_assert(offsetof(struct mint_ctl, wake) == 192, "control wake word");
_Static_assert(offsetof(struct mint_ctl, counter) == 256, "control counters");

#define MINT_CTL_BYTES(slots) (sizeof(struct mint_ctl) + (size_t)(slots) * sizeof(struct mint_slot))

/* How frames are laid out in shared memory. */
enum mint_layout { MINT_LAYOUT_PER_CHANNEL = 0, MINT_LAYOUT_SHARED = 1, MINT_LAYOUT_POOLED = 2 };

#endif
