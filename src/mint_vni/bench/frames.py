# SPDX-License-Identifier: Apache-2.0
"""``mint bench frames``: the packet buffers alone, as the paper measured them.

Method: frames are sent back to back from one process to another until all are received (the
paper's), through the ports' own entry points with look-up, checks and counters on. There are 1,024
distinct frames, sent in turn; each is copied in and copied out. The two processes are pinned to two
cores. The packet buffer has 393,216 bytes (the paper's 392,200, rounded up to pages). Every layout
is run polling, with doorbells as by default (a short spin where that pays, then sleep) and with
doorbells only; the repetitions of all configurations take turns, and this
machine's streaming memcpy (32 MiB, one core) is measured in each turn. Before the first turn each
configuration runs once with frames that are numbered and checked byte by byte.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mint_vni.bench.noise import Spread, machine
from mint_vni.bench.runner import WAITING, Run, request_of
from mint_vni.errors import FabricError, PlatformError
from mint_vni.fabric.regions import LAYOUTS

SIZES = (64, 256, 1500, 9000, 65535)
CHANNEL_BYTES = 393_216
_FIRST_GUESS = {64: 20e6, 256: 15e6, 1500: 8e6, 9000: 2e6, 65535: 2e5}  # frames a second
_VERIFY_FRAMES = 200_000


class Runner:
    """The process that carries out the runs."""

    def __init__(self) -> None:
        """Start it."""
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "mint_vni.bench.runner"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, line: str) -> dict[str, Any]:
        """Send a request, wait for the answer.

        Raises:
            FabricError: the run failed.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(line)
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline() or "{}")
        if not answer or "error" in answer:
            raise FabricError(answer.get("error", "the measuring process ended; try again"))
        return answer

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(10)


@contextmanager
def _runner() -> Iterator[Runner]:
    runner = Runner()
    try:
        yield runner
    finally:
        runner.close()


@dataclass
class Row:
    """One configuration and what was measured of it."""

    layout: str
    waiting: str
    size: int
    gbps: list[float] = field(default_factory=list)
    mpps: list[float] = field(default_factory=list)
    tx_ns: list[float] = field(default_factory=list)
    rx_ns: list[float] = field(default_factory=list)
    of_memcpy: list[float] = field(default_factory=list)
    rings: list[float] = field(default_factory=list)
    lock_wait_ns: list[float] = field(default_factory=list)
    verified: int = 0

    def add(self, frames: int, answer: dict[str, Any], memcpy: float) -> None:
        """Take the result of one run."""
        seconds, counters = answer["seconds"], answer["counters"].values()
        gbps = frames * self.size * 8 / seconds / 1e9
        self.gbps.append(gbps)
        self.mpps.append(frames / seconds / 1e6)
        self.tx_ns.append(answer["tx"]["cpu_ns"] / frames)
        self.rx_ns.append(answer["rx"]["cpu_ns"] / frames)
        self.of_memcpy.append(gbps / memcpy)
        self.lock_wait_ns.append(sum(c["lock_wait_ns"] for c in counters) / frames)
        self.rings.append(sum(c["sleeps"] for c in counters) / frames * 1e6)

    def to_json(self) -> dict[str, Any]:
        """For ``--json``: every figure with its spread."""
        spreads = {
            name: Spread.of(getattr(self, name)).to_json()
            for name in ("gbps", "mpps", "tx_ns", "rx_ns", "of_memcpy", "lock_wait_ns")
        }
        return {
            "layout": self.layout,
            "waiting": self.waiting,
            "frame_bytes": self.size,
            "verified_frames": self.verified,
            "sleeps_per_million_frames": Spread.of(self.rings).to_json(),
            **spreads,
        }


@dataclass
class Result:
    """What ``mint bench frames`` found."""

    rows: list[Row]
    memcpy: list[float]
    settings: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """The documented shape, see docs/cli.md."""
        return {
            "version": 1,
            "bench": "frames",
            "machine": machine(),
            "settings": self.settings,
            "memcpy_gbps": Spread.of(self.memcpy).to_json(),
            "rows": [row.to_json() for row in self.rows],
        }


def run(
    *,
    sizes: Sequence[int] | None = None,
    layouts: Sequence[str] | None = None,
    repetitions: int = 5,
    seconds: float = 1.0,
    cpus: Sequence[int] | None = None,
    progress: Callable[[str, float], None] = lambda _text, _done: None,
) -> Result:
    """Measure.

    Args:
        sizes: bytes of frame; None: :data:`SIZES`.
        layouts: None: all.
        repetitions: runs of each configuration.
        seconds: about how long one run takes.
        cpus: two cores to pin to; None: the first two this process may use.
        progress: called with what is done now, and the part (0..1) that is done.

    Raises:
        PlatformError: a core that this process may not use.
        FabricError: a layout that there is not, or a run failed.
    """
    chosen = _cpus(cpus)
    unknown = [name for name in layouts or () if name not in LAYOUTS]
    if unknown:
        raise FabricError(f"no layout {unknown[0]}; use one of {', '.join(LAYOUTS)}")
    rows = [
        Row(layout, waiting, size)
        for layout in layouts or LAYOUTS
        for size in sizes or SIZES
        for waiting in WAITING
    ]
    total = len(rows) * (repetitions + 1)
    memcpy: list[float] = []
    with _runner() as runner:
        counts = []
        for i, row in enumerate(rows):
            progress(f"{_label(row)}: verifying", i / total)
            counts.append(_prepare(runner, row, chosen, seconds))
        for turn in range(repetitions):
            memcpy.append(runner.ask(json.dumps({"memcpy": chosen[0]}) + "\n")["gbps"])
            for i, row in enumerate(rows):
                progress(_label(row), ((turn + 1) * len(rows) + i) / total)
                answer = runner.ask(request_of(_run(row, counts[i], chosen)))
                row.add(counts[i], answer, memcpy[-1])
    settings = {
        "channel_bytes": CHANNEL_BYTES,
        "cpus": list(chosen),
        "distinct_frames": 1024,
        "batch": 32,
        "repetitions": repetitions,
        "seconds": seconds,
    }
    return Result(rows, memcpy, settings)


def _cpus(cpus: Sequence[int] | None) -> tuple[int, int]:
    allowed = sorted(os.sched_getaffinity(0))
    wanted = list(cpus) if cpus else allowed[:2]
    if len(wanted) == 1:
        wanted *= 2  # one core for both: they take turns
    for cpu in wanted:
        if cpu not in allowed:
            raise PlatformError(f"CPU {cpu} is not to be used here; choose from {allowed}")
    return wanted[0], wanted[1]


def _label(row: Row) -> str:
    return f"{row.layout}, {row.waiting}, {row.size} B"


def _run(row: Row, frames: int, cpus: tuple[int, int]) -> Run:
    return Run(row.layout, row.waiting, row.size, row.size, frames, CHANNEL_BYTES, cpus)


def _prepare(
    runner: Runner,
    row: Row,
    cpus: tuple[int, int],
    seconds: float,
) -> int:
    """Verify the payload once; find how many frames take about ``seconds``."""
    guess = _FIRST_GUESS.get(row.size, 1e10 / (row.size * 8 + 2000))
    check = min(_VERIFY_FRAMES, int(guess * 0.2))
    answer = runner.ask(request_of(replace(_run(row, check, cpus), verify=True)))
    bad = {
        key: answer["rx"][key] for key in ("lost", "reordered", "corrupted") if answer["rx"][key]
    }
    if bad or answer["rx"]["frames"] != check:
        raise FabricError(f"{_label(row)}: {bad or 'frames are missing'}; please report this")
    row.verified = check
    trial = max(1000, int(guess * 0.05))
    took = runner.ask(request_of(_run(row, trial, cpus)))["seconds"]
    return max(1000, int(trial / took * seconds))


def run_cli(
    json_path: str | None,
    *,
    sizes: Sequence[int] | None = None,
    layouts: Sequence[str] | None = None,
    repetitions: int = 5,
    seconds: float = 1.0,
    cpus: Sequence[int] | None = None,
) -> None:
    """``mint bench frames``: progress on standard error, a table on standard output.

    Args:
        json_path: where to write the results as JSON, too; None: nowhere.
        sizes: as for :func:`run`.
        layouts: as for :func:`run`.
        repetitions: as for :func:`run`.
        seconds: as for :func:`run`.
        cpus: as for :func:`run`.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description:<40}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("starting", total=1.0)
        result = run(
            sizes=sizes,
            layouts=layouts,
            repetitions=repetitions,
            seconds=seconds,
            cpus=cpus,
            progress=lambda text, done: bar.update(task, description=text, completed=done),
        )
    _print(result)
    if json_path:
        Path(json_path).write_text(json.dumps(result.to_json(), indent=1) + "\n")


def _print(result: Result) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 100, highlight=False)
    facts, memcpy = machine(), Spread.of(result.memcpy)
    table = Table(
        title="Frames from one process to another",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 0, 0, 1),
        pad_edge=False,
    )
    for name in ("layout", "waiting", "frame"):
        table.add_column(name, no_wrap=True)
    for name in ("Gbps (min-max)", "Mpps", "x memcpy", "CPU ns", "lock ns"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in result.rows:
        gbps = Spread.of(row.gbps)
        cost = f"{Spread.of(row.tx_ns).median:.0f}+{Spread.of(row.rx_ns).median:.0f}"
        lock = Spread.of(row.lock_wait_ns).median
        table.add_row(
            row.layout,
            row.waiting,
            f"{row.size} B",
            gbps.text(0 if gbps.low >= 20 else 1),
            f"{Spread.of(row.mpps).median:.2f}",
            f"{Spread.of(row.of_memcpy).median:.2f}",
            cost,
            f"{lock:.0f}" if row.layout == "shared" else "-",
        )
    console.print(table)
    settings = result.settings
    console.print(
        f"Streaming memcpy, 32 MiB, one core: {memcpy.text()} Gbps. CPU (sender + receiver) and"
        f" lock wait are for one frame. Median of {settings['repetitions']} repetitions that took turns; packet buffer"
        f" {settings['channel_bytes']:,} B; CPUs {settings['cpus']}; every configuration was also"
        " run once with all bytes checked."
    )
    console.print(
        f"{facts['cpu']}, {facts['cpus']} CPUs, Linux {facts['kernel']}, load {facts['load']:.1f}"
    )
