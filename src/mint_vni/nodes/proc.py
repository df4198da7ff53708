# SPDX-License-Identifier: Apache-2.0
"""Processes and namespaces of the host, named so that the right one is meant.

A pid alone does not name a process: the kernel uses it again. So a process is a pid *and* the time
at which it started, and it is signalled through a pidfd that was checked after it was opened.

A network namespace is entered by a thread of its own, which ends afterwards: `in_netns`. Network
namespaces belong to threads, so the rest of the process stays where it is; nothing is forked,
which a process with threads must not do; and no name under ``/run/netns`` is needed. Whatever is
made there (a socket, a TAP, a netlink socket) stays bound to that namespace and can be used by any
thread later.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Generic, TypeVar

__all__ = [
    "in_netns",
    "kill_process",
    "open_process",
    "process_start_time",
    "reap",
    "receive_fds",
    "wait_ended",
]

T = TypeVar("T")

_CLONE_NEWNET: Final = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def process_start_time(pid: int) -> int | None:
    """Tell when a process started.

    Args:
        pid: Its id on the host.

    Returns:
        Field 22 of ``/proc/PID/stat`` (clock ticks since boot); None when there is no such process
        or it is dead and only waits to be reaped.
    """
    state, start_time = _stat(pid)
    return None if state in "ZX" else start_time


def _stat(pid: int) -> tuple[str, int | None]:
    """Return state and time of start of a process; state X and None if there is none."""
    try:
        # The name, in parentheses, may hold anything, a parenthesis too.
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return "X", None
    fields = stat.rpartition(")")[2].split()
    return fields[0], int(fields[19])


def open_process(pid: int, start_time: int) -> int | None:
    """Open a pidfd of exactly this process.

    Args:
        pid: Its id on the host.
        start_time: What `process_start_time` said of it.

    Returns:
        A close-on-exec descriptor that gets readable when the process ends; None when it has ended.
    """
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return None
    # Looked at after opening: from here on the descriptor can't come to mean another process.
    if process_start_time(pid) != start_time:
        os.close(pidfd)
        return None
    return pidfd


def kill_process(pid: int, start_time: int, deadline: float) -> bool:
    """Kill a process, if it is still the one that is meant, and wait until it has ended.

    For the first process of a PID namespace, "ended" means that all others in it have ended too.

    Args:
        pid: Its id on the host.
        start_time: What `process_start_time` said of it.
        deadline: `time.monotonic` value at which to give up.

    Returns:
        Whether it has ended.
    """
    pidfd = open_process(pid, start_time)
    if pidfd is None:
        if _stat(pid) == ("Z", start_time):
            reap(pid)
        return True
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        ended = wait_ended(pidfd, deadline)
    except ProcessLookupError:
        ended = True
    finally:
        os.close(pidfd)
    if ended:
        reap(pid)
    return ended


def wait_ended(pidfd: int, deadline: float) -> bool:
    """Wait until the process of a pidfd has ended.

    Args:
        pidfd: A pidfd.
        deadline: `time.monotonic` value at which to give up.

    Returns:
        Whether it has ended.
    """
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(max(0.0, deadline - time.monotonic()) * 1000))


def reap(pid: int) -> None:
    """Take the status of a dead process, if it is this process's child.

    The first process of a node becomes init's, or that of a supervisor which is a sub-reaper.

    Args:
        pid: Its id.
    """
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def receive_fds(
    channel: socket.socket, size: int, limit: int, flags: int = 0
) -> tuple[bytes, list[int]]:
    """Receive a message with descriptors, which no program that is started later inherits.

    `socket.recv_fds` drops its flags (Python 3.11): its descriptors are inherited, and it blocks.

    Args:
        channel: A socket of the Unix domain.
        size: Most bytes to receive.
        limit: Most descriptors to receive.
        flags: For ``recvmsg``, besides ``MSG_CMSG_CLOEXEC``.

    Returns:
        The message, empty at the end of the connection, and the descriptors, the caller's now.
    """
    fds = array.array("i")
    data, ancillary, _, _ = channel.recvmsg(
        size, socket.CMSG_LEN(limit * fds.itemsize), flags | socket.MSG_CMSG_CLOEXEC
    )
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    return data, list(fds)


class _Visit(threading.Thread, Generic[T]):
    """A thread that enters a network namespace, does one thing there and ends."""

    def __init__(self, netns: int, action: Callable[[], T]) -> None:
        super().__init__(name="mint-netns", daemon=True)
        self._netns = netns
        self._action = action
        self.result: T | None = None
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            _enter_netns(self._netns)
            self.result = self._action()
        except BaseException as error:  # noqa: BLE001  # it is raised again by in_netns
            self.error = error


def _enter_netns(netns: int) -> None:
    if _libc.setns(netns, _CLONE_NEWNET) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"cannot enter the network namespace: {os.strerror(code)}")


def in_netns(netns: int, action: Callable[[], T]) -> T:
    """Do something in a network namespace, and return what it returned.

    Args:
        netns: Descriptor of ``/proc/PID/ns/net`` or the like.
        action: What to do. It runs in a thread of its own.

    Returns:
        What `action` returned.

    Raises:
        OSError: The namespace cannot be entered.
        BaseException: What `action` raised.
    """
    visit = _Visit(netns, action)
    visit.start()
    visit.join()
    if visit.error is not None:
        raise visit.error
    return visit.result  # type: ignore[return-value]  # set, as there was no error
