# SPDX-License-Identifier: Apache-2.0
"""What a test run that is killed leaves, and how the next one clears it.

Labs write a journal below the run's directory; nodes that tests make without a lab have theirs in
memory, which is gone with the run, so what they journal is also noted here. A run holds a lock on
its directory. A directory whose lock can be had is a dead run's: its labs are taken down, and what
its journals name is removed, as ``mint gc`` does. Directories without such a lock are left alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from mint_vni import nodes
from mint_vni.errors import MintError
from mint_vni.lab.journal import boot_id

_LOCK = "alive.lock"
_KINDS = ("process", "cgroup", "cgroup-control")
_MINT = "from mint_vni.cli import main; raise SystemExit(main())"


def note(lab_id: str, kind: str, data: dict[str, Any]) -> None:
    """Note what a node journals; does nothing outside a test run."""
    base = os.environ.get("MINT_TEST_BASE")
    if base is None:
        return
    line = json.dumps([boot_id(), lab_id, kind, data])
    with Path(base, "nodes.journal").open("a") as file:
        file.write(line + "\n")


def claim(base: Path) -> int:
    """Say that this run is alive, as long as the descriptor is open."""
    fd = os.open(base / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX)
    return fd


def clear_dead_runs() -> None:
    """Remove what runs that were killed have left."""
    for lock in Path(tempfile.gettempdir()).glob(f"mint-test-*/{_LOCK}"):
        with contextlib.suppress(OSError):
            fd = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                clear(lock.parent)
            finally:
                os.close(fd)


def clear(base: Path) -> None:
    """Take down the labs of a run and undo what its nodes journalled, then remove its directory."""
    environment = os.environ | {"MINT_RUN_DIR": str(base / "labs")}
    for verb in ("gc", "down", "gc"):
        names = [path.parent.name for path in base.glob("labs/*/journal")]
        for argv in [[verb, name] for name in names] if verb == "down" else [[verb]] * bool(names):
            command = [sys.executable, "-c", _MINT, *argv]
            subprocess.run(command, env=environment, timeout=90, check=False, capture_output=True)
    with contextlib.suppress(FileNotFoundError):
        _undo((base / "nodes.journal").read_text())
    if not any(base.glob("labs/*/journal")):
        shutil.rmtree(base, ignore_errors=True)


def _undo(journal: str) -> None:
    entries = [json.loads(line) for line in journal.splitlines() if line.endswith("]")]
    for wanted in _KINDS:
        for boot, lab_id, kind, data in entries:
            if kind == wanted and (kind != "process" or boot == boot_id()):
                with contextlib.suppress(MintError, OSError):
                    nodes.undo(kind, data, lab_id, time.monotonic() + 10.0)
