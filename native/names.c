/* SPDX-License-Identifier: Apache-2.0 */
/* names.c - the counters' names, as users and programs see them. */
#include "names.h"
#include "abi.h"

static const char *const tx_names[MINT_TX_COUNTERS] = {
    [MINT_TX_FRAMES] = "frames",
    [MINT_TX_BYTES] = "bytes",
    [MINT_TX_RINGS] = "rings",
    [MINT_TX_DROP_FULL] = "drop_full",
    [MINT_TX_DROP_STALLED] = "drop_stalled",
    [MINT_TX_DROP_DOWN] = "drop_down",
    [MINT_TX_STALLS] = "stalls",
    [MINT_TX_DROP_RESET] = "drop_reset",
    [MINT_TX_WAITS] = "waits",
    [MINT_TX_RESETS] = "resets",
};

static const char *const rx_names[MINT_RX_COUNTERS] = {
    [MINT_RX_FRAMES] = "frames",       [MINT_RX_BYTES] = "bytes",
    [MINT_RX_RINGS] = "rings",         [MINT_RX_DROP_SPOOF] = "drop_spoof",
    [MINT_RX_DROP_VNET] = "drop_vnet", [MINT_RX_DROP_DEVICE] = "drop_device",
    [MINT_RX_RESETS] = "resets",       [MINT_RX_SPURIOUS] = "spurious",
    [MINT_RX_MASKED] = "masked",       [MINT_RX_DROP_TOO_BIG] = "drop_too_big",
    [MINT_RX_SHUNNED] = "shunned",
};

static const char *const port_names[MINT_PORT_COUNTERS] = {
    [MINT_PORT_IN_FRAMES] = "in_frames",
    [MINT_PORT_IN_DONE] = "in_done",
    [MINT_PORT_IN_BYTES] = "in_bytes",
    [MINT_PORT_OUT_FRAMES] = "out_frames",
    [MINT_PORT_OUT_BYTES] = "out_bytes",
    [MINT_PORT_DROP_UNKNOWN] = "drop_unknown",
    [MINT_PORT_DROP_SHORT] = "drop_short",
    [MINT_PORT_DROP_LONG] = "drop_long",
    [MINT_PORT_DROP_SELF] = "drop_self",
    [MINT_PORT_DROP_RESTART] = "drop_restart",
    [MINT_PORT_DROP_NO_PEER] = "drop_no_peer",
    [MINT_PORT_FLOODED] = "flooded",
    [MINT_PORT_SLEEPS] = "sleeps",
    [MINT_PORT_WAKES_BELL] = "wakes_bell",
    [MINT_PORT_WAKES_DEVICE] = "wakes_device",
    [MINT_PORT_WAKES_TIMER] = "wakes_timer",
    [MINT_PORT_POLL_NS] = "poll_ns",
    [MINT_PORT_POLL_HITS] = "poll_hits",
    [MINT_PORT_LOCKS] = "locks",
    [MINT_PORT_LOCK_WAITS] = "lock_waits",
    [MINT_PORT_LOCK_WAIT_NS] = "lock_wait_ns",
    [MINT_PORT_LOCK_STEALS] = "lock_steals",
    [MINT_PORT_SEGMENTED] = "segmented",
    [MINT_PORT_CHECKSUMMED] = "checksummed",
    [MINT_PORT_LEARNED] = "learned",
    [MINT_PORT_RESTARTS] = "restarts",
    [MINT_PORT_DROP_DEVICE] = "drop_device",
    [MINT_PORT_DROP_BAD] = "drop_bad",
    [MINT_PORT_CALLS] = "calls",
    [MINT_PORT_RING_EMPTY] = "ring_empty",
    [MINT_PORT_RING_ERRORS] = "ring_errors",
    [MINT_PORT_RING_SETTLED] = "ring_settled",
    [MINT_PORT_RECLAIMS] = "reclaims",
    [MINT_PORT_SEG_SETTLED] = "segmented_settled",
};

#define NAME(table, i) ((i) < sizeof(table) / sizeof((table)[0]) ? (table)[i] : NULL)

const char *mint_tx_counter_name(uint32_t i)
{
    return NAME(tx_names, i);
}

const char *mint_rx_counter_name(uint32_t i)
{
    return NAME(rx_names, i);
}

const char *mint_port_counter_name(uint32_t i)
{
    return NAME(port_names, i);
}
