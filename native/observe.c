/* SPDX-License-Identifier: Apache-2.0 */
/* observe.c - see observe.h. */
#include "observe.h"
#include "region.h"
#include <errno.h>
#include <string.h>
#include <sys/mman.h>

size_t mint_ctl_bytes(uint32_t slots)
{
    return MINT_CTL_BYTES(slots);
}

size_t mint_stock_bytes(uint32_t slots, uint32_t capacity)
{
    return MINT_STOCK_BYTES(slots, capacity);
}

const struct mint_ctl *mint_ctl_map(int fd, uint32_t slots)
{
    if (mint_region_check(fd, MINT_CTL_BYTES(slots))) {
        errno = EPROTO;
        return NULL;
    }
    return mint_region_map(fd, MINT_CTL_BYTES(slots), false);
}

void mint_ctl_unmap(const struct mint_ctl *ctl, uint32_t slots)
{
    munmap((void *)(uintptr_t)ctl, MINT_CTL_BYTES(slots));
}

void mint_ctl_read(const struct mint_ctl *ctl, struct mint_ctl_view *out)
{
    out->magic = load_acquire(&ctl->magic);
    out->port = ctl->port;
    out->slots = ctl->slots;
    out->pid = load_relaxed(&ctl->pid);
    out->generation = load_relaxed(&ctl->generation);
    out->wake = load_relaxed(&ctl->wake);
    memcpy(out->mac, ctl->mac, sizeof(out->mac));
    memcpy(out->name, ctl->name, sizeof(out->name));
    out->name[MINT_NAME_MAX - 1] = 0;
    for (uint32_t i = 0; i < MINT_PORT_COUNTERS; i++)
        out->counter[i] = load_relaxed(&ctl->counter[i]);
}

void mint_slot_read(const struct mint_ctl *ctl, uint32_t slot, struct mint_slot_view *out)
{
    const struct mint_slot *s = (const struct mint_slot *)(const void *)(ctl + 1) + slot;

    out->tail = load_relaxed(&s->tail);
    out->head = load_relaxed(&s->head);
    out->tx_end = load_relaxed(&s->tx_end);
    out->rx_end = load_relaxed(&s->rx_end);
    out->tx_want = load_relaxed(&s->tx_want);
    out->tx_stalled = load_relaxed(&s->tx_stalled);
    for (uint32_t i = 0; i < MINT_TX_COUNTERS; i++)
        out->tx_counter[i] = load_relaxed(&s->tx_counter[i]);
    for (uint32_t i = 0; i < MINT_RX_COUNTERS; i++)
        out->rx_counter[i] = load_relaxed(&s->rx_counter[i]);
}
