# SPDX-License-Identifier: Apache-2.0
"""The exec channel's frames, as the host takes them apart."""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mint_vni.nodes.guest import channel, exec_client, wire
from mint_vni.nodes.guest.wire import Frame, FrameReader, Hello, Open, Tty, Type, encode

HEADER = Path(__file__).parent.parent / "native" / "guest" / "wire.h"
HELLO_BODY = wire.MAGIC + struct.pack("<II", wire.VERSION, 0) + bytes(range(16)) + b"7.2.7"
HELLO = encode(Type.HELLO, payload=HELLO_BODY)

SIZES = {
    Type.READY: (0, 0),
    Type.LOG: (0, 300),
    Type.BYE: (1, 1),
    Type.STARTED: (0, 0),
    Type.DATA: (1, 300),
    Type.WINDOW: (4, 4),
    Type.STOPPED: (1, 1),
    Type.EXIT: (2, 2),
    Type.ACK: (4, 4),
}


@st.composite
def some_frame(draw: st.DrawFn) -> Frame:
    kind = draw(st.sampled_from(list(SIZES)))
    least, most = SIZES[kind]
    payload = draw(st.binary(min_size=least, max_size=most))
    return Frame(kind, draw(st.integers(0, 255)), draw(st.integers(0, 0xFFFF)), payload)


frames = some_frame()


def joined(sent: Sequence[Frame]) -> bytes:
    return b"".join(encode(f.type, f.session, f.payload, f.stream) for f in sent)


def cut(data: bytes, pieces: Sequence[int]) -> list[bytes]:
    """Cut into pieces of these lengths, over and over."""
    found: list[bytes] = []
    at = 0
    while at < len(data):
        size = pieces[len(found) % len(pieces)]
        found.append(data[at : at + size])
        at += size
    return found


def read(data: bytes, pieces: Sequence[int] = (1 << 20,)) -> tuple[list[Frame], FrameReader]:
    reader = FrameReader()
    return [frame for piece in cut(data, pieces) for frame in reader.feed(piece)], reader


def test_numbers_are_those_of_the_header() -> None:
    text = HEADER.read_text()
    defined = dict(re.findall(r"#define GUEST_(\w+) (\w+)", text))
    assert int(defined["WIRE_VERSION"].rstrip("u")) == wire.VERSION
    for name in ("FRAME_MAX", "STDIN_WINDOW", "OPEN_MAX", "SESSIONS"):
        assert int(defined[name].rstrip("u")) == getattr(wire, name), name
    assert int(defined["FRAME_HEAD"].rstrip("u")) == wire.HEAD_BYTES
    block = text[text.index("enum guest_frame {") : text.index("GUEST_FRAME_TYPES")]
    assert {name: int(n) for name, n in re.findall(r"GUEST_(\w+) = (\d+)", block)} == {
        kind.name: kind.value for kind in Type
    }
    flags = {"TTY_IN": Tty.IN, "TTY_OUT": Tty.OUT, "TTY_ERR": Tty.ERR, "LOG_ERR": Tty.LOG_ERR}
    assert {name: int(defined[name].rstrip("u")) for name in flags} == flags


def test_numbers_of_the_client_are_the_same() -> None:
    for name in ("DATA", "END", "WINDOW", "RESIZE", "SIGNAL", "STOPPED", "EXIT"):
        assert getattr(exec_client, name) == Type[name]
    assert exec_client.LOST == channel.LOST
    assert exec_client.LOG_ERR == Tty.LOG_ERR
    assert exec_client.PACKET_BYTES >= wire.FRAME_MAX + 2
    assert exec_client.ACKNOWLEDGE < channel.WINDOW


@given(st.lists(frames, max_size=20), st.lists(st.integers(1, 400), min_size=1, max_size=5))
def test_frames_arrive_whole_however_they_are_cut(sent: list[Frame], pieces: list[int]) -> None:
    got, reader = read(HELLO + joined(sent), pieces)
    assert got[0] == Frame(Type.HELLO, 0, 0, HELLO_BODY)
    assert got[1:] == sent
    assert reader.synced
    assert not reader._buffer


@given(st.binary(max_size=3000), st.lists(st.integers(1, 500), min_size=1, max_size=5))
@settings(max_examples=300)
def test_nothing_before_a_hello_is_taken_for_a_frame(noise: bytes, pieces: list[int]) -> None:
    got, reader = read(noise.replace(wire.MAGIC, b""), pieces)
    assert got == []
    assert len(reader._buffer) <= wire.HEAD_BYTES + len(wire.MAGIC)


@given(
    st.binary(max_size=2000),
    st.lists(frames, max_size=5),
    st.lists(st.integers(100, 9000), min_size=1, max_size=4),
)
@settings(max_examples=300)
def test_a_new_boot_is_found_behind_anything(
    noise: bytes, sent: list[Frame], pieces: list[int]
) -> None:
    """As mint-guest does it: padding that ends whatever frame was begun, then HELLO."""
    padding = bytes(wire.FRAME_MAX + wire.HEAD_BYTES)
    got, reader = read(HELLO + noise + padding + HELLO + joined(sent), pieces)
    assert reader.synced
    assert got[len(got) - len(sent) :] == sent
    assert got[len(got) - len(sent) - 1].type is Type.HELLO


@given(st.binary(max_size=5000), st.lists(st.integers(1, 5000), min_size=1, max_size=3))
@settings(max_examples=300)
def test_a_guest_cannot_make_the_reader_keep_more_than_a_frame(
    noise: bytes, pieces: list[int]
) -> None:
    reader = FrameReader()
    for piece in cut(HELLO + noise, pieces):
        for frame in reader.feed(piece):
            assert frame.type in Type
            assert len(frame.payload) <= wire.FRAME_MAX
        assert len(reader._buffer) < wire.HEAD_BYTES + wire.FRAME_MAX


LONG = (Type.LOG, Type.DATA)


@pytest.mark.parametrize(
    "bad",
    [
        struct.pack("<BBHI", Type.DATA, 1, 1, wire.FRAME_MAX + 1),
        struct.pack("<BBHI", Type.DATA, 1, 1, 0xFFFFFFFF),
        struct.pack("<BBHI", Type.OPEN, 0, 1, 0),  # the host's alone
        struct.pack("<BBHI", 99, 0, 1, 0),
        struct.pack("<BBHI", Type.EXIT, 0, 1, 1),  # too short for what it is
        struct.pack("<BBHI", Type.HELLO, 0, 0, 3),
        # Too long: whatever has one size, has that, so that a guest can't have us keep more of it.
        *(
            struct.pack("<BBHI", kind, 0, 1, SIZES[kind][1] + 1)
            for kind in SIZES
            if kind not in LONG
        ),
    ],
)
def test_nonsense_ends_the_sync(bad: bytes) -> None:
    got, reader = read(HELLO + bad + encode(Type.READY))
    assert [frame.type for frame in got] == [Type.HELLO]
    assert not reader.synced


def test_what_a_kernel_calls_itself_is_printable() -> None:
    hello = Hello.decode(HELLO_BODY + b"\x1b[2J\n" + b"x" * 500)
    assert hello.release.isprintable()
    assert len(hello.release) <= 64


def parts(body: bytes) -> tuple[tuple[int, ...], list[str]]:
    size = struct.calcsize("<IHHHHHH")
    texts = body[size:].split(b"\0")[:-1]
    return struct.unpack_from("<IHHHHHH", body), [os_text(text) for text in texts]


def os_text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=50)


@given(st.lists(texts, max_size=5), st.dictionaries(st.sampled_from("ABC"), texts), texts)
def test_a_program_is_packed_as_the_guest_unpacks_it(
    args: list[str], env: dict[str, str], cwd: str
) -> None:
    program = Open(tuple(args), env, cwd, Tty.IN, 3, 4, 5)
    frame = wire.open_frames(7, program)
    assert struct.unpack_from("<BBHI", frame)[:3] == (Type.OPEN, 0, 7)
    numbers, found = parts(frame[wire.HEAD_BYTES :])
    assert numbers == (5, 1, 3, 4, len(args), len(env), 0)
    assert found == [cwd, *args, *(f"{name}={value}" for name, value in env.items())]


def test_a_long_program_is_sent_in_pieces_and_a_longer_one_refused() -> None:
    sent = wire.open_frames(1, Open(("x" * 100_000,), {}))
    kinds, at = [], 0
    while at < len(sent):
        kind, _, _, length = struct.unpack_from("<BBHI", sent, at)
        kinds.append(kind)
        at += wire.HEAD_BYTES + length
    assert kinds == [Type.ARGS, Type.ARGS, Type.ARGS, Type.OPEN]
    with pytest.raises(ValueError, match="too long"):
        wire.open_frames(1, Open(("x" * wire.OPEN_MAX,), {}))
    with pytest.raises(ValueError, match="zero byte"):
        wire.open_frames(1, Open(("a\0b",), {}))
