/* SPDX-License-Identifier: Apache-2.0 */
/* control.c - the worker's side of the control socket; the messages are described in control.h. */
#include "worker.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static void close_fds(int *fds, int n)
{
    for (int i = 0; i < n; i++) {
        if (fds[i] >= 0)
            close(fds[i]);
        fds[i] = -1;
    }
}

static void hang_up(struct mint_worker *w)
{
    if (w->port)
        mint_port_unwatch(w->port, w->control_fd);
    close(w->control_fd);
    w->control_fd = -1;
    if (w->port)
        mint_control_watch(w);
}

/* Take the next supervisor's connection; anybody but the owner is turned away. */
void mint_control_accept(struct mint_worker *w)
{
    struct ucred who = {.uid = UINT32_MAX};
    socklen_t len = sizeof(who);
    int fd = accept4(w->listen_fd, NULL, NULL, SOCK_CLOEXEC);

    if (fd < 0)
        return;
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &len) < 0 ||
        (who.uid != w->owner_uid && who.uid != 0)) {
        mint_log("refused a control connection of user %u", who.uid);
        close(fd);
        return;
    }
    w->control_fd = fd;
}

/* Listen for the supervisor: on its connection, or for a new one. One at a time. */
int mint_control_watch(struct mint_worker *w)
{
    if (w->control_fd >= 0) {
        mint_port_unwatch(w->port, w->listen_fd);
        return mint_port_watch(w->port, w->control_fd, MINT_EV_CONTROL);
    }
    return mint_port_watch(w->port, w->listen_fd, MINT_EV_CONTROL);
}

static bool reply(struct mint_worker *w, struct mint_msg *m, const int *fds, int n)
{
    union {
        char buf[CMSG_SPACE(sizeof(int) * MINT_MSG_FDS)];
        struct cmsghdr align;
    } c;
    struct iovec iov = {.iov_base = m, .iov_len = sizeof(*m)};
    struct msghdr h = {.msg_iov = &iov, .msg_iovlen = 1};

    m->magic = MINT_MSG_MAGIC;
    m->version = MINT_ABI_VERSION;
    if (n > 0) {
        struct cmsghdr *cm;

        memset(&c, 0, sizeof(c));
        h.msg_control = c.buf;
        h.msg_controllen = CMSG_SPACE(sizeof(int) * (size_t)n);
        cm = CMSG_FIRSTHDR(&h);
        cm->cmsg_level = SOL_SOCKET;
        cm->cmsg_type = SCM_RIGHTS;
        cm->cmsg_len = CMSG_LEN(sizeof(int) * (size_t)n);
        memcpy(CMSG_DATA(cm), fds, sizeof(int) * (size_t)n);
    }
    return sendmsg(w->control_fd, &h, MSG_NOSIGNAL) == (ssize_t)sizeof(*m);
}

/* One message with its descriptors. Return: their number, or -1: nobody there any more. */
static int receive(struct mint_worker *w, struct mint_msg *m, int *fds)
{
    union {
        char buf[CMSG_SPACE(sizeof(int) * MINT_MSG_FDS)];
        struct cmsghdr align;
    } c;
    struct iovec iov = {.iov_base = m, .iov_len = sizeof(*m)};
    struct msghdr h = {
        .msg_iov = &iov, .msg_iovlen = 1, .msg_control = c.buf, .msg_controllen = sizeof(c.buf)};
    ssize_t n;
    int count = 0;

    do
        n = recvmsg(w->control_fd, &h, MSG_CMSG_CLOEXEC);
    while (n < 0 && errno == EINTR);
    for (struct cmsghdr *cm = n > 0 ? CMSG_FIRSTHDR(&h) : NULL; cm; cm = CMSG_NXTHDR(&h, cm)) {
        if (cm->cmsg_level != SOL_SOCKET || cm->cmsg_type != SCM_RIGHTS)
            continue;
        count = (int)((cm->cmsg_len - CMSG_LEN(0)) / sizeof(int));
        memcpy(fds, CMSG_DATA(cm), sizeof(int) * (size_t)count);
    }
    if (n != (ssize_t)sizeof(*m) || (h.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) ||
        m->magic != MINT_MSG_MAGIC || m->version != MINT_ABI_VERSION) {
        close_fds(fds, count);
        return -1;
    }
    return count;
}

/* Each on_*() takes the descriptors over when it returns 0. */

static int on_open(struct mint_worker *w, const struct mint_msg *m, const int *fds, int n)
{
    int err;

    if (w->port || n < 1)
        return -EINVAL;
    err = mint_port_open(&w->port, &m->u.open.port, fds[0], n > 1 ? fds[1] : -1);
    if (err)
        return err;
    w->peers = calloc(m->u.open.port.slots, sizeof(w->peers[0])); /* a number that was checked */
    err = w->peers ? mint_sandbox(m->u.open.uid, m->u.open.gid) : -ENOMEM;
    if (err) {
        mint_port_close(w->port);
        w->port = NULL;
        free(w->peers);
        w->peers = NULL;
        return err;
    }
    w->open = m->u.open;
    w->open_fds[0] = fds[0];
    w->open_fds[1] = n > 1 ? fds[1] : -1;
    return 0;
}

static int on_tap(struct mint_worker *w, const struct mint_msg *m, const int *fds, int n)
{
    int old = w->tap.fd, err;

    if (!w->port || n != 1)
        return -EINVAL;
    err = mint_tap_attach(w, fds[0], m->u.tap.offload != 0);
    if (!err && old >= 0)
        close(old);
    return err;
}

static int on_vhost(struct mint_worker *w, const int *fds, int n)
{
    if (!w->port || n != 1)
        return -EINVAL;
    return mint_vhost_attach(w, fds[0]);
}

static int on_add_peer(struct mint_worker *w, const struct mint_msg *m, const int *fds, int n)
{
    struct mint_peer_config c = m->u.peer;
    static const int wanted[] = {4, 2, 3}; /* by layout */
    int err;

    if (!w->port || n < 2 || n != wanted[w->open.port.layout])
        return -EINVAL;
    c.ctl_fd = fds[0];
    c.tx_fd = n == 4 ? fds[1] : -1;
    c.rx_fd = n > 2 ? fds[n - 2] : -1;
    c.bell_fd = fds[n - 1];
    err = mint_port_add_peer(w->port, &c);
    if (err)
        return err;
    w->peers[c.index].used = true;
    w->peers[c.index].peer = c;
    for (int i = 0; i < MINT_MSG_FDS; i++)
        w->peers[c.index].fds[i] = i < n ? fds[i] : -1;
    return 0;
}

static int on_drop_peer(struct mint_worker *w, const struct mint_msg *m)
{
    uint32_t i = m->u.peer.index;
    int err;

    if (!w->port)
        return -EINVAL;
    if (w->hold.on && w->hold.peer == i) {
        /* What came from a TAP is here and lost. A guest's frame is still in its queue, and taken,
         * counted and sent to whom it may concern then when the device looks there again. */
        if (!w->vhost)
            mint_port_give_up(w->port, i);
        w->hold.on = false;
    }
    err = mint_port_drop_peer(w->port, i);
    if (err)
        return err;
    close_fds(w->peers[i].fds, MINT_MSG_FDS);
    w->peers[i].used = false;
    return 0;
}

static int count_fds(const int *fds, int max)
{
    int n = 0;

    while (n < max && fds[n] >= 0)
        n++;
    return n;
}

/* Hand everything to a new supervisor. */
static int on_give(struct mint_worker *w)
{
    struct mint_msg m = {.type = MINT_MSG_OPEN};

    if (!w->port)
        return -EINVAL;
    m.u.open = w->open;
    if (!reply(w, &m, w->open_fds, count_fds(w->open_fds, 2)))
        return -EPIPE;
    if (w->tap.fd >= 0) {
        memset(&m, 0, sizeof(m));
        m.type = MINT_MSG_TAP;
        m.u.tap.offload = w->tap.offload;
        if (!reply(w, &m, &w->tap.fd, 1))
            return -EPIPE;
    }
    for (uint32_t i = 0; i < w->open.port.slots; i++) {
        const struct mint_kept *k = &w->peers[i];

        if (!k->used)
            continue;
        memset(&m, 0, sizeof(m));
        m.type = MINT_MSG_ADD_PEER;
        m.u.peer = k->peer;
        if (!reply(w, &m, k->fds, count_fds(k->fds, MINT_MSG_FDS)))
            return -EPIPE;
    }
    return 0;
}

static int handle(struct mint_worker *w, const struct mint_msg *m, const int *fds, int n)
{
    switch (m->type) {
    case MINT_MSG_OPEN:
        return on_open(w, m, fds, n);
    case MINT_MSG_TAP:
        return on_tap(w, m, fds, n);
    case MINT_MSG_VHOST:
        return on_vhost(w, fds, n);
    case MINT_MSG_ADD_PEER:
        return on_add_peer(w, m, fds, n);
    case MINT_MSG_DROP_PEER:
        return on_drop_peer(w, m);
    case MINT_MSG_GIVE:
        return on_give(w);
    case MINT_MSG_STOP:
        w->stop = true;
        return 0;
    default:
        return -ENOSYS;
    }
}

void mint_control_serve(struct mint_worker *w)
{
    struct mint_msg m;
    int fds[MINT_MSG_FDS + 4] = {-1, -1, -1, -1, -1, -1, -1, -1};
    int n, status;

    if (w->control_fd < 0) {
        mint_control_accept(w);
        if (w->control_fd >= 0 && w->port)
            mint_control_watch(w);
        return;
    }
    n = receive(w, &m, fds);
    if (n < 0) {
        hang_up(w);
        return;
    }
    status = handle(w, &m, fds, n);
    if (status < 0 || m.type == MINT_MSG_DROP_PEER || m.type == MINT_MSG_GIVE ||
        m.type == MINT_MSG_STOP)
        close_fds(fds, n);
    m.status = status;
    if (!reply(w, &m, NULL, 0) && !w->stop)
        hang_up(w);
}
