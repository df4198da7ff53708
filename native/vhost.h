/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vhost.h - a guest's virtio-net device, served straight from the guest's memory: what the worker
 * keeps of it, and what the node's agent says about it. Theory of operation in vhost.c.
 *
 * The agent speaks vhost-user with the guest (mint_vni.ports.vhost_user) and tells the worker, over
 * a SOCK_SEQPACKET socket, what it needs to move frames: one struct mint_vmsg a packet, descriptors
 * beside it by SCM_RIGHTS. The worker answers each with the same type and seq, and a status. It
 * can't tell the agent from the guest behind it, so it believes neither.
 *
 *   FEATURES  the features that guest and agent agreed upon; before the rings
 *   CLEAR     forget the guest's memory; its rings stop
 *   MEMORY    one more region; fd: its file
 *   RING      set a queue up; fds: [kick] [call], as the flags say. It replaces what was there
 *   ENABLE    let it run, or pause it
 *   CALL      another call descriptor for it; fd: [call]
 *   STOP      take it down; the answer's status is where it stopped, 0 .. 65535
 *   START     all that there was to say after a (new) worker came has been said
 */
#ifndef MINT_VHOST_H
#define MINT_VHOST_H

#include "packed.h"
#include "vring.h"

#define MINT_VMSG_MAGIC 0x53484f56u
#define MINT_VMSG_FDS 2

enum mint_vmsg_type {
    MINT_VMSG_FEATURES = 1,
    MINT_VMSG_CLEAR = 2,
    MINT_VMSG_MEMORY = 3,
    MINT_VMSG_RING = 4,
    MINT_VMSG_ENABLE = 5,
    MINT_VMSG_CALL = 6,
    MINT_VMSG_STOP = 7,
    MINT_VMSG_START = 8
};

#define MINT_VRING_KICK 1u    /* a kick descriptor comes along */
#define MINT_VRING_CALL 2u    /* a call descriptor comes along, the last */
#define MINT_VRING_ENABLED 4u /* it may run */

struct mint_vmsg {
    uint32_t magic;
    uint32_t type;
    uint32_t seq;
    int32_t status; /* in answers: 0 or more, or a negative errno */
    union {
        uint64_t features;
        struct {
            uint64_t gpa, uva, size, offset;
        } memory;
        struct {
            uint32_t index; /* 0: to the guest, 1: from it */
            uint32_t size;
            uint32_t flags;
            uint32_t reserved;
            uint64_t desc, avail, used; /* the front end's addresses */
        } ring;
        uint8_t bytes[48];
    } u;
};
_Static_assert(sizeof(struct mint_vmsg) == 64, "link message size");

/* VIRTIO 1.2, sections 5.1.3 and 6: numbers of feature bits. */
#define MINT_VF(bit) (1ull << (bit))
#define MINT_VF_CSUM MINT_VF(0)
#define MINT_VF_GUEST_CSUM MINT_VF(1)
#define MINT_VF_GUEST_TSO4 MINT_VF(7)
#define MINT_VF_GUEST_TSO6 MINT_VF(8)
#define MINT_VF_GUEST_ECN MINT_VF(9)
#define MINT_VF_HOST_TSO4 MINT_VF(11)
#define MINT_VF_HOST_TSO6 MINT_VF(12)
#define MINT_VF_HOST_ECN MINT_VF(13)
#define MINT_VF_MRG_RXBUF MINT_VF(15)
#define MINT_VF_INDIRECT_DESC MINT_VF(28)
#define MINT_VF_EVENT_IDX MINT_VF(29)
#define MINT_VF_VERSION_1 MINT_VF(32)

enum mint_vqueue { MINT_VQ_RX = 0, MINT_VQ_TX = 1, MINT_VQ_COUNT = 2 }; /* as the guest sees them */

#define MINT_VHOST_MERGE_MAX 64u /* buffers that one frame may be spread over */

struct mint_vhost {
    struct mint_port *port;
    struct mint_hold *hold;
    int link; /* the agent; -1: gone */
    bool started;
    uint64_t features;
    uint32_t header; /* bytes of virtio_net_hdr before each frame */
    struct mint_gmem memory;
    struct mint_vring ring[MINT_VQ_COUNT];
    struct mint_waiter waiter;

    struct mint_chain first, more;
    struct {
        struct mint_vnet vnet;
        uint8_t frame[MINT_FRAME_MAX];
    } staging; /* of a frame from the guest for several receivers */

    struct mint_plain *plain;
    uint32_t out_len; /* bytes of the frame in `out`, which waits for buffers; 0: none */
    uint64_t out_since;
    uint64_t patience_ns; /* how long it may */
    bool out_stalled;     /* it waited in vain; frames are dropped until there is a buffer */
    struct mint_vnet out_vnet;
    uint8_t out[MINT_FRAME_MAX];
};

/* Move frames: the device's functions of worker.h. */
bool mint_vhost_in(struct mint_vhost *v);
bool mint_vhost_out(struct mint_vhost *v);
int64_t mint_vhost_timeout(struct mint_vhost *v);
extern const struct mint_waiter mint_vhost_waiter;

/* Disable a queue whose guest broke a rule. */
void mint_vhost_broke(struct mint_vhost *v, enum mint_vqueue which, const char *how);

#endif
