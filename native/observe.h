/* SPDX-License-Identifier: Apache-2.0 */
/*
 * observe.h - reading a control region from outside, for status and metrics: costs its owner
 * nothing. Copies, because the owner may be hostile and change anything meanwhile.
 */
#ifndef MINT_OBSERVE_H
#define MINT_OBSERVE_H

#include "pooled_abi.h"

struct mint_ctl_view {
    uint64_t magic;
    uint32_t port, slots, pid, generation, wake;
    uint8_t mac[6];
    char name[MINT_NAME_MAX];
    uint64_t counter[MINT_PORT_COUNTERS];
};

struct mint_slot_view {
    uint64_t head, tail;
    uint32_t tx_end, rx_end, tx_want, tx_stalled;
    uint64_t tx_counter[MINT_TX_COUNTERS];
    uint64_t rx_counter[MINT_RX_COUNTERS];
};

size_t mint_ctl_bytes(uint32_t slots);
/* Bytes of a stock region whose buffers have `capacity` bytes. */
size_t mint_stock_bytes(uint32_t slots, uint32_t capacity);

/* Map a control region read-only. Return: NULL with errno set; EPROTO: not such a region. */
const struct mint_ctl *mint_ctl_map(int fd, uint32_t slots);
void mint_ctl_unmap(const struct mint_ctl *ctl, uint32_t slots);
void mint_ctl_read(const struct mint_ctl *ctl, struct mint_ctl_view *out);
/* @slot: less than the slots that the region was mapped with */
void mint_slot_read(const struct mint_ctl *ctl, uint32_t slot, struct mint_slot_view *out);

#endif
