# SPDX-License-Identifier: Apache-2.0
"""Carries out runs of frames, one request a line on standard input, one answer a line on output.

A process of its own, without threads, because it forks: each port of a run is served by a process
of its own, pinned to a core. A request is a :class:`Run` as JSON; the answer has the results of the
sender and of the receiver as ``native/bench.h`` names them.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import asdict, dataclass
from typing import Any, NoReturn

from mint_vni._native import ffi, lib
from mint_vni.errors import FabricError
from mint_vni.fabric import Fabric
from mint_vni.fabric.config import mac_bytes

#: Ways of waiting, and the ``poll_us`` that each means: spin for longer than any pause of a run;
#: the default, adaptive: spin for a while where that pays, then sleep until a doorbell; sleep at
#: once.
WAITING = {"polling": 1_000_000, "doorbells": 50, "doorbells only": 0}

_RESULT = ("frames", "bytes", "dropped", "lost", "reordered", "corrupted")
_TIMES = ("begin_ns", "end_ns", "cpu_ns")


@dataclass(frozen=True)
class Run:
    """One run: frames from one process to another.

    Attributes:
        layout: ``per-channel``, ``shared`` or ``pooled``.
        waiting: key of :data:`WAITING`.
        size_min, size_max: bytes of frame.
        frames: how many.
        channel_bytes: packet buffer, bytes.
        cpus: cores of the sender and the receiver; the same twice, or empty: not pinned.
        distinct: different frames, sent in turn.
        batch: frames between two publications.
        verify: number the frames and check every byte.
        timeout_s: give up when nothing moves for so long.
    """

    layout: str
    waiting: str
    size_min: int
    size_max: int
    frames: int
    channel_bytes: int = 393_216
    cpus: tuple[int, ...] = ()
    distinct: int = 1024
    batch: int = 32
    verify: bool = False
    timeout_s: float = 10.0


def _config(run: Run, fabric: Fabric) -> Any:
    c = ffi.new("struct mint_bench_config *")
    c.frames, c.size_min, c.size_max = run.frames, run.size_min, run.size_max
    c.distinct, c.batch, c.verify = run.distinct, run.batch, run.verify
    setattr(c, "yield", len(set(run.cpus)) == 1)  # one core for both: spinning would only hold it
    c.timeout_ns = int(run.timeout_s * 1e9)
    c.src, c.dst = (mac_bytes(fabric.spec(name).mac) for name in ("tx", "rx"))
    return c


def _child(run: Run, fabric: Fabric, side: int, go: int, out: int) -> NoReturn:
    """Serve one port: say that it is open, wait for the start, run, report."""
    status = 1
    try:
        if run.cpus:
            os.sched_setaffinity(0, {run.cpus[side]})
        port = fabric[("tx", "rx")[side]]
        os.write(out, b".")
        os.read(go, 1)
        result = ffi.new("struct mint_bench_result *")
        work = (lib.mint_bench_send, lib.mint_bench_recv)[side]
        err = work(port.handle, _config(run, fabric), result)
        answer = {name: getattr(result, name) for name in _RESULT + _TIMES}
        os.write(out, json.dumps(answer | {"err": err}).encode() + b"\n")
        status = 0
    finally:
        os._exit(status)


def _spawn(run: Run, fabric: Fabric, side: int, go: int) -> tuple[int, int]:
    inward, outward = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.close(inward)
        _child(run, fabric, side, go, outward)
    os.close(outward)
    return pid, inward


def carry_out(run: Run) -> dict[str, Any]:
    """Do one run.

    Returns:
        ``tx`` and ``rx`` (see ``native/bench.h``), ``seconds`` from the first frame sent to the
        last received, ``counters`` of both ports.

    Raises:
        FabricError: a process failed or gave up.
    """
    poll_us = WAITING[run.waiting]
    with Fabric.create(["tx", "rx"], run.layout, run.channel_bytes, poll_us=poll_us) as fabric:
        go_read, go_write = os.pipe()
        children = [_spawn(run, fabric, side, go_read) for side in (0, 1)]
        ready = [os.read(out, 1) for _, out in children]
        if all(ready):
            os.write(go_write, b"gg")
        else:
            os.close(go_write)
            go_write = -1
        sides = [_collect(pid, out) for pid, out in children]
        for fd in (go_read, go_write):
            if fd >= 0:
                os.close(fd)
        counters = {name: fabric.counters(name) for name in fabric.names}
    tx, rx = sides
    seconds = (rx["end_ns"] - tx["begin_ns"]) / 1e9
    return {"tx": tx, "rx": rx, "seconds": seconds, "counters": counters}


def _collect(pid: int, out: int) -> dict[str, Any]:
    with os.fdopen(out) as file:
        text = file.read()
    os.waitpid(pid, 0)
    if not text:
        raise FabricError("a process of the measurement ended without a result")
    result: dict[str, Any] = json.loads(text)
    if result["err"] < 0:
        raise FabricError(f"a run of frames failed: {os.strerror(-result['err'])}; try again")
    return result


def memcpy_gbps(cpu: int | None, size: int = 32 << 20, rounds: int = 16) -> float:
    """This machine's streaming memcpy, gigabits a second, on one core."""
    before = os.sched_getaffinity(0)
    if cpu is not None:
        os.sched_setaffinity(0, {cpu})
    ns = int(lib.mint_bench_memcpy(size, rounds))
    os.sched_setaffinity(0, before)
    if not ns:
        raise FabricError("no memory for measuring memcpy; free some")
    return size * 8 / ns


def _serve() -> None:
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if "memcpy" in request:
                answer: dict[str, Any] = {"gbps": memcpy_gbps(request["memcpy"])}
            else:
                answer = carry_out(Run(**request | {"cpus": tuple(request["cpus"])}))
        except (FabricError, OSError) as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), flush=True)


def request_of(run: Run) -> str:
    """A run as a line for the runner."""
    return json.dumps(asdict(run)) + "\n"


if __name__ == "__main__":
    _serve()
