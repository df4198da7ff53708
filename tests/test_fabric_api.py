# SPDX-License-Identifier: Apache-2.0
"""What the Python API of the fabric promises, in each layout."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import mint_vni as mint
from fabric_util import (
    BROADCAST,
    LAYOUTS,
    Child,
    descriptors,
    drain,
    frame,
    gives_back,
    three_ports,
    wait_until,
)
from mint_vni.fabric import regions


@pytest.fixture(params=LAYOUTS)
def layout(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def fabric(layout: str) -> Iterator[mint.Fabric]:
    with three_ports(layout) as made:
        yield made


class TestFrames:
    def test_a_frame_arrives_as_it_was_sent(self, fabric: mint.Fabric) -> None:
        x, y = fabric["x"], fabric["y"]
        for size in [14, 15, 60, 64, 1514, 9014, 65535, 65584]:
            data = frame(x, y, os.urandom(size - 14))
            x.send(data)
            assert y.recv(timeout=1) == data
        assert fabric["z"].recv_many(timeout=0) == []

    def test_any_buffer_will_do(self, fabric: mint.Fabric) -> None:
        x, y = fabric["x"], fabric["y"]
        data = frame(x, y, b"payload")
        for buffer in (data, bytearray(data), memoryview(data)):
            x.send(buffer)
            assert y.recv(timeout=1) == data
        assert x.send_many([data, bytearray(data), memoryview(data)]) == 3
        assert y.recv_many(3, timeout=1) == [data] * 3

    def test_many_at_once_keep_their_order(self, fabric: mint.Fabric) -> None:
        x, y = fabric["x"], fabric["y"]
        sent = [frame(x, y, i.to_bytes(4, "big") * (1 + i % 5)) for i in range(150)]
        assert x.send_many(sent) == 150
        assert y.recv_many(100, timeout=1) == sent[:100]
        assert y.recv_many(timeout=1) == sent[100:]
        assert x.send_many([]) == 0

    def test_floods_reach_all_others(self, fabric: mint.Fabric) -> None:
        x, y, z = fabric["x"], fabric["y"], fabric["z"]
        for dst in (BROADCAST, bytes.fromhex("333300000001")):
            data = frame(x, dst, b"to all")
            x.send(data)
            assert y.recv(timeout=1) == z.recv(timeout=1) == data
            assert x.recv_many(timeout=0) == []

    @pytest.mark.parametrize("size", [0, 1, 13, 65585, 100_000])
    def test_bad_lengths_are_refused(self, fabric: mint.Fabric, size: int) -> None:
        x, y = fabric["x"], fabric["y"]
        good = frame(x, y, b"good")
        with pytest.raises(mint.FrameError, match=f"port x: frame 0 has {size} bytes; send 14 to"):
            x.send(bytes(size))
        with pytest.raises(mint.FrameError, match=f"frame 2 has {size} bytes"):
            x.send_many([good, good, bytes(size), good])
        assert y.recv_many(timeout=1) == [good, good]
        assert y.recv_many(timeout=0) == []
        reason = "short" if size < 14 else "long"
        assert fabric.drops("x") == {reason: 2}
        assert fabric.counters("x")["in_frames"] == fabric.counters("x")["in_done"] == 2

    def test_frame_errors_are_value_errors(self) -> None:
        assert issubclass(mint.FrameError, ValueError)
        assert issubclass(mint.ChannelFull, TimeoutError)
        assert issubclass(mint.ReceiveTimeout, TimeoutError)
        assert issubclass(mint.FabricError, mint.MintError)

    def test_what_goes_nowhere_is_counted(self, fabric: mint.Fabric) -> None:
        x = fabric["x"]
        x.send(frame(x, bytes.fromhex("020000001234")))
        x.send(frame(x, x))
        assert fabric.drops("x") == {"unknown": 1, "self": 1}

    def test_a_foreign_source_is_dropped_by_the_receiver(self, fabric: mint.Fabric) -> None:
        x, y, z = fabric["x"], fabric["y"], fabric["z"]
        x.send(frame(z, y, b"as if from z"))
        x.send(frame(x, y, b"honest"))
        assert y.recv_many(timeout=1) == [frame(x, y, b"honest")]
        assert fabric.ends("y", "x").rx["drop_spoof"] == 1


class TestLife:
    def test_use_after_close(self, fabric: mint.Fabric) -> None:
        x, y = fabric["x"], fabric["y"]
        x.close()
        x.close()
        calls: list[Callable[[], Any]] = [
            lambda: x.send(frame(x, y)),
            lambda: x.send_many([frame(x, y)]),
            lambda: x.recv(timeout=0),
            lambda: x.recv_many(timeout=0),
            lambda: x.drop_peer(1),
        ]
        for call in calls:
            with pytest.raises(mint.FabricError, match="port x is closed; open another"):
                call()
        assert "closed" in repr(x)
        assert fabric["x"] is not x
        assert "open" in repr(fabric["x"])

    def test_a_closed_port_is_down_for_others(self, fabric: mint.Fabric) -> None:
        x, y = fabric["x"], fabric["y"]
        y.close()
        x.send(frame(x, y), timeout=0)
        assert fabric.ends("x", "y").tx["drop_down"] == 1
        y = fabric["y"]
        x.send(frame(x, y, b"again"), timeout=0)
        assert y.recv(timeout=1) == frame(x, y, b"again")

    def test_what_was_sent_before_closing_arrives(self, fabric: mint.Fabric) -> None:
        y = fabric["y"]
        for i in range(5):
            with fabric["x"] as x:
                x.send(frame(x, y, bytes([i])))
        assert [f[14] for f in drain(y)] == [0, 1, 2, 3, 4]

    def test_context_managers(self, layout: str) -> None:
        with gives_back():
            with mint.Fabric.create(["x", "y"], layout) as fabric, fabric["x"] as x:
                assert fabric["x"] is x
            with pytest.raises(mint.FabricError):
                x.send(frame(x, x))
            with pytest.raises(mint.ReceiveTimeout), mint.Fabric.create(["x", "y"]) as fabric:
                fabric["y"].recv(timeout=0)
            fabric.close()

    def test_a_port_closes_after_its_fabric(self, layout: str) -> None:
        """The regions live as long as somebody maps them."""
        with gives_back():
            fabric = mint.Fabric.create(["x", "y"], layout)
            x = fabric["x"]
            fabric.close()
            x.close()

    def test_an_abandoned_fabric_can_be_closed_twice(self, layout: str) -> None:
        with gives_back():
            fabric = mint.Fabric.create(["x", "y"], layout)
            fabric.close()
            fabric.close()

    def test_memory_is_committed_when_touched(self, layout: str) -> None:
        with mint.Fabric.create(["x", "y"], layout, channel_bytes=64 << 20) as fabric:
            memory = fabric.memory()
            assert memory["reserved_bytes"] >= 64 << 20
            assert memory["committed_bytes"] < 8 << 20
            x, y = fabric["x"], fabric["y"]
            for _ in range(20):
                x.send(frame(x, y, bytes(60_000)))
                y.recv(timeout=1)
            assert fabric.memory()["committed_bytes"] < 8 << 20


class TestFork:
    def test_a_child_serves_its_own_port(self, fabric: mint.Fabric) -> None:
        x = fabric["x"]

        def echo() -> int:
            y = fabric["y"]
            for _ in range(200):
                data = y.recv(timeout=20)
                y.send(frame(y, "02:4d:56:ff:00:00", data[14:]))
            fabric.close()
            return sum("memfd:mint-" in name for name in descriptors())

        child = Child(echo)
        wait_until(lambda: fabric.ends("y", "x").rx_state != "closed", "y is open")
        for i in range(200):
            payload = i.to_bytes(4, "big") * 50
            x.send(frame(x, fabric.spec("y").mac, payload))
            assert x.recv(timeout=20) == frame(fabric.spec("y").mac, x, payload)
        assert child.result() == 0

    def test_a_child_that_closes_the_fabric_takes_nothing_away(self, fabric: mint.Fabric) -> None:
        x, y = fabric["x"], fabric["y"]
        Child(fabric.close).result()
        x.send(frame(x, y))
        assert y.recv(timeout=1) == frame(x, y)

    def test_a_child_that_dies_can_be_replaced(self, layout: str) -> None:
        """Killed in the middle of receiving: what was not handed out comes, in order."""
        fabric = mint.Fabric.create(["x", "y"], layout, channel_bytes=4 << 20)
        x = fabric["x"]
        got: list[int] = []
        ready_r, ready_w = os.pipe()

        def receive(forever: bool) -> list[int]:
            y = fabric["y"]
            numbers: list[int] = []
            os.write(ready_w, b"r")
            while forever or not numbers or numbers[-1] != 599:
                numbers += [int.from_bytes(f[14:18], "big") for f in y.recv_many(8, timeout=10)]
            return numbers

        first = Child(receive, True)
        os.read(ready_r, 1)
        for i in range(300):
            x.send(frame(x, fabric.spec("y").mac, i.to_bytes(4, "big")))
        wait_until(lambda: fabric.ends("y", "x").rx["frames"] > 10, "y receives")
        first.kill()
        for i in range(300, 340):
            x.send(frame(x, fabric.spec("y").mac, i.to_bytes(4, "big")))
        second = Child(receive, False)
        os.read(ready_r, 1)
        for i in range(340, 600):
            x.send(frame(x, fabric.spec("y").mac, i.to_bytes(4, "big")))
        got = second.result()
        os.close(ready_r)
        os.close(ready_w)
        assert got == sorted(set(got)), "out of order"
        assert set(range(300, 600)) <= set(got), "what came while nobody was there is lost"
        assert fabric.counters("y")["restarts"] == 1
        assert fabric.ends("x", "y").tx["drop_reset"] == 0
        fabric.close()

    def test_a_childs_copy_of_a_port_is_closed(self, fabric: mint.Fabric) -> None:
        x, y = fabric["x"], fabric["y"]

        def use_it() -> str:
            x.close()
            with pytest.raises(mint.FabricError, match="port x is closed") as caught:
                x.send(frame(y, x))
            return str(caught.value)

        assert "closed" in Child(use_it).result()
        x.send(frame(x, y))
        assert y.recv(timeout=1) == frame(x, y)

    def test_a_child_does_not_keep_its_parents_ports(self, fabric: mint.Fabric) -> None:
        """It inherits descriptors, which must not look as if the parent still served the port."""
        fabric.port("x")
        ready_r, ready_w = os.pipe()
        go_r, go_w = os.pipe()

        def live_on() -> None:
            os.write(ready_w, b"r")
            os.read(go_r, 1)

        child = Child(live_on)
        os.read(ready_r, 1)
        fabric["x"].close()
        fabric["x"].send(frame(fabric["x"], fabric["y"]))
        assert fabric["y"].recv(timeout=1)
        os.write(go_w, b"g")
        child.result()
        for fd in (ready_r, ready_w, go_r, go_w):
            os.close(fd)


class TestRefused:
    def test_names_that_clash(self, layout: str) -> None:
        with (
            gives_back(),
            pytest.raises(mint.FabricError, match="two ports of the fabric have the same name"),
        ):
            mint.Fabric.create(["x", "y", "x"], layout)

    @pytest.mark.parametrize("count", [0, 1, 1025])
    def test_too_few_or_too_many_ports(self, count: int) -> None:
        with pytest.raises(mint.FabricError, match=f"a fabric has 2 to 1024 ports, not {count}"):
            mint.Fabric.create([f"p{i}" for i in range(count)])

    def test_an_unknown_layout(self) -> None:
        with pytest.raises(
            mint.FabricError, match="no layout ring; use one of per-channel, shared, pooled"
        ):
            mint.Fabric.create(["x", "y"], "ring")

    @pytest.mark.parametrize("size", [-1, 0, 65536, (1 << 30) + 4096])
    def test_a_capacity_out_of_range(self, layout: str, size: int) -> None:
        with pytest.raises(
            mint.FabricError, match=rf"channel_bytes {size} is out of range; use \d"
        ):
            mint.Fabric.create(["x", "y"], layout, channel_bytes=size)

    def test_the_least_capacity(self, layout: str) -> None:
        with mint.Fabric.create(["x", "y"], layout, channel_bytes=131200) as fabric:
            x, y = fabric["x"], fabric["y"]
            for _ in range(10):
                x.send(frame(x, y, bytes(65570)), timeout=0)
                assert len(y.recv(timeout=1)) == 65584

    def test_an_unknown_port(self, fabric: mint.Fabric) -> None:
        for call in (fabric.port, fabric.counters, fabric.drops, lambda n: fabric.ends("x", n)):
            with pytest.raises(mint.FabricError, match="no port q in this fabric; it has x, y, z"):
                call("q")

    def test_a_pool_port_that_another_process_serves(self) -> None:
        with mint.Fabric.create(["x", "y"], "shared") as fabric:
            ready_r, ready_w = os.pipe()
            go_r, go_w = os.pipe()

            def hold() -> None:
                fabric.port("y")
                os.write(ready_w, b"r")
                os.read(go_r, 1)

            child = Child(hold)
            os.read(ready_r, 1)
            with pytest.raises(mint.FabricError, match=r"port y cannot be opened: .*busy"):
                fabric.port("y")
            os.write(go_w, b"g")
            child.result()
            fabric.port("y").close()
            for fd in (ready_r, ready_w, go_r, go_w):
                os.close(fd)


FEW_DESCRIPTORS = """
import os, resource, sys
import mint_vni as mint

def count():
    return len(os.listdir("/proc/self/fd"))

layout, step = sys.argv[1:]
fabric = mint.Fabric.create(["a", "b", "c", "d"], layout) if step == "open" else None
before = count()
failed = worked = 0
for spare in range(1, 80):
    resource.setrlimit(resource.RLIMIT_NOFILE, (before - 1 + spare, 4096))
    try:
        made = fabric.port("a") if fabric else mint.Fabric.create(["a", "b", "c", "d"], layout)
    except mint.FabricError as error:
        assert "open files" in str(error), error
        failed += 1
    else:
        made.close()
        worked += 1
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
    assert count() == before, (spare, count(), before)
assert failed > 4, failed
assert worked > 4, worked
"""


class TestDescriptors:
    @pytest.mark.parametrize("step", ["create", "open"])
    def test_too_few(self, layout: str, step: str) -> None:
        """Whichever descriptor is the one too many: one error, and nothing stays open."""
        done = subprocess.run(
            [sys.executable, "-c", FEW_DESCRIPTORS, layout, step],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr

    def test_a_port_uses_few(self, layout: str) -> None:
        """Two for itself, one a peer and, in layout shared, one for the pool's lock."""
        with mint.Fabric.create([f"p{i}" for i in range(10)], layout) as fabric:
            before = len(descriptors())
            fabric.port("p0")
            extra = len(descriptors()) - before
            assert extra <= 9 + 2 + (layout == "shared")

    def test_none_is_inherited(self, fabric: mint.Fabric) -> None:
        """A program that a user of the fabric starts gets none of its descriptors."""
        fabric.port("x")
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        script = (
            "import os, sys\n"
            f"for fd in range(3, min({soft}, 4096)):\n"
            "    try: print(os.readlink(f'/proc/self/fd/{fd}'))\n"
            "    except OSError: pass\n"
        )
        # close_fds=False: whatever is not close-on-exec would be inherited.
        done = subprocess.run(
            [sys.executable, "-c", script],
            close_fds=False,
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
        assert "mint-" not in done.stdout
        assert "eventpoll" not in done.stdout


def test_the_names_of_regions_tell_what_they_are(layout: str) -> None:
    with mint.Fabric.create(["x", "y"], layout):
        names = {d.split(" ", 1)[1] for d in descriptors() if "mint-" in d}
    assert any("control-0" in n for n in names)
    buffers = {"per-channel": "channel-1-0", "shared": "pool", "pooled": "stock-1"}[layout]
    assert any(buffers in n for n in names)
    assert regions.round_to_page(1) == os.sysconf("SC_PAGE_SIZE")
