/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fuzz_vhost.c - a guest and its agent, both hostile: memory, virtqueues, frames, link messages.
 *
 * The script plays the guest (it writes descriptors, indices and frames into its memory, kicks,
 * cuts its memory short) and what stands between (messages on the agent's link, with whatever
 * descriptors). The other two ports are honest: what reaches them has the guest's MAC and is
 * sound, and what they send to each other arrives. Nothing is written outside of what the guest
 * handed over: the pages before and after it in its file stay as they were.
 */
#include "fuzz.h"
#include "port_util.h"
#include "vhost.h"
#include "worker.h"
#include <sys/eventfd.h>
#include <sys/uio.h>

#define CAP 135168u
#define GUEST 0u
#define FILES 2u
#define PART 0x10000u
#define EDGE 4096u /* before and after the part of a file that the guest hands over */
#define GPA 0x100000u
#define UVA 0x7f0000000000ull
#define QSIZE 8u
#define QUEUE_AT(i) ((i) * 0x1000u) /* desc, avail + 0x400, used + 0x800 */
#define CANARY 0xc7u
#define ALL_FEATURES \
    (MINT_VF_CSUM | MINT_VF_GUEST_CSUM | MINT_VF_GUEST_TSO4 | MINT_VF_GUEST_TSO6 | \
     MINT_VF_HOST_TSO4 | MINT_VF_HOST_TSO6 | MINT_VF_MRG_RXBUF | MINT_VF_INDIRECT_DESC | \
     MINT_VF_EVENT_IDX | MINT_VF_VERSION_1)

struct world {
    struct fabric *f;
    struct mint_worker w;
    struct mint_plain *plain;
    int file[FILES];
    uint8_t *memory[FILES]; /* the whole file */
    int link, kick[2], call[2];
    uint32_t sent, got; /* honest frames, 1 -> 2 */
    bool cut;           /* the guest's memory was cut short */
    bool all;           /* it may have handed over the pages around, too: no canaries then */
};

/* The worker's log would only slow us down; nobody drops privileges here. */
void mint_log(const char *fmt, ...)
{
    (void)fmt;
}

/* --- set-up ---------------------------------------------------------------------------------- */

static void make_files(struct world *w)
{
    for (uint32_t i = 0; i < FILES; i++) {
        w->file[i] = memfd_create("guest", MFD_CLOEXEC);
        CHECK(w->file[i] >= 0 && ftruncate(w->file[i], PART + 2 * EDGE) == 0, "memfd: %d", errno);
        w->memory[i] =
            mmap(NULL, PART + 2 * EDGE, PROT_READ | PROT_WRITE, MAP_SHARED, w->file[i], 0);
        CHECK(w->memory[i] != MAP_FAILED, "mmap: %d", errno);
    }
}

static void make_world(struct world *w)
{
    w->f = fabric_new(3, MINT_LAYOUT_PER_CHANNEL, CAP);
    w->f->stall_us = 20000;
    w->plain = mint_plain_new();
    CHECK(w->plain, "out of memory");
    make_files(w);
    CHECK(mint_gmem_guard() == 0, "no handler");
}

static void new_pairs(struct world *w)
{
    int pair[2];

    CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) == 0, "socketpair");
    w->link = pair[0];
    CHECK(mint_vhost_attach(&w->w, pair[1]) == 0, "attach");
    for (uint32_t i = 0; i < 2; i++) {
        w->kick[i] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        w->call[i] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    }
}

/* Say something on the link, with descriptors; what the worker answers is thrown away. */
static void say(struct world *w, const void *data, size_t bytes, const int *fds, uint32_t n)
{
    union {
        char buf[CMSG_SPACE(sizeof(int) * 4)];
        struct cmsghdr align;
    } c;
    struct iovec iov = {.iov_base = (void *)(uintptr_t)data, .iov_len = bytes};
    struct msghdr h = {.msg_iov = &iov, .msg_iovlen = 1};
    char answer[256];

    memset(&c, 0, sizeof(c));
    if (n) {
        struct cmsghdr *cm;

        h.msg_control = c.buf;
        h.msg_controllen = CMSG_SPACE(sizeof(int) * n);
        cm = CMSG_FIRSTHDR(&h);
        cm->cmsg_level = SOL_SOCKET;
        cm->cmsg_type = SCM_RIGHTS;
        cm->cmsg_len = CMSG_LEN(sizeof(int) * n);
        memcpy(CMSG_DATA(cm), fds, sizeof(int) * n);
    }
    (void)sendmsg(w->link, &h, MSG_DONTWAIT | MSG_NOSIGNAL);
    mint_vhost_serve(&w->w);
    (void)recv(w->link, answer, sizeof(answer), MSG_DONTWAIT);
}

static void say_memory(struct world *w, uint32_t i)
{
    struct mint_vmsg m = {.magic = MINT_VMSG_MAGIC, .type = MINT_VMSG_MEMORY};

    m.u.memory.gpa = GPA + i * PART;
    m.u.memory.uva = UVA + (uint64_t)i * 2 * PART;
    m.u.memory.size = PART;
    m.u.memory.offset = EDGE;
    say(w, &m, sizeof(m), &w->file[i], 1);
}

static void say_ring(struct world *w, uint32_t i, uint32_t size)
{
    struct mint_vmsg m = {.magic = MINT_VMSG_MAGIC, .type = MINT_VMSG_RING};
    const int fds[2] = {w->kick[i], w->call[i]};

    m.u.ring.index = i;
    m.u.ring.size = size;
    m.u.ring.flags = MINT_VRING_KICK | MINT_VRING_CALL | MINT_VRING_ENABLED;
    m.u.ring.desc = UVA + QUEUE_AT(i);
    m.u.ring.avail = UVA + QUEUE_AT(i) + 0x400u;
    m.u.ring.used = UVA + QUEUE_AT(i) + 0x800u;
    say(w, &m, sizeof(m), fds, 2);
}

static void say_simple(struct world *w, enum mint_vmsg_type type, uint64_t features)
{
    struct mint_vmsg m = {.magic = MINT_VMSG_MAGIC, .type = type};

    m.u.features = features;
    say(w, &m, sizeof(m), NULL, 0);
}

static void begin(struct script *s, struct world *w)
{
    static uint8_t zero[MINT_CTL_BYTES(3)];
    uint8_t how = take8(s);

    for (uint32_t i = 0; i < 3; i++)
        CHECK(pwrite(w->f->ctl[i], zero, sizeof(zero), 0) == (ssize_t)sizeof(zero), "pwrite");
    fabric_open(w->f);
    memset(&w->w, 0, sizeof(w->w));
    w->w.port = w->f->port[GUEST];
    w->w.open.port.stall_us = how & 8u ? 0 : 20000;
    w->w.hold.peer = UINT32_MAX;
    w->w.tap.fd = w->w.control_fd = w->w.listen_fd = -1;
    w->cut = w->all = false;
    w->sent = w->got = 0;
    for (uint32_t i = 0; i < FILES; i++) {
        CHECK(ftruncate(w->file[i], PART + 2 * EDGE) == 0, "ftruncate: %d", errno);
        memset(w->memory[i], CANARY, EDGE);
        memset(w->memory[i] + EDGE, 0, 0x2000);
        memset(w->memory[i] + EDGE + PART, CANARY, EDGE);
    }
    new_pairs(w);
    if (how & 1u)
        return; /* the script says everything itself */
    say_simple(w, MINT_VMSG_FEATURES, how & 2u ? ALL_FEATURES : how & 4u ? 0 : take(s, 8));
    for (uint32_t i = 0; i < FILES; i++)
        say_memory(w, i);
    for (uint32_t i = 0; i < 2; i++)
        say_ring(w, i, QSIZE);
    say_simple(w, MINT_VMSG_START, 0);
}

/* --- the guest ------------------------------------------------------------------------------- */

/* The guest's memory as it writes to it; by an offset that wraps around. */
static uint8_t *at(const struct world *w, uint32_t offset, uint32_t bytes)
{
    offset %= FILES * PART;
    if (offset % PART + bytes > PART)
        offset -= bytes;
    return w->memory[offset / PART] + EDGE + offset % PART;
}

static void put16(const struct world *w, uint32_t offset, uint16_t value)
{
    memcpy(at(w, offset, 2), &value, 2);
}

static uint64_t some_address(struct script *s)
{
    return take8(s) & 15u ? GPA + take16(s) * 4ull % (FILES * PART + 64u)
                          : take_near(s, GPA, 16, FILES * PART);
}

static struct mint_vdesc some_desc(struct script *s, bool write)
{
    uint8_t how = take8(s);
    struct mint_vdesc d = {.addr = some_address(s)};

    d.len = how & 0x10u ? take32(s) : take16(s) % 3000u;
    d.flags =
        (uint16_t)((how & 1u ? MINT_VDESC_NEXT : 0) | (write != ((how & 14u) == 14u) ? 2u : 0) |
                   ((how & 0xe0u) == 0xe0u ? MINT_VDESC_INDIRECT : 0));
    d.next = how & 0x20u ? take16(s) : (uint16_t)((how >> 6) + 1u);
    if (d.flags & MINT_VDESC_INDIRECT && !(how & 0x10u))
        d.len = (d.len % 16u + 1u) * 16u;
    return d;
}

/* Write a chain's descriptor, or one of an indirect table, and a header and frame where it points. */
static void guest_desc(struct script *s, struct world *w, uint32_t queue)
{
    uint8_t how = take8(s);
    struct mint_vdesc d = some_desc(s, queue == MINT_VQ_RX);
    uint32_t where = how & 0x80u ? take16(s) * 16u : QUEUE_AT(queue) + how % QSIZE * 16u;

    memcpy(at(w, where, sizeof(d)), &d, sizeof(d));
}

static void guest_frame(struct script *s, struct world *w)
{
    uint32_t where = (uint32_t)(some_address(s) - GPA);
    uint8_t how = take8(s), bytes[12 + 14 + 34];

    take_bytes(s, bytes, sizeof(bytes));
    if (how & 1u)
        memset(bytes, 0, 12);
    if (how & 2u)
        mac_of(1u + (how >> 7), bytes + 12);
    if (how & 4u)
        mac_of(GUEST, bytes + 18);
    memcpy(at(w, where, sizeof(bytes)), bytes, sizeof(bytes));
}

static void guest_index(struct script *s, struct world *w, uint32_t queue)
{
    uint32_t avail = QUEUE_AT(queue) + 0x400u, used = QUEUE_AT(queue) + 0x800u;
    uint16_t idx, value;
    uint8_t how = take8(s);

    switch (how & 7u) {
    case 0:
    case 1:
    case 2:
    case 3: /* offer one chain */
        memcpy(&idx, at(w, avail + 2, 2), 2);
        put16(w, avail + 4 + idx % QSIZE * 2u, (how >> 3) % (QSIZE + (how >> 7)));
        put16(w, avail + 2, (uint16_t)(idx + 1));
        break;
    case 4:
        put16(w, avail + 2, (uint16_t)take_near(s, w->w.vhost->ring[queue].next_avail, 1, QSIZE));
        break;
    case 5:
        value = take16(s);
        put16(w, avail, value);
        put16(w, avail + 4 + 2 * QSIZE, value);
        break;
    case 6:
        put16(w, used + 2, take16(s));
        break;
    default:
        put16(w, take16(s) % (2u * 0x1000u), take16(s));
    }
}

static void guest_cut(struct script *s, struct world *w)
{
    uint8_t how = take8(s);

    if (how < 250u)
        return; /* seldom: nothing goes on after it */
    w->cut = true;
    CHECK(ftruncate(w->file[how & 1u], how & 2u ? 0 : EDGE + 4096) == 0, "ftruncate: %d", errno);
    /* Touch nothing of it ourselves. */
    munmap(w->memory[how & 1u], PART + 2 * EDGE);
    w->memory[how & 1u] =
        mmap(NULL, PART + 2 * EDGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(w->memory[how & 1u] != MAP_FAILED, "mmap: %d", errno);
}

/* --- the link -------------------------------------------------------------------------------- */

static uint32_t some_fds(struct script *s, const struct world *w, int *fds)
{
    const int all[8] = {w->file[0], w->file[1], w->kick[0], w->kick[1],
                        w->call[0], w->link,    w->call[1], STDERR_FILENO};
    uint16_t how = take16(s);
    uint32_t n = how & 3u;

    for (uint32_t i = 0; i < n; i++)
        fds[i] = all[(how >> (2 + 3 * i)) & 7u];
    return n;
}

static void some_ring(struct script *s, struct mint_vmsg *m)
{
    uint8_t how = take8(s);

    m->u.ring.index = how & 0x40u ? take32(s) : how & 1u;
    m->u.ring.size = how & 2u ? take32(s) : 1u << (how >> 4);
    m->u.ring.flags = how & 0x80u ? take32(s) : (how >> 2) & 7u;
    m->u.ring.desc = take_near(s, UVA + QUEUE_AT(how & 1u), 16, PART);
    m->u.ring.avail = take_near(s, UVA + QUEUE_AT(how & 1u) + 0x400u, 2, PART);
    m->u.ring.used = take_near(s, UVA + QUEUE_AT(how & 1u) + 0x800u, 4, PART);
}

static void say_something(struct script *s, struct world *w)
{
    struct mint_vmsg m = {.magic = MINT_VMSG_MAGIC};
    uint8_t how = take8(s);
    uint32_t bytes = sizeof(m), n;
    int fds[3];

    m.type = how & 0x80u ? take32(s) : how % 10u;
    m.seq = how;
    if (m.type == MINT_VMSG_MEMORY) {
        m.u.memory.gpa = take_near(s, GPA, PART, FILES * PART);
        m.u.memory.uva = take_near(s, UVA, PART, FILES * 2ull * PART);
        m.u.memory.size = take_near(s, PART, 4096, 0);
        m.u.memory.offset = take_near(s, EDGE, 4096, 0);
    } else if (m.type == MINT_VMSG_FEATURES || (how & 0x70u) == 0x70u) {
        take_bytes(s, m.u.bytes, sizeof(m.u.bytes));
    } else {
        some_ring(s, &m);
    }
    if ((how & 0x7fu) == 0x7fu) {
        bytes = take8(s) % (uint32_t)sizeof(m);
        m.magic = take32(s);
    }
    n = some_fds(s, w, fds);
    w->all |= n > 0; /* another region; or a file to be "called", which is written to */
    if (m.type == MINT_VMSG_MEMORY && n == 1 && how & 0x20u)
        fds[0] = w->file[how & 1u];
    say(w, &m, bytes, fds, n);
    if (w->w.vhost->link < 0) { /* it hung up: as after a broken agent, another comes */
        close(w->link);
        for (uint32_t i = 0; i < 2; i++) {
            close(w->kick[i]);
            close(w->call[i]);
        }
        new_pairs(w);
    }
}

/* --- the honest ports, and the worker --------------------------------------------------------- */

static void send_honest(struct world *w, uint8_t how)
{
    if (post(w->f, 1, 2, 60u + how, (uint8_t)(w->sent % 251u)) == MINT_SENT)
        w->sent++;
    mint_port_flush(w->f->port[1]);
}

static void send_to_guest(struct script *s, struct world *w)
{
    static uint8_t frame[MINT_FRAME_MAX];
    uint32_t len = take_length(s, 60, MINT_FRAME_MAX);
    struct mint_vnet v;
    uint8_t dst[6], src[6];

    mac_of(GUEST, dst);
    mac_of(1, src);
    make_frame(frame, dst, src, len, 0x5a);
    take_bytes(s, &v, sizeof(v));
    take_bytes(s, frame + 12, 60 - 12);
    (void)mint_port_send(w->f->port[1], v.flags & 0x80u ? NULL : &v, frame, len, NULL);
    mint_port_took(w->f->port[1], len);
    mint_port_flush(w->f->port[1]);
}

static void receive(struct world *w, uint32_t at_port)
{
    struct mint_view v;
    uint8_t mac[6];

    while (mint_port_recv(w->f->port[at_port], &v)) {
        mac_of(v.src, mac);
        CHECK(memcmp(v.head + 6, mac, 6) == 0, "a frame of %u with another's MAC", v.src);
        touch(v.frame, v.len);
        if (v.src == 1) {
            CHECK(v.frame[v.len - 1] == (uint8_t)(w->got % 251u), "honest frame %u is damaged",
                  w->got);
            w->got++;
        }
        mint_port_release(w->f->port[at_port], &v);
    }
    mint_port_recycle(w->f->port[at_port]);
}

static void pump(struct world *w, uint8_t how)
{
    const struct mint_waiter *waiter = &w->w.vhost->waiter;

    if (how & 1u)
        w->w.device->in(&w->w);
    if (how & 2u)
        w->w.device->out(&w->w);
    if (how & 4u) {
        waiter->arm(waiter->context);
        waiter->pending(waiter->context);
        waiter->disarm(waiter->context);
    }
    if (how & 8u) {
        w->w.device->timeout(&w->w);
        mint_port_wait(w->w.port, 0);
    }
}

static void end(struct world *w)
{
    receive(w, 2);
    CHECK(w->got == w->sent, "%u of %u honest frames arrived", w->got, w->sent);
    for (uint32_t i = 0; !w->cut && !w->all && i < FILES; i++)
        for (uint32_t b = 0; b < EDGE; b++)
            CHECK(w->memory[i][b] == CANARY && w->memory[i][EDGE + PART + b] == CANARY,
                  "written outside of the guest's memory");
    close(w->link);
    mint_vhost_serve(&w->w); /* hangs up */
    for (uint32_t i = 0; i < 2; i++) {
        close(w->kick[i]);
        close(w->call[i]);
    }
    mint_plain_free(w->w.vhost->plain);
    free(w->w.vhost);
    for (uint32_t i = 0; i < 3; i++)
        crash_port(w->f, i);
    for (uint32_t i = 0; w->cut && i < FILES; i++) {
        munmap(w->memory[i], PART + 2 * EDGE);
        close(w->file[i]);
    }
    if (w->cut)
        make_files(w);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct world w;
    struct script s = {data, size};

    if (!w.f)
        make_world(&w);
    begin(&s, &w);
    while (s.left) {
        uint8_t op = take8(&s);
        uint32_t queue = op >> 7;

        switch (op & 15u) {
        case 0:
        case 1:
        case 2:
            guest_desc(&s, &w, queue);
            break;
        case 3:
        case 4:
        case 5:
            guest_index(&s, &w, queue);
            break;
        case 6:
        case 7:
            guest_frame(&s, &w);
            break;
        case 8:
        case 9:
        case 10:
            pump(&w, op >> 4);
            break;
        case 11:
            say_something(&s, &w);
            break;
        case 12:
            send_to_guest(&s, &w);
            break;
        case 13:
            send_honest(&w, op >> 4);
            break;
        case 14:
            receive(&w, 1u + queue);
            break;
        default:
            guest_cut(&s, &w);
        }
    }
    end(&w);
    return 0;
}
