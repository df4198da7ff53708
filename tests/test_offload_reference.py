# SPDX-License-Identifier: Apache-2.0
"""native/offload.c against scapy, an implementation that shares nothing with it.

A frame is described by scapy layers. Scapy builds the frames that a receiver without offloads
must get, checksums and lengths included; ``tests/native/offload_cli.c``, compiled here with
AddressSanitizer and UndefinedBehaviorSanitizer, makes them from the one frame that a sender with
offloads would send. The two must agree to the byte.

Then come headers that lie: whatever they say, the program must neither crash nor make frames that
are longer or more than promised.
"""

import os
import struct
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy
from scapy.layers.inet import (
    IP,
    TCP,
    UDP,
    IPOption_LSRR,
    IPOption_NOP,
    IPOption_Router_Alert,
    IPOption_RR,
    IPOption_SSRR,
)
from scapy.layers.inet6 import (
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    IPv6ExtHdrSegmentRouting,
    PadN,
    RouterAlert,
)
from scapy.layers.l2 import Dot1AD, Dot1Q, Ether
from scapy.packet import Packet, Raw
from scapy.utils import checksum

ROOT = Path(__file__).resolve().parent.parent

NEEDS_CSUM = 1
GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, GSO_ECN = 0, 1, 4, 5, 0x80
FIN, PSH, CWR = 0x01, 0x08, 0x80
SEGMENTS_MAX = 1024  # MINT_SEGMENTS_MAX
HEADERS_MAX = 256  # MINT_HEADERS_MAX
FRAME_MIN, FRAME_MAX = 14, 65584  # MINT_FRAME_MIN, MINT_FRAME_MAX
DONE, VNET_REFUSED, HEADERS_REFUSED = 0, 3, 4  # exit statuses of offload_cli.c

# A process per example, built with sanitizers: time varies with the machine's load.
SETTINGS = settings(max_examples=150, deadline=None)
FEW = settings(max_examples=25, deadline=None)
HOSTILE_SETTINGS = settings(max_examples=400, deadline=None)


@dataclass(frozen=True)
class Vnet:
    """The fields of ``virtio_net_hdr_v1``, as in native/abi.h."""

    flags: int = 0
    gso_type: int = GSO_NONE
    hdr_len: int = 0
    gso_size: int = 0
    csum_start: int = 0
    csum_offset: int = 0
    num_buffers: int = 0

    def __bytes__(self) -> bytes:
        return struct.pack(
            "<BBHHHHH",
            self.flags,
            self.gso_type,
            self.hdr_len,
            self.gso_size,
            self.csum_start,
            self.csum_offset,
            self.num_buffers,
        )


# Names of the fields and their sizes in bytes.
VNET_FIELDS = {"flags": 1, "gso_type": 1} | dict.fromkeys(
    ["hdr_len", "gso_size", "csum_start", "csum_offset", "num_buffers"], 2
)


@dataclass(frozen=True)
class Answer:
    """What offload_cli.c said: its exit status and the frames."""

    status: int
    frames: list[bytes]


Offload = Callable[[Vnet, bytes], Answer]


@pytest.fixture(scope="module")
def offload(tmp_path_factory: pytest.TempPathFactory) -> Offload:
    """The compiled program as a function; the test fails where there is no compiler."""
    program = tmp_path_factory.mktemp("offload") / "offload_cli"
    compiler = os.environ.get("CC", "cc").split()
    sanitize = ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    sources = [ROOT / "tests/native/offload_cli.c", ROOT / "native/offload.c"]
    command = [*compiler, "-std=c11", "-O1", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror"]
    subprocess.run(
        [*command, *sanitize, f"-I{ROOT / 'native'}", *sources, "-o", program], check=True
    )

    def call(vnet: Vnet, frame: bytes) -> Answer:
        done = subprocess.run(
            [program], input=bytes(vnet) + frame, capture_output=True, timeout=60, check=False
        )
        assert done.returncode in {DONE, VNET_REFUSED, HEADERS_REFUSED}, done.stderr.decode()
        assert done.stderr == b"", done.stderr.decode()
        return Answer(done.returncode, list(split(done.stdout)))

    return call


def split(stream: bytes) -> Iterator[bytes]:
    """The frames in offload_cli.c's output: each after its length, four bytes little-endian."""
    at = 0
    while at < len(stream):
        (length,) = struct.unpack_from("<I", stream, at)
        assert at + 4 + length <= len(stream), "output ends within a frame"
        yield stream[at + 4 : at + 4 + length]
        at += 4 + length


def transport(packet: Packet) -> type[Packet]:
    return UDP if UDP in packet else TCP


def vnet_of(packet: Packet, gso_size: int = 0) -> Vnet:
    """The vnet header with which Linux would send ``packet``; ``gso_size`` 0: without GSO."""
    layer = transport(packet)
    gso_type = GSO_NONE
    if gso_size:
        gso_type = GSO_UDP_L4 if layer is UDP else GSO_TCPV4 if IP in packet else GSO_TCPV6
        if layer is TCP and int(packet[TCP].flags) & CWR:
            gso_type |= GSO_ECN
    return Vnet(
        flags=NEEDS_CSUM,
        gso_type=gso_type,
        gso_size=gso_size,
        csum_start=len(bytes(packet)) - len(bytes(packet[layer])),
        csum_offset=6 if layer is UDP else 16,
    )


def with_checksum_field(frame: bytes, vnet: Vnet, value: int) -> bytes:
    at = vnet.csum_start + vnet.csum_offset
    return frame[:at] + value.to_bytes(2, "big") + frame[at + 2 :]


def pseudo_header_sum(frame: bytes, vnet: Vnet) -> int:
    """What Linux leaves in the checksum field, from a frame whose checksum is complete.

    With it, the pseudo-header and all from csum_start on add up to zero; so the pseudo-header's sum
    is the complement of the rest.
    """
    return checksum(frame[vnet.csum_start :])


def segments_of(packet: Packet, gso_size: int) -> list[bytes]:
    """The frames that ``packet`` is to become, each built by scapy from its layers."""
    layer = transport(packet)
    payload = bytes(packet[layer].payload)
    starts = range(0, max(len(payload), 1), gso_size)
    frames = []
    for index, start in enumerate(starts):
        segment = packet.copy()
        segment[layer].remove_payload()
        segment[layer].add_payload(Raw(payload[start : start + gso_size]))
        if IP in segment:
            segment[IP].id = (segment[IP].id + index) % 2**16
        if layer is TCP:
            cleared = (0 if index + 1 == len(starts) else FIN | PSH) | (CWR if index else 0)
            segment[TCP].seq = (segment[TCP].seq + start) % 2**32
            segment[TCP].flags = int(segment[TCP].flags) & ~cleared
        frames.append(bytes(segment))
    return frames


# ---------------------------------------------------------------------------- what frames there are

ports = st.integers(0, 2**16 - 1)
ipv4 = st.integers(1, 2**32 - 1).map(lambda n: ".".join(str(b) for b in n.to_bytes(4, "big")))
ipv6 = st.integers(1, 2**128 - 1).map(
    lambda n: ":".join(f"{n >> 16 * i & 0xFFFF:x}" for i in reversed(range(8)))
)


def tags() -> SearchStrategy[list[Packet]]:
    tag = st.builds(
        lambda kind, vlan, prio: kind(vlan=vlan, prio=prio),
        st.sampled_from([Dot1Q, Dot1AD]),
        st.integers(0, 4095),
        st.integers(0, 7),
    )
    return st.lists(tag, max_size=2)


def ipv4_options() -> SearchStrategy[list[Packet]]:
    """Options with at most one source route, as RFC 791 allows."""
    plain = st.sampled_from(
        [IPOption_NOP(), IPOption_Router_Alert(), IPOption_RR(routers=["0.0.0.0"])]
    )
    route = st.builds(
        lambda kind, routers: kind(routers=routers),
        st.sampled_from([IPOption_LSRR, IPOption_SSRR]),
        st.lists(ipv4, min_size=1, max_size=4),
    )
    return st.builds(
        lambda a, b, c: [*a, *b, *c],
        st.lists(plain, max_size=2),
        st.lists(route, max_size=1),
        st.lists(plain, max_size=1),
    )


def ipv6_headers() -> SearchStrategy[list[Packet]]:
    """Hop-by-hop options, destination options, and a routing header with or without hops left."""
    pad = st.integers(0, 12).map(lambda n: PadN(optdata=bytes(n)))
    hop = pad.map(lambda p: IPv6ExtHdrHopByHop(options=[RouterAlert(), p]))
    dst = pad.map(lambda p: IPv6ExtHdrDestOpt(options=[p]))
    home = st.builds(
        lambda address, left: IPv6ExtHdrRouting(type=2, addresses=[address], segleft=left),
        ipv6,
        st.integers(0, 1),
    )
    segment = st.builds(
        lambda addresses, left: IPv6ExtHdrSegmentRouting(
            addresses=addresses, segleft=min(left, len(addresses)), lastentry=len(addresses) - 1
        ),
        st.lists(ipv6, min_size=1, max_size=3),
        st.integers(0, 3),
    )
    return st.builds(
        lambda a, b, c: [*a, *b, *c],
        st.lists(hop, max_size=1),
        st.lists(home | segment, max_size=1),
        st.lists(dst, max_size=1),
    )


def tcp() -> SearchStrategy[Packet]:
    options = st.lists(
        st.sampled_from([("NOP", None), ("Timestamp", (7, 9)), ("MSS", 1460), ("SAckOK", b"")]),
        max_size=3,
    )
    return st.builds(
        lambda sport, dport, seq, flags, options: TCP(
            sport=sport, dport=dport, seq=seq, ack=1, flags=flags, options=options
        ),
        ports,
        ports,
        st.integers(0, 2**32 - 1) | st.just(2**32 - 100),
        st.integers(0, 0x1FF),
        options,
    )


def udp() -> SearchStrategy[Packet]:
    return st.builds(lambda sport, dport: UDP(sport=sport, dport=dport), ports, ports)


@st.composite
def packets(draw: DrawFn, payload_max: int = 6000) -> Packet:
    """A whole packet, all lengths and checksums left for scapy to fill in."""
    packet: Packet = Ether(src="02:4d:56:00:00:01", dst="02:4d:56:00:00:02")
    for tag in draw(tags()):
        packet /= tag
    if draw(st.booleans()):
        packet /= IP(
            src=draw(ipv4),
            dst=draw(ipv4),
            id=draw(ports | st.just(0xFFFF)),
            flags=draw(st.sampled_from(["", "DF"])),
            ttl=draw(st.integers(1, 255)),
            options=draw(ipv4_options()),
        )
    else:
        packet /= IPv6(src=draw(ipv6), dst=draw(ipv6), fl=draw(st.integers(0, 2**20 - 1)))
        for header in draw(ipv6_headers()):
            packet /= header
    packet /= draw(tcp() | udp())
    # Few bytes decide, so that hypothesis need not draw and shrink thousands.
    size, pattern = draw(st.integers(0, payload_max)), draw(st.binary(min_size=1, max_size=64))
    return packet / Raw((pattern * (size // len(pattern) + 1))[:size])


@st.composite
def gso_packets(draw: DrawFn) -> tuple[Packet, int]:
    """A packet and a gso_size that cuts it into some 40 segments at most."""
    packet = draw(packets())
    payload = len(bytes(packet[transport(packet)].payload))
    return packet, draw(st.integers(max(1, payload // 40), 2000))


@st.composite
def lies(draw: DrawFn) -> tuple[Vnet, bytes]:
    """A vnet header and a frame of which some bytes are anything; the frame may be cut short."""
    packet = draw(packets(payload_max=300))
    vnet = vnet_of(packet, draw(st.just(0) | st.integers(1, 200)))
    frame = bytearray(bytes(packet))
    byte, start = st.integers(0, 255), vnet.csum_start
    # Where lies are of use: in the Ethernet header, around the transport header, at the end.
    near_end = st.integers(len(frame) - 24, len(frame) + 2)
    field = st.integers(0, 24) | st.integers(start - 16, start + 16) | near_end | ports
    for name in draw(st.lists(st.sampled_from(sorted(VNET_FIELDS)), max_size=2)):
        vnet = replace(vnet, **{name: draw(byte if VNET_FIELDS[name] == 1 else field)})
    places = st.integers(12, start - 1) | st.integers(start, min(start + 15, len(frame) - 1))
    for at in draw(st.lists(places, max_size=3)):
        frame[at] = draw(byte)
    end = st.just(len(frame)) | st.integers(start, len(frame)) | st.integers(0, len(frame))
    return vnet, bytes(frame[: draw(end)])


# -------------------------------------------------------------------------------------------- tests


@SETTINGS
@given(packet=packets())
def test_checksum_is_the_one_scapy_computes(offload: Offload, packet: Packet) -> None:
    wanted, vnet = bytes(packet), vnet_of(packet)
    sent = with_checksum_field(wanted, vnet, pseudo_header_sum(wanted, vnet))
    assert offload(vnet, sent) == Answer(DONE, [wanted])


@FEW
@given(packet=packets())
def test_frame_without_offload_is_left_alone(offload: Offload, packet: Packet) -> None:
    frame = bytes(packet)
    assert offload(Vnet(), frame) == Answer(DONE, [frame])


@SETTINGS
@given(packet_and_size=gso_packets(), field=ports)
def test_segments_are_those_scapy_builds(
    offload: Offload, packet_and_size: tuple[Packet, int], field: int
) -> None:
    packet, gso_size = packet_and_size
    vnet = vnet_of(packet, gso_size)
    answer = offload(vnet, with_checksum_field(bytes(packet), vnet, field))
    assert answer == Answer(DONE, segments_of(packet, gso_size))


IPV4, IPV6 = IP(src="10.77.0.1", dst="10.77.0.2"), IPv6(src="fd77::1", dst="fd77::2")


@pytest.mark.parametrize("network", [IPV4, IPV6], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("layer", [TCP(flags="FPA", seq=2**32 - 9), UDP()], ids=["tcp", "udp"])
@pytest.mark.parametrize("gso_size", [64, 1448, 8948, 65535])
def test_largest_frame(offload: Offload, network: Packet, layer: Packet, gso_size: int) -> None:
    headers = Ether() / Dot1AD() / Dot1Q() / network / layer
    # As much as the length field of IPv4 can say; the same over IPv6 is 20 bytes longer.
    payload = os.urandom(65535 - 20 - len(bytes(layer)))
    packet = headers / Raw(payload)
    answer = offload(vnet_of(packet, gso_size), bytes(packet))
    assert answer == Answer(DONE, segments_of(packet, gso_size))
    parsed = [Ether(frame)[type(layer)] for frame in answer.frames]
    assert b"".join(bytes(segment.payload) for segment in parsed) == payload


@HOSTILE_SETTINGS
@given(lie=lies())
def test_lies_are_refused_or_harmless(offload: Offload, lie: tuple[Vnet, bytes]) -> None:
    vnet, frame = lie
    answer = offload(vnet, frame)  # which also asserts that it did not crash
    if answer.status != DONE:
        assert answer.frames == []
    elif vnet.gso_type == GSO_NONE:
        assert [len(made) for made in answer.frames] == [len(frame)]
        # The addresses were checked before; completing a checksum must not change them.
        assert answer.frames[0][:FRAME_MIN] == frame[:FRAME_MIN]
    else:
        assert 1 <= len(answer.frames) <= SEGMENTS_MAX
        longest = min(HEADERS_MAX + vnet.gso_size, len(frame))
        assert all(FRAME_MIN < len(made) <= longest for made in answer.frames)
        assert all(made[:FRAME_MIN] == frame[:FRAME_MIN] for made in answer.frames)


@pytest.mark.parametrize("start", range(FRAME_MIN))
def test_checksum_cannot_replace_an_address(offload: Offload, start: int) -> None:
    """The receiver checks the source address first and completes the checksum afterwards."""
    vnet = Vnet(flags=NEEDS_CSUM, csum_start=start, csum_offset=0)
    assert offload(vnet, bytes(64)) == Answer(VNET_REFUSED, [])


def test_number_of_segments_is_bounded(offload: Offload) -> None:
    most, packet = SEGMENTS_MAX, Ether() / IPV4 / UDP() / Raw(bytes(SEGMENTS_MAX))
    assert len(offload(vnet_of(packet, 1), bytes(packet)).frames) == most
    packet = packet / Raw(b"!")
    assert offload(vnet_of(packet, 1), bytes(packet)) == Answer(VNET_REFUSED, [])


@pytest.mark.parametrize("length", [0, 1, FRAME_MIN - 1, FRAME_MAX + 1])
def test_frame_of_impossible_length_is_refused(offload: Offload, length: int) -> None:
    assert offload(Vnet(), bytes(length)) == Answer(VNET_REFUSED, [])


@pytest.mark.parametrize("length", [FRAME_MIN, FRAME_MAX])
def test_frame_of_extreme_length_is_taken(offload: Offload, length: int) -> None:
    assert offload(Vnet(), bytes(length)) == Answer(DONE, [bytes(length)])


def test_headers_that_disagree_are_refused(offload: Offload) -> None:
    packet = Ether() / IPV4 / TCP() / Raw(bytes(300))
    vnet = replace(vnet_of(packet, 100), gso_type=GSO_TCPV6)
    assert offload(vnet, bytes(packet)) == Answer(HEADERS_REFUSED, [])
