# SPDX-License-Identifier: Apache-2.0
"""Where labs live on disk: one directory a lab below ``/run/mint`` (a tmpfs: a reboot clears it).

::

    /run/mint/LAB/          0700, made by the one `mint up` that wins
        plan.json           what was asked for
        state.json          what was made: the lab's id, processes, nodes (rewritten atomically)
        journal             what has a name on the host, written down before it is made
        supervisor.sock     commands
        w-NODE.sock         each worker's control socket
        nodes/NODE/         what the node kind keeps: keys, generated files
        log/                supervisor.log, NODE.worker.log
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from mint_vni.errors import LabStateError, PlatformError

#: Overridden by the tests, so that they never meet a user's labs.
RUN_DIR = Path(os.environ.get("MINT_RUN_DIR", "/run/mint"))


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


def claim(name: str) -> Path:
    """Make a lab's directory; whoever succeeds owns the name.

    Raises:
        LabStateError: the name is taken.
        PlatformError: no permission.
    """
    path = lab_dir(name)
    try:
        try:
            RUN_DIR.mkdir(mode=0o711, exist_ok=True)
            path.mkdir(mode=0o700)
        except FileNotFoundError:  # the last lab went, and took it along
            RUN_DIR.mkdir(mode=0o711, exist_ok=True)
            path.mkdir(mode=0o700)
    except FileExistsError:
        raise LabStateError(
            f"lab {name} is already up; take it down with: mint down {name}"
            " (after a crash: mint gc)"
        ) from None
    except PermissionError:
        raise PlatformError(
            f"no permission to create {path}; run mint as root, for instance with sudo"
        ) from None
    try:
        (path / "nodes").mkdir(mode=0o700)
        (path / "log").mkdir(mode=0o700)
    except BaseException:
        shutil.rmtree(path, ignore_errors=True)
        raise
    return path


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
