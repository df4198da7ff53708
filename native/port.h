/* SPDX-License-Identifier: Apache-2.0 */
/*
 * port.h - one Linux's port on the fabric: its ends of all its channels, the table of MACs, the
 * doorbells and the counters. The worker, the Python API and the benchmarks all use this and
 * nothing below it; it hides the layout. Theory of operation in port.c.
 *
 * A port is private to one process and used by one thread at a time.
 */
#ifndef MINT_PORT_H
#define MINT_PORT_H

#include "abi.h"
#include <stdbool.h>

struct mint_port;

/* struct mint_port_config - what the supervisor decides about a port. */
struct mint_port_config {
    uint32_t index;     /* this port, 0 .. slots - 1 */
    uint32_t slots;     /* ports that the fabric has room for */
    uint32_t layout;    /* enum mint_layout */
    uint32_t flags;     /* MINT_PORT_BRIDGE ... */
    uint32_t poll_us;   /* longest spin before sleeping (it adapts); 0: sleep at once */
    uint32_t stall_us;  /* longest wait for room before a channel counts as stalled */
    uint32_t frame_max; /* longest frame this port takes from the fabric (MTU + 14 + 8) */
    uint8_t mac[6];
    uint16_t idle_ds; /* tenths of a second after which an idle channel's memory is given back;
                         0: never */
    char name[MINT_NAME_MAX];
};
#define MINT_PORT_BRIDGE 1u /* further MACs live behind this port */

/*
 * mint_port_open() - serve a port.
 * @ctl_fd:  its control region, writable, MINT_CTL_BYTES(slots) bytes, sealed; all zero when the
 *           port is new, as the predecessor left it when a worker takes over
 * @pool_fd: layout shared: the pool region, writable; layout pooled: the port's own stock region,
 *           writable, MINT_STOCK_BYTES(slots, capacity) bytes, sealed; otherwise -1
 * Both descriptors are only mapped; the caller keeps and closes them.
 * Return: 0, or a negative errno: -EPROTO when a region is not what it should be, -EBUSY when a
 * living process serves this port of a pool.
 */
int mint_port_open(struct mint_port **out, const struct mint_port_config *config, int ctl_fd,
                   int pool_fd);
void mint_port_close(struct mint_port *port);
/* In a forked child: let go of the parent's port. Nothing shared is touched. */
void mint_port_disown(struct mint_port *port);

/* struct mint_peer_config - one other port, and this port's ends of the two channels with it. */
struct mint_peer_config {
    uint32_t index;
    uint32_t flags;    /* MINT_PORT_BRIDGE: learn MACs from it; its source MACs are not checked */
    uint32_t capacity; /* bytes of each of the two payload regions; in layout pooled of the peer's
                          buffers; 0 in layout shared */
    uint8_t mac[6];
    uint8_t reserved[2];
    int32_t ctl_fd;  /* the peer's control region, read-only */
    int32_t tx_fd;   /* payload region towards the peer, writable; -1 in the other layouts */
    int32_t rx_fd;   /* payload region from the peer, or (layout pooled) its stock region,
                        read-only; -1 in layout shared */
    int32_t bell_fd; /* this port's end of the socket pair that is the doorbell of both */
};

/*
 * mint_port_add_peer() - open both ends towards a peer. Descriptors stay the caller's: the regions
 * are mapped, the doorbell must stay open until mint_port_drop_peer().
 * Return: 0, or -EINVAL, -EEXIST, -EPROTO, -ENOMEM or what mmap() and epoll_ctl() say.
 */
int mint_port_add_peer(struct mint_port *port, const struct mint_peer_config *c);
/* The peer is gone for good: close both ends; what it has not read counts as dropped. */
int mint_port_drop_peer(struct mint_port *port, uint32_t index);

/* Close the ends towards all peers, for they stay: what was sent still arrives. Only
 * mint_port_close() may follow. */
void mint_port_leave(struct mint_port *port);

/* Look-up results besides a peer's index. */
#define MINT_DST_FLOOD (-1)   /* to every peer */
#define MINT_DST_UNKNOWN (-2) /* to bridge peers, or dropped */
#define MINT_DST_SELF (-3)
int mint_port_lookup(struct mint_port *port, const uint8_t *mac);

/* What became of a frame that was to be sent. */
enum mint_sent {
    MINT_SENT,    /* staged (or flooded); visible after mint_port_flush() */
    MINT_DROPPED, /* dropped and counted */
    MINT_FULL     /* no room now; nothing was counted: wait, or give up with mint_port_give_up() */
};

/*
 * mint_port_send() - copy one frame into the channel or channels that it belongs to.
 * @vnet:  its vnet header, or NULL for none
 * @frame: Ethernet frame, without FCS, in memory that nobody else writes
 * @peer:  where to store the channel when the answer is MINT_FULL; may be NULL
 */
enum mint_sent mint_port_send(struct mint_port *port, const struct mint_vnet *vnet,
                              const uint8_t *frame, uint32_t len, uint32_t *peer);

/*
 * mint_port_reserve() / mint_port_commit() - the same in place: read a frame straight into the
 * channel of a known peer. Used where only one receiver is possible. Commit or cancel before the
 * next flush or wait.
 */
struct mint_rec *mint_port_reserve(struct mint_port *port, uint32_t peer, uint32_t len);
void mint_port_commit(struct mint_port *port, uint32_t peer, struct mint_rec *rec, uint32_t len);
/* Give a reserved record back unsent. */
void mint_port_cancel(struct mint_port *port, uint32_t peer, struct mint_rec *rec);

/*
 * mint_port_reserve_any() - the same where the layout lets a frame lie where it is, whoever is to
 * get it: read it first, look it up then. One at a time.
 * Return: NULL: the layout offers no such thing, or there is no room now.
 * mint_port_send_reserved() - send it, now holding `len` bytes of frame, to whom its destination
 * says, or to all, without a copy. As mint_port_send(); after MINT_FULL the record is still the
 * caller's, to be sent again or given back by mint_port_cancel() (with any peer).
 */
struct mint_rec *mint_port_reserve_any(struct mint_port *port, uint32_t len);
enum mint_sent mint_port_send_reserved(struct mint_port *port, struct mint_rec *rec, uint32_t len,
                                       uint32_t *peer);

/* After mint_port_reserve() gave nothing: count a drop, or MINT_FULL: wait for room. */
enum mint_sent mint_port_refuse(struct mint_port *port, uint32_t peer);
/* Count a frame that was taken from the node and is none that can be sent, as `why`. */
void mint_port_bad(struct mint_port *port, enum mint_port_counter why);
/* Count what happened to the node's device. */
void mint_port_count(struct mint_port *port, enum mint_port_counter what);

/* Count a frame that was taken from the node, before it is sent: what is taken and not settled (sent
 * or dropped) when the process dies is counted by its successor. */
void mint_port_took(struct mint_port *port, uint32_t len);

/* Publish all that is staged and ring the doorbells of those who sleep. */
void mint_port_flush(struct mint_port *port);

/*
 * mint_port_wait_room() - called after MINT_FULL: note that the sender waits for `peer`, and ask it
 * to ring when it gives room. It rings once for each time it is asked.
 * Return: nanoseconds left until the channel counts as stalled; 1 when the peer was asked just now,
 * at first or again: try to send once more before sleeping, that is the re-check; 0: the channel is
 * stalled now, and sending again will drop.
 */
uint64_t mint_port_wait_room(struct mint_port *port, uint32_t index);
/* The same for callers with a time limit of their own, whose frames are not dropped for a stall.
 * Return: whether the peer was asked just now: try to send once more before sleeping. */
bool mint_port_ask_room(struct mint_port *port, uint32_t peer);
/* Do not wait for now. How long the peer has given no room still counts. */
void mint_port_stop_waiting(struct mint_port *port, uint32_t index);
/* For how long a receiver may give no room before its channel counts as stalled. */
uint64_t mint_port_stall_ns(const struct mint_port *port);

/* After MINT_FULL, before mint_port_wait_room(): spin for poll_us at most. Return: whether the
 * receiver gave room. For callers that have nothing else to do meanwhile. */
bool mint_port_spin_room(struct mint_port *port, uint32_t index);

/* Do not wait (any longer) for the room that MINT_FULL asked for: count a drop. */
void mint_port_give_up(struct mint_port *port, uint32_t index);

/* The only peer's index when there is just one, else -1: then a frame can be read in place. */
int mint_port_sole_peer(const struct mint_port *port);
/* Whether unknown MACs may live behind a peer. */
bool mint_port_is_bridge(const struct mint_port *port, uint32_t peer);
/* Count a frame that was read in place and has no receiver: `dst` from mint_port_lookup(). */
void mint_port_drop(struct mint_port *port, int dst);

/* struct mint_view - a received frame, still in shared memory. */
struct mint_view {
    uint32_t src;          /* sender's index */
    uint32_t len;          /* bytes of frame, checked */
    uint32_t generation;   /* of the channel */
    struct mint_vnet vnet; /* private copy, checked; directly followed by head */
    uint8_t head[14];      /* private copy of the Ethernet header, checked */
    const uint8_t *frame;  /* shared: may change under the reader; use head for the first 14 */
    const struct mint_rec *rec;
};
_Static_assert(offsetof(struct mint_view, head) == offsetof(struct mint_view, vnet) + 12,
               "vnet header and Ethernet header are written to a TAP as one piece");

/*
 * mint_port_recv() - the next frame for this port, checked: source MAC, vnet header, length.
 * Frames that fail are dropped and counted. Give each back with mint_port_release() before the
 * next call of mint_port_recv(). Return: whether there is one.
 */
bool mint_port_recv(struct mint_port *port, struct mint_view *view);
void mint_port_release(struct mint_port *port, const struct mint_view *view);
/* Count a frame that was not handed over after all, as `why`; before mint_port_release(). */
void mint_port_refused(struct mint_port *port, const struct mint_view *view,
                       enum mint_rx_counter why);
/* Count a plain frame (packed.h) that the node's device refused. */
void mint_port_refused_plain(struct mint_port *port);
/* Count frames that the node's device took. */
void mint_port_gave(struct mint_port *port, uint32_t frames, uint64_t bytes);
/* Return the room of released frames to their senders, and wake those who wait for it. */
void mint_port_recycle(struct mint_port *port);

/* What ended a wait; bits. */
#define MINT_EV_BELL 1u
#define MINT_EV_DEVICE 2u
#define MINT_EV_CONTROL 4u
#define MINT_EV_TIMER 8u
#define MINT_EV_LINK 16u

/* Have mint_port_wait() also watch a descriptor (EPOLLIN, level-triggered). */
int mint_port_watch(struct mint_port *port, int fd, uint32_t event);
/* The same, for a descriptor that is never read: each time it is written to is one event. */
int mint_port_watch_edge(struct mint_port *port, int fd, uint32_t event);
int mint_port_unwatch(struct mint_port *port, int fd);

/*
 * struct mint_waiter - a device whose work is announced in memory, not by a descriptor alone.
 * Around a sleep it is asked to announce it by a descriptor too (arm), looked at once more
 * (pending), and told that this is no longer needed (disarm). While the port spins, it is looked
 * at as often as the channels are.
 */
struct mint_waiter {
    void (*arm)(void *context);
    bool (*pending)(void *context);
    void (*disarm)(void *context);
    void *context;
};
/* There is such a device now; NULL: no longer. It must stay until then. */
void mint_port_set_waiter(struct mint_port *port, const struct mint_waiter *waiter);

/* The device takes no frames now: frames that wait or arrive are no reason to wake up. */
void mint_port_block(struct mint_port *port, bool blocked);

/*
 * mint_port_wait() - sleep until a frame or room arrives, a watched descriptor is readable, or
 * `timeout_ns` has passed (negative: no time-out). Spins first, for up to poll_us, where that has
 * paid lately.
 * Return: MINT_EV_* bits (MINT_EV_TIMER alone after the time-out), or -EINTR.
 */
int mint_port_wait(struct mint_port *port, int64_t timeout_ns);

/* While spinning, let others have the core: for a worker on the core of its node. */
void mint_port_share_core(struct mint_port *port);

/*
 * mint_port_wait_peer() - sleep until `peer` gives room or `timeout_ns` has passed, whatever frames
 * arrive meanwhile.
 * Return: 0; -EINTR after a signal, or while the first descriptor that is watched as
 * MINT_EV_CONTROL is readable.
 */
int mint_port_wait_peer(struct mint_port *port, uint32_t index, uint64_t timeout_ns);

/*
 * For callers with an event loop of their own: a descriptor that is readable when mint_port_wait()
 * would return, provided that the port was armed and nothing was pending after that.
 */
int mint_port_fd(const struct mint_port *port);
void mint_port_arm(struct mint_port *port);
void mint_port_disarm(struct mint_port *port);

#endif
