# SPDX-License-Identifier: Apache-2.0
"""Real guests without a lab around them, for the tests of kinds uml and qemu."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

from guest_bench import descendants
from mint_vni import kernels
from mint_vni.errors import MintError
from mint_vni.nodes import Node
from node_bench import MISSING, Bench

KINDS = ("uml", "qemu")
MEMORY = {"uml": 192 << 20, "qemu": 384 << 20}
READY_S = 60.0

_missing: dict[str, str] = {}


def why_not(kind: str) -> str:
    """Why guests of a kind can't be booted here; empty if they can."""
    if kind not in _missing:
        try:
            kernels.find("uml" if kind == "uml" else "qemu")
            if kind == "qemu":
                kernels.virtiofsd()
            _missing[kind] = ""
        except MintError as error:
            _missing[kind] = str(error)
    return _missing[kind]


def need(kind: str) -> None:
    """Skip a test that needs guests of this kind where there can't be any."""
    if os.geteuid() != 0:
        pytest.skip("takes root")
    if MISSING:
        pytest.skip(f"not installed: {', '.join(MISSING)}")
    if why_not(kind):
        pytest.skip(why_not(kind))


def guest(bench: Bench, kind: str, name: str = "a", **changes: Any) -> Node:
    """A guest that has not been started."""
    values: dict[str, Any] = {"kind": kind, "memory": MEMORY[kind], "cpus": ()}
    return bench.node(name, **(values | changes))


def processes(node: Node) -> dict[str, int]:
    """The processes of a guest on the host by what they are."""
    facts = node.describe()
    found = {"agent": facts["agent"][0], "first": node.pid}
    for top in (node.pid, *(pid for pid, _ in facts["helpers"])):
        for pid in descendants(top):
            name = Path(f"/proc/{pid}/comm").read_text().strip()
            found.setdefault(name, pid)
    return found


def status_field(pid: int, name: str) -> str:
    """One line of a process's ``/proc/PID/status``."""
    text = Path(f"/proc/{pid}/status").read_text()
    match = re.search(rf"^{name}:[ \t]*(.*?)[ \t]*$", text, re.MULTILINE)
    assert match, name
    return match[1]
