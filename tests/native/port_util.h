/* SPDX-License-Identifier: Apache-2.0 */
/*
 * port_util.h - what the tests of the port share: a small fabric of real regions and doorbells, all
 * of its ports in this process, in any layout.
 */
#ifndef MINT_TEST_PORT_UTIL_H
#define MINT_TEST_PORT_UTIL_H

#include "check.h"
#include "offload.h"
#include "packed.h"
#include "pool.h"
#include "port_internal.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#define PORTS_MAX 5u
#define MS 1000000ll
#define SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)

/* A fabric; set what differs from the defaults between fabric_new() and fabric_open(). */
struct fabric {
    uint32_t ports, layout, capacity;
    uint32_t poll_us, stall_us, frame_max;
    uint32_t flags[PORTS_MAX];
    uint16_t idle_ds;
    int ctl[PORTS_MAX], pool;
    int stock[PORTS_MAX];              /* layout pooled, else -1 */
    int payload[PORTS_MAX][PORTS_MAX]; /* [from][to] */
    int bell[PORTS_MAX][PORTS_MAX];    /* [holder][other] */
    struct mint_port *port[PORTS_MAX];
};

static inline int region_file(size_t bytes, int seals)
{
    int fd = memfd_create("region", MFD_CLOEXEC | MFD_ALLOW_SEALING);

    CHECK(fd >= 0, "memfd_create: %s", strerror(errno));
    CHECK(ftruncate(fd, (off_t)bytes) == 0, "ftruncate: %s", strerror(errno));
    CHECK(fcntl(fd, F_ADD_SEALS, seals) == 0, "seals: %s", strerror(errno));
    return fd;
}

static inline void mac_of(uint32_t port, uint8_t *mac)
{
    const uint8_t all[6] = {0x02, 0x4d, 0x56, 0xff, 0, (uint8_t)port};

    memcpy(mac, all, sizeof(all));
}

/* Regions and doorbells; no port is open. */
static inline struct fabric *fabric_new(uint32_t ports, uint32_t layout, uint32_t capacity)
{
    struct fabric *f = calloc(1, sizeof(*f));

    CHECK(f && ports <= PORTS_MAX, "out of memory");
    f->ports = ports;
    f->layout = layout;
    f->capacity = capacity;
    f->stall_us = 20000;
    f->frame_max = MINT_FRAME_MAX;
    f->pool = -1;
    if (layout == MINT_LAYOUT_SHARED) {
        f->pool = region_file(mint_pool_bytes(ports, capacity), SEALS);
        CHECK(mint_pool_format(f->pool, ports, capacity) == 0, "the pool");
    }
    for (uint32_t i = 0; i < ports; i++) {
        f->ctl[i] = region_file(MINT_CTL_BYTES(ports), SEALS);
        f->stock[i] = layout == MINT_LAYOUT_POOLED
                          ? region_file(MINT_STOCK_BYTES(ports, capacity), SEALS)
                          : -1;
        for (uint32_t j = 0; j < ports; j++) {
            int pair[2];

            f->payload[i][j] =
                layout != MINT_LAYOUT_PER_CHANNEL || i == j ? -1 : region_file(capacity, SEALS);
            if (j <= i)
                continue;
            CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0, "socketpair");
            f->bell[i][j] = pair[0];
            f->bell[j][i] = pair[1];
        }
    }
    return f;
}

/* What the fabric tells port `i` about itself. */
static inline struct mint_port_config port_config(const struct fabric *f, uint32_t i)
{
    struct mint_port_config c = {
        .index = i,
        .slots = f->ports,
        .layout = f->layout,
        .flags = f->flags[i],
        .poll_us = f->poll_us,
        .stall_us = f->stall_us,
        .frame_max = f->frame_max,
        .idle_ds = f->idle_ds,
    };

    mac_of(i, c.mac);
    snprintf(c.name, sizeof(c.name), "p%u", i);
    return c;
}

/* What the fabric tells port `i` about port `j`. */
static inline struct mint_peer_config peer_config(const struct fabric *f, uint32_t i, uint32_t j)
{
    struct mint_peer_config c = {
        .index = j,
        .flags = f->flags[j],
        .capacity = f->layout == MINT_LAYOUT_SHARED ? 0 : f->capacity,
        .ctl_fd = f->ctl[j],
        .tx_fd = f->payload[i][j],
        .rx_fd = f->layout == MINT_LAYOUT_POOLED ? f->stock[j] : f->payload[j][i],
        .bell_fd = f->bell[i][j],
    };

    mac_of(j, c.mac);
    return c;
}

static inline void join_peer(struct fabric *f, uint32_t i, uint32_t j)
{
    struct mint_peer_config c = peer_config(f, i, j);
    int err = mint_port_add_peer(f->port[i], &c);

    CHECK(err == 0, "port %u: peer %u: %d", i, j, err);
}

/* The region that a port has besides its control region; -1: none. */
static inline int own_region(const struct fabric *f, uint32_t i)
{
    return f->layout == MINT_LAYOUT_POOLED ? f->stock[i] : f->pool;
}

/* Open a port with all its peers; as its next process does, if it was open before. */
static inline void open_port(struct fabric *f, uint32_t i)
{
    struct mint_port_config c = port_config(f, i);
    int err = mint_port_open(&f->port[i], &c, f->ctl[i], own_region(f, i));

    CHECK(err == 0, "port %u: %d", i, err);
    for (uint32_t j = 0; j < f->ports; j++)
        if (j != i)
            join_peer(f, i, j);
}

/* The port's process dies: what was not published is gone. */
static inline void crash_port(struct fabric *f, uint32_t i)
{
    mint_port_close(f->port[i]);
    f->port[i] = NULL;
}

/* The port leaves in good order. */
static inline void leave_port(struct fabric *f, uint32_t i)
{
    mint_port_leave(f->port[i]);
    crash_port(f, i);
}

/* Let the rings pass by which ports announce themselves to each other. */
static inline void fabric_settle(struct fabric *f)
{
    for (uint32_t i = 0, quiet = 0; quiet < f->ports; i = (i + 1) % f->ports) {
        struct mint_view v;

        quiet = mint_port_wait(f->port[i], 0) == MINT_EV_TIMER ? quiet + 1 : 0;
        CHECK(!mint_port_recv(f->port[i], &v), "a frame that nobody sent");
    }
}

/* Open all ports. */
static inline struct fabric *fabric_open(struct fabric *f)
{
    for (uint32_t i = 0; i < f->ports; i++)
        open_port(f, i);
    fabric_settle(f);
    return f;
}

static inline void fabric_free(struct fabric *f)
{
    for (uint32_t i = 0; i < f->ports; i++) {
        mint_port_close(f->port[i]);
        close(f->ctl[i]);
        if (f->stock[i] >= 0)
            close(f->stock[i]);
        for (uint32_t j = 0; j < f->ports; j++) {
            if (f->payload[i][j] >= 0)
                close(f->payload[i][j]);
            if (i != j && f->bell[i][j] >= 0)
                close(f->bell[i][j]);
        }
    }
    if (f->pool >= 0)
        close(f->pool);
    free(f);
}

/* --- counters -------------------------------------------------------------------------------- */

static inline uint64_t port_counter(const struct fabric *f, uint32_t i, enum mint_port_counter c)
{
    return load_relaxed(&f->port[i]->ctl->counter[c]);
}

static inline uint64_t tx_counter(const struct fabric *f, uint32_t i, uint32_t to,
                                  enum mint_tx_counter c)
{
    return load_relaxed(&f->port[i]->slots[to].tx_counter[c]);
}

static inline uint64_t rx_counter(const struct fabric *f, uint32_t i, uint32_t from,
                                  enum mint_rx_counter c)
{
    return load_relaxed(&f->port[i]->slots[from].rx_counter[c]);
}

/* --- frames ---------------------------------------------------------------------------------- */

/* Write a frame from MAC to MAC, the rest filled with `mark`. */
static inline void make_frame(uint8_t *frame, const uint8_t *dst, const uint8_t *src, uint32_t len,
                              uint8_t mark)
{
    memset(frame, mark, len);
    memcpy(frame, dst, 6);
    memcpy(frame + 6, src, 6);
}

/* Send `len` bytes from port to port, without publishing. */
static inline enum mint_sent post(struct fabric *f, uint32_t from, uint32_t to, uint32_t len,
                                  uint8_t mark)
{
    static uint8_t frame[MINT_FRAME_MAX];
    uint8_t dst[6], src[6];
    enum mint_sent sent;
    uint32_t peer;

    mac_of(to, dst);
    mac_of(from, src);
    make_frame(frame, dst, src, len, mark);
    sent = mint_port_send(f->port[from], NULL, frame, len, &peer);
    if (sent == MINT_FULL)
        CHECK(peer == to, "the full channel is said to be that to %u", peer);
    else
        mint_port_took(f->port[from], len);
    return sent;
}

/* Send, and publish. */
static inline enum mint_sent send_frame(struct fabric *f, uint32_t from, uint32_t to, uint32_t len,
                                        uint8_t mark)
{
    enum mint_sent sent = post(f, from, to, len, mark);

    mint_port_flush(f->port[from]);
    return sent;
}

/* Send a frame with MACs of one's own choice, and publish. */
static inline enum mint_sent send_macs(struct fabric *f, uint32_t from, const uint8_t *dst,
                                       const uint8_t *src, uint8_t mark)
{
    uint8_t frame[100];
    enum mint_sent sent;

    make_frame(frame, dst, src, sizeof(frame), mark);
    sent = mint_port_send(f->port[from], NULL, frame, sizeof(frame), NULL);
    mint_port_took(f->port[from], sizeof(frame));
    mint_port_flush(f->port[from]);
    return sent;
}

/* Receive one frame and give its room back. Return: its mark; -1: there is none. */
static inline int recv_mark(struct fabric *f, uint32_t at)
{
    struct mint_view v;
    int mark = -1;

    if (mint_port_recv(f->port[at], &v)) {
        mark = v.frame[v.len - 1];
        mint_port_release(f->port[at], &v);
        mint_port_gave(f->port[at], 1, v.len);
    }
    mint_port_recycle(f->port[at]);
    return mark;
}

/* --- what a test must give back -------------------------------------------------------------- */

static inline uint32_t open_descriptors(void)
{
    DIR *d = opendir("/proc/self/fd");
    uint32_t n = 0;

    CHECK(d, "/proc/self/fd: %s", strerror(errno));
    while (readdir(d))
        n++;
    closedir(d);
    return n;
}

/* Mappings of memory files. */
static inline uint32_t mapped_regions(void)
{
    FILE *maps = fopen("/proc/self/maps", "re");
    char line[512];
    uint32_t n = 0;

    CHECK(maps, "/proc/self/maps: %s", strerror(errno));
    while (fgets(line, sizeof(line), maps))
        n += strstr(line, "/memfd:region") != NULL;
    fclose(maps);
    return n;
}

#endif
