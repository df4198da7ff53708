# SPDX-License-Identifier: Apache-2.0
"""Waiting, threads and signals in the Python API of the fabric, in each layout."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import mint_vni as mint
from fabric_util import (
    LAYOUTS,
    asleep,
    drain,
    fill,
    frame,
    gives_back,
    three_ports,
    wait_until,
)


@pytest.fixture(params=LAYOUTS)
def layout(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def fabric(layout: str) -> Iterator[mint.Fabric]:
    with three_ports(layout) as made:
        yield made


class TestWaiting:
    def test_no_frame_in_time(self, fabric: mint.Fabric) -> None:
        x = fabric["x"]
        start = time.monotonic()
        with pytest.raises(mint.ReceiveTimeout, match=r"port x: no frame within 0\.05 s"):
            x.recv(timeout=0.05)
        assert time.monotonic() - start >= 0.05
        assert x.recv_many(timeout=0.02) == []
        assert x.recv_many(timeout=0) == []
        assert x.recv_many(timeout=-1) == []

    def test_long_time_limits(self, fabric: mint.Fabric) -> None:
        x, y = fabric["x"], fabric["y"]
        for limit in (1e30, float("inf")):
            x.send(frame(x, y), timeout=limit)
            assert y.recv(timeout=limit) == frame(x, y)

    @pytest.mark.parametrize("limit", [0, -1])
    def test_asking_for_no_frames(self, fabric: mint.Fabric, limit: int) -> None:
        with pytest.raises(ValueError, match="ask for one frame or more"):
            fabric["x"].recv_many(limit)

    def test_a_full_channel(self, fabric: mint.Fabric) -> None:
        sent = fill(fabric, "x", "y")
        data = frame(fabric["x"], fabric["y"], bytes(986))
        for timeout in (0, 0.01, 0.05, 0):
            start = time.monotonic()
            with pytest.raises(mint.ChannelFull, match="port x: the receiver's channel is full"):
                fabric["x"].send(data, timeout=timeout)
            assert time.monotonic() - start >= timeout
            assert fabric["x"].send_many([data, data], timeout=timeout) == 0
        assert fabric.counters("x")["in_frames"] == sent
        fabric["x"].send(frame(fabric["x"], fabric["z"]), timeout=0)  # others are not kept waiting
        assert len(drain(fabric["y"])) == sent
        fabric["x"].send(data, timeout=0)

    def test_room_in_time(self, fabric: mint.Fabric) -> None:
        x, y = fabric["x"], fabric["y"]
        sent = fill(fabric, "x", "y")
        more = [frame(x, y, bytes(986))] * 50
        result: list[int] = []
        thread = threading.Thread(target=lambda: result.append(x.send_many(more, timeout=30)))
        thread.start()
        wait_until(lambda: fabric.ends("x", "y").tx["waits"] >= 1, "x waits for room")
        got: list[bytes] = []
        while len(got) < sent + 50:
            got += y.recv_many(8, timeout=10)
        thread.join()
        assert result == [50]
        assert got[sent:] == more

    def test_part_of_a_batch_in_time(self, fabric: mint.Fabric) -> None:
        x, y = fabric["x"], fabric["y"]
        frames = [frame(x, y, i.to_bytes(4, "big") + bytes(20_000)) for i in range(100)]
        sent = x.send_many(frames, timeout=0)
        assert 0 < sent < 100
        assert drain(y) == frames[:sent]
        assert x.send_many(frames[sent : sent + 3], timeout=0) == 3
        assert y.recv_many(timeout=0) == frames[sent : sent + 3]

    def test_without_a_limit_a_stalled_receiver_costs_frames(self, layout: str) -> None:
        with mint.Fabric.create(["x", "y"], layout, 393216, stall_us=5000) as fabric:
            x, y = fabric["x"], fabric["y"]
            sent = fill(fabric, "x", "y")
            for _ in range(5):
                x.send(frame(x, y))
            tx = fabric.ends("x", "y").tx
            assert (tx["drop_stalled"], tx["stalls"]) == (5, 1)
            assert fabric.ends("x", "y").stalled
            assert len(drain(y)) == sent
            x.send(frame(x, y))
            assert drain(y) == [frame(x, y)]
            assert not fabric.ends("x", "y").stalled

    def test_waiting_costs_no_cpu(self, fabric: mint.Fabric) -> None:
        x, y = fabric["x"], fabric["y"]
        x.send(frame(x, y))
        y.recv(timeout=1)
        fill(fabric, "y", "x")
        drain(x)  # y has waited for room, and x gave it: that must not keep y awake
        for port in (x, y):
            before = time.thread_time()
            assert port.recv_many(timeout=1.0) == []
            assert time.thread_time() - before < 0.005, f"{port} is busy with waiting"


class TestThreads:
    def test_one_sends_while_another_receives(self, layout: str) -> None:
        """Two ports flood each other, each with a thread to send and one to receive."""
        count, batch = 6000, 20
        with mint.Fabric.create(["x", "y"], layout, 393216, stall_us=10_000_000) as fabric:
            got: dict[str, list[bytes]] = {"x": [], "y": []}

            def send(me: str, other: str) -> None:
                data = [
                    frame(fabric[me], fabric[other], i.to_bytes(4, "big") + bytes(i % 700))
                    for i in range(count)
                ]
                for i in range(0, count, batch):
                    assert fabric[me].send_many(data[i : i + batch]) == batch

            def receive(me: str) -> None:
                while len(got[me]) < count and (frames := fabric[me].recv_many(64, timeout=20)):
                    got[me] += frames

            run_all(
                lambda: send("x", "y"),
                lambda: send("y", "x"),
                lambda: receive("x"),
                lambda: receive("y"),
            )
            for port in ("x", "y"):
                numbers = [int.from_bytes(f[14:18], "big") for f in got[port]]
                assert numbers == list(range(count))

    def test_a_waiting_sender_does_not_keep_the_port_from_receiving(
        self, fabric: mint.Fabric
    ) -> None:
        x, y, z = fabric["x"], fabric["y"], fabric["z"]
        fill(fabric, "x", "y")
        full: list[BaseException] = []

        def send() -> None:
            try:
                x.send(frame(x, y, bytes(986)), timeout=2.0)
            except mint.ChannelFull as error:
                full.append(error)

        thread = threading.Thread(target=send)
        thread.start()
        wait_until(lambda: fabric.ends("x", "y").tx["waits"] >= 2, "x waits for room")
        start = time.monotonic()
        for _ in range(5):
            z.send(frame(z, x, b"hello"))
            assert x.recv(timeout=5) == frame(z, x, b"hello")
        assert time.monotonic() - start < 1.5, "they had to wait for the sender"
        thread.join()
        assert len(full) == 1

    def test_two_receivers_share_the_frames(self, fabric: mint.Fabric) -> None:
        x, y = fabric["x"], fabric["y"]
        got: list[bytes] = []

        def receive() -> None:
            while len(got) < 1000:
                got.extend(y.recv_many(1, timeout=0.5))

        def send() -> None:
            for i in range(1000):
                x.send(frame(x, y, i.to_bytes(4, "big")), timeout=10)

        run_all(receive, receive, send)
        assert sorted(got) == [frame(x, y, i.to_bytes(4, "big")) for i in range(1000)]

    def test_two_waiting_receivers_cost_no_cpu(self, fabric: mint.Fabric) -> None:
        x = fabric["x"]
        used: list[float] = []

        def receive() -> None:
            before = time.thread_time()  # of this thread alone: the test run has others
            x.recv_many(timeout=0.5)
            used.append(time.thread_time() - before)

        run_all(receive, receive)
        assert len(used) == 2
        assert sum(used) < 0.05

    def test_close_ends_a_wait(self, fabric: mint.Fabric) -> None:
        x = fabric["x"]
        errors: list[BaseException] = []

        def receive() -> None:
            try:
                x.recv(timeout=20)
            except mint.FabricError as error:
                errors.append(error)

        threads = [threading.Thread(target=receive) for _ in range(3)]
        for thread in threads:
            thread.start()
        wait_until(lambda: asleep(fabric, "x"), "x sleeps")
        x.close()
        for thread in threads:
            thread.join(timeout=10)
            assert not thread.is_alive()
        assert [str(e) for e in errors] == ["port x is closed; open another"] * 3

    def test_close_in_the_middle_of_everything(self, layout: str) -> None:
        for _ in range(30):
            with gives_back(), mint.Fabric.create(["x", "y"], layout) as fabric:
                close_while_in_use(fabric["x"], fabric["y"])


def close_while_in_use(x: mint.Port, y: mint.Port) -> None:
    """All that the other threads may see of it is that the port is closed."""
    begun = threading.Barrier(4)
    data = frame(x, y, bytes(100))

    def for_ever(call: Callable[[], object]) -> None:
        while True:
            call()

    def until_closed(call: Callable[[], object]) -> None:
        begun.wait()
        with pytest.raises(mint.FabricError, match="port x is closed; open another"):
            for_ever(call)

    def close() -> None:
        begun.wait()
        x.close()

    run_all(
        lambda: until_closed(lambda: x.send(data)),
        lambda: until_closed(lambda: x.recv_many(timeout=1)),
        lambda: until_closed(lambda: x.recv_many(timeout=0)),
        close,
    )


def run_all(*functions: Callable[[], Any]) -> None:
    """Run functions in threads; whatever they raise is raised here."""
    errors: list[BaseException] = []

    def run(function: Callable[[], Any]) -> None:
        try:
            function()
        except BaseException as error:  # noqa: BLE001 - raised again below
            errors.append(error)

    threads = [threading.Thread(target=run, args=(f,), daemon=True) for f in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
        assert not thread.is_alive(), "a thread hangs"
    if errors:
        raise errors[0]


class TestSignals:
    def test_interrupting_recv(self, fabric: mint.Fabric) -> None:
        x, y = fabric["x"], fabric["y"]
        for _ in range(3):
            timer = threading.Timer(0.02, os.kill, (os.getpid(), signal.SIGINT))
            timer.start()
            start = time.monotonic()
            with pytest.raises(KeyboardInterrupt):
                x.recv(timeout=30)
            assert time.monotonic() - start < 10
            timer.join()
            y.send(frame(y, x))
            assert x.recv(timeout=1) == frame(y, x)

    def test_interrupting_send(self, fabric: mint.Fabric) -> None:
        x, y = fabric["x"], fabric["y"]
        sent = fill(fabric, "x", "y")
        timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        start = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            x.send(frame(x, y, bytes(986)), timeout=30)
        assert time.monotonic() - start < 10
        timer.join()
        assert len(drain(y)) == sent
        x.send(frame(x, y))

    def test_a_signal_that_raises_nothing_ends_no_wait(self, fabric: mint.Fabric) -> None:
        x = fabric["x"]
        seen: list[int] = []
        before = signal.signal(signal.SIGALRM, lambda number, _: seen.append(number))
        signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
        try:
            start = time.monotonic()
            assert x.recv_many(timeout=0.2) == []
            assert time.monotonic() - start >= 0.2
            fill(fabric, "x", "y")
            with pytest.raises(mint.ChannelFull):
                x.send(frame(x, fabric["y"], bytes(986)), timeout=0.2)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        assert len(seen) > 5

    def test_raising_anywhere_leaves_the_port_usable(self, fabric: mint.Fabric) -> None:
        """Interrupts at times that hit every place of the calls sooner or later."""
        x, y = fabric["x"], fabric["y"]
        data = frame(x, y, b"data")

        class InterruptedHere(Exception):
            pass

        def on_alarm(number: int, at: Any) -> None:
            raise InterruptedHere

        before = signal.signal(signal.SIGALRM, on_alarm)
        try:
            for i in range(1500):
                try:
                    signal.setitimer(signal.ITIMER_REAL, 20e-6 + i % 100 * 1e-6)
                    while True:
                        x.send(data, timeout=0.001)
                        y.recv_many(timeout=0)
                except InterruptedHere:
                    pass
                except mint.ChannelFull:
                    signal.setitimer(signal.ITIMER_REAL, 0)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        drain(y)
        x.send(data, timeout=0)
        assert y.recv(timeout=1) == data

    def test_a_handler_cannot_use_the_port_that_it_interrupted(self, fabric: mint.Fabric) -> None:
        """It fails or works, but neither hangs nor damages what the interrupted call returns."""
        x, y = fabric["x"], fabric["y"]
        seen: list[object] = []

        def on_alarm(number: int, at: Any) -> None:
            try:
                seen.append(x.recv_many(timeout=0))
            except mint.FabricError as error:
                seen.append(error)

        before = signal.signal(signal.SIGALRM, on_alarm)
        try:
            for i in range(2000):
                signal.setitimer(signal.ITIMER_REAL, 20e-6 + i % 100 * 1e-6)
                data = frame(y, x, i.to_bytes(4, "big"))
                count = len(seen)
                y.send(data)
                got = list(x.recv_many(timeout=0.002))
                got += [f for s in seen[count:] if isinstance(s, list) for f in s]
                assert got in ([data], [])
                if not got:
                    drain(x)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        assert seen
