# SPDX-License-Identifier: Apache-2.0
"""DPDK's testpmd as an independent vhost-user program: found, started, ended.

It runs without huge pages and without PCI devices. Its memory is a file in memory then, which can
be shared, so that its virtio-user works, too (DPDK 19.02 and later).
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

FETCHED = Path(__file__).parent.parent / "build" / "dpdk" / "usr"
MEMORY_MB = 128
READY_S = 20.0
_DRIVERS = ("net_vhost", "net_virtio", "mempool_ring")


def program() -> tuple[str, Path | None] | None:
    """The program, and where its drivers are if it does not know; None: not on this machine.

    An installed one loads its drivers from a directory whose name is built in, and so would one
    that was only unpacked: together they would load two copies.
    """
    found = shutil.which("dpdk-testpmd")
    if found:
        return found, None
    fetched = FETCHED / "bin" / "dpdk-testpmd"
    if not fetched.exists():
        return None
    return str(fetched), next(iter(FETCHED.glob("lib/*/librte_eal.so*"))).parent


def why_not() -> str | None:
    """Why testpmd cannot run here; None: it can."""
    found = program()
    if found is None:
        return "no dpdk-testpmd; run scripts/fetch_testpmd.py or install dpdk-dev"
    if (os.cpu_count() or 1) < 2:
        return "testpmd needs two CPUs, one of them for itself"
    return None


class Testpmd:
    """A running testpmd."""

    __test__ = False  # no test, whatever its name begins with

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process, self._log = process, log

    def output(self) -> str:
        return self._log.read_text(errors="replace")

    def wait_until(self, ready: Callable[[], object], what: str) -> None:
        """Wait for a state of the world: what it prints itself, it prints when it ends."""
        end = time.monotonic() + READY_S
        while not ready():
            assert self.process.poll() is None, f"testpmd ended:\n{self.output()[-3000:]}"
            assert time.monotonic() < end, f"not within {READY_S} s: {what}\n{self.output()}"
            time.sleep(0.01)

    def stop(self) -> str:
        """End it, gently if it listens; what it said."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        return self.output()


@contextmanager
def testpmd(directory: Path, vdevs: Sequence[str], *options: str) -> Iterator[Testpmd]:
    """Run it.

    Args:
        directory: for its files and its output; short.
        vdevs: its devices, as ``--vdev`` takes them.
        options: its own, after ``--``.
    """
    found = program()
    assert found is not None
    path, libraries = found
    argv = [path, "-l", "0,1", "--no-huge", "--no-shconf", "-m", str(MEMORY_MB), "--no-pci"]
    argv.append("--no-telemetry")
    environment = {"RUNTIME_DIRECTORY": str(directory)}
    if libraries is not None:
        environment["LD_LIBRARY_PATH"] = str(libraries)
        for driver in _DRIVERS:
            argv += ["-d", str(min(libraries.glob(f"librte_{driver}.so*")))]
    for vdev in vdevs:
        argv += ["--vdev", vdev]
    argv += ["--", "--auto-start", "--disable-link-check", "--total-num-mbufs=4096"]
    argv += [*options]
    log = directory / "testpmd.log"
    with open(log, "wb") as out:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,  # it ends at the end of its input
            stdout=out,
            stderr=subprocess.STDOUT,
            env=environment,
        )
    running = Testpmd(process, log)
    try:
        yield running
    finally:
        running.stop()
        assert process.stdin is not None
        process.stdin.close()
