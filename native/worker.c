/* SPDX-License-Identifier: Apache-2.0 */
/*
 * worker.c - the process that serves one node's port: mint-worker.
 *
 * Theory of operation
 *
 * The supervisor executes it with a listening socket as descriptor 3 and its log as descriptor 2.
 * It is told what to serve over that socket (control.h), drops its privileges with the first
 * message and then moves frames between the node's device and the fabric until told to stop:
 *
 *   loop:  device -> channels   (a bounded batch)
 *          channels -> device   (a bounded batch)
 *          nothing to do: spin for poll_us, then sleep until a doorbell, the device, the
 *          supervisor or a time-out
 *
 * It outlives the supervisor: when the connection ends it goes on, and listens for the next one,
 * which it gives everything that it holds. Everything else that it must remember lies in its
 * control region, where its successor finds it after a crash.
 *
 * It trusts the supervisor, and nobody else: see port.c.
 */
#include "clock.h"
#include "gmem.h"
#include "pace.h"
#include "worker.h"
#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#define LISTEN_FD 3
#define SLICE_NS 100000u /* the least that the kernel takes */

static void say(const char *fmt, va_list ap) __attribute__((format(printf, 1, 0)));

/* One line in one write(): stdio would ask where its file stands, which the sandbox forbids. */
static void say(const char *fmt, va_list ap)
{
    static const char who[] = "mint-worker: ";
    char line[512];
    size_t len = sizeof(who) - 1;
    int n;

    memcpy(line, who, len);
    n = vsnprintf(line + len, sizeof(line) - len - 1, fmt, ap);
    if (n < 0)
        return;
    len += (size_t)n < sizeof(line) - len - 1 ? (size_t)n : sizeof(line) - len - 2;
    line[len++] = '\n';
    if (write(STDERR_FILENO, line, len) < 0)
        return; /* nobody to tell */
}

static void say_how_many(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

static void say_how_many(const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    say(fmt, ap);
    va_end(ap);
}

void mint_log(const char *fmt, ...)
{
    static struct mint_pace pace; /* a guest can cause some of them, again and again */
    va_list ap;

    if (!mint_pace(&pace, now_ns()))
        return;
    if (pace.left_out)
        say_how_many("%u lines left out", pace.left_out);
    pace.left_out = 0;
    va_start(ap, fmt);
    say(fmt, ap);
    va_end(ap);
}

/*
 * Before OPEN there is no port to sleep in: wait for the supervisor alone. When that goes away,
 * nobody knows of this process yet: end.
 */
static void serve_until_open(struct mint_worker *w)
{
    while (!w->port && !w->stop) {
        mint_control_serve(w);
        if (w->control_fd < 0)
            w->stop = true;
    }
}

static void run(struct mint_worker *w)
{
    while (!w->stop) {
        bool busy;
        int events;

        if (!w->device) {
            /* Frames may wait already, and nothing would take them: without this, no sleep either. */
            mint_control_serve(w);
            continue;
        }
        busy = w->device->in(w);
        busy |= w->device->out(w);
        if (busy) {
            /* Let the node's applications take what they got before there is more: a socket holds
             * some ninety frames, and what is written beyond them is lost. */
            sched_yield();
            continue;
        }
        events = mint_port_wait(w->port, w->device->timeout(w));
        if (events > 0 && ((uint32_t)events & MINT_EV_LINK))
            mint_vhost_serve(w);
        if (events > 0 && ((uint32_t)events & MINT_EV_CONTROL))
            mint_control_serve(w);
    }
}

/*
 * Ask for short turns: a task with a shorter slice is let in earlier when it wakes, and gives the
 * core back earlier (EEVDF, Linux 6.12). The node's applications share the core with this worker;
 * without it they may hold frames up for milliseconds. Older kernels say no, which does no harm.
 */
static void ask_short_slice(void)
{
    struct {
        uint32_t size, policy;
        uint64_t flags;
        int32_t nice;
        uint32_t priority;
        uint64_t runtime, deadline, period;
    } attr = {.size = sizeof(attr), .policy = SCHED_OTHER, .runtime = SLICE_NS};

    attr.nice = getpriority(PRIO_PROCESS, 0);
    syscall(SYS_sched_setattr, 0, &attr, 0);
}

int main(void)
{
    static struct mint_worker w; /* zero, and too large for the stack */

    prctl(PR_SET_NAME, "mint-worker");
    signal(SIGPIPE, SIG_IGN); /* a guest's call descriptor may be a pipe that nobody reads */
    w.listen_fd = LISTEN_FD;
    w.control_fd = -1;
    w.tap.fd = -1;
    w.hold.peer = UINT32_MAX;
    w.open_fds[0] = w.open_fds[1] = -1;
    w.owner_uid = getuid();
    ask_short_slice();
    if (mint_gmem_guard() < 0) /* before the sandbox forbids it */
        return EXIT_FAILURE;
    mint_control_accept(&w); /* blocks: the supervisor connects at once */
    if (w.control_fd < 0) {
        mint_log("no supervisor: descriptor %d is not a listening socket", LISTEN_FD);
        return EXIT_FAILURE;
    }
    serve_until_open(&w);
    if (!w.stop && mint_control_watch(&w) < 0)
        return EXIT_FAILURE;
    if (w.port)
        mint_port_share_core(w.port);
    run(&w);
    mint_port_close(w.port);
    return EXIT_SUCCESS;
}
