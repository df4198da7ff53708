/* SPDX-License-Identifier: Apache-2.0 */
/*
 * port.c - opening a port and its channels.
 *
 * Theory of operation of a port
 *
 * There is no switch: the sender looks the destination up and writes into the channel to that
 * receiver itself; the receiver takes frames from the channels that end at it. A port's files:
 *
 *   port.c       open, close, peers, look-up
 *   port_tx.c    send: look up, copy into a channel, publish, ring; back-pressure and stalls
 *   port_pooled.c  send by reference: what layout pooled offers besides
 *   port_rx.c    receive: take in turn from all channels, check, give room back
 *   port_wait.c  sleep: announce, re-check, wait for a doorbell; doorbells that ring for nothing
 *   port_idle.c  give memory of idle channels back
 *   packed.c     many frames with one call, for the Python API
 *
 * Life of a port. All that must survive the process lies in the control region: positions, states,
 * counters. So a port is taken over by opening it again on the same region: frames that were
 * published stay, frames that were taken from the node and not published are counted as lost
 * (MINT_PORT_DROP_RESTART), frames that were handed over and not released come twice.
 *
 * Trust. Peers are hostile: whatever is read from their regions is fetched once and checked. The
 * control region is believed only in what this port's own predecessor may have written wrongly
 * without harm to others: positions are checked again, counters may be anything.
 */
#include "port_internal.h"
#include "region.h"
#include <errno.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <unistd.h>

/* What the predecessor had begun and not ended when it died is dropped: say so. */
static void count_lost(struct mint_port *port, enum mint_port_counter begun,
                       enum mint_port_counter ended)
{
    uint64_t from = load_relaxed(&port->ctl->counter[ended]);
    uint64_t to = load_relaxed(&port->ctl->counter[begun]);

    bump_port(port, MINT_PORT_DROP_RESTART, to > from ? to - from : 0);
    store_relaxed(&port->ctl->counter[ended], to);
}

/* Fill a fresh control region, or check one that a predecessor left. */
static int ctl_begin(struct mint_port *port)
{
    struct mint_ctl *ctl = port->ctl;
    const struct mint_port_config *c = &port->config;
    uint64_t magic = load_acquire(&ctl->magic);

    if (magic == 0) {
        ctl->version = MINT_ABI_VERSION;
        ctl->port = c->index;
        ctl->slots = c->slots;
        ctl->layout = c->layout;
        memcpy(ctl->mac, c->mac, sizeof(ctl->mac));
        memcpy(ctl->name, c->name, sizeof(ctl->name));
        store_release(&ctl->magic, MINT_CTL_MAGIC); /* pairs with load_acquire in peer_check() */
    } else if (magic != MINT_CTL_MAGIC || ctl->version != MINT_ABI_VERSION ||
               ctl->port != c->index || ctl->slots != c->slots || ctl->layout != c->layout) {
        return -EPROTO;
    } else {
        port->sent = true; /* what a predecessor wrote may be idle */
        bump_port(port, MINT_PORT_RESTARTS, 1);
        count_lost(port, MINT_PORT_IN_FRAMES, MINT_PORT_IN_DONE);
        count_lost(port, MINT_PORT_RING_EMPTY, MINT_PORT_RING_SETTLED);
        count_lost(port, MINT_PORT_SEGMENTED, MINT_PORT_SEG_SETTLED);
    }
    store_relaxed(&ctl->pid, (uint32_t)getpid());
    store_relaxed(&ctl->generation, load_relaxed(&ctl->generation) + 1);
    port->wake = (load_relaxed(&ctl->wake) + 1) & ~1u; /* awake, and never a value used before */
    store_release(&ctl->wake, port->wake);
    return 0;
}

static int port_arrays(struct mint_port *port)
{
    size_t n = port->config.slots;

    port->peers = calloc(n, sizeof(port->peers[0]));
    port->list = calloc(n, sizeof(port->list[0]));
    port->tx_dirty = calloc(n, sizeof(port->tx_dirty[0]));
    port->rx_dirty = calloc(n, sizeof(port->rx_dirty[0]));
    return port->peers && port->list && port->tx_dirty && port->rx_dirty ? 0 : -ENOMEM;
}

/* A new port begins with nothing: what waits in the pool was for one that had its index before. */
static void pool_begin(struct mint_port *port)
{
    const struct mint_rec *rec;
    uint32_t src, len;

    if (load_relaxed(&port->ctl->generation) != 1)
        return;
    while ((rec = mint_pool_next(port->pool, &src, &len)) != NULL) {
        mint_pool_release(port->pool, rec);
        mint_pool_recycle(port->pool);
    }
}

static int port_setup(struct mint_port *port, int ctl_fd, int pool_fd)
{
    int err = port_arrays(port);

    if (err)
        return err;
    port->epfd = epoll_create1(EPOLL_CLOEXEC);
    if (port->epfd < 0)
        return -errno;
    port->ctl_bytes = MINT_CTL_BYTES(port->config.slots);
    err = mint_region_check(ctl_fd, port->ctl_bytes);
    if (err)
        return err;
    port->ctl = mint_region_map(ctl_fd, port->ctl_bytes, true);
    if (!port->ctl)
        return -errno;
    port->slots = (struct mint_slot *)(void *)(port->ctl + 1);
    err = ctl_begin(port);
    if (!err && port->config.layout == MINT_LAYOUT_POOLED)
        err = mint_pooled_open(&port->pooled, pool_fd, port->config.index, port->config.slots,
                               port->slots, load_relaxed(&port->ctl->generation) == 1);
    if (!err && port->config.layout == MINT_LAYOUT_SHARED) {
        err = mint_pool_attach(&port->pool, pool_fd, port->config.index, port->ctl->counter);
        if (!err)
            pool_begin(port);
    }
    return err;
}

int mint_port_open(struct mint_port **out, const struct mint_port_config *config, int ctl_fd,
                   int pool_fd)
{
    struct mint_port *port;
    int err;

    if (config->slots == 0 || config->slots > MINT_PORTS_MAX || config->index >= config->slots ||
        config->layout > MINT_LAYOUT_POOLED || mint_mac_is_group(config->mac))
        return -EINVAL;
    port = calloc(1, sizeof(*port));
    if (!port)
        return -ENOMEM;
    port->config = *config;
    port->config.name[MINT_NAME_MAX - 1] = 0;
    port->mac_key = mint_mac_key(config->mac);
    port->spin_ns[0] = port->spin_ns[1] = (uint64_t)config->poll_us * 1000u;
    port->epfd = port->control_fd = -1;
    err = port_setup(port, ctl_fd, pool_fd);
    if (err) {
        mint_port_close(port);
        return err;
    }
    *out = port;
    return 0;
}

/* Free a peer's mappings; its ends are closed already. */
static void peer_free(struct mint_peer *peer)
{
    if (!peer)
        return;
    if (peer->ctl)
        munmap((void *)(uintptr_t)peer->ctl, peer->ctl_bytes);
    if (peer->tx.data)
        munmap(peer->tx.data, 2 * (size_t)peer->tx.cap);
    if (peer->rx.data)
        munmap((void *)(uintptr_t)peer->rx.data, 2 * (size_t)peer->rx.cap);
    mint_lane_rx_unmap(&peer->lane);
    free(peer);
}

/* Free what is private to this process. */
static void port_free(struct mint_port *port)
{
    for (uint32_t i = 0; i < port->count; i++)
        peer_free(port->list[i]);
    mint_pooled_close(port->pooled);
    if (port->ctl)
        munmap(port->ctl, port->ctl_bytes);
    if (port->epfd >= 0)
        close(port->epfd);
    free(port->peers);
    free(port->list);
    free(port->tx_dirty);
    free(port->rx_dirty);
    free(port);
}

/*
 * Let go of the port. Its ends stay as they are in the control region: a successor goes on from
 * there. To close them, leave first.
 */
void mint_port_close(struct mint_port *port)
{
    if (!port)
        return;
    if (port->pool)
        mint_pool_detach(port->pool);
    if (port->ctl)
        store_relaxed(&port->ctl->pid, 0);
    port_free(port);
}

void mint_port_disown(struct mint_port *port)
{
    if (!port)
        return;
    mint_pool_disown(port->pool);
    port_free(port);
}

/* Whether a peer's control region is one, and its own. */
static int peer_check(const struct mint_port *port, const struct mint_peer *peer)
{
    uint64_t magic = load_acquire(&peer->ctl->magic);

    if (magic == 0)
        return 0; /* it has not started yet */
    return magic == MINT_CTL_MAGIC && peer->ctl->version == MINT_ABI_VERSION &&
                   peer->ctl->port == peer->index && peer->ctl->slots == port->config.slots &&
                   peer->ctl->layout == port->config.layout
               ? 0
               : -EPROTO;
}

static int peer_map_rings(struct mint_peer *peer, const struct mint_peer_config *c)
{
    uint8_t *tx, *rx;
    int err;

    if (c->capacity < MINT_CAP_MIN || c->capacity > MINT_CAP_MAX || c->capacity % MINT_LINE)
        return -EINVAL;
    err = mint_region_check(c->tx_fd, c->capacity);
    if (!err)
        err = mint_region_check(c->rx_fd, c->capacity);
    if (err)
        return err;
    tx = mint_region_map_twice(c->tx_fd, c->capacity, true);
    if (!tx)
        return -errno;
    rx = mint_region_map_twice(c->rx_fd, c->capacity, false);
    if (!rx) {
        err = -errno;
        munmap(tx, 2 * (size_t)c->capacity);
        return err;
    }
    mint_ring_tx_open(&peer->tx, tx, c->capacity, peer->own, peer->slot);
    mint_ring_rx_open(&peer->rx, rx, c->capacity, peer->own, peer->slot);
    return 0;
}

/* Layout pooled: the peer's stock region is all that there is to map; ours is mapped already. */
static int peer_map_lane(struct mint_port *port, struct mint_peer *peer,
                         const struct mint_peer_config *c)
{
    int err = mint_lane_rx_map(&peer->lane, c->rx_fd, port->config.index, port->config.slots,
                               c->capacity);

    if (err)
        return err;
    mint_pooled_tx_open(port->pooled, peer->index, &peer->tx, peer->slot);
    mint_ring_rx_open(&peer->rx, NULL, MINT_LANE_CAP, peer->own, peer->slot);
    return 0;
}

/* Layout shared has no ring whose opening would say so: mark both ends open. */
static void peer_open_pool(struct mint_peer *peer)
{
    store_release(&peer->own->tx_end, MINT_END(0, MINT_END_OPEN));
    store_release(&peer->own->rx_end, MINT_END(0, MINT_END_OPEN));
}

static int peer_setup(struct mint_port *port, struct mint_peer *peer,
                      const struct mint_peer_config *c)
{
    int err = mint_region_check(c->ctl_fd, port->ctl_bytes);

    if (err)
        return err;
    peer->ctl_bytes = port->ctl_bytes;
    peer->ctl = mint_region_map(c->ctl_fd, peer->ctl_bytes, false);
    if (!peer->ctl)
        return -errno;
    peer->slot = (const struct mint_slot *)(const void *)(peer->ctl + 1) + port->config.index;
    err = peer_check(port, peer);
    if (err)
        return err;
    if (port->pool)
        peer_open_pool(peer);
    else if (port->pooled)
        err = peer_map_lane(port, peer, c);
    else
        err = peer_map_rings(peer, c);
    return err;
}

static int peer_listen(struct mint_port *port, struct mint_peer *peer)
{
    struct epoll_event ev = {.events = EPOLLIN, .data.u64 = peer->index};

    return epoll_ctl(port->epfd, EPOLL_CTL_ADD, peer->bell, &ev) < 0 ? -errno : 0;
}

int mint_port_add_peer(struct mint_port *port, const struct mint_peer_config *c)
{
    struct mint_peer *peer;
    int err;

    if (c->index >= port->config.slots || c->index == port->config.index ||
        mint_mac_is_group(c->mac))
        return -EINVAL;
    if (port->peers[c->index])
        return -EEXIST;
    peer = calloc(1, sizeof(*peer));
    if (!peer)
        return -ENOMEM;
    peer->index = c->index;
    peer->flags = c->flags;
    peer->mac_key = mint_mac_key(c->mac);
    peer->own = &port->slots[c->index];
    store_relaxed(&peer->own->tx_stalled, 0);
    peer->bell = c->bell_fd;

    err = mint_macs_add(&port->macs, peer->mac_key, c->index);
    if (!err)
        err = peer_listen(port, peer);
    if (!err) { /* last of all: from here on the peer sees our ends open */
        err = peer_setup(port, peer, c);
        if (err)
            epoll_ctl(port->epfd, EPOLL_CTL_DEL, peer->bell, NULL);
    }
    if (err) {
        mint_macs_drop(&port->macs, c->index);
        peer_free(peer);
        return err;
    }
    port->peers[c->index] = peer;
    port->list[port->count++] = peer;
    port->bridges += (peer->flags & MINT_PORT_BRIDGE) != 0;
    port->cached_key = 0;
    mint_bell_ring(peer->bell); /* a predecessor may have died between publishing and ringing */
    return 0;
}

static void list_remove(struct mint_peer **list, uint32_t *count, const struct mint_peer *peer)
{
    for (uint32_t i = 0; i < *count; i++)
        if (list[i] == peer) {
            list[i] = list[--*count];
            return;
        }
}

/* Close both ends; when the peer is gone for good, what it has not read is lost, and counted. */
static void close_ends(struct mint_port *port, struct mint_peer *peer, bool gone)
{
    if (port->pool) {
        if (gone)
            bump(&peer->own->tx_counter[MINT_TX_DROP_RESET],
                 mint_pool_forget(port->pool, peer->index));
        store_release(&peer->own->tx_end, MINT_END(0, MINT_END_CLOSED));
        store_release(&peer->own->rx_end, MINT_END(0, MINT_END_CLOSED));
        return;
    }
    if (port->pooled)
        mint_pooled_tx_close(port->pooled, peer->index, gone);
    else
        mint_ring_tx_close(&peer->tx, gone);
    mint_ring_rx_close(&peer->rx);
    mint_port_settle_rx(port, peer);
}

static void remove_peer(struct mint_port *port, struct mint_peer *peer, bool gone)
{
    mint_port_flush(port);
    mint_port_recycle(port);
    if (peer->waiting)
        mint_port_stop_waiting(port, peer->index);
    close_ends(port, peer, gone);
    if (!peer->masked_until && !peer->deaf)
        epoll_ctl(port->epfd, EPOLL_CTL_DEL, peer->bell, NULL);
    port->masked -= peer->masked_until != 0;
    port->shunned -= peer->shunned_until != 0;
    port->bridges -= (peer->flags & MINT_PORT_BRIDGE) != 0;
    list_remove(port->list, &port->count, peer);
    port->peers[peer->index] = NULL;
    port->rr = 0;
    port->cached_key = 0;
    mint_macs_drop(&port->macs, peer->index);
    peer_free(peer);
}

int mint_port_drop_peer(struct mint_port *port, uint32_t index)
{
    struct mint_peer *peer = index < port->config.slots ? port->peers[index] : NULL;

    if (!peer)
        return -ENOENT;
    remove_peer(port, peer, true);
    return 0;
}

void mint_port_leave(struct mint_port *port)
{
    while (port->count)
        remove_peer(port, port->list[0], false);
}

static int lookup_slow(struct mint_port *port, uint64_t key)
{
    int dst = mint_macs_fixed(&port->macs, key);

    if (dst < 0 && port->bridges)
        dst = mint_macs_learned(&port->macs, key, now_ns());
    else if (dst >= 0) {
        port->cached_key = key; /* only what never ages */
        port->cached_dst = dst;
    }
    return dst < 0 ? MINT_DST_UNKNOWN : dst;
}

int mint_port_lookup(struct mint_port *port, const uint8_t *mac)
{
    uint64_t key = mint_mac_key(mac);

    if (likely(key == port->cached_key))
        return port->cached_dst;
    if (mint_mac_is_group(mac))
        return MINT_DST_FLOOD;
    if (key == port->mac_key)
        return MINT_DST_SELF;
    return lookup_slow(port, key);
}
