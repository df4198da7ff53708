/* SPDX-License-Identifier: Apache-2.0 */
/*
 * guest.h - what the parts of mint-guest know of each other.
 *
 * One process, one thread, one poll(2): main.c. Each part has its piece of `struct guest`, adds what
 * it waits for to a `struct watch`, and is served after the poll. Times are milliseconds, as
 * guest_now() has them.
 */
#ifndef MINT_GUEST_H
#define MINT_GUEST_H

#include "wire.h"
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <termios.h>

#define GUEST_NEVER UINT64_MAX /* a deadline that does not come */

struct guest;

/* ------------------------------------------------------------------------------ waiting: main.c */

#define WATCH_MAX (8u + 5u * GUEST_SESSIONS)

/* What one poll(2) waits for; each part remembers the number of its entry. */
struct watch {
    struct pollfd fds[WATCH_MAX];
    unsigned n;
    uint64_t deadline;
};

/* Wait for events of a descriptor; without either there is nothing to wait for. Return: its entry,
 * or -1. */
int watch_fd(struct watch *w, int fd, short events);
/* What happened to an entry; nothing to -1. */
short watch_got(const struct watch *w, int entry);
void watch_until(struct watch *w, uint64_t deadline);

uint64_t guest_now(void);
/* One line to the console and, if it listens, to the agent. */
void guest_say(struct guest *g, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void guest_close(int *fd);

/* --------------------------------------------------------------------------- channel: channel.c */

#define CHANNEL_OUT 131072u
#define CHANNEL_RESERVE 16384u /* of it, for all but data */

struct channel {
    char where[96]; /* a device's path, or a virtio port's name; empty: it was given as it is */
    bool port;      /* it is the name of a virtio port */
    bool resync;    /* another may have spoken here before: pad */
    bool welcome;   /* the agent has answered */
    bool held;      /* there are frames in `in` that wait for room in `out` */
    int fd;         /* -1: not open */
    int entry;
    uint64_t retry_at; /* when to try to open it again */
    uint8_t nonce[GUEST_NONCE_BYTES];
    uint32_t window; /* what the stream can take, 0: any number */
    uint32_t taken;  /* bytes read since HELLO */
    uint32_t told;   /* ... that the agent knows of */
    uint8_t in[GUEST_FRAME_HEAD + GUEST_FRAME_MAX];
    size_t in_len;
    uint8_t out[CHANNEL_OUT];
    size_t out_from, out_to;
};

/* Use an open stream, or one to be opened and reopened: `port:NAME`, or a path. */
void channel_use(struct guest *g, int fd);
void channel_name(struct guest *g, const char *where);
void channel_watch(struct guest *g, struct watch *w);
void channel_serve(struct guest *g, const struct watch *w);
/* Write out what the stream takes. */
void channel_flush(struct guest *g);
/* Write out all that is queued, for so long at most. */
void channel_drain(struct guest *g, int milliseconds);
/* Whether a frame of data with so many bytes can be queued. */
bool channel_room(struct guest *g, size_t bytes);
/* Queue a frame; false: there is no room, or nobody who listens. */
bool channel_send(struct guest *g, enum guest_frame type, unsigned stream, unsigned session,
                  const void *data, size_t bytes);
/* Queue a frame whose payload is read from fd. Return: what read(2) did; errno is kept. */
ssize_t channel_relay(struct guest *g, unsigned stream, unsigned session, int fd, size_t most);

/* -------------------------------------------------------------------- sessions: session.c, run.c */

struct session {
    bool used;
    bool running; /* its program was started */
    bool started; /* ... and the agent told so */
    bool ended;   /* the program has ended, as `status` says */
    bool in_end;  /* there comes no more for stream 0 */
    bool fresh;   /* there is more for it than when it was last written to */
    uint64_t
        until; /* nobody waits for it any more: how long it may still speak; 0: somebody does */
    uint8_t stopped; /* by this signal, which the agent was not told of */
    uint16_t id;
    uint16_t flags;
    pid_t pid;        /* the program; with a terminal, its warden */
    pid_t group;      /* with a terminal: the program's process group, 0: unknown yet */
    int status;       /* as from waitpid(2) */
    int in, out, err; /* our ends of its streams, -1: none, or no more */
    int pty;          /* the terminal's master, stream 3 */
    int report;       /* from the warden, -1: none */
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

void sessions_watch(struct guest *g, struct watch *w);
void sessions_serve(struct guest *g, const struct watch *w);
void sessions_frame(struct guest *g, const struct guest_head *head, const uint8_t *data);
/* A child has ended. Return: whether it was a session's. */
bool sessions_child(struct guest *g, pid_t pid, int status);
bool sessions_over(const struct guest *g);
/* Nobody listens any more. */
void sessions_close_all(struct guest *g);

/* Start a session's program. Return: 0 or -errno. */
int run_program(const struct guest *g, struct session *s, const struct program *p);
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

#define NET_ADDRESSES 4u
#define NET_MAC_BYTES 6u

struct net {
    bool wanted; /* there is, or will be, an interface */
    bool ready;  /* it is set up */
    bool said;   /* ... that it is late */
    uint8_t mac[NET_MAC_BYTES];
    char name[IF_NAMESIZE];
    uint32_t mtu, queue;
    char addresses[NET_ADDRESSES][INET6_ADDRSTRLEN + 8];
    unsigned addresses_n;
    int index;      /* of the link that was set up, 0: none */
    uint64_t since; /* when it was first wanted */
    int events;     /* socket with news of links */
    int entry;
};

int net_loopback(void);
/* args: MAC, name, MTU, queue length, addresses with prefix lengths. */
int net_interface(struct net *net, char *const *args, unsigned n);
void net_watch(struct net *net, struct watch *w);
void net_serve(struct guest *g, const struct watch *w);
bool net_ready(const struct net *net);

/* -------------------------------------------------------------------------------- sshd: sshd.c */

struct sshd {
    pid_t pid;      /* 0: it is not ours, or has ended */
    bool wanted;    /* there is one, or will be */
    bool answers;   /* its banner was seen */
    bool told;      /* READY was sent */
    int log;        /* what it and `sshd -i` say */
    int log_in;     /* the other end, for those that are still to be started */
    int asking;     /* connection on which the banner is awaited */
    uint64_t at;    /* when to ask, or to give up asking */
    uint64_t pause; /* between two looks for the banner */
    int log_entry, asking_entry;
};

int sshd_start(struct sshd *sshd, char *const *args);
/* Somebody else starts it. */
void sshd_await(struct sshd *sshd);
void sshd_watch(struct sshd *sshd, struct watch *w);
void sshd_serve(struct guest *g, const struct watch *w);
/* A child has ended. Return: whether it was sshd. */
bool sshd_child(struct guest *g, pid_t pid, int status);
/* The agent is new: tell it. */
void ready_again(struct guest *g);

/* -------------------------------------------------------------------------- console: console.c */

struct console {
    char path[80];
    int fd; /* open while nobody has a shell there */
    int entry;
    pid_t shell;
    struct termios usual;
};

int console_open(struct console *console);
void console_watch(struct console *console, struct watch *w);
void console_serve(struct console *console, const struct watch *w);
/* A child has ended. Return: whether it was the shell on the console. */
bool console_child(struct console *console, pid_t pid);

/* ------------------------------------------------------------------------------ files: files.c */

/* root: of sources; the initramfs, after switch-root, too. */
int files_switch_root(int *root, const char *path);
int files_put(int root, const char *source, const char *target, mode_t mode);
int files_module(int root, const char *path, const char *parameters);
int files_unload(const char *module);
int files_link(const char *target, const char *path);
int files_write(const char *path, const char *text);
int files_mkdir(const char *path, mode_t mode);
int files_entropy(const char *hex);
int files_cover_closed(const char *path, const char *options);
int files_own(const char *path);

/* ------------------------------------------------------------------------------- trim.c */

struct trim {
    unsigned long limit; /* of inodes; 0: none */
    uint64_t at;         /* when to look again */
};

void trim_start(struct trim *trim, const char *limit);
void trim_watch(const struct trim *trim, struct watch *w);
void trim_serve(struct trim *trim);

/* --------------------------------------------------------------------------- script.c, power.c */

/* Do what a script says. Return: 0, or -1 after it was said what failed. */
int script_run(struct guest *g, const char *path);

/* Go down, soon. */
void power_request(struct guest *g, enum guest_bye how);
void power_watch(const struct guest *g, struct watch *w);
void power_serve(struct guest *g);
void power_down(struct guest *g, enum guest_bye how) __attribute__((noreturn));
/* reboot, poweroff, halt, shutdown: tell process 1. Return: exit status. */
int power_command(const char *name, int argc, char **argv);

/* ------------------------------------------------------------------------------------ all of it */

struct guest {
    bool init;   /* this is process 1 */
    bool ending; /* when all sessions have ended */
    int root;    /* of the script's sources */
    int signals; /* signalfd(2) */
    uint64_t power_at;
    enum guest_bye power; /* what to do then */
    struct channel channel;
    struct session sessions[GUEST_SESSIONS];
    unsigned turn; /* whose session is served first */
    struct net net;
    struct sshd sshd;
    struct console console;
    struct trim trim;
};

#endif
