# SPDX-License-Identifier: Apache-2.0
"""The journal: what a lab made that has a name on the host, written down before it is made.

After a crash `mint gc` removes what is written here and nothing else: never by a name pattern,
never a process whose start time differs from the one recorded (a pid may be somebody else's by
now). One JSON object a line; a half-written last line is ignored: what it would have named was
not made yet.

==========  =======================================================================
``lab``     the lab's id, and the boot in which it was made
``process`` ``pid`` and ``start`` (field 22 of ``/proc/PID/stat``), written right
            after the start: a worker that nobody talks to ends by itself
``cgroup``  ``path`` of a cgroup, below which nothing else lives
``cgroup-control``  ``path``, ``added``: controllers that a parent was made to delegate
==========  =======================================================================
"""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mint_vni.lab.process import Process


def boot_id() -> str:
    """This boot's random id: pids recorded in another one mean nothing."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def is_of_this_boot(entries: Iterable[dict[str, Any]]) -> bool:
    """Whether the pids of a journal mean the processes that it was written about."""
    return any(e["kind"] == "lab" and e.get("boot") == boot_id() for e in entries)


def workers(entries: Iterable[dict[str, Any]]) -> dict[str, list[Process]]:
    """The workers that still run, by node, the newest first."""
    found: dict[str, list[Process]] = {}
    for entry in entries:
        what, _, node = str(entry.get("what")).partition(" ")
        if entry["kind"] == "process" and what == "worker":
            process = Process(int(entry["pid"]), int(entry["start"]))
            if process.alive():
                found.setdefault(node, []).insert(0, process)
    return found


class Journal:
    """Appends to a lab's journal; may be used by several threads."""

    def __init__(self, path: Path) -> None:
        """Open for appending; creates the file."""
        self._path = path
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._lock = threading.Lock()

    def write(self, kind: str, entry: dict[str, Any]) -> None:
        """Record one thing, durably as far as a tmpfs goes, before it is made.

        Raises:
            OSError: the disk is full, say; nothing was recorded, so nothing may be made.
        """
        line = (json.dumps({"kind": kind, **entry}) + "\n").encode()
        with self._lock:
            size = os.fstat(self._fd).st_size
            if os.write(self._fd, line) < len(line):
                os.ftruncate(self._fd, size)  # half a line would spoil the next one
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


def read(path: Path) -> list[dict[str, Any]]:
    """All entries, oldest first; what cannot be read is left out."""
    entries = []
    try:
        lines = path.read_text().splitlines()
    except (FileNotFoundError, UnicodeDecodeError):
        return []
    for line in lines:
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(entry, dict) and isinstance(entry.get("kind"), str):
            entries.append(entry)
    return entries
