# SPDX-License-Identifier: Apache-2.0
"""What a kernel, a program beside it and a probe boot are."""

from __future__ import annotations

import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

Kind = Literal["uml", "qemu"]
Method = Literal["uml", "kvm", "tcg"]

KINDS: tuple[Kind, ...] = ("uml", "qemu")
#: How a kernel of each kind can be booted, the better way first.
METHODS: dict[Kind, tuple[Method, ...]] = {"uml": ("uml",), "qemu": ("kvm", "tcg")}


@dataclass(frozen=True)
class Program:
    """A program that may need a certain working directory to start.

    Programs from the cache bring their own C library; their ELF interpreter and run path are
    relative, so that they start wherever the cache lies, also for a user who can't search the
    directories above it (a guest's own user id below a home of mode 0700): the working directory is
    entered before privileges are dropped.

    Attributes:
        path: The executable.
        directory: Start it with this working directory; None where any will do.
        version: As its package or itself says; empty if unknown.
        origin: Where it came from, for people.
    """

    path: Path
    directory: Path | None
    version: str
    origin: str

    @property
    def argv0(self) -> str:
        """What to execute from `directory`: ``./virtiofsd``, or the whole path where there is none."""
        return str(self.path) if self.directory is None else f"./{self.path.name}"


@dataclass(frozen=True)
class Kernel:
    """A kernel that a node can boot.

    Attributes:
        kind: The kind of nodes that it is for.
        version: Of its package, ``7.2um1``; of the directory it lies in if put there by hand.
        release: What ``uname -r`` prints in it; its modules' directory has this name.
        image: The executable (uml), or the ``vmlinuz`` (qemu).
        modules: ``lib/modules/RELEASE``; may be absent if it was put there by hand without.
        directory: A User-Mode Linux is started with this working directory, see `Program`; None
            where any will do.
        origin: Where it came from, for people.
    """

    kind: Kind
    version: str
    release: str
    image: Path
    modules: Path
    directory: Path | None
    origin: str

    @property
    def argv0(self) -> str:
        """What to execute from `directory` for kind uml; see `Program.argv0`."""
        return str(self.image) if self.directory is None else f"./{self.image.name}"

    @property
    def order(self) -> tuple[tuple[int, ...], str]:
        """Sorts kernels of one kind by age: the numbers in the release, then the version."""
        return tuple(int(part) for part in re.findall(r"\d+", self.release)), self.version

    def size(self) -> int:
        """Bytes on disk of the image and the modules."""
        files = [self.image]
        for where, _, names in os.walk(self.modules):
            files += [Path(where, name) for name in names]
        return sum(file.lstat().st_size for file in files if file.exists())


@dataclass(frozen=True)
class Probe:
    """What a probe boot showed.

    Attributes:
        ok: It reached its init, which said so.
        method: How it was booted.
        seconds: Until it said so, or until it was given up.
        reason: Why it is not ok, one line for people; empty when it is.
        console: The last lines of its console.
        when: Time of day, ISO 8601 with the zone.
    """

    ok: bool
    method: Method
    seconds: float
    reason: str
    console: tuple[str, ...]
    when: str

    def to_json(self) -> dict[str, Any]:
        """The result as a dictionary for ``json.dumps``."""
        return asdict(self) | {"console": list(self.console)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Probe:
        """What `to_json` gave.

        Raises:
            TypeError: It is something else.
            KeyError: A part is missing.
        """
        return cls(
            ok=bool(data["ok"]),
            method=data["method"],
            seconds=float(data["seconds"]),
            reason=str(data["reason"]),
            console=tuple(str(line) for line in data["console"]),
            when=str(data["when"]),
        )
