/* SPDX-License-Identifier: Apache-2.0 */
/* worker.h - what the files of the worker share; theory of operation in worker.c. */
#ifndef MINT_WORKER_H
#define MINT_WORKER_H

#include "control.h"
#include "packed.h"
#include "port.h"

/* struct mint_tap - a TAP device, and the frame that waits for room in its channel. */
struct mint_tap {
    int fd; /* -1: none */
    bool offload;
    bool watched; /* its readability is waited for */
    bool held;    /* staging holds a frame of held_len bytes that waits for room */
    bool asked;   /* room was asked for, the re-check is done */
    uint32_t held_len;
    uint32_t held_peer;
    uint64_t held_since;
    uint64_t wait_budget; /* ns that frames may still wait while other receivers have traffic */
    uint64_t budget_at;
    uint64_t others_at;  /* when a frame last went to another receiver than the full one */
    uint64_t down_until; /* the device said that it is down: not to be read before */
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
    struct mint_tap tap;
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

/* Move frames; return whether there was anything to do. */
bool mint_tap_in(struct mint_worker *w);
bool mint_tap_out(struct mint_worker *w);
/* Nanoseconds until the TAP needs attention without an event; negative: never. */
int64_t mint_tap_timeout(struct mint_worker *w);
int mint_tap_attach(struct mint_worker *w, int fd, bool offload);

/*
 * mint_sandbox() - become `uid`, without capabilities, new privileges, core dumps or any system
 * call that the data path does not need. There is no way back.
 * Return: 0 or a negative errno.
 */
int mint_sandbox(uint32_t uid, uint32_t gid);

/* One line to the log; at most LOG_BURST a second, what is left out is counted. */
void mint_log(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

#endif
