# SPDX-License-Identifier: Apache-2.0
"""mint-guest under the address and undefined-behaviour sanitizers, spoken to in all ways."""

from __future__ import annotations

import contextlib
import os
import random
import select
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cbuild import FLAGS, NATIVE
from guest_bench import Service
from mint_vni.nodes.guest import wire
from mint_vni.nodes.guest.wire import Hello, Open, Tty, Type, encode
from node_bench import Terminal
from test_native import ADDRESS

SOURCES = sorted((NATIVE / "guest").glob("*.c"))
ROUNDS = 25


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, built for this."""
    made = tmp_path_factory.mktemp("sanitized") / "mint-guest"
    made.parent.chmod(0o755)
    done = subprocess.run(
        ["gcc", *FLAGS, *ADDRESS.flags, *map(str, SOURCES), "-o", str(made)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return made


@contextlib.contextmanager
def guest(program: Path) -> Iterator[tuple[socket.socket, subprocess.Popen[bytes]]]:
    """Its process, and the other end of its stream; it must not complain about itself."""
    ours, theirs = socket.socketpair()
    process = subprocess.Popen(
        [program, "--service", f"fd:{theirs.fileno()}"],
        pass_fds=[theirs.fileno()],
        stderr=subprocess.PIPE,
    )
    theirs.close()
    with ours:
        ours.settimeout(20)
        yield ours, process
    assert process.stderr is not None
    said = process.stderr.read().decode()
    assert process.wait(30) == 0, said
    assert "ERROR" not in said, said
    assert "runtime error" not in said, said
    process.stderr.close()


def hello(stream: socket.socket) -> Hello:
    """The guest's first frame."""
    padding = stream.recv(wire.HEAD_BYTES + wire.FRAME_MAX, socket.MSG_WAITALL)
    assert not any(padding)
    head = stream.recv(wire.HEAD_BYTES, socket.MSG_WAITALL)
    body = stream.recv(struct.unpack("<BBHI", head)[3], socket.MSG_WAITALL)
    assert body.startswith(wire.MAGIC)
    return Hello.decode(body)


def greet(stream: socket.socket) -> None:
    stream.sendall(hello(stream).welcome())


def swallow(stream: socket.socket, seconds: float) -> int:
    """Read what there is for so long; returns how much."""
    count, end = 0, time.monotonic() + seconds
    while select.select([stream], [], [], max(0.0, end - time.monotonic()))[0]:
        try:
            data = stream.recv(1 << 16)
        except ConnectionError:
            break
        if not data:
            break
        count += len(data)
    return count


def random_frame(generator: random.Random) -> bytes:
    """A frame as an agent may send it, or nearly."""
    kind = generator.choice(list(Type))
    session = generator.randrange(4)
    if kind in {Type.POWER, Type.PAD}:
        return b""  # the one is obeyed; after the other all is nonsense
    if kind is Type.OPEN and generator.random() < 0.7:
        args = generator.choice(
            [("cat",), ("true",), ("no-such",), ("yes",), ("sh", "-c", "sleep 1")]
        )
        flags = generator.choice(
            [0, Tty.IN | Tty.OUT | Tty.ERR, Tty.IN, Tty.ERR, Tty.LOG_ERR, 0xFFFF]
        )
        window = generator.choice([0, 1, 1000, 1 << 18, 0xFFFFFFFF])
        made = Open(args, {"PATH": "/usr/bin"}, "/", flags, 3, 4, window)
        return wire.open_frames(session, made)
    size = generator.choice([0, 1, 2, 3, 4, 15, 16, 17, 100, 5000])
    body = generator.randbytes(size)
    if kind is Type.SIGNAL:
        body = bytes([generator.choice([0, 1, 2, 15, 18, 28, 63])])
    return encode(kind, session, body, generator.randrange(5))


@pytest.mark.parametrize("seed", range(ROUNDS))
def test_frames_in_any_order(program: Path, seed: int) -> None:
    generator = random.Random(seed)
    with guest(program) as (stream, _):
        greet(stream)
        for _ in range(generator.randrange(1, 120)):
            with contextlib.suppress(ConnectionError):
                stream.sendall(random_frame(generator))
            if generator.random() < 0.3:
                swallow(stream, 0.001)
        swallow(stream, 0.05)


@pytest.mark.parametrize("seed", range(ROUNDS))
def test_bytes_in_any_order(program: Path, seed: int) -> None:
    generator = random.Random(seed)
    with guest(program) as (stream, _):
        if seed % 2:
            greet(stream)
        with contextlib.suppress(ConnectionError):
            for _ in range(20):
                stream.sendall(generator.randbytes(generator.randrange(3000)))
        swallow(stream, 0.02)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        struct.pack("<IHHHHHH", 100, 0, 0, 0, 1, 0, 0),  # no directory
        struct.pack("<IHHHHHH", 100, 0, 0, 0, 2, 0, 0) + b"/\0true\0",  # an argument too few
        struct.pack("<IHHHHHH", 100, 0, 0, 0, 0xFFFF, 0xFFFF, 0) + b"/\0",
        struct.pack("<IHHHHHH", 100, 0, 0, 0, 1, 0, 0) + b"/\0true",  # no end
        struct.pack("<IHHHHHH", 100, 0, 0, 0, 1, 1, 0) + b"/\0true\0A=b",
    ],
)
def test_an_open_that_makes_no_sense_is_refused(program: Path, body: bytes) -> None:
    with guest(program) as (stream, _):
        greet(stream)
        stream.sendall(encode(Type.OPEN, 5, body))
        reader = wire.FrameReader()
        reader.synced = True
        found: list[wire.Frame] = []
        while not found or found[-1].type is not Type.EXIT:
            found += reader.feed(stream.recv(4096))
        assert [frame.type for frame in found] == [Type.DATA, Type.EXIT]
        assert found[-1].payload == bytes([0, 125])
        assert b"cannot start a program" in found[0].payload


def test_an_agent_that_does_not_read_is_waited_for_without_harm(program: Path) -> None:
    with guest(program) as (stream, process):
        greet(stream)
        for number in range(20):
            made = Open(("yes",), {"PATH": "/usr/bin"}, "/", 0, 0, 0, 1 << 30)
            stream.sendall(wire.open_frames(number, made))
        time.sleep(0.3)
        before = cpu(process.pid)
        time.sleep(0.5)
        assert cpu(process.pid) - before < 0.2, "it spins"
        assert swallow(stream, 0.3) > 1 << 20


def cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.skipif(os.geteuid() != 0, reason="takes root")
def test_ordinary_work(program: Path) -> None:
    service = Service(program)
    try:
        for _ in range(3):
            done = service.run("sh", "-c", "cat; echo e >&2; exit 7", input="x" * 300_000)
            assert (len(done.stdout), done.stderr, done.returncode) == (300_000, "e\n", 7)
            assert service.run("no-such-program").returncode == 127
            terminal = Terminal(service.argv("sh", tty=True))
            terminal.expect("# ")
            terminal.write("exit 3\n")
            assert terminal.wait() == 3
            with subprocess.Popen(service.argv("yes"), stdout=subprocess.PIPE) as process:
                assert process.stdout is not None
                process.stdout.read(1 << 20)
                process.kill()
    finally:
        service.host.close()
        assert service.process.wait(20) == 0
