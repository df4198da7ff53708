# SPDX-License-Identifier: Apache-2.0
"""The back end's sockets: a listener for the front end, its connection, the link to the worker.

One front end at a time: while one is connected, others are turned away. A front end that
disconnects, or whose messages make no sense, leaves the device as it was at first, for the next.

A message is read in two steps, the header and then as many bytes as it announces: front ends send
several at once, and a read beyond the end of one would take the descriptors of the next along.
"""

from __future__ import annotations

import array
import asyncio
import os
import select
import socket
import struct
from collections.abc import Callable
from typing import Any, Final

from mint_vni.ports.vhost_user.device import VhostDevice
from mint_vni.ports.vhost_user.link import WorkerLink
from mint_vni.ports.vhost_user.protocol import HEADER_BYTES, Header, ProtocolError

__all__ = ["VhostUserServer"]

_FDS_MAX: Final = 16  # a message has 8 at most
_SEND_BUFFER: Final = 65_536
_RECEIVES_MAX: Final = 64  # in a row; then others have their turn
_ACCEPT_AGAIN_S: Final = 0.2


class _Connection:
    """One front end: messages in, answers out. Everything is bounded; nothing blocks."""

    def __init__(self, sock: socket.socket, device: VhostDevice) -> None:
        self.sock = sock
        self._device = device
        self._header: Header | None = None
        self._data = bytearray()
        self._fds: list[int] = []

    def read(self) -> bool:
        """Read what there is, or much of it; False: it has disconnected.

        Raises:
            ProtocolError: It speaks nonsense.
        """
        received = 0
        while True:
            wanted = self._header.size if self._header else HEADER_BYTES
            if len(self._data) < wanted:
                if received == _RECEIVES_MAX:
                    return True  # the loop calls again: there may be no end to it
                received += 1
                try:
                    data = self._receive(wanted - len(self._data))
                except (BlockingIOError, InterruptedError):
                    return True
                except OSError:
                    return False
                if not data:
                    return False
                self._data += data
                continue
            data = bytes(self._data)
            self._data.clear()
            if self._header is None:
                self._header = Header.parse(data)
            else:
                header, self._header = self._header, None
                self._serve(header, data)

    def _receive(self, size: int) -> bytes:
        room = socket.CMSG_SPACE(_FDS_MAX * struct.calcsize("i"))
        data, ancillary, flags, _ = self.sock.recvmsg(size, room, socket.MSG_CMSG_CLOEXEC)
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds = array.array("i")
                fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
                self._fds += fds
        if flags & socket.MSG_CTRUNC or len(self._fds) > _FDS_MAX:
            raise ProtocolError("more descriptors than any message has")
        return data

    def _serve(self, header: Header, payload: bytes) -> None:
        fds, self._fds = self._fds, []
        try:
            answer = self._device.handle(header.request, payload, fds, need_reply=header.need_reply)
        finally:
            for fd in fds:
                os.close(fd)
        if answer is not None:
            try:
                sent = self.sock.send(answer, socket.MSG_NOSIGNAL)
            except OSError as error:
                raise ProtocolError(f"it does not take its answers ({error.strerror})") from None
            if sent != len(answer):
                raise ProtocolError("it does not take its answers")

    def gone(self) -> bool:
        """Tell whether the other side has closed it, whatever of it was not read yet."""
        poll = select.poll()
        poll.register(self.sock, select.POLLRDHUP)
        return bool(poll.poll(0))

    def close(self) -> None:
        for fd in self._fds:
            os.close(fd)
        self._fds = []
        self.sock.close()


class VhostUserServer:
    """A device's sockets; see the module. All methods are for the event loop's thread."""

    def __init__(
        self,
        listener: socket.socket,
        *,
        mac: str,
        mtu: int,
        offload: bool,
        log: Callable[[str], None],
        uids: frozenset[int] | None = None,
    ) -> None:
        """Make the device; nothing is served yet.

        Args:
            listener: A listening SOCK_STREAM socket of the Unix domain; taken over.
            mac: The device's MAC address.
            mtu: Its MTU, bytes.
            offload: Whether checksum and segmentation offload are offered to the guest.
            log: Called with one line for each thing worth knowing.
            uids: Users who may connect; None: whoever the file system lets.
        """
        self._listener = listener
        self._listener.setblocking(False)
        self._uids = uids
        self._log = log
        self._device = VhostDevice(mac, mtu, offload=offload, log=log)
        self._connection: _Connection | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._connections = 0
        self._pause: asyncio.TimerHandle | None = None

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to serve, in this loop."""
        self._loop = loop
        self._listen()

    def _listen(self) -> None:
        self._pause = None
        self._running().add_reader(self._listener, self._accept)

    def _running(self) -> asyncio.AbstractEventLoop:
        assert self._loop is not None, "start() comes first"
        return self._loop

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError as error:  # no descriptors left, say: whoever waits is served later
            self._log(f"error: a vhost-user connection cannot be served now: {error.strerror}")
            # It stays readable, and the loop would call again at once.
            self._running().remove_reader(self._listener)
            self._pause = self._running().call_later(_ACCEPT_AGAIN_S, self._listen)
            return
        if self._connection is not None and self._connection.gone():
            self._disconnect("disconnected")
        refusal = self._refusal(sock)
        if refusal is not None:
            self._log(f"refused a vhost-user connection: {refusal}")
            sock.close()
            return
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        self._connection = _Connection(sock, self._device)
        self._connections += 1
        self._running().add_reader(sock, self._readable)

    def _refusal(self, sock: socket.socket) -> str | None:
        size = struct.calcsize("3i")
        data = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        pid, uid, _ = struct.unpack("3i", data)
        if self._uids is not None and uid not in self._uids:
            return f"user {uid} (process {pid}) is not the guest's"
        if self._connection is not None:
            return f"process {pid} (user {uid}) is a second one; a guest is connected already"
        return None

    def _readable(self) -> None:
        assert self._connection is not None
        try:
            if not self._connection.read():
                self._disconnect("disconnected")
        except ProtocolError as error:
            self._disconnect(f"was disconnected: {error}")

    def _disconnect(self, how: str) -> None:
        if self._connection is None:
            return
        self._running().remove_reader(self._connection.sock)
        self._connection.close()
        self._connection = None
        self._device.reset()
        self._log(f"the guest {how}")

    def link(self, sock: socket.socket) -> None:
        """Serve the guest by a (new) worker.

        Args:
            sock: A connected SOCK_SEQPACKET socket to it; taken over.
        """
        link = WorkerLink(sock)
        loop, fd = self._running(), link.fileno()
        loop.add_reader(fd, self._device.link_readable)
        link.before_close = lambda: loop.remove_reader(fd)
        self._device.link(link)

    def set_link(self, up: bool) -> None:
        """Plug the guest's cable in, or pull it."""
        self._device.set_link(up)

    def status(self) -> dict[str, Any]:
        """What is known of the guest and its device; JSON-able."""
        return {
            "connected": self._connection is not None,
            "connections": self._connections,
            **self._device.status(),
        }

    def close(self) -> None:
        """End it all; the listener too."""
        if self._loop is not None:
            if self._pause is not None:
                self._pause.cancel()
            self._loop.remove_reader(self._listener)
            self._disconnect("was disconnected: its node is being stopped")
            self._device.unlink()
        self._listener.close()
