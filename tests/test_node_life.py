# SPDX-License-Identifier: Apache-2.0
"""Start, stop, death and adoption of nodes of kind netns; faults and crashes in between."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fabric_util import descriptors, kinds
from mint_vni import nodes
from mint_vni.errors import NodeError, PlatformError
from mint_vni.nodes import KINDS, SshMaterial
from mint_vni.nodes.cgroup import CgroupHost
from mint_vni.nodes.proc import process_start_time
from node_bench import (
    NEEDS,
    STEPS,
    Bench,
    inside,
    link,
    links,
    make_bench,
    out,
    run,
    soon,
    ssh,
    until,
)

pytestmark = NEEDS
bench = pytest.fixture(make_bench)


def more_descriptors(before: set[str]) -> Counter[str]:
    """What is open and was not, by kind. Other threads' files go within seconds, a leak stays."""
    deadline = time.monotonic() + 5
    while (more := kinds(descriptors()) - kinds(before)) and time.monotonic() < deadline:
        time.sleep(0.01)
    return more


def test_stop_leaves_nothing(bench: Bench) -> None:
    before = descriptors()
    sysctls = Path("/proc/sys/net/ipv6/conf/all/accept_dad").read_text()
    files = {
        path: path.stat().st_mtime_ns
        for path in map(
            Path, ("/etc/hosts", "/etc/shadow", "/etc/ssh", "/var/log", "/etc/hostname")
        )
        if path.exists()
    }
    node = bench.started()
    inode = link(f"/proc/{node.pid}/ns/net")
    node.wait_ready(soon())
    process = subprocess.Popen(nodes.exec_argv(node.describe(), ["sleep", "60"]))
    until("it runs", lambda: inside(node, "sleep 60"))
    out(node, "mkdir", "-p", "/tmp/x")
    node.stop(soon())
    process.wait(10)
    assert bench.leftovers() == []
    assert node.status()["state"] == "stopped"
    assert not node.alive()
    assert node.tap_fd is None
    assert not more_descriptors(before)
    assert not [p for p in Path("/proc").glob("[0-9]*/ns/net") if link(p) == inode]
    assert sysctls == Path("/proc/sys/net/ipv6/conf/all/accept_dad").read_text()
    assert files == {path: path.stat().st_mtime_ns for path in files}
    assert "Server listening" in node.logs()["sshd"], "what was said outlives the node"
    node.stop(soon())
    assert {path.name for path in bench.directory.iterdir()} == {"a", "ssh"}
    assert not list((bench.directory / "a").iterdir())


def test_stop_before_start_and_start_again(bench: Bench) -> None:
    node = bench.node()
    node.stop(soon())
    assert not node.alive()
    for _ in range(2):
        node.start()
        node.wait_ready(soon())
        assert out(node, "hostname") == "a"
        node.stop(soon())
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
    before = descriptors()
    node = bench.node()
    with pytest.raises(Injected):
        node.start()
    assert reached == list(STEPS[: STEPS.index(step) + 1])
    assert node.status()["state"] == "failed"
    assert bench.leftovers() == []
    assert node.tap_fd is None
    assert not more_descriptors(before)
    if node.pid:
        assert process_start_time(node.pid) != node.start_time


@pytest.mark.parametrize("kind", ["cgroup", "process"])
def test_what_cannot_be_journalled_is_not_made(bench: Bench, kind: str) -> None:
    context = bench.context("a")

    def full(what: str, data: dict[str, Any]) -> None:
        bench.note(what, data)
        if what == kind:
            raise OSError(28, "No space left on device")

    node = KINDS["netns"](bench.plan("a"), replace(context, journal=full))
    if kind == "cgroup" and context.cgroups == CgroupHost(None, None):
        pytest.skip("this machine has no controllers")
    with pytest.raises(NodeError, match=r"node a|mint-.*-a"):
        node.start()
    assert bench.leftovers() == []


CRASH = """
import json, os, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import test_nodes
lab = test_nodes.Bench(Path({directory!r}), lab_id={lab_id!r})
log = open({journal!r}, "w")
def note(kind, data):
    log.write(json.dumps([kind, data]) + "\\n")
    log.flush()
lab.note = note
def die(step):
    if step == {step!r}:
        print(node.pid, flush=True)
        os.kill(os.getpid(), 9)
lab.checkpoint = die
node = lab.node()
node.start()
"""


@pytest.mark.parametrize("step", STEPS)
def test_a_killed_supervisor_leaves_what_the_journal_says(bench: Bench, step: str) -> None:
    journal = bench.directory / "journal"
    code = CRASH.format(
        tests=str(Path(__file__).parent),
        directory=str(bench.directory / "crash"),
        lab_id=bench.lab_id,
        journal=str(journal),
        step=step,
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment,
        check=False,
    )
    assert done.returncode == -9, done.stderr
    bench.journal = [tuple(json.loads(line)) for line in journal.read_text().splitlines()]
    pid = int(done.stdout)
    if step == "sshd":
        assert process_start_time(pid) is not None, "a started node needs no supervisor"
    elif pid:
        until("a half-made node ends by itself", lambda: process_start_time(pid) is None)
    for kind in ("process", "cgroup", "cgroup-control"):
        for entry, data in bench.journal:
            if entry == kind:
                nodes.undo(kind, data, "another", soon())
                nodes.undo(kind, data, bench.lab_id, soon())
    assert bench.leftovers() == []
    assert process_start_time(pid) is None or not pid


def test_undo_spares_a_process_that_only_has_the_pid(bench: Bench) -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        start = process_start_time(process.pid)
        assert start is not None
        nodes.undo("process", {"pid": process.pid, "start": start - 1}, bench.lab_id, soon())
        assert process.poll() is None
        nodes.undo("process", {"pid": process.pid, "start": start}, bench.lab_id, soon())
        process.wait(5)


def test_adoption(bench: Bench) -> None:
    node = bench.started()
    node.wait_ready(soon())
    facts = json.loads(json.dumps(node.describe()))
    assert node.tap_fd is not None
    tap, status = os.dup(node.tap_fd), node.status()
    os.close(node.tap_fd)
    pid = node.pid
    del node
    adopted = KINDS["netns"].adopt(bench.plan("a"), bench.context("a"), facts, tap)
    try:
        assert adopted.alive()
        assert adopted.tap_fd == tap
        assert {**adopted.status(), "memory_used": 0} == {**status, "memory_used": 0}
        assert adopted.describe() == facts
        adopted.wait_ready(soon())
        assert "Server listening" in adopted.logs()["sshd"]
        assert out(adopted, "hostname") == "a"
        assert set(links(adopted)) == {"lo", "vni0"}
    finally:
        adopted.stop(soon())
    assert process_start_time(pid) is None
    ended = KINDS["netns"].adopt(bench.plan("a"), bench.context("a"), facts, None)
    assert not ended.alive()
    assert ended.status()["state"] == "failed"
    assert ended.logs() == {"node": "", "sshd": ""}
    ended.stop(soon())
    for argv in (nodes.exec_argv, nodes.ssh_argv):
        with pytest.raises(NodeError, match="node a has ended"):
            argv(facts, ["true"])


def test_adoption_looks_at_the_start_time(bench: Bench) -> None:
    node = bench.started()
    try:
        facts = {**node.describe(), "start_time": node.start_time - 1}
        other = KINDS["netns"].adopt(bench.plan("a"), bench.context("a"), facts, None)
        assert not other.alive()
        assert node.alive()
    finally:
        node.stop(soon())


def test_a_killed_node_is_seen(bench: Bench) -> None:
    node = bench.started()
    os.kill(node.pid, signal.SIGKILL)
    until("it is seen", lambda: not node.alive())
    assert node.status()["state"] == "failed"
    with pytest.raises(NodeError, match="node a has ended"):
        node.wait_ready(soon())
    node.stop(soon())


def test_a_broken_sshd_is_told_at_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    files = SshMaterial.node_files

    def broken(self: SshMaterial, node: str) -> dict[str, tuple[int, str]]:
        return files(self, node) | {"/etc/ssh/sshd_config": (0o644, "Nonsense yes\n")}

    monkeypatch.setattr(SshMaterial, "node_files", broken)
    node = bench.started()
    try:
        began = time.monotonic()
        with pytest.raises(NodeError, match=r"node a is not ready: its sshd ended.*Nonsense"):
            node.wait_ready(soon(30))
        assert time.monotonic() - began < 10
    finally:
        node.stop(soon())


def test_not_ready_in_time(bench: Bench) -> None:
    node = bench.started()
    try:
        node.wait_ready(soon())
        out(node, "pkill", "-STOP", "sshd")
        with pytest.raises(NodeError, match="its sshd does not answer"):
            node.wait_ready(soon(0.3))
    finally:
        node.stop(soon())


def test_errors_of_the_script_are_told(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    node = bench.node()
    monkeypatch.setattr("mint_vni.nodes.netns._TMPFS_BYTES", -5)
    with pytest.raises(NodeError, match=r"node a could not be started: cannot mount tmpfs"):
        node.start()
    assert bench.leftovers() == []


def test_a_cpu_that_is_not_there(bench: Bench) -> None:
    node = bench.node(cpus=(0, 4000))
    with pytest.raises(NodeError, match=r"4000|could not be started"):
        node.start()
    assert bench.leftovers() == []


def test_too_little_memory_to_start(bench: Bench) -> None:
    if bench.context("a").cgroups.memory is None:
        pytest.skip("this machine has no memory controller")
    node = bench.node(memory=128 << 10)
    with pytest.raises(NodeError, match=r"node a could not be started.*too small"):
        node.start()
    assert bench.leftovers() == []


def test_an_address_that_cannot_be(bench: Bench) -> None:
    node = bench.node(mtu=1000)
    with pytest.raises(NodeError, match=r"node a vni0: cannot add the address fd99::1/64"):
        node.start()
    assert bench.leftovers() == []


def test_no_ipv6(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mint_vni.nodes.netns._ACCEPT_DAD", "/proc/sys/net/none/{}")
    with pytest.raises(PlatformError, match="has no IPv6"):
        bench.node().start()
    node = bench.started(ipv6=None)
    node.stop(soon())


def test_a_missing_program_is_named(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    with pytest.raises(PlatformError, match="apt-get install openssh-server"):
        bench.node().start()
    assert bench.leftovers() == []


def test_sshd_cannot_fill_the_host_with_its_log(bench: Bench) -> None:
    node = bench.started()
    try:
        node.wait_ready(soon())
        # A peer that makes sshd write: here, the writer is next to it.
        fill = "pid=$(pgrep -o -x sshd); i=0; while echo $i-line-of-a-log-that-grows; do i=$((i+1)); done 1<>/proc/$pid/fd/2"
        run(node, "sh", "-c", fill)
        assert len(node.logs()["sshd"]) <= 256 << 10
        assert ssh(node, "hostname").stdout == "a\n", "a full log stops nobody"
    finally:
        node.stop(soon())


def test_many_at_once(tmp_path: Path) -> None:
    lab = Bench(tmp_path, names=tuple("abcdefgh"))
    made = [lab.node(name) for name in lab.names]
    try:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda node: node.start(), made))
            list(pool.map(lambda node: node.wait_ready(soon()), made))
            names = list(pool.map(lambda node: out(node, "hostname"), made))
        assert names == list(lab.names)
        assert len({node.status()["pid"] for node in made}) == 8
    finally:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda node: node.stop(soon()), made))
    assert lab.leftovers() == []
