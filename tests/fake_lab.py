# SPDX-License-Identifier: Apache-2.0
"""A Lab class without labs, for the tests of the command line.

Run as a program it is ``mint`` over that class: ``python tests/fake_lab.py up FILE``. The labs that
are up are files in the directory $FAKE_LABS: their names are the labs', their words the nodes'. So a
test can look, from outside, at what a command did, and change things under it.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mint_vni
import status_sample
from mint_vni.cli import main
from mint_vni.errors import LabFileError, LabStateError, NodeError, PlatformError


class FakeNode:
    """A node that runs commands on the spot, with $FAKE_NODE and $FAKE_WAY set."""

    def __init__(self, lab: str, name: str) -> None:
        self.lab = lab
        self.name = name

    def exec_argv(self, args: list[str], *, tty: bool = False) -> list[str]:
        way = f"FAKE_WAY=exec{' on a terminal' if tty else ''}"
        return ["env", f"FAKE_NODE={self.lab}/{self.name}", way, *(args or ["env"])]

    def ssh_argv(self, args: list[str]) -> list[str]:
        return ["env", f"FAKE_NODE={self.lab}/{self.name}", "FAKE_WAY=ssh", *(args or ["env"])]

    def console_argv(self) -> list[str]:
        return ["env", f"FAKE_NODE={self.lab}/{self.name}", "FAKE_WAY=console", "env"]

    def logs(self) -> dict[str, str]:
        told = FakeLab.directory() / "worker.log"
        worker = told.read_text() if told.exists() else ""
        return {"node": "booted\n", "worker": worker, "sshd": "no newline"}


class FakeLab:
    """What the command line knows of ``mint_vni.Lab``."""

    def __init__(self, name: str, nodes: list[str]) -> None:
        self.name = name
        self.nodes = [FakeNode(name, node) for node in nodes]

    def __getitem__(self, name: str) -> FakeNode:
        for node in self.nodes:
            if node.name == name:
                return node
        raise LabStateError(f"lab {self.name} has no node {name}")

    @staticmethod
    def directory() -> Path:
        return Path(os.environ["FAKE_LABS"])

    @classmethod
    def names(cls) -> list[str]:
        return sorted(p.name for p in cls.directory().iterdir() if not p.suffix)

    @classmethod
    def connect(cls, name: str | None = None) -> FakeLab:
        names = cls.names()
        if name is None and len(names) != 1:
            raise LabStateError(f"{len(names)} labs are up; name one")
        if name is not None and name not in names:
            raise LabStateError(f"no lab {name} is up; 'mint up' brings one up")
        name = name or names[0]
        if name == "broken":
            raise KeyError("supervisor")
        return cls(name, (cls.directory() / name).read_text().split())

    @classmethod
    def up(
        cls,
        source: Any,
        progress: Callable[[str], None] | None = None,
        ready: Callable[[FakeLab], None] | None = None,
    ) -> FakeLab:
        name = Path(source).stem
        if name == "bad":
            raise LabFileError("bad.yaml", 7, "node a: cpus: no CPU 9", "choose from 0-1")
        if name == "sick":
            raise NodeError("node a did not get ready;\nlook at 'mint logs a'")
        if name == "bare":
            raise PlatformError("there is no /dev/net/tun; modprobe tun")
        record = cls.directory() / name
        record.write_text("a b")
        try:
            if progress:
                progress("node a is ready")
            while name == "slow":
                time.sleep(0.01)
            lab = cls(name, ["a", "b"])
            if ready:
                ready(lab)
        except BaseException:
            record.unlink()
            raise
        return lab

    def status(self) -> dict[str, Any]:
        if self.name not in self.names():
            raise LabStateError(f"lab {self.name} is not up")
        return status_sample.status(len(self.nodes), self.name)

    def down(self) -> None:
        (self.directory() / self.name).unlink()


if __name__ == "__main__":
    mint_vni.Lab = FakeLab  # type: ignore[misc,assignment]
    sys.exit(main())
