/* SPDX-License-Identifier: Apache-2.0 */
/*
 * session.c - programs that run for the agent: their streams, windows and ends.
 *
 * A session's OPEN is collected in `buf`; then its program runs (run.c), and `buf` holds what is to
 * be written to its stream 0, never more than GUEST_STDIN_WINDOW. What it writes is read when the
 * agent's window and the channel have room, so a program that writes too fast waits in its write,
 * and one session never has more than a frame before the next one has its turn.
 *
 * A session ends when its program has, and what that had written until then was read: whoever it
 * left behind in the background is not waited for.
 */
#include "guest.h"
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#define CANNOT_ENTER 125
#define LAST_WORDS_MS 5000u /* for a program that was told to end */
#define PIECE 16384u        /* most bytes of one frame of data: so long may another session wait */

static struct session *find(struct guest *g, unsigned id)
{
    for (unsigned i = 0; i < GUEST_SESSIONS; i++)
        if (g->sessions[i].used && !g->sessions[i].until && g->sessions[i].id == id)
            return &g->sessions[i];
    return NULL;
}

static void drop(struct session *s)
{
    guest_close(&s->in);
    guest_close(&s->out);
    guest_close(&s->err);
    guest_close(&s->pty);
    guest_close(&s->report);
    free(s->buf);
    s->buf = NULL;
    s->used = false;
}

/* When all places are taken: who only speaks to nobody has had his time. */
static void make_place(struct guest *g)
{
    struct session *oldest = NULL;

    for (unsigned i = 0; i < GUEST_SESSIONS; i++) {
        struct session *s = &g->sessions[i];

        if (!s->used)
            return;
        if (s->until && (!oldest || s->until < oldest->until))
            oldest = s;
    }
    if (oldest)
        drop(oldest);
}

static struct session *add(struct guest *g, unsigned id)
{
    make_place(g);
    for (unsigned i = 0; i < GUEST_SESSIONS; i++) {
        struct session *s = &g->sessions[i];

        if (s->used)
            continue;
        *s = (struct session){.used = true,
                              .id = (uint16_t)id,
                              .in = -1,
                              .out = -1,
                              .err = -1,
                              .pty = -1,
                              .report = -1,
                              .in_entry = -1,
                              .out_entry = -1,
                              .err_entry = -1,
                              .pty_entry = -1,
                              .report_entry = -1};
        return s;
    }
    return NULL;
}

static void signal_group(const struct session *s, int number)
{
    pid_t group = s->flags & GUEST_TTY ? s->group : s->pid;

    /* A child that has not got to its setsid() yet has no group. */
    if (s->running && !s->ended && group > 1 && kill(-group, number) < 0)
        kill(group, number);
}

/*
 * Nobody waits for it any more. A terminal hangs up. Pipes stay open for a while, and what comes is
 * thrown away: a program that speaks while it cleans up would be killed by a closed one.
 */
static void forsake(struct session *s)
{
    bool speaks = !(s->flags & GUEST_TTY) && s->running && !s->ended;

    signal_group(s, s->flags & GUEST_TTY ? SIGHUP : SIGTERM);
    signal_group(s, SIGCONT);
    guest_close(&s->in);
    if (speaks && !s->until)
        s->until = guest_now() + LAST_WORDS_MS;
    else if (!speaks)
        drop(s);
}

static void throw_away(int *fd)
{
    static char nowhere[PIECE];
    ssize_t n = read(*fd, nowhere, sizeof(nowhere));

    if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR))
        guest_close(fd);
}

static void serve_forsaken(struct session *s, const struct watch *w)
{
    if (watch_got(w, s->out_entry))
        throw_away(&s->out);
    if (watch_got(w, s->err_entry))
        throw_away(&s->err);
    if (s->ended || (s->out < 0 && s->err < 0) || guest_now() >= s->until)
        drop(s);
}

bool sessions_over(const struct guest *g)
{
    for (unsigned i = 0; i < GUEST_SESSIONS; i++)
        if (g->sessions[i].used)
            return false;
    return true;
}

void sessions_close_all(struct guest *g)
{
    for (unsigned i = 0; i < GUEST_SESSIONS; i++)
        if (g->sessions[i].used)
            forsake(&g->sessions[i]);
}

/* ------------------------------------------------------------------------------------ opening */

/* The last frame of a session that the agent has given up: its number is free again. */
static void finish(struct guest *g, unsigned id)
{
    static const uint8_t how[2] = {1, SIGHUP};

    channel_send(g, GUEST_EXIT, 0, id, how, sizeof(how));
}

/* A session that cannot be: say why on stream 2, and end it. */
static void refuse(struct guest *g, unsigned id, const char *why)
{
    static const uint8_t cannot[2] = {0, CANNOT_ENTER};

    channel_send(g, GUEST_DATA, 2, id, why, strlen(why));
    channel_send(g, GUEST_EXIT, 0, id, cannot, sizeof(cannot));
}

/* The next zero-terminated text, NULL when there is none. */
static char *next_text(char **at, const char *end)
{
    char *text = *at;
    const char *zero = text < end ? memchr(text, '\0', (size_t)(end - text)) : NULL;

    if (!zero)
        return NULL;
    *at = text + (zero - text) + 1;
    return text;
}

/* Find the parts of an OPEN. Return: false if it makes no sense; p->args is to be freed. */
static bool parse_open(const struct session *s, struct program *p)
{
    char *at = (char *)s->buf + sizeof(p->open);
    const char *end = (char *)s->buf + s->to;

    p->args = NULL;
    if (s->to < sizeof(p->open))
        return false;
    memcpy(&p->open, s->buf, sizeof(p->open));
    p->cwd = next_text(&at, end);
    p->args = calloc((size_t)p->open.argc + p->open.envc + 2u, sizeof(p->args[0]));
    if (!p->cwd || !p->args)
        return false;
    p->env = p->args + p->open.argc + 1;
    for (unsigned i = 0; i < p->open.argc; i++)
        if (!(p->args[i] = next_text(&at, end)))
            return false;
    for (unsigned i = 0; i < p->open.envc; i++)
        if (!(p->env[i] = next_text(&at, end)))
            return false;
    return true;
}

static bool collect(struct session *s, const uint8_t *data, size_t bytes)
{
    uint8_t *grown;

    if (s->to + bytes > GUEST_OPEN_MAX)
        return false;
    grown = realloc(s->buf, s->to + bytes + 1u);
    if (!grown)
        return false;
    s->buf = grown;
    memcpy(s->buf + s->to, data, bytes);
    s->to += bytes;
    return true;
}

static void start(struct guest *g, struct session *s)
{
    struct program p;
    uint8_t *buf = NULL;
    char why[128];
    int err = -EINVAL;

    if (parse_open(s, &p)) {
        s->flags = p.open.flags;
        s->window = p.open.window;
        buf = malloc(GUEST_STDIN_WINDOW);
        err = buf ? run_program(g, s, &p) : -ENOMEM;
    }
    free(p.args);
    free(s->buf);
    s->buf = buf;
    s->from = s->to = 0;
    if (err) {
        snprintf(why, sizeof(why), "the node cannot start a program: %s\n", strerror(-err));
        refuse(g, s->id, why);
        drop(s);
        return;
    }
    s->running = true;
}

static void on_open(struct guest *g, const struct guest_head *head, const uint8_t *data)
{
    struct session *s = find(g, head->session);

    if (!s)
        s = add(g, head->session);
    if (!s) {
        if (head->type == GUEST_OPEN)
            refuse(g, head->session, "the node runs as many programs for the host as it can\n");
        return;
    }
    if (s->running)
        return;
    if (!collect(s, data, head->length)) {
        refuse(g, s->id, "the node cannot start a program: the command line is too long\n");
        drop(s);
        return;
    }
    if (head->type == GUEST_OPEN)
        start(g, s);
}

/* ------------------------------------------------------------------------- frames of the agent */

static void on_data(struct session *s, const uint8_t *data, size_t bytes)
{
    if (s->in < 0) { /* the program wants no more: as if it had read it */
        s->owed += (uint32_t)bytes;
        return;
    }
    if (s->to - s->from + bytes > GUEST_STDIN_WINDOW)
        return; /* beyond the window: the agent's mistake */
    if (GUEST_STDIN_WINDOW - s->to < bytes) {
        memmove(s->buf, s->buf + s->from, s->to - s->from);
        s->to -= s->from;
        s->from = 0;
    }
    memcpy(s->buf + s->to, data, bytes);
    s->to += bytes;
    s->fresh = true;
}

static void on_resize(const struct session *s, const uint8_t *data, size_t bytes)
{
    uint16_t size[2];
    struct winsize ws = {0};

    if (s->pty < 0 || bytes < sizeof(size))
        return;
    memcpy(size, data, sizeof(size));
    ws.ws_row = size[0];
    ws.ws_col = size[1];
    ioctl(s->pty, TIOCSWINSZ, &ws);
}

static void on_window(struct session *s, const uint8_t *data, size_t bytes)
{
    uint32_t more;

    if (bytes < sizeof(more))
        return;
    memcpy(&more, data, sizeof(more));
    s->window = more > UINT32_MAX - s->window ? UINT32_MAX : s->window + more;
}

void sessions_frame(struct guest *g, const struct guest_head *head, const uint8_t *data)
{
    struct session *s = find(g, head->session);

    if (head->type == GUEST_ARGS || head->type == GUEST_OPEN) {
        on_open(g, head, data);
        return;
    }
    if (!s)
        return; /* it has just ended */
    if (head->type == GUEST_CLOSE) {
        forsake(s);
        finish(g, head->session);
    } else if (!s->running) {
        return;
    } else if (head->type == GUEST_DATA)
        on_data(s, data, head->length);
    else if (head->type == GUEST_END)
        s->in_end = s->fresh = true;
    else if (head->type == GUEST_WINDOW)
        on_window(s, data, head->length);
    else if (head->type == GUEST_RESIZE)
        on_resize(s, data, head->length);
    else if (head->type == GUEST_SIGNAL && head->length)
        signal_group(s, data[0]);
}

/* ------------------------------------------------------------------------------ the program's */

bool sessions_child(struct guest *g, pid_t pid, int status)
{
    for (unsigned i = 0; i < GUEST_SESSIONS; i++) {
        struct session *s = &g->sessions[i];

        if (!s->used || !s->running || s->pid != pid)
            continue;
        /* A warden speaks of its program before it ends; if it did not, it was killed. */
        if (!s->ended && s->report < 0)
            s->status = status;
        s->pid = 0;
        if (s->report < 0)
            s->ended = true;
        return true;
    }
    return false;
}

static void read_report(struct session *s)
{
    struct report r;
    ssize_t n = read(s->report, &r, sizeof(r));

    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n != (ssize_t)sizeof(r)) { /* the warden was killed, the program with it */
        s->status = SIGKILL;
        s->ended = true;
        guest_close(&s->report);
        return;
    }
    if (r.what == REPORT_GROUP)
        s->group = r.value;
    if (r.what == REPORT_STOPPED)
        s->stopped = (uint8_t)r.value;
    if (r.what == REPORT_ENDED) {
        s->status = r.value;
        s->ended = true;
        guest_close(&s->report);
    }
}

static void feed(struct session *s)
{
    s->fresh = false;
    while (s->in >= 0 && s->from < s->to) {
        ssize_t n = write(s->in, s->buf + s->from, s->to - s->from);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN)
            return;
        if (n <= 0) { /* nobody reads it */
            s->owed += (uint32_t)(s->to - s->from);
            guest_close(&s->in);
            break;
        }
        s->owed += (uint32_t)n;
        s->from += (size_t)n;
    }
    s->from = s->to = 0;
    if (s->in_end)
        guest_close(&s->in);
}

/* Send on what a stream has. Return: whether there may be more at once. */
static bool relay(struct guest *g, struct session *s, int *fd, unsigned stream)
{
    size_t most = s->window < PIECE ? s->window : PIECE;
    ssize_t n;

    if (*fd < 0 || !most || !channel_room(g, most))
        return false;
    n = channel_relay(g, stream, s->id, *fd, most);
    if (n > 0) {
        s->window -= (uint32_t)n;
        return true;
    }
    if (n == 0 || (errno != EAGAIN && errno != EINTR))
        guest_close(fd);
    return false;
}

static bool may_send(struct guest *g, const struct session *s)
{
    return s->window && channel_room(g, s->window < PIECE ? s->window : PIECE);
}

/* Tell the agent what it does not know yet. Return: whether the session is over. */
static bool tell(struct guest *g, struct session *s)
{
    if (!s->started)
        s->started = channel_send(g, GUEST_STARTED, 0, s->id, NULL, 0);
    if (s->owed && (s->owed >= GUEST_STDIN_WINDOW / 4 || s->from == s->to) &&
        channel_send(g, GUEST_WINDOW, 0, s->id, &s->owed, sizeof(s->owed)))
        s->owed = 0;
    if (s->stopped && channel_send(g, GUEST_STOPPED, 0, s->id, &s->stopped, 1))
        s->stopped = 0;
    if (s->ended && s->started) {
        const uint8_t how[2] = {
            WIFSIGNALED(s->status),
            (uint8_t)(WIFSIGNALED(s->status) ? WTERMSIG(s->status) : WEXITSTATUS(s->status))};
        bool streams = s->out >= 0 || s->err >= 0 || s->pty >= 0;

        /* Its last words first; what is not there now is of somebody else. */
        if (streams && !may_send(g, s))
            return false;
        if (relay(g, s, &s->out, 1) || relay(g, s, &s->err, 2) || relay(g, s, &s->pty, 3))
            return false;
        return channel_send(g, GUEST_EXIT, 0, s->id, how, sizeof(how));
    }
    return false;
}

void sessions_watch(struct guest *g, struct watch *w)
{
    for (unsigned i = 0; i < GUEST_SESSIONS; i++) {
        struct session *s = &g->sessions[i];
        bool room;

        if (!s->used || !s->running)
            continue;
        if (s->until) {
            s->out_entry = watch_fd(w, s->out, POLLIN);
            s->err_entry = watch_fd(w, s->err, POLLIN);
            watch_until(w, s->until);
            continue;
        }
        room = may_send(g, s);
        s->in_entry = watch_fd(w, s->in, s->from < s->to ? POLLOUT : 0);
        s->out_entry = watch_fd(w, s->out, room ? POLLIN : 0);
        s->err_entry = watch_fd(w, s->err, room ? POLLIN : 0);
        s->pty_entry = watch_fd(w, s->pty, room ? POLLIN : 0);
        s->report_entry = watch_fd(w, s->report, POLLIN);
        if (s->ended && room)
            watch_until(w, 0);
    }
}

static void serve(struct guest *g, struct session *s, const struct watch *w)
{
    if (watch_got(w, s->report_entry))
        read_report(s);
    if (s->fresh || watch_got(w, s->in_entry))
        feed(s);
    if (watch_got(w, s->out_entry))
        relay(g, s, &s->out, 1);
    if (watch_got(w, s->err_entry))
        relay(g, s, &s->err, 2);
    if (watch_got(w, s->pty_entry))
        relay(g, s, &s->pty, 3);
    if (tell(g, s))
        drop(s);
}

void sessions_serve(struct guest *g, const struct watch *w)
{
    g->turn = (g->turn + 1) % GUEST_SESSIONS;
    for (unsigned i = 0; i < GUEST_SESSIONS; i++) {
        struct session *s = &g->sessions[(g->turn + i) % GUEST_SESSIONS];

        if (s->used && s->until)
            serve_forsaken(s, w);
        else if (s->used && s->running)
            serve(g, s, w);
    }
}
