# SPDX-License-Identifier: Apache-2.0
"""Vhost-user messages as a front end sends them: numbers, layouts, and the connection.

Numbers and layouts are those of the public specification, "Vhost-user Protocol" (QEMU's
``docs/interop/vhost-user``) and of the VIRTIO specification 1.2, section 5.1 (network device). All
numbers are in the machine's byte order in the former, little-endian in the latter.
"""

from __future__ import annotations

import array
import enum
import os
import select
import socket
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from mint_vni.errors import FabricError

#: Flags of a message's header.
VERSION = 1
FLAG_REPLY = 1 << 2
FLAG_NEED_REPLY = 1 << 3

#: In SET_VRING_KICK, CALL and ERR: no descriptor comes along.
NO_FD = 1 << 8

#: What the log address of SET_VRING_ADDR is where there is none, as UML says it.
NO_LOG = (1 << 64) - 1

HEADER = struct.Struct("=III")
_FDS_MAX = 32


class Request(enum.IntEnum):
    """What a front end asks."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    RESET_OWNER = 4
    SET_MEM_TABLE = 5
    SET_LOG_BASE = 6
    SET_LOG_FD = 7
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    SEND_RARP = 19
    NET_SET_MTU = 20
    SET_BACKEND_REQ_FD = 21
    IOTLB_MSG = 22
    SET_VRING_ENDIAN = 23
    GET_CONFIG = 24
    SET_CONFIG = 25
    RESET_DEVICE = 34
    VRING_KICK = 35
    GET_MAX_MEM_SLOTS = 36
    ADD_MEM_REG = 37
    REM_MEM_REG = 38
    SET_STATUS = 39
    GET_STATUS = 40


class BackendRequest(enum.IntEnum):
    """What a back end asks, over the socket that SET_BACKEND_REQ_FD gave it."""

    IOTLB_MSG = 1
    CONFIG_CHANGE = 2
    VRING_HOST_NOTIFIER = 3
    VRING_CALL = 4
    VRING_ERR = 5


class ProtocolFeature(enum.IntFlag):
    """Extensions of the protocol."""

    MQ = 1 << 0
    LOG_SHMFD = 1 << 1
    RARP = 1 << 2
    REPLY_ACK = 1 << 3
    MTU = 1 << 4
    BACKEND_REQ = 1 << 5
    CROSS_ENDIAN = 1 << 6
    PAGEFAULT = 1 << 8
    CONFIG = 1 << 9
    BACKEND_SEND_FD = 1 << 10
    HOST_NOTIFIER = 1 << 11
    INFLIGHT_SHMFD = 1 << 12
    RESET_DEVICE = 1 << 13
    INBAND_NOTIFICATIONS = 1 << 14
    CONFIGURE_MEM_SLOTS = 1 << 15
    STATUS = 1 << 16


class Feature(enum.IntFlag):
    """Features of a virtio network device, of its rings, and bit 30 of vhost-user."""

    CSUM = 1 << 0
    GUEST_CSUM = 1 << 1
    MTU = 1 << 3
    MAC = 1 << 5
    GUEST_TSO4 = 1 << 7
    GUEST_TSO6 = 1 << 8
    GUEST_ECN = 1 << 9
    GUEST_UFO = 1 << 10
    HOST_TSO4 = 1 << 11
    HOST_TSO6 = 1 << 12
    HOST_ECN = 1 << 13
    HOST_UFO = 1 << 14
    MRG_RXBUF = 1 << 15
    STATUS = 1 << 16
    CTRL_VQ = 1 << 17
    GUEST_ANNOUNCE = 1 << 21
    MQ = 1 << 22
    NOTIFY_ON_EMPTY = 1 << 24
    LOG_ALL = 1 << 26
    ANY_LAYOUT = 1 << 27
    INDIRECT_DESC = 1 << 28
    EVENT_IDX = 1 << 29
    PROTOCOL_FEATURES = 1 << 30
    VERSION_1 = 1 << 32
    ACCESS_PLATFORM = 1 << 33
    RING_PACKED = 1 << 34
    IN_ORDER = 1 << 35
    GUEST_USO4 = 1 << 54
    GUEST_USO6 = 1 << 55
    HOST_USO = 1 << 56


#: What Linux's virtio-net and its split rings make use of, of what this package can do.
GUEST_FEATURES = (
    Feature.CSUM
    | Feature.GUEST_CSUM
    | Feature.MTU
    | Feature.MAC
    | Feature.GUEST_TSO4
    | Feature.GUEST_TSO6
    | Feature.GUEST_ECN
    | Feature.HOST_TSO4
    | Feature.HOST_TSO6
    | Feature.HOST_ECN
    | Feature.MRG_RXBUF
    | Feature.STATUS
    | Feature.INDIRECT_DESC
    | Feature.EVENT_IDX
    | Feature.PROTOCOL_FEATURES
    | Feature.VERSION_1
)


def u64(value: int) -> bytes:
    """A payload of one number."""
    return struct.pack("=Q", value)


def vring_state(index: int, num: int) -> bytes:
    """The payload of SET_VRING_NUM, BASE and ENABLE, and of GET_VRING_BASE."""
    return struct.pack("=II", index, num)


def vring_addr(index: int, desc: int, used: int, avail: int, log: int, flags: int = 0) -> bytes:
    """The payload of SET_VRING_ADDR; addresses are user addresses."""
    return struct.pack("=IIQQQQ", index, flags, desc, used, avail, log)


def mem_table(regions: Sequence[tuple[int, int, int, int]]) -> bytes:
    """The payload of SET_MEM_TABLE, as long as its regions.

    Args:
        regions: guest address, size, user address and offset in the file, all in bytes.
    """
    return struct.pack("=II", len(regions), 0) + b"".join(
        struct.pack("=QQQQ", *region) for region in regions
    )


def config_space(offset: int, data: bytes, flags: int = 0) -> bytes:
    """The payload of GET_CONFIG (with zeros for data) and SET_CONFIG."""
    return struct.pack("=III", offset, len(data), flags) + data


@dataclass
class Message:
    """A message that was received; its descriptors are the receiver's to close."""

    request: int
    flags: int
    payload: bytes
    fds: list[int] = field(default_factory=list)

    def close(self) -> None:
        """Close the descriptors."""
        while self.fds:
            os.close(self.fds.pop())

    def u64(self) -> int:
        """The number that the payload is.

        Raises:
            FabricError: it is none.
        """
        if len(self.payload) != 8:
            raise FabricError(
                f"vhost-user back end: reply to {name_of(self.request)} has {len(self.payload)}"
                " bytes instead of 8; it does not speak the protocol"
            )
        return int(struct.unpack("=Q", self.payload)[0])


def name_of(request: int) -> str:
    """A request's name, or its number where it has none."""
    try:
        return Request(request).name
    except ValueError:
        return f"request {request}"


class Connection:
    """A stream socket with messages on it."""

    def __init__(self, sock: socket.socket, timeout: float = 5.0) -> None:
        """Take over a socket.

        Args:
            sock: connected; closed with this.
            timeout: longest time that the other side may take, seconds.
        """
        self.sock = sock
        self.timeout = timeout

    def close(self) -> None:
        """Hang up."""
        self.sock.close()

    def send(
        self, request: int, payload: bytes = b"", fds: Sequence[int] = (), flags: int = VERSION
    ) -> None:
        """Send a message; the descriptors stay the caller's.

        Raises:
            FabricError: the other side is gone, or reads nothing.
        """
        self.send_raw(HEADER.pack(request, flags, len(payload)) + payload, fds)

    def send_raw(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Send any bytes, as :meth:`send`."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.sock.settimeout(self.timeout)
        try:
            done = self.sock.sendmsg([data], rights, socket.MSG_NOSIGNAL)
            if done < len(data):
                self.sock.sendall(data[done:])
        except OSError as error:
            raise _gone(error) from None

    def receive(self, timeout: float | None = None) -> Message:
        """The next message.

        Args:
            timeout: seconds; None: as the connection was made.

        Raises:
            FabricError: the other side is gone, or says nothing in time, or half of a message.
        """
        deadline = time.monotonic() + (self.timeout if timeout is None else timeout)
        fds: list[int] = []
        try:
            header = self._read(HEADER.size, deadline, fds)
            request, flags, size = HEADER.unpack(header)
            return Message(request, flags, self._read(size, deadline, fds), fds)
        except BaseException:
            for fd in fds:
                os.close(fd)
            raise

    def _read(self, size: int, deadline: float, fds: list[int]) -> bytes:
        data = b""
        while len(data) < size:
            self.sock.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                more, new, _, _ = socket.recv_fds(self.sock, size - len(data), _FDS_MAX)
            except OSError as error:
                raise _gone(error) from None
            fds += new
            if not more:
                raise FabricError(
                    "vhost-user: the other side closed the connection; see its log for the reason"
                )
            data += more
        return data

    def readable(self, timeout: float) -> bool:
        """Whether something, or the end, can be read within ``timeout`` seconds."""
        poller = select.poll()
        poller.register(self.sock, select.POLLIN)
        return bool(poller.poll(timeout * 1000))


def _gone(error: OSError) -> FabricError:
    why = "no answer in time" if isinstance(error, TimeoutError) else str(error.strerror or error)
    return FabricError(f"vhost-user: {why}; see the other side's log for the reason")
