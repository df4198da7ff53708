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

import json
import os
import threading
from pathlib import Path
from typing import Any


def boot_id() -> str:
    """This boot's random id: pids recorded in another one mean nothing."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


class Journal:
    """Appends to a lab's journal; may be used by several threads."""

    def __init__(self, path: Path) -> None:
        """Open for appending; creates the file."""
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._lock = threading.Lock()

    def write(self, kind: str, entry: dict[str, Any]) -> None:
        """Record one thing, durably as far as a tmpfs goes, before it is made."""
        line = json.dumps({"kind": kind, **entry}) + "\n"
        with self._lock:
            os.write(self._fd, line.encode())

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
