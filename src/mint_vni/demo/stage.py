# SPDX-License-Identifier: Apache-2.0
"""What both acts of the demonstration share: printing, checking, and looking for what is left."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from mint_vni.errors import NodeError
from mint_vni.lab import Lab
from mint_vni.lab.paths import lab_dir
from mint_vni.lab.process import Process
from mint_vni.nodes.proc import process_start_time

out = Console(highlight=False, width=None if sys.stdout.isatty() else 100)


def cpus() -> tuple[int, int]:
    """Two CPUs, one a node as in the paper; the same twice where there is only one."""
    allowed = sorted(os.sched_getaffinity(0))
    return allowed[0], allowed[min(1, len(allowed) - 1)]


def address(lab: Lab, name: str) -> str:
    """A node's IPv4 address."""
    node = next(n for n in lab.status()["nodes"] if n["name"] == name)
    return str(node["ipv4"]).partition("/")[0]


def demand(holds: bool, otherwise: str) -> None:
    """End the demonstration unless it shows what it promises."""
    if not holds:
        raise NodeError(f"the demonstration failed: {otherwise}")


def step(text: str) -> None:
    """Print one line."""
    out.print(f"  {text}", markup=False)


def host() -> set[str]:
    """What has a name on the host and is nobody's in particular: interfaces and mounts."""
    links = {f"interface {p.name}" for p in Path("/sys/class/net").iterdir()}
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    return links | {f"mount {line.split()[4]}" for line in mounts}


class Belongings:
    """What a lab has on the host, to be looked for when it is down."""

    def __init__(self, lab: Lab) -> None:
        """Note it while the lab is up."""
        status = lab.status()
        self._directory = lab_dir(lab.name)
        self._id = status["id"]
        pids = [status["supervisor"]["pid"], *(n["pid"] for n in status["nodes"])]
        pids += [port["worker"]["pid"] for port in status["ports"]]
        self._processes = [Process(pid, process_start_time(pid) or 0) for pid in pids]

    def left(self) -> set[str]:
        """What is still there."""
        groups = {f"control group {p}" for p in Path("/sys/fs/cgroup").rglob(f"*{self._id}*")}
        processes = {f"process {p.pid}" for p in self._processes if p.alive()}
        files = {f"files {self._directory}"} if self._directory.exists() else set()
        return groups | processes | files


def act(title: str, lab: dict[str, Any], play: Callable[[Lab], None]) -> None:
    """Bring a lab up, play, take it down and look for what is left of it."""
    before = host()
    begin = time.monotonic()
    out.rule(f"[bold]{title}")
    with Lab.up(lab, lambda text: step(f"mint up: {text}")) as running:
        step(f"ready after {time.monotonic() - begin:.2f} s")
        belongings = Belongings(running)
        play(running)
        step("mint down")
    left = (host() - before) | belongings.left()
    demand(not left, f"left behind: {sorted(left)}")
    step("nothing is left: no interface, process, mount, control group or file")
