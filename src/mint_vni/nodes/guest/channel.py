# SPDX-License-Identifier: Apache-2.0
"""The host's end of the exec channel, in a node's agent (asyncio).

`GuestChannel` speaks with mint-guest over the stream of one boot; `serve_exec` serves one client
(`mint_vni.nodes.guest.exec_client`), which runs one program in the guest::

    client  --SEQPACKET-->  serve_exec -- GuestChannel  --stream-->  mint-guest -- program

**Client.** Its first packet is a JSON object (the agent reads that); the answer ``{"ok": true}``,
once the program runs, or ``{"error": "…"}``. From then on a packet is a frame without session and
length: type, stream, payload; types as in `wire.Type`, and besides `LOST`.

**Flow.** The guest sends no more than the client has said it has room for, the client no more than
the guest has. What waits here is bounded by that: `WINDOW` bytes of each session's output, as frames
(`_Packets`), and `STDIN_WINDOW` of its input. What the guest says besides does not pile up: what it
has room for is added up for a client that does not read, and that its program was stopped is told
once. A guest that sends more than there is room for, has more room than it was sent, leaves more
unread than all that can be (`_UNREAD_MAX`), or sends what makes no sense, has all its sessions ended.

**Trust.** The guest is not trusted at all, clients (root's) are.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

from mint_vni.nodes.guest.wire import (
    FRAME_MAX,
    HEAD_BYTES,
    OPEN_MAX,
    SESSIONS,
    STDIN_WINDOW,
    VERSION,
    Frame,
    FrameReader,
    Hello,
    Open,
    Type,
    encode,
    open_frames,
)

__all__ = ["CONTROL_BYTES", "LOST", "WINDOW", "GuestChannel", "serve_exec"]

#: Most bytes of a client's first packet.
CONTROL_BYTES: Final = 2 << 20

#: Bytes of a program's output that may be on their way to a client.
WINDOW: Final = 256 << 10

#: Type of the packet that tells a client why its program's fate is unknown.
LOST: Final = 255

_READ_BYTES: Final = 128 << 10
_WRITE_BYTES: Final = 128 << 10
_OUT_MAX: Final = 8 << 20  # what a guest may leave unread before nothing new is started
# What a guest may leave unread: that and the last program; of each session its input, in frames of
# one byte, and its signals and the like.
_UNREAD_MAX: Final = (
    _OUT_MAX + 2 * OPEN_MAX + SESSIONS * (STDIN_WINDOW * (1 + HEAD_BYTES) + (64 << 10))
)
_START_SECONDS: Final = 15.0
_PACKET_BYTES: Final = FRAME_MAX + 2
_U32: Final = struct.Struct("<I")
_WAITING: Final = struct.Struct("<HBB")  # length, type, stream
_MASK: Final = 0xFFFFFFFF

_BYES: Final = ("power-off", "reboot")

Bye = Literal["power-off", "reboot"]


class GuestChannel:
    """The channel of one boot of a guest; make it in a running event loop, which then serves it.

    Attributes:
        hello: What mint-guest said of itself; None until it has.
        ready: Whether its sshd answers and its interface is configured.
        bye: Why the guest goes down, if it said so.
        closed: Why nothing comes any more; None while it may.
    """

    def __init__(
        self,
        stream: socket.socket,
        *,
        name: str,
        on_log: Callable[[str, bytes], None],
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        """Take over a stream.

        Args:
            stream: To the guest; closed with the channel.
            name: The node's, for messages.
            on_log: Called with a source, ``sshd`` or ``guest``, and what that says. It is for the
                caller to keep no more of it than is good.
            on_change: Called when one of the attributes has changed.
        """
        self.name = name
        self.hello: Hello | None = None
        self.ready = False
        self.bye: Bye | None = None
        self.closed: str | None = None
        self._stream = stream
        self._on_log = on_log
        self._on_change = on_change
        self._reader = FrameReader()
        self._out = bytearray()
        self._sent = 0  # bytes since HELLO, modulo 2^32
        self._read = 0  # of them, those that the guest has acknowledged, if it does so
        self._held = 0  # bytes after which to wait for the first acknowledgement; 0: it came
        self._sessions: dict[int, Session | None] = {}  # None: closed here, not yet there
        self._next = 0
        self._loop = asyncio.get_running_loop()
        stream.setblocking(False)
        self._loop.add_reader(stream.fileno(), self._readable)

    @property
    def connected(self) -> bool:
        """Whether programs can be run."""
        return self.hello is not None and self.closed is None

    def power(self, how: str = "power-off") -> bool:
        """Ask the guest to go down, or to ``reboot``; returns whether it can be asked."""
        if not self.connected:
            return False
        self.send(encode(Type.POWER, payload=bytes([_BYES.index(how)])))
        return True

    def reset(self) -> None:
        """The guest's machine was reset: nobody is there until it says hello again."""
        self._end_sessions("was reset")
        self.hello, self.ready = None, False
        self._out.clear()
        self._on_change()

    def close(self, reason: str = "has ended") -> None:
        """End all sessions and let go of the stream; safe to repeat."""
        if self.closed is not None:
            return
        self.closed = reason
        self.ready = False
        self._loop.remove_reader(self._stream.fileno())
        self._loop.remove_writer(self._stream.fileno())
        self._stream.close()
        self._end_sessions(reason)
        self._on_change()

    def open(self, program: Open, client: SessionClient) -> Session:
        """Start a program.

        Raises:
            OSError: It can't be; ``strerror`` says why, as what is to follow the node's name.
        """
        if self.closed is not None:
            raise OSError(0, self.closed)
        if self.hello is None:
            raise OSError(0, "has not come up yet; see 'mint logs'")
        if len(self._sessions) >= SESSIONS or len(self._out) > _OUT_MAX:
            raise OSError(0, f"runs {SESSIONS} programs for the host, or does not take more")
        number = self._next
        while number in self._sessions:
            number = (number + 1) & 0xFFFF
        try:
            frames = open_frames(number, program)
        except ValueError as error:
            raise OSError(0, f"cannot run this: {error}") from None
        self._next = (number + 1) & 0xFFFF
        session = Session(self, number, client, program.window)
        self._sessions[number] = session
        self.send(frames)
        return session

    def send(self, data: bytes) -> None:
        """Queue frames; for sessions."""
        if self.closed is not None:
            return
        if len(self._out) + len(data) > _UNREAD_MAX:
            self._nonsense("it does not read what it is sent")
            return
        if not self._out and self._room():
            self._loop.add_writer(self._stream.fileno(), self._writable)
        self._out += data

    def forget(self, session: Session) -> None:
        """Tell the guest that nobody waits for a session any more; for sessions."""
        if self._sessions.get(session.number) is session:
            self._sessions[session.number] = None
            self.send(encode(Type.CLOSE, session.number))

    # ------------------------------------------------------------------ the stream

    def _readable(self) -> None:
        try:
            data = self._stream.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            self.close(f"has ended: {error.strerror}")
            return
        if not data:
            self.close()
            return
        was = self._reader.synced
        for frame in self._reader.feed(data):
            if self.closed is not None:
                return
            problem = self._take(frame)
            if problem:
                self._nonsense(problem)
        if was and not self._reader.synced:
            self._nonsense("no frame")

    def _writable(self) -> None:
        room = self._room()
        if room:
            try:
                sent = self._stream.send(memoryview(self._out)[:room])
            except BlockingIOError:
                return
            except OSError as error:
                self.close(f"has ended: {error.strerror}")
                return
            del self._out[:sent]
            self._sent = (self._sent + sent) & _MASK
        if not self._out or not self._room():
            self._loop.remove_writer(self._stream.fileno())

    def _room(self) -> int:
        """How many bytes the guest takes now."""
        window = self.hello.window if self.hello is not None else 0
        if not window:
            return _WRITE_BYTES
        if self._held:
            return self._held - self._sent
        return min(_WRITE_BYTES, window - ((self._sent - self._read) & _MASK))

    def _on_ack(self, read: int) -> str | None:
        window = self.hello.window if self.hello is not None else 0
        if (self._sent - read) & _MASK > min(window, (self._sent - self._read) & _MASK):
            return "an acknowledgement of what was never sent"
        self._read, self._held = read, 0
        if self._out:
            self._loop.add_writer(self._stream.fileno(), self._writable)
        return None

    # ------------------------------------------------------------------ frames

    def _take(self, frame: Frame) -> str | None:
        """Act on a frame; returns what is wrong with it."""
        if frame.type is Type.HELLO:
            return self._on_hello(Hello.decode(frame.payload))
        if frame.type is Type.READY:
            self.ready = True
            self._on_change()
        elif frame.type is Type.LOG:
            self._on_log("sshd" if frame.stream == 1 else "guest", frame.payload)
        elif frame.type is Type.BYE:
            self.bye = "reboot" if frame.payload[0] == 1 else "power-off"
            self._on_change()
        elif frame.type is Type.ACK:
            return self._on_ack(_U32.unpack_from(frame.payload)[0])
        else:
            return self._on_session(frame)
        return None

    def _on_hello(self, hello: Hello) -> str | None:
        if hello.version != VERSION:
            return f"version {hello.version} of its exec channel"
        self._end_sessions("has booted again")
        self.hello, self.ready, self.bye = hello, False, None
        self._out.clear()
        self._sent = self._read = 0
        welcome = hello.welcome()
        self._held = len(welcome) if hello.window else 0
        self.send(welcome)
        self._on_change()
        return None

    def _on_session(self, frame: Frame) -> str | None:
        number = frame.session
        if number not in self._sessions:
            return f"a frame for session {number}, which there is not"
        session = self._sessions[number]
        if frame.type is Type.EXIT:
            del self._sessions[number]
        return session.on_frame(frame) if session is not None else None

    def _nonsense(self, what: str) -> None:
        """The guest has broken the rules: what it had is over, until it says HELLO again."""
        self._reader.synced = False
        self.hello, self.ready = None, False
        self._out.clear()
        self._on_log("guest", f"its exec channel makes no sense: {what}\n".encode())
        self._end_sessions("sends nonsense on its exec channel")
        self._on_change()

    def _end_sessions(self, reason: str) -> None:
        sessions, self._sessions = self._sessions, {}
        for session in sessions.values():
            if session is not None:
                session.client.on_lost(reason)


class SessionClient:
    """What a session tells whoever has opened it; see `_Relay`."""

    def on_frame(self, frame: Frame) -> None:
        """STARTED, DATA, WINDOW, STOPPED or EXIT came."""
        raise NotImplementedError

    def on_lost(self, reason: str) -> None:
        """The session is over, and nobody knows how; a reason to follow the node's name."""
        raise NotImplementedError


class Session:
    """One program that runs in a guest.

    Attributes:
        number: In frames.
        client: Who gets what it says.
    """

    def __init__(
        self, channel: GuestChannel, number: int, client: SessionClient, window: int
    ) -> None:
        self.number = number
        self.client = client
        self._channel = channel
        self._window = window
        self._room = window
        self._stdin_room = STDIN_WINDOW

    def send(self, kind: Type, payload: bytes = b"", stream: int = 0) -> None:
        """Send a frame to the guest."""
        self._channel.send(encode(kind, self.number, payload, stream))

    def input(self, data: bytes) -> bool:
        """Send the program's input; returns False if that is more than the guest has room for."""
        if len(data) > self._stdin_room:
            return False
        self._stdin_room -= len(data)
        self.send(Type.DATA, data)
        return True

    def grant(self, count: int) -> None:
        """Allow the program so many bytes more, which the client has taken."""
        count = min(count, self._window - self._room)
        if count > 0:
            self._room += count
            self.send(Type.WINDOW, _U32.pack(count))

    def close(self) -> None:
        """Nobody waits for it any more; safe to repeat, and after its end."""
        self._channel.forget(self)

    def on_frame(self, frame: Frame) -> str | None:
        """A frame of the guest's came; returns what is wrong with it."""
        if frame.type is Type.DATA:
            self._room -= len(frame.payload)
            if self._room < 0:
                return f"more of session {self.number} than there is room for"
            if not 1 <= frame.stream <= 3:
                return f"stream {frame.stream} of session {self.number}"
        elif frame.type is Type.WINDOW:
            count = _U32.unpack(frame.payload)[0]
            if not 0 < count <= STDIN_WINDOW - self._stdin_room:
                return f"{count} bytes of session {self.number} read that were not sent"
            self._stdin_room += count
        self.client.on_frame(frame)
        return None


class _Packets:
    """Packets that wait for a client, one behind the other in one buffer.

    The guest chooses how small they are, so they are no objects of their own; and what follows of
    the same stream becomes one packet with what waits already.
    """

    def __init__(self) -> None:
        self._data = bytearray()
        self._last = -1  # where the last one begins; negative: it has gone

    def __bool__(self) -> bool:
        return bool(self._data)

    def add(self, kind: int, stream: int, payload: bytes) -> None:
        """Put one behind the others."""
        if kind == Type.DATA and self._last >= 0:
            length, *last = _WAITING.unpack_from(self._data, self._last)
            length += len(payload)
            if last == [kind, stream] and length <= FRAME_MAX:
                _WAITING.pack_into(self._data, self._last, length, kind, stream)
                self._data += payload
                return
        self._last = len(self._data)
        self._data += _WAITING.pack(len(payload), kind, stream) + payload

    def first(self) -> bytes:
        """The oldest, as the client is sent it."""
        with memoryview(self._data) as data:
            return bytes(data[_WAITING.size - 2 : self._end()])

    def pop(self) -> int:
        """Take the oldest away; returns its type."""
        kind, end = self._data[_WAITING.size - 2], self._end()
        del self._data[:end]
        self._last -= end
        return kind

    def _end(self) -> int:
        return _WAITING.size + int(_WAITING.unpack_from(self._data)[0])


class _Relay(SessionClient):
    """Between one client's connection and its session."""

    def __init__(self, connection: socket.socket, name: str) -> None:
        self.session: Session | None = None
        self.done = asyncio.Event()
        self.started = asyncio.Event()
        self.error: str | None = None
        self._connection = connection
        self._name = name
        self._loop = asyncio.get_running_loop()
        self._packets = _Packets()
        self._granted = 0  # bytes that the client may send, and was not told of
        self._stopped = False  # one of the packets says that the program was stopped
        self._writing = False
        self._ending = False

    def begin(self) -> None:
        """Go on once the program runs."""
        try:
            self._connection.send(json.dumps({"ok": True}).encode(), socket.MSG_NOSIGNAL)
        except OSError:
            self.done.set()
            return
        self._granted = STDIN_WINDOW
        self._write()
        self._loop.add_reader(self._connection.fileno(), self._readable)

    def stop(self) -> None:
        """Let go of everything."""
        self._loop.remove_reader(self._connection.fileno())
        self._loop.remove_writer(self._connection.fileno())
        if self.session is not None:
            self.session.close()

    def on_frame(self, frame: Frame) -> None:
        if not self.started.is_set():
            self.started.set()
            self.begin()
        if frame.type is Type.WINDOW:
            self._granted += _U32.unpack(frame.payload)[0]
            self._write()
        elif frame.type is Type.STOPPED:
            if not self._stopped:
                self._stopped = True
                self._packet(frame.type, frame.stream, frame.payload)
        elif frame.type is not Type.STARTED:
            self._packet(frame.type, frame.stream, frame.payload)
        if frame.type is Type.EXIT:
            self._end()

    def on_lost(self, reason: str) -> None:
        if not self.started.is_set():
            self.error = reason
        else:
            self._packet(LOST, 0, f"node {self._name} {reason}".encode())
        self.started.set()
        self._end()

    def _end(self) -> None:
        self._ending = True
        if not self._packets:
            self.done.set()

    def _packet(self, kind: int, stream: int, payload: bytes) -> None:
        self._packets.add(kind, stream, payload)
        self._write()

    def _write(self) -> None:
        """Send what there is, when the client takes it."""
        if not self._writing:
            self._writing = True
            self._loop.add_writer(self._connection.fileno(), self._writable)

    def _writable(self) -> None:
        try:
            self._flush()
        except BlockingIOError:
            return
        except OSError:
            self.done.set()
        self._writing = False
        self._loop.remove_writer(self._connection.fileno())
        if self._ending:
            self.done.set()

    def _flush(self) -> None:
        """Send all that there is.

        Raises:
            OSError: The client does not take more now, or has gone.
        """
        while self._granted or self._packets:
            if self._granted:
                window = bytes([Type.WINDOW, 0]) + _U32.pack(self._granted)
                self._connection.send(window, socket.MSG_NOSIGNAL)
                self._granted = 0
                continue
            self._connection.send(self._packets.first(), socket.MSG_NOSIGNAL)
            if self._packets.pop() == Type.STOPPED:
                self._stopped = False

    def _readable(self) -> None:
        try:
            packet = self._connection.recv(_PACKET_BYTES)
        except BlockingIOError:
            return
        except OSError:
            packet = b""
        session = self.session
        if len(packet) < 2 or session is None:
            self.done.set()
            return
        kind, payload = packet[0], packet[2:]
        if kind == Type.WINDOW and len(payload) == _U32.size:
            session.grant(_U32.unpack(payload)[0])
        elif kind == Type.DATA:
            if not session.input(payload):
                self.done.set()
        elif kind in {Type.END, Type.RESIZE, Type.SIGNAL}:
            session.send(Type(kind), payload)


async def serve_exec(
    channel: GuestChannel | None,
    connection: socket.socket,
    request: Mapping[str, Any],
    name: str,
) -> None:
    """Serve one client to the end of its program; answers and closes its connection.

    Args:
        channel: To the guest; None: it does not run.
        connection: SOCK_SEQPACKET, the first packet read.
        request: That packet: ``args``, ``env``, and if given ``cwd``, ``flags`` (of `Tty`),
            ``rows``, ``columns``.
        name: The node's.
    """
    connection.setblocking(False)
    relay = _Relay(connection, name)
    try:
        refusal = await _start(channel, relay, request)
        if refusal is None:
            await relay.done.wait()
            return
        answer = json.dumps({"error": f"node {name} {refusal}"}).encode()
        await asyncio.wait_for(asyncio.get_running_loop().sock_sendall(connection, answer), 1)
    except (OSError, TimeoutError):
        pass  # the client has gone
    finally:
        relay.stop()
        connection.close()


async def _start(
    channel: GuestChannel | None, relay: _Relay, request: Mapping[str, Any]
) -> str | None:
    """Start the program; returns why it could not be."""
    if channel is None:
        return "does not run"
    try:
        relay.session = channel.open(_program(request), relay)
        await asyncio.wait_for(relay.started.wait(), _START_SECONDS)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        return f"cannot run this: {error!r}"
    except TimeoutError:
        return f"has not answered for {_START_SECONDS:.0f} s; see 'mint logs'"
    except OSError as error:
        return error.strerror
    return relay.error


def _program(request: Mapping[str, Any]) -> Open:
    return Open(
        args=tuple(str(word) for word in request["args"]),
        env={str(name): str(value) for name, value in request["env"].items()},
        cwd=request.get("cwd") or "",
        flags=int(request.get("flags", 0)) & 0xFFFF,
        rows=int(request.get("rows", 0)) & 0xFFFF,
        columns=int(request.get("columns", 0)) & 0xFFFF,
        window=WINDOW,
    )
