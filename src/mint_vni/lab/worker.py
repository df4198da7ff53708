# SPDX-License-Identifier: Apache-2.0
"""One node's worker as its supervisor sees it: started, told what to serve, started again.

All methods that talk to the worker block for at most :data:`ANSWER_S`; the supervisor calls them
in threads, one at a time for each worker. A worker that does not answer is taken for hung.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from mint_vni.errors import FabricError, InternalError
from mint_vni.lab import wire
from mint_vni.lab.process import Process
from mint_vni.nodes.proc import process_start_time

#: Longest time that a worker may take to answer, seconds: one that starts, and one that runs.
ANSWER_S = 5.0
TELL_S = 2.0


def worker_binary() -> str:
    """Path of the worker executable that belongs to this package."""
    path = resources.files("mint_vni") / "_bin" / "mint-worker"
    if not os.access(str(path), os.X_OK):
        raise InternalError(f"{path} is missing; install mint-vni again")
    return str(path)


class Worker:
    """A worker process and the control connection to it."""

    def __init__(self, name: str, socket_path: Path, log_path: Path) -> None:
        """Nothing is started yet.

        Args:
            name: the node's name.
            socket_path: where its control socket lies.
            log_path: what it says on its standard error is appended here.
        """
        self.name = name
        self.process: Process | None = None
        self._path = socket_path
        self._log = log_path
        self._listener: socket.socket | None = None
        self._link: socket.socket | None = None

    def start(self) -> Process:
        """Start the process and connect to it.

        Raises:
            OSError: it cannot be executed.
        """
        self._listen()
        assert self._listener is not None
        # Before it exists: if we die any time after this, it finds the connection closed and ends.
        self.connect()
        log = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            pid = os.posix_spawn(
                worker_binary(),
                ["mint-worker", self.name],
                {},
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDWR, 0),
                    (os.POSIX_SPAWN_DUP2, 0, 1),
                    (os.POSIX_SPAWN_DUP2, log, 2),
                    (os.POSIX_SPAWN_DUP2, self._listener.fileno(), 3),
                ],
                setsid=True,
            )
        finally:
            os.close(log)
        self.process = Process(pid, process_start_time(pid) or 0)
        return self.process

    def _listen(self) -> None:
        """Make the control socket, anew for each process: none finds what another left waiting."""
        if self._listener is not None:
            self._listener.close()
        self._path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(str(self._path))
        os.chmod(self._path, 0o600)
        self._listener.listen(4)

    def adopt(self, process: Process) -> None:
        """Take over a worker that another supervisor started.

        Raises:
            OSError: nobody answers at its socket.
        """
        self.process = process
        self.connect()

    def connect(self) -> None:
        """Connect to the control socket, dropping an older connection."""
        self.disconnect()
        link = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        link.settimeout(ANSWER_S)
        try:
            link.connect(str(self._path))
        except OSError:
            link.close()
            raise
        self._link = link

    @property
    def connected(self) -> bool:
        """Whether it can be told anything; not once it was taken for hung."""
        return self._link is not None

    def disconnect(self) -> None:
        """Close the connection; the worker goes on."""
        if self._link is not None:
            self._link.close()
            self._link = None

    def request(self, data: bytes, fds: Sequence[int] = (), seconds: float = ANSWER_S) -> None:
        """Send one message and wait for its answer.

        Args:
            data: the message.
            fds: descriptors that go with it.
            seconds: how long the answer may take.

        Raises:
            FabricError: the worker refused, is hung or gone.
        """
        if self._link is None:
            raise FabricError(f"worker of {self.name}: not connected")
        try:
            self._link.settimeout(seconds)
            wire.send(self._link, data, fds)
            answer = wire.receive(self._link)
        except OSError as error:
            self.disconnect()  # its answer, late, must not be taken for that to the next message
            raise FabricError(f"worker of {self.name}: {error}") from None
        answer.close()
        if answer.status < 0:
            raise FabricError(f"worker of {self.name}: {os.strerror(-answer.status)}")

    def collect(self, limit: int) -> list[wire.Message]:
        """What the worker holds, with descriptors: its OPEN, TAP and ADD_PEER messages.

        Args:
            limit: messages that it may give at most.

        Raises:
            FabricError: it is hung or gone, or gives more.
        """
        if self._link is None:
            raise FabricError(f"worker of {self.name}: not connected")
        held: list[wire.Message] = []
        deadline = time.monotonic() + ANSWER_S
        try:
            wire.send(self._link, wire.plain_message(wire.GIVE))
            while len(held) <= limit:
                self._link.settimeout(max(0.001, deadline - time.monotonic()))
                message = wire.receive(self._link)
                if message.type == wire.GIVE:
                    message.close()
                    return held
                held.append(message)
            problem = "gives more than there is"
        except (OSError, FabricError) as error:
            problem = str(error)
        for message in held:
            message.close()
        raise FabricError(f"worker of {self.name}: {problem}")

    def stop(self, deadline: float) -> None:
        """End the worker, gently if it listens, and remove its socket; safe to repeat."""
        if self.process is not None and self.process.alive():
            with contextlib.suppress(FabricError):
                self.request(wire.plain_message(wire.STOP))
            self.process.wait(min(deadline, time.monotonic() + 1.0))
            self.process.kill(deadline)
        self.disconnect()
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        self._path.unlink(missing_ok=True)
