/* SPDX-License-Identifier: Apache-2.0 */
/*
 * port_wait.c - sleeping.
 *
 *   receiver (here)                     sender (port_tx.c)
 *   wake = odd                          head = new           (publish)
 *   full fence                          full fence
 *   anything published? then stay up    wake odd, and not rung for? then ring
 *   epoll_wait()
 *   wake = even
 *
 * Whichever of the two fences comes first in their single total order, one side sees the other's
 * store: no wake-up is lost. Each odd value is used once, so a sender that has rung for it knows
 * that a wake-up is on its way and does not ring again, however long the waking takes.
 *
 * A doorbell that rings without a record, more often than a race explains, is not listened to for
 * a while (masked), each time for twice as long; its channel is then looked at by timer.
 */
#include "port_internal.h"
#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <sys/epoll.h>

#define EVENTS_MAX 64
#define WATCH_TAG (1ull << 32)          /* epoll data of a watched descriptor */
#define STORM_RINGS 64u                 /* rings for nothing ... */
#define STORM_NS (10ull * 1000000ull)   /* ... within this time are a storm */
#define MASK_NS (10ull * 1000000ull)    /* how long a storm masks the doorbell at first */
#define PUNISHED_MAX 4u                 /* the span is doubled so often at most */
#define FORGET_NS (100ull * 1000000ull) /* who was quiet for so long starts anew */
#define SILENT_NS (10ull * 1000000ull)  /* room may come so that nobody rings: look so often */
#define JOIN_BAD 16u                    /* what a new generation counts for, see port_rx.c */
#define POLL_SYSCALL_EVERY 16u          /* spins between two looks at the watched descriptors */
#define SPIN_PAUSES_MAX 16u             /* longest pause between two looks at shared memory */
#define YIELDS_PER_LOOK 4u              /* yields between two looks at the watched descriptors */
#define SOMEBODY_RAN_NS 2000u           /* a yield that takes longer gave the core to somebody */
#define CROWDED_NS 150000u          /* one that takes longer gave it to somebody who wants it all */
#define CROWDED_LEAST_NS 1000000ull /* then the core counts as crowded for so long, at first, */
#define CROWDED_MOST_NS 32000000ull /* and for so long at most */
#define SPIN_LEAST_NS 2000u         /* shortest spin worth its while */
#define ANSWER_SPANS 4u             /* how many times poll_us an answer is waited for */

static int watch(struct mint_port *port, int fd, uint32_t event, uint32_t how)
{
    struct epoll_event ev = {.events = EPOLLIN | how, .data.u64 = WATCH_TAG | event};

    if (epoll_ctl(port->epfd, EPOLL_CTL_ADD, fd, &ev) < 0)
        return -errno;
    if (event == MINT_EV_CONTROL && port->control_fd < 0)
        port->control_fd = fd;
    port->watched++;
    return 0;
}

int mint_port_watch(struct mint_port *port, int fd, uint32_t event)
{
    return watch(port, fd, event, 0);
}

int mint_port_watch_edge(struct mint_port *port, int fd, uint32_t event)
{
    return watch(port, fd, event, EPOLLET);
}

void mint_port_set_waiter(struct mint_port *port, const struct mint_waiter *waiter)
{
    port->waiter = waiter;
}

void mint_port_block(struct mint_port *port, bool blocked)
{
    port->blocked = blocked;
}

int mint_port_unwatch(struct mint_port *port, int fd)
{
    if (epoll_ctl(port->epfd, EPOLL_CTL_DEL, fd, NULL) < 0)
        return -errno;
    if (port->control_fd == fd)
        port->control_fd = -1;
    port->watched--;
    return 0;
}

int mint_port_fd(const struct mint_port *port)
{
    return port->epfd;
}

/* Whether there is a reason not to sleep. */
static bool pending(const struct mint_port *port)
{
    const struct mint_peer *w = port->waiting;

    if (w && (peer_room(port, w) || !peer_up(port, w)))
        return true;
    if (port->waiter && port->waiter->pending(port->waiter->context))
        return true;
    if (port->blocked)
        return false;
    if (port->pool)
        return mint_pool_pending(port->pool);
    for (uint32_t i = 0; i < port->count; i++)
        if (!port->list[i]->shunned_until && mint_ring_rx_pending(&port->list[i]->rx))
            return true;
    return false;
}

uint64_t mint_port_punish(struct mint_peer *peer, uint64_t now)
{
    if (now > peer->punished_until + FORGET_NS)
        peer->punished = 0;
    else if (peer->punished < PUNISHED_MAX)
        peer->punished++;
    peer->punished_until = now + (MASK_NS << peer->punished);
    return peer->punished_until;
}

void mint_port_mask(struct mint_port *port, struct mint_peer *peer, uint64_t until)
{
    if (peer->deaf)
        return;
    if (!peer->masked_until) {
        epoll_ctl(port->epfd, EPOLL_CTL_DEL, peer->bell, NULL);
        port->masked++;
    }
    bump(&peer->own->rx_counter[MINT_RX_MASKED], 1);
    peer->masked_until = until;
}

void mint_port_unmask(struct mint_port *port, struct mint_peer *peer)
{
    struct epoll_event ev = {.events = EPOLLIN, .data.u64 = peer->index};

    peer->masked_until = 0;
    port->masked--;
    port->asked = false;
    mint_bell_drain(peer->bell);
    epoll_ctl(port->epfd, EPOLL_CTL_ADD, peer->bell, &ev);
}

/* Whether a ring may be about the room that is waited for. */
static bool room_may_be(const struct mint_port *port, const struct mint_peer *waiting)
{
    return room_is_others(port, waiting) || peer_progress(port, waiting) != waiting->wait_mark;
}

/*
 * Whether an honest peer may have rung since its last ring: for a frame that was found without it, or
 * for room that we had asked for. Each wish and each frame excuse one ring.
 */
static bool ring_is_excused(struct mint_peer *peer)
{
    uint64_t taken = load_relaxed(&peer->own->rx_counter[MINT_RX_FRAMES]) + peer->rx_frames;
    bool excused = peer->wished || taken != peer->taken_at_ring;

    peer->wished = false;
    peer->taken_at_ring = taken;
    return excused;
}

/* A doorbell rang: take the ring, and judge whether it was worth it. */
static void rang(struct mint_port *port, struct mint_peer *peer)
{
    bool excused = ring_is_excused(peer);
    uint64_t now;

    port->asked = false; /* it may have been the ring for the room that was asked for */
    if (!mint_bell_drain(peer->bell)) {
        epoll_ctl(port->epfd, EPOLL_CTL_DEL, peer->bell, NULL);
        peer->deaf = true;
        return;
    }
    if (!port->pool && mint_ring_tx_join(&peer->tx)) {
        mint_bell_ring(peer->bell); /* it opened its end, or reset it: say that we followed */
        mint_port_blame(port, peer, JOIN_BAD);
    }
    if ((!peer->shunned_until && peer_pending(port, peer)) ||
        (port->waiting && room_may_be(port, port->waiting)) || excused)
        return;
    bump(&peer->own->rx_counter[MINT_RX_SPURIOUS], 1);
    now = now_ns();
    if (now - peer->spurious_since > STORM_NS) {
        peer->spurious_since = now;
        peer->spurious = 0;
    }
    if (++peer->spurious >= STORM_RINGS)
        mint_port_mask(port, peer, mint_port_punish(peer, now));
}

static void unmask_due(struct mint_port *port)
{
    uint64_t now = now_ns();

    for (uint32_t i = 0; i < port->count; i++)
        if (port->list[i]->masked_until && now >= port->list[i]->masked_until)
            mint_port_unmask(port, port->list[i]);
}

static uint32_t dispatch(struct mint_port *port, const struct epoll_event *ev, int n)
{
    uint32_t events = 0;

    for (int i = 0; i < n; i++) {
        uint64_t tag = ev[i].data.u64;
        struct mint_peer *peer;

        if (tag & WATCH_TAG) {
            events |= (uint32_t)tag;
            continue;
        }
        peer = tag < port->config.slots ? port->peers[tag] : NULL;
        if (peer && !peer->masked_until && !peer->deaf)
            rang(port, peer);
        events |= MINT_EV_BELL;
    }
    return events;
}

/* Sleep in the kernel for at most `timeout_ns` (negative: no limit). */
static int kernel_wait(struct mint_port *port, int64_t timeout_ns)
{
    struct epoll_event ev[EVENTS_MAX];
    struct timespec ts = {.tv_sec = timeout_ns / 1000000000, .tv_nsec = timeout_ns % 1000000000};
    int n = epoll_pwait2(port->epfd, ev, EVENTS_MAX, timeout_ns < 0 ? NULL : &ts, NULL);

    if (n < 0)
        return -errno;
    return (int)dispatch(port, ev, n);
}

/* Wait a little longer each time, so that the word looked at is not torn from its writer's cache. */
static void back_off(uint32_t *pauses)
{
    for (uint32_t i = 0; i < *pauses; i++)
        cpu_relax();
    if (*pauses < SPIN_PAUSES_MAX)
        *pauses *= 2;
}

static void count_spin(struct mint_port *port, uint64_t ns, int events)
{
    port->spun_ns += ns;
    bump_port(port, MINT_PORT_POLL_NS, ns);
    if (events > 0)
        bump_port(port, MINT_PORT_POLL_HITS, 1);
}

/* Somebody else computes on this core: do not spin for a while, each time for longer. */
static void count_crowd(struct mint_port *port, uint64_t now)
{
    port->crowded_ns *= 2;
    if (port->crowded_ns < CROWDED_LEAST_NS)
        port->crowded_ns = CROWDED_LEAST_NS;
    else if (port->crowded_ns > CROWDED_MOST_NS)
        port->crowded_ns = CROWDED_MOST_NS;
    port->crowded_until = now + port->crowded_ns;
}

/*
 * Spin where the core is shared with the applications whose frames are waited for: keeping it
 * would keep them from making any. Let them run, and look again when the core comes back; then
 * there is likely a batch of frames where waking for each would have found one.
 *
 * But one that yields is not let in before its turn, as one that is woken is: where somebody else
 * computes, the core comes back after milliseconds. There it does not spin for a while.
 */
static int spin_yielding(struct mint_port *port, uint64_t span)
{
    uint64_t now = now_ns(), before, spun = 0;
    int events = 0;

    for (uint32_t i = 1; !events && spun < span; i++) {
        if (pending(port)) {
            events = (int)MINT_EV_BELL;
            port->crowded_ns /= 2;
            break;
        }
        if (i % YIELDS_PER_LOOK == 0)
            events = kernel_wait(port, 0);
        before = now;
        sched_yield();
        now = now_ns();
        if (now - before > SOMEBODY_RAN_NS) {
            events |= (int)MINT_EV_DEVICE; /* look at everything: they may have sent something */
            spun += SOMEBODY_RAN_NS; /* what others ran for is no cost of polling; the look is */
            if (now - before > CROWDED_NS)
                count_crowd(port, now);
        } else {
            spun += now - before;
        }
    }
    count_spin(port, spun, events);
    return events;
}

/* Spin for `span` at most. Return: events, 0 when nothing came. */
static int spin(struct mint_port *port, uint64_t span, int64_t timeout_ns)
{
    uint64_t start = now_ns(), now = start;
    uint32_t pauses = 1;
    int events = 0;

    if (timeout_ns >= 0 && (uint64_t)timeout_ns < span)
        span = (uint64_t)timeout_ns;
    if (port->shares_core)
        return spin_yielding(port, span);
    for (uint32_t i = 0; now - start < span; i++) {
        if (pending(port)) {
            events = MINT_EV_BELL;
            break;
        }
        if (port->watched && i % POLL_SYSCALL_EVERY == POLL_SYSCALL_EVERY - 1) {
            events = kernel_wait(port, 0);
            if (events)
                break;
        }
        back_off(&pauses);
        now = now_ns();
    }
    count_spin(port, now - start, events);
    return events;
}

/*
 * The longest sleep that a spin may spare: poll_us for whatever comes. An answer is worth more: the
 * peer had to be woken first, which takes longer than all else in a round trip where its core had
 * been idle; and nobody spins for one who has not sent.
 */
static uint64_t longest(const struct mint_port *port, bool answer)
{
    return (uint64_t)port->config.poll_us * 1000u * (answer ? ANSWER_SPANS : 1u);
}

/*
 * Adapt a span to what spinning would have been good for: a sleep that a longer spin could have
 * spared makes it longer, any other one shorter.
 */
static void adapt(uint64_t *span, bool spared, uint64_t most)
{
    if (!spared)
        *span = *span / 2 >= SPIN_LEAST_NS ? *span / 2 : 0;
    else if (*span < SPIN_LEAST_NS)
        *span = SPIN_LEAST_NS < most ? SPIN_LEAST_NS : most;
    else
        *span = *span * 2 < most ? *span * 2 : most;
}

bool mint_port_spin_room(struct mint_port *port, uint32_t index)
{
    const struct mint_peer *peer = port->peers[index];
    uint64_t start = now_ns(), now = start, span = (uint64_t)port->config.poll_us * 1000u;
    uint64_t mark = peer_progress(port, peer);
    uint32_t pauses = 1;
    bool moved = false;

    while (!moved && now - start < span) {
        back_off(&pauses);
        now = now_ns();
        moved = peer_progress(port, peer) != mark;
    }
    if (span)
        bump_port(port, MINT_PORT_POLL_NS, now - start);
    return moved;
}

void mint_port_share_core(struct mint_port *port)
{
    port->shares_core = true;
}

void mint_port_arm(struct mint_port *port)
{
    port->wake += 1;
    store_relaxed(&port->ctl->wake, port->wake); /* odd: asleep */
    full_fence(); /* pairs with the one in mint_port_flush(): announced before the last look */
}

void mint_port_disarm(struct mint_port *port)
{
    port->wake += 1;
    store_relaxed(&port->ctl->wake, port->wake); /* even: awake; a late ring does no harm */
}

static void count_wake(struct mint_port *port, int events)
{
    bump_port(port, MINT_PORT_SLEEPS, 1);
    if (events == 0)
        bump_port(port, MINT_PORT_WAKES_TIMER, 1);
    else if (events > 0 && ((uint32_t)events & MINT_EV_DEVICE))
        bump_port(port, MINT_PORT_WAKES_DEVICE, 1);
    else if (events > 0 && ((uint32_t)events & MINT_EV_BELL))
        bump_port(port, MINT_PORT_WAKES_BELL, 1);
}

/* Senders need not ring for frames that would not be taken. */
static void announce_sleep(struct mint_port *port)
{
    if (port->waiter)
        port->waiter->arm(port->waiter->context);
    if (!port->blocked)
        mint_port_arm(port);
}

static void announce_awake(struct mint_port *port)
{
    if (!port->blocked)
        mint_port_disarm(port);
    if (port->waiter)
        port->waiter->disarm(port->waiter->context);
}

/* Announce the sleep, look once more, sleep. */
static int sleep_until(struct mint_port *port, int64_t timeout_ns)
{
    int events;

    if (port->pool)
        mint_pool_publish(port->pool); /* gives back what was taken ahead: others may need it */
    announce_sleep(port);
    if (pending(port)) {
        announce_awake(port);
        return (int)MINT_EV_BELL;
    }
    events = kernel_wait(port, timeout_ns);
    announce_awake(port);
    count_wake(port, events);
    return events;
}

/* The same, getting up meanwhile to give idle memory back when that is due. */
static int sleep_and_tend(struct mint_port *port, int64_t timeout_ns)
{
    for (;;) {
        int64_t due = mint_port_tend(port);
        int events;

        if (due < 0 || (timeout_ns >= 0 && timeout_ns <= due))
            return sleep_until(port, timeout_ns);
        events = sleep_until(port, due);
        if (events)
            return events;
        timeout_ns -= timeout_ns < 0 ? 0 : due;
    }
}

/*
 * Spin for what is left of the span. There are two spans, because the two waits differ: who has
 * just sent waits for an answer, which comes after a round trip; who has just received waits for
 * the next question, which comes when it pleases. One span for both would be halved by the long
 * waits as often as the short ones double it, and an answer would never be worth waiting for.
 *
 * A spin that ends without a frame (others ran on this core: look at everything) goes on with what
 * is left of its time when nothing was found. Where not even a sleep ended with a frame, spinning
 * pays less than it seemed.
 */
static int spin_first(struct mint_port *port, uint64_t *span, int64_t timeout_ns)
{
    bool for_nothing = port->activity == port->spun_at;

    if (port->crowded_until) {
        if (now_ns() < port->crowded_until)
            return 0;
        port->crowded_until = 0;
    }
    if (for_nothing && port->slept)
        adapt(span, false, 0);
    if (!for_nothing || port->slept)
        port->spun_ns = 0;
    port->spun_at = port->activity;
    port->slept = false;
    return port->spun_ns < *span ? spin(port, *span - port->spun_ns, timeout_ns) : 0;
}

int mint_port_wait(struct mint_port *port, int64_t timeout_ns)
{
    bool adaptive = port->config.poll_us && timeout_ns != 0;
    bool asked = port->sent_last;
    uint64_t *span = &port->spin_ns[asked];
    uint64_t slept = 0;
    int events;

    if (adaptive) {
        events = spin_first(port, span, timeout_ns);
        if (events)
            return events;
    }
    if ((port->masked || port->shunned) && (timeout_ns < 0 || (uint64_t)timeout_ns > MASK_NS))
        timeout_ns = (int64_t)MASK_NS;
    if (adaptive)
        slept = now_ns();
    events = sleep_and_tend(port, timeout_ns);
    port->slept = true;
    if (adaptive) {
        bool answer = asked && events > 0 && ((uint32_t)events & MINT_EV_BELL);

        adapt(span, now_ns() - slept <= longest(port, answer), longest(port, asked));
    }
    if (port->masked)
        unmask_due(port);
    if (port->shunned)
        mint_port_forgive(port);
    return events == 0 ? (int)MINT_EV_TIMER : events;
}

/* Sleep until the bell of `peer`, or control, wants attention. Return: 0 or -EINTR. */
static int wait_bell(struct mint_port *port, struct mint_peer *peer, uint64_t timeout_ns)
{
    bool silent = peer->deaf || peer->masked_until;
    struct pollfd p[2] = {
        {.fd = port->control_fd, .events = POLLIN}, /* -1 is passed over */
        {.fd = peer->bell, .events = POLLIN},
    };

    if (silent && timeout_ns > MASK_NS)
        timeout_ns = MASK_NS; /* it will not ring: look again soon */
    struct timespec ts = {.tv_sec = (time_t)(timeout_ns / 1000000000u),
                          .tv_nsec = (long)(timeout_ns % 1000000000u)};

    if (ppoll(p, silent ? 1 : 2, &ts, NULL) < 0)
        return errno == EINTR ? -EINTR : 0;
    /* Rings taken here announce room, or frames that the next mint_port_recv() will find. */
    if (p[1].revents)
        rang(port, peer);
    return p[0].revents ? -EINTR : 0;
}

int mint_port_wait_peer(struct mint_port *port, uint32_t index, uint64_t timeout_ns)
{
    /* In the pool another sender may have given back what it took ahead, or what it sent to one who is
     * gone: only receivers ring. */
    uint64_t most = port->pool ? SILENT_NS : INT64_MAX;
    int events;

    if (port->masked)
        unmask_due(port);
    if (!room_is_others(port, port->peers[index]))
        return wait_bell(port, port->peers[index], timeout_ns);
    if (port->masked && most > MASK_NS)
        most = MASK_NS;
    if (timeout_ns > most)
        timeout_ns = most;
    events = kernel_wait(port, (int64_t)timeout_ns);
    return events == -EINTR || (events > 0 && ((uint32_t)events & MINT_EV_CONTROL)) ? -EINTR : 0;
}
