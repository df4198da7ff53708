# SPDX-License-Identifier: Apache-2.0
"""Nonsense for the Python parsers of what others say: only the errors that they document come out.

Lab files, the supervisor's protocol, control messages, and the vhost-user messages of a guest's front
end, with whatever descriptors. Descriptors that came along are closed in the end, all of them.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import socket
import struct
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fabric_util import descriptors
from mint_vni.errors import FabricError, LabFileError
from mint_vni.lab import protocol, wire
from mint_vni.lab.loader import parse_lab
from mint_vni.lab.plan import resolve
from mint_vni.ports.vhost_user.device import VhostDevice
from mint_vni.ports.vhost_user.protocol import ProtocolError, Request
from mint_vni.ports.vhost_user.server import _Connection

EXAMPLES = int(os.environ.get("MINT_FUZZ_EXAMPLES", "300"))
tried = settings(
    max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), database=None
)


# ------------------------------------------------------------------------------ lab files

WORDS = st.sampled_from(
    """lab nodes fabric network defaults ssh layout slots channel_bytes shared per-channel a b c mac
    mtu bridge cpus memory kind netns uml qemu ipv4 ipv6 subnet true no null 52:54:00:12:34:56 1e9
    0x7f -1 2MiB 10.0.0.0/8 ::1/64 &x *x <<: !!python/object:os.system [] {} - : | > ? % @""".split()  # noqa: SIM905
)
SCALARS = st.one_of(
    WORDS, st.integers(), st.floats(), st.text(max_size=12), st.booleans(), st.none()
)
TREES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.one_of(WORDS, st.text(max_size=6)), inner)
    ),
    max_leaves=12,
)


def read_lab(text: str) -> None:
    """As ``mint up`` does, up to the plan."""
    with contextlib.suppress(LabFileError):
        model, lines = parse_lab(text)
        resolve(model, "fuzz.yaml", lines)


@tried
@given(st.text(max_size=300))
@example("lab: x\nnodes: {a: *b}")
@example("[" * 5000)
@example("&a [*a, *a]")
def test_any_text_is_a_lab_file_or_none(text: str) -> None:
    read_lab(text)


@tried
@given(st.lists(st.tuples(st.integers(0, 8), WORDS, st.sampled_from([": ", "\n", ", ", "- ", ""]))))
def test_text_that_looks_like_a_lab_file(parts: list[tuple[int, str, str]]) -> None:
    read_lab("lab: x\nnodes:\n" + "".join(" " * depth + word + end for depth, word, end in parts))


@tried
@given(TREES, TREES, TREES)
def test_lab_files_of_any_shape(nodes: Any, fabric: Any, network: Any) -> None:
    read_lab(json.dumps({"lab": "x", "nodes": {"a": nodes, "b": {}}, "fabric": fabric}))
    read_lab(json.dumps({"lab": "x", "nodes": ["a", "b"], "network": network, "defaults": nodes}))


def test_aliases_do_not_explode() -> None:
    """Nine levels of nine aliases: a billion values, were they copied."""
    text = "lab: x\nnodes: &n0 [a, a]\n" + "".join(
        f"k{i}: &n{i} [{', '.join([f'*n{i - 1}'] * 9)}]\n" for i in range(1, 10)
    )
    with pytest.raises(LabFileError):
        parse_lab(text)


# ------------------------------------------------------------------------------ protocols


@tried
@given(st.lists(st.binary(max_size=200), max_size=6))
@example([b"." + b"[" * 100_000])
@example([b"+[", b".]"])
@example([b".\xff"])
def test_packets_for_the_supervisor(packets: list[bytes]) -> None:
    decoder = protocol.Decoder()
    for packet in packets:
        try:
            message = decoder.feed(packet)
        except ValueError:
            return
        assert message is None or isinstance(message, dict)


@tried
@given(
    st.recursive(
        SCALARS.filter(lambda v: not isinstance(v, float) or math.isfinite(v)),
        lambda v: st.lists(v, max_size=3),
        max_leaves=5,
    )
)
def test_what_is_encoded_is_decoded(value: Any) -> None:
    decoder, message = protocol.Decoder(), {"op": value}
    *rest, last = protocol.encode(message)
    assert all(decoder.feed(packet) is None for packet in rest)
    assert decoder.feed(last) == message


HEADER = wire.plain_message(wire.STOP)[:8]


@tried
@given(st.one_of(st.binary(max_size=300), st.binary(min_size=120, max_size=120)), st.booleans())
def test_control_messages(data: bytes, headed: bool) -> None:
    try:
        message = wire.parse(HEADER + data if headed else data)
    except FabricError:
        return
    assert isinstance(message.type, int)


# ---------------------------------------------------------------------------- vhost-user

NUMBERS = st.one_of(
    st.integers(0, 3), st.sampled_from([1 << 12, 1 << 31, (1 << 32) - 1]), st.integers(0, 2**32 - 1)
)
LONG = st.one_of(
    NUMBERS, st.sampled_from([2**63, 2**64 - 1, 2**64 - 4096]), st.integers(0, 2**64 - 1)
)
PAYLOADS = st.one_of(
    st.binary(max_size=64),
    st.tuples(LONG).map(lambda v: struct.pack("<Q", *v)),
    st.tuples(NUMBERS, NUMBERS).map(lambda v: struct.pack("<II", *v)),
    st.tuples(NUMBERS, NUMBERS, LONG, LONG, LONG, LONG).map(lambda v: struct.pack("<IIQQQQ", *v)),
    st.tuples(st.integers(0, 9), st.lists(st.tuples(LONG, LONG, LONG, LONG), max_size=9)).map(
        lambda v: struct.pack("<II", v[0], 0) + b"".join(struct.pack("<QQQQ", *r) for r in v[1])
    ),
)
MESSAGES = st.tuples(
    st.one_of(st.sampled_from(list(Request)), NUMBERS),
    st.sampled_from([1, 1, 1, 9, 9, 0, 2, 5]),
    PAYLOADS,
    st.sampled_from([0, 0, 0, 0, -1, 1, 5000]),
    st.lists(st.integers(0, 4), max_size=9),
)


def files() -> list[int]:
    """Descriptors of all kinds that a front end could send."""
    memory = os.memfd_create("guest")
    os.ftruncate(memory, 8192)
    reader, writer = os.pipe()
    os.close(writer)
    directory = os.open("/", os.O_RDONLY)
    null = os.open("/dev/null", os.O_RDWR)
    return [memory, os.eventfd(0), reader, directory, null]


def converse(messages: list[tuple[int, int, bytes, int, list[int]]]) -> None:
    """Say all this to a back end; it may hang up."""
    theirs, ours = socket.socketpair()
    kinds = files()
    ours.setblocking(False)
    theirs.setblocking(False)
    device = VhostDevice("02:4d:56:00:00:01", 1500, offload=True, log=lambda _: None)
    connection = _Connection(ours, device)
    try:
        for request, flags, payload, lie, which in messages:
            header = struct.pack("<III", request, flags, max(0, len(payload) + lie))
            socket.send_fds(theirs, [header + payload], [kinds[i] for i in which])
            if not connection.read():
                break
            with contextlib.suppress(BlockingIOError):
                theirs.recv(65536)
            device.status()
    except ProtocolError:
        pass
    finally:
        connection.close()
        device.reset()
        theirs.close()
        for fd in kinds:
            os.close(fd)


@tried
@given(st.lists(MESSAGES, max_size=12))
def test_a_front_end_may_say_anything(
    messages: list[tuple[int, int, bytes, int, list[int]]],
) -> None:
    before = descriptors()
    converse(messages)
    assert len(descriptors()) == len(before), "descriptors are left"
