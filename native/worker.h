/* SPDX-License-Identifier: Apache-2.0 */
/* worker.h - what the files of the worker share; theory of operation in worker.c. */
#ifndef MINT_WORKER_H
#define MINT_WORKER_H

#include "control.h"
#include "hold.h"
#include "packed.h"
#include "port.h"

struct mint_worker;
struct mint_vhost;

/* struct mint_device - how the worker moves frames between the port and one kind of device. */
struct mint_device {
    /* Move a bounded batch from, or to, the node; return whether there was anything to do. */
    bool (*in)(struct mint_worker *w);
    bool (*out)(struct mint_worker *w);
    /* Nanoseconds until it needs attention without an event; negative: never. */
    int64_t (*timeout)(struct mint_worker *w);
};

/* struct mint_tap - a TAP device. */
struct mint_tap {
    int fd; /* -1: none */
    bool offload;
    bool watched;          /* its readability is waited for */
    uint32_t held_len;     /* bytes of the held frame, in staging or ... */
    struct mint_rec *held; /* ... if not NULL, in a record of the port's own */
    uint64_t down_until;   /* the device said that it is down: not to be read before */
    struct mint_plain *plain;
    struct {
        struct mint_vnet vnet;
        uint8_t frame[MINT_FRAME_MAX];
    } staging;
};

/* struct mint_kept - descriptors kept for the next supervisor. */
struct mint_kept {
    bool used;
    struct mint_peer_config peer;
    int fds[MINT_MSG_FDS];
};

struct mint_worker {
    struct mint_port *port; /* NULL until OPEN */
    struct mint_msg_open open;
    int open_fds[2];
    const struct mint_device *device; /* NULL: none yet */
    struct mint_hold hold;
    struct mint_tap tap;
    struct mint_vhost *vhost;
    struct mint_kept *peers; /* by index */
    int listen_fd;
    int control_fd; /* the supervisor's connection, or -1 */
    uint32_t owner_uid;
    bool stop;
};

/* Serve what the supervisor asks; waits for nothing. */
void mint_control_accept(struct mint_worker *w);
void mint_control_serve(struct mint_worker *w);
int mint_control_watch(struct mint_worker *w);

/* Serve a device from now on; the descriptor is the device's then. Return: 0 or a negative errno. */
int mint_tap_attach(struct mint_worker *w, int fd, bool offload);
int mint_vhost_attach(struct mint_worker *w, int fd);
/* The node's agent has something to say. */
void mint_vhost_serve(struct mint_worker *w);

/*
 * mint_sandbox() - become `uid`, without capabilities, new privileges, core dumps or any system
 * call that the data path does not need. There is no way back.
 * Return: 0 or a negative errno.
 */
int mint_sandbox(uint32_t uid, uint32_t gid);

/* One line to the log; no more of them than pace.h says, what is left out is counted. */
void mint_log(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

#endif
