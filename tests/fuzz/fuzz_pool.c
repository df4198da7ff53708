/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fuzz_pool.c - layout shared: three ports of one pool, and a script that writes anywhere in it.
 *
 * Ports of a pool trust each other, so nothing is promised about the frames. But no process may
 * crash, leave the region or hang, whatever the pool says. (The lock's word is left alone: whoever
 * takes a living port's name in vain stops all, which is what a lock is. The names of ports that
 * nobody serves are tried by tests/native/test_pool_nonsense.c.)
 */
#include "fuzz.h"
#include "pool_util.h"

#define PORTS 3u
#define BLOCKS 130u

/* Anywhere but in the constant header, which is read once, and the lock. */
static void scribble(struct script *s, const struct region *r)
{
    uint8_t *base = (uint8_t *)r->head;
    uint8_t how = take8(s);
    uint32_t at = take16(s), value = take32(s);
    uint64_t word;

    switch (how & 7u) {
    case 0:
        at = 128u + at % 112u;
        break;
    case 1:
    case 2:
        at = (uint32_t)r->head->ports_at + at % (PORTS * 128u);
        break;
    case 3:
        at = (uint32_t)r->head->bitmap_at + at % (BLOCKS / 8u);
        break;
    case 4:
        word =
            MINT_BLOCK_WORD(value & 3u, (value >> 2) % 70u, (value >> 10) & 3u, (value >> 12) & 3u);
        store_relaxed(&r->block[at % BLOCKS].word, word);
        return;
    default:
        at = (uint32_t)r->head->table_at + at % (BLOCKS * 32u);
    }
    if (how & 0x80u)
        value %= BLOCKS + 2u;
    store_relaxed((mint_a32 *)(void *)(base + (at & ~3u)), value);
}

static void send_some(struct script *s, struct mint_pool_end *end)
{
    uint8_t how = take8(s);

    for (uint32_t i = 0; i < (how & 15u); i++) {
        uint32_t len = take_length(s, MINT_FRAME_MIN, MINT_FRAME_MAX);
        struct mint_rec *rec = mint_pool_reserve(end, (how >> 4) % PORTS, len);

        if (!rec)
            break;
        memset(rec->frame, 0x55, len);
        if (len % 13u == 0) {
            mint_pool_cancel(end, rec);
            continue;
        }
        store_relaxed(&rec->len, len);
        mint_pool_commit(end, (how >> 4) % PORTS, rec, len);
    }
    if (how & 0x40u)
        mint_pool_publish(end);
}

static void receive_some(struct script *s, struct mint_pool_end *end)
{
    uint8_t how = take8(s);
    const struct mint_rec *rec;
    uint32_t src, len;

    mint_pool_pending(end);
    for (uint32_t i = 0; i < (how & 63u) && (rec = mint_pool_next(end, &src, &len)); i++) {
        CHECK(src < PORTS, "sender %u", src);
        CHECK(len >= MINT_FRAME_MIN && len <= MINT_FRAME_MAX, "length %u", len);
        touch(rec->frame, len);
        if (how & 0x40u)
            mint_pool_release(end, rec);
    }
    mint_pool_recycle(end);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct region r;
    static mint_a64 counter[PORTS][MINT_PORT_COUNTERS];
    struct mint_pool_end *end[PORTS];
    struct script s = {data, size};

    if (!r.head)
        region_make(&r, PORTS, BLOCKS);
    memset((uint8_t *)r.head + 64, 0, r.head->data_at - 64); /* free, and nobody attached */
    for (uint32_t i = 0; i < PORTS; i++)
        CHECK(mint_pool_attach(&end[i], r.fd, i, counter[i]) == 0, "attach");
    while (s.left) {
        uint8_t op = take8(&s);
        uint32_t port = (op >> 4) % PORTS;

        switch (op & 7u) {
        case 0:
        case 1:
            scribble(&s, &r);
            break;
        case 2:
        case 3:
            send_some(&s, end[port]);
            break;
        case 4:
        case 5:
            receive_some(&s, end[port]);
            break;
        case 6:
            mint_pool_forget(end[port], op >> 6);
            break;
        default:
            mint_pool_publish(end[port]);
            mint_pool_detach(end[port]);
            CHECK(mint_pool_attach(&end[port], r.fd, port, counter[port]) == 0, "attach again");
        }
    }
    for (uint32_t i = 0; i < PORTS; i++)
        mint_pool_detach(end[i]);
    return 0;
}
