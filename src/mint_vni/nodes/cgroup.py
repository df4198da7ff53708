# SPDX-License-Identifier: Apache-2.0
"""CPUs and memory of a node, enforced by control groups of version 1 or 2, or both.

Each controller is taken from where the machine has it::

    version 1   CPUSET/mint-ID-NODE            the node and its worker
                MEMORY/mint-ID-NODE            the node

    version 2   ROOT/mint-ID-NODE              cpuset.cpus
                ROOT/mint-ID-NODE/work         the node; memory.max
                ROOT/mint-ID-NODE/worker       its worker

ID is the lab's random id. So the worker runs on the node's CPUs but is not charged to its memory.
Groups are made below the root of what is mounted here, not below the caller's own group: version 2
allows no controllers for children of a group with processes, and a lab outlives the login session
that started it.

Version 2 has to be told to delegate a controller to children (``cgroup.subtree_control``). What was
added there is journalled, and taken back by `undo` unless somebody else has come to depend on it.

Where a controller is missing or may not be used the node runs all the same: CPUs by affinity,
memory unlimited, and `NodeCgroup.cpus_enforced_by` and ``memory_enforced_by`` say so.

Everything is journalled before it is made and named by the lab's id; only such names are removed.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal

from mint_vni.errors import NodeError
from mint_vni.lab.units import format_cpu_list

__all__ = [
    "CgroupHost",
    "Controller",
    "EnforcedBy",
    "Journal",
    "NodeCgroup",
    "undo",
]

Journal = Callable[[str, dict[str, Any]], None]
EnforcedBy = Literal["cgroup-v1", "cgroup-v2", "affinity", "none"]
Version = Literal["cgroup-v1", "cgroup-v2"]

# What the kernel says where groups can't be made or delegated: the node does without.
_UNAVAILABLE: Final = frozenset(
    {errno.EACCES, errno.EPERM, errno.EROFS, errno.EBUSY, errno.ENOENT, errno.EOPNOTSUPP}
)

# cgroup.subtree_control is read, changed and journalled by one thread at a time.
_delegating = threading.Lock()


@dataclass(frozen=True)
class Controller:
    """Where this machine has one controller.

    Attributes:
        version: Of control groups.
        mount: The topmost group that can be seen here.
    """

    version: Version
    mount: Path


@dataclass(frozen=True)
class CgroupHost:
    """What control groups this machine offers.

    Attributes:
        cpuset: Where the controller for CPUs is; None where there is none.
        memory: The same for memory.
        views: How a node sees its own groups: below ``/sys/fs/cgroup``, the name of the directory
            (empty: that directory itself), file system type and mount options.
    """

    cpuset: Controller | None
    memory: Controller | None
    views: tuple[tuple[str, str, str], ...] = ()

    @classmethod
    def detect(cls, mountinfo: Path = Path("/proc/self/mountinfo")) -> CgroupHost:
        """Look at what is mounted.

        Args:
            mountinfo: The table of mounts, see proc_pid_mountinfo(5).
        """
        found: dict[str, Controller] = {}
        views: dict[Path, tuple[str, str, str]] = {}
        for kind, mount, options in _cgroup_mounts(mountinfo):
            version, offered = _offered(kind, mount, options)
            for name in ("cpuset", "memory"):
                # A controller is in one hierarchy; of several mounts of it the first will do.
                if name in offered and name not in found:
                    found[name] = Controller(version, mount)
                    views[mount] = _view(kind, mount, offered)
        inside = tuple(view for view in views.values() if not view[0].startswith(".."))
        return cls(found.get("cpuset"), found.get("memory"), inside)


def _cgroup_mounts(mountinfo: Path) -> list[tuple[str, Path, set[str]]]:
    """Return type, mount point and super block options of each writable cgroup mount."""
    mounts = []
    for line in mountinfo.read_text(errors="surrogateescape").splitlines():
        left, _, right = line.partition(" - ")
        fields, tail = left.split(), right.split()
        if tail and tail[0] in ("cgroup", "cgroup2") and "ro" not in fields[5].split(","):
            point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields[4])
            mounts.append((tail[0], Path(point), set(tail[2].split(","))))
    return mounts


def _offered(kind: str, mount: Path, options: set[str]) -> tuple[Version, set[str]]:
    if kind == "cgroup":
        return "cgroup-v1", options
    try:
        return "cgroup-v2", set((mount / "cgroup.controllers").read_text().split())
    except OSError:
        return "cgroup-v2", set()


def _view(kind: str, mount: Path, offered: set[str]) -> tuple[str, str, str]:
    name = os.path.relpath(mount, "/sys/fs/cgroup")
    known = ("cpu", "cpuacct", "cpuset", "memory", "pids", "freezer", "blkio", "devices", "hugetlb")
    options = ",".join(one for one in known if one in offered) if kind == "cgroup" else ""
    return ("" if name == "." else name), kind, options


@dataclass(frozen=True)
class NodeCgroup:
    """The groups of one node.

    Attributes:
        cpus_enforced_by: What keeps the node on its CPUs; "none" if it has no CPUs of its own.
        memory_enforced_by: What limits its memory; "none" if there is no limit.
        node_procs: Files to which a process writes its pid (or 0) to become part of the node.
        worker_procs: The same for the node's worker.
        directories: The groups, each before those inside it.
        usage: File that tells the memory in use, in bytes; None without the controller.
        affinity: CPUs that processes have to bind themselves to, when nothing enforces it.
        notes: Why something is not enforced, for a person.
    """

    cpus_enforced_by: EnforcedBy = "none"
    memory_enforced_by: EnforcedBy = "none"
    node_procs: tuple[str, ...] = ()
    worker_procs: tuple[str, ...] = ()
    directories: tuple[str, ...] = ()
    usage: str | None = None
    affinity: tuple[int, ...] = ()
    notes: tuple[str, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON-able facts."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> NodeCgroup:
        """Make it of what `to_json` returned, before or after a trip through JSON."""
        values: dict[str, Any] = dict(facts)
        lists = {k: tuple(v) for k, v in values.items() if isinstance(v, list)}
        return cls(**(values | lists))

    def memory_used(self) -> int | None:
        """Return the bytes charged to the node now; None where that is not counted."""
        if self.usage is None:
            return None
        try:
            return int(Path(self.usage).read_text())
        except (OSError, ValueError):
            return None

    def remove(self, deadline: float) -> None:
        """Kill whatever is left in the groups and remove them. Safe to repeat.

        Args:
            deadline: `time.monotonic` value at which to give up.

        Raises:
            NodeError: Something could not be removed in time.
        """
        problems: list[NodeError] = []
        for directory in reversed(self.directories):
            try:
                remove_group(Path(directory), deadline)
            except NodeError as error:  # one that stays is no reason to leave the others
                problems.append(error)
        if problems:
            raise problems[0]

    @classmethod
    def create(
        cls,
        host: CgroupHost,
        name: str,
        *,
        cpus: tuple[int, ...],
        memory: int | None,
        journal: Journal,
    ) -> NodeCgroup:
        """Make a node's groups; undo all of it on failure.

        Args:
            host: What the machine offers.
            name: ``mint-ID-NODE``.
            cpus: The CPUs of the node; empty: all.
            memory: Its limit in bytes; None: none.
            journal: Called before each group is made.

        Raises:
            NodeError: The kernel refused a limit.
        """
        maker = _Maker(name, cpus, memory, journal)
        try:
            for controller in dict.fromkeys((host.cpuset, host.memory)):
                if controller is not None:
                    maker.make(controller, host)
        except BaseException:
            maker.made.remove(time.monotonic() + 2.0)
            raise
        return maker.finish()


class _Maker:
    """Makes the groups of one node, one hierarchy after the other."""

    def __init__(
        self, name: str, cpus: tuple[int, ...], memory: int | None, journal: Journal
    ) -> None:
        self.name = name
        self.cpus = cpus
        self.memory = memory
        self.journal = journal
        self.made = NodeCgroup()

    def make(self, controller: Controller, host: CgroupHost) -> None:
        """Make the groups in one hierarchy, or note why that is not possible."""
        cpuset = controller == host.cpuset and bool(self.cpus)
        memory = controller == host.memory
        if not (cpuset or memory):
            return
        before = self.made
        make = self._make_v1 if controller.version == "cgroup-v1" else self._make_v2
        try:
            make(controller.mount, cpuset=cpuset, memory=memory)
        except OSError as error:
            if error.errno not in _UNAVAILABLE:
                raise NodeError(
                    f"cgroup {self.name}: {error.filename or controller.mount}: {error.strerror}"
                ) from error
            self._give_up(before, error)

    def finish(self) -> NodeCgroup:
        """Fall back on affinity where no controller keeps the node on its CPUs."""
        if self.cpus and self.made.cpus_enforced_by == "none":
            return replace(self.made, cpus_enforced_by="affinity", affinity=self.cpus)
        return self.made

    def _give_up(self, before: NodeCgroup, error: OSError) -> None:
        """Take back what was made in a hierarchy that turned out to be of no use."""
        extra = self.made.directories[len(before.directories) :]
        replace(self.made, directories=extra).remove(time.monotonic() + 2.0)
        note = f"{error.filename or 'cgroup'}: {error.strerror}"
        self.made = replace(before, notes=(*before.notes, note))

    def _make_v1(self, mount: Path, *, cpuset: bool, memory: bool) -> None:
        group = self._directory(mount / self.name)
        if cpuset:
            # A version 1 cpuset starts empty, and no process may join it until both are set.
            _write(group / "cpuset.mems", (mount / "cpuset.mems").read_text().strip())
            _write(group / "cpuset.cpus", format_cpu_list(self.cpus))
        if memory and self.memory is not None:
            _write(group / "memory.limit_in_bytes", str(self.memory))
            with_swap = group / "memory.memsw.limit_in_bytes"
            if with_swap.exists():
                _write(with_swap, str(self.memory))
        procs = str(group / "cgroup.procs")
        worker = procs if cpuset else None
        usage = group / "memory.usage_in_bytes" if memory else None
        self._done("cgroup-v1", procs, worker, cpuset=cpuset, usage=usage)

    def _make_v2(self, mount: Path, *, cpuset: bool, memory: bool) -> None:
        names = [n for n, used in (("cpuset", cpuset), ("memory", memory)) if used]
        delegate(mount, names, self.journal)
        group = self._directory(mount / self.name)
        if cpuset:
            _write(group / "cpuset.cpus", format_cpu_list(self.cpus))
        if memory:
            delegate(group, ["memory"], None)
        work, worker = self._directory(group / "work"), self._directory(group / "worker")
        if memory and self.memory is not None:
            _write(work / "memory.max", str(self.memory))
            if (work / "memory.swap.max").exists():
                _write(work / "memory.swap.max", "0")
        procs = (str(work / "cgroup.procs"), str(worker / "cgroup.procs"))
        usage = work / "memory.current" if memory else None
        self._done("cgroup-v2", *procs, cpuset=cpuset, usage=usage)

    def _directory(self, path: Path) -> Path:
        """Journal a group, then make it."""
        self.journal("cgroup", {"path": str(path)})
        path.mkdir()
        self.made = replace(self.made, directories=(*self.made.directories, str(path)))
        return path

    def _done(
        self,
        version: Version,
        node: str,
        worker: str | None,
        *,
        cpuset: bool,
        usage: Path | None,
    ) -> None:
        """Note what a hierarchy is good for."""
        made = replace(self.made, node_procs=(*self.made.node_procs, node))
        if worker is not None:
            made = replace(made, worker_procs=(*made.worker_procs, worker))
        if cpuset:
            made = replace(made, cpus_enforced_by=version)
        if usage is not None:
            limited: EnforcedBy = version if self.memory is not None else "none"
            made = replace(made, memory_enforced_by=limited, usage=str(usage))
        self.made = made


def _write(path: Path, text: str) -> None:
    """Write a setting in one piece; an error names the file."""
    try:
        path.write_text(text)
    except OSError as error:
        # write(2) knows no name, unlike open(2).
        raise OSError(error.errno, f"cannot set {text}: {error.strerror}", str(path)) from error


def delegate(group: Path, controllers: list[str], journal: Journal | None) -> None:
    """Let the children of a version 2 group use controllers.

    Args:
        group: The group.
        controllers: Their names.
        journal: Called before anything is changed, with what is going to be added; None where the
            group is the lab's own.
    """
    control = group / "cgroup.subtree_control"
    with _delegating:
        present = control.read_text().split()
        added = [name for name in controllers if name not in present]
        if not added:
            return
        if journal is not None:
            journal("cgroup-control", {"path": str(control), "added": added})
        _write(control, " ".join(f"+{name}" for name in added))


def undo(kind: str, data: Mapping[str, Any], lab_id: str, deadline: float) -> None:
    """Undo what one entry of the journal says. Safe to repeat.

    Call it for all entries of kind "cgroup" before those of kind "cgroup-control".

    Args:
        kind: "cgroup" or "cgroup-control"; anything else is ignored.
        data: What was journalled with it.
        lab_id: The lab's id; a group that does not carry it is left alone.
        deadline: `time.monotonic` value at which to give up.

    Raises:
        NodeError: Something could not be removed in time.
    """
    if kind == "cgroup":
        path = Path(data["path"])
        if any(part.startswith(f"mint-{lab_id}-") for part in path.parts):
            remove_group(path, deadline)
    elif kind == "cgroup-control":
        _undelegate(Path(data["path"]), data["added"])


def _undelegate(control: Path, controllers: list[str]) -> None:
    """Take a controller back from the children of a group, unless one of them makes use of it.

    The kernel would refuse only if a child had passed it on in turn; a leaf's limits would silently
    be gone.
    """
    with _delegating:
        for name in controllers:
            try:
                if name in control.read_text().split() and not _used_below(control.parent, name):
                    control.write_text(f"-{name}")
            except OSError:
                pass  # somebody passed it on, or the hierarchy is gone: theirs now


_DEFAULTS: Final[dict[str, dict[str, set[str]]]] = {
    "cpuset": {
        "cpuset.cpus": {""},
        "cpuset.mems": {""},
        "cpuset.cpus.partition": {"", "member"},
    },
    "memory": {
        "memory.max": {"max"},
        "memory.high": {"max"},
        "memory.low": {"0"},
        "memory.min": {"0"},
        "memory.swap.max": {"max"},
    },
}


def _used_below(group: Path, controller: str) -> bool:
    """Tell whether a child of a group has any setting of a controller other than the default."""
    for child in group.iterdir():
        if not child.is_dir():
            continue
        if child.name.startswith("mint-"):
            return True  # another lab's
        for name, defaults in _DEFAULTS.get(controller, {}).items():
            try:
                if (child / name).read_text().strip() not in defaults:
                    return True
            except OSError:
                continue
    return False


def remove_group(group: Path, deadline: float) -> None:
    """Kill all processes in a group and in those inside it, and remove them. Safe to repeat.

    Args:
        group: Its directory. Nothing happens if it does not exist.
        deadline: `time.monotonic` value at which to give up.

    Raises:
        NodeError: It could not be removed in time.
    """
    while group.exists():
        try:
            _remove_tree(group)
        except FileNotFoundError:
            continue  # the node's own, removed by somebody else meanwhile
        except OSError as error:
            _kill_members(group)
            if error.errno not in (errno.EBUSY, errno.ENOTEMPTY) or time.monotonic() >= deadline:
                raise NodeError(
                    f"cgroup {group} could not be removed: {error.strerror}; "
                    f"see what runs in {group}/cgroup.procs"
                ) from error
            # No descriptor of a group tells, in both versions, when it got empty.
            time.sleep(0.002)


def _remove_tree(group: Path) -> None:
    with os.scandir(group) as entries:
        inside = [Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)]
    for child in inside:
        _remove_tree(child)
    group.rmdir()


def _kill_members(group: Path) -> None:
    for directory, _, _ in os.walk(group):
        procs = Path(directory) / "cgroup.procs"
        for pid in _members(procs):
            _kill_member(procs, pid)


def _members(procs: Path) -> list[int]:
    try:
        # 0 stands for a process of a PID namespace that can't be seen from here.
        return [pid for pid in map(int, procs.read_text().split()) if pid > 0]
    except (OSError, ValueError):
        return []


def _kill_member(procs: Path, pid: int) -> None:
    """Kill a process if, once it can't be mistaken, it still is in the group."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return
    try:
        if pid in _members(procs):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except OSError:
        pass
    finally:
        os.close(pidfd)
