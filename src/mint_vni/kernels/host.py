# SPDX-License-Identifier: Apache-2.0
"""The host's programs, and what identifies this machine to what is remembered about it.

`mint_vni.nodes` is above this package, so its search for programs is not used here.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from functools import cache
from pathlib import Path

from mint_vni.errors import PlatformError

_STANDARD = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
_DEADLINE = 10.0


def which(name: str) -> str | None:
    """A program's path, the administrator's directories included; None if it is not there."""
    words = [word for word in os.environ.get("PATH", "").split(os.pathsep) if word]
    return shutil.which(name, path=os.pathsep.join(dict.fromkeys([*words, *_STANDARD])))


def beside_python(name: str) -> str | None:
    """A program that came with a Python package, else as `which`."""
    own = Path(sysconfig.get_path("scripts"), name)
    return str(own) if os.access(own, os.X_OK) else which(name)


def need(name: str, package: str) -> str:
    """A program's path.

    Args:
        name: The program.
        package: The Debian package that brings it.

    Raises:
        PlatformError: It is not installed.
    """
    path = which(name)
    if path is None:
        raise PlatformError(f"{name} is not installed; run 'apt-get install {package}'")
    return path


def first_line(argv: list[str]) -> str:
    """The first line that a program prints; empty if it fails or takes longer than 10 s."""
    try:
        done = subprocess.run(
            argv, capture_output=True, stdin=subprocess.DEVNULL, timeout=_DEADLINE, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return (done.stdout.decode(errors="replace").splitlines() or [""])[0].strip()


@cache
def cpu() -> str:
    """The CPU's model and abilities as /proc/cpuinfo has them; empty where it cannot be read."""
    wanted = ("vendor_id", "cpu family", "model", "model name", "stepping", "flags")
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return ""
    first = lines[: lines.index("")] if "" in lines else lines
    pairs = (line.partition(":") for line in first)
    return "\n".join(
        f"{name.strip()}: {value.strip()}" for name, _, value in pairs if name.strip() in wanted
    )


@cache
def boot_id() -> str:
    """A name for the time since this machine's last boot; empty where it cannot be read."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def identity(path: str | Path) -> list[object]:
    """What changes when a file is replaced; its path alone if it cannot be looked at."""
    try:
        status = os.stat(path)
    except OSError:
        return [str(path)]
    return [str(path), status.st_ino, status.st_size, status.st_mtime_ns]
