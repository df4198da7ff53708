# SPDX-License-Identifier: Apache-2.0
"""A program's own port on a fabric: Ethernet frames in and out.

Theory of operation: the work is done in C (``native/packed.c``), one call for a batch of frames;
the interpreter lock is released meanwhile. Frames are plain: what the sender left to offloading
arrives with its checksums complete and cut to size.

A port may be used by several threads: calls take turns. A call that waits in :meth:`Port.recv`
is interrupted by any other call on the same port and goes on waiting after it.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from array import array
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from mint_vni._native import ffi, lib
from mint_vni.errors import ChannelFull, FabricError, FrameError, ReceiveTimeout
from mint_vni.fabric.config import FRAME_MAX, FRAME_MIN, PortSpec

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

_RECV_FRAMES = 256  # most frames that one call into C takes
_RECV_BYTES = 4 * FRAME_MAX + _RECV_FRAMES * 2048


def _ns(timeout: float | None) -> int:
    return -1 if timeout is None else max(0, int(timeout * 1e9))


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
        self._lock = threading.Lock()
        self._turn = threading.Lock()
        self._service: Callable[[], None] | None = None
        self._service_fd = -1
        self._kick = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        config = ffi.new("struct mint_port_config *")
        spec.fill(config, slots, layout)
        out = ffi.new("struct mint_port **")
        err = lib.mint_port_open(out, config, control_fd, -1 if pool_fd is None else pool_fd)
        if err < 0:
            os.close(self._kick)
            self._kick = -1
            raise FabricError(f"port {spec.name} cannot be opened: {os.strerror(-err)}")
        self._port: Any = out[0]
        self._plain: Any = lib.mint_plain_new()
        self._buffer: Any = ffi.new("uint8_t[]", _RECV_BYTES)
        self._lens: Any = ffi.new("uint32_t[]", _RECV_FRAMES)
        _check(lib.mint_port_watch(self._port, self._kick, lib.MINT_EV_CONTROL), "port")

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
        state = "closed" if self._kick < 0 else "open"
        return f"<Port {self.name} {self.mac} {state}>"

    def close(self) -> None:
        """Leave the fabric; safe to repeat."""
        if self._kick < 0:
            return
        with self._exclusive():
            port, self._port = self._port, None
            for index in list(self._bells):
                lib.mint_port_drop_peer(port, index)
                os.close(self._bells.pop(index))
            lib.mint_port_close(port)
            lib.mint_plain_free(self._plain)
            os.close(self._kick)
            self._kick = -1
        if self._on_close:
            self._on_close(self)

    @property
    def handle(self) -> Any:
        """The core's ``struct mint_port *``, for loops in C that own the port meanwhile."""
        if self._port is None:
            raise FabricError(f"port {self.name} is closed; open another")
        return self._port

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """One thread at a time; whoever waits in recv() is made to let go."""
        with self._turn:
            if not self._lock.acquire(blocking=False):
                os.eventfd_write(self._kick, 1)
                self._lock.acquire()
        try:
            if self._port is None and self._kick < 0:
                raise FabricError(f"port {self.name} is closed; open another")
            yield
        finally:
            self._lock.release()

    # -- peers ----------------------------------------------------------------------------------

    def add_peer(self, spec: PortSpec, capacity: int, fds: Sequence[int]) -> None:
        """Open the channels with another port.

        Args:
            spec: the other port.
            capacity: bytes of each payload region; 0 in layout ``shared``.
            fds: as :meth:`mint_vni.fabric.regions.Regions.peer_fds` gives them; they stay the
                caller's.

        Raises:
            FabricError: a region is not what it should be, or out of memory.
        """
        c = ffi.new("struct mint_peer_config *")
        spec.fill_peer(c, capacity)
        c.ctl_fd = fds[0]
        if len(fds) == 4:
            c.tx_fd, c.rx_fd = fds[1], fds[2]
        bell = os.dup(fds[-1])
        c.bell_fd = bell
        with self._exclusive():
            err = lib.mint_port_add_peer(self._port, c)
        if err < 0:
            os.close(bell)
            raise FabricError(f"port {self.name}: channel with {spec.name}: {os.strerror(-err)}")
        self._bells[spec.index] = bell

    def drop_peer(self, index: int) -> None:
        """Close the channels with another port, if they are open."""
        with self._exclusive():
            lib.mint_port_drop_peer(self._port, index)
            bell = self._bells.pop(index, None)
            if bell is not None:
                os.close(bell)

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
                gives the receiver up as stalled, drops the frame and counts it.

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
        done = ffi.new("uint32_t *")
        limit, sent = _ns(timeout), 0
        start = time.monotonic_ns()
        if self._service:
            self._service()
        while True:
            with self._exclusive():
                err = lib.mint_port_send_packed(
                    self._port,
                    ffi.from_buffer("uint8_t[]", data),
                    ffi.from_buffer("uint32_t[]", lens),
                    len(lens),
                    limit,
                    done,
                )
            sent += done[0]
            if err == -errno.EMSGSIZE:
                raise FrameError(
                    f"port {self.name}: frame {sent} has {lens[done[0]]} bytes;"
                    f" send {FRAME_MIN} to {FRAME_MAX}"
                )
            if err == -errno.EINTR and limit != 0:
                data = memoryview(data)[sum(lens[: done[0]]) :]
                lens = lens[done[0] :]
                if limit > 0:
                    limit = max(0, _ns(timeout) - (time.monotonic_ns() - start))
                continue
            return int(sent)

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
            limit: most frames to return; at most 256 come at once.
            timeout: seconds to wait for the first frame; None: for ever.

        Returns:
            The frames, oldest first; an empty list after the time-out.
        """
        deadline = None if timeout is None else time.monotonic_ns() + _ns(timeout)
        limit = min(limit, _RECV_FRAMES)
        while True:
            left = -1 if deadline is None else max(0, deadline - time.monotonic_ns())
            with self._exclusive():
                n = lib.mint_port_recv_packed(
                    self._port, self._plain, self._buffer, _RECV_BYTES, self._lens, limit, left
                )
                if n > 0:
                    return self._unpack(n)
                if n == -errno.EINTR:
                    self._drain_kick()
                elif n < 0:
                    _check(n, f"port {self.name}: receiving")
            if n == 0:
                return []
            if self._service:
                self._service()
            with self._turn:  # whoever kicked goes first
                pass

    def _unpack(self, n: int) -> list[bytes]:
        lens = self._lens[0:n]
        data = ffi.buffer(self._buffer, sum(lens))[:]
        frames, at = [], 0
        for size in lens:
            frames.append(data[at : at + size])
            at += size
        return frames

    def _drain_kick(self) -> None:
        try:
            os.eventfd_read(self._kick)
        except BlockingIOError:
            pass  # it was the service's descriptor, or a signal
