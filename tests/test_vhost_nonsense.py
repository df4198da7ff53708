# SPDX-License-Identifier: Apache-2.0
"""Messages that make no sense: the server and the worker outlive all of them.

Where the message alone is wrong, the connection ends or the message is refused; a queue or a memory
table that can't be is refused by the worker. Each time the next guest is served.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import struct
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import vhost_util
from fabric_util import descriptors, wait_until
from mint_vni.errors import FabricError
from mint_vni.ports.vhost_user.server import VhostUserServer
from mint_vni.testing import RX, TX, Request, VhostFrontend
from mint_vni.testing.protocol import (
    FLAG_NEED_REPLY,
    FLAG_REPLY,
    HEADER,
    NO_FD,
    VERSION,
    config_space,
    mem_table,
    u64,
    vring_addr,
    vring_state,
)
from mint_vni.testing.rings import Setup
from vhost_util import Bench, others_talk, talk


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with vhost_util.bench(tmp_path_factory.mktemp("v")) as made:
        pid = made.g.pid
        yield made
        assert made.g.pid == pid
        assert made.g.alive()


def next_guest_is_served(made: Bench) -> None:
    with made.g.connect() as fe:
        talk(made, fe)
    others_talk(made)
    assert made.g.alive()


# ------------------------------------------------------------------------------- single messages

BROKEN = {
    "version 0": HEADER.pack(Request.GET_FEATURES, 0, 0),
    "version 2": HEADER.pack(Request.GET_FEATURES, 2, 0),
    "a reply": HEADER.pack(Request.GET_FEATURES, VERSION | FLAG_REPLY, 0),
    "a huge payload": HEADER.pack(Request.SET_FEATURES, VERSION, 0xFFFF_FFFF),
    "a long payload": HEADER.pack(Request.SET_FEATURES, VERSION, 4097) + bytes(4097),
    "no payload": HEADER.pack(Request.SET_FEATURES, VERSION, 0),
    "a short payload": HEADER.pack(Request.SET_FEATURES, VERSION, 7) + bytes(7),
    "features that were not offered": HEADER.pack(Request.SET_FEATURES, VERSION, 8) + u64(1 << 34),
    "queue 2": HEADER.pack(Request.SET_VRING_NUM, VERSION, 8) + vring_state(2, 256),
    "queue 2^32 - 1": HEADER.pack(Request.GET_VRING_BASE, VERSION, 8) + vring_state(2**32 - 1, 0),
    "a kick without a descriptor": HEADER.pack(Request.SET_VRING_KICK, VERSION, 8) + u64(0),
    "nine regions": HEADER.pack(Request.SET_MEM_TABLE, VERSION, 8 + 288)
    + struct.pack("=II", 9, 0)
    + bytes(288),
    "2^32 - 1 regions": HEADER.pack(Request.SET_MEM_TABLE, VERSION, 8)
    + struct.pack("=II", 0xFFFF_FFFF, 0),
    "a region without a descriptor": HEADER.pack(Request.SET_MEM_TABLE, VERSION, 40)
    + mem_table([(0, 4096, 0, 0)]),
    "a configuration of 3 bytes": HEADER.pack(Request.GET_CONFIG, VERSION, 3) + bytes(3),
    "request 0": HEADER.pack(0, VERSION, 0),
    "request 2^32 - 1": HEADER.pack(0xFFFF_FFFF, VERSION, 0),
    "a device reset that was not offered": HEADER.pack(Request.RESET_DEVICE, VERSION, 0),
    "text": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_message_ends_its_connection(made: Bench, what: str) -> None:
    """With one line of log that says why."""
    with made.g.connect() as fe:
        talk(made, fe)
        said = len(made.g.log)
        fe.connection.send_raw(BROKEN[what])
        assert fe.wait_closed(), what
        wait_until(lambda: not made.g.status()["connected"], "it is disconnected")
        assert len(made.g.log) == said + 1
        assert "was disconnected:" in made.g.log[-1]
    next_guest_is_served(made)


@pytest.mark.parametrize("request_", list(Request), ids=lambda r: r.name)
def test_every_request_with_every_length(made: Bench, request_: Request) -> None:
    """With and without descriptors, whole or as a part of a message."""
    rng = random.Random(int(request_))
    for size in (0, 1, 4, 8, 12, 40, 72, 264, 4096):
        with made.g.connect() as fe, contextlib.suppress(FabricError):
            fds = [fe.rings[0].kick_fd] * rng.choice([0, 1, 3])
            fe.connection.send(request_, rng.randbytes(size), fds, VERSION | FLAG_NEED_REPLY)
            fe.connection.send_raw(HEADER.pack(request_, VERSION, size)[: rng.randint(1, 12)])
    next_guest_is_served(made)


def test_a_connection_that_says_half(made: Bench) -> None:
    """Half a header, half a payload, then the end."""
    for part in (b"\1", HEADER.pack(2, VERSION, 8)[:11], HEADER.pack(2, VERSION, 8) + b"1234"):
        half = VhostFrontend(made.g.path)
        half.dial()
        half.connection.send_raw(part, [half.memory.fds()[0]])
        half.close()
    next_guest_is_served(made)


def test_one_who_left_in_the_middle_makes_room_at_once(tmp_path: Path) -> None:
    """The next one may come before anybody has read what the last one said."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(tmp_path / "s"))
    listener.listen(4)
    said: list[str] = []
    server = VhostUserServer(
        listener, mac="02:00:00:00:00:01", mtu=1500, offload=True, log=said.append
    )
    loop = asyncio.new_event_loop()
    with contextlib.closing(loop), contextlib.closing(server):
        server.start(loop)
        clients = [socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) for _ in range(3)]
        for client, leaves in zip(clients, (True, False, False), strict=True):
            client.connect(str(tmp_path / "s"))
            client.send(b"half")
            if leaves:
                client.close()
            server._accept()
        assert server.status()["connections"] == 2
        assert "a second one" in said[-1], said
        for client in clients:
            client.close()


def test_one_who_never_reads(made: Bench) -> None:
    """Answers pile up in the socket: the connection ends, nothing blocks."""
    with made.g.connect() as fe, contextlib.suppress(FabricError):
        fe.connection.timeout = 0.5
        ask = HEADER.pack(Request.GET_CONFIG, VERSION, 268) + config_space(0, bytes(256))
        for _ in range(400):
            fe.connection.send_raw(ask * 16)
            assert made.g.status() is not None
    next_guest_is_served(made)


def test_descriptors_with_every_message(made: Bench) -> None:
    """More than a message has, or to messages that have none: closed, not collected."""
    before = len(descriptors())
    for count in (1, 2, 8, 9, 16, 17, 32):
        for request_ in (Request.GET_FEATURES, Request.SET_MEM_TABLE, Request.SET_VRING_CALL):
            with made.g.connect() as fe, contextlib.suppress(FabricError):
                fds = [fe.memory.fds()[0]] * count
                fe.connection.send(request_, b"" if request_ == 1 else u64(0), fds)
                fe.barrier()
    next_guest_is_served(made)
    wait_until(lambda: len(descriptors()) <= before, "no descriptor more than before", 5)


# ----------------------------------------------------------------------- queues that cannot be

Change = Callable[[VhostFrontend, Setup], Setup]


def outside(fe: VhostFrontend, setup: Setup) -> Setup:
    last = fe.memory.regions[-1]
    return replace(setup, used=last.user + last.size - 64)


def across(fe: VhostFrontend, setup: Setup) -> Setup:
    """In two regions, which adjoin by guest addresses."""
    return replace(setup, used=fe.memory.regions[0].user + fe.memory.regions[0].size - 1024)


SETUPS: dict[str, Change] = {
    "size 3": lambda _, s: replace(s, num=3),
    "size 255": lambda _, s: replace(s, num=255),
    "size 65536": lambda _, s: replace(s, num=65_536),
    "size 2^32 - 1": lambda _, s: replace(s, num=0xFFFF_FFFF),
    "size 32768 in too little memory": outside,
    "descriptors at 8": lambda _, s: replace(s, desc=s.desc + 8),
    "available ring at 1": lambda _, s: replace(s, avail=s.avail + 1),
    "used ring at 2": lambda _, s: replace(s, used=s.used + 2),
    "descriptors at 0": lambda _, s: replace(s, desc=0),
    "available ring at 0": lambda _, s: replace(s, avail=0),
    "used ring at 0": lambda _, s: replace(s, used=0),
    "used ring at the last address": lambda _, s: replace(s, used=(1 << 64) - 4),
    "used ring beyond memory": outside,
    "used ring behind all": lambda fe, s: replace(s, used=fe.memory.user(fe.memory.end - 1) + 1),
    "descriptors by a high address": lambda _, s: replace(s, desc=s.desc | 1 << 63),
    "a guest address": lambda fe, s: replace(s, desc=fe.rings[0].desc_addr, log=0),
    "used ring below memory": lambda fe, s: replace(s, used=fe.memory.regions[0].user - 64),
}


@pytest.mark.parametrize("which", [RX, TX], ids=["rx", "tx"])
@pytest.mark.parametrize("what", SETUPS)
def test_a_queue_that_can_not_be_is_refused(made: Bench, what: str, which: int) -> None:
    """UML is told so; the other queue runs, and a right one comes up on the same connection."""
    style = "qemu" if what == "a guest address" else "uml"
    fe = VhostFrontend(made.g.path, style=style)
    wait_until(lambda: not made.g.status()["connected"], "the last guest is gone")
    try:
        fe.connect()
        fe.setup[which] = SETUPS[what](fe, fe.setup[which])
        if style == "uml":
            with pytest.raises(FabricError, match="refused"):
                fe.start()
        else:
            fe.start()
        others_talk(made)
        fe.stop()
        fe.reset()
        fe.start()
        fe.barrier()
        talk(made, fe)
    finally:
        fe.close()
    assert made.g.alive()


def test_a_queue_of_size_0_never_runs(made: Bench) -> None:
    fe = VhostFrontend(made.g.path)
    try:
        fe.connect()
        fe.setup[TX].num = 0
        fe.start()
        fe.send(bytes(60))
        others_talk(made)
        assert not fe.sent(0.05)
    finally:
        fe.close()
    next_guest_is_served(made)


def test_addresses_without_memory_and_rings_without_addresses(made: Bench) -> None:
    """In every order; nothing runs that is not whole."""
    steps: list[Callable[[VhostFrontend], object]] = [
        lambda fe: fe.tell(Request.SET_VRING_NUM, vring_state(1, 256)),
        lambda fe: fe.tell(
            Request.SET_VRING_ADDR,
            vring_addr(1, fe.setup[1].desc, fe.setup[1].used, fe.setup[1].avail, 0),
        ),
        lambda fe: fe.give_kick(fe.rings[1]),
        lambda fe: fe.tell(Request.SET_VRING_ENABLE, vring_state(1, 1)),
        lambda fe: fe.tell(Request.SET_MEM_TABLE, mem_table(fe.memory.table()), fe.memory.fds()),
        lambda fe: fe.tell(Request.SET_FEATURES, u64(fe.features)),
        lambda fe: fe.ask(Request.GET_VRING_BASE, vring_state(1, 0)),
        lambda fe: fe.tell(Request.RESET_OWNER),
    ]
    rng = random.Random(2)
    for _ in range(30):
        fe = VhostFrontend(made.g.path)
        wait_until(lambda: not made.g.status()["connected"], "the last guest is gone")
        try:
            fe.connect()
            for step in rng.choices(steps, k=12):
                step(fe)
                fe.rings[TX].kick()
            fe.barrier()
            fe.start()
            fe.barrier()
            talk(made, fe)
        finally:
            fe.close()


# ------------------------------------------------------------------------ memory that cannot be


U64 = 1 << 64
BAD_TABLES: dict[str, Callable[[int, int, int, int], list[tuple[int, ...]]]] = {
    "longer than its file": lambda g, n, u, o: [(g, n * 10, u, o)],
    "behind its file": lambda g, n, u, o: [(g, n, u, o + (1 << 40))],
    "an offset that wraps": lambda g, n, u, _: [(g, n, u, U64 - 4096)],
    "of length 0": lambda g, _, u, o: [(g, 0, u, o)],
    "a length that wraps": lambda g, _, u, o: [(g, U64 - 1, u, o)],
    "a guest address that wraps": lambda _, n, u, o: [(U64 - 4096, n, u, o)],
    "a user address that wraps": lambda g, n, _, o: [(g, n, U64 - 4096, o)],
    "the same twice": lambda g, n, u, o: [(g, n, u, o), (g, n, u, o)],
    "overlapping": lambda g, n, u, o: [(g, n, u, o), (g + 4096, n, u + (1 << 40), o)],
}
BAD_FILES: dict[str, Callable[[VhostFrontend], int]] = {
    "a directory": lambda _: os.open("/", os.O_RDONLY),
    "an eventfd": lambda _: os.eventfd(0),
    "read-only": lambda fe: os.open(f"/proc/self/fd/{fe.memory.fds()[0]}", os.O_RDONLY),
    "a device": lambda _: os.open("/dev/zero", os.O_RDWR),
}


def refuses(made: Bench, fe: VhostFrontend, table: list[tuple[int, ...]], fds: list[int]) -> None:
    with pytest.raises(FabricError, match="refused"):
        fe.tell(Request.SET_MEM_TABLE, mem_table(table), fds, ack=True)  # type: ignore[arg-type]
    others_talk(made)
    fe.stop()
    fe.reset()
    fe.start()
    fe.barrier()
    talk(made, fe)


@pytest.mark.parametrize("what", BAD_TABLES)
def test_memory_that_can_not_be_is_refused(made: Bench, what: str) -> None:
    with made.g.connect(style="uml") as fe:
        table = BAD_TABLES[what](*fe.memory.table()[0])
        refuses(made, fe, table, fe.memory.fds()[:1] * len(table))


@pytest.mark.parametrize("what", BAD_FILES)
def test_memory_in_what_is_no_file_is_refused(made: Bench, what: str) -> None:
    with made.g.connect(style="uml") as fe:
        fd = BAD_FILES[what](fe)
        try:
            refuses(made, fe, list(fe.memory.table()[:1]), [fd])
        finally:
            os.close(fd)


# -------------------------------------------------------------------- descriptors that are odd


def odd_descriptors() -> Iterator[tuple[str, int, list[int]]]:
    """Name, descriptor, and others to close."""
    read, write = os.pipe()
    yield "a pipe's end to read", read, [write]
    read, write = os.pipe()
    os.set_blocking(write, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(write, bytes(4096))
    os.set_blocking(write, True)
    yield "a full pipe", write, [read]
    read, write = os.pipe()
    os.close(read)
    yield "a pipe that nobody reads", write, []
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    one.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            one.send(bytes(4096))
    one.setblocking(True)
    yield "a full socket", one.detach(), [other.detach()]
    one, other = socket.socketpair()
    other.close()
    yield "a socket whose other end is closed", one.detach(), []
    with tempfile.TemporaryFile() as file:
        yield "a file", os.dup(file.fileno()), []
    yield "a directory", os.open("/", os.O_RDONLY), []
    yield "the null device", os.open("/dev/null", os.O_RDWR), []
    yield "a full eventfd", os.eventfd(0xFFFF_FFFF, 0), []
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(b"")  # anywhere
    listener.listen()
    yield "a listening socket", listener.detach(), []


@pytest.mark.parametrize("request_", [Request.SET_VRING_CALL, Request.SET_VRING_KICK])
def test_doorbells_of_any_kind(made: Bench, request_: Request) -> None:
    """They can be anything: nothing blocks, nobody dies, others are not held up."""
    for _name, fd, more in odd_descriptors():
        try:
            with made.g.connect() as fe:
                for index in (RX, TX):
                    fe.tell(request_, u64(index), [fd])
                with contextlib.suppress(FabricError):
                    fe.barrier()
                    for _ in range(20):
                        fe.send(bytes(60))
                        made.x.send(vhost_util.sized(made.x, made.g.mac, 60))
                others_talk(made)
        finally:
            for one in (fd, *more):
                os.close(one)
        made.x.recv_many(timeout=0)
    while made.x.recv_many(timeout=0.02):
        pass
    next_guest_is_served(made)


def test_no_doorbells_at_all(made: Bench) -> None:
    """Polled by the guest (no call) that is legal; without a kick nothing need happen."""
    with made.g.connect() as fe:
        fe.take_call_away(fe.rings[RX])
        fe.take_call_away(fe.rings[TX])
        fe.barrier()
        data = vhost_util.sized(made.x, made.g.mac, 60)
        made.x.send(data)
        wait_until(lambda: fe.rings[RX].used_idx == 1, "the frame")
        assert fe.recv(0).data == data
        fe.tell(Request.SET_VRING_KICK, u64(TX | NO_FD))
        fe.barrier()
        others_talk(made)
    next_guest_is_served(made)


# ---------------------------------------------------------------------------------- anything

payloads = st.one_of(
    st.binary(max_size=300),
    st.builds(vring_state, st.integers(0, 3), st.sampled_from([0, 1, 2, 3, 256, 32_768, 65_536])),
    st.integers(0, 0x1FF).map(u64),
    st.integers(0, 2**64 - 1).map(u64),
    st.builds(
        vring_addr,
        st.integers(0, 2),
        *(st.sampled_from([0, 0x10_0000, 0x7F20_0001_0000, 2**64 - 16]) for _ in range(4)),
    ),
    st.lists(
        st.tuples(*(st.sampled_from([0, 1, 4096, 1 << 20, 1 << 40, 2**64 - 1]) for _ in range(4))),
        max_size=8,
    ).map(mem_table),
)
messages = st.tuples(
    st.one_of(st.sampled_from([int(r) for r in Request]), st.integers(0, 2**32 - 1)),
    st.sampled_from([1, 1, 1, 9, 9, 5, 0, 0xFFFF_FFFF]),
    payloads,
    st.sampled_from([0, 0, 1, 1, 2, 8]),
)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(messages, min_size=1, max_size=12), st.booleans())
def test_any_messages(made: Bench, said: list[tuple[int, int, bytes, int]], started: bool) -> None:
    fe = VhostFrontend(made.g.path, memory="2M", regions=1, queue_size=4)
    wait_until(lambda: not made.g.status()["connected"], "the last guest is gone")
    try:
        fe.dial()
        with contextlib.suppress(FabricError):
            if started:
                fe.style.connect(fe)
                fe.start()
            fds = [fe.memory.fds()[0], max(fe.rings[0].kick_fd, 0)]
            for request_, flags, payload, count in said:
                fe.connection.send(request_, payload, (fds * 4)[:count], flags)
            for ring in fe.rings:
                if ring.kick_fd >= 0:
                    ring.kick()
        assert made.g.status() is not None
        assert made.g.alive(), made.g.worker_log()[-3:]
    finally:
        fe.close()


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.binary(min_size=1, max_size=400))
def test_any_bytes(made: Bench, said: bytes) -> None:
    fe = VhostFrontend(made.g.path, memory="2M", regions=1, queue_size=4)
    try:
        fe.dial()
        with contextlib.suppress(FabricError):
            fe.connection.send_raw(said)
        assert made.g.status() is not None
    finally:
        fe.close()


def test_after_all_that(made: Bench) -> None:
    next_guest_is_served(made)
