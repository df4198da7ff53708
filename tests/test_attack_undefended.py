# SPDX-License-Identifier: Apache-2.0
"""The attacks of `test_attack_live` where a defence is off: they do harm there.

So it is known that the tests of the defences look at something. A worker without a defence is the
worker with one line of its source replaced.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import cbuild
import labs
from attackers import PLAIN, Attacker, Place
from labs import inside, ping
from mint_vni.lab import Lab, client
from test_attack_live import LEAST, _compare_stopped, busy, ends_of, iperf, worker_pid

SLICE_S = 0.3  # of the attacker's CPU
SLICES = 3  # of each lab
WORTH = 2.0  # times that an attack costs more without the defence; measured: 4 to 40
SUPERVISOR = str(Path(__file__).with_name("other_worker_supervisor.py"))

Undefended = Callable[[str, str, str], None]


@pytest.fixture
def undefended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Undefended:
    """Have labs started from here on use a worker in which one line differs."""

    def replace(name: str, line: str, other: str) -> None:
        program = tmp_path / "mint-worker"
        source = cbuild.NATIVE / name
        assert source.read_text().count(line) == 1, f"{name} has changed: it is to have {line!r}"
        mutant = tmp_path / name
        mutant.write_text(source.read_text().replace(line, other))
        rest = [o for o in cbuild.core(PLAIN) if not o.name.startswith(f"{source.stem}-")]
        worker = cbuild.compile_one(cbuild.NATIVE / "worker.c", PLAIN)
        gcc = cbuild.compiler("gcc")[0]
        objects = [str(o) for o in (worker, *rest)]
        flags = [f for f in (*cbuild.FLAGS, *PLAIN.flags) if f != "-Werror"]
        argv = [gcc, *flags, str(mutant), *objects, "-o", str(program)]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        program.chmod(0o755)
        monkeypatch.setattr(client, "SUPERVISOR", (SUPERVISOR, str(program)))

    return replace


@contextlib.contextmanager
def attacked(lab: Lab) -> Iterator[Attacker]:
    with Place(lab, "evil") as place, Attacker(place) as attacker:
        yield attacker


def price(lab: Lab, attacker: Attacker, way: str) -> float:
    """CPU seconds that the workers spend for each of the attacker's: so nobody else's load counts."""
    pids = [labs.port_status(lab, node)["worker"]["pid"] for node in "ab"]
    pid = attacker.process.pid
    attacker.attack(way)
    spent, start = sum(map(busy, pids)), busy(pid)
    labs.wait_for("the attacker's turn", lambda: busy(pid) - start > SLICE_S, timeout=60.0)
    found = (sum(map(busy, pids)) - spent) / (busy(pid) - start)
    attacker.burn(way)
    return found


def test_without_shunning_resets_are_dear(machine: None, undefended: Undefended) -> None:
    """In turn with a lab that has it: whatever else the machine does slows both alike."""
    way = "resets"
    with contextlib.ExitStack() as stack:
        good = stack.enter_context(Lab.up(labs.source("shuns", "ab")))
        undefended("port_rx.c", "#define BAD_MAX 256u ", "#define BAD_MAX UINT32_MAX ")
        bad = stack.enter_context(Lab.up(labs.source("suffers", "ab")))
        pairs = [(lab, stack.enter_context(attacked(lab))) for lab in (good, bad)]
        costs = {good.name: 0.0, bad.name: 0.0}
        for _ in range(SLICES):
            for lab, attacker in pairs:
                costs[lab.name] += price(lab, attacker, way) / SLICES
        shunned = {
            lab.name: sum(c["rx"]["shunned"] for c in ends_of(lab, "evil")) for lab, _ in pairs
        }
    labs.report(
        f"{way}: CPU seconds per one of the attacker, with and without shunning: {costs}; shunned: {shunned}"
    )
    assert shunned[good.name] > 0
    assert shunned[bad.name] == 0
    assert costs[bad.name] > WORTH * costs[good.name]


@pytest.mark.parametrize("checked", [True, False])
def test_without_its_check_another_mac_arrives(
    machine: None, undefended: Undefended, checked: bool
) -> None:
    if not checked:
        undefended("port_rx.c", "        return MINT_RX_DROP_SPOOF;", "        (void)0;")
    with Lab.up(labs.source("spoof", "ab")) as lab, attacked(lab) as attacker:
        attacker.attack("spoofed-flood")
        labs.wait_for("frames", lambda: _arrived(lab) > 100 or _spoofed(lab) > 100)
        attacker.burn()
        arrived, spoofed = _arrived(lab), _spoofed(lab)
    assert (arrived > 100, spoofed > 100) == (not checked, checked)


def _arrived(lab: Lab) -> int:
    return sum(c["rx"]["frames"] for c in ends_of(lab, "evil"))


def _spoofed(lab: Lab) -> int:
    return sum(c["rx"]["drop_spoof"] for c in ends_of(lab, "evil"))


def test_without_stalling_a_stopped_receiver_slows_others(
    machine: None, undefended: Undefended
) -> None:
    """Frames for it are waited with, here for longer than the test takes, whoever else has some."""
    undefended("hold.c", "    return h->budget > 0;", "    return true;")
    fabric = {"stall_us": 1_000_000, "channel_bytes": "264K"}  # soon full
    with Lab.up(labs.source("waits", "abc", fabric=fabric)) as lab:
        ping(lab["a"], labs.address(lab, "c"))
        there = labs.node_status(lab, "c")
        known = ["ip", "neigh", "replace", there["ipv4"][:-3], "lladdr", there["mac"]]
        lab["a"].run([*known, "dev", "vni0", "nud", "permanent"])
        pid = worker_pid(lab, "c")
        flood = ("udp-flood", labs.address(lab, "c"), 5009, 1400, 2_000_000)
        with iperf(lab, "a", "b"), inside(lab["a"], *flood) as sender:
            sender.result("ready")
            share = _compare_stopped(lab, pid)
            sender.close_input()
        labs.report(f"throughput with a stopped neighbour that is waited for: {share:.3f}")
        assert share < LEAST
