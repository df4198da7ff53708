/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_vhost_hold.c - a guest's frame that finds its channel full: it stays in the guest's queue. What
 * becomes of it, and of the counters, when its receiver goes, or the guest takes it back.
 */
#include "port_util.h"
#include "vhost.h"
#include "worker.h"
#include <stdarg.h>

#define CAPACITY 135168u
#define GPA 0x100000u
#define UVA 0x7f0000000000ull
#define PART 0x10000u
#define SIZE 8u
#define QUEUE_AT(i) ((i) * 0x1000u) /* desc, avail + 0x400, used + 0x800 */
#define FRAME_AT 0x8000u
#define BUFFER_AT 0x4000u
#define HEADER 12u
#define LEN 100u

/* A guest at port 0, and two raw ports. */
struct world {
    struct fabric *f;
    struct mint_worker w;
    uint8_t *memory;
    int file, control, link;
};

/* The worker's log. */
void mint_log(const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    vprintf(fmt, ap);
    va_end(ap);
    putchar('\n');
}

static uint16_t *avail(const struct world *w, uint32_t queue)
{
    return (uint16_t *)(void *)(w->memory + QUEUE_AT(queue) + 0x400u);
}

static uint16_t used_index(const struct world *w, uint32_t queue)
{
    return ((const uint16_t *)(const void *)(w->memory + QUEUE_AT(queue) + 0x800u))[1];
}

static void make_control(struct world *w)
{
    int pair[2];

    CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) == 0, "socketpair");
    w->control = pair[0];
    w->w.control_fd = pair[1];
    w->w.listen_fd = w->w.tap.fd = w->w.open_fds[0] = w->w.open_fds[1] = -1;
    w->w.hold.peer = UINT32_MAX;
    w->w.peers = calloc(w->f->ports, sizeof(w->w.peers[0]));
    CHECK(w->w.peers, "out of memory");
    for (uint32_t i = 0; i < w->f->ports; i++)
        for (uint32_t j = 0; j < MINT_MSG_FDS; j++)
            w->w.peers[i].fds[j] = -1;
}

static void make_device(struct world *w)
{
    struct mint_vhost *v;
    int pair[2];

    w->file = memfd_create("guest", MFD_CLOEXEC);
    CHECK(w->file >= 0 && ftruncate(w->file, PART) == 0, "memfd: %d", errno);
    w->memory = mmap(NULL, PART, PROT_READ | PROT_WRITE, MAP_SHARED, w->file, 0);
    CHECK(w->memory != MAP_FAILED, "mmap: %d", errno);
    CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) == 0, "socketpair");
    w->link = pair[0];
    CHECK(mint_vhost_attach(&w->w, pair[1]) == 0, "attach");
    v = w->w.vhost;
    v->features = MINT_VF_VERSION_1;
    v->header = HEADER;
    CHECK(mint_gmem_add(&v->memory, GPA, UVA, PART, 0, w->file) == 0, "memory");
    for (uint32_t i = 0; i < MINT_VQ_COUNT; i++) {
        uint64_t at = UVA + QUEUE_AT(i);

        CHECK(mint_vring_set(&v->ring[i], &v->memory, SIZE, at, at + 0x400u, at + 0x800u) == 0,
              "ring %u", i);
        v->ring[i].enabled = true;
    }
    v->started = true;
}

static struct world *make(void)
{
    struct world *w = calloc(1, sizeof(*w));

    CHECK(w, "out of memory");
    w->f = fabric_open(fabric_new(3, MINT_LAYOUT_PER_CHANNEL, CAPACITY));
    w->w.port = w->f->port[0];
    w->w.open.port = port_config(w->f, 0);
    make_control(w);
    make_device(w);
    return w;
}

static void drop(struct world *w)
{
    close(w->link);
    mint_vhost_serve(&w->w); /* hangs up */
    mint_plain_free(w->w.vhost->plain);
    free(w->w.vhost);
    free(w->w.peers);
    close(w->control);
    close(w->w.control_fd);
    munmap(w->memory, PART);
    close(w->file);
    fabric_free(w->f);
    free(w);
}

static void offer(struct world *w, uint32_t queue, uint16_t id, uint32_t at, uint32_t len)
{
    struct mint_vdesc *desc = (struct mint_vdesc *)(void *)(w->memory + QUEUE_AT(queue));
    uint16_t *a = avail(w, queue);

    desc[id] = (struct mint_vdesc){
        .addr = GPA + at, .len = len, .flags = queue == MINT_VQ_RX ? MINT_VDESC_WRITE : 0};
    a[2 + a[1] % SIZE] = id;
    a[1]++;
}

/* The guest sends a frame to port 1, whose channel is full: it is held. */
static void hold_one(struct world *w)
{
    uint8_t dst[6], src[6];

    while (post(w->f, 0, 1, 1000, 1) == MINT_SENT)
        ;
    mint_port_flush(w->f->port[0]);
    mac_of(1, dst);
    mac_of(0, src);
    make_frame(w->memory + FRAME_AT + HEADER, dst, src, LEN, 0x77);
    offer(w, MINT_VQ_TX, 5, FRAME_AT, HEADER + LEN);
    CHECK(!w->w.device->in(&w->w), "sent");
    CHECK(w->w.hold.on && w->w.hold.peer == 1, "not held");
}

static void drop_peer(struct world *w, uint32_t peer)
{
    struct mint_msg m = {
        .magic = MINT_MSG_MAGIC, .version = MINT_ABI_VERSION, .type = MINT_MSG_DROP_PEER};

    m.u.peer.index = peer;
    CHECK(send(w->control, &m, sizeof(m), 0) == (ssize_t)sizeof(m), "send: %d", errno);
    mint_control_serve(&w->w);
    CHECK(recv(w->control, &m, sizeof(m), 0) == (ssize_t)sizeof(m) && m.status == 0, "%d",
          m.status);
}

/* All that was taken from the guest is settled, and nothing twice. */
static void adds_up(struct world *w)
{
    uint64_t frames = port_counter(w->f, 0, MINT_PORT_IN_FRAMES);
    uint64_t done = port_counter(w->f, 0, MINT_PORT_IN_DONE);

    CHECK(frames == done, "%llu taken, %llu settled", (unsigned long long)frames,
          (unsigned long long)done);
}

static void its_receiver_goes(void)
{
    struct world *w = make();
    uint64_t taken;

    hold_one(w);
    adds_up(w);
    taken = port_counter(w->f, 0, MINT_PORT_IN_FRAMES);
    drop_peer(w, 1);
    CHECK(!w->w.hold.on, "still held");
    CHECK(w->w.device->in(&w->w), "it is not taken");
    CHECK(used_index(w, MINT_VQ_TX) == 1, "it is not used");
    CHECK(port_counter(w->f, 0, MINT_PORT_IN_FRAMES) == taken + 1, "not counted");
    CHECK(port_counter(w->f, 0, MINT_PORT_DROP_UNKNOWN) == 1, "not dropped as unknown");
    CHECK(tx_counter(w->f, 0, 1, MINT_TX_DROP_FULL) == 0, "dropped twice");
    adds_up(w);
    drop(w);
}

/* Meanwhile a frame comes for the guest, which goes by the same memory of a chain. */
static void the_guest_takes_it_back(void)
{
    struct world *w = make();
    uint64_t start = now_ns(), bytes;

    hold_one(w);
    offer(w, MINT_VQ_RX, 3, BUFFER_AT, 2000);
    CHECK(send_frame(w->f, 2, 0, 60, 4) == MINT_SENT, "not sent");
    CHECK(w->w.device->out(&w->w) && used_index(w, MINT_VQ_RX) == 1, "it is not given");
    bytes = port_counter(w->f, 0, MINT_PORT_IN_BYTES);
    avail(w, MINT_VQ_TX)[1]--;
    while (w->w.hold.on && now_ns() - start < 500u * MS) {
        w->w.device->in(&w->w);
        mint_port_wait(w->w.port, MS);
    }
    CHECK(!w->w.hold.on, "held, though it is not there");
    CHECK(used_index(w, MINT_VQ_TX) == 0, "used, though it is not there");
    CHECK(port_counter(w->f, 0, MINT_PORT_IN_BYTES) == bytes, "taken, though it is not there");
    CHECK(port_counter(w->f, 0, MINT_PORT_RING_ERRORS) == 1, "a broken rule is not noticed");
    adds_up(w);
    CHECK(send_frame(w->f, 2, 1, 60, 9) == MINT_SENT, "others");
    drop(w);
}

static const struct check_test tests[] = {
    CHECK_TEST(its_receiver_goes),
    CHECK_TEST(the_guest_takes_it_back),
};

int main(int argc, char **argv)
{
    return CHECK_MAIN(argc, argv, tests);
}
