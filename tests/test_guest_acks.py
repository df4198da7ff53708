# SPDX-License-Identifier: Apache-2.0
"""The exec channel over a stream that takes few bytes at a time, as a serial line of UML does."""

from __future__ import annotations

import os
import select
import struct
import subprocess
from collections.abc import Iterator

import pytest

from guest_bench import Service
from mint_vni.nodes.guest import wire
from mint_vni.nodes.guest.wire import Type, encode
from test_guest_channel import Fake

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="takes root")
WINDOW = 200


@pytest.fixture
def fake() -> Iterator[Fake]:
    service = Service()
    service.process.kill()
    service.process.wait()
    made = Fake(service)
    yield made
    made.stream.close()
    service.host.close()


def boot(fake: Fake) -> int:
    """Say HELLO with a window; returns how many bytes of the host's answer there are."""
    body = wire.MAGIC + struct.pack("<II", wire.VERSION, WINDOW) + os.urandom(16) + b"fake"
    fake.stream.sendall(encode(Type.HELLO, payload=body))
    assert fake.frame()[0] == Type.WELCOME
    return wire.HEAD_BYTES + 32


def silent(fake: Fake) -> bool:
    return not select.select([fake.stream], [], [], 0.2)[0]


def test_the_host_waits_for_acknowledgements(fake: Fake) -> None:
    got = boot(fake)
    line = fake.service.argv("x" * 1000)
    with subprocess.Popen(line, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as client:
        assert silent(fake), "nothing follows WELCOME before the first acknowledgement"
        seen = b""
        for _ in range(3):
            fake.send(Type.ACK, 0, struct.pack("<I", got))
            piece = fake.stream.recv(1 << 16)
            while not silent(fake):
                piece += fake.stream.recv(1 << 16)
            assert len(piece) == WINDOW
            seen += piece
            got += len(piece)
        assert struct.unpack_from("<B", seen)[0] == Type.OPEN
        # Booted anew, amid all that: counts begin again, and the old ones mean nothing.
        got = boot(fake)
        assert silent(fake)
        assert client.wait(10) == 125
