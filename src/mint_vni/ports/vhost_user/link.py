# SPDX-License-Identifier: Apache-2.0
"""What a node's agent tells its worker about the guest's queues: ``native/vhost.h``, in Python.

Each message is answered, in order. A worker that does not answer in time is late: it has the message all
the same, and further ones are sent without waiting, until it has caught up. One that hung up or takes
no more messages is gone, and its successor is told everything anew. Calls block for as long as a
worker takes to answer, which is microseconds, or once for `ANSWER_S`.
"""

from __future__ import annotations

import array
import errno
import os
import socket
import struct
from collections.abc import Callable, Sequence
from typing import Final

from mint_vni.ports.vhost_user.protocol import Region

__all__ = ["LinkError", "WorkerLink"]

ANSWER_S: Final = 2.0

_MAGIC: Final = 0x53484F56
_FEATURES, _CLEAR, _MEMORY, _RING, _ENABLE, _CALL, _STOP, _START = range(1, 9)
_KICK_COMES, _CALL_COMES, _ENABLED = 1, 2, 4

_HEAD: Final = struct.Struct("<IIIi")
_BODY_BYTES: Final = 48
_SIZE: Final = _HEAD.size + _BODY_BYTES
_RING_BODY: Final = struct.Struct("<IIIIQQQ")


class LinkError(Exception):
    """The worker refused (``errno`` says why), or is gone (``errno`` is None)."""

    def __init__(self, what: str, errno: int | None = None) -> None:
        """Say what was asked for."""
        why = "it is gone" if errno is None else os.strerror(errno)
        super().__init__(f"the worker did not {what}: {why}")
        self.errno = errno


class WorkerLink:
    """The connection to a worker."""

    def __init__(self, sock: socket.socket) -> None:
        """Take a connected SOCK_SEQPACKET socket over."""
        self._sock = sock
        self._sock.settimeout(ANSWER_S)
        self._seq = 0
        #: Whether answers are outstanding that should have come.
        self.late = False
        #: Called once before the socket is closed: for whoever watches its descriptor.
        self.before_close: Callable[[], object] | None = None

    def fileno(self) -> int:
        """The socket's descriptor; it becomes readable when the worker ends."""
        return self._sock.fileno()

    def close(self) -> None:
        """Close the connection."""
        hook, self.before_close = self.before_close, None
        if hook is not None:
            hook()
        self._sock.close()

    def _ask(self, kind: int, what: str, body: bytes = b"", fds: Sequence[int] = ()) -> int:
        self._seq += 1
        data = _HEAD.pack(_MAGIC, kind, self._seq, 0) + body.ljust(_BODY_BYTES, b"\0")
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            self._sock.sendmsg([data], rights, socket.MSG_NOSIGNAL)
        except OSError:
            raise LinkError(what) from None
        status = self._answer(kind, what)
        if status is None:
            self.late = True
            if kind == _STOP:  # its answer is what was asked for
                raise LinkError(what, errno.ETIMEDOUT)
            return 0
        self.late = False
        if status < 0:
            raise LinkError(what, -status)
        return status

    def _answer(self, kind: int, what: str) -> int | None:
        """The status that answers the last message, past late ones; None: not in time."""
        self._sock.settimeout(0 if self.late else ANSWER_S)
        try:
            while True:
                seq, answered, status = self._receive(what)
                if seq == self._seq:
                    if answered != kind:
                        raise LinkError(what)
                    return status
        except (TimeoutError, BlockingIOError):
            return None
        finally:
            self._sock.settimeout(ANSWER_S)

    def _receive(self, what: str) -> tuple[int, int, int]:
        """Sequence number, type and status of the next answer.

        Raises:
            LinkError: The worker is gone.
            TimeoutError, BlockingIOError: There is none.
        """
        try:
            answer = self._sock.recv(_SIZE + 1)
        except (TimeoutError, BlockingIOError):
            raise
        except OSError:
            raise LinkError(what) from None
        if len(answer) != _SIZE:
            raise LinkError(what)
        magic, answered, seq, status = _HEAD.unpack_from(answer)
        if magic != _MAGIC or seq > self._seq:
            raise LinkError(what)
        return int(seq), int(answered), int(status)

    def catch_up(self) -> None:
        """Take late answers; for when the socket is readable though nothing was asked.

        Raises:
            LinkError: The worker is gone.
        """
        self._sock.settimeout(0)
        try:
            while True:
                seq, _, _ = self._receive("stay")
                if seq == self._seq:
                    self.late = False
        except (TimeoutError, BlockingIOError):
            pass
        finally:
            self._sock.settimeout(ANSWER_S)

    def features(self, value: int) -> None:
        """Say which features were agreed upon."""
        self._ask(_FEATURES, "take the features", struct.pack("<Q", value))

    def clear(self) -> None:
        """Have the guest's memory forgotten; its queues stop."""
        self._ask(_CLEAR, "let go of the guest's memory")

    def memory(self, region: Region, fd: int) -> None:
        """Add a region of the guest's memory."""
        body = struct.pack("<QQQQ", region.gpa, region.uva, region.size, region.offset)
        self._ask(_MEMORY, f"map {region.size} bytes of the guest's memory", body, [fd])

    def ring(
        self,
        index: int,
        size: int,
        addresses: tuple[int, int, int],
        *,
        kick: int | None,
        call: int | None,
        enabled: bool,
    ) -> None:
        """Set a queue up.

        Args:
            index: 0: to the guest; 1: from it.
            size: Entries.
            addresses: Of descriptors, available ring and used ring.
            kick: Descriptor by which the guest announces work; None: it does not.
            call: Descriptor by which the guest is interrupted; None: it is not.
            enabled: Whether it may run at once.
        """
        flags = (_KICK_COMES if kick is not None else 0) | (_CALL_COMES if call is not None else 0)
        body = _RING_BODY.pack(index, size, flags | (_ENABLED if enabled else 0), 0, *addresses)
        fds = [fd for fd in (kick, call) if fd is not None]
        self._ask(_RING, f"set up queue {index}", body, fds)

    def enable(self, index: int, on: bool) -> None:
        """Let a queue run, or pause it."""
        body = _RING_BODY.pack(index, 0, _ENABLED if on else 0, 0, 0, 0, 0)
        self._ask(_ENABLE, f"{'run' if on else 'pause'} queue {index}", body)

    def call(self, index: int, fd: int | None) -> None:
        """Replace a queue's call descriptor."""
        body = _RING_BODY.pack(index, 0, 0, 0, 0, 0, 0)
        self._ask(
            _CALL, f"take a call descriptor of queue {index}", body, [] if fd is None else [fd]
        )

    def stop(self, index: int) -> int:
        """Take a queue down; the position of the next chain that would have been taken."""
        return self._ask(_STOP, f"stop queue {index}", _RING_BODY.pack(index, 0, 0, 0, 0, 0, 0))

    def start(self) -> None:
        """Say that everything has been said that there was to say."""
        self._ask(_START, "start")
