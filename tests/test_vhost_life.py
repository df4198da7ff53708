# SPDX-License-Identifier: Apache-2.0
"""Workers that die, guests that come and go, memory that changes, guests that take nothing."""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import vhost_util
from fabric_util import frame, wait_until
from mint_vni.errors import ChannelFull, ReceiveTimeout
from mint_vni.ports.vhost_user import link
from mint_vni.testing import RX, TX, Feature, Request, VhostFrontend
from mint_vni.testing.memory import GuestMemory
from mint_vni.testing.protocol import mem_table, vring_state
from vhost_util import PATIENT, STYLES, Bench, others_talk, sized, take, take_guest, talk

LAYOUTS = ["per-channel", "shared"]


@pytest.fixture(params=LAYOUTS)
def made(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    with vhost_util.bench(tmp_path, guests="gh", layout=request.param) as made:
        yield made


def numbered(src: str, dst: str, number: int) -> bytes:
    return frame(src, dst, number.to_bytes(4, "big") + bytes(60))


def numbers(frames: list[bytes]) -> list[int]:
    return [int.from_bytes(one[14:18], "big") for one in frames]


# -------------------------------------------------------------------------------- the worker dies


@pytest.mark.parametrize("style", STYLES)
def test_a_killed_worker_is_replaced_unnoticed(made: Bench, style: str) -> None:
    """Idle, in between, several times: same connection, same rings, same buffers."""
    with made.g.connect(style=style) as fe:
        for times in range(1, 4):
            before = talk(made, fe)
            made.g.kill_worker()
            if times > 1:  # noticed, or not yet
                wait_until(lambda: not made.g.status()["linked"], "the loss is noticed")
            sent = frame(made.g.mac, made.x, b"while nobody is there")
            fe.send(sent)
            made.g.start_worker()
            assert made.x.recv(5) == sent
            talk(made, fe, repeats=[before])
            assert made.g.counters()["restarts"] == times
        assert made.g.status()["connections"] == 1


def test_a_worker_killed_under_load_loses_only_what_it_had(made: Bench) -> None:
    """In order, at most a batch repeated or lost, and what was lost is counted."""
    count, kill_at = 3000, 1000
    h = made["h"].mac
    with made.g.connect() as g, made["h"].connect() as other:
        got: list[int] = []
        for number in range(0, count, 10):
            g.send_many([numbered(made.g.mac, h, number + i) for i in range(10)])
            got += numbers([one.data for one in other.recv_many(timeout=0)])
            if number in (kill_at, 2 * kill_at):
                victim = made.g if number == kill_at else made["h"]
                victim.kill_worker()
                victim.start_worker()
        assert g.sent()
        while more := other.recv_many(timeout=0.3):
            got += numbers([one.data for one in more])
        steps = [b - a for a, b in itertools.pairwise(got)]
        repeated = -sum(step - 1 for step in steps if step < 1)
        assert sum(step < 1 for step in steps) <= 2
        assert repeated <= 2 * 64
        lost = count - len(set(got))
        told = sum(made.g.drops().values()) + sum(made["h"].drops().values())
        ends = made.fabric.ends("g", "h"), made.fabric.ends("h", "g")
        told += sum(v for k, v in ends[0].tx.items() if k.startswith("drop_"))
        told += sum(v for k, v in ends[1].rx.items() if k.startswith("drop_"))
        assert lost <= told + repeated, (lost, told, repeated)
        last = numbered(made.g.mac, h, count)
        g.send(last)
        assert other.recv().data == last


def test_a_worker_that_is_late_is_not_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped for longer than anybody waits, while the guest says something; then it goes on."""
    monkeypatch.setattr(link, "ANSWER_S", 0.1)
    with vhost_util.bench(tmp_path, **PATIENT) as made, made.g.connect() as fe:
        talk(made, fe)
        for style in ("late", "later"):
            os.kill(made.g.pid, signal.SIGSTOP)
            fe.tell(Request.SET_VRING_ENABLE, vring_state(TX, 0))
            fe.tell(Request.SET_VRING_ENABLE, vring_state(TX, 1))
            if style == "later":
                fe.stop()
                fe.start()
            fe.barrier()
            assert made.g.status()["late"]
            os.kill(made.g.pid, signal.SIGCONT)
            wait_until(lambda: not made.g.status()["late"], "it has caught up")
            talk(made, fe)
        assert made.g.status()["linked"]


def test_an_agent_may_have_no_worker_for_a_while(made: Bench) -> None:
    """A guest that connects meanwhile is served once there is one."""
    made.g.kill_worker()
    with VhostFrontend(made.g.path) as fe:
        fe.barrier()
        sent = frame(made.g.mac, made.x, b"early")
        fe.send(sent)
        made.g.start_worker()
        assert made.x.recv(5) == sent
        talk(made, fe)


def test_a_guest_that_leaves_while_there_is_no_worker(made: Bench) -> None:
    with made.g.connect():
        made.g.kill_worker()
    wait_until(lambda: not made.g.status()["connected"], "the guest is gone")
    made.g.start_worker()
    with made.g.connect() as fe:
        talk(made, fe)


# -------------------------------------------------------------------------------- the guest goes


@pytest.mark.parametrize("style", STYLES)
def test_a_guest_reboots(made: Bench, style: str) -> None:
    with made.g.connect(style=style) as fe:
        for _ in range(3):
            talk(made, fe)
            fe.disconnect()
            wait_until(lambda: not made.g.status()["connected"], "the guest is gone")
            fe.reset()
            # Nobody is there: what comes is dropped, and does not wait for the next guest.
            dropped = made.fabric.ends("g", "x").rx["drop_device"]
            made.x.send(frame(made.x, made.g.mac, b"to nobody"))
            wait_until(
                lambda: made.fabric.ends("g", "x").rx["drop_device"] == dropped + 1,  # noqa: B023
                "it is dropped",
            )
            others_talk(made)
            fe.connect()
            fe.start()
            fe.barrier()
            with pytest.raises(ReceiveTimeout):
                fe.recv(0.05)
        talk(made, fe)


@pytest.mark.parametrize("style", STYLES)
def test_a_guest_comes_back_at_once(made: Bench, style: str) -> None:
    """Killed and started again before the loss is noticed."""
    with made.g.connect(style=style) as fe:
        for _ in range(5):
            fe.reboot()
            fe.barrier()
            talk(made, fe)


def test_qemu_connects_again_and_goes_on(made: Bench) -> None:
    """With the same rings, where they stand: the guest inside notices nothing."""
    with made.g.connect() as fe:
        for _ in range(3):
            talk(made, fe)
            fe.send_many([numbered(made.g.mac, made.x.mac, i) for i in range(20)])
            fe.reconnect()
            fe.barrier()
            got = numbers(take(made.x, 20))
            assert got == list(range(20))
            talk(made, fe)


@pytest.mark.parametrize("style", STYLES)
def test_a_driver_is_unloaded_and_loaded(made: Bench, style: str) -> None:
    """On the same connection, also with other features."""
    with made.g.connect(style=style) as fe:
        for features in (fe.features, fe.features & ~Feature.MRG_RXBUF, fe.features):
            talk(made, fe)
            fe.stop()
            made.x.send(frame(made.x, made.g.mac, b"to nobody"))
            others_talk(made)
            for ring in fe.rings:
                used = ring.used_idx
                assert used == ring.last_used or ring.index == TX
            if style == "qemu":
                assert [ring.base for ring in fe.rings] == [ring.used_idx for ring in fe.rings]
            fe.reset()
            fe.features = features
            fe.start()
            fe.barrier()
        talk(made, fe)


def test_a_guest_is_paused_and_resumed(made: Bench) -> None:
    """QEMU's stop and cont: the rings go on where they stopped."""
    with made.g.connect() as fe:
        for i in range(3):
            talk(made, fe)
            fe.stop()
            fe.send(numbered(made.g.mac, made.x.mac, i))
            with pytest.raises(ReceiveTimeout):
                made.x.recv(0.05)
            fe.start()
            assert numbers(take(made.x, 1)) == [i]
            fe.barrier()


def test_a_disabled_queue_carries_nothing(made: Bench) -> None:
    with made.g.connect(style="uml") as fe:
        for index in (RX, TX):
            fe.tell(Request.SET_VRING_ENABLE, vring_state(index, 0), ack=True)
        fe.send(numbered(made.g.mac, made.x.mac, 1))
        made.x.send(numbered(made.x.mac, made.g.mac, 1))
        with pytest.raises(ReceiveTimeout):
            fe.recv(0.05)
        assert not made.x.recv_many(timeout=0.05)
        for index in (RX, TX):
            fe.tell(Request.SET_VRING_ENABLE, vring_state(index, 1), ack=True)
        made.x.recv_many(timeout=0.2)  # it may keep or discard what came meanwhile
        fe.recv_many(timeout=0)
        talk(made, fe)


# ---------------------------------------------------------------------------- memory that changes


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("style", STYLES)
def test_the_memory_table_is_sent_again(tmp_path: Path, style: str, layout: str) -> None:
    """The same, and while frames are under way: the rings go on."""
    options = {"layout": layout} | PATIENT
    with vhost_util.bench(tmp_path, **options) as made, made.g.connect(style=style) as fe:
        count = 400
        for number in range(0, count, 10):
            fe.send_many([numbered(made.g.mac, made.x.mac, number + i) for i in range(10)])
            if number % 100 == 50:
                fe.tell(Request.SET_MEM_TABLE, mem_table(fe.memory.table()), fe.memory.fds())
        assert numbers(take(made.x, count)) == list(range(count))
        fe.barrier()
        talk(made, fe)


def test_memory_is_added(made: Bench) -> None:
    """A region more, as when memory is plugged in; the rings lie where they were."""
    with made.g.connect() as fe:
        more = GuestMemory("8M", 1, base=1 << 32)
        try:
            table = [*fe.memory.table(), (1 << 32, 8 << 20, 0x7E00_0000_0000, 1 << 32)]
            fds = [*fe.memory.fds(), more.fds()[0]]
            fe.tell(Request.SET_MEM_TABLE, mem_table(table), fds, ack=True)
            talk(made, fe)
        finally:
            more.close()
        talk(made, fe)


def test_memory_without_the_rings_stops_them(made: Bench) -> None:
    """And with them again they go on."""
    with made.g.connect() as fe:
        only = fe.memory.table()[:1], fe.memory.fds()[:1]
        fe.tell(Request.SET_MEM_TABLE, mem_table(only[0]), only[1])
        fe.barrier()
        fe.send(numbered(made.g.mac, made.x.mac, 7))
        assert not made.x.recv_many(timeout=0.05)
        others_talk(made)
        fe.tell(Request.SET_MEM_TABLE, mem_table(fe.memory.table()), fe.memory.fds())
        assert numbers(take(made.x, 1)) == [7]
        fe.barrier()
        talk(made, fe)
    assert made.g.alive()


# ------------------------------------------------------------------------- guests that take nothing


def test_a_guest_without_buffers_delays_nobody_else(made: Bench) -> None:
    """A bounded wait, then drops that are counted, until there are buffers again."""
    with made.g.connect(auto_refill=False) as fe:
        start = time.monotonic()
        count = 200
        for number in range(count):
            made.x.send(numbered(made.x.mac, made.g.mac, number))
            others_talk(made)
        took = time.monotonic() - start
        assert took < 2, f"{took:.2f} s for {2 * count} frames between others"

        def dropped() -> int:
            port = made.g.drops().get("device", 0)
            return port + made.fabric.ends("g", "x").rx["drop_device"]

        wait_until(lambda: dropped() == count, "all are dropped")
        assert made.g.counters()["ring_empty"] >= 1
        fe.refill()
        talk(made, fe)


def test_a_short_pause_of_a_guest_loses_nothing(tmp_path: Path) -> None:
    """Buffers that come within the time wake the frame that waits."""
    with (
        vhost_util.bench(tmp_path, **PATIENT) as made,
        made.g.connect(auto_refill=False) as fe,
    ):
        for number in range(50):
            made.x.send(numbered(made.x.mac, made.g.mac, number))
            fe.refill(1)
            assert numbers(take_guest(fe, 1)) == [number]
        assert not made.fabric.ends("g", "x").rx["drop_device"]
        assert not made.g.drops()


def test_a_full_channel_holds_the_guest(tmp_path: Path) -> None:
    """A receiver that takes nothing for a while: the guest's ring fills, and nothing is lost."""
    with vhost_util.bench(tmp_path, **PATIENT) as made, made.g.connect() as fe:
        count = 0
        with pytest.raises(ChannelFull):
            for count in range(20_000):
                fe.send(numbered(made.g.mac, made.x.mac, count) + bytes(1400), timeout=0.2)
        assert count < 4000
        others = frame(made.x, made.y, b"from the one that takes nothing")
        made.x.send(others, timeout=1)
        assert made.y.recv(5) == others
        assert numbers(take(made.x, count)) == list(range(count))
        assert fe.sent()
        talk(made, fe)
        assert not made.g.drops()


def test_a_receiver_that_takes_nothing_holds_up_no_other(made: Bench) -> None:
    """Its channel stalls; what the guest sends to others passes."""
    with made.g.connect() as fe:
        data = sized(made.g.mac, made.x, 1500)
        for number in range(3000):
            fe.send(data)
            if number % 300 == 0:
                to_y = numbered(made.g.mac, made.y.mac, number)
                fe.send(to_y)
                assert made.y.recv(5) == to_y
        assert fe.sent()
        while made.x.recv_many(timeout=0.05):
            pass
        talk(made, fe)


def test_broadcast_reaches_every_guest(made: Bench) -> None:
    with made.g.connect() as g, made["h"].connect() as h:
        data = frame(made.x, b"\xff" * 6, os.urandom(40))
        made.x.send(data)
        assert g.recv().data == h.recv().data == made.y.recv(5) == data
