# SPDX-License-Identifier: Apache-2.0
"""What the tests of labs of several kinds share: which kinds can boot here, and what guests need."""

from __future__ import annotations

import functools
import subprocess
import time
from typing import Any

import pytest

import labs
from labs import node_status, wait_for
from mint_vni import kernels
from mint_vni.errors import MintError, NodeError
from mint_vni.lab import Lab

#: How a node of each kind is written in the tests: small, so that several run side by side.
SMALL: dict[str, dict[str, Any]] = {
    "netns": {"kind": "netns"},
    "uml": {"kind": "uml", "memory": "128M"},
    "qemu": {"kind": "qemu", "memory": "256M"},
}


@functools.cache
def why_not(kind: str) -> str | None:
    """Why a guest of this kind can't boot here."""
    if kind not in kernels.KINDS:
        return None
    try:
        kernels.find(kind)
    except MintError as error:
        return str(error)
    return None


def demand(*kinds: str) -> None:
    """Skip the calling test, with the reason, where a kind can't boot."""
    for kind in kinds:
        reason = why_not(kind)
        if reason:
            pytest.skip(f"kind {kind}: {reason}")


def boots(lab: Lab, node: str) -> int:
    """How often the front end of a guest has connected."""
    return int(node_status(lab, node)["guest"]["connections"])


def wait_up(lab: Lab, node: str, since: float) -> None:
    """Wait until a node that was down answers by its exec channel, booted after `since`."""

    def booted() -> bool:
        try:
            done = lab[node].run(["cat", "/proc/uptime"], timeout=20)
        except (NodeError, subprocess.SubprocessError):
            return False
        return float(done.stdout.split()[0]) < time.monotonic() - since

    wait_for(f"{node} is up again", booted, timeout=40)


def reaches(lab: Lab, src: str, dst: str) -> None:
    """Wait until one node's ping is answered by another."""
    target = labs.address(lab, dst)
    argv = ["ping", "-n", "-q", "-c", "1", "-W", "1", target]
    wait_for(
        f"{src} reaches {dst}",
        lambda: lab[src].run(argv, check=False, timeout=20).returncode == 0,
        timeout=30,
    )


def logs_in(lab: Lab, src: str, dst: str) -> None:
    """Wait until one node's ssh logs into another, whose sshd starts last when it boots."""
    argv = ["ssh", dst, "hostname"]
    wait_for(
        f"{src} logs into {dst}",
        lambda: lab[src].run(argv, check=False, timeout=30).stdout == f"{dst}\n",
        timeout=30,
    )
