/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fuzz_port.c - a port with a hostile peer and an honest one, in layout per-channel; fuzz_pooled.c is
 * the same in layout pooled.
 *
 * Three ports. 0 and 2 are honest and open; 1 is the script, which has what its worker would have:
 * its control region, its payload regions (its stock) and its ends of the doorbells. Whatever it does,
 * each frame that 2 sends to 0 arrives once, in order and whole, or was refused to its sender.
 */
#include "fuzz.h"
#include "port_util.h"

#define CAP 135168u
#define A 1u /* the attacker */

#ifdef FUZZ_POOLED
#define LAYOUT MINT_LAYOUT_POOLED
#else
#define LAYOUT MINT_LAYOUT_PER_CHANNEL
#endif

struct world {
    struct fabric *f;
    struct mint_ctl *ctl;        /* the attacker's */
    struct mint_slot *slot;      /* its slots */
    uint8_t *payload[3];         /* its payload regions, by receiver; pooled: its buffers, thrice */
    struct mint_lane_ring *ring; /* pooled: its descriptors, by receiver */
    struct mint_plain *plain;    /* port 0's */
    uint32_t sent, got;          /* honest frames, 2 -> 0 */
};

static void *map_rw(int fd, size_t bytes)
{
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

    CHECK(p != MAP_FAILED, "mmap: %s", strerror(errno));
    return p;
}

static void make_world(struct world *w)
{
    w->f = fabric_new(3, LAYOUT, CAP);
    w->f->frame_max = 1514;
    w->ctl = map_rw(w->f->ctl[A], MINT_CTL_BYTES(3));
    w->slot = (struct mint_slot *)(void *)(w->ctl + 1);
    if (LAYOUT == MINT_LAYOUT_POOLED) {
        uint8_t *stock = map_rw(w->f->stock[A], MINT_STOCK_BYTES(3, CAP));

        w->ring = (struct mint_lane_ring *)(void *)(stock + MINT_STOCK_RINGS_AT(3));
        w->payload[0] = w->payload[2] = stock + MINT_STOCK_DATA_AT(3);
    } else {
        w->payload[0] = map_rw(w->f->payload[A][0], CAP);
        w->payload[2] = map_rw(w->f->payload[A][2], CAP);
    }
    w->plain = mint_plain_new();
    CHECK(w->plain, "out of memory");
}

static void zero_ctl(const struct fabric *f, uint32_t port)
{
    static uint8_t zero[MINT_CTL_BYTES(3)];

    CHECK(pwrite(f->ctl[port], zero, sizeof(zero), 0) == (ssize_t)sizeof(zero), "pwrite");
}

static void drain_bell(int fd)
{
    char sink[4096];

    while (recv(fd, sink, sizeof(sink), MSG_DONTWAIT) > 0)
        continue;
}

/* A fabric as new, the attacker's ends open as if it were honest. */
static void begin(struct world *w)
{
    struct fabric *f = w->f;

    for (uint32_t i = 0; i < 3; i++)
        zero_ctl(f, i);
    for (uint32_t i = 0; i < 3; i++)
        for (uint32_t j = 0; j < 3; j++)
            if (i != j)
                drain_bell(f->bell[i][j]);
    open_port(f, A);
    open_port(f, 0);
    open_port(f, 2);
    fabric_settle(f);
    crash_port(f, A); /* its words stay */
    w->sent = w->got = 0;
}

/* --- the attacker ---------------------------------------------------------------------------- */

static void attack_word(struct script *s, struct world *w, uint32_t victim)
{
    struct mint_slot *mine = &w->slot[victim];
    const struct mint_peer *peer = w->f->port[victim]->peers[A];
    uint64_t read = peer ? peer->rx.next : 0, head = peer ? peer->tx.published : 0;
    uint32_t rx_gen = peer ? peer->rx.gen : 0, tx_gen = peer ? peer->tx.gen : 0;

    switch (take8(s) % 10u) {
    case 0:
        store_release(&mine->head, take_near(s, read, MINT_LINE, CAP));
        break;
    case 1:
        store_release(&mine->tail, take_near(s, head, MINT_LINE, (uint64_t)0 - CAP));
        break;
    case 2:
        store_release(&mine->tx_end, MINT_END(rx_gen, take8(s) & 3u));
        break;
    case 3:
        store_release(&mine->rx_end, MINT_END(tx_gen + (take8(s) & 1u), take8(s) & 3u));
        break;
    case 4:
        store_release(&mine->tx_end, take32(s));
        break;
    case 5:
        store_release(&mine->rx_end, take32(s));
        break;
    case 6:
        store_release(&mine->tx_want, take32(s));
        break;
    case 7:
        store_release(&w->ctl->wake, take32(s));
        break;
    case 8:
        store_release(&w->ctl->magic, take(s, 8));
        w->ctl->slots = take32(s);
        break;
    default:
        store_relaxed(&mine->tx_counter[take8(s) % 16u], take(s, 8));
    }
}

/* Where the record is to lie that the victim reads at position `at`. */
static uint32_t place_record(struct script *s, struct world *w, uint32_t victim, uint64_t at,
                             uint32_t len)
{
    uint32_t block;

    if (LAYOUT != MINT_LAYOUT_POOLED)
        return (uint32_t)(at % CAP);
    block = take8(s) & 1u ? take16(s) : take8(s);
    store_relaxed(&w->ring[victim].desc[at / MINT_LINE % MINT_LANE_DESCS],
                  block & 0x8000u ? take(s, 8) : MINT_DESC(block, len));
    return block % (CAP / MINT_STOCK_BLOCK) * MINT_STOCK_BLOCK;
}

/* A record where the victim looks next, published at once if the script wants it so. */
static void attack_record(struct script *s, struct world *w, uint32_t victim)
{
    const struct mint_peer *peer = w->f->port[victim]->peers[A];
    uint64_t at = peer ? peer->rx.next : 0;
    uint32_t len = take_length(s, MINT_FRAME_MIN, 4000u);
    uint32_t place = place_record(s, w, victim, at, len), room = CAP - place;
    struct mint_rec *rec = (struct mint_rec *)(void *)(w->payload[victim] + place);
    uint8_t how = take8(s), mac[6];

    store_relaxed(&rec->len, how & 1u ? take32(s) : len);
    if (room < sizeof(*rec) + 64u)
        return;
    take_bytes(s, &rec->vnet, sizeof(rec->vnet));
    take_bytes(s, rec->frame, 14);
    mac_of(how & 2u ? A : 2, mac);
    if (how & 4u)
        memcpy(rec->frame + 6, mac, sizeof(mac));
    if (how & 8u)
        take_bytes(s, rec->frame + 14, 48);
    if (how & 16u)
        store_release(&w->slot[victim].head,
                      at + (LAYOUT == MINT_LAYOUT_POOLED ? MINT_LINE : MINT_REC_BYTES(len)));
}

static void attack_bell(struct script *s, struct world *w, uint32_t victim)
{
    static const uint8_t much[4096];
    uint8_t how = take8(s);

    if (how & 1u)
        (void)send(w->f->bell[A][victim], much, how * 16u + 1u, MSG_DONTWAIT | MSG_NOSIGNAL);
    else
        drain_bell(w->f->bell[A][victim]);
}

/* --- the honest ------------------------------------------------------------------------------ */

static void honest_send(struct script *s, struct world *w)
{
    uint8_t mark = (uint8_t)(w->sent % 251u);
    uint32_t len = 60u + take8(s) * 5u;
    enum mint_sent sent = post(w->f, 2, 0, len, mark);

    if (sent == MINT_SENT)
        w->sent++;
    else
        CHECK(sent == MINT_FULL, "an honest frame was dropped");
    mint_port_flush(w->f->port[2]);
}

static void check_frame(struct world *w, uint32_t src, const uint8_t *head, const uint8_t *frame,
                        uint32_t len)
{
    uint8_t mac[6];

    mac_of(src, mac);
    CHECK(memcmp(head + 6, mac, sizeof(mac)) == 0, "a frame of %u with another's MAC", src);
    touch(frame, len);
    if (src != 2)
        return;
    for (uint32_t i = 14; i < len; i++)
        CHECK(frame[i] == (uint8_t)(w->got % 251u), "honest frame %u: byte %u is %u", w->got, i,
              frame[i]);
    w->got++;
}

static bool receive_one(struct world *w, uint32_t at)
{
    struct mint_view v;

    if (!mint_port_recv(w->f->port[at], &v))
        return false;
    CHECK(v.src == A || v.src == 2 - at, "a frame from %u", v.src);
    if (at == 0)
        check_frame(w, v.src, v.head, v.frame, v.len);
    else
        touch(v.frame, v.len);
    mint_port_release(w->f->port[at], &v);
    return true;
}

/* As a port without offloads receives; whose frame it was shows by its MAC. */
static bool receive_plain(struct world *w)
{
    static uint8_t out[MINT_FRAME_MAX];
    uint8_t two[6];
    uint32_t len = mint_plain_recv(w->plain, w->f->port[0], out, sizeof(out));

    if (!len)
        return false;
    mac_of(2, two);
    check_frame(w, memcmp(out + 6, two, 6) == 0 ? 2 : A, out, out, len);
    return true;
}

static void receive(struct script *s, struct world *w)
{
    uint8_t how = take8(s);
    uint32_t at = how & 1u ? 2 : 0;

    for (uint32_t i = 0; i < (how >> 4); i++)
        if (!(at == 0 && how & 2u ? receive_plain(w) : receive_one(w, at)))
            break;
    if (how & 4u)
        mint_port_recycle(w->f->port[at]);
}

static void to_attacker(struct script *s, struct world *w)
{
    struct mint_port *port = w->f->port[0];
    uint32_t len = take_length(s, 60, 65000);

    if (post(w->f, 0, A, len, 7) == MINT_FULL) {
        if (len & 1u)
            mint_port_wait_room(port, A);
        if (len & 2u)
            mint_port_wait_peer(port, A, 0);
        if (len & 4u)
            mint_port_give_up(port, A);
        else
            mint_port_stop_waiting(port, A);
    }
    if (len & 8u)
        mint_port_flush(port);
}

static void wait_or_change(struct script *s, struct world *w)
{
    uint8_t how = take8(s);
    uint32_t at = how & 1u ? 2 : 0;
    struct mint_peer_config c = peer_config(w->f, 0, A);

    if (how < 240u) {
        mint_port_wait(w->f->port[at], 0);
        return;
    }
    if (w->f->port[0]->peers[A])
        mint_port_drop_peer(w->f->port[0], A);
    else
        (void)mint_port_add_peer(w->f->port[0], &c); /* its region may be no longer one: refused */
}

static void end(struct world *w)
{
    for (uint32_t quiet = 0; w->got < w->sent && quiet < 4096; quiet++) {
        while (receive_plain(w))
            continue;
        mint_port_recycle(w->f->port[0]);
    }
    CHECK(w->got == w->sent, "%u of %u honest frames arrived", w->got, w->sent);
    while (mint_plain_recv(w->plain, w->f->port[0], (uint8_t[MINT_FRAME_MAX]){0}, MINT_FRAME_MAX))
        continue;
    crash_port(w->f, 0);
    crash_port(w->f, 2);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct world w;
    struct script s = {data, size};

    if (!w.f)
        make_world(&w);
    begin(&w);
    while (s.left) {
        uint8_t op = take8(&s);
        uint32_t victim = op & 0x80u ? 2 : 0;

        switch (op & 15u) {
        case 0:
        case 1:
        case 2:
        case 3:
            attack_word(&s, &w, victim);
            break;
        case 4:
        case 5:
        case 6:
            attack_record(&s, &w, victim);
            break;
        case 7:
            attack_bell(&s, &w, victim);
            break;
        case 8:
        case 9:
            honest_send(&s, &w);
            break;
        case 10:
        case 11:
        case 12:
            receive(&s, &w);
            break;
        case 13:
            to_attacker(&s, &w);
            break;
        default:
            wait_or_change(&s, &w);
        }
    }
    end(&w);
    return 0;
}
