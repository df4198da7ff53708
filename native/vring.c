/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vring.c - see vring.h.
 *
 * The driver may change anything in its memory at any time. Every index and every field of a
 * descriptor is therefore loaded once, checked, and used from the copy; a chain has no more
 * descriptors than the queue (or the indirect table) and every byte of it was looked up in the
 * guest's memory. What does not hold ends the queue, not the process.
 *
 * Chains are used in the order in which they were made available. So the used index alone tells
 * where a device that died had got to, and the next one goes on there (section 2.7.8 leaves it to
 * the device in which order it uses them).
 *
 * Notifications, section 2.7.7 and 2.7.10: with EVENT_IDX each side names the position whose
 * passing it wants to hear of, without it a flag says whether it wants to hear at all. Either way
 * publish meets sleep (order.h, rule 2): a full fence stands between publishing the used index and
 * looking whether the driver wants a signal, and between asking for a kick and the last look at
 * the available index.
 */
#include "vring.h"
#include "order.h"
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define NO_INTERRUPT 1u /* avail flags */
#define NO_NOTIFY 1u    /* used flags */

#define load16(p) __atomic_load_n((p), __ATOMIC_RELAXED)
#define load32(p) __atomic_load_n((p), __ATOMIC_RELAXED)
#define load64(p) __atomic_load_n((p), __ATOMIC_RELAXED)
#define store16(p, v) __atomic_store_n((p), (v), __ATOMIC_RELAXED)
#define store32(p, v) __atomic_store_n((p), (v), __ATOMIC_RELAXED)

static uint16_t *used_event(const struct mint_vring *q)
{
    return q->avail + 2 + q->size;
}

static struct mint_vused_elem *used_elem(const struct mint_vring *q, uint16_t position)
{
    return (struct mint_vused_elem *)(void *)(q->used + 2) + (position & (q->size - 1));
}

static uint16_t *avail_event(const struct mint_vring *q)
{
    return q->used + 2 + 4 * (size_t)q->size;
}

int mint_vring_set(struct mint_vring *q, struct mint_gmem *m, uint32_t size, uint64_t desc,
                   uint64_t avail, uint64_t used)
{
    uint8_t *d, *a, *u;

    q->set = false;
    if (!size || size > MINT_VRING_SIZE_MAX || (size & (size - 1)))
        return -EINVAL;
    d = mint_gmem_ring(m, desc, 16ull * size);
    a = mint_gmem_ring(m, avail, 6 + 2ull * size);
    u = mint_gmem_ring(m, used, 6 + 8ull * size);
    if (!d || !a || !u)
        return -EFAULT;
    if ((uintptr_t)d & 15 || (uintptr_t)a & 1 || (uintptr_t)u & 3)
        return -EINVAL;
    q->desc = (struct mint_vdesc *)(void *)d;
    q->avail = (uint16_t *)(void *)a;
    q->used = (uint16_t *)(void *)u;
    q->size = (uint16_t)size;
    q->next_avail = q->next_used = q->avail_seen = load16(&q->used[1]);
    q->signalled_valid = false;
    /* A device that died awake has left word that it wants no kick; the first sleep would be for good. */
    store16(&q->used[0], 0);
    q->suppressed = false;
    q->broken = false;
    q->set = true;
    return 0;
}

int mint_vring_ready(struct mint_vring *q)
{
    uint16_t n;

    /* Pairs with the driver's publishing: the descriptors are written before the index. */
    q->avail_seen = __atomic_load_n(&q->avail[1], __ATOMIC_ACQUIRE);
    n = (uint16_t)(q->avail_seen - q->next_avail);
    return n > q->size ? -EPROTO : n;
}

static struct mint_vdesc load_desc(const struct mint_vdesc *at)
{
    struct mint_vdesc d = {.addr = load64(&at->addr),
                           .len = load32(&at->len),
                           .flags = load16(&at->flags),
                           .next = load16(&at->next)};

    return d;
}

/* Resolve one descriptor into the chain. */
static int add(struct mint_gmem *m, const struct mint_vdesc *d, bool write, struct mint_chain *c)
{
    uint64_t addr = d->addr, left = d->len;

    if (((d->flags & MINT_VDESC_WRITE) != 0) != write)
        return -EPROTO;
    while (left) {
        uint64_t n = left;
        uint8_t *at = mint_gmem_at(m, addr, &n);

        if (!at || c->count == MINT_CHAIN_SEGS)
            return -EPROTO;
        c->iov[c->count].iov_base = at;
        c->iov[c->count++].iov_len = n;
        addr += n;
        left -= n;
    }
    c->bytes += d->len;
    return 0;
}

/* One entry of an indirect table, which may lie across regions. */
static int load_indirect(struct mint_gmem *m, uint64_t addr, struct mint_vdesc *d)
{
    uint8_t raw[sizeof(*d)];
    uint64_t done = 0;

    while (done < sizeof(raw)) {
        uint64_t n = sizeof(raw) - done;
        const uint8_t *at = mint_gmem_at(m, addr + done, &n);

        if (!at)
            return -EPROTO;
        if (n == sizeof(raw) && !((uintptr_t)at & 15)) {
            *d = load_desc((const struct mint_vdesc *)(const void *)at);
            return 0;
        }
        memcpy(raw + done, at, n);
        done += n;
    }
    memcpy(d, raw, sizeof(raw));
    return 0;
}

/* Section 2.7.5.3: a table of descriptors in place of the chain; no table within a table. */
static int walk_indirect(struct mint_gmem *m, const struct mint_vdesc *table, bool write,
                         struct mint_chain *c)
{
    uint32_t count = table->len / (uint32_t)sizeof(struct mint_vdesc), i = 0;

    if (!count || table->len % sizeof(struct mint_vdesc) || table->flags & MINT_VDESC_NEXT)
        return -EPROTO;
    for (uint32_t steps = 0; steps < count && steps < MINT_CHAIN_STEPS; steps++) {
        struct mint_vdesc d;

        if (i >= count || load_indirect(m, table->addr + 16ull * i, &d) < 0 ||
            d.flags & MINT_VDESC_INDIRECT || add(m, &d, write, c) < 0)
            return -EPROTO;
        if (!(d.flags & MINT_VDESC_NEXT))
            return 0;
        i = d.next;
    }
    return -EPROTO; /* it runs in a circle, or is longer than any driver's */
}

int mint_vring_peek(const struct mint_vring *q, struct mint_gmem *m, uint16_t ahead, bool write,
                    struct mint_chain *c)
{
    uint16_t i = load16(&q->avail[2 + ((uint16_t)(q->next_avail + ahead) & (q->size - 1))]);

    c->id = i;
    c->count = 0;
    c->bytes = 0;
    for (uint32_t steps = 0; steps < q->size && steps < MINT_CHAIN_STEPS; steps++) {
        struct mint_vdesc d;

        if (i >= q->size)
            return -EPROTO;
        d = load_desc(&q->desc[i]);
        if (d.flags & MINT_VDESC_INDIRECT)
            return q->indirect && !steps ? walk_indirect(m, &d, write, c) : -EPROTO;
        if (add(m, &d, write, c) < 0)
            return -EPROTO;
        if (!(d.flags & MINT_VDESC_NEXT))
            return 0;
        i = d.next;
    }
    return -EPROTO; /* it runs in a circle, or is longer than any driver's */
}

void mint_vring_used(struct mint_vring *q, uint16_t id, uint32_t len)
{
    struct mint_vused_elem *e = used_elem(q, q->next_used);

    store32(&e->id, id);
    store32(&e->len, len);
    q->next_used++;
    q->next_avail++;
}

static void signal_driver(struct mint_vring *q)
{
    static const uint64_t one = 1;

    if (q->call < 0)
        return;
    /* Errors are the guest's affair: its interrupt is pending already, or it is gone. */
    if (q->call_is_socket)
        (void)send(q->call, &one, sizeof(one), MSG_DONTWAIT | MSG_NOSIGNAL);
    else if (write(q->call, &one, sizeof(one)) < 0)
        return;
}

static bool wants_signal(struct mint_vring *q)
{
    uint16_t old = q->signalled, event;
    bool valid = q->signalled_valid;

    if (!q->event_idx)
        return !(load16(&q->avail[0]) & NO_INTERRUPT);
    q->signalled = q->next_used;
    q->signalled_valid = true;
    if (!valid)
        return true;
    event = load16(used_event(q));
    return (uint16_t)(q->next_used - event - 1) < (uint16_t)(q->next_used - old);
}

bool mint_vring_publish(struct mint_vring *q)
{
    if (q->next_used == load16(&q->used[1]))
        return false;
    /* Pairs with the driver's acquire: the elements, and what they tell of, come first. */
    __atomic_store_n(&q->used[1], q->next_used, __ATOMIC_RELEASE);
    full_fence(); /* pairs with the driver's, between asking for a signal and its last look */
    if (!wants_signal(q))
        return false;
    signal_driver(q);
    return true;
}

void mint_vring_signal(struct mint_vring *q)
{
    signal_driver(q);
}

void mint_vring_want_kick(struct mint_vring *q)
{
    if (q->event_idx)
        store16(avail_event(q), q->avail_seen);
    else if (q->suppressed)
        store16(&q->used[0], 0);
    q->suppressed = false;
    full_fence(); /* pairs with the driver's, between publishing and looking who wants a kick */
}

void mint_vring_no_kick(struct mint_vring *q)
{
    /* With EVENT_IDX the position that was named last stays: it is behind us, or one kick away. */
    if (!q->event_idx && !q->suppressed)
        store16(&q->used[0], NO_NOTIFY);
    q->suppressed = true;
}

void mint_chain_read(const struct mint_chain *c, uint64_t skip, void *to, uint64_t len)
{
    uint8_t *out = to;

    for (uint32_t i = 0; len && i < c->count; i++) {
        uint64_t n = c->iov[i].iov_len;

        if (skip >= n) {
            skip -= n;
            continue;
        }
        n = n - skip < len ? n - skip : len;
        memcpy(out, (uint8_t *)c->iov[i].iov_base + skip, n);
        skip = 0;
        out += n;
        len -= n;
    }
}

void mint_chain_write(const struct mint_chain *c, uint64_t skip, const void *from, uint64_t len)
{
    const uint8_t *in = from;

    for (uint32_t i = 0; len && i < c->count; i++) {
        uint64_t n = c->iov[i].iov_len;

        if (skip >= n) {
            skip -= n;
            continue;
        }
        n = n - skip < len ? n - skip : len;
        memcpy((uint8_t *)c->iov[i].iov_base + skip, in, n);
        skip = 0;
        in += n;
        len -= n;
    }
}
