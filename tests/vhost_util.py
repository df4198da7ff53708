# SPDX-License-Identifier: Apache-2.0
"""A fabric with guests on it that are none: what the tests of the vhost-user port share.

Each guest's port is served by a real ``mint-worker`` process; what is an agent's process in a lab
is a thread here, and the guest is a `VhostFrontend`. All other ports are raw ports of the test.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from fabric_util import frame, gives_back, wait_until
from mint_vni.fabric import Fabric
from mint_vni.fabric.port import Port
from mint_vni.lab import wire
from mint_vni.lab.worker import Worker
from mint_vni.ports.vhost_user.server import VhostUserServer
from mint_vni.testing import VhostFrontend

T = TypeVar("T")
STYLES = ["qemu", "uml"]
DEADLINE_S = 20.0
#: For tests in which nothing may be dropped, however slow a busy machine makes the test itself.
PATIENT = {"stall_us": 10_000_000}
_ORDERS_S = 10.0


class Loop:
    """An event loop in a thread."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, function: Callable[[], T]) -> T:
        """Call a function in the loop's thread."""
        done: Future[T] = Future()

        def call() -> None:
            try:
                done.set_result(function())
            except BaseException as error:  # noqa: BLE001  # raised in the caller's thread
                done.set_exception(error)

        self.loop.call_soon_threadsafe(call)
        return done.result(_ORDERS_S)

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(_ORDERS_S)
        self.loop.close()


class Guest:
    """A port whose guest is yet to come: its socket, its server and its worker.

    Attributes:
        path: the vhost-user socket.
        log: what the server said.
    """

    def __init__(self, bench: Bench, name: str, options: dict[str, Any]) -> None:
        self.bench, self.name = bench, name
        self.spec = bench.fabric.spec(name)
        self.path = str(bench.directory / f"{name}.sock")
        self.log: list[str] = []
        self._worker_log = bench.directory / f"{name}.log"
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(self.path)
        listener.listen(8)
        settings: dict[str, Any] = {"mtu": 1500, "offload": True} | options
        self.server = bench.loop.run(
            lambda: VhostUserServer(listener, mac=self.spec.mac, log=self.log.append, **settings)
        )
        bench.loop.run(lambda: self.server.start(bench.loop.loop))
        self.worker = Worker(name, bench.directory / f"w-{name}.sock", self._worker_log)
        self.start_worker()

    @property
    def mac(self) -> str:
        return self.spec.mac

    @property
    def pid(self) -> int:
        assert self.worker.process is not None
        return self.worker.process.pid

    def alive(self) -> bool:
        return self.worker.process is not None and self.worker.process.alive()

    def start_worker(self) -> None:
        """Start a (new) worker, as a supervisor does, and hand it the guest."""
        regions = self.bench.fabric._regions
        code, slots = regions.layout_code, regions.slots
        self.worker.start()
        me = (os.geteuid(), os.getegid())
        self._request(
            wire.open_message(self.spec, slots, code, *me), regions.open_fds(self.spec.index)
        )
        capacity = regions.channel_bytes if regions.layout == "per-channel" else 0
        for name in self.bench.fabric.names:
            if name != self.name:
                other = self.bench.fabric.spec(name)
                fds = regions.peer_fds(self.spec.index, other.index)
                self._request(wire.add_peer_message(other, capacity), fds)
        agent, worker = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._request(wire.vhost_message(), [worker.detach()])
        self.bench.loop.run(lambda: self.server.link(agent))

    def _request(self, message: bytes, fds: Sequence[int]) -> None:
        try:
            self.worker.request(message, fds)
        finally:
            for fd in fds:
                os.close(fd)

    def kill_worker(self) -> None:
        """SIGKILL."""
        assert self.worker.process is not None
        assert self.worker.process.kill(time.monotonic() + DEADLINE_S)
        self.worker.disconnect()

    def status(self) -> dict[str, Any]:
        return self.bench.loop.run(self.server.status)

    def counters(self) -> dict[str, int]:
        return self.bench.fabric.counters(self.name)

    def drops(self) -> dict[str, int]:
        return self.bench.fabric.drops(self.name)

    def worker_log(self) -> list[str]:
        """What the worker said, but for how much it did not say."""
        lines = self._worker_log.read_text().splitlines()
        return [line for line in lines if "left out" not in line]

    @contextmanager
    def connect(self, **options: Any) -> Iterator[VhostFrontend]:
        """A guest that is connected and runs."""
        wait_until(lambda: not self.status()["connected"], "the last guest is gone")
        with VhostFrontend(self.path, **options) as fe:
            fe.barrier()
            yield fe

    def close(self) -> None:
        self.bench.loop.run(self.server.close)
        self.worker.stop(time.monotonic() + DEADLINE_S)


class Bench:
    """A fabric of guests and raw ports."""

    def __init__(
        self,
        directory: Path,
        guests: Iterable[str] = ("g",),
        raw: Iterable[str] = ("x", "y"),
        layout: str = "per-channel",
        options: dict[str, Any] | None = None,
        **fabric: Any,
    ) -> None:
        """Use as a context manager.

        Args:
            directory: for sockets and logs; short.
            guests, raw: names of ports.
            options: of `VhostUserServer`, for all guests.
        """
        self.directory = directory
        names, raws = [*guests], [*raw]
        self.fabric = Fabric.create([*names, *raws], layout, **fabric)
        self.loop = Loop()
        self.guests: dict[str, Guest] = {}
        try:
            for name in names:
                self.guests[name] = Guest(self, name, options or {})
            for name in raws:
                self.fabric.port(name)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __getitem__(self, name: str) -> Guest:
        return self.guests[name]

    @property
    def g(self) -> Guest:
        """The first guest."""
        return next(iter(self.guests.values()))

    @property
    def x(self) -> Port:
        return self.fabric["x"]

    @property
    def y(self) -> Port:
        return self.fabric["y"]

    def close(self) -> None:
        for guest in self.guests.values():
            guest.close()
        self.loop.close()
        self.fabric.close()


@contextmanager
def bench(directory: Path, **options: Any) -> Iterator[Bench]:
    """A bench that must give back all that it took."""
    with gives_back(), Bench(directory, **options) as made:
        yield made


def payload(size: int, seed: int = 0) -> bytes:
    """Bytes that differ from one seed to another."""
    return random.Random(f"{size}/{seed}").randbytes(size)


def sized(src: Any, dst: Any, size: int, seed: int = 0) -> bytes:
    """A frame of `size` bytes in all."""
    return frame(src, dst, payload(size - 14, seed))


def take(port: Port, count: int, timeout: float = DEADLINE_S) -> list[bytes]:
    """Exactly so many frames from a raw port."""
    got: list[bytes] = []
    end = time.monotonic() + timeout
    while len(got) < count:
        left = end - time.monotonic()
        assert left > 0, f"{len(got)} of {count} frames within {timeout} s"
        got += port.recv_many(timeout=left)
    assert len(got) == count
    return got


def take_guest(fe: VhostFrontend, count: int, timeout: float = DEADLINE_S) -> list[bytes]:
    """Exactly so many frames from a guest."""
    got: list[bytes] = []
    end = time.monotonic() + timeout
    while len(got) < count:
        left = end - time.monotonic()
        assert left > 0, f"{len(got)} of {count} frames within {timeout} s"
        got += [f.data for f in fe.recv_many(timeout=left)]
    assert len(got) == count
    return got


def talk(made: Bench, fe: VhostFrontend, name: str = "g", repeats: Sequence[bytes] = ()) -> bytes:
    """One frame each way between a guest and raw port x; what the guest got.

    Args:
        repeats: frames that may come once more before: a new worker repeats the last batch.
    """
    mac = made[name].mac
    there, back = frame(mac, made.x, os.urandom(50)), frame(made.x, mac, os.urandom(50))
    fe.send(there)
    made.x.send(back)
    assert made.x.recv(DEADLINE_S) == there
    while (got := fe.recv(DEADLINE_S).data) != back:
        assert got in repeats
    return back


def others_talk(made: Bench) -> None:
    """One frame each way between the raw ports x and y, while a guest does what it does."""
    for src, dst in ((made.x, made.y), (made.y, made.x)):
        data = frame(src, dst, os.urandom(40))
        src.send(data, timeout=1)
        assert dst.recv(1) == data
