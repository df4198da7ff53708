# SPDX-License-Identifier: Apache-2.0
"""Mixed traffic under random faults. In the suite for some seconds; as a program for as long as told.

    python tests/test_soak.py SECONDS [SEED]      (make soak)

Faults hit a and b: their workers are killed or stopped, garbage is sent by them, and the supervisor is
killed, at random moments. c and d are bystanders: what they send each other must arrive, all of it. So
must a TCP connection between a and b, through workers that come and go. Where User-Mode Linux can boot,
there is also e, a guest, which is killed now and then, or its worker.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

import kinds
import labs
from labs import inside
from mint_vni.lab import Lab
from test_attack_live import stream
from test_lab_faults import Stream, is_back, worker

FAULTS = int(os.environ.get("MINT_FAULTS", "8"))
BACK_S = 1.0  # a killed worker is back within so long, it is promised
SLACK = 5.0  # this also runs where others compute; the figure itself is printed
GUEST_APART_S = 15.0  # a guest that ends more often is given up, on purpose
APART_S = 5.5  # a worker that is killed again sooner is restarted later, on purpose
GARBAGE = 200  # frames


@dataclass
class Tally:
    """What came of it."""

    faults: int = 0
    kinds: dict[str, int] = field(default_factory=dict)
    worst: float = 0.0
    frames: int = 0
    lost: int = 0
    corrupted: int = 0
    carried: int = 0

    def line(self) -> str:
        """One line of figures."""
        kinds = ", ".join(f"{kind} {n}" for kind, n in sorted(self.kinds.items()))
        return (
            f"soak: {self.frames} frames, {self.carried} bytes, {self.faults} faults ({kinds}),"
            f" lost {self.lost}, corrupted {self.corrupted}, worst recovery {self.worst:.3f} s"
        )


class Faults:
    """Makes faults, one at a time, and waits until they are over."""

    def __init__(self, lab: Lab, seed: int) -> None:
        self.tally = Tally()
        self._lab = lab
        self._random = random.Random(seed)
        self._killed = {"a": 0.0, "b": 0.0, "e": 0.0}
        self._guest = any(node["name"] == "e" for node in lab.status()["nodes"])
        self._guest_killed = 0.0

    def one(self) -> None:
        """One fault of a random kind, at a random moment."""
        time.sleep(self._random.uniform(0.0, 0.3))
        ways: dict[str, Callable[[str], None]] = {
            "worker killed": self._kill_worker,
            "worker stopped": self._stop_worker,
            "supervisor killed": self._kill_supervisor,
            "garbage": self._garbage,
        }
        if self._guest:
            ways["guest's worker killed"] = lambda _: self._kill_worker("e")
            if time.monotonic() > self._guest_killed + GUEST_APART_S:
                ways["guest killed"] = self._kill_guest
        kind = self._random.choice(list(ways))
        ways[kind](self._random.choice("ab"))
        self.tally.faults += 1
        self.tally.kinds[kind] = self.tally.kinds.get(kind, 0) + 1

    def _kill_worker(self, node: str) -> None:
        time.sleep(max(0.0, self._killed[node] + APART_S - time.monotonic()))
        restarts = labs.port_status(self._lab, node)["worker"]["restarts"]
        labs.kill(worker(self._lab, node))
        start = time.monotonic()
        labs.wait_for("the worker", lambda: is_back(self._lab, node, restarts + 1), timeout=10)
        self.tally.worst = max(self.tally.worst, time.monotonic() - start)
        self._killed[node] = time.monotonic()

    def _kill_guest(self, _node: str) -> None:
        self._guest_killed = time.monotonic()
        labs.kill(labs.node_status(self._lab, "e")["pid"])
        kinds.wait_up(self._lab, "e", self._guest_killed)

    def _stop_worker(self, node: str) -> None:
        pid = worker(self._lab, node)
        os.kill(pid, signal.SIGSTOP)
        try:
            time.sleep(self._random.uniform(0.01, 0.3))
        finally:
            os.kill(pid, signal.SIGCONT)

    def _kill_supervisor(self, _node: str) -> None:
        labs.kill(self._lab.status()["supervisor"]["pid"])
        assert self._lab.status()["state"] == "ready"

    def _garbage(self, node: str) -> None:
        seed = self._random.randrange(1 << 30)
        with inside(self._lab[node], "raw-garbage", "vni0", GARBAGE, seed) as child:
            assert child.result("sent")["sent"] == GARBAGE


def soak(lab: Lab, faults: Faults, go_on: Callable[[], bool]) -> Tally:
    """Faults under traffic, until it is enough."""
    tally = faults.tally
    with contextlib.ExitStack() as stack:
        through = stack.enter_context(Stream(lab, "a", "b"))
        beside = stack.enter_context(Stream(lab, "c", "d"))
        with stream(lab, "d", "c") as got:
            while go_on():
                faults.one()
            through.flows(30.0)
            beside.flows()
        ended = [through.end(), beside.end()]
    tally.frames, tally.lost = got["sent"], got["sent"] - got["distinct"]
    tally.corrupted = got["corrupted"]
    tally.carried = sum(int(end["sent"]) for end in ended)
    return tally


@contextlib.contextmanager
def soak_lab() -> Iterator[Lab]:
    nodes: dict[str, Any] = {name: {} for name in "abcd"}
    if kinds.why_not("uml") is None:
        nodes["e"] = kinds.SMALL["uml"]
    with Lab.up(labs.source("soak", nodes)) as lab:
        yield lab


@pytest.mark.timeout(3600 if FAULTS > 20 else 180)
def test_bystanders_lose_nothing_under_random_faults(machine: None) -> None:
    with soak_lab() as lab:
        faults = Faults(lab, seed=5)
        tally = soak(lab, faults, lambda: faults.tally.faults < FAULTS)
        labs.report(tally.line())
        assert tally.faults == FAULTS
        assert (tally.lost, tally.corrupted) == (0, 0)
        assert tally.worst < SLACK * BACK_S
        labs.ping(lab["a"], "b", count=5)


def main(argv: list[str]) -> int:
    """The long form; the exit status is 1 if a bystander lost anything."""
    end, seed = time.monotonic() + float(argv[0]), int(argv[1]) if len(argv) > 1 else 0
    with soak_lab() as lab:
        tally = soak(lab, Faults(lab, seed), lambda: time.monotonic() < end)
    print(tally.line())
    return int(bool(tally.lost or tally.corrupted))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
