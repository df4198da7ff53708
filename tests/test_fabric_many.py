# SPDX-License-Identifier: Apache-2.0
"""Many ports, and many frames a second."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterator

import pytest

import mint_vni as mint
from fabric_util import LAYOUTS, Child, frame, gives_back, mappings, results, wait_until
from mint_vni.fabric.config import mac_bytes

PORTS = [f"p{i}" for i in range(64)]
LEAST_BYTES = 135168
CHANNELS = len(PORTS) * (len(PORTS) - 1)
WANTED_DESCRIPTORS = 16_384
SALTS = (b"first", b"second" * 10)


@pytest.fixture
def enough_descriptors() -> Iterator[None]:
    """The soft limit raised, for as long as the test runs."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert hard == resource.RLIM_INFINITY or hard >= WANTED_DESCRIPTORS, (
        f"64 ports in one process want {WANTED_DESCRIPTORS} descriptors, the hard limit is {hard};"
        " raise it (ulimit -Hn)"
    )
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, WANTED_DESCRIPTORS), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def send_to_all(fabric: mint.Fabric, name: str, salt: bytes) -> None:
    """One frame from a port to each other, with its sender's and its receiver's name inside."""
    src = mac_bytes(fabric.spec(name).mac)
    others = [n for n in PORTS if n != name]
    frames = [
        frame(src, mac_bytes(fabric.spec(n).mac), f"{name}>{n} ".encode() + salt) for n in others
    ]
    assert fabric[name].send_many(frames, timeout=30) == len(frames)


def receive_from_all(fabric: mint.Fabric, name: str, *salts: bytes) -> None:
    """From each other port exactly the frames that it sent, in order."""
    due = {n: [f"{n}>{name} ".encode() + salt for salt in salts] for n in PORTS if n != name}
    while due:
        got = fabric[name].recv_many(timeout=30)
        assert got, f"{name}: nothing comes from {sorted(due)[:3]} ..."
        for one in got:
            sender = one[14:].split(b">")[0].decode()
            assert one[14:] == due[sender].pop(0)
            if not due[sender]:
                del due[sender]
    assert fabric[name].recv_many(timeout=0) == []


def check_bounds(fabric: mint.Fabric, layout: str) -> None:
    """Memory: what was touched, and no more; nothing was dropped on the way."""
    memory = fabric.memory()
    page = os.sysconf("SC_PAGE_SIZE")
    if layout == "per-channel":
        assert memory["reserved_bytes"] == CHANNELS * LEAST_BYTES
        assert memory["committed_bytes"] <= CHANNELS * 2 * page
    elif layout == "pooled":  # a ring's page a pair; a page of notes and a run of buffers a port
        assert memory["reserved_bytes"] < len(PORTS) * (LEAST_BYTES + (len(PORTS) + 2) * page)
        assert memory["committed_bytes"] <= (CHANNELS + len(PORTS) * (1 + 16)) * page
    else:
        assert memory["committed_bytes"] <= memory["reserved_bytes"] < 80 << 20
    assert memory["control_bytes"] <= len(PORTS) * 10 * page
    for name in PORTS[::9]:
        assert fabric.drops(name) == {}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_64_ports_in_one_process(layout: str, enough_descriptors: None) -> None:
    size = 64 << 20 if layout == "shared" else LEAST_BYTES
    with gives_back(), mint.Fabric.create(PORTS, layout, channel_bytes=size) as fabric:
        for name in PORTS:
            fabric.port(name)
        for salt in SALTS:
            for name in PORTS:
                send_to_all(fabric, name, salt)
            for name in PORTS:
                receive_from_all(fabric, name, salt)
        check_bounds(fabric, layout)
        # Per channel and end: a mirrored mapping; per port and peer: a control region.
        # Pooled: per port two regions, and two of each peer.
        most = {
            "per-channel": CHANNELS * 5 + len(PORTS),
            "shared": CHANNELS + 2 * len(PORTS),
            "pooled": 2 * CHANNELS + 2 * len(PORTS),
        }
        assert mappings() <= most[layout]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_64_ports_in_eight_processes(layout: str, enough_descriptors: None) -> None:
    size = 64 << 20 if layout == "shared" else LEAST_BYTES

    def serve(mine: list[str]) -> None:
        for name in mine:
            fabric.port(name)
        os.write(ready_w, b"r" * len(mine))
        os.read(go_r, 1)
        for salt in SALTS:
            for name in mine:
                send_to_all(fabric, name, salt)
        for name in mine:
            receive_from_all(fabric, name, *SALTS)

    with gives_back(), mint.Fabric.create(PORTS, layout, channel_bytes=size) as fabric:
        (ready_r, ready_w), (go_r, go_w) = os.pipe(), os.pipe()
        children = [Child(serve, PORTS[i::8]) for i in range(8)]
        ready = 0
        while ready < len(PORTS):  # a closed pipe, when all children died, reads as nothing
            ready += len(os.read(ready_r, len(PORTS)))
        os.write(go_w, b"g" * 8)
        results(*children)
        check_bounds(fabric, layout)
        for fd in (ready_r, ready_w, go_r, go_w):
            os.close(fd)


#: What a quiet machine should reach is 2 million; half of it is the bound that a regression breaks.
LEAST_RATE = 1_000_000


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_million_frames_a_second(layout: str) -> None:
    """64-byte frames from process to process, in batches; the best of some rounds counts."""
    count, batch, rounds = 400_000, 256, 5

    def send() -> None:
        port, dst = fabric["tx"], mac_bytes(fabric.spec("rx").mac)
        frames = [frame(port, dst, i.to_bytes(4, "big") + bytes(46)) for i in range(batch)]
        for _ in range(rounds):
            os.read(go_r, 1)
            for _ in range(count // batch):
                assert port.send_many(frames) == batch

    with mint.Fabric.create(
        ["tx", "rx"], layout, channel_bytes=4 << 20, poll_us=50, stall_us=20_000_000
    ) as fabric:
        go_r, go_w = os.pipe()
        port = fabric["rx"]
        child = Child(send)
        wait_until(lambda: fabric.ends("tx", "rx").tx_state == "open", "the sender is there")
        best, wanted = 0.0, count // batch * batch
        for _ in range(rounds):
            os.write(go_w, b"g")
            got = port.recv_many(timeout=20)
            start, received = time.perf_counter(), len(got)
            while received < wanted:
                got = port.recv_many(timeout=20)
                assert got, "the frames do not come"
                received += len(got)
            best = max(best, (received - 256) / (time.perf_counter() - start))
        child.result()
        os.close(go_r)
        os.close(go_w)
        assert fabric.ends("tx", "rx").tx["drop_stalled"] == 0
    print(f"{layout}: {best / 1e6:.2f} million 64-byte frames a second")
    assert best >= LEAST_RATE, f"{best:.0f} frames a second"
