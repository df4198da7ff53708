# SPDX-License-Identifier: Apache-2.0
"""What a vhost-user server owes its event loop, whoever connects: no worker, no rings."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fabric_util import wait_until
from mint_vni.ports.vhost_user.server import VhostUserServer
from mint_vni.testing.protocol import HEADER, VERSION, Request, u64
from vhost_util import Loop


class Listener(socket.socket):
    """A listener of a process that has no descriptors left, now and then."""

    exhausted = False
    tried = 0

    def accept(self) -> tuple[socket.socket, str]:
        self.tried += 1
        if self.exhausted:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return super().accept()


class Served:
    """A server in a loop of its own thread."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.log: list[str] = []
        self.loop = Loop()
        self.listener = Listener(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(self.path)
        self.listener.listen(8)
        self.server = VhostUserServer(
            self.listener, mac="02:00:00:00:00:01", mtu=1500, offload=True, log=self.log.append
        )
        self.loop.run(lambda: self.server.start(self.loop.loop))

    def connected(self) -> bool:
        return bool(self.loop.run(self.server.status)["connected"])

    def dial(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(10)
        sock.connect(self.path)
        return sock

    def close(self) -> None:
        self.loop.run(self.server.close)
        self.loop.close()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    made = Served(tmp_path / "s")
    yield made
    made.close()


def features(sock: socket.socket) -> int:
    """Ask for the features, as every front end does first."""
    sock.sendall(HEADER.pack(Request.GET_FEATURES, VERSION, 0))
    answer = sock.recv(HEADER.size + 8, socket.MSG_WAITALL)
    return int(struct.unpack_from("<Q", answer, HEADER.size)[0])


def test_without_descriptors_it_waits_and_goes_on(served: Served) -> None:
    """A listener stays readable: nothing else would run in this loop, and it would take a CPU."""
    served.listener.exhausted = True
    with served.dial() as sock:
        wait_until(lambda: len(served.log) == 1, "it says so")
        assert "Too many open files" in served.log[0]
        tried, begin = served.listener.tried, time.monotonic()
        wait_until(lambda: served.listener.tried > tried, "it tries again")
        tries = (served.listener.tried - tried) / (time.monotonic() - begin)
        assert tries < 30, f"{tries:.0f} tries a second"
        served.listener.exhausted = False
        assert features(sock)


def test_it_ends_while_it_waits_for_descriptors(served: Served) -> None:
    served.listener.exhausted = True
    with served.dial():
        wait_until(lambda: len(served.log) == 1, "it says so")
    # What the fixture does: an error of the loop's would be raised there.


FLOODS = {
    "SET_OWNER": HEADER.pack(Request.SET_OWNER, VERSION, 0),
    "SEND_RARP": HEADER.pack(Request.SEND_RARP, VERSION, 8) + u64(0),
    "NET_SET_MTU": HEADER.pack(Request.NET_SET_MTU, VERSION, 8) + u64(1400),
}


@pytest.mark.parametrize("what", FLOODS)
def test_a_front_end_that_never_pauses_starves_nobody(served: Served, what: str) -> None:
    """The loop is an agent's: its supervisor waits for answers from there."""
    with served.dial() as sock:
        assert features(sock)
        data = FLOODS[what] * 16384  # more than the socket holds
        runs, ended = threading.Event(), threading.Event()

        def flood() -> None:
            with contextlib.suppress(OSError):
                while not ended.is_set():
                    sock.sendall(data)
                    runs.set()

        sender = threading.Thread(target=flood, daemon=True)
        sender.start()
        try:
            assert runs.wait(10)
            slowest = 0.0
            for _ in range(20):
                begin = time.monotonic()
                assert served.connected(), "it is no nonsense"
                slowest = max(slowest, time.monotonic() - begin)
            print(f"slowest answer: {slowest:.3f} s")
            assert slowest < 2
        finally:
            ended.set()
            sock.shutdown(socket.SHUT_RDWR)
            sender.join(10)
    wait_until(lambda: not served.connected(), "it has gone")
