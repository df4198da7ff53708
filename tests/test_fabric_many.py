# SPDX-License-Identifier: Apache-2.0
"""64 ports, each with channels to all others: 4,032 channels and 2,016 doorbells."""

from __future__ import annotations

import os
import resource
import sys
import time

import pytest

from fabric_util import LAYOUTS, descriptors, frame
from mint_vni.fabric import Fabric
from mint_vni.fabric.config import mac_text
from mint_vni.fabric.port import Port

PORTS = [f"p{i}" for i in range(64)]
PROCESSES = 4
CHANNEL = {"per-channel": 135_168, "shared": 16 << 20}
FRAMES = 500_000


@pytest.fixture(autouse=True)
def enough_descriptors() -> None:
    """64 ports in one process hold some 16,000 descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 20_000:
        pytest.skip(f"a process may have {hard} descriptors here; 20,000 are needed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 20_000), hard))


def greet(port: Port, macs: list[str]) -> None:
    """Send every other port a frame that names the pair."""
    for mac in macs:
        if mac != port.mac:
            port.send(frame(port, mac, f"{port.mac} to {mac}".encode()))


def await_greetings(port: Port, macs: list[str]) -> None:
    """Receive exactly one frame from every other port."""
    missing = set(macs) - {port.mac}
    deadline = time.monotonic() + 30
    while missing:
        assert time.monotonic() < deadline, f"{port.name}: nothing from {len(missing)} ports"
        for data in port.recv_many(timeout=1.0):
            src = mac_text(data[6:12])
            assert data == frame(src, port, f"{src} to {port.mac}".encode())
            missing.remove(src)
    assert port.recv_many(timeout=0) == []


@pytest.mark.parametrize("layout", LAYOUTS)
def test_all_to_all_in_one_process(layout: str) -> None:
    before = descriptors()
    with Fabric.create(PORTS, layout, CHANNEL[layout], poll_us=0) as fabric:
        ports = [fabric[name] for name in PORTS]
        macs = [port.mac for port in ports]
        for port in ports:
            greet(port, macs)
        for port in ports:
            await_greetings(port, macs)
        for name in PORTS:
            assert fabric.drops(name) == {}
        memory = fabric.memory()
        # Committed as touched: a page for each channel that carried one frame, not its capacity.
        assert memory["committed_bytes"] <= 64 * 63 * 4096 + (2 << 20)
        assert memory["reserved_bytes"] >= CHANNEL[layout]
    assert descriptors() == before


def child(fabric: Fabric, names: list[str], go: int) -> None:
    """Serve a share of the ports; the exit status says how it went."""
    status = 1
    try:
        ports = [fabric[name] for name in names]
        os.write(go, b".")
        macs = [fabric.spec(name).mac for name in PORTS]
        deadline = time.monotonic() + 30
        while not all(
            fabric.ends(other, name).rx_state != "closed"
            for name in names
            for other in PORTS
            if other != name
        ):
            assert time.monotonic() < deadline, "the other processes did not open their ports"
            time.sleep(0.01)
        for port in ports:
            greet(port, macs)
        for port in ports:
            await_greetings(port, macs)
        status = 0
    finally:
        os._exit(status)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_all_to_all_between_processes(layout: str) -> None:
    with Fabric.create(PORTS, layout, CHANNEL[layout], poll_us=0) as fabric:
        said, say = os.pipe()
        pids = []
        for i in range(PROCESSES):
            pid = os.fork()
            if pid == 0:
                child(fabric, PORTS[i::PROCESSES], say)
            pids.append(pid)
        os.close(say)
        statuses = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        os.close(said)
        assert statuses == [0] * PROCESSES


def test_python_moves_many_frames_a_second(capsys: pytest.CaptureFixture[str]) -> None:
    """A bound against regressions; a quiet machine makes 3 to 7 million a second."""
    with Fabric.create(["x", "y"]) as fabric:
        source, target = fabric.spec("x").mac, fabric.spec("y").mac
        pid = os.fork()
        if pid == 0:
            port, got = fabric["y"], 0
            while got < FRAMES and (frames := port.recv_many(timeout=10.0)):
                got += len(frames)
            os._exit(0 if got == FRAMES else 1)
        batch = [frame(source, target, i.to_bytes(2, "big") + bytes(48)) for i in range(250)]
        port = fabric["x"]
        deadline = time.monotonic() + 30
        while fabric.ends("y", "x").rx_state == "closed":
            assert time.monotonic() < deadline, "the receiver did not start"
            time.sleep(0.001)
        start = time.monotonic()
        for _ in range(FRAMES // len(batch)):
            assert port.send_many(batch) == len(batch)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        rate = FRAMES / (time.monotonic() - start)
    with capsys.disabled():
        sys.stdout.write(f"\nsend_many to recv_many, 64 bytes: {rate / 1e6:.1f} million a second\n")
    assert status == 0
    assert rate > 500_000
