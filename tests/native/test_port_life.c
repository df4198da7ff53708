/* SPDX-License-Identifier: Apache-2.0 */
/* test_port_life.c - opening, dying, leaving, coming back; peers that come and go; plain frames. */
#include "port_util.h"
#include "region.h"
#include <signal.h>

#define CAPACITY 393216u
#define SOON (2000 * MS)

#define EACH_LAYOUT(layout) \
    for (uint32_t layout = MINT_LAYOUT_PER_CHANNEL; layout <= MINT_LAYOUT_POOLED; layout++)

static struct fabric *open_fabric(uint32_t ports, uint32_t layout)
{
    return fabric_open(fabric_new(ports, layout, CAPACITY));
}

static void comes(struct fabric *f, uint32_t at, int mark)
{
    int got = recv_mark(f, at);

    CHECK(got == mark, "port %u received %d, not %d", at, got, mark);
}

/* ------------------------------------------------------------------------------ dying processes */

/* What was published stays; what was taken and not published is counted by the next process. */
static void a_sender_dies(void)
{
    EACH_LAYOUT(layout)
    {
        struct fabric *f = open_fabric(3, layout);

        for (uint32_t life = 1; life <= 5; life++) {
            uint8_t frame[100];

            CHECK(send_frame(f, 0, 1, 100, 1) == MINT_SENT, "not sent");
            CHECK(send_frame(f, 0, 1, 100, 2) == MINT_SENT, "not sent");
            CHECK(post(f, 0, 1, 100, 3) == MINT_SENT, "not sent"); /* staged */
            mint_port_took(f->port[0], sizeof(frame));             /* taken, and no more */
            crash_port(f, 0);
            open_port(f, 0);
            CHECK(port_counter(f, 0, MINT_PORT_RESTARTS) == life, "restarts");
            CHECK(load_relaxed(&f->port[0]->ctl->generation) == life + 1, "generation");
            CHECK(load_relaxed(&f->port[0]->ctl->pid) == (uint32_t)getpid(), "pid");
            comes(f, 1, 1);
            comes(f, 1, 2);
            if (layout == MINT_LAYOUT_SHARED)
                comes(f, 1, 3); /* a pool's handle publishes what is staged when it is detached */
            comes(f, 1, -1);
            CHECK(port_counter(f, 0, MINT_PORT_DROP_RESTART) == 2 * life, "%llu counted in life %u",
                  (unsigned long long)port_counter(f, 0, MINT_PORT_DROP_RESTART), life);
            CHECK(port_counter(f, 0, MINT_PORT_IN_FRAMES) == 4 * life, "in");
            CHECK(port_counter(f, 0, MINT_PORT_IN_DONE) == 4 * life, "done");
        }
        CHECK(rx_counter(f, 1, 0, MINT_RX_RESETS) == 0, "the receiver noticed");
        fabric_free(f);
    }
}

static void a_receiver_dies(void)
{
    EACH_LAYOUT(layout)
    {
        struct fabric *f = open_fabric(3, layout);
        uint32_t wake = 0;

        for (uint32_t life = 1; life <= 5; life++) {
            CHECK(send_frame(f, 0, 1, 100, 1) == MINT_SENT, "not sent");
            CHECK(send_frame(f, 2, 1, 100, 2) == MINT_SENT, "not sent");
            mint_port_arm(f->port[1]); /* it dies asleep */
            wake = load_relaxed(&f->port[1]->ctl->wake);
            crash_port(f, 1);
            CHECK(send_frame(f, 0, 1, 100, 3) == MINT_SENT, "down, though it will be back");
            open_port(f, 1);
            CHECK(load_relaxed(&f->port[1]->ctl->wake) > wake, "a wake word is used again");
            CHECK(!(load_relaxed(&f->port[1]->ctl->wake) & 1u), "awake, and says it sleeps");
            for (uint32_t sum = 0, n = 0; n < 3; n++) {
                int mark = recv_mark(f, 1);

                CHECK(mark > 0, "a frame is lost");
                sum += (uint32_t)mark;
                CHECK(n < 2 || sum == 6, "wrong frames");
            }
            comes(f, 1, -1);
        }
        CHECK(tx_counter(f, 0, 1, MINT_TX_DROP_RESET) == 0, "counted as lost");
        CHECK(tx_counter(f, 0, 1, MINT_TX_RESETS) == 0, "the sender noticed");
        fabric_free(f);
    }
}

/* A frame that was handed out and not given back comes again, and is counted
 * as dropped in layout shared: at most the batch in hand either way. */
static void a_receiver_dies_with_frames_in_hand(void)
{
    EACH_LAYOUT(layout)
    {
        struct fabric *f = open_fabric(2, layout);
        struct mint_view v;

        for (uint8_t i = 0; i < 5; i++)
            CHECK(send_frame(f, 0, 1, 100, i) == MINT_SENT, "not sent");
        comes(f, 1, 0);
        CHECK(mint_port_recv(f->port[1], &v) && v.frame[99] == 1, "the second");
        mint_port_release(f->port[1], &v); /* not recycled */
        CHECK(mint_port_recv(f->port[1], &v) && v.frame[99] == 2, "the third");
        crash_port(f, 1);
        open_port(f, 1);
        if (layout != MINT_LAYOUT_SHARED) {
            comes(f, 1, 1);
            comes(f, 1, 2);
        }
        comes(f, 1, 3);
        comes(f, 1, 4);
        comes(f, 1, -1);
        fabric_free(f);
    }
}

/* A sender that dies while it waits for room leaves nothing behind that keeps the next awake. */
static void a_waiting_sender_dies(void)
{
    EACH_LAYOUT(layout)
    {
        struct fabric *f = open_fabric(2, layout);

        while (send_frame(f, 0, 1, 60000, 1) == MINT_SENT)
            ;
        mint_port_wait_room(f->port[0], 1);
        crash_port(f, 0);
        open_port(f, 0);
        while (recv_mark(f, 1) >= 0)
            ;
        while (mint_port_wait(f->port[0], 0) != MINT_EV_TIMER) /* the rings of the beginning */
            comes(f, 0, -1);
        CHECK(mint_port_wait(f->port[0], 10 * MS) == MINT_EV_TIMER, "kept awake");
        CHECK(send_frame(f, 0, 1, 60000, 2) == MINT_SENT, "no room");
        comes(f, 1, 2);
        fabric_free(f);
    }
}

/* -------------------------------------------------------------------------- leaving, coming back */

static void what_a_leaver_sent_arrives(void)
{
    EACH_LAYOUT(layout)
    {
        struct fabric *f = open_fabric(3, layout);

        for (uint8_t i = 0; i < 20; i++)
            CHECK(post(f, 0, 1, 100 + i, i) == MINT_SENT, "not sent");
        leave_port(f, 0);
        for (uint8_t i = 0; i < 10; i++)
            comes(f, 1, i);
        open_port(f, 0);
        for (uint8_t i = 20; i < 40; i++)
            CHECK(send_frame(f, 0, 1, 100, i) == MINT_SENT, "not sent");
        for (uint8_t i = 10; i < 40; i++)
            comes(f, 1, i);
        CHECK(tx_counter(f, 0, 1, MINT_TX_DROP_RESET) == 0, "counted as lost");
        CHECK(rx_counter(f, 1, 0, MINT_RX_RESETS) == 0, "a rule was broken");
        fabric_free(f);
    }
}

/* What a receiver leaves unread arrives when it is back, or is counted; nothing in between. */
static void what_a_leaver_did_not_read(void)
{
    EACH_LAYOUT(layout)
    {
        struct fabric *f = open_fabric(3, layout);
        uint64_t got = 0, dropped;

        for (uint32_t round = 1; round <= 5; round++) {
            for (uint8_t i = 0; i < 10; i++)
                CHECK(send_frame(f, 0, 1, 100, i) == MINT_SENT, "not sent");
            comes(f, 1, 0);
            got++;
            leave_port(f, 1);
            CHECK(send_frame(f, 0, 1, 100, 99) == MINT_DROPPED, "sent to a closed port");
            if (layout != MINT_LAYOUT_SHARED)
                CHECK(tx_counter(f, 0, 1, MINT_TX_DROP_RESET) == 9 * round, "not counted at once");
            open_port(f, 1);
            while (recv_mark(f, 1) >= 0)
                got++;
            CHECK(send_frame(f, 0, 1, 100, 7) == MINT_SENT, "not sent to the open port");
            comes(f, 1, 7);
            got++;
            dropped = tx_counter(f, 0, 1, MINT_TX_DROP_RESET);
            CHECK(got + dropped == 11 * round, "%llu received and %llu dropped of %u",
                  (unsigned long long)got, (unsigned long long)dropped, 11 * round);
            CHECK(tx_counter(f, 0, 1, MINT_TX_FRAMES) == 11 * round, "sent");
        }
        fabric_free(f);
    }
}

/* A peer that is gone for good takes nothing along that is not counted, nor any room. */
static void a_dropped_peer_gives_all_back(void)
{
    EACH_LAYOUT(layout)
    {
        struct fabric *f = open_fabric(3, layout);
        uint32_t descriptors = open_descriptors(), mappings = mapped_regions();
        uint64_t sent = 0;

        for (uint32_t round = 0; round < 20; round++) {
            while (send_frame(f, 0, 1, 3000, 1) == MINT_SENT)
                sent++;
            CHECK(mint_port_drop_peer(f->port[0], 1) == 0, "drop");
            CHECK(tx_counter(f, 0, 1, MINT_TX_DROP_RESET) == sent, "%llu of %llu counted",
                  (unsigned long long)tx_counter(f, 0, 1, MINT_TX_DROP_RESET),
                  (unsigned long long)sent);
            CHECK(send_frame(f, 0, 1, 100, 1) == MINT_DROPPED, "sent to one who is gone");
            leave_port(f, 1);
            open_port(f, 1);
            join_peer(f, 0, 1);
            CHECK(recv_mark(f, 1) == -1, "something old");
            CHECK(send_frame(f, 0, 1, 100, 5) == MINT_SENT && recv_mark(f, 1) == 5, "again");
        }
        CHECK(sent > 20 * 30, "only %llu frames", (unsigned long long)sent);
        CHECK(open_descriptors() == descriptors, "descriptors leak");
        CHECK(mapped_regions() == mappings, "mappings leak");
        fabric_free(f);
    }
}

/* An index is used again for a new port, with a new control region. */
static void an_index_is_used_again(void)
{
    EACH_LAYOUT(layout)
    {
        struct fabric *f = open_fabric(3, layout);

        for (uint32_t round = 0; round < 10; round++) {
            CHECK(send_frame(f, 2, 1, 100, 1) == MINT_SENT, "not sent");
            CHECK(send_frame(f, 0, 1, 100, 2) == MINT_SENT, "not sent");
            CHECK(send_frame(f, 1, 0, 100, 3) == MINT_SENT, "not sent");
            comes(f, 0, 3);
            if (round % 2)
                crash_port(f, 1);
            else
                leave_port(f, 1);
            mint_port_drop_peer(f->port[0], 1);
            if (round % 3)
                mint_port_drop_peer(f->port[2], 1);
            else
                crash_port(f, 2); /* which never learns that 1 is gone */
            close(f->ctl[1]);
            f->ctl[1] = region_file(MINT_CTL_BYTES(f->ports), SEALS);
            if (round % 3 == 0) {
                open_port(f, 2);
                open_port(f, 1);
            } else {
                open_port(f, 1);
                join_peer(f, 2, 1);
            }
            join_peer(f, 0, 1);
            comes(f, 1, -1);
            for (uint32_t i = 0; i < 3; i++) {
                CHECK(send_frame(f, 0, 1, 100, 4) == MINT_SENT, "not sent");
                comes(f, 1, 4);
                CHECK(send_frame(f, 2, 1, 100, 5) == MINT_SENT, "not sent");
                comes(f, 1, 5);
                CHECK(send_frame(f, 1, 2, 100, 6) == MINT_SENT, "not sent");
                comes(f, 2, 6);
            }
        }
        fabric_free(f);
    }
}

/* What the port that had an index before has read is not lost with it. */
static void what_a_former_port_read_is_not_lost(void)
{
    EACH_LAYOUT(layout)
    {
        struct fabric *f = open_fabric(3, layout);

        for (uint32_t i = 0; i < 100; i++) {
            CHECK(send_frame(f, 0, 1, 100, 1) == MINT_SENT, "not sent");
            comes(f, 1, 1);
        }
        leave_port(f, 1);
        mint_port_drop_peer(f->port[0], 1);
        mint_port_drop_peer(f->port[2], 1);
        close(f->ctl[1]);
        f->ctl[1] = region_file(MINT_CTL_BYTES(f->ports), SEALS);
        if (layout == MINT_LAYOUT_PER_CHANNEL) {
            close(f->payload[0][1]);
            f->payload[0][1] = region_file(CAPACITY, SEALS);
        }
        join_peer(f, 0, 1);
        join_peer(f, 2, 1);
        if (layout != MINT_LAYOUT_SHARED) /* there, what waits for a port that comes is sent */
            CHECK(send_frame(f, 0, 1, 100, 2) == MINT_DROPPED, "sent before it is there");
        open_port(f, 1);
        CHECK(send_frame(f, 0, 1, 100, 3) == MINT_SENT, "not sent");
        comes(f, 1, 3);
        CHECK(tx_counter(f, 0, 1, MINT_TX_DROP_RESET) == 0, "%llu lost of 100 that came",
              (unsigned long long)tx_counter(f, 0, 1, MINT_TX_DROP_RESET));
        fabric_free(f);
    }
}

/* ------------------------------------------------------------------------------- what is refused */

static void bad_configurations_are_refused(void)
{
    struct fabric *f = fabric_new(3, MINT_LAYOUT_PER_CHANNEL, CAPACITY);
    int unsealed = region_file(MINT_CTL_BYTES(3), F_SEAL_GROW), small = region_file(8192, SEALS);
    uint32_t descriptors = open_descriptors();
    struct mint_port_config c;
    struct mint_port *port;
    int pipe_ends[2];

#define REFUSED(wanted, change, fd) \
    do { \
        int err; \
        c = port_config(f, 0); \
        change; \
        err = mint_port_open(&port, &c, fd, -1); \
        CHECK(err == (wanted), #change ": %d", err); \
    } while (0)
    CHECK(pipe2(pipe_ends, O_CLOEXEC) == 0, "pipe");
    REFUSED(-EINVAL, c.index = 3, f->ctl[0]);
    REFUSED(-EINVAL, c.slots = 0, f->ctl[0]);
    REFUSED(-EINVAL, c.slots = MINT_PORTS_MAX + 1, f->ctl[0]);
    REFUSED(-EINVAL, c.layout = MINT_LAYOUT_POOLED + 1, f->ctl[0]);
    REFUSED(-EINVAL, c.mac[0] = 1, f->ctl[0]);
    REFUSED(-EPROTO, c.name[0] = 'x', unsealed);
    REFUSED(-EPROTO, c.name[0] = 'x', small);
    REFUSED(-EPROTO, c.name[0] = 'x', pipe_ends[0]);
    REFUSED(-EPROTO, c.name[0] = 'x', -1);
    REFUSED(0, c.name[0] = 'x', f->ctl[0]);
    mint_port_close(port);
    REFUSED(-EPROTO, c.index = 1, f->ctl[0]); /* it is port 0's */
    REFUSED(0, c.index = 0, f->ctl[0]);
    mint_port_close(port);
    close(pipe_ends[0]);
    close(pipe_ends[1]);
    CHECK(open_descriptors() == descriptors, "descriptors leak");
    close(unsealed);
    close(small);
    fabric_free(f);
#undef REFUSED
}

/* A peer that cannot be added leaves nothing behind, and its ends closed. */
static void bad_peers_are_refused(void)
{
    struct fabric *f = fabric_new(4, MINT_LAYOUT_PER_CHANNEL, CAPACITY);
    struct mint_port_config me = port_config(f, 0);
    int unsealed = region_file(CAPACITY, F_SEAL_GROW), small = region_file(CAPACITY - 4096, SEALS);
    int other_ctl = region_file(MINT_CTL_BYTES(4), SEALS), alien = region_file(4096, SEALS);
    struct mint_peer_config c;
    uint32_t descriptors, mappings;
    const struct mint_slot *slot;
    char path[32];
    int read_only;

    CHECK(mint_port_open(&f->port[0], &me, f->ctl[0], -1) == 0, "open");
    open_port(f, 1);
    open_port(f, 3);
    CHECK(write(other_ctl, "nonsense", 8) == 8, "write");
    snprintf(path, sizeof(path), "/proc/self/fd/%d", f->payload[0][1]);
    read_only = open(path, O_RDONLY | O_CLOEXEC);
    slot = &f->port[0]->slots[1];
    descriptors = open_descriptors();
    mappings = mapped_regions();

#define REFUSED(wanted, change) \
    do { \
        int err; \
        c = peer_config(f, 0, 1); \
        change; \
        err = mint_port_add_peer(f->port[0], &c); \
        CHECK(err == (wanted), #change ": %d", err); \
        CHECK(MINT_END_STATE(load_relaxed(&slot->tx_end)) == MINT_END_CLOSED && \
                  MINT_END_STATE(load_relaxed(&slot->rx_end)) == MINT_END_CLOSED, \
              #change ": its ends are open"); \
        CHECK(mint_port_lookup(f->port[0], c.mac) < 0, #change ": its MAC is known"); \
    } while (0)
    REFUSED(-EINVAL, c.index = 4);
    REFUSED(-EINVAL, c.index = 0);
    REFUSED(-EINVAL, c.mac[0] = 3);
    REFUSED(-EINVAL, c.capacity = 65536);
    REFUSED(-EINVAL, c.capacity = CAPACITY + 8);
    REFUSED(-EINVAL, c.capacity = MINT_CAP_MAX + 4096u);
    REFUSED(-EPROTO, c.capacity = CAPACITY + 4096);
    REFUSED(-EPROTO, c.ctl_fd = other_ctl);
    REFUSED(-EPROTO, c.ctl_fd = alien);
    REFUSED(-EPROTO, c.ctl_fd = f->ctl[3]); /* says that it is port 3's */
    REFUSED(-EPROTO, c.ctl_fd = -1);
    REFUSED(-EACCES, c.tx_fd = c.rx_fd = read_only);
    REFUSED(-EPROTO, c.tx_fd = unsealed);
    REFUSED(-EPROTO, c.rx_fd = small);
    REFUSED(-EPROTO, c.tx_fd = -1);
    REFUSED(-EBADF, c.bell_fd = -1);
    CHECK(open_descriptors() == descriptors, "descriptors leak");
    CHECK(mapped_regions() == mappings, "mappings leak");

    c = peer_config(f, 0, 1);
    CHECK(mint_port_add_peer(f->port[0], &c) == 0, "a good one is refused");
    CHECK(mint_port_add_peer(f->port[0], &c) == -EEXIST, "added twice");
    c = peer_config(f, 0, 2);
    mac_of(1, c.mac);
    CHECK(mint_port_add_peer(f->port[0], &c) == -EEXIST, "a MAC that another has");
    CHECK(mint_port_lookup(f->port[0], c.mac) == 1, "and it was taken from the other");
    CHECK(send_frame(f, 0, 1, 100, 5) == MINT_SENT && recv_mark(f, 1) == 5, "it does not work");
    close(unsealed);
    close(small);
    close(other_ctl);
    close(alien);
    close(read_only);
    fabric_free(f);
#undef REFUSED
}

static void regions_are_checked(void)
{
    int good = region_file(8192, SEALS), shrinks = region_file(8192, F_SEAL_GROW);
    int grows = region_file(8192, F_SEAL_SHRINK), null = open("/dev/null", O_RDWR | O_CLOEXEC);
    volatile uint8_t *twice; /* the compiler knows nothing of mirrors */

    CHECK(mint_region_check(good, 8192) == 0, "a good one");
    CHECK(mint_region_check(good, 4096) == -EPROTO, "larger than said");
    CHECK(mint_region_check(good, 12288) == -EPROTO, "smaller than said");
    CHECK(mint_region_check(shrinks, 8192) == -EPROTO, "may shrink");
    CHECK(mint_region_check(grows, 8192) == -EPROTO, "may grow");
    CHECK(mint_region_check(null, 0) == -EPROTO, "no memory file");
    twice = mint_region_map_twice(good, 8192, true);
    CHECK(twice, "map: %s", strerror(errno));
    for (uint32_t i = 0; i < 8192; i++)
        twice[i] = 1;
    for (uint32_t i = 0; i < 8192; i++)
        CHECK(twice[8192 + i] == 1, "byte %u is not there twice", i);
    twice[8192 + 77] = 2;
    CHECK(twice[77] == 2, "not the same byte");
    munmap((void *)(uintptr_t)twice, 16384);
    CHECK(!mint_region_map_twice(null, 8192, true), "mapped what cannot be");
    close(good);
    close(shrinks);
    close(grows);
    close(null);
}

/* ---------------------------------------------------------------------------------- plain frames */

/* Many frames with one call each way, of all lengths; the buffer is never overrun. */
static void packed_frames(void)
{
    EACH_LAYOUT(layout)
    {
        struct fabric *f = open_fabric(2, layout);
        struct mint_plain *plain = mint_plain_new();
        uint8_t *out = malloc(200 * 600), *in = malloc(2 * MINT_FRAME_MAX);
        uint32_t lens[200], got[64], done, at = 0, n = 0;
        uint8_t dst[6], src[6];

        CHECK(out && in && plain, "out of memory");
        mac_of(1, dst);
        mac_of(0, src);
        for (uint32_t i = 0; i < 150; i++) {
            lens[i] = MINT_FRAME_MIN + i * 3;
            make_frame(out + at, dst, src, lens[i], (uint8_t)i);
            at += lens[i];
        }
        lens[140] = 13; /* what comes before it is sent */
        CHECK(mint_port_send_packed(f->port[0], out, lens, 150, 0, &done) == -EMSGSIZE, "13 bytes");
        CHECK(done == 140, "%u", done);
        CHECK(port_counter(f, 0, MINT_PORT_DROP_SHORT) == 1, "not counted");
        CHECK(port_counter(f, 0, MINT_PORT_IN_FRAMES) == 140, "in");
        CHECK(port_counter(f, 0, MINT_PORT_IN_DONE) == 140, "done");
        while (n < 140) {
            int r = mint_port_recv_packed(f->port[1], plain, in, 2 * MINT_FRAME_MAX, got, 64, SOON);
            uint32_t from = 0;

            CHECK(r > 0 && r <= 64, "%d", r);
            for (int i = 0; i < r; i++, n++) {
                CHECK(got[i] == lens[n], "frame %u: %u bytes", n, got[i]);
                CHECK(got[i] == 14 || in[from + got[i] - 1] == n, "frame %u is another", n);
                from += got[i];
            }
        }
        CHECK(mint_port_recv_packed(f->port[1], plain, in, MINT_FRAME_MAX, got, 64, 0) == 0,
              "more");
        CHECK(mint_port_recv_packed(f->port[1], plain, in, MINT_FRAME_MAX, got, 64, 5 * MS) == 0,
              "more");
        for (uint8_t i = 0; i < 3; i++)
            CHECK(send_frame(f, 0, 1, 100, i) == MINT_SENT, "not sent");
        for (uint8_t i = 0; i < 3; i++) /* there is room for a longest frame, once */
            CHECK(mint_port_recv_packed(f->port[1], plain, in, MINT_FRAME_MAX, got, 64, 0) == 1 &&
                      in[99] == i,
                  "frame %u", i);
        CHECK(port_counter(f, 1, MINT_PORT_OUT_FRAMES) == 143, "out");
        mint_plain_free(plain);
        free(out);
        free(in);
        fabric_free(f);
    }
}

#define TCP_FRAME (14u + 40u + 3500u) /* four segments of up to 1000 bytes of payload */

/* Send one from port 0 to port 1. */
static void send_tcp(struct fabric *f)
{
    const struct mint_vnet gso = {1, MINT_GSO_TCPV4, 54, 1000, 34, 16, 0};
    uint8_t frame[TCP_FRAME] = {0};

    mac_of(1, frame);
    mac_of(0, frame + 6);
    memcpy(frame + 12, (const uint8_t[]){0x08, 0x00, 0x45, 0x00}, 4);
    frame[16] = (TCP_FRAME - 14) >> 8;
    frame[17] = (TCP_FRAME - 14) & 0xff;
    frame[23] = 6;    /* TCP */
    frame[46] = 0x50; /* its header: 20 bytes */
    CHECK(mint_port_send(f->port[0], &gso, frame, TCP_FRAME, NULL) == MINT_SENT, "not sent");
    mint_port_flush(f->port[0]);
}

/* A segmented frame arrives cut, with its checksums, in pieces of the receiver's MTU. */
static void plain_receivers_get_plain_frames(void)
{
    EACH_LAYOUT(layout)
    {
        struct fabric *f = open_fabric(2, layout);
        struct mint_plain *plain = mint_plain_new();
        uint8_t out[MINT_FRAME_MAX];
        uint32_t sizes[4] = {0};

        send_tcp(f);
        CHECK(send_frame(f, 0, 1, 200, 9) == MINT_SENT, "sent");
        for (uint32_t i = 0; i < 4; i++)
            sizes[i] = mint_plain_recv(plain, f->port[1], out, sizeof(out));
        CHECK(sizes[0] == 1054 && sizes[1] == 1054 && sizes[2] == 1054 && sizes[3] == 554,
              "%u, %u, %u, %u", sizes[0], sizes[1], sizes[2], sizes[3]);
        CHECK(mint_plain_recv(plain, f->port[1], out, sizeof(out)) == 200, "the next frame");
        CHECK(mint_plain_recv(plain, f->port[1], out, sizeof(out)) == 0, "more");
        CHECK(port_counter(f, 1, MINT_PORT_SEGMENTED) == 1, "not counted");
        mint_port_recycle(f->port[1]);
        mint_plain_free(plain);
        fabric_free(f);
    }
}

/*
 * Part of a segmented frame is handed over, and its record given back, when the process dies: the rest
 * is lost, and counted.
 */
static void a_receiver_dies_while_it_cuts(void)
{
    EACH_LAYOUT(layout)
    {
        struct fabric *f = open_fabric(2, layout);
        uint8_t *out = malloc(6 * MINT_FRAME_MAX);

        for (uint32_t given = 1; given <= 5;
             given++) { /* the last time: all, and that it was all */
            struct mint_plain *plain = mint_plain_new();
            uint32_t lens[5];
            int n;

            send_tcp(f);
            n = mint_port_recv_packed(f->port[1], plain, out, 6 * MINT_FRAME_MAX, lens, given, 0);
            CHECK(n == (int)(given < 5 ? given : 4), "%d segments", n);
            crash_port(f, 1);
            mint_plain_free(plain);
            open_port(f, 1);
            CHECK(recv_mark(f, 1) == -1, "it comes again");
            CHECK(port_counter(f, 1, MINT_PORT_DROP_RESTART) == (given < 5 ? given : 4),
                  "%llu counted after %u",
                  (unsigned long long)port_counter(f, 1, MINT_PORT_DROP_RESTART), given);
        }
        free(out);
        fabric_free(f);
    }
}

/* What the caller's buffer cannot hold is dropped, counted, and does not stop what follows. */
static void plain_frames_that_do_not_fit(void)
{
    EACH_LAYOUT(layout)
    {
        struct fabric *f = open_fabric(2, layout);
        struct mint_plain *plain = mint_plain_new();
        uint8_t out[1000];

        CHECK(send_frame(f, 0, 1, 1001, 1) == MINT_SENT, "sent");
        CHECK(send_frame(f, 0, 1, 1000, 2) == MINT_SENT, "sent");
        CHECK(mint_plain_recv(plain, f->port[1], out, sizeof(out)) == 1000, "what fits");
        CHECK(out[999] == 2, "another");
        mint_port_recycle(f->port[1]);
        CHECK(rx_counter(f, 1, 0, MINT_RX_DROP_TOO_BIG) == 1, "not counted");
        CHECK(rx_counter(f, 1, 0, MINT_RX_FRAMES) == 1, "counted as received");
        mint_plain_free(plain);
        fabric_free(f);
    }
}

static void on_alarm(int signal_number)
{
    (void)signal_number;
}

/* A signal, or control, ends each call that waits. */
static void waits_can_be_interrupted(void)
{
    EACH_LAYOUT(layout)
    {
        struct fabric *f = fabric_new(2, layout, CAPACITY);
        struct mint_plain *plain = mint_plain_new();
        struct sigaction act = {.sa_handler = on_alarm}, before;
        uint8_t *big = calloc(1, MINT_FRAME_MAX);
        uint32_t len = 60000, done;
        int control[2];

        f->stall_us = 60u * 1000000u;
        fabric_open(f);
        CHECK(big && sigaction(SIGALRM, &act, &before) == 0, "sigaction");
        mac_of(1, big);
        mac_of(0, big + 6);
        while (send_frame(f, 0, 1, 60000, 1) == MINT_SENT)
            ;
        ualarm(20000, 0);
        CHECK(mint_port_send_packed(f->port[0], big, &len, 1, -1, &done) == -EINTR, "sending");
        ualarm(20000, 0);
        CHECK(mint_port_send_packed(f->port[0], big, &len, 1, 60000 * MS, &done) == -EINTR,
              "sending");
        ualarm(20000, 0);
        CHECK(mint_port_recv_packed(f->port[0], plain, big, MINT_FRAME_MAX, &len, 1, -1) == -EINTR,
              "receiving");
        sigaction(SIGALRM, &before, NULL);

        CHECK(pipe2(control, O_CLOEXEC) == 0 && write(control[1], "x", 1) == 1, "pipe");
        CHECK(mint_port_watch(f->port[0], control[0], MINT_EV_CONTROL) == 0, "watch");
        len = 60000;
        CHECK(mint_port_send_packed(f->port[0], big, &len, 1, -1, &done) == -EINTR, "sending");
        CHECK(done == 0, "sent");
        CHECK(mint_port_recv_packed(f->port[0], plain, big, MINT_FRAME_MAX, &len, 1, -1) == -EINTR,
              "receiving");
        CHECK(mint_port_unwatch(f->port[0], control[0]) == 0, "unwatch");
        len = 60000;
        CHECK(mint_port_send_packed(f->port[0], big, &len, 1, 5 * MS, &done) == -ETIMEDOUT, "late");
        close(control[0]);
        close(control[1]);
        mint_plain_free(plain);
        free(big);
        fabric_free(f);
    }
}

static const struct check_test tests[] = {
    CHECK_TEST(a_sender_dies),
    CHECK_TEST(a_receiver_dies),
    CHECK_TEST(a_receiver_dies_with_frames_in_hand),
    CHECK_TEST(a_waiting_sender_dies),
    CHECK_TEST(what_a_leaver_sent_arrives),
    CHECK_TEST(what_a_leaver_did_not_read),
    CHECK_TEST(a_dropped_peer_gives_all_back),
    CHECK_TEST(an_index_is_used_again),
    CHECK_TEST(what_a_former_port_read_is_not_lost),
    CHECK_TEST(bad_configurations_are_refused),
    CHECK_TEST(bad_peers_are_refused),
    CHECK_TEST(regions_are_checked),
    CHECK_TEST(packed_frames),
    CHECK_TEST(plain_receivers_get_plain_frames),
    CHECK_TEST(a_receiver_dies_while_it_cuts),
    CHECK_TEST(plain_frames_that_do_not_fit),
    CHECK_TEST(waits_can_be_interrupted),
};

int main(int argc, char **argv)
{
    return CHECK_MAIN(argc, argv, tests);
}
