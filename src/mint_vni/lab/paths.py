# SPDX-License-Identifier: Apache-2.0
"""Where labs live on disk: one directory a lab below ``/run/mint`` (a tmpfs: a reboot clears it).

::

    /run/mint/LAB/          0700, made by the one `mint up` that wins
        plan.json           what was asked for
        state.json          what was made: the lab's id, processes, nodes (rewritten atomically)
        journal             what has a name on the host, written down before it is made
        adopt.lock          held by who starts a supervisor, or removes the lab
        supervisor.sock     commands
        w-NODE.sock         each worker's control socket
        nodes/NODE/         what the node kind keeps: keys, generated files
        log/                supervisor.log, NODE.worker.log
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mint_vni.errors import LabStateError, PlatformError

#: Overridden by the tests, so that they never meet a user's labs.
RUN_DIR = Path(os.environ.get("MINT_RUN_DIR", "/run/mint"))


LAB_MODE = 0o700
_ADDRESS_BYTES = 107  # sun_path without its end
#: What is in a lab's directory from the beginning, besides the lock.
FIRST = ("nodes", "log")
#: How the name of one begins that is being made.
NEW = ".new-"


def lab_dir(name: str) -> Path:
    """The directory of a lab, whether it exists or not."""
    return RUN_DIR / name


def lab_names() -> list[str]:
    """Names of all labs recorded on this machine, running or not."""
    try:
        return sorted(p.name for p in RUN_DIR.iterdir() if (p / "journal").exists())
    except FileNotFoundError:
        return []
    except PermissionError:
        raise PlatformError(
            f"{RUN_DIR} belongs to root; run mint as root, for instance with sudo"
        ) from None


def require_room(name: str, nodes: Iterable[str]) -> None:
    """Look whether the addresses of a lab's sockets are short enough.

    Args:
        name: the lab's.
        nodes: names of its nodes.

    Raises:
        PlatformError: they are not.
    """
    sockets = ["supervisor.sock", *(f"w-{node}.sock" for node in nodes)]
    longest = max(
        (lab_dir(name) / file for file in sockets), key=lambda path: len(os.fsencode(path))
    )
    if len(os.fsencode(longest)) > _ADDRESS_BYTES:
        raise PlatformError(
            f"{longest} is too long for a socket's name (more than {_ADDRESS_BYTES} bytes);"
            " set MINT_RUN_DIR to a directory with a shorter one"
        )


def claim(name: str) -> Path:
    """Make a lab's directory; whoever succeeds owns the name.

    Raises:
        LabStateError: the name is taken.
        PlatformError: no permission.
    """
    path, new = lab_dir(name), lab_dir(f"{NEW}{os.getpid()}-{name}")
    taken = LabStateError(
        f"lab {name} is already up; take it down with: mint down {name} (after a crash: mint gc)"
    )
    if path.exists():
        raise taken
    try:
        _prepare(new)
        new.rename(path)  # fails if there is one by now
    except PermissionError:
        raise PlatformError(
            f"no permission to create {path}; run mint as root, for instance with sudo"
        ) from None
    except OSError as error:
        shutil.rmtree(new, ignore_errors=True)
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise taken from None
        raise
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    return path


def _prepare(new: Path) -> None:
    """Make a lab's directory with what is in it at first."""
    while True:
        RUN_DIR.mkdir(mode=0o711, exist_ok=True)
        try:
            new.mkdir(mode=LAB_MODE)
            break
        except FileNotFoundError:  # the last lab went, and took the directory along
            continue
    for part in FIRST:
        (new / part).mkdir(mode=0o700)
    (new / "adopt.lock").touch(mode=0o600)


def write_json(path: Path, data: Any) -> None:
    """Replace a JSON file in one step: readers see the old or the new one, never a part.

    Raises:
        OSError: the disk is full, say; the old one is still there.
    """
    temporary = path.with_name(path.name + ".new")
    try:
        temporary.write_text(json.dumps(data, indent=1))
        temporary.rename(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def read_json(path: Path) -> Any:
    """Read a JSON file that :func:`write_json` wrote; None when there is none."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
