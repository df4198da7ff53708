# SPDX-License-Identifier: Apache-2.0
"""Messages of the vhost-user protocol, as a back end reads and writes them.

Section numbers are of the Virtual I/O Device specification, version 1.2; message names are those of
the vhost-user specification (sections "Header", "Payload" and "Front-end message types").

Nothing here is believed: sizes are checked before anything is unpacked, and each wrong message
raises `ProtocolError`, which ends the connection.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Final

__all__ = [
    "HEADER_BYTES",
    "PAYLOAD_MAX",
    "BackendRequest",
    "Config",
    "Feature",
    "Header",
    "ProtocolError",
    "ProtocolFeature",
    "Region",
    "Request",
    "VringAddress",
    "VringState",
]


class ProtocolError(Exception):
    """What the front end said is no vhost-user, or not in this state."""


class Request(IntEnum):
    """Front-end message types."""

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
    GET_CONFIG = 24
    SET_CONFIG = 25


class BackendRequest(IntEnum):
    """Back-end message types."""

    CONFIG_CHANGE_MSG = 2


class Feature(IntFlag):
    """Feature bits (sections 5.1.3 and 6; PROTOCOL_FEATURES is vhost-user's own)."""

    CSUM = 1 << 0
    GUEST_CSUM = 1 << 1
    MTU = 1 << 3
    MAC = 1 << 5
    GUEST_TSO4 = 1 << 7
    GUEST_TSO6 = 1 << 8
    GUEST_ECN = 1 << 9
    HOST_TSO4 = 1 << 11
    HOST_TSO6 = 1 << 12
    HOST_ECN = 1 << 13
    MRG_RXBUF = 1 << 15
    STATUS = 1 << 16
    ANY_LAYOUT = 1 << 27
    INDIRECT_DESC = 1 << 28
    EVENT_IDX = 1 << 29
    PROTOCOL_FEATURES = 1 << 30
    VERSION_1 = 1 << 32


class ProtocolFeature(IntFlag):
    """Protocol feature bits."""

    REPLY_ACK = 1 << 3
    NET_MTU = 1 << 4
    BACKEND_REQ = 1 << 5
    CONFIG = 1 << 9


_HEADER: Final = struct.Struct("<III")
HEADER_BYTES: Final = _HEADER.size
PAYLOAD_MAX: Final = 4096  # the longest here is a memory table of 8 regions: 264 bytes

_VERSION: Final = 1
_VERSION_MASK: Final = 3
_REPLY: Final = 4
_NEED_REPLY: Final = 8

_U64: Final = struct.Struct("<Q")
_VRING_STATE: Final = struct.Struct("<II")
_VRING_ADDR: Final = struct.Struct("<IIQQQQ")
_REGION: Final = struct.Struct("<QQQQ")
_CONFIG: Final = struct.Struct("<III")

REGIONS_MAX: Final = 8
_INDEX_MASK: Final = 0xFF
_NO_FD: Final = 0x100


@dataclass(frozen=True)
class Header:
    """A message's first 12 bytes.

    Attributes:
        request: The message type, as received: it may be one that is unknown here.
        size: Bytes of payload that follow.
        need_reply: Whether the front end wants an acknowledgement (REPLY_ACK).
    """

    request: int
    size: int
    need_reply: bool

    @classmethod
    def parse(cls, data: bytes) -> Header:
        """Read a header.

        Args:
            data: `HEADER_BYTES` bytes.

        Raises:
            ProtocolError: Not version 1, a reply, or a payload longer than any there is.
        """
        request, flags, size = _HEADER.unpack(data)
        if flags & _VERSION_MASK != _VERSION or flags & _REPLY:
            raise ProtocolError(f"a header with flags {flags:#x} is none of vhost-user version 1")
        if size > PAYLOAD_MAX:
            raise ProtocolError(f"a payload of {size} bytes is longer than any that there is")
        return cls(request, size, bool(flags & _NEED_REPLY))


def reply(request: int, payload: bytes) -> bytes:
    """Return the answer to a message."""
    return _HEADER.pack(request, _VERSION | _REPLY, len(payload)) + payload


def backend_message(request: BackendRequest) -> bytes:
    """Return a message to the front end that has no payload and wants no answer."""
    return _HEADER.pack(request, _VERSION, 0)


def u64(value: int) -> bytes:
    """Return a payload of one 64-bit number."""
    return _U64.pack(value)


def parse_u64(payload: bytes) -> int:
    """Read a payload of one 64-bit number."""
    return int(_exactly(_U64, payload)[0])


def _exactly(form: struct.Struct, payload: bytes) -> tuple[int, ...]:
    if len(payload) != form.size:
        raise ProtocolError(f"a payload of {len(payload)} bytes where {form.size} are expected")
    return form.unpack(payload)


@dataclass(frozen=True)
class VringState:
    """A number about one queue: its size, its position, whether it is enabled."""

    index: int
    value: int

    @classmethod
    def parse(cls, payload: bytes) -> VringState:
        """Read it."""
        return cls(*_exactly(_VRING_STATE, payload))

    def pack(self) -> bytes:
        """Write it."""
        return _VRING_STATE.pack(self.index, self.value)


@dataclass(frozen=True)
class VringAddress:
    """Where a queue's three parts are, by the front end's (user) addresses."""

    index: int
    desc: int
    used: int
    avail: int

    @classmethod
    def parse(cls, payload: bytes) -> VringAddress:
        """Read it; flags and log address are about dirty-page logging, which is not offered."""
        index, _flags, desc, used, avail, _log = _exactly(_VRING_ADDR, payload)
        return cls(index, desc, used, avail)


@dataclass(frozen=True)
class Region:
    """A piece of the guest's memory.

    Attributes:
        gpa: Guest (physical) address.
        size: Bytes.
        uva: The front end's (user) address.
        offset: Where it begins in the file whose descriptor came along.
    """

    gpa: int
    size: int
    uva: int
    offset: int


def parse_regions(payload: bytes) -> list[Region]:
    """Read a memory table. UML sends as many regions as there are, others may send empty ones."""
    if len(payload) < _VRING_STATE.size:
        raise ProtocolError(f"a memory table of {len(payload)} bytes")
    count, _padding = _VRING_STATE.unpack_from(payload)
    if count > REGIONS_MAX or len(payload) < _VRING_STATE.size + count * _REGION.size:
        raise ProtocolError(f"a memory table of {count} regions in {len(payload)} bytes")
    at = _VRING_STATE.size
    return [Region(*_REGION.unpack_from(payload, at + i * _REGION.size)) for i in range(count)]


def parse_vring_fd(payload: bytes) -> tuple[int, bool]:
    """Read what a message with a queue's descriptor says: the queue, and whether one comes along."""
    value = parse_u64(payload)
    return value & _INDEX_MASK, not value & _NO_FD


@dataclass(frozen=True)
class Config:
    """A range of the device's configuration space."""

    offset: int
    size: int
    flags: int

    @classmethod
    def parse(cls, payload: bytes) -> Config:
        """Read which range is meant; the rest of the payload is room for it."""
        if len(payload) < _CONFIG.size:
            raise ProtocolError(f"a configuration message of {len(payload)} bytes")
        return cls(*_CONFIG.unpack_from(payload))

    def pack(self, data: bytes) -> bytes:
        """Write the answer, with the range's bytes."""
        return _CONFIG.pack(self.offset, len(data), self.flags) + data
