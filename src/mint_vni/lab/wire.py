# SPDX-License-Identifier: Apache-2.0
"""The control protocol of ``native/control.h``, as the supervisor and raw ports speak it."""

from __future__ import annotations

import array
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mint_vni._native import ffi, lib
from mint_vni.errors import FabricError
from mint_vni.fabric.config import PortSpec
from mint_vni.nodes.proc import receive_fds

OPEN = int(lib.MINT_MSG_OPEN)
TAP = int(lib.MINT_MSG_TAP)
ADD_PEER = int(lib.MINT_MSG_ADD_PEER)
DROP_PEER = int(lib.MINT_MSG_DROP_PEER)
GIVE = int(lib.MINT_MSG_GIVE)
STOP = int(lib.MINT_MSG_STOP)
VHOST = int(lib.MINT_MSG_VHOST)

SIZE = int(ffi.sizeof("struct mint_msg"))
_FDS_MAX = 8


def _new(kind: int) -> Any:
    m = ffi.new("struct mint_msg *")
    m.magic, m.version, m.type = lib.MINT_MSG_MAGIC, lib.MINT_ABI_VERSION, kind
    return m


def _bytes(m: Any) -> bytes:
    return bytes(ffi.buffer(m))


def open_message(spec: PortSpec, slots: int, layout: int, uid: int, gid: int) -> bytes:
    """Serve this port, as this user."""
    m = _new(OPEN)
    spec.fill(m.u.open.port, slots, layout)
    m.u.open.uid, m.u.open.gid = uid, gid
    return _bytes(m)


def tap_message(offload: bool) -> bytes:
    """Serve the TAP device whose descriptor comes along."""
    m = _new(TAP)
    m.u.tap.offload = offload
    return _bytes(m)


def vhost_message() -> bytes:
    """Serve the guest whose agent is at the other end of the socket that comes along."""
    return _bytes(_new(VHOST))


def add_peer_message(spec: PortSpec, capacity: int) -> bytes:
    """Open the channels with this port."""
    m = _new(ADD_PEER)
    spec.fill_peer(m.u.peer, capacity)
    return _bytes(m)


def drop_peer_message(index: int) -> bytes:
    """Close the channels with this port."""
    m = _new(DROP_PEER)
    m.u.peer.index = index
    return _bytes(m)


def plain_message(kind: int) -> bytes:
    """GIVE or STOP."""
    return _bytes(_new(kind))


@dataclass
class Message:
    """A message that was received, with the descriptors that came along (the receiver's now)."""

    type: int
    status: int
    fds: list[int] = field(default_factory=list)
    spec: PortSpec | None = None  # OPEN: the port; ADD_PEER, DROP_PEER: index, MAC and bridge only
    slots: int = 0
    layout: int = 0
    uid: int = 0
    capacity: int = 0
    offload: bool = False

    def close(self) -> None:
        """Close the descriptors."""
        while self.fds:
            os.close(self.fds.pop())


def parse(data: bytes, fds: Sequence[int] = ()) -> Message:
    """Read a message.

    Raises:
        FabricError: not a message of this version.
    """
    if len(data) != SIZE:
        raise FabricError(f"control message of {len(data)} bytes instead of {SIZE}")
    m = ffi.new("struct mint_msg *")
    ffi.memmove(m, data, SIZE)
    if m.magic != lib.MINT_MSG_MAGIC or m.version != lib.MINT_ABI_VERSION:
        raise FabricError("control message of another version; restart the lab")
    message = Message(type=m.type, status=m.status, fds=list(fds))
    if m.type == OPEN:
        port = m.u.open.port
        message.spec = PortSpec.read(port)
        message.slots, message.layout, message.uid = port.slots, port.layout, m.u.open.uid
    elif m.type == TAP:
        message.offload = bool(m.u.tap.offload)
    elif m.type in (ADD_PEER, DROP_PEER):
        peer = m.u.peer
        message.capacity = peer.capacity
        message.spec = PortSpec(
            peer.index, "", bytes(peer.mac).hex(":"), bool(peer.flags & lib.MINT_PORT_BRIDGE)
        )
    return message


def send(sock: socket.socket, data: bytes, fds: Sequence[int] = ()) -> None:
    """Send a message with descriptors; the caller closes its own."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sock.sendmsg([data], rights, socket.MSG_NOSIGNAL)


def receive(sock: socket.socket, flags: int = 0) -> Message:
    """The next message.

    Raises:
        ConnectionError: the other side is gone.
        BlockingIOError: none now (with ``MSG_DONTWAIT``); TimeoutError: none in time.
    """
    data, fds = receive_fds(sock, SIZE + 1, _FDS_MAX, flags)
    if not data:
        raise ConnectionError("the other side of a control connection is gone")
    try:
        return parse(data, fds)
    except FabricError:
        for fd in fds:
            os.close(fd)
        raise
