# SPDX-License-Identifier: Apache-2.0
"""Start, stop, reboot, death and revival of nodes of kinds uml and qemu; and those that never get ready."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fabric_util import descriptors, kinds
from guest_nodes import KINDS, READY_S, guest, need, processes
from mint_vni.errors import NodeError, PlatformError
from mint_vni.nodes import KINDS as NODE_KINDS
from mint_vni.nodes import Node
from mint_vni.nodes.cgroup import CgroupHost
from mint_vni.nodes.guest.agent_client import AgentClient
from mint_vni.nodes.guest.initramfs import Initramfs
from mint_vni.nodes.guest.node import GuestNode
from mint_vni.nodes.proc import process_start_time
from node_bench import Bench, make_bench, out, run, soon, until

STEPS = ("cgroup", "agent", "files", "helpers", "spawn", "process", "namespaces", "journal", "boot")


@pytest.fixture(autouse=True)
def _takes_guests() -> None:
    need("uml")


bench = pytest.fixture(make_bench)


def agent(node: Node) -> AgentClient:
    return AgentClient("a", node.context.state_dir)


def asked(node: Node) -> dict[str, Any]:
    return agent(node).request("status")


@pytest.fixture(params=KINDS)
def node(request: pytest.FixtureRequest, bench: Bench) -> Iterator[Node]:
    """A guest that is ready."""
    need(request.param)
    made = guest(bench, request.param)
    made.start()
    try:
        made.wait_ready(soon(READY_S))
        yield made
    finally:
        made.stop(soon())
    assert not list(made.context.state_dir.iterdir())


def test_life(node: Node) -> None:
    """Reboot from inside, death and revival, a panic, power off from inside: one guest, many boots."""
    first = processes(node)
    out(node, "touch", "/tmp/mark")
    connections = asked(node)["connections"]

    run(node, "reboot")
    until("it goes down", lambda: not asked(node)["ready"])
    node.wait_ready(soon(READY_S))
    assert run(node, "ls", "/tmp/mark").returncode != 0, "it booted anew"
    assert node.alive() and processes(node)["agent"] == first["agent"]
    assert node.pid == first["first"], "the same process"
    if node.kind == "uml":
        assert asked(node)["connections"] == connections + 1

    os.kill(node.pid, signal.SIGKILL)
    until("its end is seen", lambda: not node.alive())
    assert node.status()["state"] == "failed"
    with pytest.raises(NodeError, match="node a is not ready: it ended while it booted"):
        node.wait_ready(soon())
    node.revive()
    node.wait_ready(soon(READY_S))
    assert out(node, "hostname") == "a"
    assert node.pid != first["first"]
    assert processes(node)["agent"] == first["agent"]
    assert node.status()["state"] == "running"
    assert asked(node)["boots"] == 2

    run(node, "sh", "-c", "echo 1 > /proc/sys/kernel/sysrq; echo c > /proc/sysrq-trigger")
    if node.kind == "uml":
        until("it has ended", lambda: not node.alive())
        node.revive()
    else:
        until("it is reset", lambda: not asked(node)["ready"])
    node.wait_ready(soon(READY_S))
    assert "Kernel panic" in node.logs()["node"]

    run(node, "poweroff")
    until("it has ended", lambda: not node.alive())
    assert asked(node)["bye"] == "power-off"
    said = node.logs()["node"]
    assert "ended by signal" not in said.rpartition("Power down")[2], "in good order"


def test_stop_leaves_nothing(bench: Bench) -> None:
    gc.collect()
    before = descriptors()
    node = guest(bench, "uml")
    node.stop(soon())
    for _ in range(2):
        node.start()
        node.wait_ready(soon(READY_S))
        found = processes(node)
        node.stop(soon())
        assert bench.leftovers() == []
        assert [pid for pid in found.values() if process_start_time(pid) is not None] == []
    assert not node.alive()
    assert node.status()["state"] == "stopped"
    assert not list(node.context.state_dir.iterdir())
    assert "Linux version" in node.logs()["node"], "what was said outlives the node"
    assert "Power down" in node.logs()["node"], "it was asked to, and did"
    until("descriptors are closed", lambda: not kinds(descriptors()) - kinds(before))
    mounts = Path("/proc/self/mountinfo").read_text()
    assert str(bench.directory) not in mounts


def test_stop_of_a_guest_that_does_not_react(bench: Bench) -> None:
    node = guest(bench, "uml")
    node.start()
    try:
        node.wait_ready(soon(READY_S))
        os.kill(processes(node)["linux"], signal.SIGSTOP)
    finally:
        start = time.monotonic()
        node.stop(soon())
    assert time.monotonic() - start < 6
    assert bench.leftovers() == []


class Injected(Exception):
    """A fault."""


@pytest.mark.parametrize("step", STEPS)
def test_a_fault_after_any_step_undoes_all(bench: Bench, step: str) -> None:
    reached: list[str] = []

    def fail(name: str) -> None:
        reached.append(name)
        if name == step:
            raise Injected(name)

    bench.checkpoint = fail
    gc.collect()
    before = descriptors()
    node = guest(bench, "uml")
    with pytest.raises(Injected):
        node.start()
    assert reached == list(STEPS[: STEPS.index(step) + 1])
    assert node.status()["state"] == "failed"
    assert bench.leftovers() == []
    assert not list(node.context.state_dir.iterdir())
    until("descriptors are closed", lambda: not kinds(descriptors()) - kinds(before))


_SUPERVISOR = """
import json, os, sys
sys.path[:0] = {path!r}
from pathlib import Path
from node_bench import Bench
from guest_nodes import guest
bench = Bench(Path({directory!r}), names=("a",))
print("lab", bench.lab_id, flush=True)
bench.note = lambda kind, data: print(json.dumps([kind, data]), flush=True)
bench.checkpoint = lambda step: (print("step", step, flush=True), step == {step!r} and os.kill(os.getpid(), 9))
guest(bench, "uml").start()
"""


@pytest.mark.skipif(CgroupHost.detect().memory is None, reason="there are no control groups here")
@pytest.mark.parametrize("step", ["agent", "process", "namespaces"])
def test_death_of_the_supervisor_leaves_only_what_is_journalled(
    bench: Bench, tmp_path: Path, step: str
) -> None:
    code = _SUPERVISOR.format(path=sys.path[:3], directory=str(tmp_path / "lab"), step=step)
    (tmp_path / "lab").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == -signal.SIGKILL, done
    entries = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    bench.journal += [(kind, data) for kind, data in entries]
    journalled = {str(data["pid"]) for kind, data in entries if kind == "process"}
    bench.lab_id = done.stdout.split()[1]  # the bench undoes what was journalled for it
    groups = [Path(data["path"]) for kind, data in entries if kind == "cgroup"]
    assert groups, "they tell who is left"

    def unknown() -> set[str]:
        """Processes in the node's control groups that nobody knows of."""
        members = {pid for g in groups for pid in (g / "cgroup.procs").read_text().split()}
        return members - journalled

    until("what nobody knows of has ended", lambda: not unknown())


def test_death_of_the_agent_is_the_nodes(bench: Bench) -> None:
    node = guest(bench, "uml")
    node.start()
    try:
        node.wait_ready(soon(READY_S))
        os.kill(processes(node)["agent"], signal.SIGKILL)
        until("it is seen", lambda: not node.alive())
        assert node.status()["state"] == "failed"
        with pytest.raises(NodeError, match="its agent has ended"):
            node.revive()
        with pytest.raises(NodeError, match="agent"):
            node.wait_ready(soon())
        facts = json.loads(json.dumps(node.describe()))
        adopted = NODE_KINDS["uml"].adopt(node.plan, node.context, facts, None)
        assert adopted.status()["state"] == "failed"
        assert not adopted.servable()
        assert process_start_time(node.pid) == node.start_time
        adopted.stop(soon())
        assert process_start_time(node.pid) is None
    finally:
        node.stop(soon())


# ------------------------------------------------------------------ guests that do not get ready


def boots_into(node: Node, init: bytes) -> None:
    """Have a guest boot into another program than its own."""
    assert isinstance(node, GuestNode)

    def write() -> None:
        archive = Initramfs()
        archive.device("/dev/console", 0o600, 5, 1)
        archive.file("/init", init, 0o755)
        node._write_private("initramfs", archive.archive())

    node._write_files = write  # type: ignore[method-assign]


@pytest.mark.parametrize("kind", KINDS)
def test_a_guest_that_panics(bench: Bench, kind: str) -> None:
    need(kind)
    node = guest(bench, kind)
    boots_into(node, b"\x7fELF")
    node.start()
    try:
        start = time.monotonic()
        with pytest.raises(NodeError, match=r"node a is not ready: .*No working init found"):
            node.wait_ready(soon(READY_S))
        assert time.monotonic() - start < 20, "at once, not at the deadline"
    finally:
        node.stop(soon())


def test_a_guest_that_never_gets_ready(bench: Bench) -> None:
    node = guest(bench, "uml")
    first = Path(sys.modules["mint_vni"].__file__ or "").parent / "_bin" / "mint-first"
    assert first.exists()
    node.start()
    try:
        os.kill(processes(node)["linux"], signal.SIGSTOP)
        start = time.monotonic()
        with pytest.raises(NodeError, match="node a is not ready in time: its kernel did not boot"):
            node.wait_ready(soon(1.0))
        assert 0.9 < time.monotonic() - start < 4
    finally:
        node.stop(soon())


def test_no_kernel(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINT_CACHE_DIR", str(tmp_path / "cache"))
    with pytest.raises(PlatformError, match="run 'mint kernel"):
        guest(bench, "uml").start()
    assert bench.journal == [], "nothing was made"


@pytest.mark.parametrize("kind", KINDS)
def test_a_kernel_that_is_not_there(bench: Bench, kind: str) -> None:
    need(kind)
    with pytest.raises(
        PlatformError, match=rf"node a: there is no kernel 0\.1 for nodes of kind {kind}"
    ):
        guest(bench, kind, kernel="0.1").start()
    assert bench.journal == []


def test_a_root_that_is_not_there(bench: Bench, tmp_path: Path) -> None:
    with pytest.raises(NodeError, match="is no directory; create it, or write 'root: host'"):
        guest(bench, "uml", root=str(tmp_path / "none")).start()
    assert bench.journal == []


def test_seccomp_has_to_be_asked_for(bench: Bench) -> None:
    node = guest(bench, "uml", trusted_userland=True)
    node.start()
    try:
        node.wait_ready(soon(READY_S))
        assert node.status()["guest"]["userland"] == "seccomp"
        assert "seccomp=on" in Path(f"/proc/{processes(node)['linux']}/cmdline").read_text()
        assert out(node, "uname", "-n") == "a"
    finally:
        node.stop(soon())
