# SPDX-License-Identifier: Apache-2.0
"""A program's own port on a fabric: Ethernet frames in and out.

Theory of operation: the work is done in C (``native/packed.c``), one call for a batch of frames;
the interpreter lock is released meanwhile. Frames are plain: what the sender left to offloading
arrives with its checksums complete and cut to size.

A port may be used by several threads: calls take turns. A call that waits, for a frame or for room,
is interrupted ("kicked") by any other call on the same port and goes on waiting after it. So that
two that wait do not keep interrupting each other, the one that was interrupted is patient: it lets
the other wait for `_PATIENCE_S` before it kicks in turn. Receivers wait for each other without
that: what one would have to wait for, the other is waiting for already.

A signal handler may raise anywhere, also between a lock's acquisition and the statement after it.
The locks are re-entrant for that: the thread that was interrupted can go on, or close the port, and
a handler may use the port itself.

A forked child has no part in its parent's ports: for the child they are closed.
"""

from __future__ import annotations

import errno
import os
import threading
import time
import weakref
from array import array
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from mint_vni._native import ffi, lib
from mint_vni.errors import ChannelFull, FabricError, FrameError, ReceiveTimeout
from mint_vni.fabric.config import FRAME_MAX, FRAME_MIN, PortSpec

if TYPE_CHECKING:
    from types import TracebackType

_RECV_FRAMES = 256  # most frames that one call into C takes
_RECV_BYTES = 4 * FRAME_MAX + _RECV_FRAMES * 2048
_PATIENCE_S = 0.001


def _ns(timeout: float | None) -> int:
    return -1 if timeout is None else int(min(max(0.0, timeout) * 1e9, 2.0**62))


def _check(err: int, what: str) -> None:
    if err < 0:
        raise FabricError(f"{what}: {os.strerror(-err)}")


class Port:
    """One port on a fabric, served by this program.

    Made by :meth:`mint_vni.Fabric.port` or :meth:`mint_vni.Lab.attach`; a context manager that
    closes itself.

    Attributes:
        name: the port's name.
        mac: its MAC address; frames with another source are dropped by their receivers.
    """

    def __init__(
        self,
        spec: PortSpec,
        slots: int,
        layout: int,
        control_fd: int,
        pool_fd: int | None = None,
        on_close: Callable[[Port], None] | None = None,
    ) -> None:
        """Serve a port. The descriptors stay the caller's."""
        self.spec = spec
        self.name = spec.name
        self.mac = spec.mac
        self._on_close = on_close
        self._bells: dict[int, int] = {}
        self._new_locks()
        self._service: Callable[[], None] | None = None
        self._service_fd = -1
        self._kick = -1
        self._port: Any = None
        self._plain: Any = lib.mint_plain_new()
        self._buffers: tuple[Any, Any] | None = None  # taken while they are in use
        try:
            self._open(slots, layout, control_fd, -1 if pool_fd is None else pool_fd)
        except BaseException:
            self._free()
            raise

    def _open(self, slots: int, layout: int, control_fd: int, pool_fd: int) -> None:
        config = ffi.new("struct mint_port_config *")
        self.spec.fill(config, slots, layout)
        out = ffi.new("struct mint_port **")
        what = f"port {self.name} cannot be opened"
        if self._plain == ffi.NULL:
            _check(-errno.ENOMEM, what)
        _check(lib.mint_port_open(out, config, control_fd, pool_fd), what)
        self._port = out[0]
        try:
            self._kick = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        except OSError as error:
            raise FabricError(f"{what}: {error.strerror}") from None
        _check(lib.mint_port_watch(self._port, self._kick, lib.MINT_EV_CONTROL), what)
        _ports.add(self)

    def _new_locks(self) -> None:
        self._lock = threading.RLock()  # held during each call into C
        self._turn = threading.RLock()  # held while waiting for it
        self._receiving = threading.RLock()

    # -- life -----------------------------------------------------------------------------------

    def __enter__(self) -> Port:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._port is None else "open"
        return f"<Port {self.name} {self.mac} {state}>"

    def close(self) -> None:
        """Leave the fabric; safe to repeat. What was sent before still arrives."""
        if self._port is None:
            return
        self._take_turn(patient=False)
        try:
            port, self._port = self._port, None
            if port is None:  # another thread was faster
                return
            lib.mint_port_leave(port)
            lib.mint_port_close(port)
        finally:
            self._lock.release()
        with self._turn:  # nobody is about to kick
            self._free()
        if self._on_close:
            self._on_close(self)

    @property
    def handle(self) -> Any:
        """The core's ``struct mint_port *``, for loops in C that own the port meanwhile."""
        if self._port is None:
            raise FabricError(f"port {self.name} is closed; open another")
        return self._port

    def _forked(self) -> None:
        """In a child: close the parent's port here, whoever held which lock there."""
        self._new_locks()
        lib.mint_port_disown(ffi.NULL if self._port is None else self._port)
        self._port = None
        self._free()

    def _free(self) -> None:
        """Give back all but the locks; nobody is in a call."""
        lib.mint_port_close(ffi.NULL if self._port is None else self._port)
        lib.mint_plain_free(self._plain)
        self._port = None
        self._plain = ffi.NULL
        for fd in [self._kick, *self._bells.values()]:
            if fd >= 0:
                os.close(fd)
        self._kick = -1
        self._bells.clear()

    def _take_turn(self, *, patient: bool) -> None:
        """Take the lock; whoever waits in C is made to let go."""
        with self._turn:
            if self._lock.acquire(blocking=False):
                return
            if patient and self._lock.acquire(timeout=_PATIENCE_S):
                return
            if self._kick >= 0:
                os.eventfd_write(self._kick, 1)
            self._lock.acquire()

    def _enter(self, *, patient: bool = False) -> None:
        """Begin a call into C; `_leave` is to follow, whatever happens."""
        self._take_turn(patient=patient)
        if self._port is None:
            self._lock.release()
            raise FabricError(f"port {self.name} is closed; open another")

    def _leave(self) -> None:
        self._lock.release()

    # -- peers ----------------------------------------------------------------------------------

    def add_peer(self, spec: PortSpec, capacity: int, fds: Sequence[int]) -> None:
        """Open the channels with another port.

        Args:
            spec: the other port.
            capacity: bytes of each payload region (layout ``pooled``: of the other port's pool;
                ``shared``: 0).
            fds: as :meth:`mint_vni.fabric.regions.Regions.peer_fds` gives them; they stay the
                caller's.

        Raises:
            FabricError: a region is not what it should be, or out of memory.
        """
        c = ffi.new("struct mint_peer_config *")
        spec.fill_peer(c, capacity)
        c.ctl_fd = fds[0]
        if len(fds) == 4:
            c.tx_fd = fds[1]
        if len(fds) > 2:
            c.rx_fd = fds[-2]
        what = f"port {self.name}: channel with {spec.name}"
        self._enter()
        try:
            bell = c.bell_fd = os.dup(fds[-1])
            err = lib.mint_port_add_peer(self._port, c)
            if err < 0:
                os.close(bell)
                _check(err, what)
            self._bells[spec.index] = bell
        except OSError as error:
            raise FabricError(f"{what}: {error.strerror}") from None
        finally:
            self._leave()

    def drop_peer(self, index: int) -> None:
        """Close the channels with another port, if they are open."""
        self._enter()
        try:
            lib.mint_port_drop_peer(self._port, index)
            bell = self._bells.pop(index, None)
            if bell is not None:
                os.close(bell)
        finally:
            self._leave()

    def serve(self, fd: int, service: Callable[[], None]) -> None:
        """Call ``service`` (outside the port's lock) whenever ``fd`` is readable during a call."""
        self._service_fd, self._service = fd, service
        _check(lib.mint_port_watch(self._port, fd, lib.MINT_EV_CONTROL), "port")

    def unserve(self) -> None:
        """End what :meth:`serve` began."""
        if self._service is not None:
            lib.mint_port_unwatch(self._port, self._service_fd)
            self._service = None

    # -- frames ---------------------------------------------------------------------------------

    def send(self, frame: bytes | bytearray | memoryview, timeout: float | None = None) -> None:
        """Send one Ethernet frame (without frame check sequence).

        Args:
            frame: 14 to 65,584 bytes; its source MAC should be :attr:`mac`.
            timeout: seconds to wait while the receiver's channel is full; None: until the fabric
                gives the receiver up as stalled, drops the frame and counts it. One that gives
                room, however slowly, is waited for then.

        Raises:
            FrameError: too short or too long; counted, nothing was sent.
            ChannelFull: no room within the time-out; nothing was sent.
        """
        if self.send_many((frame,), timeout) != 1:
            raise ChannelFull(
                f"port {self.name}: the receiver's channel is full; receive there, or wait longer"
            )

    def send_many(
        self, frames: Sequence[bytes | bytearray | memoryview], timeout: float | None = None
    ) -> int:
        """Send frames in order, with one call into C.

        Args:
            frames: as for :meth:`send`.
            timeout: seconds to wait for room, in all; None: as for :meth:`send`.

        Returns:
            How many were accepted: all, unless the time ran out.

        Raises:
            FrameError: a frame is too short or too long; those before it were sent.
        """
        lens = array("I", map(len, frames))
        data = frames[0] if len(frames) == 1 else b"".join(frames)
        deadline = None if timeout is None else time.monotonic_ns() + _ns(timeout)
        limit, sent, patient = _ns(timeout), 0, False
        if self._service:
            self._service()
        while True:
            err, done = self._send_packed(data, lens, limit, patient)
            sent += done
            if err == -errno.EMSGSIZE:
                raise FrameError(
                    f"port {self.name}: frame {sent} has {lens[done]} bytes;"
                    f" send {FRAME_MIN} to {FRAME_MAX}"
                )
            if err != -errno.EINTR:
                return sent
            data, lens = memoryview(data)[sum(lens[:done]) :], lens[done:]
            if deadline is not None:
                limit = max(0, deadline - time.monotonic_ns())
            patient = True

    def _send_packed(self, data: Any, lens: Any, limit: int, patient: bool) -> tuple[int, int]:
        """One call into C. Returns its result and how many frames were accepted."""
        done = ffi.new("uint32_t *")
        frames, sizes = ffi.from_buffer("uint8_t[]", data), ffi.from_buffer("uint32_t[]", lens)
        self._enter(patient=patient)
        try:
            err = lib.mint_port_send_packed(self._port, frames, sizes, len(lens), limit, done)
            if err == -errno.EINTR:
                self._drain_kick()
        finally:
            self._leave()
        return err, done[0]

    def recv(self, timeout: float | None = None) -> bytes:
        """Receive one frame.

        Args:
            timeout: seconds to wait; None: for ever.

        Raises:
            ReceiveTimeout: nothing came in time (also a ``TimeoutError``).
        """
        frames = self.recv_many(1, timeout)
        if not frames:
            raise ReceiveTimeout(f"port {self.name}: no frame within {timeout} s")
        return frames[0]

    def recv_many(self, limit: int = _RECV_FRAMES, timeout: float | None = None) -> list[bytes]:
        """Receive up to ``limit`` frames, waiting for the first only.

        Args:
            limit: most frames to return, 1 or more; at most 256 come at once.
            timeout: seconds to wait for the first frame; None: for ever.

        Returns:
            The frames, oldest first; an empty list after the time-out.
        """
        if limit < 1:
            raise ValueError(f"limit {limit} is too small; ask for one frame or more")
        deadline = None if timeout is None else time.monotonic_ns() + _ns(timeout)
        wait_s = -1.0 if timeout is None else min(max(0.0, timeout), threading.TIMEOUT_MAX)
        if not self._receiving.acquire(timeout=wait_s):
            return []  # another thread has been waiting all the while
        try:
            return self._recv_packed(min(limit, _RECV_FRAMES), deadline)
        finally:
            self._receiving.release()

    def _recv_packed(self, limit: int, deadline: int | None) -> list[bytes]:
        """Receive, however often that is interrupted; this thread is the only receiver."""
        buffers, self._buffers = self._buffers, None
        buffer, lens = buffers or (
            ffi.new("uint8_t[]", _RECV_BYTES),
            ffi.new("uint32_t[]", _RECV_FRAMES),
        )
        patient = False
        while True:
            left = -1 if deadline is None else max(0, deadline - time.monotonic_ns())
            self._enter(patient=patient)
            try:
                n = lib.mint_port_recv_packed(
                    self._port, self._plain, buffer, _RECV_BYTES, lens, limit, left
                )
                if n == -errno.EINTR:
                    self._drain_kick()
            finally:
                self._leave()
            if n >= 0:
                break
            if n != -errno.EINTR:
                _check(n, f"port {self.name}: receiving")
            if self._service:
                self._service()
            patient = True
        frames = _unpack(buffer, lens[0:n]) if n else []
        self._buffers = buffer, lens
        return frames

    def _drain_kick(self) -> None:
        try:
            os.eventfd_read(self._kick)
        except BlockingIOError:
            pass  # it was the service's descriptor, or a signal


def _unpack(buffer: Any, lens: list[int]) -> list[bytes]:
    data = ffi.buffer(buffer, sum(lens))[:]
    frames, at = [], 0
    for size in lens:
        frames.append(data[at : at + size])
        at += size
    return frames


_ports: weakref.WeakSet[Port] = weakref.WeakSet()


def _forget_ports_of_parent() -> None:
    for port in list(_ports):
        port._forked()  # noqa: SLF001 - a function of this class's own module


os.register_at_fork(after_in_child=_forget_ports_of_parent)
