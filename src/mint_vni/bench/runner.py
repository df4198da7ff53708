# SPDX-License-Identifier: Apache-2.0
"""Carries out runs of frames, one request a line on standard input, one answer a line on output.

A process of its own, without threads, because it forks: each port of a run is served by a process
of its own, pinned to a core. A request is the name of a kind of run and its arguments as JSON; the
answer is JSON, too.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, NoReturn

from mint_vni._native import ffi, lib
from mint_vni.errors import FabricError
from mint_vni.fabric import Fabric
from mint_vni.fabric.config import mac_bytes

#: Ways of waiting, and the ``poll_us`` that each means: spin for longer than any pause of a run;
#: the default, adaptive: spin for a while where that pays, then sleep until a doorbell; sleep at
#: once.
WAITING = {"polling": 100_000, "doorbells": 50, "doorbells only": 0}

#: Who sends to whom, for ports numbered from 0: pairs of sender and receiver.
PATTERNS: dict[str, Callable[[int], list[tuple[int, int]]]] = {
    "one to one": lambda _n: [(0, 1)],
    "several to one": lambda n: [(i, n - 1) for i in range(n - 1)],
    "one to several": lambda n: [(0, i) for i in range(1, n)],
    "all to all": lambda n: [(i, k) for i in range(n) for k in range(n) if i != k],
}

_RESULT = ("frames", "received", "bytes", "dropped", "lost", "reordered", "corrupted")
_TIMES = ("begin_ns", "end_ns", "cpu_ns")
_STALL_US = 10_000_000  # on a busy machine a receiver may wait for its core for long: drop nothing
_STREAMS = {"read": 0, "write": 1, "copy": 2}


@dataclass(frozen=True)
class Run:
    """One run of frames.

    Attributes:
        layout: a layout of the fabric.
        waiting: key of :data:`WAITING`.
        size: bytes of frame.
        frames: how many each sender sends to each of its receivers.
        pattern: key of :data:`PATTERNS`.
        ports: how many take part, a process each.
        channel_bytes: packet buffer, bytes.
        cpus: cores that the processes are spread over, in turn; empty: not pinned.
        distinct: different frames, sent in turn.
        batch: frames between two publications.
        verify: number the frames and check every byte.
        timeout_s: give up when nothing moves for so long.
    """

    layout: str
    waiting: str
    size: int
    frames: int
    pattern: str = "one to one"
    ports: int = 2
    channel_bytes: int = 393_216
    cpus: tuple[int, ...] = ()
    distinct: int = 1024
    batch: int = 32
    verify: bool = False
    timeout_s: float = 10.0

    @property
    def flows(self) -> list[tuple[int, int]]:
        """Pairs of sender and receiver."""
        return PATTERNS[self.pattern](self.ports)

    @property
    def crowded(self) -> bool:
        """Whether there are more processes than cores for them: then waiters yield."""
        return self.ports > len(set(self.cpus) or os.sched_getaffinity(0))

    def cpu_of(self, index: int) -> set[int] | None:
        """Where a port's process runs."""
        return {self.cpus[index % len(self.cpus)]} if self.cpus else None


@dataclass(frozen=True)
class Trips:
    """Round trips of one frame at a time between two processes.

    Attributes:
        layout, waiting, size, cpus: as in :class:`Run`.
        count: how many.
    """

    layout: str
    waiting: str
    size: int
    count: int
    cpus: tuple[int, ...] = ()


# ------------------------------------------------------------------------------- children


class Child:
    """A process that says when it is ready, waits for the start, works and reports."""

    def __init__(self, cpu: set[int] | None, work: Callable[[], Callable[[], Any]]) -> None:
        """Fork it.

        Args:
            cpu: where it runs; None: anywhere.
            work: called in the child; prepares, and returns what to do after the start.
        """
        self._out, out = os.pipe()
        go, self._go = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._out)
            os.close(self._go)
            _live(cpu, work, go, out)
        os.close(out)
        os.close(go)

    def ready(self) -> bool:
        """Wait until it is."""
        return os.read(self._out, 1) == b"."

    def start(self) -> None:
        """Let it work."""
        os.write(self._go, b"g")

    def result(self) -> Any:
        """Wait for its report, and its end."""
        with os.fdopen(self._out) as file:
            text = file.read()
        os.close(self._go)
        os.waitpid(self.pid, 0)
        if not text:
            raise FabricError("a process of the measurement ended without a result")
        answer = json.loads(text)
        if "error" in answer:
            raise FabricError(f"a run of frames failed: {answer['error']}")
        return answer["result"]


def _live(
    cpu: set[int] | None, work: Callable[[], Callable[[], Any]], go: int, out: int
) -> NoReturn:
    status = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if cpu:
            os.sched_setaffinity(0, cpu)
        try:
            todo = work()
            os.write(out, b".")
            answer: dict[str, Any] = {"result": todo()} if os.read(go, 1) else {"error": "ended"}
        except (FabricError, OSError) as error:
            answer = {"error": str(error)}
        os.write(out, json.dumps(answer).encode())
        status = 0
    finally:
        os._exit(status)


def together(children: list[Child]) -> list[Any]:
    """Start all at once, wait for all; their results."""
    for child in [c for c in children if c.ready()]:
        child.start()
    results, error = [], None
    for child in children:
        try:
            results.append(child.result())
        except (FabricError, OSError) as problem:
            error = error or problem
    if error:
        raise error
    return results


def _done(err: int) -> None:
    if err < 0:
        raise FabricError(f"{os.strerror(-err)}; try again")


# --------------------------------------------------------------------------------- frames


def _config(run: Run, fabric: Fabric, index: int, peer: int) -> Any:
    c = ffi.new("struct mint_bench_config *")
    c.frames, c.size_min, c.size_max = run.frames, run.size, run.size
    c.distinct, c.batch, c.verify = run.distinct, run.batch, run.verify
    setattr(c, "yield", run.crowded)
    c.timeout_ns = int(run.timeout_s * 1e9)
    c.src, c.dst = (mac_bytes(fabric.spec(f"p{i}").mac) for i in (index, peer))
    return c


def _of(result: Any) -> dict[str, int]:
    return {name: int(getattr(result, name)) for name in _RESULT + _TIMES}


def _frames(run: Run, fabric: Fabric, index: int) -> Callable[[], Any]:
    """What one process of a run does."""
    port = fabric[f"p{index}"]
    if run.crowded:
        lib.mint_port_share_core(port.handle)
    targets = [dst for src, dst in run.flows if src == index]
    config = _config(run, fabric, index, targets[0] if targets else index)
    result = ffi.new("struct mint_bench_result *")
    if run.pattern == "one to one":
        loop = lib.mint_bench_send if targets else lib.mint_bench_recv

        def work() -> Any:
            _done(loop(port.handle, config, result))
            return _of(result)

        return work
    mix = ffi.new("struct mint_bench_mix *")
    mix.targets = len(targets)
    mix.expect = run.frames * sum(dst == index for _, dst in run.flows)
    for i, dst in enumerate(targets):
        mix.dst[i] = mac_bytes(fabric.spec(f"p{dst}").mac)

    def mixed() -> Any:
        _done(lib.mint_bench_mixed(port.handle, config, mix, result))
        return _of(result)

    return mixed


def frames(run: Run) -> dict[str, Any]:
    """Do one run.

    Returns:
        ``ports`` (see ``native/bench.h``), in order; ``seconds`` from the first frame sent to the
        last received; ``counters`` of all ports.

    Raises:
        FabricError: a process failed or gave up.
    """
    names = [f"p{i}" for i in range(run.ports)]
    poll_us = WAITING[run.waiting]
    with Fabric.create(names, run.layout, run.channel_bytes, poll_us, _STALL_US) as fabric:
        children = [
            Child(run.cpu_of(i), partial(_frames, run, fabric, i)) for i in range(run.ports)
        ]
        ports = together(children)
        counters = [fabric.counters(name) for name in names]
    senders, receivers = ({flow[i] for flow in run.flows} for i in (0, 1))
    begin = min(ports[i]["begin_ns"] for i in senders)
    end = max(ports[i]["end_ns"] for i in receivers)
    return {"ports": ports, "seconds": (end - begin) / 1e9, "counters": counters}


# ---------------------------------------------------------------------------- round trips


def quantiles(ns: list[int]) -> dict[str, float]:
    """Of round trips: microseconds."""
    ordered = sorted(ns)

    def at(q: float) -> float:
        return ordered[min(int(len(ordered) * q), len(ordered) - 1)] / 1e3

    return {"p50": at(0.5), "p99": at(0.99), "p999": at(0.999), "least": ordered[0] / 1e3}


def trips(t: Trips) -> dict[str, Any]:
    """Frames to and fro.

    Returns:
        ``p50``, ``p99``, ``p999``, ``least`` in microseconds; ``counters`` of both ports.
    """
    run = Run(t.layout, t.waiting, t.size, t.count, cpus=t.cpus)
    with Fabric.create(["p0", "p1"], t.layout, poll_us=WAITING[t.waiting]) as fabric:

        def side(index: int) -> Callable[[], Any]:
            port = fabric[f"p{index}"]
            if run.crowded:
                lib.mint_port_share_core(port.handle)
            config = _config(run, fabric, index, 1 - index)
            samples = ffi.new("uint32_t[]", t.count)

            def ask() -> Any:
                _done(lib.mint_bench_ask(port.handle, config, samples))
                return quantiles(list(samples[0 : t.count]))

            def answer() -> Any:
                _done(lib.mint_bench_answer(port.handle, config))
                return None

            return answer if index else ask

        found, _ = together([Child(run.cpu_of(i), partial(side, i)) for i in (0, 1)])
        counters = [fabric.counters(name) for name in fabric.names]
    result: dict[str, Any] = found
    return result | {"counters": counters}


def bells(count: int, cpus: tuple[int, ...]) -> dict[str, Any]:
    """Bare doorbells to and fro between two processes, and what ringing alone costs.

    Returns:
        :func:`quantiles` of the round trips, and ``ring_ns``.
    """
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    fds = [end.fileno() for end in ends]

    def side(index: int) -> Callable[[], Any]:
        samples = ffi.new("uint32_t[]", count)

        def work() -> Any:
            _done(lib.mint_bench_bells(fds[index], index == 0, count, samples))
            return quantiles(list(samples[0:count]))

        return work

    found, _ = together(
        [Child({cpus[i % len(cpus)]} if cpus else None, partial(side, i)) for i in (0, 1)]
    )
    ring = int(lib.mint_bench_ring(fds[0], fds[1], 20_000))
    for end in ends:
        end.close()
    result: dict[str, Any] = found
    return result | {"ring_ns": ring}


# --------------------------------------------------------------------------------- memory


def peak(cpus: tuple[int, ...], megabytes: int, seconds: float) -> dict[str, float]:
    """What all cores together read and write at most, gigabits a second.

    Returns:
        ``read``, ``write``, ``copy`` (read plus written) and ``peak``, the greatest of them.
    """
    size, span = megabytes << 20, int(seconds * 1e9)

    def work() -> Callable[[], Any]:
        area = lib.mint_bench_area(size)
        if area == ffi.NULL:
            raise FabricError("no memory for measuring memory; free some")
        return lambda: [
            lib.mint_bench_streaming(code, area, size, span) for code in _STREAMS.values()
        ]

    rates = together([Child({cpu}, work) for cpu in cpus])
    found = {name: 8 * sum(r[i] for r in rates) for i, name in enumerate(_STREAMS)}
    return found | {"peak": max(found.values())}


# ------------------------------------------------------------------------------ the server


def _answer(request: dict[str, Any]) -> Any:
    kind, args = request["do"], request["with"]
    if "cpus" in args:
        args["cpus"] = tuple(args["cpus"])
    if kind == "frames":
        return frames(Run(**args))
    if kind == "trips":
        return trips(Trips(**args))
    return bells(**args) if kind == "bells" else peak(**args)


def _serve() -> None:
    for line in sys.stdin:
        try:
            answer = {"result": _answer(json.loads(line))}
        except (FabricError, OSError) as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), flush=True)


class Runner:
    """The process that carries out the runs, seen from its user; a context manager."""

    def __init__(self) -> None:
        """Start it."""
        import subprocess

        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "mint_vni.bench.runner"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def ask(self, what: Run | Trips) -> dict[str, Any]:
        """Have a run carried out.

        Raises:
            FabricError: it failed.
        """
        return self.do("frames" if isinstance(what, Run) else "trips", **asdict(what))

    def do(self, kind: str, **args: Any) -> dict[str, Any]:
        """Have something done by name: ``bells`` or ``peak``."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps({"do": kind, "with": args}) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline() or "{}")
        if "result" not in answer:
            raise FabricError(answer.get("error", "the measuring process ended; try again"))
        result: dict[str, Any] = answer["result"]
        return result

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(10)


if __name__ == "__main__":
    _serve()
