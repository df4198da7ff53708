/* SPDX-License-Identifier: Apache-2.0 */
/* macs.c - see macs.h. */
#include "macs.h"
#include <errno.h>

static uint32_t hash(uint64_t key)
{
    return (uint32_t)((key * 0x9e3779b97f4a7c15ull) >> 40);
}

int mint_macs_add(struct mint_macs *t, uint64_t key, uint32_t port)
{
    for (uint32_t i = 0; i < MINT_MACS_STATIC; i++) {
        struct mint_mac_entry *e = &t->fixed[(hash(key) + i) % MINT_MACS_STATIC];

        if (e->key == key)
            return e->port == port ? 0 : -EEXIST;
        if (!e->key) {
            e->key = key;
            e->port = port;
            return 0;
        }
    }
    return -ENOSPC;
}

/* Take one entry out and move up those that had to go past it. */
static void fixed_remove(struct mint_macs *t, uint32_t at)
{
    uint32_t hole = at;

    t->fixed[hole].key = 0;
    for (uint32_t i = (at + 1) % MINT_MACS_STATIC; t->fixed[i].key;
         i = (i + 1) % MINT_MACS_STATIC) {
        uint32_t home = hash(t->fixed[i].key) % MINT_MACS_STATIC;

        if ((i - home) % MINT_MACS_STATIC >= (i - hole) % MINT_MACS_STATIC) {
            t->fixed[hole] = t->fixed[i];
            t->fixed[i].key = 0;
            hole = i;
        }
    }
}

void mint_macs_drop(struct mint_macs *t, uint32_t port)
{
    for (uint32_t i = 0; i < MINT_MACS_STATIC; i++)
        while (t->fixed[i].key && t->fixed[i].port == port)
            fixed_remove(t, i);
    for (uint32_t i = 0; i < MINT_MACS_LEARNED; i++)
        if (t->learned[i].port == port)
            t->learned[i].key = 0;
}

int mint_macs_fixed(const struct mint_macs *t, uint64_t key)
{
    for (uint32_t i = 0; i < MINT_MACS_STATIC; i++) {
        const struct mint_mac_entry *e = &t->fixed[(hash(key) + i) % MINT_MACS_STATIC];

        if (e->key == key)
            return (int)e->port;
        if (!e->key)
            break;
    }
    return -1;
}

int mint_macs_learned(const struct mint_macs *t, uint64_t key, uint64_t now)
{
    for (uint32_t i = 0; i < MINT_MACS_PROBE; i++) {
        const struct mint_mac_entry *e = &t->learned[(hash(key) + i) % MINT_MACS_LEARNED];

        if (e->key == key)
            return now - e->seen <= MINT_MACS_AGE_NS ? (int)e->port : -1;
    }
    return -1;
}

bool mint_macs_learn(struct mint_macs *t, uint64_t key, uint32_t port, uint64_t now)
{
    struct mint_mac_entry *oldest = NULL;

    for (uint32_t i = 0; i < MINT_MACS_PROBE; i++) {
        struct mint_mac_entry *e = &t->learned[(hash(key) + i) % MINT_MACS_LEARNED];

        if (e->key == key) {
            bool moved = e->port != port;

            e->port = port;
            e->seen = now;
            return moved;
        }
        if (!oldest || !e->key || (oldest->key && e->seen < oldest->seen))
            oldest = e;
    }
    *oldest = (struct mint_mac_entry){.key = key, .seen = now, .port = port};
    return true;
}
