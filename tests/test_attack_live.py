# SPDX-License-Identifier: Apache-2.0
"""A hostile worker beside a running lab: tests/attack/attacker.c has a port, and two nodes work on.

What it costs the bystanders is compared within one run: the attacker attacks and burns in turn. When
it burns, it does all the same to memory and sockets of its own. So a busy machine slows both alike.
"""

from __future__ import annotations

import contextlib
import os
import signal
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import labs
from attackers import WAYS, Attacker, Place
from labs import Child, Traffic, inside, ping
from mint_vni.lab import Lab

SLICE_S = 0.5
SLICES = 12  # half of them attacks
ROUNDS = 3
LEAST = 0.9  # of what bystanders have beside an attacker that only burns
DEAR = 0.25  # cores that an attack may cost the workers of two bystanders, together
STREAM = 400  # datagrams a second


@pytest.fixture
def lab(machine: None) -> Iterator[Lab]:
    with Lab.up(labs.source("attack", "ab")) as lab:
        yield lab


@contextlib.contextmanager
def stream(lab: Lab, src: str, dst: str) -> Iterator[dict[str, Any]]:
    """Numbered and checksummed datagrams at a steady pace; the result is complete after the block."""
    result: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(inside(lab[dst], "udp-check", 5010))
        listener.result("ready")
        target = labs.address(lab, dst)
        sender = stack.enter_context(inside(lab[src], "udp-paced", target, 5010, 700, STREAM))
        sender.result("ready")
        yield result
        sender.close_input()
        result |= sender.result("sent")
        listener.close_input()
        result |= listener.result("got")


@contextlib.contextmanager
def iperf(lab: Lab, src: str, dst: str) -> Iterator[None]:
    """A TCP connection that takes what it can get."""
    with Child(lab[dst].exec_argv(["iperf3", "-s", "-1", "--forceflush"])) as server:
        server.expect("listening")
        argv = ["iperf3", "-c", labs.address(lab, dst), "-t", "600", "--forceflush"]
        with Child(lab[src].exec_argv(argv), stderr=True) as client:
            client.expect("connected")
            yield
            assert client.process.poll() is None, "the connection broke"


def carried(lab: Lab, src: str, dst: str) -> int:
    """Bytes that a channel has carried."""
    channels = lab.status()["channels"]
    found = next(c for c in channels if (c["from"], c["to"]) == (src, dst))
    return int(found["bytes"])


def rate(lab: Lab, seconds: float) -> float:
    """Bytes a second from a to b, from now on."""
    start, before = time.monotonic(), carried(lab, "a", "b")
    time.sleep(seconds)
    return (carried(lab, "a", "b") - before) / (time.monotonic() - start)


def busy(pid: int) -> float:
    """Seconds of CPU that a process has used."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def compare(lab: Lab, attacker: Attacker, slices: int, way: str = "") -> float:
    """Throughput beside the attack, as a part of that beside the burning."""
    rates: dict[bool, list[float]] = {True: [], False: []}
    for i in range(slices):
        attacks = i % 4 in (1, 2)  # burn, attack, attack, burn: a drift hits both
        (attacker.attack if attacks else attacker.burn)(way)
        time.sleep(0.05)
        rates[attacks].append(rate(lab, SLICE_S))
    return statistics.median(rates[True]) / statistics.median(rates[False])


def ends_of(lab: Lab, name: str) -> list[dict[str, Any]]:
    """The receiving ends of the attacker's channels."""
    return [c for c in lab.status()["channels"] if c["from"] == name]


def test_two_nodes_work_on_beside_an_attacker(lab: Lab) -> None:
    """Every way of attacking in turn, mixed. What else runs on the machine disturbs one round or two."""
    with Place(lab, "evil") as place, Attacker(place) as attacker:
        with iperf(lab, "a", "b"), stream(lab, "b", "a") as got:
            shares = [compare(lab, attacker, SLICES)]
            while max(shares) < LEAST and len(shares) < ROUNDS:
                shares.append(compare(lab, attacker, SLICES))
            attacker.burn()
        labs.report(f"throughput beside the attack: {shares}; stream: {got}")
        resets = {c["to"]: c["rx"]["resets"] for c in ends_of(lab, "evil")}
        labs.report(f"resets of the attacker's channels: {resets}")
        assert got["corrupted"] == got["late"] == got["repeated"] == 0
        assert got["got"] == got["sent"], "the stream lost frames"
        assert all(n > 0 for n in resets.values()), resets
        assert max(shares) >= LEAST
    for node in "ab":
        assert labs.port_status(lab, node)["worker"]["restarts"] == 0
    ping(lab["a"], "b", count=5)


def cost(lab: Lab, seconds: float) -> float:
    """Cores that the bystanders' workers keep busy, from now on."""
    workers = [labs.port_status(lab, node)["worker"]["pid"] for node in "ab"]
    start, before = time.monotonic(), sum(map(busy, workers))
    time.sleep(seconds)
    return (sum(map(busy, workers)) - before) / (time.monotonic() - start)


@pytest.mark.parametrize("way", WAYS)
def test_no_way_of_attacking_is_dear_to_others(lab: Lab, way: str) -> None:
    """In cores that the bystanders' workers need for the same paced stream."""
    with Place(lab, "evil") as place, Attacker(place) as attacker:
        with Traffic(lab) as traffic, stream(lab, "b", "a") as got:
            attacker.burn(way)
            beside_burning = cost(lab, SLICE_S)
            attacker.attack(way)
            beside_attack = cost(lab, SLICE_S)
            attacker.burn()
        labs.report(f"{way}: {beside_burning:.3f} cores, attacked {beside_attack:.3f}; {got}")
        labs.report(f"{way}: {[c['rx'] for c in ends_of(lab, 'evil')]}")
        labs.report(f"{way}: {traffic.moved.drops()}")
        assert got["corrupted"] == got["late"] == got["repeated"] == 0
        assert got["got"] == got["sent"]
        if (
            way != "changing-records"
        ):  # those that are right are delivered, and cost what that costs
            assert beside_attack < beside_burning + DEAR
    ping(lab["a"], "b", count=5)


def test_false_progress_does_not_slow_its_senders_traffic_to_others(machine: None) -> None:
    """a floods the attacker, which takes nothing and says that it did, and goes on with b."""
    way, fabric = "false-progress", {"channel_bytes": "264K"}  # soon full
    with Lab.up(labs.source("feigns", "ab", fabric=fabric)) as lab, Place(lab, "evil") as place:
        assert place.message.spec is not None
        target = labs.address(lab, "b").rpartition(".")[0] + ".99"
        known = ["ip", "neigh", "replace", target, "lladdr", place.message.spec.mac]
        lab["a"].run([*known, "dev", "vni0", "nud", "permanent"])
        flood = ("udp-flood", target, 5009, 1400, 2_000_000)
        with (
            Attacker(place) as attacker,
            iperf(lab, "a", "b"),
            inside(lab["a"], *flood) as sender,
        ):
            sender.result("ready")
            shares: list[float] = []
            while not shares or (max(shares) < LEAST and len(shares) < ROUNDS):
                shares.append(compare(lab, attacker, SLICES, way))
            attacker.burn(way)
            sender.close_input()
        channel = next(c for c in lab.status()["channels"] if (c["from"], c["to"]) == ("a", "evil"))
        labs.report(f"throughput beside false progress: {shares}; {channel['tx']}")
        assert channel["tx"]["frames"] > 0
        assert channel["tx"]["resets"] > 0
        assert max(shares) >= LEAST
        ping(lab["a"], "b", count=5)


def test_a_stopped_receiver_does_not_slow_its_senders_traffic_to_others(machine: None) -> None:
    """a floods c while c's worker is stopped, and goes on with b as if c took it all."""
    with Lab.up(labs.source("stopped", "abc")) as lab:
        ping(lab["a"], labs.address(lab, "c"))
        there = labs.node_status(lab, "c")
        known = ["ip", "neigh", "replace", there["ipv4"][:-3], "lladdr", there["mac"]]
        lab["a"].run([*known, "dev", "vni0", "nud", "permanent"])
        pid = worker_pid(lab, "c")
        flood = ("udp-flood", labs.address(lab, "c"), 5009, 1400, 2_000_000)
        with iperf(lab, "a", "b"), inside(lab["a"], *flood) as sender:
            sender.result("ready")
            shares: list[float] = []
            while not shares or (max(shares) < LEAST and len(shares) < ROUNDS):
                shares.append(_compare_stopped(lab, pid))
            sender.close_input()
        labs.report(f"throughput with a stopped neighbour: {shares}")
        channel = next(c for c in lab.status()["channels"] if (c["from"], c["to"]) == ("a", "c"))
        assert channel["tx"]["stalls"] > 0
        assert channel["tx"]["drop_stalled"] > 0
        assert max(shares) >= LEAST
        ping(lab["a"], "c", count=5)


def worker_pid(lab: Lab, node: str) -> int:
    return int(labs.port_status(lab, node)["worker"]["pid"])


def _compare_stopped(lab: Lab, pid: int) -> float:
    rates: dict[bool, list[float]] = {True: [], False: []}
    try:
        for i in range(SLICES):
            stopped = i % 4 in (1, 2)
            os.kill(pid, signal.SIGSTOP if stopped else signal.SIGCONT)
            time.sleep(0.05)
            rates[stopped].append(rate(lab, SLICE_S))
    finally:
        os.kill(pid, signal.SIGCONT)
    return statistics.median(rates[True]) / statistics.median(rates[False])
