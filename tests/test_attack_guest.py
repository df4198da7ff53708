# SPDX-License-Identifier: Apache-2.0
"""A hostile guest beside a running lab: tests/hostile_guest.py is plugged in, and two nodes work on.

What it costs them is compared within one run, as in test_attack_live: it attacks and burns in turn.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import cbuild
import labs
from hostile_guest import WAYS
from labs import Child, ping
from mint_vni.lab import Lab
from test_attack_live import DEAR, LEAST, ROUNDS, SLICE_S, SLICES, busy, cost, iperf, rate, stream

PROGRAM = cbuild.ROOT / "tests" / "hostile_guest.py"


@pytest.fixture
def lab(machine: None, tmp_path: Path) -> Iterator[Lab]:
    nodes = {"a": {}, "b": {}, "evil": {"kind": "external", "socket": str(tmp_path / "e.sock")}}
    with Lab.up(labs.source("hostile", nodes)) as lab:
        yield lab


def hostile(lab: Lab) -> Child:
    """The guest; it burns until told to attack."""
    a, b, evil = (labs.node_status(lab, name) for name in ("a", "b", "evil"))
    return Child([sys.executable, str(PROGRAM), evil["guest"]["socket"], a["mac"], b["mac"]])


def tell(guest: Child, attacks: bool, *ways: str) -> None:
    guest.say("attack " + " ".join(ways or WAYS) if attacks else "burn")


def ring_errors(lab: Lab) -> int:
    return int(labs.port_status(lab, "evil")["counters"]["ring_errors"])


def test_two_nodes_work_on_beside_a_hostile_guest(lab: Lab) -> None:
    """Every way in turn, mixed. What else runs on the machine disturbs one round or two."""
    before = ring_errors(lab)
    with hostile(lab) as guest:
        guest.expect("ready")
        with iperf(lab, "a", "b"), stream(lab, "b", "a") as got:
            shares: list[float] = []
            while not shares or (max(shares) < LEAST and len(shares) < ROUNDS):
                shares.append(_compare(lab, guest))
        guest.close_input()
        guest.expect("rounds")
    labs.report(f"throughput beside the guest: {shares}; stream: {got}")
    labs.report(f"its queues were disabled {ring_errors(lab) - before} times")
    assert got["corrupted"] == got["late"] == got["repeated"] == 0
    assert got["got"] == got["sent"], "the stream lost frames"
    assert ring_errors(lab) > before
    assert max(shares) >= LEAST
    for node in ("a", "b", "evil"):
        assert labs.port_status(lab, node)["worker"]["restarts"] == 0
    ping(lab["a"], "b", count=5)


def _compare(lab: Lab, guest: Child) -> float:
    """Throughput beside the attack, as a part of that beside the burning."""
    rates: dict[bool, list[float]] = {True: [], False: []}
    used: dict[bool, float] = {True: 0.0, False: 0.0}
    for i in range(SLICES):
        attacks = i % 4 in (1, 2)  # burn, attack, attack, burn: a drift hits both
        tell(guest, attacks)
        time.sleep(0.1)
        start = busy(guest.process.pid)
        rates[attacks].append(rate(lab, SLICE_S))
        used[attacks] += busy(guest.process.pid) - start
    labs.report(f"CPU seconds of the guest: burning {used[False]:.2f}, attacking {used[True]:.2f}")
    return statistics.median(rates[True]) / statistics.median(rates[False])


@pytest.mark.parametrize("way", WAYS)
def test_no_way_is_dear_to_others(lab: Lab, way: str) -> None:
    """In cores that the bystanders' workers need for the same paced stream."""
    with hostile(lab) as guest:
        guest.expect("ready")
        with stream(lab, "b", "a") as got:
            beside_burning = cost(lab, SLICE_S)
            tell(guest, True, way)
            time.sleep(0.1)
            beside_attack = cost(lab, SLICE_S)
            tell(guest, False)
        guest.close_input()
        guest.expect("rounds")
    labs.report(f"{way}: {beside_burning:.3f} cores, attacked {beside_attack:.3f}; {got}")
    labs.report(f"{way}: {labs.port_status(lab, 'evil')['counters']}")
    assert got["corrupted"] == got["late"] == got["repeated"] == 0
    assert got["got"] == got["sent"]
    assert beside_attack < beside_burning + DEAR
    ping(lab["a"], "b", count=5)
