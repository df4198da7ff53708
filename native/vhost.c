/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vhost.c - a guest's virtio-net device: the vhost-user back end's data path (control.h, VHOST).
 *
 * Theory of operation
 *
 *   guest's kernel (stock virtio-net driver)        fabric
 *     transmit queue  -- one copy -->  channel to the receiver
 *     receive queue   <-- one copy --  channel from the sender
 *
 * The guest's memory is mapped here, and its queues are served straight from it (vring.c, gmem.c);
 * frames move in vhost_io.c. This file takes the agent's word on where all that is.
 *
 * The agent (mint_vni.ports.vhost_user) holds the guest's connection, its memory and the queues'
 * descriptors. When this process dies, the next one gets the same, finds in the used rings how far
 * its predecessor got, and goes on there: the guest notices nothing. When the agent is gone,
 * nothing moves any more.
 *
 * A guest that breaks a rule loses the queue in which it did so, until its driver sets that up
 * anew; it costs one line of log and a counter. All that it can harm otherwise is its own frames.
 */
#include "vhost.h"
#include "worker.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* ------------------------------------------------------------------------------ the queues */

static const char *const queue_name[MINT_VQ_COUNT] = {"receive", "transmit"};

static void close_fd(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

/* What a queue that stops leaves behind is dropped. */
static void let_go(struct mint_vhost *v, uint32_t which)
{
    if (which == MINT_VQ_TX && v->hold->on) {
        mint_port_stop_waiting(v->port, v->hold->peer);
        v->hold->on = false;
    }
    if (which == MINT_VQ_RX)
        v->out_stalled = false;
}

void mint_vhost_broke(struct mint_vhost *v, enum mint_vqueue which, const char *how)
{
    if (v->ring[which].broken || !v->ring[which].set)
        return;
    v->ring[which].broken = true;
    let_go(v, which);
    mint_port_count(v->port, MINT_PORT_RING_ERRORS);
    mint_log("the guest's %s queue %s; it stays disabled until its driver starts anew",
             queue_name[which], how);
}

static void stop_ring(struct mint_vhost *v, uint32_t i)
{
    struct mint_vring *q = &v->ring[i];

    let_go(v, i);
    if (q->kick >= 0)
        mint_port_unwatch(v->port, q->kick);
    close_fd(&q->kick);
    close_fd(&q->call);
    q->set = q->enabled = q->broken = false;
}

static void set_call(struct mint_vring *q, int fd)
{
    int type;
    socklen_t len = sizeof(type);

    close_fd(&q->call);
    q->call = fd;
    q->call_is_socket = getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &len) == 0;
    if (!q->call_is_socket) /* the guest can undo this, and then hang this process: its own */
        fcntl(fd, F_SETFL, O_RDWR | O_NONBLOCK);
}

/* --------------------------------------------------------------- what the agent has to say */

static int on_features(struct mint_vhost *v, const struct mint_vmsg *m)
{
    v->features = m->u.features;
    /* Section 5.1.6.1: without both of these the header has no num_buffers. */
    v->header = v->features & (MINT_VF_VERSION_1 | MINT_VF_MRG_RXBUF) ? 12 : 10;
    return 0;
}

static int on_clear(struct mint_vhost *v)
{
    for (uint32_t i = 0; i < MINT_VQ_COUNT; i++)
        stop_ring(v, i);
    mint_gmem_clear(&v->memory);
    return 0;
}

static int on_memory(struct mint_vhost *v, const struct mint_vmsg *m, int *fds, int n)
{
    if (n != 1)
        return -EINVAL;
    return mint_gmem_add(&v->memory, m->u.memory.gpa, m->u.memory.uva, m->u.memory.size,
                         m->u.memory.offset, fds[0]);
}

/* Take the descriptors that come along: what is taken is -1 in `fds` afterwards. */
static int on_ring(struct mint_vhost *v, const struct mint_vmsg *m, int *fds, int n)
{
    uint32_t flags = m->u.ring.flags;
    int kick = !!(flags & MINT_VRING_KICK), call = !!(flags & MINT_VRING_CALL), err;
    struct mint_vring *q;

    if (m->u.ring.index >= MINT_VQ_COUNT || n != kick + call)
        return -EINVAL;
    q = &v->ring[m->u.ring.index];
    stop_ring(v, m->u.ring.index);
    q->event_idx = v->features & MINT_VF_EVENT_IDX;
    q->indirect = v->features & MINT_VF_INDIRECT_DESC;
    err = mint_vring_set(q, &v->memory, m->u.ring.size, m->u.ring.desc, m->u.ring.avail,
                         m->u.ring.used);
    if (err)
        return err;
    if (kick) {
        err = mint_port_watch_edge(v->port, fds[0], MINT_EV_DEVICE);
        if (err) {
            q->set = false;
            return err;
        }
        q->kick = fds[0];
        fds[0] = -1;
    }
    if (call) {
        set_call(q, fds[kick]);
        fds[kick] = -1;
    }
    q->enabled = flags & MINT_VRING_ENABLED;
    mint_vring_signal(q); /* it may wait for what the last device did not get to tell it */
    return 0;
}

static int on_enable(struct mint_vhost *v, const struct mint_vmsg *m)
{
    if (m->u.ring.index >= MINT_VQ_COUNT)
        return -EINVAL;
    v->ring[m->u.ring.index].enabled = m->u.ring.flags & MINT_VRING_ENABLED;
    let_go(v, m->u.ring.index);
    return 0;
}

static int on_call(struct mint_vhost *v, const struct mint_vmsg *m, int *fds, int n)
{
    struct mint_vring *q;

    if (m->u.ring.index >= MINT_VQ_COUNT || n > 1)
        return -EINVAL;
    q = &v->ring[m->u.ring.index];
    close_fd(&q->call);
    if (n) {
        set_call(q, fds[0]);
        fds[0] = -1;
        mint_vring_signal(q);
    }
    return 0;
}

static int on_stop(struct mint_vhost *v, const struct mint_vmsg *m)
{
    uint16_t at;

    if (m->u.ring.index >= MINT_VQ_COUNT)
        return -EINVAL;
    at = v->ring[m->u.ring.index].set ? v->ring[m->u.ring.index].next_avail : 0;
    stop_ring(v, m->u.ring.index);
    return at;
}

static int handle(struct mint_vhost *v, const struct mint_vmsg *m, int *fds, int n)
{
    switch (m->type) {
    case MINT_VMSG_FEATURES:
        return on_features(v, m);
    case MINT_VMSG_CLEAR:
        return on_clear(v);
    case MINT_VMSG_MEMORY:
        return on_memory(v, m, fds, n);
    case MINT_VMSG_RING:
        return on_ring(v, m, fds, n);
    case MINT_VMSG_ENABLE:
        return on_enable(v, m);
    case MINT_VMSG_CALL:
        return on_call(v, m, fds, n);
    case MINT_VMSG_STOP:
        return on_stop(v, m);
    case MINT_VMSG_START:
        v->started = true;
        return 0;
    default:
        return -ENOSYS;
    }
}

/* -------------------------------------------------------------------------------- the link */

/* One message with its descriptors, -1 where there is none. Return: their number; -1: the end. */
static int receive(struct mint_vhost *v, struct mint_vmsg *m, int *fds)
{
    union {
        char buf[CMSG_SPACE(sizeof(int) * MINT_VMSG_FDS)];
        struct cmsghdr align;
    } c;
    struct iovec iov = {.iov_base = m, .iov_len = sizeof(*m)};
    struct msghdr h = {
        .msg_iov = &iov, .msg_iovlen = 1, .msg_control = c.buf, .msg_controllen = sizeof(c.buf)};
    ssize_t n = recvmsg(v->link, &h, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    int count = 0;

    for (struct cmsghdr *cm = n > 0 ? CMSG_FIRSTHDR(&h) : NULL; cm; cm = CMSG_NXTHDR(&h, cm)) {
        if (cm->cmsg_level != SOL_SOCKET || cm->cmsg_type != SCM_RIGHTS)
            continue;
        count = (int)((cm->cmsg_len - CMSG_LEN(0)) / sizeof(int));
        memcpy(fds, CMSG_DATA(cm), sizeof(int) * (size_t)count);
    }
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return 0;
    if (n != (ssize_t)sizeof(*m) || (h.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) ||
        m->magic != MINT_VMSG_MAGIC)
        return -1;
    return count;
}

static void hang_up(struct mint_vhost *v)
{
    mint_port_unwatch(v->port, v->link);
    close_fd(&v->link);
    on_clear(v);
    v->started = true; /* nobody will say more: drop what comes, rather than let it wait */
}

void mint_vhost_serve(struct mint_worker *w)
{
    struct mint_vhost *v = w->vhost;
    int fds[MINT_VMSG_FDS + 2] = {-1, -1, -1, -1};
    struct mint_vmsg m = {.magic = 0};
    int n;

    if (!v || v->link < 0)
        return;
    n = receive(v, &m, fds);
    if (n < 0)
        hang_up(v);
    else if (m.magic) {
        m.status = handle(v, &m, fds, n);
        if (send(v->link, &m, sizeof(m), MSG_DONTWAIT | MSG_NOSIGNAL) != (ssize_t)sizeof(m))
            hang_up(v);
    }
    for (size_t i = 0; i < sizeof(fds) / sizeof(fds[0]); i++)
        close_fd(&fds[i]);
}

/* ------------------------------------------------------------------------------ the device */

static bool in(struct mint_worker *w)
{
    return mint_vhost_in(w->vhost);
}

static bool out(struct mint_worker *w)
{
    return mint_vhost_out(w->vhost);
}

static int64_t timeout(struct mint_worker *w)
{
    return mint_vhost_timeout(w->vhost);
}

static const struct mint_device vhost_device = {.in = in, .out = out, .timeout = timeout};

static struct mint_vhost *make(struct mint_worker *w)
{
    struct mint_vhost *v = calloc(1, sizeof(*v));

    if (!v)
        return NULL;
    v->plain = mint_plain_new();
    if (!v->plain) {
        free(v);
        return NULL;
    }
    v->port = w->port;
    v->hold = &w->hold;
    v->link = -1;
    v->header = sizeof(struct mint_vnet);
    v->patience_ns = (uint64_t)w->open.port.stall_us * 1000u / 2;
    for (int i = 0; i < MINT_VQ_COUNT; i++)
        v->ring[i].kick = v->ring[i].call = -1;
    v->waiter = mint_vhost_waiter;
    v->waiter.context = v;
    return v;
}

int mint_vhost_attach(struct mint_worker *w, int fd)
{
    int err;

    if (!w->vhost) {
        w->vhost = make(w);
        if (!w->vhost)
            return -ENOMEM;
    }
    if (w->vhost->link >= 0)
        hang_up(w->vhost);
    err = mint_port_watch(w->port, fd, MINT_EV_LINK);
    if (err)
        return err;
    w->vhost->link = fd;
    w->vhost->started = false;
    w->device = &vhost_device;
    mint_port_set_waiter(w->port, &w->vhost->waiter);
    return 0;
}
