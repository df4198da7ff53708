# SPDX-License-Identifier: Apache-2.0
"""Starts a confined program; the supervisor's side of `mint_vni.nodes.guest._launch`.

`Confinement` says what the program gets, `launch` leads the script through its steps::

    launch                             _launch.py, an exec'd script
    ------                             ----------------------------
    spawn                   ------->   join the control groups, unshare, fork
    hold the process        <-------   its pid
    go ahead                ------->   make the mounts
    wait                    <-------   the mount tree stands
    journal pid and start   ------->   give up privileges, execute the program
    wait                    <-------   end of file: it runs

Until the journal is written the process ends when the supervisor does.
"""

from __future__ import annotations

import json
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from mint_vni.errors import NodeError
from mint_vni.nodes.proc import kill_process, open_process, process_start_time, reap, receive_fds
from mint_vni.nodes.programs import find_program, search_path

__all__ = ["MANY_FILES", "Confinement", "Running", "launch", "library_binds"]

_SCRIPT: Final = Path(__file__).with_name("_launch.py")
_FIRST: Final = Path(__file__).parents[2] / "_bin" / "mint-first"

# Longest that a step may take: it takes milliseconds, on a machine that swaps more.
_STEP_SECONDS: Final = 20.0

#: What shows a guest the host's files has one open for each that the guest's kernel remembers.
MANY_FILES: Final = 1 << 20

# What a program may have open and start. A User-Mode Linux has a process of the host for each
# process of its guest; the limit counts those of its user, which is no one else's.
_RLIMITS: Final = {"CORE": 0, "NOFILE": 4096, "NPROC": 4096, "MEMLOCK": 64 << 20}

_CAP_SYS_RESOURCE: Final = 24

Bind = tuple[str, str, str]


@dataclass(frozen=True)
class Confinement:
    """A program and all that it gets to see.

    Attributes:
        name: Host name in its UTS namespace.
        uid: The user, and group, that it runs as.
        mount_point: An empty directory of the host on which its file system is mounted; nobody else
            sees that.
        argv: The program and its arguments.
        binds: File or directory of the host, its place in the tree, and letters: w (it may be
            written to), x (programs in it may be executed).
        tmpfs: Place, bytes and permissions of writable, executable file systems in memory.
        devices: Names below /dev.
        private_devices: The same, for devices that the host lets only some users have.
        view: A directory of the host whose whole tree is shown, read-only, and its place.
        links: Symbolic links: place and what it points to.
        fds: Descriptors that it inherits besides 0, 1 and 2; under the same numbers.
        cgroups: Files to write its pid to.
        affinity: CPUs that it binds itself to; empty: all.
        env: Its environment.
        cwd: Where it starts, in its tree.
        rlimits: Limits besides the usual ones, by the name that follows RLIMIT_.
        netns: ``/proc/PID/ns/net`` or the like of the network that it gets; empty: a new one with
            nothing in it. No node of a lab has one; `mint_vni.bench.guests` gives what others use.
    """

    name: str
    uid: int
    mount_point: str
    argv: Sequence[str]
    binds: Sequence[Bind] = ()
    tmpfs: Sequence[tuple[str, int, int]] = ()
    devices: Sequence[str] = ("null", "zero", "urandom")
    private_devices: Sequence[str] = ()
    view: tuple[str, str] | None = None
    links: Sequence[tuple[str, str]] = ()
    fds: Sequence[int] = ()
    cgroups: Sequence[str] = ()
    affinity: Sequence[int] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str = "/"
    rlimits: Mapping[str, int] = field(default_factory=dict)
    netns: str = ""

    def request(self) -> bytes:
        """Return the message for the script."""
        values = asdict(self) | {"rlimits": _RLIMITS | dict(self.rlimits), "first": str(_FIRST)}
        return json.dumps(values).encode()


@dataclass(frozen=True)
class Running:
    """The first process of a program that was started: its id and when that started."""

    pid: int
    start_time: int

    def kill(self, deadline: float) -> bool:
        """Kill it and wait for its end; see `kill_process`."""
        return kill_process(self.pid, self.start_time, deadline)

    def alive(self) -> bool:
        """Tell whether it runs."""
        return process_start_time(self.pid) == self.start_time


def launch(
    spec: Confinement,
    log: int,
    hold: Callable[[Running], None],
    done: Callable[[str], None] = lambda _: None,
) -> Running:
    """Start a confined program.

    Args:
        spec: The program.
        log: Descriptor of a file for its standard output and error.
        hold: Called with the process before it can outlive the supervisor, to journal it. If it
            raises, the process ends.
        done: Called after each step, with "spawn", "process", "namespaces", "journal", "boot". If
            it raises, the process ends.

    Returns:
        The process; it runs the program.

    Raises:
        NodeError: It could not be started; nothing is left of it.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        with theirs:
            script = _spawn(theirs, log, spec.fds)
        try:
            return _converse(ours, spec, hold, done)
        finally:
            ours.close()
            script.wait()


def _spawn(theirs: socket.socket, log: int, fds: Sequence[int]) -> subprocess.Popen[bytes]:
    python = sys.executable or find_program("python3", "python3")
    return subprocess.Popen(
        [python, "-I", "-S", str(_SCRIPT), str(theirs.fileno())],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        pass_fds=(theirs.fileno(), *fds),
        env={"PATH": search_path(""), "LANG": "C.UTF-8"},
        cwd="/",
        start_new_session=True,
    )


def _converse(
    channel: socket.socket,
    spec: Confinement,
    hold: Callable[[Running], None],
    done: Callable[[str], None],
) -> Running:
    channel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    channel.settimeout(_STEP_SECONDS)
    _say(channel, spec.request())
    done("spawn")
    pid = _expect(channel, "pid")["pid"]
    start_time = process_start_time(pid)
    if start_time is None:
        reap(pid)
        _expect(channel, "ready")  # it says why not
        raise NodeError("it ended before it was set up")
    running = Running(pid, start_time)
    try:
        done("process")
        _say(channel, b'{"held": true}')
        _expect(channel, "ready")
        done("namespaces")
        hold(running)
        done("journal")
        _say(channel, b'{"go": true}')
        _expect(channel, "")
        done("boot")
    except BaseException:
        running.kill(_deadline())
        raise
    return running


def _deadline() -> float:
    import time

    return time.monotonic() + _STEP_SECONDS


def _say(channel: socket.socket, message: bytes) -> None:
    try:
        channel.send(message)
    except ConnectionError as error:
        raise NodeError("it ended before it was set up") from error


def _expect(channel: socket.socket, key: str) -> dict[str, Any]:
    """Receive the next message, which is to have this key; empty: the end of the conversation."""
    try:
        data, fds = receive_fds(channel, 1 << 16, 1)
    except TimeoutError:
        raise NodeError(f"it did not get to '{key}' within {_STEP_SECONDS:.0f} s") from None
    except ConnectionError:
        data, fds = b"", []
    for fd in fds:
        os.close(fd)
    if not data:
        if not key:
            return {}
        raise NodeError("it ended before it was set up")
    message: dict[str, Any] = json.loads(data)
    if key not in message:
        raise NodeError(str(message.get("error", message)))
    return message


def files_limit() -> int:
    """Return how many files a program that asks for `MANY_FILES` may have open."""
    most = int(Path("/proc/sys/fs/nr_open").read_text(encoding="ascii"))
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    effective = next(line for line in status.splitlines() if line.startswith("CapEff:"))
    if int(effective.split()[1], 16) >> _CAP_SYS_RESOURCE & 1 and most >= MANY_FILES:
        return MANY_FILES
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return MANY_FILES if hard == resource.RLIM_INFINITY else min(hard, MANY_FILES)


def library_binds(program: str) -> list[Bind]:
    """Return binds of a program and of all shared libraries that it is linked with.

    Args:
        program: Its absolute path.
    """
    ldd = find_program("ldd", "libc-bin")
    said = subprocess.run([ldd, program], capture_output=True, text=True, check=False).stdout
    words = (word for line in said.splitlines() for word in line.split())
    return [(path, path, "x") for path in (program, *(w for w in words if w.startswith("/")))]


def open_pidfd(running: Running) -> int | None:
    """Open a pidfd; None when the process has ended."""
    return open_process(running.pid, running.start_time)
