# SPDX-License-Identifier: Apache-2.0
"""The frames of the exec channel, host side; native/guest/wire.h describes them.

A guest may send anything. `FrameReader` holds no more than one frame, looks at no length before it
has checked it, and after nonsense finds the next HELLO, which a guest that has booted again sends.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

__all__ = [
    "FRAME_MAX",
    "HEAD_BYTES",
    "MAGIC",
    "OPEN_MAX",
    "SESSIONS",
    "STDIN_WINDOW",
    "VERSION",
    "Frame",
    "FrameReader",
    "Hello",
    "Open",
    "Tty",
    "Type",
    "encode",
    "open_frames",
]

VERSION: Final = 1
MAGIC: Final = b"MINTEXEC"
FRAME_MAX: Final = 32768
STDIN_WINDOW: Final = 65536
OPEN_MAX: Final = 1 << 20
SESSIONS: Final = 64

_HEAD: Final = struct.Struct("<BBHI")
_HELLO: Final = struct.Struct("<8sII16s")
_OPEN: Final = struct.Struct("<IHHHHHH")
HEAD_BYTES: Final = _HEAD.size


class Type(enum.IntEnum):
    """Types of frames."""

    PAD = 0
    HELLO = 1
    WELCOME = 2
    READY = 3
    LOG = 4
    BYE = 5
    POWER = 6
    ARGS = 7
    OPEN = 8
    STARTED = 9
    DATA = 10
    END = 11
    WINDOW = 12
    RESIZE = 13
    SIGNAL = 14
    CLOSE = 15
    STOPPED = 16
    EXIT = 17
    ACK = 18


class Tty(enum.IntFlag):
    """What of a session is its terminal, or goes elsewhere: flags of OPEN."""

    IN = 1
    OUT = 2
    ERR = 4
    LOG_ERR = 8


# What a guest may send, and how many bytes of it, at least and at most.
_FROM_GUEST: Final = {
    Type.HELLO: (_HELLO.size, FRAME_MAX),
    Type.READY: (0, 0),
    Type.LOG: (0, FRAME_MAX),
    Type.BYE: (1, 1),
    Type.STARTED: (0, 0),
    Type.DATA: (1, FRAME_MAX),
    Type.WINDOW: (4, 4),
    Type.STOPPED: (1, 1),
    Type.EXIT: (2, 2),
    Type.ACK: (4, 4),
}


class Frame(NamedTuple):
    """One frame."""

    type: Type
    stream: int
    session: int
    payload: bytes


def encode(kind: Type, session: int = 0, payload: bytes = b"", stream: int = 0) -> bytes:
    """Return a frame's bytes."""
    return _HEAD.pack(kind, stream, session, len(payload)) + payload


@dataclass(frozen=True)
class Hello:
    """What a guest says first.

    Attributes:
        version: Of the frames.
        window: Bytes that may be on their way to it; 0: any number.
        nonce: Of this one, 16 bytes.
        release: Of its kernel; the guest's word for it.
    """

    version: int
    window: int
    nonce: bytes
    release: str

    @classmethod
    def decode(cls, payload: bytes) -> Hello:
        """Take one apart; it is long enough, `FrameReader` has seen to that."""
        _, version, window, nonce = _HELLO.unpack_from(payload)
        release = payload[_HELLO.size :][:64].decode("ascii", "replace")
        return cls(version, window, nonce, "".join(c if c.isprintable() else "?" for c in release))

    def welcome(self) -> bytes:
        """The answer."""
        return encode(Type.WELCOME, payload=_HELLO.pack(MAGIC, VERSION, self.window, self.nonce))


@dataclass(frozen=True)
class Open:
    """A program to run.

    Attributes:
        args: Its arguments; empty: root's login shell.
        env: All its variables; HOME, USER, LOGNAME and SHELL are added where they are missing.
        cwd: Where it starts; empty: in root's home.
        flags: What is a terminal, of `Tty`.
        rows: Of that.
        columns: Of that.
        window: Bytes that it may write at first.
    """

    args: tuple[str, ...]
    env: dict[str, str]
    cwd: str = ""
    flags: int = 0
    rows: int = 0
    columns: int = 0
    window: int = 0


def open_frames(session: int, program: Open) -> bytes:
    """Return the frames that start a program.

    Args:
        session: Its number.
        program: What to run.

    Raises:
        ValueError: It is too long, or has a zero byte in it.
    """
    env = [f"{name}={value}" for name, value in program.env.items()]
    texts = [os_bytes(text) for text in (program.cwd, *program.args, *env)]
    if any(b"\0" in text for text in texts):
        raise ValueError("a program's arguments and variables can't have a zero byte")
    numbers = (program.window, program.flags, program.rows, program.columns)
    counts = (len(program.args), len(env))
    size = _OPEN.size + sum(len(text) + 1 for text in texts)
    if size > OPEN_MAX or max(counts) > 0xFFFF:
        raise ValueError(f"the command line is too long for a guest: {size} bytes, not {OPEN_MAX}")
    body = _OPEN.pack(*numbers, *counts, 0) + b"".join(text + b"\0" for text in texts)
    pieces = [body[at : at + FRAME_MAX] for at in range(0, len(body), FRAME_MAX)]
    frames = [encode(Type.ARGS, session, piece) for piece in pieces[:-1]]
    return b"".join([*frames, encode(Type.OPEN, session, pieces[-1])])


def os_bytes(text: str) -> bytes:
    """Bytes of a text that came from a command line: what is no UTF-8 in it stays as it was."""
    return text.encode("utf-8", "surrogateescape")


class FrameReader:
    """Takes a guest's stream apart.

    Attributes:
        synced: Whether a HELLO was found, and no nonsense since.
    """

    def __init__(self) -> None:
        self.synced = False
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Take some bytes; yields the frames that are complete with them.

        The first is a HELLO. After nonsense `synced` is False, and nothing is yielded until the
        next HELLO.

        Args:
            data: What was read.
        """
        buffer = self._buffer
        buffer += data
        at = 0
        while True:
            if not self.synced:
                at = self._find_hello(at)
                if not self.synced:
                    break
            if at < len(buffer) and buffer[at] == Type.PAD:
                at = _skip_padding(buffer, at)
            if len(buffer) - at < HEAD_BYTES:
                break
            kind, stream, session, length = _HEAD.unpack_from(buffer, at)
            if not _plausible(kind, length):
                self.synced = False
                at += 1
                continue
            end = at + HEAD_BYTES + length
            if len(buffer) < end:
                break
            payload = bytes(memoryview(buffer)[at + HEAD_BYTES : end])
            at = end
            yield Frame(Type(kind), stream, session, payload)
        del buffer[:at]

    def _find_hello(self, at: int) -> int:
        """Look for a HELLO from here on; returns where it begins, or what can be no part of one."""
        while True:
            found = self._buffer.find(MAGIC, at + HEAD_BYTES)
            if found < 0:
                return max(at, len(self._buffer) - HEAD_BYTES - len(MAGIC) + 1)
            start = found - HEAD_BYTES
            kind, _, _, length = _HEAD.unpack_from(self._buffer, start)
            if kind == Type.HELLO and _plausible(kind, length):
                self.synced = True
                return start
            at = start + 1


def _plausible(kind: int, length: int) -> bool:
    if kind not in _FROM_GUEST:
        return False
    least, most = _FROM_GUEST[Type(kind)]
    return least <= length <= most


def _skip_padding(buffer: bytearray, at: int) -> int:
    rest = buffer[at:]
    return at + len(rest) - len(rest.lstrip(b"\0"))
