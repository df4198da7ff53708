# SPDX-License-Identifier: Apache-2.0
"""What the tests of the fabric share: frames, waiting for a state, children by fork."""

from __future__ import annotations

import gc
import os
import pickle
import re
import select
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mint_vni._native import ffi, lib

from mint_vni.fabric import Fabric
from mint_vni.fabric.config import mac_bytes
from mint_vni.fabric.port import Port

LAYOUTS = ["per-channel", "shared", "pooled"]
BROADCAST = b"\xff" * 6
ETHERTYPE = b"\x88\xb5"  # IEEE 802 local experimental


def frame(src: Port | str | bytes, dst: Port | str | bytes, payload: bytes = b"") -> bytes:
    """A frame; ends are ports, or MACs as text or bytes."""
    return _mac(dst) + _mac(src) + ETHERTYPE + payload


def _mac(of: Port | str | bytes) -> bytes:
    if isinstance(of, bytes):
        return of
    return mac_bytes(of if isinstance(of, str) else of.mac)


def wait_until(condition: Callable[[], Any], what: str, deadline_s: float = 20.0) -> None:
    """Wait for a state; fail when it does not come about."""
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, f"after {deadline_s} s still not: {what}"
        time.sleep(0.001)


def asleep(fabric: Fabric, name: str) -> bool:
    """Whether a port's process says that it sleeps."""
    view = fabric._view(name)
    try:
        state = ffi.new("struct mint_ctl_view *")
        lib.mint_ctl_read(view._ctl, state)
        return bool(state.wake & 1)
    finally:
        view.close()


def descriptors() -> set[str]:
    """What this process has open, but for files of /proc: this listing, and other threads, read those.

    Garbage of earlier tests (an exception's frames and what they held) is collected first: it would
    go at some moment in between.
    """
    gc.collect()
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:
            continue
        if not target.startswith("/proc/"):
            found.add(f"{fd} {target}")
    return found


def kinds(found: set[str]) -> Counter[str]:
    """How many descriptors of each kind: sockets and pipes without their numbers."""
    return Counter(re.sub(r"\[\d+\]", "", entry.split(" ", 1)[1]) for entry in found)


def mappings() -> int:
    """Mappings of regions in this process."""
    return Path("/proc/self/maps").read_text().count("/memfd:mint-")


@contextmanager
def gives_back() -> Iterator[None]:
    """Check that what runs inside leaves no descriptor and no mapping behind."""
    fds, maps = descriptors(), mappings()
    yield
    # Other threads of the test run open and close files meanwhile: theirs go, a leak stays.
    wait_until(lambda: not kinds(descriptors()) - kinds(fds), "no descriptor more than before", 5)
    assert mappings() == maps


@contextmanager
def three_ports(layout: str) -> Iterator[Fabric]:
    """A fabric of the ports x, y and z, which must give back all that it took."""
    with gives_back(), Fabric.create(["x", "y", "z"], layout, channel_bytes=393216) as fabric:
        yield fabric


def fill(fabric: Fabric, src: str, dst: str, size: int = 1000) -> int:
    """Send until the channel is full; how many frames fit."""
    data = frame(fabric[src], fabric[dst], bytes(size - 14))
    sent = fabric[src].send_many([data] * 10_000, timeout=0)
    assert sent < 10_000
    return sent


def drain(port: Port) -> list[bytes]:
    frames: list[bytes] = []
    while more := port.recv_many(timeout=0):
        frames += more
    return frames


class Child:
    """A forked child that runs a function and reports what it returned."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self._read, write = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            self._run(write, function, args)
        os.close(write)

    def _run(self, write: int, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
        status = 1
        try:
            os.close(self._read)
            result = function(*args)
            with os.fdopen(write, "wb") as out:
                pickle.dump(result, out)
            status = 0
        except BaseException:  # noqa: BLE001 - whatever it is, the parent is to see it
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(status)

    def result(self, deadline_s: float = 60.0) -> Any:
        """What the function returned; the child has ended then."""
        try:
            data = self._read_all(time.monotonic() + deadline_s)
        except BaseException:
            self.kill()
            raise
        status = self._reap()
        assert status == 0, f"child {self.pid} ended with status {status}"
        return pickle.loads(data)

    def _read_all(self, end: float) -> bytes:
        data, poller = b"", select.poll()
        poller.register(self._read, select.POLLIN)
        while True:
            left = end - time.monotonic()
            assert left > 0, f"child {self.pid} is not done in time"
            if poller.poll(left * 1000):
                chunk = os.read(self._read, 1 << 16)
                if not chunk:
                    return data
                data += chunk

    def kill(self, number: int = signal.SIGKILL) -> None:
        """End the child, if it has not been waited for."""
        if self._read >= 0:
            os.kill(self.pid, number)
            self._reap()

    def _reap(self) -> int:
        os.close(self._read)
        self._read = -1
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def results(*children: Child, deadline_s: float = 60.0) -> list[Any]:
    """What all children returned; when one fails, the others are ended."""
    try:
        return [child.result(deadline_s) for child in children]
    finally:
        for child in children:
            child.kill()
