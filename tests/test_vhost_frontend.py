# SPDX-License-Identifier: Apache-2.0
"""The fake front end itself: its memory, its rings, and what it makes of a back end's mistakes."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fabric_util import gives_back
from mint_vni.errors import ChannelFull, FabricError, ReceiveTimeout
from mint_vni.testing import RX, TX, Feature, GuestMemory, Part, Request, Ring, VhostFrontend, Vnet
from mint_vni.testing.protocol import (
    FLAG_REPLY,
    GUEST_FEATURES,
    VERSION,
    Connection,
    Message,
    config_space,
    u64,
)


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    made = GuestMemory("4M", 2)
    yield made
    made.close()


# ------------------------------------------------------------------------------------ memory


@pytest.mark.parametrize("same", [False, True])
def test_addresses(same: bool) -> None:
    memory = GuestMemory("4M", 3, same_addresses=same, gap=4096)
    try:
        assert memory.regions[0].guest > 0
        for region, fd in zip(memory.regions, memory.fds(), strict=True):
            assert (memory.user(region.guest) == region.guest) == same
            memory.write(region.guest + 100, b"here")
            assert os.pread(fd, 4, region.offset + 100) == b"here"
            with pytest.raises(ValueError, match="outside"):
                memory.user(region.end)
    finally:
        memory.close()


def test_a_buffer_across_two_regions(memory: GuestMemory) -> None:
    addr = memory.seam(1000)
    data = os.urandom(1000)
    memory.write(addr, data)
    assert memory.read(addr, 1000) == data
    with pytest.raises(ValueError, match="reach out"):
        memory.view(addr, 1000)
    with pytest.raises(ValueError, match="outside"):
        memory.read(memory.end - 1, 2)


def test_memory_is_given_once(memory: GuestMemory) -> None:
    """Until it is given back; and it ends."""
    taken = [memory.alloc(1000) for _ in range(100)]
    assert len(set(taken)) == 100
    assert all(abs(a - b) >= 1000 for a in taken for b in taken if a != b)
    for addr in taken:
        memory.free(addr)
    assert {memory.alloc(1000) for _ in range(100)} == set(taken)
    with pytest.raises(MemoryError, match="full"):
        for _ in range(10):
            memory.alloc(1 << 20)


@pytest.mark.parametrize(("size", "regions"), [("1K", 1), (1 << 20, 8), ("64X", 1)])
def test_no_such_memory(size: int | str, regions: int) -> None:
    with pytest.raises(ValueError, match="memory|little"):
        GuestMemory(size, regions)


# ------------------------------------------------------------------------------------- rings


def use(ring: Ring, head: int, length: int) -> None:
    """What a device does with a chain."""
    at = 2 * (ring.used_idx % ring.size)
    ring._elems[at], ring._elems[at + 1] = head, length
    ring.used_idx = (ring.used_idx + 1) & 0xFFFF


@pytest.fixture
def ring(memory: GuestMemory) -> Iterator[Ring]:
    ring = Ring(memory, TX, 8)
    assert ring.open_doorbells(sockets=False) == -1
    yield ring
    ring.release()


def test_a_chain_in_the_table(ring: Ring) -> None:
    head = ring.add([Part(4096, 10), Part(8192, 20), Part(0, 30, True)])
    first = ring.desc[head]
    second = ring.desc[first.next]
    third = ring.desc[second.next]
    assert (first.addr, first.len, first.flags) == (4096, 10, 1)
    assert (second.addr, second.len, second.flags) == (8192, 20, 1)
    assert (third.addr, third.len, third.flags) == (0, 30, 2)
    assert ring.avail_ring[0] == head
    assert ring.avail_idx == 0
    ring.publish()
    assert ring.avail_idx == 1
    assert ring.spare == 5
    with pytest.raises(BlockingIOError):
        ring.add([Part(0, 1)] * 6)
    use(ring, head, 5)
    (used,) = ring.collect()
    assert used.len == 5
    assert ring.spare == 8


def test_an_indirect_chain(ring: Ring, memory: GuestMemory) -> None:
    head = ring.add([Part(4096, 10), Part(8192, 20)], indirect=True)
    desc = ring.desc[head]
    assert (desc.len, desc.flags) == (32, 4)
    assert memory.read(desc.addr, 12) == (4096).to_bytes(8, "little") + (10).to_bytes(4, "little")
    assert ring.spare == 7


@pytest.mark.parametrize("events", [False, True])
def test_kicks_as_the_device_wants_them(ring: Ring, events: bool) -> None:
    ring.event_idx = events
    for i in range(6):
        if events:
            ring._used[2 + 4 * ring.size] = 3  # kick me when you pass 3
        else:
            ring._used[0] = 0 if i == 3 else 1
        use(ring, ring.add([Part(4096, 10)]), 0)
        kicks = ring.kicks
        ring.publish()
        assert ring.kicks - kicks == (i == 3)
        ring.collect()
    assert ring.kicks_saved == 5


def test_a_device_that_gives_back_what_it_has_not(ring: Ring) -> None:
    use(ring, 3, 0)
    with pytest.raises(FabricError, match="names 3"):
        ring.collect()
    ring.reset()
    ring.used_idx = 9
    with pytest.raises(FabricError, match="more than its 8 entries"):
        ring.collect()


def test_waiting_ends_in_time(ring: Ring) -> None:
    start = time.monotonic()
    assert not ring.wait(start + 0.05)
    assert 0.04 < time.monotonic() - start < 5
    head = ring.add([Part(4096, 10)])
    timer = threading.Timer(0.02, lambda: (use(ring, head, 0), os.eventfd_write(ring.call, 1)))  # type: ignore[arg-type,func-returns-value]
    timer.start()
    assert ring.wait(time.monotonic() + 5)
    timer.join()
    assert ring.calls == 1


@pytest.mark.parametrize("size", [10, 12])
def test_the_header(size: int) -> None:
    vnet = Vnet(1, 4, 54, 1448, 34, 16, 3 if size == 12 else 0)
    assert len(vnet.pack(size)) == size
    assert Vnet.unpack(vnet.pack(size)) == vnet


# ----------------------------------------------------------------- a back end and its mistakes


class Backend:
    """Answers each request as it is told, in a thread."""

    def __init__(self, path: Path, answers: Callable[[Message], list[bytes]]) -> None:
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen()
        self._answers = answers
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        sock, _ = self._listener.accept()
        connection = Connection(sock)
        try:
            while True:
                message = connection.receive()
                message.close()
                for payload in self._answers(message):
                    connection.send(message.request, payload, flags=VERSION | FLAG_REPLY)
        except FabricError:
            pass
        finally:
            connection.close()

    def close(self) -> None:
        self._listener.close()
        self._thread.join(10)


def front(tmp_path: Path, answers: Callable[[Message], list[bytes]], style: str) -> None:
    """Connect a front end to such a back end."""
    backend = Backend(tmp_path / "b", answers)
    fe = VhostFrontend(tmp_path / "b", style=style, memory="4M", queue_size=4, timeout=0.3)
    try:
        fe.connect()
        fe.start()
    finally:
        fe.close()
        backend.close()


@pytest.mark.parametrize("style", ["qemu", "uml"])
def test_a_back_end_that_says_nothing(tmp_path: Path, style: str) -> None:
    with gives_back(), pytest.raises(FabricError, match="no answer in time"):
        front(tmp_path, lambda _: [], style)


@pytest.mark.parametrize("style", ["qemu", "uml"])
def test_a_back_end_that_answers_too_much(tmp_path: Path, style: str) -> None:
    """Each answer twice: the second is taken for the next request's, and is not it."""
    with gives_back(), pytest.raises(FabricError, match="does not speak|refused"):
        front(tmp_path, lambda _: [u64(int(GUEST_FEATURES)), u64(0)], style)


def test_a_back_end_that_refuses(tmp_path: Path) -> None:
    def answers(message: Message) -> list[bytes]:
        if message.request == Request.GET_FEATURES:
            return [u64(int(GUEST_FEATURES))]
        if message.request == Request.GET_PROTOCOL_FEATURES:
            return [u64(1 << 3)]
        return [u64(int(message.request == Request.SET_MEM_TABLE))] if message.flags & 8 else []

    for style in ("qemu", "uml"):
        (tmp_path / "b").unlink(missing_ok=True)
        with pytest.raises(FabricError, match="SET_MEM_TABLE refused"):
            front(tmp_path, answers, style)


def test_a_configuration_of_another_size(tmp_path: Path) -> None:
    def answers(message: Message) -> list[bytes]:
        if message.request == Request.GET_CONFIG:
            return [config_space(0, bytes(256))]
        features = Feature.PROTOCOL_FEATURES | Feature.VERSION_1 | Feature.MTU
        known = {Request.GET_FEATURES: int(features), Request.GET_PROTOCOL_FEATURES: 1 << 9}
        return [u64(known[Request(message.request)])] if message.request in known else []

    with pytest.raises(FabricError, match="echo the size"):
        front(tmp_path, answers, "uml")


def test_nobody_listens(tmp_path: Path) -> None:
    fe = VhostFrontend(tmp_path / "nobody", memory="4M", queue_size=4)
    try:
        with pytest.raises(FabricError, match="start the back end first"):
            fe.connect()
        with pytest.raises(FabricError, match="call connect"):
            fe.barrier()
    finally:
        fe.close()
    with pytest.raises(ValueError, match="qemu, uml"):
        VhostFrontend(tmp_path / "nobody", style="xen")


def test_nothing_comes_and_nothing_goes(tmp_path: Path) -> None:
    """A back end that agrees to everything and does nothing."""

    def answers(message: Message) -> list[bytes]:
        if message.request == Request.GET_FEATURES:
            return [u64(int(Feature.VERSION_1))]
        return []

    backend = Backend(tmp_path / "b", answers)
    try:
        with VhostFrontend(tmp_path / "b", memory="4M", queue_size=4) as fe:
            assert len(fe.rings[RX].chains) == 4
            with pytest.raises(ReceiveTimeout):
                fe.recv(0.02)
            fe.send_many([bytes(60)] * 4)
            with pytest.raises(ChannelFull):
                fe.send(bytes(60), timeout=0.02)
            assert not fe.sent(0.02)
            use(fe.rings[RX], next(iter(fe.rings[RX].chains)), 5)
            with pytest.raises(FabricError, match="less than a header"):
                fe.recv(0)
    finally:
        backend.close()
