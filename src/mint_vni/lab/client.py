# SPDX-License-Identifier: Apache-2.0
"""Talking to a lab's supervisor, and starting one: for the first time, or after the last one died."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mint_vni.errors import LabStateError, MintError, PlatformError
from mint_vni.lab import paths, protocol
from mint_vni.lab.plan import LabPlan
from mint_vni.nodes.guest.agent_client import connect_in
from mint_vni.nodes.proc import wait_ended

Progress = Callable[[str], None]

#: The supervisor, as arguments of the interpreter; tests put one in its place that fails.
SUPERVISOR: tuple[str, ...] = ("-m", "mint_vni.lab.supervisor")

_ANSWER_S = 60.0
_UNDO_S = 30.0
_DYING_S = 5.0
_INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def require_root() -> None:
    """Labs need root; fabrics alone do not.

    Raises:
        PlatformError: we are not root.
    """
    if os.geteuid() != 0:
        raise PlatformError(
            "labs need root (namespaces, TAP devices, control groups); run again with sudo"
        )


@contextlib.contextmanager
def start(plan: LabPlan, progress: Progress | None = None) -> Iterator[Callable[[], None]]:
    """Bring a lab up; it is ready inside the ``with`` block.

    Yields:
        A function that keeps the lab up. Without it, whatever ends the block takes it down again.

    Raises:
        LabStateError: a lab of this name is up.
        MintError: it cannot be brought up; everything was undone.
    """
    require_root()
    paths.require_room(plan.name, [node.name for node in plan.nodes])
    # From claiming the name to being ready to give it back, no interrupt must come in between.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _INTERRUPTS)
    try:
        directory = paths.claim(plan.name)
    except BaseException:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        raise
    # Held open, so that no other directory of this name gets to look like ours.
    place = os.open(directory, os.O_PATH | os.O_CLOEXEC)
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        lock = os.open(directory / "adopt.lock", os.O_RDWR | os.O_CLOEXEC)
        with contextlib.closing(_Descriptor(lock)) as held:
            _lock(lock, plan.name)  # nobody is to adopt it, or to take it for garbage
            paths.write_json(directory / "plan.json", plan.to_json())
            with _supervisor("up", directory) as sock:
                _follow(sock, progress, directory)
                held.close()
                yield lambda: _keep(sock, plan.name)
    except BaseException:
        _clear_rest(plan.name, place)
        raise
    finally:
        os.close(place)


def _clear_rest(name: str, place: int) -> None:
    """Undo what a supervisor that died without undoing it had written down.

    One that is just dying closes its sockets one after the other, and all of them only when none of
    its threads does anything any more: until then it seems to serve the lab.
    """
    from mint_vni.lab import clean

    deadline = time.monotonic() + _DYING_S
    while is_served(name):
        if time.monotonic() > deadline:
            return
        time.sleep(0.01)
    clean.clear(name, place)


class _Descriptor:
    """A descriptor that is closed once."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def close(self) -> None:
        """Close it; safe to repeat."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _keep(sock: socket.socket, name: str) -> None:
    """Tell the supervisor that its lab is wanted: from here on it does not depend on us."""
    try:
        sock.send(b"keep")
    except OSError as error:
        raise LabStateError(f"lab {name}: its supervisor ended ({error}); try again") from None


@contextlib.contextmanager
def _supervisor(mode: str, directory: Path) -> Iterator[socket.socket]:
    """Start a supervisor process; a connection to it.

    When the block ends with an exception, the supervisor undoes what it did, and that is awaited.
    """
    with open(directory / "log" / "supervisor.log", "ab") as log:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        process = subprocess.Popen(
            [
                sys.executable,
                "-P",
                *SUPERVISOR,
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
    with ours:
        try:
            process.wait()  # it goes on as a child of its own
            yield ours
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
            raise LabStateError(
                f"lab {directory.name}: its supervisor ended without a word: {_last_words(directory)};"
                " try again"
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
        try:
            return connect_in(self.directory, "supervisor.sock", socket.SOCK_SEQPACKET, _ANSWER_S)
        except (FileNotFoundError, ConnectionRefusedError):
            return None
        except TimeoutError:
            raise LabStateError(
                f"the supervisor of lab {self.name} answers nobody; end its process (pid"
                f" {_supervisor_pid(self.directory)}), and the next command starts another"
            ) from None

    def request(self, op: str, **arguments: Any) -> Any:
        """Send a request; its result.

        Raises:
            MintError: what the supervisor says went wrong.
        """
        message = {"op": op, **arguments}
        try:
            try:
                answer = self._exchange(message)
            except ConnectionError:
                # It had been killed and was not quite gone yet when we connected, or has died
                # since: the next one answers, if there is a lab still.
                self.close()
                self.sock = self._connect()
                answer = self._exchange(message)
        except TimeoutError:
            raise LabStateError(
                f"the supervisor of lab {self.name} did not answer within {_ANSWER_S:.0f} s"
            ) from None
        except OSError as error:
            raise LabStateError(f"lab {self.name}: {error}; try again") from None
        protocol.raise_error(answer)
        return answer.get("result")

    def _exchange(self, message: dict[str, Any]) -> dict[str, Any]:
        protocol.send(self.sock, message)
        return protocol.receive(self.sock)

    def await_end(self, seconds: float) -> None:
        """Wait until the supervisor's process has ended; for after ``down``."""
        try:
            pidfd = os.pidfd_open(_listener_pid(self.sock))
        except OSError:
            return
        try:
            wait_ended(pidfd, time.monotonic() + seconds)
        finally:
            os.close(pidfd)


def _supervisor_pid(directory: Path) -> Any:
    return (paths.read_json(directory / "state.json") or {}).get("supervisor", "unknown")


def _adopt(directory: Path, name: str) -> None:
    """Start a supervisor for a lab that lost its own; one starter at a time."""
    try:  # made by whoever brought the lab up: where it is missing, the lab is being removed
        lock = os.open(directory / "adopt.lock", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        raise LabStateError(f"there is no lab {name}; see: mint status") from None
    try:
        _lock(lock, name)
        if is_served(name):
            return  # somebody else was faster
        with _supervisor("adopt", directory) as sock:
            _follow(sock, None, directory)
    finally:
        os.close(lock)


def _lock(fd: int, name: str) -> None:
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
        sock.settimeout(_ANSWER_S)
        try:
            sock.connect(str(paths.lab_dir(name) / "supervisor.sock"))
        except BlockingIOError:
            return True  # it is there, and too many wait for it
        except OSError:
            return False
        return True


def _listener_pid(sock: socket.socket) -> int:
    """The process that listens where this socket is connected to."""
    creds = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", creds)[0])


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
