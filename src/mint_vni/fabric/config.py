# SPDX-License-Identifier: Apache-2.0
"""The core's configuration structures, from plain Python values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mint_vni._native import ffi, lib

#: Bytes that may come on top of the MTU: the Ethernet header and two VLAN tags.
FRAME_OVERHEAD = 14 + 8

#: Longest frame that the fabric carries, in bytes, without frame check sequence.
FRAME_MAX = int(lib.MINT_FRAME_MAX)
FRAME_MIN = int(lib.MINT_FRAME_MIN)


def mac_bytes(mac: str) -> bytes:
    """``"02:4d:56:00:00:01"`` as six bytes."""
    return bytes.fromhex(mac.replace(":", ""))


def mac_text(mac: bytes) -> str:
    """Six bytes as ``"02:4d:56:00:00:01"``."""
    return mac.hex(":")


#: Longest time after which idle memory can be given back, seconds.
IDLE_S_MAX = 6553.5


def idle_ds(seconds: float) -> int:
    """Seconds as the core has them: tenths, at least one unless it is to be never."""
    return max(1, round(min(seconds, IDLE_S_MAX) * 10)) if seconds > 0 else 0


@dataclass(frozen=True)
class PortSpec:
    """What a fabric knows about one of its ports.

    Attributes:
        index: its place, 0 .. slots - 1.
        name: at most 31 bytes.
        mac: its MAC address, lower-case with colons.
        bridge: whether further MACs live behind it.
        frame_max: longest frame that it takes, bytes.
        poll_us: longest spin before it sleeps, microseconds.
        stall_us: longest wait for room before a channel counts as stalled, microseconds.
        idle_s: seconds after which the memory of an idle channel is given back; 0: never.
    """

    index: int
    name: str
    mac: str
    bridge: bool = False
    frame_max: int = FRAME_MAX
    poll_us: int = 0
    stall_us: int = 20_000
    idle_s: float = 0.0

    def fill(self, c: Any, slots: int, layout: int) -> None:
        """Write this into a ``struct mint_port_config``."""
        c.index, c.slots, c.layout = self.index, slots, layout
        c.flags = lib.MINT_PORT_BRIDGE if self.bridge else 0
        c.poll_us, c.stall_us = self.poll_us, self.stall_us
        c.frame_max = min(self.frame_max, FRAME_MAX)
        c.idle_ds = idle_ds(self.idle_s)
        c.mac = mac_bytes(self.mac)
        c.name = self.name.encode()[: int(lib.MINT_NAME_MAX) - 1]

    @classmethod
    def read(cls, c: Any) -> PortSpec:
        """The reverse of :meth:`fill`."""
        return cls(
            index=c.index,
            name=ffi.string(c.name).decode(errors="replace"),
            mac=mac_text(bytes(c.mac)),
            bridge=bool(c.flags & lib.MINT_PORT_BRIDGE),
            frame_max=c.frame_max,
            poll_us=c.poll_us,
            stall_us=c.stall_us,
            idle_s=c.idle_ds / 10,
        )

    def fill_peer(self, c: Any, capacity: int) -> None:
        """Write this into a ``struct mint_peer_config``, without descriptors."""
        c.index = self.index
        c.flags = lib.MINT_PORT_BRIDGE if self.bridge else 0
        c.capacity = capacity
        c.mac = mac_bytes(self.mac)
        c.ctl_fd = c.tx_fd = c.rx_fd = c.bell_fd = -1
