# SPDX-License-Identifier: Apache-2.0
"""Talking to a lab's supervisor, and starting one: for the first time, or after the last one died."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mint_vni.errors import InternalError, LabStateError, MintError, PlatformError
from mint_vni.lab import paths, protocol
from mint_vni.lab.plan import LabPlan
from mint_vni.nodes.proc import wait_ended

Progress = Callable[[str], None]

_ANSWER_S = 60.0
_UNDO_S = 30.0


def require_root() -> None:
    """Labs need root; fabrics alone do not.

    Raises:
        PlatformError: we are not root.
    """
    if os.geteuid() != 0:
        raise PlatformError(
            "labs need root (namespaces, TAP devices, control groups); run again with sudo"
        )


def start(plan: LabPlan, progress: Progress | None = None) -> None:
    """Bring a lab up; returns when it is ready.

    Raises:
        LabStateError: a lab of this name is up.
        MintError: it cannot be brought up; everything was undone.
    """
    require_root()
    directory = paths.claim(plan.name)
    try:
        paths.write_json(directory / "plan.json", plan.to_json())
        _run_supervisor("up", directory, progress)
    except BaseException:
        if not (directory / "supervisor.sock").exists():
            shutil.rmtree(directory, ignore_errors=True)
        with contextlib.suppress(OSError):
            paths.RUN_DIR.rmdir()
        raise


def _run_supervisor(mode: str, directory: Path, progress: Progress | None) -> None:
    """Start a supervisor process and wait until it serves the lab."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with open(directory / "log" / "supervisor.log", "ab") as log:
        process = subprocess.Popen(
            [
                sys.executable,
                "-P",
                "-m",
                "mint_vni.lab.supervisor",
                mode,
                str(directory),
                str(theirs.fileno()),
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=[theirs.fileno()],
            start_new_session=True,
            cwd="/",
        )
    theirs.close()
    process.wait()  # it goes on as a child of its own
    with ours:
        try:
            _follow(ours, progress, directory)
        except BaseException:
            _await_undo(ours)
            raise


def _await_undo(sock: socket.socket) -> None:
    """Make a supervisor that is not ready yet undo everything, and wait for its end."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_WR)
        sock.settimeout(_UNDO_S)
        while sock.recv(65536):
            pass


def _follow(sock: socket.socket, progress: Progress | None, directory: Path) -> None:
    """Relay progress until the result."""
    while True:
        try:
            message = protocol.receive(sock)
        except ConnectionError:
            raise InternalError(
                f"the supervisor ended without a word; it may have said why: {_last_words(directory)}"
            ) from None
        protocol.raise_error(message)
        if "result" in message:
            return
        if progress and "progress" in message:
            progress(str(message["progress"]))


def _last_words(directory: Path) -> str:
    try:
        lines = (directory / "log" / "supervisor.log").read_text(errors="replace").splitlines()
    except OSError:
        return "(its log is gone)"
    return lines[-1] if lines else "(its log is empty)"


class Client:
    """A connection to the supervisor of a running lab."""

    def __init__(self, name: str) -> None:
        """Connect, starting a new supervisor when the last one died.

        Raises:
            LabStateError: no such lab, or it is not to be adopted.
        """
        self.name = name
        self.directory = paths.lab_dir(name)
        self.sock = self._connect()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self.sock.close()

    def _connect(self) -> socket.socket:
        require_root()
        if not (self.directory / "journal").exists():
            raise LabStateError(f"there is no lab {self.name}; see: mint status")
        sock = self._try_connect()
        if sock is None:
            _adopt(self.directory, self.name)
            sock = self._try_connect()
        if sock is None:
            raise LabStateError(f"lab {self.name} does not answer; clear it with: mint gc")
        sock.settimeout(_ANSWER_S)
        return sock

    def _try_connect(self) -> socket.socket | None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            sock.connect(str(self.directory / "supervisor.sock"))
        except (FileNotFoundError, ConnectionRefusedError):
            sock.close()
            return None
        return sock

    def request(self, op: str, **arguments: Any) -> Any:
        """Send a request; its result.

        Raises:
            MintError: what the supervisor says went wrong.
        """
        try:
            protocol.send(self.sock, {"op": op, **arguments})
            answer = protocol.receive(self.sock)
        except TimeoutError:
            raise LabStateError(
                f"the supervisor of lab {self.name} did not answer within {_ANSWER_S:.0f} s"
            ) from None
        except OSError as error:
            raise LabStateError(f"lab {self.name}: {error}; try again") from None
        protocol.raise_error(answer)
        return answer.get("result")

    def await_end(self, seconds: float) -> None:
        """Wait until the supervisor's process has ended; for after ``down``."""
        creds = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        pid = struct.unpack("3i", creds)[0]
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            return
        try:
            wait_ended(pidfd, time.monotonic() + seconds)
        finally:
            os.close(pidfd)


def _adopt(directory: Path, name: str) -> None:
    """Start a supervisor for a lab that lost its own; one starter at a time."""
    lock = os.open(directory / "adopt.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _lock(lock, name)
        probe = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with probe, contextlib.suppress(OSError):
            probe.connect(str(directory / "supervisor.sock"))
            return  # somebody else was faster
        _run_supervisor("adopt", directory, None)
    finally:
        os.close(lock)


def _lock(fd: int, name: str) -> None:
    import fcntl

    deadline = time.monotonic() + _ANSWER_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise LabStateError(f"lab {name} is being adopted by another mint; wait") from None
            time.sleep(0.02)


def is_served(name: str) -> bool:
    """Whether a supervisor answers for this lab now."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with sock:
        try:
            sock.connect(str(paths.lab_dir(name) / "supervisor.sock"))
        except OSError:
            return False
        return True


def the_only_lab() -> str:
    """The name of the only lab.

    Raises:
        LabStateError: there is none, or several.
    """
    names = paths.lab_names()
    if not names:
        raise LabStateError("no lab is up; bring one up with: mint up LAB.yaml")
    if len(names) > 1:
        raise LabStateError(f"several labs are up ({', '.join(names)}); name one")
    return names[0]


__all__ = ["Client", "MintError", "is_served", "require_root", "start", "the_only_lab"]
