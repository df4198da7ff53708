# SPDX-License-Identifier: Apache-2.0
"""Many nodes, several labs, what a lab costs, and how soon it is there.

The bounds asserted are twice what the project promises, as this also runs on loaded machines; the
figures themselves are printed (``pytest -rP``).
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import labs
import machine as machine_module
from labs import Traffic, inside, ping
from mint_vni.lab import Lab

EIGHT = [f"n{i}" for i in range(1, 9)]
UP_PAIR_S, UP_EIGHT_S = 2.0, 4.0  # promised
IDLE_S, IDLE_SHARE = 3.0, 0.005
WORKER_BYTES = 2 << 20
SLACK = 2.0


@pytest.fixture(scope="module", params=["per-channel", "shared", "pooled"])
def eight(request: pytest.FixtureRequest, lab_host: None) -> Iterator[tuple[Lab, float]]:
    """Eight nodes, and the seconds that they took to come up."""
    fabric = {"layout": request.param, "channel_bytes": "1M" if "per" in request.param else "8M"}
    with machine_module.unchanged():
        start = time.monotonic()
        with Lab.up(labs.source("eight", EIGHT, fabric=fabric)) as lab:
            yield lab, time.monotonic() - start


def test_a_pair_is_up_soon(machine: None) -> None:
    start = time.monotonic()
    example = Path(__file__).parents[1] / "examples" / "pair.yaml"
    many = len(os.sched_getaffinity(0)) > 1
    with Lab.up(example if many else labs.source("pair", "ab", ssh="mesh")):
        seconds = time.monotonic() - start
    labs.report(f"pair up after {seconds:.2f} s (promised: {UP_PAIR_S:.0f} s)")
    assert seconds < SLACK * UP_PAIR_S


def test_eight_nodes_are_up_soon(eight: tuple[Lab, float]) -> None:
    labs.report(f"eight nodes up after {eight[1]:.2f} s (promised: {UP_EIGHT_S:.0f} s)")
    assert eight[1] < SLACK * UP_EIGHT_S


def test_a_worker_costs_little_memory(eight: tuple[Lab, float]) -> None:
    costs = [port["worker"]["private_bytes"] for port in eight[0].status()["ports"]]
    labs.report(f"private memory of a worker: {max(costs) / 1024:.0f} KiB at most")
    assert max(costs) < WORKER_BYTES


def test_eight_nodes_ping_each_other(eight: tuple[Lab, float]) -> None:
    """56 channels: each carries its pair's echoes and answers, over both IP versions."""
    lab, _ = eight
    script = "set -e; for a; do ping -n -q -c 1 -W 5 $a | grep -q ' 1 received'; done"
    with Traffic(lab) as traffic:
        for src in EIGHT:
            targets = [
                labs.address(lab, dst, family) for dst in EIGHT if dst != src for family in (4, 6)
            ]
            lab[src].run(["sh", "-c", script, "sh", *targets], timeout=60)
    for src, dst in itertools.permutations(EIGHT, 2):
        assert traffic.moved.frames(src, dst) >= 4, (src, dst)
    assert not traffic.moved.drops()


def test_an_idle_lab_uses_next_to_no_cpu(eight: tuple[Lab, float]) -> None:
    status = eight[0].status()
    pids = [status["supervisor"]["pid"], *(p["worker"]["pid"] for p in status["ports"])]
    before, start = _cpu_ns(pids), time.monotonic()
    time.sleep(IDLE_S)  # it is the time itself that is measured
    share = (_cpu_ns(pids) - before) / 1e9 / (time.monotonic() - start)
    labs.report(f"eight idle nodes: {share:.3%} of one core (promised: {IDLE_SHARE:.1%})")
    assert share < 4 * IDLE_SHARE


def _cpu_ns(pids: list[int]) -> int:
    """CPU time of some processes, all their threads, in nanoseconds."""
    total = 0
    for pid in pids:
        for task in os.listdir(f"/proc/{pid}/task"):
            total += int(Path(f"/proc/{pid}/task/{task}/schedstat").read_text().split()[0])
    return total


def test_two_labs_side_by_side_do_not_meet(machine: None) -> None:
    """The same subnet, the same names: what is said in one is not heard in the other."""
    with Lab.up(labs.source("left", "abc")) as left, Lab.up(labs.source("right", "abc")) as right:
        assert labs.address(left, "b") == labs.address(right, "b")
        for lab, other in ((left, right), (right, left)):
            with Traffic(other) as quiet, Traffic(lab) as busy:
                for src, dst in itertools.permutations("abc", 2):
                    ping(lab[src], labs.address(lab, dst), count=20)
                target = labs.address(lab, "b")
                with inside(lab["b"], "answer", 5001, 100_000) as server:
                    server.result("ready")
                    with inside(lab["a"], "exchange", target, 5001, 2_000_000) as client:
                        assert (
                            client.result("received")["received"] == server.result("sent")["sent"]
                        )
            assert len(busy.moved.channels(least=20)) == 6
            assert not quiet.moved.channels(least=20)
        pids = [{p["worker"]["pid"] for p in lab.status()["ports"]} for lab in (left, right)]
        assert not pids[0] & pids[1]
        uids = [{p["worker"]["uid"] for p in lab.status()["ports"]} for lab in (left, right)]
        assert len(uids[0] | uids[1]) == 6
        left.down()
        ping(right["a"], "b", count=5)


def test_a_worker_holds_what_is_its_own_and_nothing_else(eight: tuple[Lab, float]) -> None:
    for port in eight[0].status()["ports"]:
        labs.check_worker(port, peers=7)
