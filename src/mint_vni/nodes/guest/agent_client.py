# SPDX-License-Identifier: Apache-2.0
"""A node's agent as its supervisor sees it: starting, asking and ending `mint_vni.nodes.guest.agent`.

The two sockets have names in the node's directory; both are made here, as root, and handed over
listening: ``agent.sock`` for root alone, ``io/vhost.sock`` for the guest's user alone. ``io`` is the
one directory of the host that the guest's process can see and that is not the host's anyway.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mint_vni.errors import NodeError
from mint_vni.nodes.base import Device
from mint_vni.nodes.guest.launch import Running
from mint_vni.nodes.memlog import make_log
from mint_vni.nodes.proc import kill_process, process_start_time
from mint_vni.nodes.programs import find_program

if TYPE_CHECKING:
    from mint_vni.nodes.guest.agent import Config

__all__ = [
    "AGENT_SOCKET",
    "IO_DIRECTORY",
    "VHOST_SOCKET",
    "AgentClient",
    "connect_in",
    "listen_in",
    "make_shared",
]

AGENT_SOCKET: Final = "agent.sock"
IO_DIRECTORY: Final = "io"
VHOST_SOCKET: Final = "vhost.sock"

_START_SECONDS: Final = 20.0
_ANSWER_SECONDS: Final = 5.0
_ANSWER_BYTES: Final = 64 << 10
_LOGS_BYTES: Final = 4 << 20  # of all logs as JSON: six for each byte that they keep, at most
_ERROR_CHARACTERS: Final = 1000
_STATUS_DEPTH: Final = 4  # of what an agent says; deeper is not passed on


def listen_in(directory: Path, name: str, kind: int, uid: int) -> socket.socket:
    """Listen on a socket in a directory, by whatever long a path, for one user.

    Args:
        directory: Where; it exists.
        name: The socket's; one that is there is replaced.
        kind: SOCK_STREAM or SOCK_SEQPACKET.
        uid: Who may connect, besides root.
    """
    sock = socket.socket(socket.AF_UNIX, kind)
    (directory / name).unlink(missing_ok=True)
    try:
        with _short(directory) as place:
            sock.bind(f"{place}/{name}")
        os.chmod(directory / name, 0o600)
        os.chown(directory / name, uid, uid)
        sock.listen(16)
    except BaseException:
        sock.close()
        raise
    return sock


def connect_in(
    directory: Path, name: str, kind: int, timeout: float = _ANSWER_SECONDS
) -> socket.socket:
    """Connect to a socket in a directory, by whatever long a path.

    Args:
        directory: Where.
        name: The socket's.
        kind: SOCK_STREAM or SOCK_SEQPACKET.
        timeout: Seconds to wait while as many as the listener lets wait do so; then the socket's own.

    Raises:
        TimeoutError: Nobody took those who wait off the listener.
        OSError: Nobody listens there.
    """
    sock = socket.socket(socket.AF_UNIX, kind)
    try:
        # settimeout() would make a full backlog an error at once, also where there is room soon.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(timeout))
        with _short(directory) as place:
            sock.connect(f"{place}/{name}")
        sock.settimeout(timeout)
    except BaseException as error:
        sock.close()
        if isinstance(error, BlockingIOError):
            raise TimeoutError(f"nobody takes connections at {directory / name}") from None
        raise
    return sock


def _timeval(seconds: float) -> bytes:
    """A time-out as the kernel has it; none at all would be to wait for ever."""
    microseconds = max(1, int(seconds * 1e6))
    return struct.pack("@ll", *divmod(microseconds, 1_000_000))


@contextlib.contextmanager
def _short(directory: Path) -> Any:
    """A path that fits into a socket's address, which has room for 107 bytes."""
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)


class AgentClient:
    """The agent of one node.

    Attributes:
        process: The agent; None before it was started and after it was stopped.
    """

    def __init__(self, name: str, directory: Path, process: Running | None = None) -> None:
        """Take hold of a running agent, or of none yet.

        Args:
            name: The node's, for messages.
            directory: The node's.
            process: The agent.
        """
        self.name = name
        self.directory = directory
        self.process = process

    def alive(self) -> bool:
        """Tell whether the agent runs."""
        return self.process is not None and self.process.alive()

    def start(
        self,
        config: Config,
        guest_uid: int,
        log: int,
        hold: Callable[[Running], None],
        keep: Sequence[int] = (),
        listener: socket.socket | None = None,
    ) -> None:
        """Start the agent; it listens when this returns.

        Args:
            config: What it is told.
            guest_uid: Who may connect as the guest.
            log: Descriptor of a file for its standard error.
            hold: Called with the process before it can outlive us; if it raises, the agent ends.
            keep: Descriptors that it holds for as long as it lives, under the same numbers.
            listener: Where the guest connects; None: at ``io/vhost.sock``.

        Raises:
            NodeError: It could not be started.
        """
        io = self.directory / IO_DIRECTORY
        make_shared(io)
        control = listen_in(self.directory, AGENT_SOCKET, socket.SOCK_SEQPACKET, os.geteuid())
        vhost = (
            listen_in(io, VHOST_SOCKET, socket.SOCK_STREAM, guest_uid)
            if listener is None
            else listener.dup()
        )
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, control, vhost:
            with theirs:
                pid = _spawn(theirs, log, keep)
            start_time = process_start_time(pid)
            self.process = Running(pid, start_time or 0)
            ours.settimeout(_START_SECONDS)
            fds = [control.fileno(), vhost.fileno()]
            try:
                socket.send_fds(ours, [json.dumps(asdict(config)).encode()], fds)
                _expect_ready(ours)
                hold(self.process)
                ours.send(b"go")
            except BaseException as error:
                self.stop(time.monotonic() + _START_SECONDS)
                if isinstance(error, OSError):
                    raise NodeError(f"its agent: {error}") from error
                raise

    def request(
        self,
        op: str,
        fds: Sequence[int] = (),
        wait: float = _ANSWER_SECONDS,
        **arguments: Any,
    ) -> dict[str, Any]:
        """Ask the agent.

        Args:
            op: The request's name, see `mint_vni.nodes.guest.agent`.
            fds: Descriptors to send along; they stay the caller's.
            wait: Seconds to wait for the answer.
            arguments: Of the request.

        Returns:
            Its answer, for a caller that trusts no word of it: which keys there are, and what their
            values are, is the agent's choice.

        Raises:
            NodeError: It refuses, does not answer, answers nonsense, or has ended.
        """
        deadline = time.monotonic() + wait
        try:
            with connect_in(self.directory, AGENT_SOCKET, socket.SOCK_SEQPACKET, wait) as sock:
                sock.settimeout(max(0.01, deadline - time.monotonic()))
                socket.send_fds(sock, [json.dumps({"op": op, **arguments}).encode()], list(fds))
                data = sock.recv(_ANSWER_BYTES)
        except TimeoutError:
            raise NodeError(f"node {self.name}: its agent does not answer '{op}'") from None
        except OSError as error:
            raise NodeError(f"node {self.name}: its agent is gone ({error.strerror})") from error
        answer = _object(data) if data else {"error": "it hung up"}
        if answer is None:
            raise NodeError(f"node {self.name}: its agent answers nonsense to '{op}'")
        if "error" in answer:
            raise NodeError(
                f"node {self.name}: its agent: {str(answer['error'])[:_ERROR_CHARACTERS]}"
            )
        return answer

    def logs(self) -> dict[str, str]:
        """Return what was said last, by source: ``agent``, ``console`` and ``sshd``.

        Raises:
            NodeError: As for `request`.
        """
        try:
            fd = make_log(f"mint-{self.name}-logs", _LOGS_BYTES)
        except OSError as error:
            raise NodeError(f"node {self.name}: its logs: {error.strerror}") from error
        try:
            size = self.request("log", [fd]).get("bytes")
            if not isinstance(size, int) or not 0 <= size <= _LOGS_BYTES:
                size = 0
            answer = _object(os.pread(fd, size, 0))
        except OSError as error:
            raise NodeError(f"node {self.name}: its logs: {error.strerror}") from error
        finally:
            os.close(fd)
        if answer is None:
            raise NodeError(f"node {self.name}: its agent answers nonsense to 'log'")
        texts = {source: answer.get(source) for source in ("agent", "console", "sshd")}
        # Half of a surrogate pair, which JSON can express, is nothing that can be printed.
        return {
            source: text.encode(errors="replace").decode() if isinstance(text, str) else ""
            for source, text in texts.items()
        }

    def device(self, *, offload: bool) -> Device:
        """Return a socket to the agent for a new worker; see `mint_vni.nodes.base.Node.device`."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours:
            try:
                self.request("link", [ours.fileno()])
            except BaseException:
                theirs.close()
                raise
        return Device("vhost-user", theirs.detach(), offload)

    def facts(self) -> dict[str, Any]:
        """Return what the agent knows of the guest, for the status; empty if it does not answer."""
        try:
            status = self.request("status", wait=1.0) if self.alive() else {}
        except NodeError:
            status = {}
        pid = self.process.pid if self.process else None
        known = {key: value for key, value in status.items() if _is_shallow(value, _STATUS_DEPTH)}
        known.pop("ok", None)
        known.pop("agent_pid", None)
        return {"agent_pid": pid, **known}

    def stop(self, deadline: float) -> bool:
        """End the agent; it has nothing to save.

        Returns:
            Whether it has ended.
        """
        if self.process is None:
            return True
        ended = kill_process(self.process.pid, self.process.start_time, deadline)
        if ended:
            self.process = None
            for path in (AGENT_SOCKET, f"{IO_DIRECTORY}/{VHOST_SOCKET}"):
                (self.directory / path).unlink(missing_ok=True)
        return ended


def make_shared(directory: Path) -> None:
    """Make a directory that another process's user may search; the one above it is root's alone."""
    directory.mkdir(exist_ok=True)
    os.chmod(directory, 0o755)  # noqa: S103


def _object(data: bytes) -> dict[str, Any] | None:
    """A JSON object; None: these bytes are none."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _is_shallow(value: Any, depth: int) -> bool:
    """Whether no more than so many lists and objects lie in each other."""
    if not isinstance(value, (dict, list)):
        return True
    inner = value.values() if isinstance(value, dict) else value
    return depth > 0 and all(_is_shallow(each, depth - 1) for each in inner)


def _expect_ready(leash: socket.socket) -> None:
    if not leash.recv(4096):
        raise NodeError("its agent ended while it started")


def _spawn(leash: socket.socket, log: int, keep: Sequence[int]) -> int:
    """Start the agent's process.

    Returns:
        Its id. It is reaped by `mint_vni.nodes.proc.reap`, not by the object made here.
    """
    python = sys.executable or find_program("python3", "python3")
    process = subprocess.Popen(
        [python, "-P", "-m", "mint_vni.nodes.guest.agent", str(leash.fileno())],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        pass_fds=(leash.fileno(), *keep),
        cwd="/",
        start_new_session=True,
    )
    # Its end is waited for by its pidfd. Popen would complain that nobody asks for its status.
    process.returncode = 0
    return process.pid
