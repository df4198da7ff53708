# SPDX-License-Identifier: Apache-2.0
"""Checksums and segmentation through the vhost-user port: what each guest agreed to take, it gets.

Segments are taken apart by `rawhost`, which computes every checksum itself.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator

import pytest

import rawhost
import vhost_util
from mint_vni.testing import Feature, VhostFrontend, Vnet
from mint_vni.testing.protocol import GUEST_FEATURES
from vhost_util import PATIENT, Bench, payload, take

MSS = 1448
PLAIN = Feature.VERSION_1 | Feature.PROTOCOL_FEATURES
CSUM = PLAIN | Feature.CSUM | Feature.GUEST_CSUM
MERGED = PLAIN | Feature.MRG_RXBUF | Feature.EVENT_IDX | Feature.INDIRECT_DESC
KINDS = {"all": GUEST_FEATURES, "csum": CSUM, "none": PLAIN, "merged": MERGED}
ADDRESSES = {4: ("10.0.0.1", "10.0.0.2"), 6: ("fd00::1", "fd00::2")}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with vhost_util.bench(tmp_path_factory.mktemp("v"), guests="gh", raw="x", **PATIENT) as made:
        yield made


def mac_bytes(made: Bench, name: str) -> bytes:
    return rawhost.mac_bytes(made.fabric.spec(name).mac)


def tcp(made: Bench, src: str, dst: str, family: int, data: bytes) -> bytes:
    """A TCP frame with a complete checksum."""
    ends = ADDRESSES[family]
    head = struct.pack("!HHIIBBHHH", 1, 2, 1000, 2000, 5 << 4, rawhost.ACK, 512, 0, 0)
    macs = mac_bytes(made, src), mac_bytes(made, dst)
    return rawhost.build(*macs, *ends, rawhost.TCP, head + data)


def to_offload(complete: bytes, family: int, mss: int = 0) -> tuple[bytes, Vnet]:
    """The same as a kernel leaves it to a device: only the pseudo-header is in the checksum."""
    start = 14 + (20 if family == 4 else 40)
    ends = ADDRESSES[family]
    pseudo = rawhost._pseudo(*ends, rawhost.TCP, len(complete) - start)
    partial = struct.pack("!H", ~rawhost.checksum(pseudo) & 0xFFFF)
    data = complete[: start + 16] + partial + complete[start + 18 :]
    vnet = Vnet(flags=1, csum_start=start, csum_offset=16)
    if mss:
        kind = 1 if family == 4 else 4
        vnet = Vnet(1, kind, start + 20, mss, start, 16)
    return data, vnet


def stream(frames: list[bytes]) -> bytes:
    """What the segments carry, each with correct checksums."""
    packets = [rawhost.parse(one) for one in frames]
    assert all(packets)
    return b"".join(packet.payload[20:] for packet in packets if packet)


@pytest.mark.parametrize("family", [4, 6])
def test_a_raw_port_gets_complete_frames(made: Bench, family: int) -> None:
    data = payload(40_000)
    with made.g.connect() as fe:
        whole = tcp(made, "g", "x", family, data[:1000])
        fe.send(*to_offload(whole, family))
        assert made.x.recv(5) == whole
        fe.send(*to_offload(tcp(made, "g", "x", family, data), family, MSS))
        segments = take(made.x, -(-len(data) // MSS))
        assert max(map(len, segments)) <= 1514 + (20 if family == 6 else 0)
        assert stream(segments) == data
    assert not made.fabric.drops("x")


def expect(made: Bench, fe: VhostFrontend, want: Feature, family: int, sent: bytes) -> None:
    """Take what g was sent by h in one large frame, as `want` allows."""
    large = want & (Feature.GUEST_TSO4 if family == 4 else Feature.GUEST_TSO6)
    if large:
        got = fe.recv()
        assert got.vnet.gso_type == (1 if family == 4 else 4)
        assert (got.vnet.flags & 1, got.vnet.gso_size) == (1, MSS)
        assert got.data == to_offload(tcp(made, "h", "g", family, sent), family)[0]
        return
    frames: list[bytes] = []
    for _ in range(-(-len(sent) // MSS)):
        one = fe.recv()
        assert one.vnet.gso_type == 0
        assert not one.vnet.flags & 1, "a checksum left to a guest that was sent segments"
        frames.append(one.data)
    assert stream(frames) == sent


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize(("src", "dst"), list(itertools.product(KINDS, repeat=2)))
def test_each_pair_of_guests(made: Bench, src: str, dst: str, family: int) -> None:
    """A stream from h to g in what h may send; a frame whose checksum is left to g or completed."""
    a, b = KINDS[src], KINDS[dst]
    data = payload(30_000)
    parts = (65_600,) if not b & Feature.MRG_RXBUF else None
    with made["h"].connect(features=a) as h, made["g"].connect(features=b, rx_parts=parts) as g:
        if a & Feature.CSUM:
            whole = tcp(made, "h", "g", family, data[:1000])
            partial, vnet = to_offload(whole, family)
            h.send(partial, vnet)
            got = g.recv()
            if b & Feature.GUEST_CSUM:
                assert got.data == partial
                assert (got.vnet.flags, got.vnet.csum_start, got.vnet.csum_offset) == (
                    vnet.flags,
                    vnet.csum_start,
                    vnet.csum_offset,
                )
            else:
                assert (got.data, got.vnet.flags) == (whole, 0)
        if a & (Feature.HOST_TSO4 if family == 4 else Feature.HOST_TSO6):
            h.send(*to_offload(tcp(made, "h", "g", family, data), family, MSS))
            expect(made, g, b, family, data)
        else:
            whole = tcp(made, "h", "g", family, data[:1400])
            h.send(whole)
            assert g.recv().data == whole
    assert not made["g"].drops()
    assert not made["h"].drops()


def test_segments_that_wait_for_buffers_stay_in_order(made: Bench) -> None:
    """One large frame is cut for a guest that gives its buffers one by one."""
    data = payload(20_000)
    options = {"features": PLAIN, "rx_parts": (1600,), "auto_refill": False}
    with made["h"].connect() as h, made["g"].connect(**options) as g:
        h.send(*to_offload(tcp(made, "h", "g", 4, data), 4, MSS))
        frames = []
        for _ in range(-(-len(data) // MSS)):
            g.refill(1)
            frames.append(g.recv().data)
        assert stream(frames) == data
    assert not made["g"].drops()


def test_ecn_is_only_for_those_who_know_it(made: Bench) -> None:
    data = payload(10_000)
    with made["h"].connect() as h:
        whole = tcp(made, "h", "g", 4, data)
        partial, vnet = to_offload(whole, 4, MSS)
        marked = Vnet(1, 0x81, vnet.hdr_len, MSS, vnet.csum_start, vnet.csum_offset)
        for knows in (True, False):
            features = GUEST_FEATURES if knows else GUEST_FEATURES & ~Feature.GUEST_ECN
            with made["g"].connect(features=features) as g:
                h.send(partial, marked)
                got = g.recv()
                assert got.vnet.gso_type == (0x81 if knows else 0)
