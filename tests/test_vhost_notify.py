# SPDX-License-Identifier: Apache-2.0
"""Kicks and calls of the vhost-user port: as few as can be, and none lost."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Self

import pytest

import vhost_util
from fabric_util import asleep, frame, wait_until
from mint_vni.fabric.port import Port
from mint_vni.testing import RX, TX, Feature
from mint_vni.testing.protocol import GUEST_FEATURES
from vhost_util import PATIENT, STYLES, Bench, sized, take, take_guest

EVENTS = {"events": GUEST_FEATURES, "flags": GUEST_FEATURES & ~Feature.EVENT_IDX}
ROUNDS = 1500


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with vhost_util.bench(tmp_path_factory.mktemp("v"), **PATIENT) as made:
        yield made


class Echo:
    """Sends each frame that comes to a raw port back to its sender, in a thread."""

    def __init__(self, port: Port) -> None:
        self._port, self._stop = port, False
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop = True
        self._thread.join(10)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        while not self._stop:
            got = self._port.recv_many(timeout=0.02)
            if got:
                self._port.send_many([one[6:12] + one[:6] + one[12:] for one in got])


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("events", EVENTS)
def test_ping_pong_loses_no_wake_up(made: Bench, style: str, events: str) -> None:
    """Both sides sleep before each frame, at every distance between falling asleep and waking."""
    rng = random.Random(5)
    with Echo(made.x), made.g.connect(style=style, features=EVENTS[events]) as fe:
        data = frame(made.g.mac, made.x, b"ping")
        for i in range(ROUNDS):
            if i % 3 == 0:
                time.sleep(rng.random() * 0.0002)
            fe.send(data)
            fe.recv(timeout=5)
        assert fe.sent()


@pytest.mark.parametrize("events", EVENTS)
def test_a_hammer_on_both_sides_loses_nothing(made: Bench, events: str) -> None:
    """Bursts of random sizes, through rings so small that both sides often wait for the other."""
    rng = random.Random(6)
    options = {"queue_size": 16, "features": EVENTS[events]}
    with Echo(made.x), made.g.connect(**options) as fe:
        number, waits = 0, 0
        for _ in range(ROUNDS):
            burst = rng.randint(1, 24)
            frames = [
                frame(made.g.mac, made.x, (number + i).to_bytes(4, "big")) for i in range(burst)
            ]
            got: list[bytes] = []
            for part in (frames[:8], frames[8:16], frames[16:]):
                fe.send_many(part)
                if rng.random() < 0.5:
                    got += [one.data for one in fe.recv_many(timeout=0)]
            waits += len(got) < burst
            got += take_guest(fe, burst - len(got), 5) if len(got) < burst else []
            assert [one[14:] for one in got] == [one[14:] for one in frames]
            number += burst
        assert waits > ROUNDS // 10


@pytest.mark.parametrize("events", EVENTS)
def test_who_wants_no_call_gets_none(made: Bench, events: str) -> None:
    with made.g.connect(features=EVENTS[events]) as fe:
        ring = fe.rings[RX]
        if not ring.event_idx:
            ring.avail_flags = 1
        else:
            ring.used_event = (ring.used_idx - 1) & 0xFFFF
        # The first may come, since the back end just took the ring over.
        made.x.send(sized(made.x, made.g.mac, 60))
        wait_until(lambda: ring.used_idx == 1, "a frame")
        wait_until(lambda: asleep(made.fabric, "g"), "the worker to sleep")
        ring.drain_calls()
        for i in range(50):
            made.x.send(sized(made.x, made.g.mac, 60, i))
        wait_until(lambda: ring.used_idx == 51, "the frames")
        wait_until(lambda: asleep(made.fabric, "g"), "the worker to sleep")
        assert ring.drain_calls() == 0


def test_who_wants_a_call_later_gets_one_then(made: Bench) -> None:
    """With EVENT_IDX, one call for ten frames, with the tenth."""
    with made.g.connect(features=EVENTS["events"]) as fe:
        ring = fe.rings[RX]
        made.x.send(sized(made.x, made.g.mac, 60))
        wait_until(lambda: ring.used_idx == 1, "a frame")
        wait_until(lambda: asleep(made.fabric, "g"), "the worker to sleep")
        ring.drain_calls()
        ring.used_event = 10
        for i in range(1, 14):
            made.x.send(sized(made.x, made.g.mac, 60, i))
            wait_until(lambda: ring.used_idx == i + 1, "a frame")  # noqa: B023
            wait_until(lambda: asleep(made.fabric, "g"), "the worker to sleep")
            assert ring.drain_calls() == (i == 10)


@pytest.mark.parametrize("events", EVENTS)
def test_a_busy_back_end_is_not_kicked(made: Bench, events: str) -> None:
    """While it works it does not want to hear of more."""
    with made.g.connect(features=EVENTS[events]) as fe:
        ring, count = fe.rings[TX], 3000
        data = [sized(made.g.mac, made.x, 1514, i) for i in range(30)]
        taken: list[int] = []
        taker = threading.Thread(target=lambda: taken.append(len(take(made.x, count, 20))))
        taker.start()
        for i in range(count):
            fe.send(data[i % 30])
        taker.join()
        assert taken == [count]
        assert ring.kicks + ring.kicks_saved >= count
        print(f"{events}: {ring.kicks} kicks for {count} frames")
        assert ring.kicks < count


def test_calls_are_counted(made: Bench) -> None:
    with made.g.connect() as fe:
        ring, before = fe.rings[RX], made.g.counters()["calls"]
        ring.drain_calls()  # those that follow new descriptors
        taken = ring.calls
        for i in range(20):
            made.x.send(sized(made.x, made.g.mac, 60, i))
            fe.recv()
        ring.drain_calls()
        assert ring.calls > taken
        # It counts after it has called.
        wait_until(lambda: made.g.counters()["calls"] - before == ring.calls - taken, "the count")


def test_an_idle_guest_costs_nothing(made: Bench) -> None:
    """No polling, no timers: the worker sleeps until somebody wants something."""
    with made.g.connect() as fe:
        made.x.send(sized(made.x, made.g.mac, 60))
        fe.recv()
        wait_until(lambda: asleep(made.fabric, "g"), "the worker to sleep")
        before = made.g.counters()["sleeps"]
        time.sleep(0.2)
        assert made.g.counters()["sleeps"] == before


@pytest.mark.parametrize(
    ("events", "start"), [("events", 0), ("events", 65_400), ("flags", 65_400)]
)
def test_indices_wrap(made: Bench, start: int, events: str) -> None:
    """Both rings' indices pass 65,535: from near it, and from 0."""
    count = 500 if start else 66_000
    with made.g.connect(start_index=start, features=EVENTS[events]) as fe:
        ours = [frame(made.g.mac, made.x, os.urandom(8)) for _ in range(64)]
        theirs = [frame(made.x, made.g.mac, os.urandom(8)) for _ in range(64)]
        for _ in range(-(-count // 64)):
            fe.send_many(ours)
            made.x.send_many(theirs)
            assert take(made.x, 64) == ours
            assert take_guest(fe, 64) == theirs
        assert fe.sent()
        rounds = 64 * -(-count // 64)
        for ring in fe.rings:
            assert ring.used_idx == (start + rounds) & 0xFFFF
