/* SPDX-License-Identifier: Apache-2.0 */
/*
 * guest.h - what the parts of mint-guest know of each other.
 *
 * One process, one thread, one poll(2): main.c. Each part adds what it waits for to a `struct
 * watch`, and is served after the poll. A part that waits for time names its deadline.
 */
#ifndef MINT_GUEST_H
#define MINT_GUEST_H

#include "wire.h"
#include <poll.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define GUEST_NEVER UINT64_MAX /* a deadline that does not come */

/* ------------------------------------------------------------------------------ waiting: main.c */

#define WATCH_MAX (8u + 5u * GUEST_SESSIONS)

/* What one poll(2) waits for; each part remembers the number of its entry. */
struct watch {
    struct pollfd fds[WATCH_MAX];
    unsigned n;
    uint64_t deadline; /* milliseconds, guest_now() */
};

/* Wait for events of a descriptor; neither counts as nothing to wait for. Return: its entry. */
int watch_fd(struct watch *w, int fd, short events);
/* What happened to an entry; 0 for -1. */
short watch_got(const struct watch *w, int entry);
void watch_until(struct watch *w, uint64_t deadline);

uint64_t guest_now(void); /* milliseconds, monotonic */
/* One line to the console and, if it is there, to the agent. */
void guest_say(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void guest_close(int *fd);

/* --------------------------------------------------------------------------- channel: channel.c */

#define CHANNEL_OUT (128u * 1024u)
#define CHANNEL_RESERVE (16u * 1024u) /* of it, for all but data */

struct channel {
    char where[96];    /* a device's path, or a virtio port's name */
    bool port;         /* it is the name of a virtio port */
    bool resync;       /* another may have spoken here before: pad */
    bool welcome;      /* the agent has answered */
    bool held;         /* there are frames in `in` that wait for room in `out` */
    int fd;            /* -1: not open */
    int entry;
    uint64_t retry_at; /* when to try to open it again */
    uint8_t nonce[GUEST_NONCE_BYTES];
    uint32_t window;   /* what the stream can take, 0: any number */
    uint32_t taken;    /* bytes read since HELLO */
    uint32_t told;     /* ... that the agent knows of */
    uint8_t in[GUEST_FRAME_HEAD + GUEST_FRAME_MAX];
    size_t in_len;
    uint8_t out[CHANNEL_OUT];
    size_t out_from, out_to;
};

extern struct channel guest_channel;

/* Use an open stream, or one to be opened and reopened: `port:NAME`, or a path. */
void channel_use(int fd);
void channel_name(const char *where);
void channel_watch(struct watch *w);
void channel_serve(const struct watch *w);
void channel_flush(void);
/* Whether a frame of data with so many bytes can be queued. */
bool channel_room(size_t bytes);
/* Queue a frame; false: there is no room, or nobody who listens. */
bool channel_send(enum guest_frame type, unsigned stream, unsigned session, const void *data,
                  size_t bytes);
/* Queue a frame whose payload is read from fd. Return: what read(2) did; errno is kept. */
ssize_t channel_relay(unsigned stream, unsigned session, int fd, size_t most);
/* Write out what is queued, for so long at most. */
void channel_drain(int milliseconds);

/* -------------------------------------------------------------------- sessions: session.c, run.c */

struct session {
    bool used;
    bool running;  /* its program was started */
    bool started;  /* ... and the agent told so */
    bool ended;    /* the program has ended, as `status` says */
    bool in_end;   /* there comes no more for stream 0 */
    bool fresh;    /* there is more for it than when it was last written to */
    uint8_t stopped; /* by this signal, which the agent was not told of */
    uint16_t id;
    uint16_t flags;
    pid_t pid;     /* the program; with a terminal, its warden */
    pid_t group;   /* the program's process group, 0: unknown yet */
    int status;    /* as from waitpid(2) */
    int in, out, err; /* our ends of its streams, -1: none, or no more */
    int pty;       /* the terminal's master, stream 3 */
    int report;    /* from the warden, -1: none */
    int in_entry, out_entry, err_entry, pty_entry, report_entry;
    uint32_t window; /* bytes that we may send */
    uint32_t owed;   /* bytes taken from stream 0 that the agent was not told of */
    uint8_t *buf;    /* the OPEN, until it runs; then what is to be written to stream 0 */
    size_t from, to;
};

/* What a program is to be run with; points into the session's OPEN. */
struct program {
    struct guest_open open;
    const char *cwd;
    char **args; /* ends with NULL, as env does; allocated in one with it */
    char **env;
};

void sessions_watch(struct watch *w);
void sessions_serve(const struct watch *w);
void sessions_frame(const struct guest_head *head, const uint8_t *data);
/* A child has ended. Return: whether it was a session's. */
bool sessions_child(pid_t pid, int status);
/* Nobody listens any more. */
void sessions_close_all(void);

/* Start a session's program. Return: 0 or -errno. */
int run_program(struct session *s, const struct program *p);
/* What the warden of a terminal reports, in records of this. */
struct report {
    uint32_t what; /* enum report_kind */
    int32_t value;
};
enum report_kind { REPORT_GROUP, REPORT_STOPPED, REPORT_ENDED };

/* In a child: default signals, an empty mask. */
void run_reset_signals(void);

/* ------------------------------------------------------------------------- accounts: accounts.c */

struct account {
    char name[64];
    unsigned uid, gid;
    char home[256];
    char shell[256];
};

/* Call for each account of /etc/passwd; false from `each` ends it. */
void accounts_each(bool (*each)(const struct account *, void *), void *data);
/* Root's own; the usual values if it has none. */
void accounts_root(struct account *root);
int accounts_write_shadow(void);
int accounts_hide_ssh(void);

/* ------------------------------------------------------------------------------ network: net.c */

void net_watch(struct watch *w);
void net_serve(const struct watch *w);
int net_loopback(void);
/* args: MAC, name, MTU, queue length, addresses with prefix lengths. */
int net_interface(char *const *args, unsigned n);
bool net_ready(void);

/* -------------------------------------------------------------------------------- sshd: sshd.c */

int sshd_start(char *const *args);
void sshd_watch(struct watch *w);
void sshd_serve(const struct watch *w);
bool sshd_child(pid_t pid, int status);
int sshd_log_fd(void); /* where its log goes; -1: there is none */
void ready_again(void); /* the agent is new: tell it */

/* ------------------------------------------------------------------------------ files: files.c */

extern int files_root; /* the initramfs, after switch-root, too */
int files_switch_root(const char *path);
int files_put(const char *source, const char *target, mode_t mode);
int files_link(const char *target, const char *path);
int files_write(const char *path, const char *text);
int files_mkdir(const char *path, mode_t mode);
int files_module(const char *path, const char *parameters);
int files_entropy(const char *hex);
int files_cover_closed(const char *path, const char *options);
int files_own(const char *path);

/* ---------------------------------------------------------------- script.c, power.c, console.c */

/* Do what a script says. Return: 0, or -1 after it was said what failed. */
int script_run(const char *path);

/* Go down, soon. */
void power_request(enum guest_bye how);
void power_watch(struct watch *w);
void power_serve(void);
void power_down(enum guest_bye how) __attribute__((noreturn));
/* reboot, poweroff, halt, shutdown: tell process 1. Return: exit status. */
int power_command(const char *name, int argc, char **argv);

#endif
