# SPDX-License-Identifier: Apache-2.0
"""Generates the C source of ``mint_vni._native`` (cffi, API mode): ``binding.py OUTPUT``.

In API mode the C compiler checks every declaration here against the headers, so a drifted
structure is an error of the build, not of a user.
"""

import sys

from cffi import FFI

CDEF = """
#define MINT_ABI_VERSION ...
#define MINT_FRAME_MIN ...
#define MINT_FRAME_MAX ...
#define MINT_REC_MAX ...
#define MINT_CAP_MIN ...
#define MINT_CAP_MAX ...
#define MINT_PORTS_MAX ...
#define MINT_NAME_MAX ...
#define MINT_LINE ...
#define MINT_TX_COUNTERS ...
#define MINT_RX_COUNTERS ...
#define MINT_PORT_COUNTERS ...
#define MINT_PORT_BRIDGE ...
#define MINT_EV_CONTROL ...
#define MINT_MSG_MAGIC ...

enum mint_layout { MINT_LAYOUT_PER_CHANNEL, MINT_LAYOUT_SHARED, MINT_LAYOUT_POOLED, ... };
enum mint_end_state { MINT_END_CLOSED, MINT_END_OPEN, MINT_END_RESET, ... };
enum mint_msg_type { MINT_MSG_OPEN, MINT_MSG_TAP, MINT_MSG_ADD_PEER, MINT_MSG_DROP_PEER,
                     MINT_MSG_GIVE, MINT_MSG_STOP, MINT_MSG_VHOST, ... };

struct mint_port_config {
    uint32_t index; uint32_t slots; uint32_t layout; uint32_t flags;
    uint32_t poll_us; uint32_t stall_us; uint32_t frame_max;
    uint8_t mac[6]; uint16_t idle_ds; char name[32];
};
struct mint_peer_config {
    uint32_t index; uint32_t flags; uint32_t capacity;
    uint8_t mac[6]; uint8_t reserved[2];
    int32_t ctl_fd; int32_t tx_fd; int32_t rx_fd; int32_t bell_fd;
};
struct mint_msg_open { struct mint_port_config port; uint32_t uid; uint32_t gid; };
struct mint_msg_tap { uint32_t offload; };
struct mint_msg {
    uint32_t magic; uint32_t version; uint32_t type; uint32_t seq; int32_t status;
    uint32_t reserved;
    union {
        struct mint_msg_open open;
        struct mint_msg_tap tap;
        struct mint_peer_config peer;
        uint8_t bytes[104];
    } u;
};
struct mint_ctl_view {
    uint64_t magic; uint32_t port; uint32_t slots; uint32_t pid; uint32_t generation; uint32_t wake;
    uint8_t mac[6]; char name[32]; uint64_t counter[...];
};
struct mint_slot_view {
    uint64_t head; uint64_t tail; uint32_t tx_end; uint32_t rx_end; uint32_t tx_want;
    uint32_t tx_stalled;
    uint64_t tx_counter[...]; uint64_t rx_counter[...];
};
struct mint_port; struct mint_plain; struct mint_ctl;

size_t mint_ctl_bytes(uint32_t slots);
const char *mint_tx_counter_name(uint32_t i);
const char *mint_rx_counter_name(uint32_t i);
const char *mint_port_counter_name(uint32_t i);

const struct mint_ctl *mint_ctl_map(int fd, uint32_t slots);
void mint_ctl_unmap(const struct mint_ctl *ctl, uint32_t slots);
void mint_ctl_read(const struct mint_ctl *ctl, struct mint_ctl_view *out);
void mint_slot_read(const struct mint_ctl *ctl, uint32_t slot, struct mint_slot_view *out);

int mint_port_open(struct mint_port **out, const struct mint_port_config *config, int ctl_fd,
                   int pool_fd);
void mint_port_close(struct mint_port *port);
void mint_port_disown(struct mint_port *port);
int mint_port_add_peer(struct mint_port *port, const struct mint_peer_config *peer);
int mint_port_drop_peer(struct mint_port *port, uint32_t index);
void mint_port_leave(struct mint_port *port);
int mint_port_watch(struct mint_port *port, int fd, uint32_t event);
int mint_port_unwatch(struct mint_port *port, int fd);
int mint_port_send_packed(struct mint_port *port, const uint8_t *frames, const uint32_t *lens,
                          uint32_t n, int64_t timeout_ns, uint32_t *done);
struct mint_plain *mint_plain_new(void);
void mint_plain_free(struct mint_plain *plain);
int mint_port_recv_packed(struct mint_port *port, struct mint_plain *plain, uint8_t *out,
                          uint64_t size, uint32_t *lens, uint32_t max, int64_t timeout_ns);

size_t mint_stock_bytes(uint32_t slots, uint32_t capacity);
size_t mint_pool_bytes(uint32_t ports, size_t data_bytes);
int mint_pool_format(int fd, uint32_t ports, size_t data_bytes);

struct mint_bench_config {
    uint64_t frames; uint32_t size_min; uint32_t size_max; uint32_t distinct; uint32_t batch;
    uint32_t verify; uint32_t yield; uint64_t timeout_ns;
    uint8_t dst[6]; uint8_t src[6];
};
struct mint_bench_result {
    uint64_t frames; uint64_t bytes; uint64_t dropped; uint64_t lost; uint64_t reordered;
    uint64_t corrupted; uint64_t begin_ns; uint64_t end_ns; uint64_t cpu_ns; uint64_t received;
};
#define MINT_BENCH_TARGETS ...
struct mint_bench_mix { uint32_t targets; uint8_t dst[...][6]; uint64_t expect; };
enum mint_bench_stream { MINT_STREAM_READ, MINT_STREAM_WRITE, MINT_STREAM_COPY, ... };
int mint_bench_send(struct mint_port *port, const struct mint_bench_config *config,
                    struct mint_bench_result *result);
int mint_bench_recv(struct mint_port *port, const struct mint_bench_config *config,
                    struct mint_bench_result *result);
int mint_bench_mixed(struct mint_port *port, const struct mint_bench_config *config,
                     const struct mint_bench_mix *mix, struct mint_bench_result *result);
int mint_bench_ask(struct mint_port *port, const struct mint_bench_config *config, uint32_t *ns);
int mint_bench_answer(struct mint_port *port, const struct mint_bench_config *config);
int mint_bench_bells(int fd, bool first, uint32_t rounds, uint32_t *ns);
uint64_t mint_bench_ring(int ringer, int hearer, uint32_t rounds);
uint64_t mint_bench_memcpy(uint64_t bytes, uint32_t rounds);
uint8_t *mint_bench_area(uint64_t bytes);
double mint_bench_streaming(enum mint_bench_stream kind, uint8_t *area, uint64_t bytes,
                            uint64_t ns);
void mint_port_share_core(struct mint_port *port);
"""

SOURCE = """
#include "bench.h"
#include "control.h"
#include "names.h"
#include "observe.h"
#include "packed.h"
#include "pool.h"
#include "port.h"
"""

if __name__ == "__main__":
    ffi = FFI()
    ffi.cdef(CDEF)
    ffi.set_source("mint_vni._native", SOURCE)
    ffi.emit_c_code(sys.argv[1])
