# SPDX-License-Identifier: Apache-2.0
"""Nodes without a lab around them, for the tests of nodes; of kind netns unless said otherwise."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import secrets
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

import run_journal
from mint_vni import nodes
from mint_vni.lab.member import agent_uid, guest_uid
from mint_vni.lab.plan import NodePlan
from mint_vni.nodes import KINDS, Node, NodeContext, SshMaterial
from mint_vni.nodes.proc import process_start_time
from mint_vni.nodes.ssh import SshMode

PROGRAMS = ("sshd", "ssh", "ssh-keygen", "nsenter", "setpriv", "ping", "ip")
MISSING = [
    name for name in PROGRAMS if shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin") is None
]

NEEDS = [
    pytest.mark.skipif(os.geteuid() != 0, reason="takes root"),
    pytest.mark.skipif(not Path("/dev/net/tun").exists(), reason="takes /dev/net/tun"),
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
]

# Not this test's own: a virtual environment may be in /tmp, where nodes have something else.
PYTHON = shutil.which("python3", path="/usr/bin:/bin") or sys.executable

STEPS = ("cgroup", "spawn", "process", "tap", "interface", "namespaces", "journal", "sshd")
MEMORY = 192 << 20
NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "uts")


def soon(seconds: float = 10.0) -> float:
    return time.monotonic() + seconds


def until(what: str, condition: Callable[[], Any], seconds: float = 10.0) -> Any:
    """Wait for a state, with a deadline."""
    deadline = soon(seconds)
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.005)


@dataclass
class Bench:
    """A lab of nodes without fabric, and what it journalled."""

    directory: Path
    ssh_mode: SshMode = "mesh"
    lab_id: str = field(default_factory=lambda: secrets.token_hex(4))
    names: tuple[str, ...] = ("a", "b")
    journal: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    checkpoint: Callable[[str], None] = lambda _: None

    def __post_init__(self) -> None:
        numbered = list(enumerate(self.names, 1))
        self.hosts = tuple((f"10.99.0.{i}", (n, f"{n}.bench")) for i, n in numbered) + tuple(
            (f"fd99::{i}", (n,)) for i, n in numbered
        )
        self.ssh = SshMaterial(
            self.directory / "ssh", "bench", self.names, self.hosts, self.ssh_mode
        )
        self.ssh.generate()

    def context(self, name: str) -> NodeContext:
        state = self.directory / name
        state.mkdir(mode=0o700, exist_ok=True)
        return NodeContext(
            lab="bench",
            lab_id=self.lab_id,
            hosts=self.hosts,
            state_dir=state,
            ssh=self.ssh,
            journal=self._record,
            checkpoint=self.reach,
            guest_uid=guest_uid(self.lab_id, self.names.index(name)),
            agent_uid=agent_uid(self.lab_id, self.names.index(name)),
        )

    def _record(self, kind: str, data: dict[str, Any]) -> None:
        """Journal something, also where a test run after this one finds it, should this be killed."""
        run_journal.note(self.lab_id, kind, data)
        self.note(kind, data)

    def note(self, kind: str, data: dict[str, Any]) -> None:
        if kind == "cgroup":
            assert not Path(data["path"]).exists()
        self.journal.append((kind, json.loads(json.dumps(data))))

    def reach(self, step: str) -> None:
        self.checkpoint(step)  # looked up now: a test may have replaced it

    def plan(self, name: str, **changes: Any) -> NodePlan:
        number = self.names.index(name)
        plan = NodePlan(
            name=name,
            kind="netns",
            index=number,
            mac=f"02:4d:56:99:00:{number + 1:02x}",
            ipv4=f"10.99.0.{number + 1}/24",
            ipv6=f"fd99::{number + 1}/64",
            cpus=(0,),
            memory=MEMORY,
            interface="vni0",
            bridge=False,
            mtu=1500,
            offload=True,
            poll_us=0,
        )
        return replace(plan, **changes)

    def node(self, name: str = "a", **changes: Any) -> Node:
        plan = self.plan(name, **changes)
        return KINDS[plan.kind](plan, self.context(name))

    def started(self, name: str = "a", **changes: Any) -> Node:
        node = self.node(name, **changes)
        node.start()
        return node

    def leftovers(self) -> list[str]:
        """What of this lab can be seen on the host, of groups, processes and mounts."""
        found = [str(path) for path in Path("/sys/fs/cgroup").glob(f"*mint-{self.lab_id}-*")]
        found += [str(path) for path in Path("/sys/fs/cgroup").glob(f"*/mint-{self.lab_id}-*")]
        for kind, data in self.journal:
            if kind == "process" and process_start_time(data["pid"]) == data["start"]:
                found.append(f"process {data['pid']}")
        mounts = Path("/proc/self/mountinfo").read_text()
        return found + re.findall(r".*mint-node.*", mounts)


def make_bench(tmp_path: Path) -> Iterator[Bench]:
    """For a fixture: a lab that is checked to have left nothing."""
    lab = Bench(tmp_path)
    yield lab
    for kind in ("process", "cgroup", "cgroup-control"):
        for entry, data in lab.journal:
            if entry == kind:
                nodes.undo(kind, data, lab.lab_id, soon())
    assert lab.leftovers() == []


def make_pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Node, Node]]:
    """Two ready nodes, for tests that leave them as they are."""
    lab = Bench(tmp_path_factory.mktemp("pair"))
    made = lab.node("a"), lab.node("b", cpus=(), memory=None, mtu=9000, offload=False)
    try:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda node: node.start(), made))
            list(pool.map(lambda node: node.wait_ready(soon()), made))
        yield made
    finally:
        for node in made:
            node.stop(soon())
    assert lab.leftovers() == []


def run(node: Node, *args: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        nodes.exec_argv(node.describe(), args),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        **options,
    )


def out(node: Node, *args: str) -> str:
    done = run(node, *args)
    assert done.returncode == 0, done
    return done.stdout.strip()


def link(path: str | Path) -> str | None:
    """Where a symbolic link in /proc points; None if the process has ended."""
    try:
        return str(Path(path).readlink())
    except OSError:
        return None


def links(node: Node) -> dict[str, Any]:
    return {link["ifname"]: link for link in json.loads(out(node, "ip", "-d", "-j", "address"))}


def inside(node: Node, marker: str) -> bool:
    return run(node, "pgrep", "-f", f"^{marker}").returncode == 0


def ssh(node: Node, *args: str, **options: Any) -> subprocess.CompletedProcess[str]:
    argv = nodes.ssh_argv(node.describe(), args, tty=False)
    return subprocess.run(
        argv,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        stdin=subprocess.DEVNULL,
        **options,
    )


def allowed(pid: int | str) -> str:
    status = Path(f"/proc/{pid}/status").read_text()
    return str(re.findall(r"Cpus_allowed_list:\s*(\S+)", status)[0])


class Terminal:
    """A program on a terminal of its own, as a shell would start it."""

    def __init__(self, argv: list[str]) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execvp(argv[0], argv)
        self.text = ""

    def expect(self, pattern: str) -> re.Match[str]:
        def read() -> re.Match[str] | None:
            if select.select([self.fd], [], [], 0.02)[0]:
                with contextlib.suppress(OSError):  # the other side has gone
                    self.text += os.read(self.fd, 4096).decode()
            return re.search(pattern, self.text)

        match: re.Match[str] = until(f"{pattern!r} on the terminal", read)
        self.text = self.text[match.end() :]
        return match

    def write(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def wait(self) -> int:
        def ended() -> tuple[int, int] | None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            return (pid, status) if pid else None

        status: int = until("it ends", ended)[1]
        os.close(self.fd)
        return os.waitstatus_to_exitcode(status)
