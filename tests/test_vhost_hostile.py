# SPDX-License-Identifier: Apache-2.0
"""What a guest may write into its rings and memory harms nobody but that guest.

Each case: only the queue in which a rule was broken stops, with one count and one line of log; the
worker lives on, others' frames pass, and the guest is served again when its driver starts anew.
"""

from __future__ import annotations

import os
import random
import struct
import threading
import time
from collections.abc import Callable, Iterator

import pytest

import vhost_util
from fabric_util import asleep, frame, wait_until
from hostile_guest import cut_memory, scribble
from mint_vni.errors import ReceiveTimeout
from mint_vni.testing import (
    INDIRECT,
    NEXT,
    RX,
    TX,
    WRITE,
    Desc,
    Feature,
    Frame,
    Ring,
    VhostFrontend,
)
from mint_vni.testing.protocol import GUEST_FEATURES
from vhost_util import STYLES, Bench, others_talk, talk

HEADER = 12
NO_INDIRECT = GUEST_FEATURES & ~Feature.INDIRECT_DESC


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with vhost_util.bench(tmp_path_factory.mktemp("v"), guests="gh") as made:
        yield made


@pytest.fixture(scope="module")
def other(made: Bench) -> Iterator[VhostFrontend]:
    """A guest that does nothing wrong, and notices nothing."""
    with made["h"].connect() as fe:
        yield fe


def good(fe: VhostFrontend, write: bool) -> Desc:
    """A descriptor with nothing wrong in it."""
    return Desc(fe.memory.alloc(2048), 2048, WRITE if write else 0)


def table(fe: VhostFrontend, *descs: Desc) -> int:
    """An indirect table."""
    addr = fe.memory.alloc(16 * len(descs))
    fe.memory.write(addr, b"".join(struct.pack("<QIHH", *desc) for desc in descs))
    return addr


Break = Callable[[VhostFrontend, Ring, bool], None]


def single(desc: Callable[[VhostFrontend, bool], Desc]) -> Break:
    """One descriptor, the head of a chain."""

    def do(fe: VhostFrontend, ring: Ring, write: bool) -> None:
        ring.desc[0] = desc(fe, write)
        ring.push(0)

    return do


def chain(*changes: Callable[[Desc], Desc]) -> Break:
    """A chain of good descriptors, each of which is changed then."""

    def do(fe: VhostFrontend, ring: Ring, write: bool) -> None:
        for i, change in enumerate(changes):
            one = good(fe, write)
            ring.desc[i] = change(one._replace(flags=one.flags | NEXT, next=i + 1))
        ring.push(0)

    return do


def flags_of(write: bool) -> int:
    return WRITE if write else 0


def last(desc: Desc) -> Desc:
    return desc._replace(flags=desc.flags & ~NEXT)


def same(desc: Desc) -> Desc:
    return desc


def head(value: int) -> Break:
    def do(_fe: VhostFrontend, ring: Ring, _write: bool) -> None:
        ring.push(value)

    return do


def jump(by: int) -> Break:
    """The available index claims more than the ring holds."""

    def do(_fe: VhostFrontend, ring: Ring, _write: bool) -> None:
        ring.next_avail = (ring.next_avail + by) & 0xFFFF

    return do


def at(addr: int, length: int) -> Break:
    return single(lambda _fe, write: Desc(addr, length, flags_of(write)))


def behind(offset: int, length: int) -> Break:
    """At an offset from the end of all memory."""
    return single(lambda fe, write: Desc(fe.memory.end + offset, length, flags_of(write)))


def indirect(*descs: Callable[[Desc], Desc], size: int = 0, flags: int = 0) -> Break:
    """A table of good descriptors that are changed then; `size` bytes instead of its own."""

    def do(fe: VhostFrontend, ring: Ring, write: bool) -> None:
        entries = []
        for i, change in enumerate(descs):
            one = good(fe, write)
            entries.append(change(one._replace(flags=one.flags | NEXT, next=i + 1)))
        addr = table(fe, *entries)
        ring.desc[0] = Desc(addr, size or 16 * len(entries), INDIRECT | flags, 1)
        ring.push(0)

    return do


def nested(fe: VhostFrontend, ring: Ring, write: bool) -> None:
    """An indirect table that names an indirect table."""
    inner = table(fe, good(fe, write))
    ring.desc[0] = Desc(table(fe, Desc(inner, 16, INDIRECT)), 16, INDIRECT)
    ring.push(0)


def table_across_end(fe: VhostFrontend, ring: Ring, _write: bool) -> None:
    """Its first entry lies in memory, the second behind it."""
    addr = fe.memory.end - 16
    fe.memory.write(addr, b"\0" * 8 + b"\1\0\0\0" + bytes([NEXT, 0, 1, 0]))
    ring.desc[0] = Desc(addr, 32, INDIRECT)
    ring.push(0)


CASES: dict[str, Break] = {
    "a head outside the table": head(256),
    "the largest head": head(65_535),
    "a chain to itself": chain(lambda d: d._replace(next=0)),
    "a chain in a circle": chain(same, same, lambda d: d._replace(next=1)),
    "a chain out of the table": chain(same, lambda d: d._replace(next=256)),
    "an index far ahead": jump(257),
    "an index behind": jump(-1),
    "an index half around": jump(0x8000),
    "address 0": at(0, 2000),
    "address below memory": at((1 << 20) - 4096, 4095),
    "the last address": at((1 << 64) - 1, 2000),
    "an address that wraps": at((1 << 64) - 4096, 0xFFFF_FFFF),
    "an address behind memory": behind(0, 2000),
    "a length beyond memory": behind(-1000, 2000),
    "the longest length": behind(-4096, 0xFFFF_FFFF),
    "the wrong direction": single(
        lambda fe, write: good(fe, write)._replace(flags=flags_of(not write))
    ),
    "the wrong direction, later": chain(
        same, lambda d: last(d)._replace(flags=(d.flags ^ WRITE) & ~NEXT)
    ),
    "an indirect table within another": nested,
    "an indirect table of no entries": single(lambda fe, _: Desc(fe.memory.alloc(64), 0, INDIRECT)),
    "an indirect table of half an entry": indirect(last, size=24),
    "an indirect table of one byte": indirect(last, size=1),
    "an indirect table outside memory": single(lambda fe, _: Desc(fe.memory.end, 160, INDIRECT)),
    "an indirect table across the end": table_across_end,
    "an indirect table in a circle": indirect(same, lambda d: d._replace(next=0)),
    "an indirect table out of itself": indirect(same, lambda d: d._replace(next=2)),
    "a huge indirect table in a circle": indirect(lambda d: d._replace(next=0), size=0xFFFF_FFF0),
    "an indirect table with a next": indirect(last, flags=NEXT),
}


def provoke(made: Bench, ring: Ring) -> None:
    """Have the worker look at the ring."""
    ring.publish()
    ring.kick()
    if ring.index == RX:
        made.x.send(frame(made.x, made.g.mac, bytes(100)))


def expect_broken(made: Bench, before: int) -> None:
    wait_until(lambda: made.g.counters()["ring_errors"] == before + 1, "the queue is disabled")
    assert made.g.alive()
    others_talk(made)
    # Again, and nothing more is counted or said.
    said = len(made.g.worker_log())
    made.x.send(frame(made.x, made.g.mac, bytes(100)))
    wait_until(lambda: asleep(made.fabric, "g"), "the worker sleeps")
    assert made.g.counters()["ring_errors"] == before + 1
    assert len(made.g.worker_log()) == said


@pytest.mark.parametrize("which", [RX, TX], ids=["rx", "tx"])
@pytest.mark.parametrize("case", CASES)
def test_a_broken_chain_stops_its_queue_only(made: Bench, case: str, which: int) -> None:
    pid, before = made.g.pid, made.g.counters()["ring_errors"]
    lines = len(made.g.worker_log())
    with made.g.connect(auto_refill=False) as fe:
        fe.refill(50 if which == TX else 0)
        CASES[case](fe, fe.rings[which], which == RX)
        provoke(made, fe.rings[which])
        expect_broken(made, before)
        assert len(made.g.worker_log()) <= lines + 1, made.g.worker_log()[lines:]
        # The other queue goes on.
        if which == TX:
            made.x.send(frame(made.x, made.g.mac, b"still here"))
            assert any(f.data[14:] == b"still here" for f in collect(fe))
        else:
            fe.send(frame(made.g.mac, made.x, b"still here"))
            assert made.x.recv(5)[14:] == b"still here"
        fe.stop()
        fe.reset()
        fe.start()
        fe.refill()
        fe.barrier()
        talk(made, fe)
    assert made.g.pid == pid


def new_worker(made: Bench) -> None:
    """One that has said nothing yet: there is a limit to what it says."""
    made.g.kill_worker()
    made.g.start_worker()


def test_one_line_of_log_says_which_queue(made: Bench) -> None:
    new_worker(made)
    for which, name in ((RX, "receive"), (TX, "transmit")):
        lines = len(made.g.worker_log())
        before = made.g.counters()["ring_errors"]
        with made.g.connect(auto_refill=False) as fe:
            fe.rings[which].push(65_535)
            provoke(made, fe.rings[which])
            expect_broken(made, before)
            said = made.g.worker_log()[lines:]
            assert len(said) == 1
            assert name in said[0]


def test_a_guest_does_not_fill_the_host_with_its_workers_log(made: Bench) -> None:
    new_worker(made)
    begin, lines = time.monotonic(), len(made.g.worker_log())
    for _ in range(130):
        before = made.g.counters()["ring_errors"]
        with made.g.connect(auto_refill=False) as fe:
            fe.rings[RX].push(65_535)
            provoke(made, fe.rings[RX])
            wait_until(lambda n=before: made.g.counters()["ring_errors"] > n, "it is disabled")  # type: ignore[misc]
    seconds = time.monotonic() - begin
    assert 100 <= len(made.g.worker_log()) - lines <= 100 + seconds / 10


def collect(fe: VhostFrontend) -> list[Frame]:
    got: list[Frame] = []
    while True:
        try:
            got.append(fe.recv(0.3 if not got else 0.02))
        except ReceiveTimeout:
            return got


@pytest.mark.parametrize("which", [RX, TX], ids=["rx", "tx"])
def test_an_indirect_table_that_was_not_agreed_on(made: Bench, which: int) -> None:
    before = made.g.counters()["ring_errors"]
    with made.g.connect(auto_refill=False, features=NO_INDIRECT) as fe:
        indirect(last)(fe, fe.rings[which], which == RX)
        provoke(made, fe.rings[which])
        expect_broken(made, before)


@pytest.mark.parametrize("size", [0, 1, 11])
def test_a_buffer_too_small_for_the_header(made: Bench, size: int) -> None:
    before = made.g.counters()["ring_errors"]
    with made.g.connect(auto_refill=False) as fe:
        ring = fe.rings[RX]
        ring.desc[0] = Desc(fe.memory.alloc(64), size, WRITE)
        ring.push(0)
        provoke(made, ring)
        expect_broken(made, before)


def test_buffers_that_name_the_ring_itself(made: Bench) -> None:
    """A guest may have its own rings overwritten; what comes of it is its own affair."""
    for target in ("desc_addr", "avail_addr", "used_addr"):
        with made.g.connect(auto_refill=False) as fe:
            ring = fe.rings[RX]
            for i in range(8):
                ring.desc[i] = Desc(getattr(ring, target), 600, WRITE)
                ring.push(i)
            for i in range(20):
                made.x.send(frame(made.x, made.g.mac, bytes([i]) * 500))
                ring.publish()
                ring.kick()
            others_talk(made)
        assert made.g.alive()


@pytest.mark.parametrize("style", STYLES)
def test_rings_and_memory_overwritten_at_random(made: Bench, style: str) -> None:
    """Whatever stands there, while frames come and kicks go."""
    rng, pid = random.Random(11), made.g.pid
    for _ in range(40):
        with made.g.connect(style=style, queue_size=8, auto_refill=False) as fe:
            fe.refill()
            for _ in range(6):
                for ring in fe.rings:
                    scribble(rng, fe, ring)
                    ring.kick()
                made.x.send_many([frame(made.x, made.g.mac, bytes(300))] * 3, timeout=0)
            assert_alive(made)
    assert made.g.pid == pid
    with made.g.connect(style=style) as fe:
        made.x.recv_many(timeout=0.02)
        while made.x.recv_many(timeout=0):
            pass
        talk(made, fe)
    others_talk(made)


def assert_alive(made: Bench) -> None:
    assert made.g.alive(), made.g.worker_log()[-3:]


def test_a_storm_of_kicks(made: Bench, other: VhostFrontend) -> None:
    """Thousands of kicks with nothing behind them slow nobody else down."""
    with made.g.connect() as fe:
        stop = threading.Event()

        def storm() -> None:
            while not stop.is_set():
                for ring in fe.rings:
                    ring.kick()

        thread = threading.Thread(target=storm)
        thread.start()
        try:
            for _ in range(50):
                others_talk(made)
                talk(made, other, "h")
        finally:
            stop.set()
            thread.join()
        talk(made, fe)
    assert made.g.counters()["wakes_device"] > 0


@pytest.mark.parametrize("when", ["start", "traffic"])
def test_memory_that_is_cut_short(made: Bench, other: VhostFrontend, when: str) -> None:
    """The file shrinks under the worker's mapping."""
    pid, before = made.g.pid, made.g.counters()["ring_errors"]
    with made.g.connect() as fe:
        if when == "traffic":
            talk(made, fe)
        cut_memory(fe)
        made.x.send(frame(made.x, made.g.mac, bytes(100)))
        wait_until(lambda: made.g.counters()["ring_errors"] > before, "the queue is disabled")
        others_talk(made)
    assert made.g.alive()
    assert made.g.pid == pid
    assert made.g.counters()["ring_errors"] <= before + 2, "once for each queue"
    with made.g.connect() as fe:
        talk(made, fe)
    talk(made, other, "h")


def test_the_other_guest_noticed_nothing(made: Bench, other: VhostFrontend) -> None:
    """The last of this file: whatever was done to g above, h was connected all the time."""
    talk(made, other, "h")
    assert made["h"].counters()["ring_errors"] == 0
    assert made["h"].status()["connections"] == 1


def test_a_guest_that_hangs_its_own_worker(made: Bench, other: VhostFrontend) -> None:
    """An eventfd is one file for both: the guest fills it and makes writing to it wait.

    That is its own port's loss, and ends with the guest.
    """
    pid = made.g.pid
    with made.g.connect() as fe:
        ring = fe.rings[RX]
        assert isinstance(ring.call, int)
        os.set_blocking(ring.call, True)
        ring.drain_calls()
        os.eventfd_write(ring.call, (1 << 64) - 2)
        ring.used_event = ring.used_idx
        made.x.send(frame(made.x, made.g.mac, bytes(100)))
        wait_until(lambda: ring.used_idx == 1, "it calls")
        others_talk(made)
        talk(made, other, "h")
    with made.g.connect() as fe:
        talk(made, fe)
    assert made.g.pid == pid
