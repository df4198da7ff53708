# SPDX-License-Identifier: Apache-2.0
"""``mint bench peers``: the same over what one would use instead, in the same run.

Frames (or what comes next to them) between two processes; iperf3 and round trips between two
namespaces. Each peer is optional: what this machine lacks is named with the package that brings it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from typing import Any, ClassVar

from mint_vni.bench import latency, meter, sockets, ways
from mint_vni.bench.frames import CHANNEL_BYTES
from mint_vni.bench.part import EXPECTED, Case, Group, reason
from mint_vni.bench.result import Key, Metric, Skipped
from mint_vni.bench.runner import Run, Runner
from mint_vni.bench.running import RunnerPart
from mint_vni.errors import FabricError, NodeError, PlatformError

SIZES = (64, 1500)
OURS = "Mint VNI"
ONE_FRAME = "Mint VNI, one frame again and again"
_PPS = re.compile(r"Rx-pps:\s+(\d+)")
_PYTHON_PEERS = {"multiprocessing.Pipe": "pipe", "iceoryx2": "iceoryx2"}


class Peers(RunnerPart):
    """What one would use instead."""

    name: ClassVar[str] = "peers"
    title: ClassVar[str] = "Beside what one would use instead"
    defaults: ClassVar[tuple[int, float]] = (5, 1.0)
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("mpps", "Mpps", "Mpps", "higher", 3),
        *(replace(m, show="") if m.name == "sleeps" else m for m in sockets.METRICS),
        *(replace(m, show="") if m.name == "wakes" else m for m in latency.METRICS),
    )

    def method(self) -> list[str]:
        """How it measures."""
        return [
            f"Two processes or two namespaces on CPUs {list(self.settings.pair)}; every row of a"
            f" table in turns with Mint VNI with its default settings, and divided by it.",
            "Frames: Mint VNI's ports as in `mint bench frames` (with the paper's buffer);"
            " DPDK testpmd, one process sending and one receiving over memif, without huge pages,"
            " counted at the receiver; AF_UNIX SOCK_SEQPACKET in C; Pipe and iceoryx2 from Python,"
            " where the interpreter is the limit.",
            "testpmd sends one packet again and again, so it is copied from the cache, and checks"
            " nothing; 'one frame again and again' is Mint VNI sending one, instead of 1,024 in"
            " turn, checks and counters on. Either copies each frame in and out.",
            "Sockets and round trips: as in `mint bench sockets` and `mint bench latency`. DPDK's"
            " testpmd polls all the time, on the second core; while others are measured it is"
            " stopped.",
        ]

    def groups(self) -> Iterator[Group]:
        """Frames, sockets, round trips."""
        for size in SIZES[1:] if self.settings.quick else SIZES:
            yield Group(f"frames of {size} B", partial(self._frames, size))
        if os.geteuid() != 0:
            self.skipped.append(
                Skipped("sockets and round trips", "they need namespaces; run it as root")
            )
            return
        quick = self.settings.quick
        tests = sockets.TESTS[:1] if quick else sockets.TESTS[:1] + sockets.TESTS[3:4]
        seconds = self.settings.seconds
        yield Group(
            "iperf3",
            lambda: self._ways(lambda way: sockets.cases_of(way, tests, seconds, OURS)),
        )
        what = latency.asks(max(50, int(5000 * seconds)), quick=quick)
        yield Group(
            "round trips",
            lambda: self._ways(lambda way: latency.cases_of(way, what, OURS), answer=True),
        )

    @contextmanager
    def _ways(
        self, cases: Callable[[ways.Way], list[Case]], *, answer: bool = False
    ) -> Iterator[list[Case]]:
        pair = self.settings.pair
        openers: dict[str, Callable[[], Any]] = {OURS: partial(ways.mint, OURS, pair)}
        openers |= {name: partial(opener, pair) for name, opener in ways.PEERS.items()}
        if answer:
            openers = {name: partial(latency.answering, o) for name, o in openers.items()}
        with ExitStack() as stack:
            found: list[list[Case]] = []
            for name, opener in openers.items():
                try:
                    way = stack.enter_context(opener())
                except EXPECTED as error:
                    self.skipped.append(Skipped(name, reason(error)))
                    continue
                found.append(cases(way))
            yield sorted(
                (case for of_way in found for case in of_way), key=lambda c: str(c.key["test"])
            )

    # -- frames ---------------------------------------------------------------------------------

    @contextmanager
    def _frames(self, size: int) -> Iterator[list[Case]]:
        pair, seconds = self.settings.pair, self.settings.seconds
        offers: dict[str, Callable[[], Mapping[str, float]]] = {
            OURS: partial(_ours, self.runner, size, seconds, pair),
            ONE_FRAME: partial(_ours, self.runner, size, seconds, pair, distinct=1),
            "DPDK testpmd, memif": partial(memif, size, seconds, pair),
            "AF_UNIX seqpacket": partial(seqpacket, size, seconds, pair),
        }
        for name, kind in _PYTHON_PEERS.items():
            offers[name] = partial(python_peer, kind, size, seconds, pair)
        missing = {
            "DPDK testpmd, memif": lambda: ways.need("dpdk-testpmd", "dpdk-dev"),
            "iceoryx2": _need_iceoryx2,
        }
        cases = []
        for name, offer in offers.items():
            try:
                missing.get(name, str)()
            except PlatformError as error:
                skipped = Skipped(f"{name}, frames", str(error))
                if skipped not in self.skipped:  # for another size
                    self.skipped.append(skipped)
                continue
            key: Key = {"test": f"frames of {size} B", "path": name}
            cases.append(Case(key, offer, against=lambda other: other["path"] == OURS))
        yield cases


def _need_iceoryx2() -> None:
    if find_spec("iceoryx2") is None:
        raise PlatformError("iceoryx2 is not installed; pip install iceoryx2")


def _flow(packets: float, size: int, seconds: float) -> dict[str, float]:
    if not packets or not seconds:
        raise FabricError("nothing arrived; try a longer --seconds")
    return {"gbps": packets * size * 8 / seconds / 1e9, "mpps": packets / seconds / 1e6}


def _ours(
    runner: Runner, size: int, seconds: float, pair: tuple[int, int], distinct: int = Run.distinct
) -> Mapping[str, float]:
    trial = Run(
        "per-channel",
        "doorbells",
        size,
        100_000,
        channel_bytes=CHANNEL_BYTES,
        cpus=pair,
        distinct=distinct,
    )
    frames = max(1000, int(trial.frames / runner.ask(trial)["seconds"] * seconds))
    return _flow(frames, size, runner.ask(replace(trial, frames=frames))["seconds"])


def seqpacket(size: int, seconds: float, pair: tuple[int, int]) -> Mapping[str, float]:
    """Packets over a local socket, in C."""
    args = ["seqpacket", str(size), f"{seconds:g}", *map(str, pair)]
    found = meter.run(list, args, seconds + 20)
    return _flow(found["packets"], size, found["ns"] / 1e9)


def python_peer(kind: str, size: int, seconds: float, pair: tuple[int, int]) -> Mapping[str, float]:
    """What Python programs would use, in processes of their own."""
    args = [kind, str(size), f"{seconds:g}", *map(str, pair)]
    done = subprocess.run(
        [sys.executable, "-P", "-m", "mint_vni.bench.python_peers", *args],
        capture_output=True,
        text=True,
        timeout=seconds + 60,
        check=False,
    )
    if done.returncode != 0:
        raise NodeError(f"{kind}: {(done.stderr.strip().splitlines() or ['it ended'])[-1]}")
    found = json.loads(done.stdout)
    return _flow(found["packets"], size, found["seconds"])


def memif(size: int, seconds: float, pair: tuple[int, int]) -> Mapping[str, float]:
    """Packets from one testpmd to another; the median of what the receiver says each second."""
    if pair[0] == pair[1]:
        raise PlatformError("testpmd polls and needs two CPUs; give --cpus with two")
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="mint-memif-"))
        environment = os.environ | {"XDG_RUNTIME_DIR": folder}
        log = stack.enter_context(open(f"{folder}/log", "w+"))

        def start(role: str, main: int, worker: int, mode: str, **options: Any) -> None:
            device = f"net_memif0,role={role},socket={folder}/m.sock,socket-abstract=no"
            cores = f"{main},{worker}"
            argv = ways.testpmd_argv(cores, f"mint{os.getpid()}{role}", [device])
            # The main core only prints, and it is the other one's core: it must not poll.
            argv[argv.index("--") : argv.index("--")] = ["--main-lcore", str(main)]
            argv += [f"--forward-mode={mode}", "--auto-start", "--nb-cores=1"]
            argv += [f"--txpkts={size}"] if mode == "txonly" else ["--stats-period=1"]
            stack.enter_context(
                ways.started(argv, env=environment, stdin=subprocess.PIPE, **options)
            )

        start("server", pair[0], pair[1], "rxonly", stdout=log)
        ways.await_("memif's socket", lambda: os.path.exists(f"{folder}/m.sock"))
        start("client", pair[1], pair[0], "txonly")
        rates = _rates(f"{folder}/log", max(2, round(seconds)))
    middle = sorted(rates)[len(rates) // 2]
    return _flow(middle, size, 1.0)


def _rates(path: str, count: int) -> list[int]:
    """Packets a second, of `count` whole seconds in which there were any."""
    end = time.monotonic() + 15 + 2 * count
    while time.monotonic() < end:
        with open(path) as file:
            rates = [int(n) for n in _PPS.findall(file.read()) if int(n)]
        if len(rates) > count:
            return rates[1:]  # in the first one it began
        time.sleep(0.1)
    raise NodeError("testpmd received nothing; run mint bench peers again, or testpmd by hand")
