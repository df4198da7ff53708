# SPDX-License-Identifier: Apache-2.0
"""Frames between a guest's virtqueues and other ports: all sizes, all layouts, none spoilt."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

import vhost_util
from fabric_util import frame
from mint_vni.errors import ReceiveTimeout
from mint_vni.testing import RX, TX, Feature, Part, VhostFrontend, Vnet
from vhost_util import PATIENT, STYLES, Bench, others_talk, payload, sized, take, take_guest, talk

HEADER = 12
LONGEST = 65_584
# Every size around where something changes, and some in between.
SIZES = [
    *range(14, 150),
    *range(500, 520),
    *range(1508, 1530),
    *range(2030, 2064),
    *range(4080, 4100),
    *random.Random(3).sample(range(4100, 65_520), 60),
    *range(65_520, LONGEST + 1, 5),
    65_535,
    LONGEST,
]
PLAIN = Feature.VERSION_1 | Feature.PROTOCOL_FEATURES
MERGE = PLAIN | Feature.MRG_RXBUF


@pytest.fixture(scope="module", params=["per-channel", "shared"])
def made(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Bench]:
    directory = tmp_path_factory.mktemp("v")
    with vhost_util.bench(
        directory, layout=request.param, options={"mtu": 65521}, **PATIENT
    ) as made:
        yield made


def from_guest(made: Bench, fe: VhostFrontend, sizes: list[int], batch: int = 8) -> None:
    """Send frames of these sizes from the guest and take them from x."""
    for i in range(0, len(sizes), batch):
        frames = [sized(made.g.mac, made.x, size, i) for size in sizes[i : i + batch]]
        fe.send_many(frames)
        assert take(made.x, len(frames)) == frames


def to_guest(made: Bench, fe: VhostFrontend, sizes: list[int], batch: int = 8) -> None:
    """The other way."""
    for i in range(0, len(sizes), batch):
        frames = [sized(made.x, made.g.mac, size, i) for size in sizes[i : i + batch]]
        made.x.send_many(frames)
        assert take_guest(fe, len(frames)) == frames


@pytest.mark.parametrize("style", STYLES)
def test_all_sizes_both_ways(made: Bench, style: str) -> None:
    with made.g.connect(style=style) as fe:
        from_guest(made, fe, SIZES)
        to_guest(made, fe, SIZES)
    assert not made.g.drops()


@pytest.mark.parametrize("indirect", [False, True])
def test_chains_cut_anywhere(made: Bench, indirect: bool) -> None:
    """The header and the frame in pieces of odd sizes, also in tables of their own."""
    cuts: list[tuple[int, ...]] = [
        (HEADER,),
        (10, 2),
        (1,) * 13,
        (5, 6, 7),
        (HEADER, 14),
        (HEADER + 14,),
        (HEADER + 13, 1, 1, 1),
        (30, 100),
        (1,) * 60,
        (0, HEADER, 0, 14, 0),
    ]
    with made.g.connect() as fe:
        for split, size in itertools.product(cuts, (14, 60, 99, 1514, 40_000)):
            data = sized(made.g.mac, made.x, size, len(split))
            fe.send(data, split=split, indirect=indirect)
            assert made.x.recv(5) == data
        rng = random.Random(7)
        for _ in range(150):
            size = rng.choice([14, 60, 1514, 9000, 65_550])
            split = tuple(rng.randint(0, 2 * size // 5 + 1) for _ in range(rng.randint(0, 18)))
            data = sized(made.g.mac, made.x, size, len(split))
            fe.send(data, split=split, indirect=indirect)
            assert made.x.recv(5) == data
        assert fe.sent()


BUFFERS: list[tuple[int, ...]] = [
    (65_600,),
    (12, 65_600),
    (1, 5, 6, 14, 1, 65_600),
    (4096,) * 17,
    (7, 11, 1000) * 70,
]


@pytest.mark.parametrize("indirect", [False, True])
@pytest.mark.parametrize("parts", BUFFERS, ids=lambda parts: f"{len(parts)}")
def test_receive_buffers_of_any_shape(made: Bench, parts: tuple[int, ...], indirect: bool) -> None:
    """Without MRG_RXBUF one chain takes the whole frame, however it is cut."""
    features = PLAIN | (Feature.INDIRECT_DESC if indirect else 0)
    options = {"features": features, "rx_parts": parts, "rx_indirect": indirect}
    with made.g.connect(memory="64M", queue_size=256, **options) as fe:
        to_guest(made, fe, [14, 15, 60, 1514, 65_550, 14, 4084, 4085], batch=1)
        assert fe.rings[RX].chains, "buffers are there again"


@pytest.mark.parametrize("size", [12, 13, 26, 64, 1000, 2048, 4096])
def test_merged_buffers(made: Bench, size: int) -> None:
    """A frame takes as many buffers as it needs, and each but the last is full."""
    most = 60 * size
    with made.g.connect(features=MERGE, rx_parts=(size,)) as fe:
        for length in (14, 60, 100, 987, 1514, 9000, 65_550):
            if HEADER + length > most:
                continue
            data = sized(made.x, made.g.mac, length)
            made.x.send(data)
            got = fe.recv()
            assert got.data == data
            assert got.buffers == got.vnet.num_buffers == -(-(HEADER + length) // size)


def test_merged_buffers_of_many_parts(made: Bench) -> None:
    with made.g.connect(features=MERGE, rx_parts=(3, 9, 2, 700, 334)) as fe:
        to_guest(made, fe, [14, 60, 1036, 1037, 1514, 9000, 40_000], batch=1)


def test_a_frame_that_fits_no_buffer_is_dropped(made: Bench) -> None:
    before = made.fabric.ends("g", "x").rx["drop_device"]
    with made.g.connect(features=PLAIN, rx_parts=(1000,)) as fe:
        small, large = (sized(made.x, made.g.mac, size) for size in (988, 989))
        made.x.send_many([large, small, large, small])
        assert take_guest(fe, 2) == [small, small]
        assert made.g.counters()["ring_errors"] == 0
    assert made.fabric.ends("g", "x").rx["drop_device"] == before + 2


def test_buffers_across_regions(made: Bench) -> None:
    """Regions that adjoin are one memory for the guest, though not for the back end."""
    for style in STYLES:
        fe = VhostFrontend(made.g.path, style=style, auto_refill=False)
        addr = fe.memory.seam(4000)
        with fe:
            fe.barrier()
            for size in (60, 2000 - HEADER, 2001 - HEADER, 2001, 2014, 3900):
                data = sized(made.g.mac, made.x, size)
                fe.memory.write(addr, bytes(HEADER) + data)
                fe.rings[TX].add([Part(addr, HEADER + size)])
                fe.rings[TX].publish()
                assert made.x.recv(5) == data
                assert fe.sent()

                fe.rings[RX].add([Part(addr, 4000, True)])
                fe.rings[RX].publish()
                back = sized(made.x, made.g.mac, size, 1)
                made.x.send(back)
                assert fe.recv().data == back


@pytest.mark.parametrize("style", STYLES)
def test_many_regions_and_holes(made: Bench, style: str) -> None:
    with made.g.connect(style=style, regions=8, gap=1 << 20) as fe:
        from_guest(made, fe, [60, 1514, 9000] * 10)
        to_guest(made, fe, [60, 1514, 9000] * 10)


@pytest.mark.parametrize("queue_size", [1, 2, 4, 1024, 32_768])
def test_rings_of_any_size(made: Bench, queue_size: int) -> None:
    options = {"features": PLAIN, "rx_parts": (1600,), "memory": "192M"}
    with made.g.connect(queue_size=queue_size, **options) as fe:
        sizes = [60, 100, 1514] * 20
        from_guest(made, fe, sizes, batch=min(queue_size, 64))
        to_guest(made, fe, sizes, batch=min(queue_size, 64))


def test_frames_that_are_none(made: Bench) -> None:
    """Too short and too long ones are dropped and counted; the queue goes on."""
    before = made.g.drops()
    with made.g.connect() as fe:
        for size in (0, 1, 13, LONGEST + 1, 100_000):
            fe.send(payload(size))
        fe.rings[TX].add([Part(fe.memory.alloc(4), 4)])  # not even a header
        fe.rings[TX].publish()
        assert fe.sent()
        talk(made, fe)
        after = made.g.drops()
        assert after["short"] - before.get("short", 0) == 4
        assert after["long"] - before.get("long", 0) == 2
        assert made.g.counters()["ring_errors"] == 0


BAD_HEADERS = [
    Vnet(gso_type=1, gso_size=1448),  # without a checksum to complete
    Vnet(flags=1, gso_type=1, gso_size=0, csum_start=34, csum_offset=16),
    Vnet(flags=1, gso_type=2, gso_size=1448, csum_start=34, csum_offset=16),
    Vnet(flags=1, csum_start=13, csum_offset=16),  # would rewrite a MAC address
    Vnet(flags=1, csum_start=34, csum_offset=65_535),
    Vnet(flags=1, csum_start=1999, csum_offset=16),
    Vnet(flags=1, gso_type=1, gso_size=1, csum_start=34, csum_offset=16, hdr_len=54),
    Vnet(flags=1, gso_type=5, gso_size=100, csum_start=34, csum_offset=6),  # not offered
]


def test_headers_that_make_no_sense(made: Bench) -> None:
    before = made.g.drops().get("bad", 0)
    with made.g.connect() as fe:
        for vnet in BAD_HEADERS:
            fe.send(frame(made.g.mac, made.x, bytes(1986)), vnet)
        assert fe.sent()
        with pytest.raises(ReceiveTimeout):
            fe.recv(0.05)
        talk(made, fe)
        assert made.g.drops()["bad"] - before == len(BAD_HEADERS)


def test_offloads_that_were_not_agreed_on(made: Bench) -> None:
    before = made.g.drops().get("bad", 0)
    with made.g.connect(features=PLAIN) as fe:
        data = frame(made.g.mac, made.x, bytes(1986))
        fe.send(data, Vnet(flags=1, csum_start=34, csum_offset=16))
        fe.send(data, Vnet(flags=1, gso_type=1, gso_size=500, csum_start=34, csum_offset=16))
        talk(made, fe)
        assert made.g.drops()["bad"] - before == 2


def test_spoofed_and_flooded_frames(made: Bench) -> None:
    """A receiver refuses another's MAC address; broadcast goes to all."""
    with made.g.connect() as fe:
        spoofed = frame(made.y, made.x, b"not mine")
        broadcast = frame(made.g.mac, b"\xff" * 6, b"to all")
        fe.send_many([spoofed, broadcast])
        assert made.x.recv(5) == broadcast
        assert made.y.recv(5) == broadcast
        assert made.fabric.ends("x", "g").rx["drop_spoof"] >= 1
        made.x.send(frame(made.x, b"\xff" * 6, b"from x"))
        assert fe.recv().data[14:] == b"from x"
        assert made.y.recv(5)[14:] == b"from x"
        others_talk(made)


@pytest.mark.parametrize("indirect", [False, True])
def test_the_longest_chain(tmp_path: Path, indirect: bool) -> None:
    """As many descriptors as Linux makes, and as the ring holds; more than ours takes is bad."""
    with vhost_util.bench(tmp_path) as made, made.g.connect() as fe:
        data = sized(made.g.mac, made.x, 1500)
        for parts in (19, 200, 256):
            split = (HEADER, *((1,) * (parts - 2)))
            fe.send(data, split=split, indirect=indirect)
            assert made.x.recv(5) == data
        talk(made, fe)
