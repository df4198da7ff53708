/* SPDX-License-Identifier: Apache-2.0 */
/*
 * channel.c - the guest's end of the exec channel, see wire.h: opening it, frames in and out.
 *
 * The stream is a device that may appear late, and whose other end may go away: it is then closed,
 * all sessions with it, and opened again every RETRY_MS. Nothing here waits for the agent: what it
 * does not take stays in `out`, and who has more to send is told that there is no room.
 *
 * Frames from the agent are only acted upon while there is room for the answers, so what is queued
 * is bounded. The agent always reads, so this ends.
 */
#include "guest.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/utsname.h>
#include <termios.h>
#include <unistd.h>

#define RETRY_MS 25u
#define RETRY_LOST_MS 500u
#define ANSWERS 4096u /* room that acting on one frame may take */
#define PORTS "/sys/class/virtio-ports"

/* ----------------------------------------------------------------------------------- opening */

/* Find the device of a virtio port by its name: without udev there is no link that has it. */
static bool find_port(const char *name, char *path, size_t size)
{
    DIR *dir = opendir(PORTS);
    bool found = false;

    while (dir && !found) {
        const struct dirent *entry = readdir(dir);
        char file[sizeof(PORTS) + sizeof(entry->d_name) + 8], text[64];
        ssize_t n;
        int fd;

        if (!entry)
            break;
        snprintf(file, sizeof(file), PORTS "/%s/name", entry->d_name);
        fd = open(file, O_RDONLY | O_CLOEXEC);
        if (fd < 0)
            continue;
        n = read(fd, text, sizeof(text) - 1);
        close(fd);
        text[n > 0 ? n : 0] = '\0';
        text[strcspn(text, "\n")] = '\0';
        found = strcmp(text, name) == 0;
        if (found)
            snprintf(path, size, "/dev/%s", entry->d_name);
    }
    if (dir)
        closedir(dir);
    return found;
}

/* Return: how many bytes it takes at a time, 0: any number. */
static uint32_t set_raw(int fd)
{
    struct termios t;

    if (tcgetattr(fd, &t) < 0)
        return 0; /* no terminal */
    cfmakeraw(&t);
    t.c_cflag |= CLOCAL | CREAD;
    t.c_cc[VMIN] = 1;
    t.c_cc[VTIME] = 0;
    tcsetattr(fd, TCSANOW, &t);
    return GUEST_TTY_WINDOW;
}

static void greet(struct guest *g)
{
    struct channel *ch = &g->channel;
    static const uint8_t zeros[GUEST_FRAME_HEAD + GUEST_FRAME_MAX];
    struct {
        struct guest_hello hello;
        char release[sizeof(((struct utsname *)0)->release)];
    } said = {.hello = {.version = GUEST_WIRE_VERSION, .window = ch->window}};
    struct utsname u = {.release = ""};

    ch->in_len = ch->out_from = ch->out_to = 0;
    ch->taken = ch->told = 0;
    ch->welcome = false;
    memcpy(said.hello.magic, GUEST_MAGIC, GUEST_MAGIC_BYTES);
    if (getrandom(ch->nonce, sizeof(ch->nonce), GRND_NONBLOCK) < 0) {
        uint64_t now = guest_now(); /* the pool is empty: different from the last one will do */

        memcpy(ch->nonce, &now, sizeof(now));
    }
    memcpy(said.hello.nonce, ch->nonce, sizeof(ch->nonce));
    uname(&u);
    memcpy(said.release, u.release, sizeof(said.release));
    if (ch->resync) {
        memcpy(ch->out, zeros, sizeof(zeros));
        ch->out_to = sizeof(zeros);
    }
    ch->resync = true;
    channel_send(g, GUEST_HELLO, 0, 0, &said, sizeof(said.hello) + strlen(said.release));
}

void channel_use(struct guest *g, int fd)
{
    struct channel *ch = &g->channel;
    int flags = fcntl(fd, F_GETFL);

    if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0) {
        close(fd);
        ch->retry_at = guest_now() + RETRY_LOST_MS;
        return;
    }
    ch->window = set_raw(fd);
    ch->fd = fd;
    ch->retry_at = GUEST_NEVER;
    greet(g);
}

static void try_open(struct guest *g)
{
    struct channel *ch = &g->channel;
    char found[300];
    const char *path = ch->where;
    int fd;

    ch->retry_at = guest_now() + RETRY_MS;
    if (ch->port && !find_port(ch->where, found, sizeof(found)))
        return;
    if (ch->port)
        path = found;
    fd = open(path, O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
    if (fd >= 0)
        channel_use(g, fd);
}

void channel_name(struct guest *g, const char *where)
{
    struct channel *ch = &g->channel;
    static const char port[] = "port:";

    ch->port = strncmp(where, port, sizeof(port) - 1) == 0;
    snprintf(ch->where, sizeof(ch->where), "%s", ch->port ? where + sizeof(port) - 1 : where);
    try_open(g);
}

/* The other end has gone. */
static void lost(struct guest *g)
{
    struct channel *ch = &g->channel;

    guest_close(&ch->fd);
    ch->welcome = false;
    ch->in_len = ch->out_from = ch->out_to = 0;
    sessions_close_all(g);
    if (*ch->where)
        ch->retry_at = guest_now() + RETRY_LOST_MS;
    else
        g->ending = true; /* it was given, and cannot be opened again */
}

/* --------------------------------------------------------------------------------------- out */

static size_t room(struct channel *ch)
{
    if (ch->out_from == ch->out_to)
        ch->out_from = ch->out_to = 0;
    return sizeof(ch->out) - (ch->out_to - ch->out_from);
}

bool channel_room(struct guest *g, size_t bytes)
{
    return g->channel.welcome && room(&g->channel) >= GUEST_FRAME_HEAD + bytes + CHANNEL_RESERVE;
}

/* Where the next frame of so many bytes can be built; what is queued is moved together for it. */
static uint8_t *place(struct channel *ch, size_t bytes)
{
    if (room(ch) < bytes)
        return NULL;
    if (sizeof(ch->out) - ch->out_to < bytes) {
        memmove(ch->out, ch->out + ch->out_from, ch->out_to - ch->out_from);
        ch->out_to -= ch->out_from;
        ch->out_from = 0;
    }
    return ch->out + ch->out_to;
}

static void put_head(struct channel *ch, uint8_t *at, enum guest_frame type, unsigned stream,
                     unsigned session, size_t bytes)
{
    struct guest_head head = {.type = (uint8_t)type,
                              .stream = (uint8_t)stream,
                              .session = (uint16_t)session,
                              .length = (uint32_t)bytes};

    memcpy(at, &head, sizeof(head));
    ch->out_to += GUEST_FRAME_HEAD + bytes;
}

bool channel_send(struct guest *g, enum guest_frame type, unsigned stream, unsigned session,
                  const void *data, size_t bytes)
{
    struct channel *ch = &g->channel;
    uint8_t *at;

    if (ch->fd < 0 || (!ch->welcome && type != GUEST_HELLO))
        return false;
    at = place(ch, GUEST_FRAME_HEAD + bytes);
    if (!at)
        return false;
    if (bytes)
        memcpy(at + GUEST_FRAME_HEAD, data, bytes);
    put_head(ch, at, type, stream, session, bytes);
    return true;
}

ssize_t channel_relay(struct guest *g, unsigned stream, unsigned session, int fd, size_t most)
{
    struct channel *ch = &g->channel;
    uint8_t *at = place(ch, GUEST_FRAME_HEAD + most);
    ssize_t n;

    if (!at) {
        errno = EAGAIN;
        return -1;
    }
    n = read(fd, at + GUEST_FRAME_HEAD, most);
    if (n > 0)
        put_head(ch, at, GUEST_DATA, stream, session, (size_t)n);
    return n;
}

void channel_flush(struct guest *g)
{
    struct channel *ch = &g->channel;

    while (ch->fd >= 0 && ch->out_from < ch->out_to) {
        ssize_t n = write(ch->fd, ch->out + ch->out_from, ch->out_to - ch->out_from);

        if (n > 0) {
            ch->out_from += (size_t)n;
            continue;
        }
        if (n < 0 && errno == EINTR)
            continue;
        if (n == 0 || errno != EAGAIN)
            lost(g);
        return;
    }
}

void channel_drain(struct guest *g, int milliseconds)
{
    const struct channel *ch = &g->channel;
    uint64_t end = guest_now() + (uint64_t)milliseconds;

    for (;;) {
        struct pollfd p = {.fd = ch->fd, .events = POLLOUT};
        uint64_t now = guest_now();

        channel_flush(g);
        if (ch->fd < 0 || ch->out_from == ch->out_to || now >= end)
            return;
        poll(&p, 1, (int)(end - now));
    }
}

/* ---------------------------------------------------------------------------------------- in */

/* Skip to the agent's answer to our HELLO. Return: whether it was there. */
static bool find_welcome(struct guest *g)
{
    struct channel *ch = &g->channel;
    const size_t whole = GUEST_FRAME_HEAD + sizeof(struct guest_hello);

    for (size_t at = 0; at + whole <= ch->in_len; at++) {
        struct guest_head head;
        struct guest_hello hello;

        memcpy(&head, ch->in + at, sizeof(head));
        memcpy(&hello, ch->in + at + GUEST_FRAME_HEAD, sizeof(hello));
        if (head.type != GUEST_WELCOME || head.length != sizeof(hello) ||
            memcmp(hello.magic, GUEST_MAGIC, GUEST_MAGIC_BYTES) != 0 ||
            memcmp(hello.nonce, ch->nonce, GUEST_NONCE_BYTES) != 0)
            continue;
        ch->in_len -= at + whole;
        memmove(ch->in, ch->in + at + whole, ch->in_len);
        ch->welcome = true;
        ready_again(g);
        return true;
    }
    if (ch->in_len >= whole) { /* what could be its beginning stays */
        memmove(ch->in, ch->in + ch->in_len - (whole - 1), whole - 1);
        ch->in_len = whole - 1;
    }
    return false;
}

static void act(struct guest *g, const struct guest_head *head, const uint8_t *data)
{
    if (head->type == GUEST_POWER)
        power_request(g, head->length && data[0] == GUEST_REBOOT ? GUEST_REBOOT : GUEST_POWER_OFF);
    sessions_frame(g, head, data);
}

/* Act on the frames that are there in whole, as long as there is room for answers. */
static void take_frames(struct guest *g)
{
    struct channel *ch = &g->channel;
    size_t at = 0;

    if (!ch->welcome && !find_welcome(g))
        return;
    ch->held = false;
    while (ch->fd >= 0 && ch->in_len - at >= GUEST_FRAME_HEAD) {
        struct guest_head head;

        if (ch->in[at] == GUEST_PAD) {
            at++;
            continue;
        }
        if (room(ch) < ANSWERS) {
            ch->held = true;
            break;
        }
        memcpy(&head, ch->in + at, sizeof(head));
        if (head.type >= GUEST_FRAME_TYPES || head.length > GUEST_FRAME_MAX) {
            guest_say(g, "the agent's exec channel makes no sense: frame %u of %u bytes", head.type,
                      (unsigned)head.length);
            lost(g);
            return;
        }
        if (ch->in_len - at < GUEST_FRAME_HEAD + head.length)
            break;
        act(g, &head, ch->in + at + GUEST_FRAME_HEAD);
        at += GUEST_FRAME_HEAD + head.length;
    }
    if (ch->fd < 0 || at == 0)
        return;
    ch->in_len -= at;
    memmove(ch->in, ch->in + at, ch->in_len);
}

static void receive(struct guest *g)
{
    struct channel *ch = &g->channel;
    ssize_t n = read(ch->fd, ch->in + ch->in_len, sizeof(ch->in) - ch->in_len);

    if (n > 0) {
        ch->in_len += (size_t)n;
        ch->taken += (uint32_t)n;
    } else if (n == 0 || (errno != EAGAIN && errno != EINTR)) {
        lost(g);
    }
}

/* Have the agent go on before it has to stop. */
static void acknowledge(struct guest *g)
{
    struct channel *ch = &g->channel;

    if (ch->window && ch->taken - ch->told >= ch->window / 2 &&
        channel_send(g, GUEST_ACK, 0, 0, &ch->taken, sizeof(ch->taken)))
        ch->told = ch->taken;
}

void channel_watch(struct guest *g, struct watch *w)
{
    struct channel *ch = &g->channel;
    short events = 0;

    if (ch->fd < 0) {
        watch_until(w, ch->retry_at);
        ch->entry = -1;
        return;
    }
    if (ch->in_len < sizeof(ch->in))
        events |= POLLIN;
    if (ch->out_from < ch->out_to)
        events |= POLLOUT;
    if (ch->held && room(ch) >= ANSWERS)
        watch_until(w, 0);
    ch->entry = watch_fd(w, ch->fd, events);
}

void channel_serve(struct guest *g, const struct watch *w)
{
    struct channel *ch = &g->channel;
    short got = watch_got(w, ch->entry);

    if (ch->fd < 0) {
        if (guest_now() >= ch->retry_at)
            try_open(g);
        return;
    }
    if (got & POLLIN)
        receive(g);
    else if (got & (POLLHUP | POLLERR | POLLNVAL))
        lost(g);
    if (ch->fd < 0)
        return;
    take_frames(g);
    acknowledge(g);
}
