# SPDX-License-Identifier: Apache-2.0
"""A look at the machine, to be compared with a later one: labs leave nothing behind.

Processes and namespaces count when they descend from the test run: it is the sub-reaper of whatever
it starts, so nothing of it can get away, and what others do meanwhile does not matter. Interfaces,
files, control groups, mounts and kernel settings are the whole machine's. Where other people create
files in /tmp and the like or mount something at the same time, set ``MINT_TEST_SHARED_MACHINE=1``:
then of these, and of control groups, only what is the tests' own is compared.
"""

from __future__ import annotations

import ctypes
import os
import re
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

DEADLINE = 5.0  # what is being removed when the test ends may take so long

# Nothing of Mint VNI's starts it: it keeps the key of the archive that `mint kernel install` is
# tested with, and one that has lost its socket ends by itself, up to a minute later.
_OTHERS = {"gpg-agent"}

#: Paths that are the test run's own.
IGNORED: set[str] = set()

_PR_SET_CHILD_SUBREAPER = 36
_NAMESPACES = ("net", "mnt", "pid", "uts", "ipc", "cgroup")
_SYSCTLS = ("net", "kernel", "vm")

# Values that change by themselves.
_VOLATILE = re.compile(
    r"kernel/(random/|ns_last_pid|pty/nr|perf_|hung_task_detect_count|tainted)"
    r"|net/(netfilter/nf_conntrack_count|ipv4/tcp_fastopen_key)"
    r"|vm/(stat_refresh|lowmem_reserve_ratio)"
)


def adopt_orphans() -> None:
    """Become the parent of all orphans among one's descendants, and reap them, as an init does."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")
    threading.Thread(target=_reap, name="reaper", daemon=True).start()


def _reap() -> None:
    """Reap those that were in a node: without that its PID namespace would not end.

    Others are left alone: they may be somebody's `subprocess.Popen`, who wants to know its status.
    """
    others: set[int] = set()  # dead, and left alone: not looked at again and again
    while True:
        found: set[int] = set()
        for task in os.listdir("/proc/self/task"):
            with suppress(OSError):
                found.update(map(int, Path(f"/proc/self/task/{task}/children").read_text().split()))
        others &= found
        for pid in found - others:
            with suppress(OSError):
                status = Path(f"/proc/{pid}/status").read_text()
                if not re.search(r"^State:\tZ", status, re.MULTILINE):
                    continue
                if re.search(r"^NSpid:\t\d+\t", status, re.MULTILINE):
                    os.waitpid(pid, os.WNOHANG)
                else:
                    others.add(pid)
        time.sleep(0.02)


@dataclass(frozen=True)
class Process:
    """One line of ``ps``."""

    pid: int
    start: int
    parent: int
    state: str
    name: str


def processes() -> dict[int, Process]:
    """All processes by pid."""
    found = {}
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            with suppress(OSError):
                process = _process(int(entry))
                found[process.pid] = process
    return found


def _process(pid: int) -> Process:
    text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    name, fields = text[text.index("(") + 1 : text.rindex(")")], text.rpartition(")")[2].split()
    return Process(pid, int(fields[19]), int(fields[1]), fields[0], name)


def descendants() -> list[Process]:
    """The living processes that descend from this one, without itself."""
    known = processes()
    ours = {os.getpid()}

    def is_ours(pid: int) -> bool:
        path = []
        while pid in known and pid not in ours:
            path.append(pid)
            pid = known[pid].parent
        if pid in ours:
            ours.update(path)
        return pid in ours

    return [p for p in known.values() if p.pid != os.getpid() and is_ours(p.pid) and p.state != "Z"]


@dataclass(frozen=True)
class Machine:
    """What there is.

    Attributes:
        processes: our descendants: pid, start time, name.
        namespaces: those of this process and of our descendants.
        interfaces: names in this network namespace.
        files: everything in the tests' own directory, and the first level of /tmp and the like.
        cgroups: all directories of all hierarchies.
        mounts: lines of mountinfo.
        sysctls: path and value.
        memfds: those of Mint VNI that this process has open.
    """

    processes: frozenset[str]
    namespaces: frozenset[str]
    interfaces: frozenset[str]
    files: frozenset[str]
    cgroups: frozenset[str]
    mounts: frozenset[str]
    sysctls: frozenset[str]
    memfds: frozenset[str]

    @classmethod
    def now(cls) -> Machine:
        """Look."""
        ours = [process for process in descendants() if process.name not in _OTHERS]
        return cls(
            processes=frozenset(f"{p.pid} {p.start} {p.name}" for p in ours),
            namespaces=frozenset(_namespaces([os.getpid(), *(p.pid for p in ours)])),
            interfaces=frozenset(name for _, name in socket.if_nameindex()),
            files=frozenset(_files()),
            cgroups=frozenset(_cgroups(ours)),
            mounts=frozenset(_mounts()),
            sysctls=frozenset(_sysctls()),
            memfds=frozenset(_memfds()),
        )

    def differences(self, later: Machine) -> list[str]:
        """What has come and gone, one line each."""
        found = []
        for what in self.__dataclass_fields__:
            before, after = getattr(self, what), getattr(later, what)
            found += [f"{what}: there is now {item}" for item in sorted(after - before)]
            # A lab of others that ended meanwhile is none of our business.
            gone = {item for item in before - after if what != "cgroups" or "/mint-" not in item}
            found += [f"{what}: there was {item}" for item in sorted(gone)]
        return found


def _namespaces(pids: Iterable[int]) -> Iterator[str]:
    for pid in pids:
        for kind in _NAMESPACES:
            with suppress(OSError):
                yield os.readlink(f"/proc/{pid}/ns/{kind}")


def _files() -> Iterator[str]:
    for base in sorted(IGNORED):
        for directory, names, files in os.walk(base):
            yield from (os.path.join(directory, name) for name in (*names, *files))
    if _shared():
        return
    for place in ("/tmp", "/run", "/dev/shm", "/var/run", "/run/mint", "/run/netns"):
        with suppress(OSError):
            for name in os.listdir(place):
                path = os.path.join(place, name)
                if path not in IGNORED and not name.startswith("pytest-of-"):
                    yield path


def _mounts() -> Iterator[str]:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        if "mint" in line or not _shared():
            yield line


def _shared() -> bool:
    return bool(os.environ.get("MINT_TEST_SHARED_MACHINE"))


def _cgroups(ours: Iterable[Process]) -> Iterator[str]:
    """All groups but those of other people's labs: with processes in them, and none of ours."""
    pids = {process.pid for process in ours}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        if " - cgroup" not in line:
            continue
        for directory, names, _ in os.walk(line.split()[4]):
            others = {name for name in names if _is_foreign(os.path.join(directory, name), pids)}
            names[:] = [name for name in names if name not in others]
            if "/mint-" in directory or not _shared():
                yield directory


def _is_foreign(group: str, ours: set[int]) -> bool:
    if not group.rpartition("/")[2].startswith("mint-"):
        return False
    members: set[int] = set()
    for directory, _, _ in os.walk(group):
        with suppress(OSError):
            members |= {int(pid) for pid in Path(directory, "cgroup.procs").read_text().split()}
    return bool(members) and not members & ours


def _sysctls() -> Iterator[str]:
    for top in _SYSCTLS:
        for directory, _, names in os.walk(f"/proc/sys/{top}"):
            for name in names:
                path = os.path.join(directory, name)
                if not _VOLATILE.match(path.removeprefix("/proc/sys/")):
                    with suppress(OSError):
                        yield f"{path} = {Path(path).read_text(errors='replace').strip()}"


def _memfds() -> Iterator[str]:
    for fd in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{fd}")
            if target.startswith("/memfd:mint"):
                yield f"{fd} {target}"


@contextmanager
def unchanged() -> Iterator[None]:
    """Whatever is done inside leaves the machine as it was.

    Raises:
        AssertionError: It did not, and what is left was still there after `DEADLINE` seconds.
    """
    before = Machine.now()
    yield
    end = time.monotonic() + DEADLINE
    while differences := before.differences(Machine.now()):
        assert time.monotonic() < end, "left behind:\n" + "\n".join(differences)
        time.sleep(0.02)
