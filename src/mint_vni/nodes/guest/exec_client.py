# SPDX-License-Identifier: Apache-2.0
"""Runs a program in a guest, on the caller's streams: ``python -I -S exec_client.py JSON ARG...``.

A script of its own, with the standard library alone, made into a command line by
`mint_vni.nodes.guest.argv`. It connects to the agent of the node, see
`mint_vni.nodes.guest.channel` for what the two say to each other, and relays: its standard input to
the program, the program's output to its own, signals, the size of the terminal. It ends in the same
way as the program: with its status, or by its signal.

JSON: ``name`` and ``socket`` of the node; ``env``; ``cwd`` or null; ``tty``: whether the caller's
streams are a terminal that is all the program's; ``log``: standard error goes to the node's log of
sshd. ARG...: the program.

With ``tty`` those of the three streams that are terminals are one terminal in the guest, whose job
control works there and here: what the keyboard stops there stops this process, too, and continuing
this one continues that.
"""

import contextlib
import fcntl
import json
import os
import select
import signal
import socket
import struct
import sys
import termios
import tty

# As in wire.py, of which this script imports nothing.
DATA, END, WINDOW, RESIZE, SIGNAL, STOPPED, EXIT, LOST = 10, 11, 12, 13, 14, 16, 17, 255
LOG_ERR = 8

SOL_SOCKET, SO_SNDBUFFORCE = 1, 32
REQUEST_BYTES = 2 << 20
PACKET_BYTES = 32770
PIECE = 16384
ACKNOWLEDGE = 65536  # bytes written out after which the guest is told that there is room

CANNOT_ENTER = 125
ANSWER_SECONDS = 30  # for the agent to take the connection and answer; it waits 15 for the guest
GRACE_SECONDS = 10  # for the program to end after a signal that ends this process

FORWARDED = ("SIGINT", "SIGQUIT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
ENDING = (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP)


class Unreachable(Exception):
    """The program could not be started; ``str()`` is for the user."""


class Terminal:
    """The caller's terminal, on standard input: raw while the program has it."""

    def __init__(self) -> None:
        self._saved: list | None = None  # type: ignore[type-arg]

    def take(self) -> bool:
        """Have every key for the program; returns False in the background, where none comes."""
        try:
            if os.tcgetpgrp(0) != os.getpgrp():
                return False
            self._saved = termios.tcgetattr(0)
            tty.setraw(0, termios.TCSADRAIN)
        except (OSError, termios.error):
            return False
        return True

    def give_back(self) -> None:
        """Leave it as it was found."""
        saved, self._saved = self._saved, None
        if saved is not None:
            with contextlib.suppress(OSError, termios.error):
                termios.tcsetattr(0, termios.TCSADRAIN, saved)


class Client:
    """One program, from here."""

    def __init__(self, request: dict, args: "list[str]") -> None:  # type: ignore[type-arg]
        self.request = request
        self.args = args
        self.terminal = Terminal()
        self.flags = LOG_ERR if request["log"] else 0
        if request["tty"] and os.isatty(0):
            self.flags |= sum(1 << fd for fd in range(3) if os.isatty(fd))
        self.connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.room = 0  # bytes that the program takes from us
        self.owed = 0  # bytes that we have written out, and the guest does not know of
        self.reading = True
        self.ending: int | None = None  # the signal that ends this process
        self.status: int | None = None

    def start(self) -> None:
        """Have the program started.

        Raises:
            Unreachable: It was not.
        """
        rows, columns = size()
        message = {"op": "exec", "args": self.args, "env": self.request["env"]}
        message |= {
            "cwd": self.request["cwd"],
            "flags": self.flags,
            "rows": rows,
            "columns": columns,
        }
        try:
            with contextlib.suppress(PermissionError):
                self.connection.setsockopt(SOL_SOCKET, SO_SNDBUFFORCE, REQUEST_BYTES)
            connect(self.connection, self.request["socket"])
            self.connection.send(json.dumps(message).encode(), socket.MSG_NOSIGNAL)
            answer = json.loads(self.connection.recv(PACKET_BYTES) or b'{"error": ""}')
            self.connection.settimeout(None)
        except (OSError, ValueError) as error:
            name = self.request["name"]
            raise Unreachable(f"node {name} cannot be entered: its agent: {error}") from None
        if not answer.get("ok"):
            raise Unreachable(answer.get("error") or f"node {self.request['name']} has ended")

    def run(self) -> int:
        """Relay until the program has ended; returns its status."""
        for name in FORWARDED:
            number = getattr(signal, name)
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self.on_signal)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        if self.flags & 1:
            signal.signal(signal.SIGWINCH, lambda *_: self.on_resize())
            self.reading = self.terminal.take()
        try:
            while self.status is None:
                self.step()
        finally:
            self.terminal.give_back()
        if self.ending is not None and not self.flags & 1:
            die_by(self.ending)
        return self.status

    def step(self) -> None:
        """Wait for something, and do what is to be done about it."""
        poll = select.poll()
        poll.register(self.connection, select.POLLIN)
        if self.reading and self.room:
            poll.register(0, select.POLLIN)
        for fd, _ in poll.poll():
            if fd == 0:
                self.read_input()
            else:
                self.on_packet(receive(self.connection))

    def send(self, kind: int, payload: bytes = b"") -> None:
        """Send a packet; an agent that has gone is noticed where packets are received."""
        with contextlib.suppress(OSError):
            self.connection.send(bytes([kind, 0]) + payload, socket.MSG_NOSIGNAL)

    def read_input(self) -> None:
        """Pass on what there is on standard input."""
        try:
            data = os.read(0, min(self.room, PIECE))
        except BlockingIOError:
            return
        except OSError:  # closed, or a terminal that has gone
            data = b""
        if data:
            self.room -= len(data)
            self.send(DATA, data)
        else:
            self.reading = False
            self.send(END)

    def on_packet(self, packet: bytes) -> None:
        """Act on a packet of the agent's."""
        kind, payload = (packet[0], packet[2:]) if packet else (LOST, b"")
        if kind == DATA:
            self.write(packet[1], payload)
        elif kind == WINDOW:
            self.room += int.from_bytes(payload, "little")
        elif kind == STOPPED:
            self.stop()
        elif kind == EXIT:
            self.status = -payload[1] if payload[0] else payload[1]
        elif kind == LOST:
            self.terminal.give_back()
            name = self.request["name"]
            complain(
                payload.decode() or f"node {name}: its agent has ended, the program's fate is open"
            )
            self.status = -signal.SIGKILL

    def write(self, stream: int, data: bytes) -> None:
        """Write out what the program has written."""
        fd = stream
        if stream == 3:  # the terminal
            fd = 1 if self.flags & 2 else 2 if self.flags & 4 else 0
        write_all(fd, data)
        self.owed += len(data)
        if self.owed >= ACKNOWLEDGE:
            self.send(WINDOW, struct.pack("<I", self.owed))
            self.owed = 0

    def stop(self) -> None:
        """The keyboard has stopped the program: stop, until somebody continues this process."""
        self.terminal.give_back()
        os.kill(os.getpid(), signal.SIGSTOP)
        self.reading = self.terminal.take()
        self.on_resize()
        self.send(SIGNAL, bytes([signal.SIGCONT]))

    def on_signal(self, number: int, _frame: object) -> None:
        """Pass a signal on; after one that ends this process the program has some time left."""
        self.send(SIGNAL, bytes([number]))
        if number in ENDING and self.ending is None:
            self.ending = number
            signal.signal(signal.SIGALRM, lambda *_: self.give_up())
            signal.setitimer(signal.ITIMER_REAL, GRACE_SECONDS)

    def give_up(self) -> None:
        """The program does not end: leave it."""
        self.terminal.give_back()
        die_by(self.ending or signal.SIGTERM)

    def on_resize(self) -> None:
        """Tell the program how large the terminal is."""
        self.send(RESIZE, struct.pack("<HH", *size()))


def receive(connection: socket.socket) -> bytes:
    """The next packet; nothing at the end."""
    try:
        return connection.recv(PACKET_BYTES)
    except ConnectionResetError:
        # The agent closed it before it had read all of ours. Told once; its own last packets follow.
        return connection.recv(PACKET_BYTES)


def connect(connection: socket.socket, path: str) -> None:
    """Connect to a socket whose path may be longer than an address can be (108 bytes).

    An agent that hangs lets nobody in: neither this nor what is sent and received next waits longer
    than ANSWER_SECONDS, until the caller says otherwise.
    """
    parent = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY)
    # settimeout() would make it an error at once that others wait, too.
    wait = struct.pack("@ll", ANSWER_SECONDS, 0)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, wait)
    try:
        connection.connect(f"/proc/self/fd/{parent}/{os.path.basename(path)}")
    except BlockingIOError:
        raise TimeoutError("it takes no connections") from None
    finally:
        os.close(parent)
    connection.settimeout(ANSWER_SECONDS)


def size() -> "tuple[int, int]":
    """Rows and columns of the terminal, if there is one."""
    for fd in range(3):
        with contextlib.suppress(OSError):
            packed = fcntl.ioctl(fd, termios.TIOCGWINSZ, bytes(8))
            rows, columns, _, _ = struct.unpack("HHHH", packed)
            return rows, columns
    return 0, 0


def write_all(fd: int, data: bytes) -> None:
    """Write, waiting for room; whoever does not read any more ends this process, by SIGPIPE."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            select.select([], [fd], [])
        except OSError:
            return  # closed, or a terminal that has gone


def complain(text: str) -> None:
    """Say something to the user."""
    with contextlib.suppress(OSError):
        os.write(2, text.encode() + b"\n")


def die_by(number: int) -> None:
    """End by a signal."""
    with contextlib.suppress(OSError):  # SIGKILL has only one disposition
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [number])
    os.kill(os.getpid(), number)


def main() -> int:
    """Run the program.

    Returns:
        The exit status, unless a signal ended it: then the same one ends this process.
    """
    while os.open(os.devnull, os.O_RDWR) <= 2:
        pass  # a stream that the caller has closed must not become the connection
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) == signal.default_int_handler:
            signal.signal(number, signal.SIG_DFL)
    client = Client(json.loads(sys.argv[1]), sys.argv[2:])
    try:
        client.start()
    except Unreachable as error:
        complain(str(error))
        return CANNOT_ENTER
    status = client.run()
    if status < 0:
        die_by(-status)
        return 128 - status  # a signal that does not end this process
    return status


if __name__ == "__main__":
    sys.exit(main())
