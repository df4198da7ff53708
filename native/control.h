/* SPDX-License-Identifier: Apache-2.0 */
/*
 * control.h - what the supervisor and a worker say to each other, over a SOCK_SEQPACKET socket in
 * the file system that only the lab's owner can reach. One struct mint_msg a packet, descriptors
 * beside it by SCM_RIGHTS; the worker answers each with the same type and `seq`, and a status.
 *
 *   OPEN       port, uid, gid; fds: control region [, pool or (layout pooled) its stock region].
 *              First, once. Then the worker drops its privileges for good
 *   TAP        tap; fds: the TAP device, with which frames begin to move
 *   VHOST      fds: a SOCK_SEQPACKET socket to the node's agent, which says by the messages of vhost.h
 *              where the guest's queues are; with it frames begin to move
 *   ADD_PEER   peer; fds: the peer's control region, tx region, rx region, doorbell
 *              (layout shared: control region, doorbell; layout pooled: control region, stock region,
 *              doorbell)
 *   DROP_PEER  peer.index
 *   GIVE       what a new supervisor asks: answered by a copy of OPEN, TAP and every ADD_PEER with
 *              its descriptors, then by GIVE itself
 *   STOP       answered, then the worker ends
 */
#ifndef MINT_CONTROL_H
#define MINT_CONTROL_H

#include "port.h"

#define MINT_MSG_MAGIC 0x4d494e54u
#define MINT_MSG_FDS 4

enum mint_msg_type {
    MINT_MSG_OPEN = 1,
    MINT_MSG_TAP = 2,
    MINT_MSG_ADD_PEER = 3,
    MINT_MSG_DROP_PEER = 4,
    MINT_MSG_GIVE = 5,
    MINT_MSG_STOP = 6,
    MINT_MSG_VHOST = 7
};

struct mint_msg_open {
    struct mint_port_config port;
    uint32_t uid; /* who to become; the worker's own: stay */
    uint32_t gid;
};

struct mint_msg_tap {
    uint32_t offload; /* 0: the device takes plain frames only */
};

struct mint_msg {
    uint32_t magic;
    uint32_t version; /* MINT_ABI_VERSION */
    uint32_t type;
    uint32_t seq;
    int32_t status; /* in answers: 0 or a negative errno */
    uint32_t reserved;
    union {
        struct mint_msg_open open;
        struct mint_msg_tap tap;
        struct mint_peer_config peer; /* its descriptors are those that come along */
        uint8_t bytes[104];
    } u;
};
_Static_assert(sizeof(struct mint_msg) == 128, "control message size");

#endif
