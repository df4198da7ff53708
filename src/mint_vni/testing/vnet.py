# SPDX-License-Identifier: Apache-2.0
"""The header before each frame in a virtqueue (VIRTIO 1.2, section 5.1.6)."""

from __future__ import annotations

import struct
from dataclasses import dataclass

#: Flags.
NEEDS_CSUM = 1
DATA_VALID = 2

#: Kinds of segmentation.
GSO_NONE = 0
GSO_TCPV4 = 1
GSO_UDP = 3
GSO_TCPV6 = 4
GSO_UDP_L4 = 5
GSO_ECN = 0x80

_SHORT = struct.Struct("<BBHHHH")
_LONG = struct.Struct("<BBHHHHH")


@dataclass(frozen=True)
class Vnet:
    """A ``virtio_net_hdr_v1``; offsets and sizes in bytes.

    Attributes:
        flags: NEEDS_CSUM, DATA_VALID.
        gso_type: one of GSO_*, perhaps with GSO_ECN.
        hdr_len: length of the headers that each segment gets.
        gso_size: most payload bytes of a segment.
        csum_start: where the checksum begins to count.
        csum_offset: where it is stored, from there.
        num_buffers: how many buffers the frame was spread over; 0 where there is no such field.
    """

    flags: int = 0
    gso_type: int = GSO_NONE
    hdr_len: int = 0
    gso_size: int = 0
    csum_start: int = 0
    csum_offset: int = 0
    num_buffers: int = 0

    def pack(self, size: int = 12) -> bytes:
        """The header in 12 bytes, or in 10 without ``num_buffers``."""
        sizes = (self.hdr_len, self.gso_size, self.csum_start, self.csum_offset)
        if size == 10:
            return _SHORT.pack(self.flags, self.gso_type, *sizes)
        return _LONG.pack(self.flags, self.gso_type, *sizes, self.num_buffers)

    @classmethod
    def unpack(cls, data: bytes) -> Vnet:
        """The reverse, from 10 or 12 bytes."""
        return cls(*(_SHORT if len(data) == 10 else _LONG).unpack(data))
