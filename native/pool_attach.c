/* SPDX-License-Identifier: Apache-2.0 */
/* pool_attach.c - how a pool begins, and how its ports come and go; see pool.c. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "pool_end.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

size_t mint_pool_bytes(uint32_t ports, size_t data_bytes)
{
    struct mint_pool g;

    if (data_bytes > (size_t)MINT_POOL_BLOCKS_MAX * MINT_POOL_BLOCK)
        return 0;
    return mint_pool_geometry(ports, (data_bytes + MINT_POOL_BLOCK - 1u) / MINT_POOL_BLOCK, &g);
}

int mint_pool_format(int fd, uint32_t ports, size_t data_bytes)
{
    size_t bytes = mint_pool_bytes(ports, data_bytes);
    struct mint_pool *h;
    struct stat st;
    int err = 0;

    if (bytes == 0)
        return -EINVAL;
    if (fstat(fd, &st) < 0)
        return -errno;
    if (st.st_size < 0 || (size_t)st.st_size != bytes)
        return -EPROTO;
    h = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (h == MAP_FAILED)
        return -errno;
    if (load_acquire(&h->magic) != 0) {
        err = -EEXIST;
    } else {
        mint_pool_geometry(ports, (data_bytes + MINT_POOL_BLOCK - 1u) / MINT_POOL_BLOCK, h);
        mint_pool_state_init(h);
        store_release(&h->magic, MINT_POOL_MAGIC); /* pairs with mint_pool_map_init() */
    }
    munmap(h, bytes);
    return err;
}

/* Free what a predecessor had in hand when it died; the records that it had taken are counted. */
static void reclaim(struct mint_pool_end *end)
{
    mint_a64 *dropped = &end->lock.counter[MINT_PORT_DROP_RESTART];
    struct mint_pool_extent e;
    uint32_t at = 0;

    while (mint_pool_each(&end->map, &at, &e)) {
        bool held = e.state == MINT_BLOCK_HELD;

        if (e.holder != end->port || (!held && e.state != MINT_BLOCK_RESERVED))
            continue;
        store_relaxed(dropped, load_relaxed(dropped) + held);
        mint_pool_free(&end->map, e.start, e.blocks);
        MINT_POOL_TEST_DIE(MINT_POINT_ATTACH);
        mint_pool_returned(&end->map, end->port, held, held ? e.blocks : 0);
    }
}

/* Join the pool, now that the port's byte is ours. */
static void join(struct mint_pool_end *end, mint_a64 *counter)
{
    struct mint_pool_port *own = &end->map.port[end->port];
    uint32_t epoch = load_relaxed(&own->epoch) + 1;

    store_relaxed(&own->epoch, epoch);
    end->lock.word = &end->map.head->lock;
    end->lock.counter = counter;
    end->lock.mine = MINT_POOL_LOCK_WORD(end->port, epoch);
    mint_pool_enter(end);
    end->seq = load_relaxed(&own->seq);
    if (load_relaxed(&own->attached) != 0)
        reclaim(end);
    store_relaxed(&own->attached, 1);
    MINT_POOL_TEST_DIE(MINT_POINT_ATTACHED);
    mint_pool_share_out(&end->map);
    mint_pool_leave(end);
}

/* An open file description of our own, of the same file. Return: it, or a negative errno. */
static int reopen(int fd)
{
    char path[32];
    int own;

    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    own = open(path, O_RDWR | O_CLOEXEC);
    return own < 0 ? -errno : own;
}

/* Whether the file can never shrink under its mapping. Return: its size, or -EPROTO. */
static ssize_t sealed_bytes(int fd)
{
    const int need = F_SEAL_SHRINK | F_SEAL_GROW;
    int seals = fcntl(fd, F_GET_SEALS);
    struct stat st;

    if (seals < 0 || (seals & need) != need || fstat(fd, &st) < 0 ||
        (size_t)st.st_size < sizeof(struct mint_pool))
        return -EPROTO;
    return (ssize_t)st.st_size;
}

/* Map the region, unless `mapped` is a mapping of it, and claim the port. */
static int open_region(struct mint_pool_end *end, int fd, uint32_t port, void *mapped)
{
    ssize_t bytes = sealed_bytes(fd);
    void *region = mapped;
    int err;

    if (bytes < 0)
        return (int)bytes;
    if (!mapped)
        region = mmap(NULL, (size_t)bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (region == MAP_FAILED)
        return -errno;
    err = mint_pool_map_init(&end->map, region, (size_t)bytes);
    if (err == 0) {
        err = port < end->map.ports ? mint_pool_lock_claim(fd, port) : -EINVAL;
        if (err == 0)
            return 0;
        mint_pool_map_fini(&end->map);
    }
    if (!mapped)
        munmap(region, (size_t)bytes);
    return err;
}

static int attach(struct mint_pool_end **out, int fd, uint32_t port, mint_a64 *counter,
                  void *mapped)
{
    struct mint_pool_end *end;
    int own = reopen(fd), err;

    if (own < 0)
        return own;
    end = calloc(1, sizeof(*end) + MINT_PORTS_MAX * sizeof(end->waiting[0]));
    err = end ? open_region(end, own, port, mapped) : -ENOMEM;
    if (err) {
        free(end);
        close(own);
        return err;
    }
    end->lock.fd = own;
    end->port = port;
    end->owns_map = !mapped;
    join(end, counter);
    *out = end;
    return 0;
}

int mint_pool_attach(struct mint_pool_end **out, int fd, uint32_t port, mint_a64 *counter)
{
    return attach(out, fd, port, counter, NULL);
}

#ifdef MINT_TEST
int mint_pool_test_attach_beside(struct mint_pool_end **out, const struct mint_pool_end *other,
                                 int fd, uint32_t port, mint_a64 *counter)
{
    return attach(out, fd, port, counter, other->map.head);
}
#endif

/* Put what was taken and not looked at back into the queue, for a successor; free the rest. */
static void put_back(struct mint_pool_end *end)
{
    bool any = end->given < end->helds;

    for (uint32_t i = 0; i < end->given; i++) {
        end->released += !end->held[i].released;
        end->held[i].released = true;
    }
    mint_pool_free_released(end);
    for (uint32_t i = 0; i < end->helds; i++) {
        const struct mint_pool_record *rec = &end->held[i].rec;

        store_release(&end->map.block[rec->block].word,
                      MINT_BLOCK_WORD(MINT_BLOCK_QUEUED, rec->blocks, rec->src, end->port));
        MINT_POOL_TEST_DIE(MINT_POINT_PUT_BACK);
    }
    if (any)
        mint_pool_rebuild(&end->map);
}

void mint_pool_detach(struct mint_pool_end *end)
{
    if (!end)
        return;
    mint_pool_enter(end);
    for (uint32_t i = 0; i < end->pieces; i++)
        if (end->piece[i].state == IN_HAND)
            end->piece[i].state = CANCELLED;
    mint_pool_settle(end);
    mint_pool_drop_run(end);
    put_back(end);
    MINT_POOL_TEST_DIE(MINT_POINT_DETACH);
    store_relaxed(&end->map.port[end->port].attached, 0);
    mint_pool_share_out(&end->map);
    mint_pool_leave(end);
    mint_pool_disown(end);
}

void mint_pool_disown(struct mint_pool_end *end)
{
    if (!end)
        return;
    mint_pool_map_fini(&end->map);
    if (end->owns_map)
        munmap(end->map.head, end->map.bytes);
    close(end->lock.fd);
    free(end);
}

uint32_t mint_pool_forget(struct mint_pool_end *end, uint32_t dst)
{
    struct mint_pool_extent e;
    uint32_t at = 0, n = 0;

    mint_pool_enter(end);
    while (mint_pool_each(&end->map, &at, &e)) {
        if (e.state != MINT_BLOCK_QUEUED || e.holder != end->port || e.peer != dst)
            continue;
        store_release(&end->map.block[e.start].word, 0);
        n++;
        MINT_POOL_TEST_DIE(MINT_POINT_FORGET);
    }
    if (n)
        mint_pool_rebuild(&end->map);
    mint_pool_leave(end);
    return n;
}
