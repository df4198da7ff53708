# SPDX-License-Identifier: Apache-2.0
"""A guest without a guest: the front end of a vhost-user network device, in Python.

It connects to a back end's socket, as QEMU or User-Mode Linux would, with memory and rings built by
hand, and sends and receives Ethernet frames through them. So a back end is tested in milliseconds,
also with what no driver would ever do.
"""

from __future__ import annotations

import os
import socket
import time
from collections import deque
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import NamedTuple, Self

from mint_vni.errors import ChannelFull, FabricError, ReceiveTimeout
from mint_vni.testing.handshake import STYLES
from mint_vni.testing.link import FrontendLink
from mint_vni.testing.memory import GuestMemory
from mint_vni.testing.protocol import GUEST_FEATURES, Feature, ProtocolFeature
from mint_vni.testing.rings import Part, Ring, Used
from mint_vni.testing.vnet import Vnet

RX, TX = 0, 1
_LARGE = Feature.GUEST_TSO4 | Feature.GUEST_TSO6 | Feature.GUEST_UFO
_FRAME_MAX = 65_550  # the longest TCP segment before it is cut, with Ethernet header


class Frame(NamedTuple):
    """A frame that was received.

    Attributes:
        data: the Ethernet frame, without frame check sequence.
        vnet: the header that came with it.
        buffers: how many buffers it was spread over.
    """

    data: bytes
    vnet: Vnet
    buffers: int


class VhostFrontend(FrontendLink):
    """A vhost-user front end with one pair of rings.

    A context manager: entering connects and starts, leaving closes. One thread may send while
    another receives.
    """

    def __init__(  # noqa: PLR0913 - each is a thing in which guests differ
        self,
        socket_path: str | os.PathLike[str] | socket.socket,
        *,
        memory: int | str = "64M",
        regions: int = 2,
        gap: int = 0,
        queue_size: int = 256,
        features: int | None = None,
        protocol_features: int | None = None,
        style: str = "qemu",
        mtu: int | None = None,
        rx_parts: Sequence[int] | None = None,
        rx_indirect: bool = False,
        auto_refill: bool = True,
        start_index: int = 0,
        timeout: float = 5.0,
    ) -> None:
        """Make memory and rings; nothing is connected yet.

        Args:
            socket_path: where the back end listens, or a socket that is connected to it.
            memory: of all regions together, bytes or as ``"64M"``.
            regions: how many regions.
            gap: bytes of guest addresses between them.
            queue_size: descriptors of each ring, a power of two.
            features: what this guest's driver can do, `Feature` bits; None: all that Linux makes
                use of. What the back end does not offer is left out.
            protocol_features: `ProtocolFeature` bits; None: all that the style makes use of.
            style: ``qemu`` or ``uml``: who is imitated, see :mod:`mint_vni.testing.handshake`.
            mtu: what a ``qemu`` tells the back end by NET_SET_MTU, bytes.
            rx_parts: bytes of each descriptor of a receive buffer; None: as suits the features.
            rx_indirect: whether receive buffers are indirect chains.
            auto_refill: put a new receive buffer into the ring for each one that came back.
            start_index: what the rings' indices begin with (raw; drivers begin with 0).
            timeout: longest time that the back end may take for an answer, seconds.

        Raises:
            ValueError: an unknown style, or memory that can not be cut so.
        """
        if style not in STYLES:
            raise ValueError(f"no style {style!r}; use one of {', '.join(STYLES)}")
        self._size = (memory, regions, gap, queue_size)
        super().__init__(socket_path, style, timeout)
        self.wanted = GUEST_FEATURES if features is None else Feature(features)
        if protocol_features is not None:
            self.wanted_protocol = ProtocolFeature(protocol_features)
        self.mtu = mtu
        self._rx_parts, self._rx_indirect = rx_parts, rx_indirect
        self._auto_refill, self._start_index = auto_refill, start_index
        self._inbox: deque[Frame] = deque()
        self._build()

    # -- life -----------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        try:
            self.connect()
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def prepare(self) -> None:
        """Fill `setup` with the truth; what is changed after that is what the back end is told."""
        self.setup = [ring.setup() for ring in self.rings]

    def connect(self) -> None:
        """Connect and agree on features.

        Raises:
            FabricError: nobody listens, or the back end does not speak the protocol.
        """
        self.dial()
        self.style.connect(self)

    def start(self) -> None:
        """Tell the back end of memory and rings, fill the receive ring, and kick.

        Raises:
            FabricError: the back end refused.
        """
        for ring in self.rings:
            ring.event_idx = bool(self.features & Feature.EVENT_IDX)
        self.style.start(self)
        if self._auto_refill:
            self.refill()
        # A driver kicks when it has put buffers in, and QEMU whenever it starts rings.
        for ring in self.rings:
            ring.kick()

    def stop(self) -> None:
        """Stop the rings, as when the driver is unloaded; the connection stays."""
        self.style.stop(self)
        self.prepare()

    def reset(self) -> None:
        """Make memory and rings as new, as a guest's reset does; between stop and start."""
        for ring in self.rings:
            ring.reset(self._start_index)
        self._inbox.clear()
        self.prepare()

    def reconnect(self) -> None:
        """Connect again and go on with the same rings, as QEMU does after a loss."""
        self.disconnect()
        for ring in self.rings:
            ring.base = ring.used_idx
        self.prepare()
        self.connect()
        self.start()

    def reboot(self) -> None:
        """Lose the connection and come again with new memory, as when the guest is killed."""
        self.close()
        self._build()
        self.connect()
        self.start()

    def _build(self) -> None:
        size, regions, gap, queue_size = self._size
        same = self.style.same_addresses
        self.memory = GuestMemory(size, regions, same_addresses=same, gap=gap)
        self.rings = [Ring(self.memory, i, queue_size) for i in (RX, TX)]
        self.reset()

    def close(self) -> None:
        """Hang up and give all memory back; safe to repeat."""
        self.disconnect()
        for ring in self.rings:
            ring.release()
        self.memory.close()

    # -- frames ---------------------------------------------------------------------------------

    @property
    def header_size(self) -> int:
        """Bytes of the header before each frame."""
        return 12 if self.features & (Feature.VERSION_1 | Feature.MRG_RXBUF) else 10

    def send(
        self,
        frame: bytes,
        vnet: Vnet | None = None,
        *,
        split: Iterable[int] = (),
        indirect: bool | None = None,
        timeout: float = 5.0,
    ) -> None:
        """Send one frame.

        Args:
            frame: an Ethernet frame.
            vnet: its header; None: nothing is left to be offloaded.
            split: bytes of each descriptor but the last, which takes the rest; header first.
            indirect: whether the chain has a table of its own; None: as Linux does it.
            timeout: seconds to wait while the ring is full.

        Raises:
            ChannelFull: the ring stayed full.
        """
        data = (vnet or Vnet()).pack(self.header_size) + frame
        sizes = _sizes(len(data), split)
        if indirect is None:
            indirect = len(sizes) > 1 and bool(self.features & Feature.INDIRECT_DESC)
        need = 1 if indirect else len(sizes)
        self._await_room(need, time.monotonic() + timeout)
        self._queue(data, sizes, indirect=indirect)
        self.rings[TX].publish()

    def send_many(
        self, frames: Iterable[bytes], vnet: Vnet | None = None, timeout: float = 5.0
    ) -> None:
        """Send frames, each in one descriptor, with as few kicks as the ring's size allows.

        Raises:
            ChannelFull: the ring stayed full; those before were sent.
        """
        ring, head = self.rings[TX], (vnet or Vnet()).pack(self.header_size)
        deadline = time.monotonic() + timeout
        for frame in frames:
            if not ring.spare:
                ring.publish()
                self._await_room(1, deadline)
            data = head + frame
            self._queue(data, [len(data)], indirect=False)
        ring.publish()

    def _queue(self, data: bytes, sizes: Sequence[int], *, indirect: bool) -> None:
        owned, parts, at = [], [], 0
        for size in sizes:
            addr = self.memory.alloc(size)
            self.memory.write(addr, data[at : at + size])
            owned.append(addr)
            parts.append(Part(addr, size))
            at += size
        self.rings[TX].add(parts, owned, indirect=indirect)

    def _await_room(self, need: int, deadline: float) -> None:
        ring = self.rings[TX]
        self._settle()
        while ring.spare < need:
            if not ring.wait(deadline):
                raise ChannelFull(
                    f"vhost-user front end: ring {TX} stays full; the back end takes nothing"
                )
            self._settle()

    def _settle(self) -> None:
        """Give the memory back of what was sent."""
        ring = self.rings[TX]
        for used in ring.collect():
            ring.free(used.chain)

    def sent(self, timeout: float = 5.0) -> bool:
        """Wait until the back end has given back all that was sent; whether it has in time."""
        ring, deadline = self.rings[TX], time.monotonic() + timeout
        self._settle()
        while ring.chains:
            if not ring.wait(deadline):
                return False
            self._settle()
        return True

    def refill(self, count: int | None = None) -> int:
        """Put receive buffers into their ring.

        Args:
            count: how many at most; None: until the ring is full.

        Returns:
            How many there was room for.
        """
        ring, sizes = self.rings[RX], self._buffer_sizes()
        indirect = self._rx_indirect
        need, added = (1 if indirect else len(sizes)), 0
        while (count is None or added < count) and ring.spare >= need:
            addrs = [self.memory.alloc(size) for size in sizes]
            parts = [Part(addr, size, True) for addr, size in zip(addrs, sizes, strict=True)]
            ring.add(parts, addrs, indirect=indirect)
            added += 1
        if added:
            ring.publish()
        return added

    def _buffer_sizes(self) -> Sequence[int]:
        if self._rx_parts is not None:
            return self._rx_parts
        if self.features & Feature.MRG_RXBUF:
            return (2048,)
        mtu = self.mtu or 1500
        longest = _FRAME_MAX if self.features & _LARGE else mtu + 22
        return (self.header_size + longest,)

    def recv(self, timeout: float = 5.0) -> Frame:
        """Receive one frame.

        Raises:
            ReceiveTimeout: none came within ``timeout`` seconds.
            FabricError: the back end broke the rules of the ring.
        """
        frames = self.recv_many(1, timeout)
        if not frames:
            raise ReceiveTimeout(f"vhost-user front end: no frame within {timeout} s")
        return frames[0]

    def recv_many(self, limit: int = 256, timeout: float = 5.0) -> list[Frame]:
        """Receive up to ``limit`` frames, waiting ``timeout`` seconds for the first only."""
        ring, deadline = self.rings[RX], time.monotonic() + timeout
        if not self._inbox:
            ring.wait(deadline)
        if ring.used_idx != ring.last_used:
            self._take()
        return [self._inbox.popleft() for _ in range(min(limit, len(self._inbox)))]

    def _take(self) -> None:
        ring = self.rings[RX]
        came = ring.collect()
        try:
            self._unpack(deque(came))
        finally:
            for used in came:
                ring.free(used.chain)
        if self._auto_refill:
            self.refill()

    def _unpack(self, came: deque[Used]) -> None:
        merged = bool(self.features & Feature.MRG_RXBUF)
        while came:
            first = self._bytes(came.popleft())
            if len(first) < self.header_size:
                raise FabricError(
                    f"ring {RX}: {len(first)} bytes were written, less than a header;"
                    " the back end is broken"
                )
            vnet, pieces = Vnet.unpack(first[: self.header_size]), [first[self.header_size :]]
            count = vnet.num_buffers if merged else 1
            if not 1 <= count <= len(came) + 1:
                raise FabricError(
                    f"ring {RX}: a frame in {count} buffers, of which {len(came) + 1} came;"
                    " the back end is broken"
                )
            pieces += [self._bytes(came.popleft()) for _ in range(count - 1)]
            self._inbox.append(Frame(b"".join(pieces), vnet, count))

    def _bytes(self, used: Used) -> bytes:
        left, pieces = used.len, []
        for part in used.chain.parts:
            size = min(left, part.len)
            pieces.append(self.memory.read(part.addr, size))
            left -= size
        if left:
            raise FabricError(
                f"ring {RX}: {used.len} bytes written into a smaller buffer; the back end is broken"
            )
        return b"".join(pieces)


def _sizes(total: int, split: Iterable[int]) -> list[int]:
    sizes, left = [], total
    for size in split:
        if size >= left:
            break
        sizes.append(size)
        left -= size
    return [*sizes, left]
