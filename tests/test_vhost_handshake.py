# SPDX-License-Identifier: Apache-2.0
"""What the vhost-user port says to front ends: QEMU's order, User-Mode Linux's, and odd ones."""

from __future__ import annotations

import os
import re
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import vhost_util
from fabric_util import frame, wait_until
from mint_vni.errors import FabricError
from mint_vni.testing import (
    RX,
    TX,
    BackendRequest,
    Feature,
    ProtocolFeature,
    Request,
    VhostFrontend,
)
from mint_vni.testing.protocol import (
    FLAG_NEED_REPLY,
    HEADER,
    VERSION,
    config_space,
    mem_table,
    u64,
    vring_state,
)
from vhost_util import STYLES, Bench, talk

OFFLOADS = (
    Feature.CSUM
    | Feature.GUEST_CSUM
    | Feature.HOST_TSO4
    | Feature.HOST_TSO6
    | Feature.GUEST_TSO4
    | Feature.GUEST_TSO6
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with vhost_util.bench(tmp_path_factory.mktemp("v"), options={"mtu": 1400}) as made:
        yield made


@pytest.mark.parametrize("style", STYLES)
def test_a_guest_comes_up_and_talks(made: Bench, style: str) -> None:
    with made.g.connect(style=style) as fe:
        status = made.g.status()
        assert status["connected"]
        assert set(status["features"]) == {feature.name for feature in fe.features}
        talk(made, fe)
        assert fe.features & OFFLOADS == OFFLOADS
        assert fe.features & (Feature.MRG_RXBUF | Feature.EVENT_IDX | Feature.VERSION_1)
        if style == "uml":
            assert (fe.mac, fe.mtu, fe.link_up) == (made.g.mac, 1400, True)
    wait_until(lambda: not made.g.status()["connected"], "the guest is gone")


def test_nothing_is_offered_that_is_not_there(made: Bench) -> None:
    with made.g.connect() as fe:
        for absent in (Feature.CTRL_VQ, Feature.MQ, Feature.RING_PACKED, Feature.LOG_ALL):
            assert not fe.offered & absent
        assert fe.offered & (Feature.MAC | Feature.STATUS | Feature.MTU)
        assert not fe.protocol_offered & ProtocolFeature.INBAND_NOTIFICATIONS
        assert fe.queue_pairs in (None, 1)


def test_without_offload_none_is_offered(tmp_path: Path) -> None:
    options = {"offload": False}
    with vhost_util.bench(tmp_path, options=options) as plain, plain.g.connect() as fe:
        assert not fe.offered & (OFFLOADS | Feature.HOST_ECN | Feature.GUEST_ECN)
        talk(plain, fe)


def test_the_configuration_in_every_size(made: Bench) -> None:
    want = struct.pack("<6sHHH", bytes.fromhex(made.g.mac.replace(":", "")), 1, 1, 1400)
    with made.g.connect(style="uml") as fe:
        for size in range(1, 61):
            assert fe.read_config(size) == want.ljust(size, b"\0")[:size]
        beyond = fe.ask(Request.GET_CONFIG, config_space(0, bytes(300)))
        assert len(beyond.payload) in (0, 12), "an error has no data"
        talk(made, fe)


def test_link_down_and_up(made: Bench) -> None:
    with made.g.connect(style="uml") as fe:
        for up in (False, True):
            made.loop.run(lambda: made.g.server.set_link(up))  # noqa: B023
            request = fe.backend_request(5)
            assert request is not None
            assert request.request == BackendRequest.CONFIG_CHANGE
            assert not request.flags & FLAG_NEED_REPLY
            assert fe.read_config(8)[6] & 1 == up
        assert fe.backend_request(0) is None


@pytest.mark.parametrize("style", STYLES)
def test_messages_in_single_bytes(made: Bench, style: str) -> None:
    """A stream has no messages: whatever is cut, wherever."""
    with made.g.connect(style=style) as fe:
        for byte in HEADER.pack(Request.GET_FEATURES, VERSION, 0):
            fe.connection.send_raw(bytes([byte]))
        assert fe.connection.receive().u64() == fe.offered
        for byte in HEADER.pack(Request.SET_FEATURES, VERSION, 8) + u64(fe.features):
            fe.connection.send_raw(bytes([byte]))
        talk(made, fe)


def test_messages_all_at_once(made: Bench) -> None:
    """QEMU does not wait: descriptors must stay with their messages."""
    with made.g.connect() as fe:
        many = 20
        ask = HEADER.pack(Request.GET_FEATURES, VERSION, 0)
        enable = HEADER.pack(Request.SET_VRING_ENABLE, VERSION, 8) + vring_state(TX, 1)
        fe.connection.send_raw((ask + enable) * many)
        for _ in range(3):  # each with its own descriptor, without a pause
            fe.give_call(fe.rings[RX])
            fe.give_call(fe.rings[TX])
        for _ in range(many):
            assert fe.connection.receive().u64() == fe.offered
        fe.barrier()
        talk(made, fe)


def test_a_memory_table_with_room_to_spare(made: Bench) -> None:
    """Older kernels of UML send two entries' bytes for one region."""
    with made.g.connect(style="uml", regions=1) as fe:
        payload = mem_table(fe.memory.table()) + bytes(32)
        fe.tell(Request.SET_MEM_TABLE, payload, fe.memory.fds(), ack=True)
        talk(made, fe)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("protocol", [0, ProtocolFeature.REPLY_ACK, ProtocolFeature.CONFIG])
def test_fewer_extensions(made: Bench, style: str, protocol: int) -> None:
    """Without REPLY_ACK, or CONFIG, or any of them."""
    features = None if protocol & ProtocolFeature.CONFIG or style == "qemu" else Feature.VERSION_1
    if features is not None:
        features |= Feature.PROTOCOL_FEATURES
    with made.g.connect(style=style, protocol_features=protocol, features=features) as fe:
        assert fe.protocol & ~protocol == 0
        talk(made, fe)


def test_without_protocol_features_rings_run_at_once(made: Bench) -> None:
    with made.g.connect(style="uml", features=Feature.VERSION_1, protocol_features=0) as fe:
        assert not fe.features & Feature.PROTOCOL_FEATURES
        talk(made, fe)


@pytest.mark.parametrize("style", STYLES)
def test_a_legacy_driver(made: Bench, style: str) -> None:
    """Without VERSION_1 and MRG_RXBUF the header has 10 bytes."""
    wanted = Feature.PROTOCOL_FEATURES | Feature.CSUM
    with made.g.connect(style=style, features=wanted) as fe:
        assert fe.header_size == 10
        talk(made, fe)


@pytest.mark.parametrize("style", STYLES)
def test_a_call_follows_each_new_descriptor(made: Bench, style: str) -> None:
    """What was signalled by the old one may be lost with it."""
    with made.g.connect(style=style) as fe:
        ring = fe.rings[RX]
        if style == "uml":
            old, ring.call = ring.call, -1  # UML's old one stays open in the guest
            other, ring.call = socket.socketpair()
            with other:
                fe.tell(Request.SET_VRING_CALL, u64(RX), [other.fileno()], ack=True)
            assert not isinstance(old, int)
            old.close()
        else:
            ring.drain_calls()
            fe.give_call(ring)
            fe.barrier()
        wait_until(lambda: ring.drain_calls() > 0, "a call after SET_VRING_CALL", 5)
        talk(made, fe)


def test_the_mtu_of_the_guest(made: Bench) -> None:
    with made.g.connect(mtu=1400) as fe:
        talk(made, fe)


def test_a_second_client_is_refused(made: Bench) -> None:
    """The first goes on; the log says who came."""
    with made.g.connect() as fe:
        second = VhostFrontend(made.g.path)
        try:
            with pytest.raises(FabricError, match="closed|Broken pipe|reset"):
                second.connect()
        finally:
            second.close()
        refused = [line for line in made.g.log if "refused" in line]
        assert len(refused) == 1
        assert str(os.getpid()) in refused[0]
        talk(made, fe)
    made.g.log.clear()


def test_an_old_listener_says_nothing_to_those_who_say_nothing(made: Bench) -> None:
    """Somebody who connects and is silent is no guest, and goes without a trace."""
    silent = VhostFrontend(made.g.path)
    silent.dial()
    wait_until(lambda: made.g.status()["connected"], "a connection")
    silent.close()
    with made.g.connect() as fe:
        talk(made, fe)


@pytest.mark.parametrize("style", STYLES)
def test_unknown_messages_are_refused_or_end_the_connection(made: Bench, style: str) -> None:
    with made.g.connect(style=style) as fe:
        with pytest.raises(FabricError, match="refused"):
            fe.tell(Request.SET_LOG_BASE, u64(0), ack=True)
        talk(made, fe)
        fe.tell(99)
        assert fe.wait_closed()
    with made.g.connect(style=style) as fe:
        talk(made, fe)


def test_the_examples_of_the_page(made: Bench) -> None:
    """Each in turn, with a guest's socket and a frame that somebody answers."""
    page = (Path(__file__).parent.parent / "docs" / "testing.md").read_text()
    blocks = re.findall(r"```python vhost\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        wait_until(lambda: not made.g.status()["connected"], "the last guest is gone")
        broadcast = frame(made.g.mac, b"\xff" * 6, b"anybody?")

        def answer() -> None:
            if made.x.recv_many(timeout=1):
                made.x.send(frame(made.x, made.g.mac, b"somebody"))

        thread = threading.Thread(target=answer)
        thread.start()
        exec(compile(block, "testing.md", "exec"), {"path": made.g.path, "broadcast": broadcast})
        thread.join()
    wait_until(lambda: made.g.counters()["ring_errors"] == 1, "the second broke a rule")
    assert made.g.alive()
