# SPDX-License-Identifier: Apache-2.0
"""A little internet host on a raw port: it believes no checksum that it has not computed itself.

Frames are taken apart and put together here, from the RFCs alone, so that a mistake in the fabric's
own checksum code cannot hide behind itself.
"""

from __future__ import annotations

import hashlib
import random
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from types import TracebackType
from typing import Self

from mint_vni.fabric.port import Port

TCP, UDP = 6, 17
FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16
ARP, IPV4, IPV6 = 0x0806, 0x0800, 0x86DD


def mac_bytes(mac: str) -> bytes:
    """Six bytes of a MAC address."""
    return bytes.fromhex(mac.replace(":", ""))


def checksum(data: bytes) -> int:
    """RFC 1071."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


@dataclass(frozen=True)
class Packet:
    """An IP packet whose checksums are right, without its headers."""

    src: str
    dst: str
    protocol: int
    payload: bytes  # of IP: with the transport's header


def parse(frame: bytes) -> Packet | None:
    """Take a frame apart; None if it is no TCP or UDP over IP.

    Raises:
        AssertionError: a checksum or a length is wrong.
    """
    kind = struct.unpack_from("!H", frame, 12)[0]
    if kind == IPV4:
        packet = _parse_ipv4(frame[14:])
    elif kind == IPV6:
        packet = _parse_ipv6(frame[14:])
    else:
        return None
    if packet.protocol not in (TCP, UDP):
        return None
    length = len(packet.payload)
    assert checksum(_pseudo(packet.src, packet.dst, packet.protocol, length) + packet.payload) == 0
    if packet.protocol == UDP:
        size, sent = struct.unpack_from("!HH", packet.payload, 4)
        assert size == length
        assert sent != 0, "a UDP checksum was left out"
    return packet


def _parse_ipv4(data: bytes) -> Packet:
    version, _, total, _, fragment, _, protocol, _, src, dst = struct.unpack_from(
        "!BBHHHBBH4s4s", data
    )
    assert version == 0x45
    assert fragment & 0x3FFF == 0, "a fragment"
    assert checksum(data[:20]) == 0, "IPv4 header"
    assert total <= len(data)
    return Packet(str(IPv4Address(src)), str(IPv4Address(dst)), protocol, data[20:total])


def _parse_ipv6(data: bytes) -> Packet:
    _, length, protocol, _, src, dst = struct.unpack_from("!IHBB16s16s", data)
    assert 40 + length <= len(data)
    return Packet(str(IPv6Address(src)), str(IPv6Address(dst)), protocol, data[40 : 40 + length])


def _pseudo(src: str, dst: str, protocol: int, length: int) -> bytes:
    addresses = ip_address(src).packed + ip_address(dst).packed
    if len(addresses) == 8:
        return addresses + struct.pack("!BBH", 0, protocol, length)
    return addresses + struct.pack("!II", length, protocol)


def build(mac_src: bytes, mac_dst: bytes, src: str, dst: str, protocol: int, data: bytes) -> bytes:
    """A frame with an IP packet; `data` is the transport's header and payload, checksum 0."""
    at = 16 if protocol == TCP else 6
    value = checksum(_pseudo(src, dst, protocol, len(data)) + data)
    data = data[:at] + struct.pack("!H", value or 0xFFFF) + data[at + 2 :]
    source, target = ip_address(src), ip_address(dst)
    if source.version == 4:
        head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(data), 0, 0x4000, 64, protocol, 0)
        head += source.packed + target.packed
        head = head[:10] + struct.pack("!H", checksum(head)) + head[12:]
        return mac_dst + mac_src + struct.pack("!H", IPV4) + head + data
    head = struct.pack("!IHBB", 6 << 28, len(data), protocol, 64) + source.packed + target.packed
    return mac_dst + mac_src + struct.pack("!H", IPV6) + head + data


class RawHost:
    """A port with an address: verifies all that comes, answers TCP connections.

    It serves in a thread. A connection is the other side of ``inside.py exchange``: it takes all
    until the peer is done, then sends `amount` bytes and closes.

    Attributes:
        sent, received: SHA-256 of what the last connection carried; valid once `finished`.
        datagrams: payloads of UDP.
        longest: longest frame seen.
        error: what was wrong with a frame, if anything.
    """

    def __init__(self, port: Port, address: str, peer_mac: str, amount: int = 0) -> None:
        self.port = port
        self.address = address
        self.peer_mac = mac_bytes(peer_mac)
        self.amount = amount
        self.sent = self.received = ""
        self.bytes = 0
        self.datagrams: list[bytes] = []
        self.longest = 0
        self.error: BaseException | None = None
        self.finished = threading.Event()
        self._stop = False
        self._connection: _Connection | None = None
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop = True
        self._thread.join(10)
        if self.error is not None and error is None:
            raise self.error

    def send_udp(self, target: str, port: int, payloads: list[bytes]) -> None:
        """Send datagrams from port 9."""
        self.port.send_many(
            [
                self._frame(target, UDP, struct.pack("!HHHH", 9, port, 8 + len(p), 0) + p)
                for p in payloads
            ]
        )

    def _frame(self, target: str, protocol: int, data: bytes) -> bytes:
        mac = mac_bytes(self.port.mac)
        return build(mac, self.peer_mac, self.address, target, protocol, data)

    def _serve(self) -> None:
        try:
            while not self._stop:
                for frame in self.port.recv_many(64, timeout=0.05):
                    self._take(frame)
        except BaseException as error:  # noqa: BLE001  # it is raised in the test's thread
            self.error = error
            self.finished.set()

    def _take(self, frame: bytes) -> None:
        if len(frame) >= 42 and frame[12:14] == struct.pack("!H", ARP):
            self._answer_arp(frame)
            return
        packet = parse(frame)
        if packet is None or packet.dst != self.address:
            return
        self.longest = max(self.longest, len(frame))
        if packet.protocol == UDP:
            self.datagrams.append(packet.payload[8:])
            return
        if packet.payload[13] & SYN:
            self._connection = _Connection(packet, self.amount)
        if self._connection is not None:
            answers = [
                self._frame(packet.src, TCP, data)
                for data in self._connection.segments(packet.payload)
            ]
            self.port.send_many(answers)
            if self._connection.closed:
                self.sent, self.received, self.bytes = self._connection.result()
                self.finished.set()

    def _answer_arp(self, frame: bytes) -> None:
        operation, target = struct.unpack_from("!H", frame, 20)[0], frame[38:42]
        if operation != 1 or ":" in self.address or target != ip_address(self.address).packed:
            return
        own = mac_bytes(self.port.mac)
        answer = frame[6:12] + own + frame[12:20] + b"\0\2" + own + target + frame[22:32]
        self.port.send(answer)


class _Connection:
    """One TCP connection, passively opened: in order, nothing lost, as the fabric promises.

    A segment that is not the next one is answered with what is expected; nothing is sent again.
    """

    SEGMENT, WINDOW = 1400, 24 * 1400

    def __init__(self, syn: Packet, amount: int) -> None:
        self._ports = struct.unpack_from("!HH", syn.payload)
        self._next = struct.unpack_from("!I", syn.payload, 4)[0]
        self._data = random.Random(11).randbytes(amount)
        self._digest = hashlib.sha256()
        self._count = 0
        self._acked = self._given = 0  # of our data; sequence numbers start at 1000
        self._half_closed = self._fin_sent = False
        self.closed = False

    def segments(self, segment: bytes) -> Iterator[bytes]:
        """What a segment is answered with."""
        sequence, ack, offset, flags = struct.unpack_from("!IIBB", segment, 4)
        body = segment[(offset >> 4) * 4 :]
        assert not flags & RST, "the node reset the connection"
        if flags & SYN:
            self._next = (sequence + 1) & 0xFFFFFFFF
            options = struct.pack("!BBH", 2, 4, 1460)
            yield self._header(999, SYN | ACK, options) + options
            return
        if sequence == self._next:
            self._digest.update(body)
            self._count += len(body)
            self._next = (sequence + len(body) + bool(flags & FIN)) & 0xFFFFFFFF
            self._half_closed |= bool(flags & FIN)
        if flags & ACK:
            self._acked = max(self._acked, ack - 1000)
        if body or flags & FIN:
            yield self._header(1000 + self._given, ACK)
        if self._half_closed:
            yield from self._send()

    def _send(self) -> Iterator[bytes]:
        total = len(self._data)
        while self._given < total and self._given - self._acked < self.WINDOW:
            part = self._data[self._given : self._given + self.SEGMENT]
            yield self._header(1000 + self._given, ACK | PSH) + part
            self._given += len(part)
        if self._given == total and not self._fin_sent:
            yield self._header(1000 + total, ACK | FIN)
            self._fin_sent = True
        self.closed = self._fin_sent and self._acked > total

    def _header(self, sequence: int, flags: int, options: bytes = b"") -> bytes:
        words = (20 + len(options)) // 4
        there, here = self._ports
        return struct.pack(
            "!HHIIBBHHH", here, there, sequence, self._next, words << 4, flags, 65535, 0, 0
        )

    def result(self) -> tuple[str, str, int]:
        """SHA-256 of what was sent, of what was received, and its bytes."""
        return hashlib.sha256(self._data).hexdigest(), self._digest.hexdigest(), self._count


def wait_datagrams(host: RawHost, count: int, timeout: float = 10.0) -> list[bytes]:
    """The datagrams, once there are so many."""
    end = time.monotonic() + timeout
    while len(host.datagrams) < count and host.error is None:
        assert time.monotonic() < end, f"{len(host.datagrams)} datagrams of {count}"
        time.sleep(0.005)
    return host.datagrams
