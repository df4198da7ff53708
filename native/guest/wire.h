/* SPDX-License-Identifier: Apache-2.0 */
/*
 * wire.h - the exec channel: what a guest and its node's agent say to each other over one stream.
 *
 * The stream is a serial line (UML) or a virtio-serial port (QEMU). Frames go both ways, any number
 * of sessions at once; all numbers are little-endian:
 *
 *   0        1         2          4            8
 *   | type u8 | stream u8 | session u16 | length u32 | payload, at most GUEST_FRAME_MAX
 *
 * A byte 0 where a type should be is padding, alone. src/mint_vni/nodes/guest/wire.py has the same
 * numbers; a test compares the two.
 *
 * Beginning. The guest speaks first: HELLO. The agent is silent until then, ignores whatever it
 * reads before, and answers with WELCOME and the nonce of the HELLO. Whatever the guest reads before
 * that (left over from another boot) it ignores. Where a half-sent frame may precede a HELLO, the
 * guest sends GUEST_FRAME_MAX + GUEST_FRAME_HEAD bytes of padding first, which end it.
 *
 *   guest -> agent   HELLO    struct guest_hello, then the kernel's release (text)
 *   agent -> guest   WELCOME  struct guest_hello, with the same nonce
 *
 * A terminal takes no more than GUEST_TTY_WINDOW bytes at a time (UML 7.2 loses a serial line's
 * interrupt for ever when the line discipline's 4096 bytes fill up). If HELLO says so, the agent
 * sends no more than its `window` before the guest has read it, which that tells:
 *
 *   guest -> agent   ACK      u32: bytes read since HELLO, modulo 2^32
 *
 * A session runs one program. The agent chooses its number, free again after EXIT.
 *
 *   agent -> guest   ARGS     a piece of the OPEN that follows, when that is longer than a frame
 *   agent -> guest   OPEN     struct guest_open, then zero-terminated: working directory (empty:
 *                             root's home), argc arguments (none: root's login shell), envc
 *                             variables
 *   guest -> agent   STARTED  it runs; or is about to end with 125, 126 or 127 and a line about why
 *   either           DATA     stream 0 to the guest; 1, 2, or 3 (the terminal) from it
 *   agent -> guest   END      stream 0: there is no more
 *   either           WINDOW   u32: so many more bytes may be sent. To the guest for streams 1 to 3
 *                             together; from the guest for stream 0, GUEST_STDIN_WINDOW to begin
 *   agent -> guest   RESIZE   u16 rows, u16 columns
 *   agent -> guest   SIGNAL   u8: for the program's process group
 *   agent -> guest   CLOSE    nobody waits for it any more: SIGTERM, with a terminal SIGHUP
 *   guest -> agent   STOPPED  u8 signal: the terminal stopped it; SIGNAL SIGCONT continues it
 *   guest -> agent   EXIT     u8: 0 exited, 1 by a signal; u8: status or signal. The last of it
 *
 * Besides:
 *
 *   guest -> agent   READY    sshd answers, the interface is configured
 *   guest -> agent   LOG      stream 1: what sshd said; 2: what mint-guest has to say
 *   guest -> agent   BYE      u8: enum guest_bye: why the guest goes down, now
 *   agent -> guest   POWER    u8: enum guest_bye: go down
 */
#ifndef MINT_GUEST_WIRE_H
#define MINT_GUEST_WIRE_H

#include <assert.h>
#include <stdint.h>

#define GUEST_WIRE_VERSION 1u
#define GUEST_MAGIC "MINTEXEC"
#define GUEST_MAGIC_BYTES 8u
#define GUEST_NONCE_BYTES 16u

#define GUEST_FRAME_HEAD 8u
#define GUEST_FRAME_MAX 32768u
#define GUEST_STDIN_WINDOW 65536u
#define GUEST_TTY_WINDOW 3584u
#define GUEST_OPEN_MAX 1048576u /* bytes of an OPEN with its ARGS */
#define GUEST_SESSIONS 64u

enum guest_frame {
    GUEST_PAD = 0,
    GUEST_HELLO = 1,
    GUEST_WELCOME = 2,
    GUEST_READY = 3,
    GUEST_LOG = 4,
    GUEST_BYE = 5,
    GUEST_POWER = 6,
    GUEST_ARGS = 7,
    GUEST_OPEN = 8,
    GUEST_STARTED = 9,
    GUEST_DATA = 10,
    GUEST_END = 11,
    GUEST_WINDOW = 12,
    GUEST_RESIZE = 13,
    GUEST_SIGNAL = 14,
    GUEST_CLOSE = 15,
    GUEST_STOPPED = 16,
    GUEST_EXIT = 17,
    GUEST_ACK = 18,
    GUEST_FRAME_TYPES
};

enum guest_bye { GUEST_POWER_OFF = 0, GUEST_REBOOT = 1 };

enum guest_log { GUEST_LOG_SSHD = 1, GUEST_LOG_SELF = 2 };

/* In struct guest_open. */
#define GUEST_TTY_IN 1u  /* stream 0 is the terminal */
#define GUEST_TTY_OUT 2u /* what the program writes to stream 1 comes on stream 3 instead */
#define GUEST_TTY_ERR 4u /* the same for stream 2 */
#define GUEST_TTY (GUEST_TTY_IN | GUEST_TTY_OUT | GUEST_TTY_ERR)
#define GUEST_LOG_ERR 8u /* stream 2 goes to the log of sshd */

struct guest_head {
    uint8_t type;
    uint8_t stream;
    uint16_t session;
    uint32_t length;
};

struct guest_hello {
    char magic[GUEST_MAGIC_BYTES];
    uint32_t version;
    uint32_t window; /* bytes that may be on their way to the guest; 0: any number */
    uint8_t nonce[GUEST_NONCE_BYTES];
};

struct guest_open {
    uint32_t window; /* bytes of streams 1 to 3 that may be sent at first */
    uint16_t flags;
    uint16_t rows;
    uint16_t columns;
    uint16_t argc;
    uint16_t envc;
    uint16_t zero;
};

static_assert(sizeof(struct guest_head) == GUEST_FRAME_HEAD, "a frame's header");
static_assert(sizeof(struct guest_hello) == 32, "HELLO and WELCOME");
static_assert(sizeof(struct guest_open) == 16, "OPEN");

#endif
