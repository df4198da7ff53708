# SPDX-License-Identifier: Apache-2.0
"""DPDK as an independent judge: of our fake front end, and of our vhost-user port.

Its vhost PMD is a back end that we did not write, so what `VhostFrontend` says is vhost-user. Its
virtio-user is a front end that we did not write, so what our port says is, too.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import dpdk_util
import vhost_util
from fabric_util import wait_until
from mint_vni.testing import Feature, VhostFrontend
from mint_vni.testing.protocol import GUEST_FEATURES
from vhost_util import Bench, others_talk, payload, sized, take, take_guest

reason = dpdk_util.why_not()
pytestmark = pytest.mark.skipif(reason is not None, reason=str(reason))

PLAIN = Feature.VERSION_1 | Feature.PROTOCOL_FEATURES


# ---------------------------------------------------------------- our front end, its back end


@pytest.fixture(scope="module")
def switch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """The sockets of two ports of testpmd, between which it forwards everything."""
    directory = tmp_path_factory.mktemp("d")
    paths = [str(directory / "v0"), str(directory / "v1")]
    vdevs = [f"net_vhost{i},iface={path}" for i, path in enumerate(paths)]
    with dpdk_util.testpmd(directory, vdevs, "--forward-mode=io") as running:
        running.wait_until(lambda: all(map(os.path.exists, paths)), "its sockets")
        yield paths


def flows(a: VhostFrontend, b: VhostFrontend) -> None:
    """Wait until frames get through: the other side takes a while to enable its queues."""
    end = time.monotonic() + 10
    while not b.recv_many(timeout=0.02):
        assert time.monotonic() < end, "nothing gets through testpmd"
        a.send(bytes(60))
    while b.recv_many(timeout=0.1):
        pass


KINDS = {
    "all": {"features": GUEST_FEATURES},
    "plain": {"features": PLAIN, "rx_parts": (2000,)},
    "merged": {"features": PLAIN | Feature.MRG_RXBUF, "rx_parts": (500,)},
    "indirect": {
        "features": PLAIN | Feature.INDIRECT_DESC,
        "rx_parts": (12, 100, 2000),
        "rx_indirect": True,
    },
    "uml": {"style": "uml"},
    "holes": {"regions": 5, "gap": 1 << 20},
}


@pytest.mark.parametrize("kind", KINDS)
def test_frames_pass_through_its_back_end(switch: list[str], kind: str) -> None:
    """Any chains, any sizes up to its buffers', in order, both ways."""
    rng = random.Random(4)
    options = KINDS[kind]
    with VhostFrontend(switch[0], **options) as a, VhostFrontend(switch[1]) as b:  # type: ignore[arg-type]
        for one, other in ((a, b), (b, a)):
            flows(one, other)
            for size in (14, 15, 59, 60, 61, 100, 1000, 1514):
                for split in ((), (12,), (12, 14), (1,) * 30, (12, 13, 1)):
                    data = payload(size, len(split))
                    one.send(data, split=split)
                    assert other.recv().data == data
            for batch in range(20):
                frames = [payload(rng.randint(60, 1514), i + batch) for i in range(60)]
                one.send_many(frames)
                assert take_guest(other, 60) == frames


def test_rings_wrap_in_its_back_end(switch: list[str]) -> None:
    ends = [VhostFrontend(path, start_index=65_000) for path in switch]
    with ends[0] as a, ends[1] as b:
        flows(a, b)
        frames = [payload(60, i) for i in range(128)]
        for one, other in ((a, b), (b, a)) * 5:
            one.send_many(frames)
            assert take_guest(other, 128) == frames
        for end in ends:
            assert all(ring.used_idx < 60_000 for ring in end.rings), "it has passed 65,535"


# ---------------------------------------------------------------- its front end, our back end


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Bench]:
    with vhost_util.bench(tmp_path, guests="gh", raw="xy", options={"offload": True}) as made:
        yield made


def virtio_user(made: Bench, name: str, number: int, extra: str) -> str:
    guest = made[name]
    return f"net_virtio_user{number},path={guest.path},mac={guest.mac},server=0{extra}"


MODES = {
    "merged": "",
    "not merged": ",mrg_rxbuf=0,in_order=0",
    "vectors": ",mrg_rxbuf=0,in_order=1,vectorized=1",
    "small rings": ",queue_size=64",
}


@pytest.mark.parametrize("mode", MODES)
def test_its_virtio_user_echoes(made: Bench, mode: str, tmp_path: Path) -> None:
    """It swaps the MAC addresses of what it gets and sends it back."""
    vdevs = [virtio_user(made, "g", 0, MODES[mode])]
    options = ("--forward-mode=macswap", "--port-topology=loop")
    with dpdk_util.testpmd(tmp_path, vdevs, *options) as running:
        running.wait_until(lambda: started(made, "g"), "both queues run")
        rng, swapped = random.Random(8), bytes.fromhex
        me, it = (swapped(mac.replace(":", "")) for mac in (made.x.mac, made.g.mac))
        greet(made, "g")
        for batch in range(40):
            frames = [
                sized(made.x, made.g.mac, rng.randint(60, 1514), i + batch) for i in range(32)
            ]
            made.x.send_many(frames)
            assert take(made.x, 32) == [me + it + one[12:] for one in frames]
        others_talk(made)
    wait_until(lambda: not made.g.status()["connected"], "it is gone")
    assert made.g.counters()["ring_errors"] == 0


def started(made: Bench, name: str) -> bool:
    return all(queue["started"] and queue["enabled"] for queue in made[name].status()["queues"])


def greet(made: Bench, name: str) -> None:
    """Wait until it answers: its forwarding starts after its queues."""
    end = time.monotonic() + 10
    while not made.x.recv_many(timeout=0.02):
        assert time.monotonic() < end, "testpmd does not answer"
        made.x.send(sized(made.x, made[name].mac, 60))
    while made.x.recv_many(timeout=0.1):
        pass


def test_a_worker_is_replaced_under_it(made: Bench, tmp_path: Path) -> None:
    vdevs = [virtio_user(made, "g", 0, "")]
    options = ("--forward-mode=macswap", "--port-topology=loop")
    with dpdk_util.testpmd(tmp_path, vdevs, *options) as running:
        running.wait_until(lambda: started(made, "g"), "both queues run")
        greet(made, "g")
        for _ in range(2):
            made.g.kill_worker()
            made.g.start_worker()
            greet(made, "g")
            frames = [sized(made.x, made.g.mac, 1000, i) for i in range(100)]
            made.x.send_many(frames)
            assert [one[14:] for one in take(made.x, 100)] == [one[14:] for one in frames]


def test_it_sends_as_fast_as_it_can(made: Bench, tmp_path: Path) -> None:
    """Full rings all the time, a receiver that is slower: nobody else is held up."""
    vdevs = [virtio_user(made, "g", 0, "")]
    peer = f"--eth-peer=0,{made.x.mac}"
    with dpdk_util.testpmd(tmp_path, vdevs, "--forward-mode=txonly", peer) as running:
        running.wait_until(lambda: started(made, "g"), "both queues run")
        got = take_some(made, 20_000)
        assert all(one[6:12].hex(":") == made.g.mac for one in got)
        others_talk(made)


def take_some(made: Bench, count: int) -> list[bytes]:
    got: list[bytes] = []
    end = time.monotonic() + 10
    while len(got) < count:
        assert time.monotonic() < end, f"{len(got)} frames"
        got += made.x.recv_many(timeout=1)
    return got
