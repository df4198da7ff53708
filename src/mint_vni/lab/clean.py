# SPDX-License-Identifier: Apache-2.0
"""``mint gc``: remove what a crashed run recorded as its own, and nothing else.

A lab is garbage when no supervisor answers for it and it cannot be adopted. What is removed is what
its journal names: processes by pid *and* start time, control groups by path and only if they carry
the lab's id, then the lab's directory. Everything else it had vanished with its processes.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mint_vni.errors import MintError
from mint_vni.lab import journal, paths
from mint_vni.lab.client import Client, is_served, require_root
from mint_vni.lab.process import Process
from mint_vni.nodes import undo

_GIVE_UP_S = 10.0
_YOUNG_S = 1.0  # whoever made a directory locks it at once
_ORDER = ("node", "process", "file", "cgroup", "cgroup-control")
_EARLY = ("adopt.lock", "plan.json", "plan.json.new")  # what is made before the journal
_LASTING = ("file",)  # what a boot leaves: the rest is gone, or another's of the same name


@dataclass
class Cleared:
    """What was done about one lab.

    Attributes:
        lab: its name.
        state: ``running``, ``adopted`` (its supervisor had died; it has a new one), ``removed``,
            ``garbage`` (dry run: it would be removed), ``orphaned`` (dry run: it would get a new
            supervisor) or ``failed``.
        entries: what its journal names.
        problems: what could not be removed, one sentence each.
    """

    lab: str
    state: str
    entries: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """For ``mint gc --json``."""
        return dict(vars(self))


def collect(*, dry_run: bool = False) -> list[Cleared]:
    """Look at every lab recorded on this machine and clear those that are garbage.

    Args:
        dry_run: only tell.
    """
    require_root()
    cleared = [_collect_one(name, dry_run) for name in paths.lab_names()]
    if not dry_run:
        _remove_unclaimed()
    return cleared


def _collect_one(name: str, dry_run: bool) -> Cleared:
    if is_served(name):
        return Cleared(name, "running")
    entries = journal.read(paths.lab_dir(name) / "journal")
    described = [_describe(entry) for entry in entries if entry["kind"] in _ORDER]
    if dry_run:
        orphaned = _is_orphaned(name, entries)
        return Cleared(name, "orphaned") if orphaned else Cleared(name, "garbage", described)
    if _adopted(name):
        return Cleared(name, "adopted")
    problems = clear(name)
    if problems is None:
        return Cleared(name, "running")  # it is just being started
    return Cleared(name, "failed" if problems else "removed", described, problems)


def clear(name: str, place: int | None = None) -> list[str] | None:
    """Undo what the journal of a lab without a supervisor says, and remove its directory.

    Args:
        name: the lab's.
        place: a descriptor of its directory, if no other lab of this name is meant.

    Returns:
        What could not be undone, one sentence each; None: somebody is starting or adopting it.
    """
    directory = paths.lab_dir(name)
    try:
        with _claim(directory) as claimed:
            if not claimed:
                return None
            if place is not None and not os.path.samestat(os.fstat(place), directory.stat()):
                return []
            problems = undo_all(journal.read(directory / "journal"))
            if not problems:
                (directory / "journal").unlink(missing_ok=True)
                shutil.rmtree(directory, ignore_errors=True)
    except FileNotFoundError:
        return []
    if not problems:
        with contextlib.suppress(OSError):
            paths.RUN_DIR.rmdir()
    return problems


@contextlib.contextmanager
def _claim(directory: Path) -> Iterator[bool]:
    """Keep others from adopting what is being removed; whether that succeeded."""
    fd = os.open(directory / "adopt.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(fd)


def _is_orphaned(name: str, entries: list[dict[str, Any]]) -> bool:
    """Whether a supervisor would find something to adopt: that takes one worker that still runs."""
    facts = paths.read_json(paths.lab_dir(name) / "state.json") or {}
    return (
        journal.is_of_this_boot(entries)
        and facts.get("state") == "ready"
        and bool(journal.workers(entries))
    )


def _adopted(name: str) -> bool:
    try:
        Client(name).close()
    except (MintError, OSError):  # such as a directory of which a part is gone
        return False
    return True


def _describe(entry: dict[str, Any]) -> str:
    details = {key: value for key, value in entry.items() if key != "kind"}
    what = details.get("what") or details.get("path") or details.get("name") or ""
    pid = f" pid {details['pid']}" if "pid" in details else ""
    return f"{entry['kind']} {what}{pid}".strip()


def undo_all(entries: list[dict[str, Any]]) -> list[str]:
    """Undo a journal's entries; what could not be undone."""
    lab = next((entry for entry in entries if entry["kind"] == "lab"), None)
    if lab is None:
        return []  # it died before it made anything
    same_boot = journal.is_of_this_boot(entries)
    deadline = time.monotonic() + _GIVE_UP_S
    problems = []
    for kind in _ORDER:
        for entry in entries:
            if entry["kind"] != kind or (not same_boot and kind not in _LASTING):
                continue
            try:
                _undo(kind, entry, str(lab["id"]), deadline)
            except (MintError, OSError, KeyError) as error:
                problems.append(f"{_describe(entry)}: {error}")
    return problems


def _undo(kind: str, entry: dict[str, Any], lab_id: str, deadline: float) -> None:
    if kind == "process":
        process = Process(int(entry["pid"]), int(entry["start"]))
        if not process.kill(deadline):
            raise OSError(f"process {process.pid} does not end")
    else:
        undo(kind, entry, lab_id, deadline)


def _unclaimed(path: Path) -> bool:
    """Whether this is the directory of a lab that was not even begun, and nobody begins it now."""
    place = path.lstat()
    if not stat.S_ISDIR(place.st_mode) or time.time() - place.st_ctime <= _YOUNG_S:
        return False
    names = {entry.name for entry in path.iterdir()}
    mine = place.st_uid == os.geteuid() and stat.S_IMODE(place.st_mode) == paths.LAB_MODE
    begun = path.name.startswith(paths.NEW) or set(paths.FIRST) <= names
    return mine and begun and names <= {*paths.FIRST, *_EARLY}


def _remove_unclaimed() -> None:
    """Directories of runs that died before their journal's first line; then the empty rest.

    Whatever else lies there (a user may have named a directory of his own) is left alone: a lab's is
    known by its name or what `paths.claim` makes first, and by holding nothing that a lab does not make.
    """
    if not paths.RUN_DIR.is_dir():
        return
    for path in paths.RUN_DIR.iterdir():
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            if not _unclaimed(path):
                continue
            with _claim(path) as claimed:
                if claimed:
                    shutil.rmtree(path, ignore_errors=True)
    try:
        paths.RUN_DIR.rmdir()
    except OSError:
        pass  # labs are up
