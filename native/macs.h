/* SPDX-License-Identifier: Apache-2.0 */
/*
 * macs.h - which port has which MAC: a static table that the supervisor fills, and a bounded one
 * of MACs learned behind bridge ports. A learned entry never hides a static one.
 */
#ifndef MINT_MACS_H
#define MINT_MACS_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#define MINT_MACS_STATIC 4096u  /* hash slots; at most MINT_PORTS_MAX are used */
#define MINT_MACS_LEARNED 1024u /* entries, and the most that hostile bridges can fill */
#define MINT_MACS_PROBE 8u      /* places where a learned MAC may lie */
#define MINT_MACS_AGE_NS (300ull * 1000000000ull)

struct mint_mac_entry {
    uint64_t key;  /* the MAC's 6 bytes, and bit 63 set; 0: free */
    uint64_t seen; /* learned: CLOCK_MONOTONIC nanoseconds */
    uint32_t port;
};

struct mint_macs {
    struct mint_mac_entry fixed[MINT_MACS_STATIC];
    struct mint_mac_entry learned[MINT_MACS_LEARNED];
};

/* The MAC at `mac` as a table key. */
static inline uint64_t mint_mac_key(const uint8_t *mac)
{
    uint32_t lo;
    uint16_t hi;

    memcpy(&lo, mac, 4);
    memcpy(&hi, mac + 4, 2);
    return (uint64_t)lo | (uint64_t)hi << 32 | 1ull << 63;
}

static inline bool mint_mac_is_group(const uint8_t *mac)
{
    return (mac[0] & 1) != 0;
}

/* Return: 0, or -EEXIST when another port has it, -ENOSPC. */
int mint_macs_add(struct mint_macs *t, uint64_t key, uint32_t port);
/* Forget everything about a port. */
void mint_macs_drop(struct mint_macs *t, uint32_t port);
/* Return: the port with this static MAC, or -1. */
int mint_macs_fixed(const struct mint_macs *t, uint64_t key);
/* Return: the port behind which this MAC was learned no longer than MINT_MACS_AGE_NS ago, or -1. */
int mint_macs_learned(const struct mint_macs *t, uint64_t key, uint64_t now);
/* Note that a MAC was seen behind a port. Return: whether it was new or had moved. */
bool mint_macs_learn(struct mint_macs *t, uint64_t key, uint32_t port, uint64_t now);

#endif
