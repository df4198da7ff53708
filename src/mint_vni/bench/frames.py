# SPDX-License-Identifier: Apache-2.0
"""``mint bench frames``: the packet buffers alone, as the paper measured them.

Who sends to whom is a pattern: one to one, several to one, one to several, all to all. With more
processes than cores they take turns on them; then the CPU time of a frame says more than the
throughput, and who waits yields.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

from mint_vni.bench.part import Case, Group, label
from mint_vni.bench.result import Key, Metric, Result
from mint_vni.bench.runner import WAITING, Run
from mint_vni.bench.running import PEAK_METHOD, PeakPart
from mint_vni.errors import FabricError
from mint_vni.fabric.regions import LAYOUTS

SIZES = (64, 256, 1500, 9000, 65535)
CHANNEL_BYTES = 393_216  # the paper's 392,200, rounded up to pages
#: Patterns other than a pair, with the number of processes in each.
CROWDS = (
    ("several to one", 3),
    ("several to one", 5),
    ("one to several", 3),
    ("one to several", 5),
    ("all to all", 2),
    ("all to all", 4),
    ("all to all", 8),
)
_FIRST_GUESS = {64: 20e6, 256: 15e6, 1500: 8e6, 9000: 2e6, 65535: 2e5}  # frames a second
_VERIFY_FRAMES = 200_000


class Frames(PeakPart):
    """The packet buffers alone."""

    name: ClassVar[str] = "frames"
    title: ClassVar[str] = "Frames from process to process"
    defaults: ClassVar[tuple[int, float]] = (5, 1.0)
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("gbps", "Gbps", "Gbps", "higher", 1, "spread"),
        Metric("mpps", "Mpps", "Mpps", "higher", 1),
        Metric("of_memcpy", "x memcpy", "", "higher", 2),
        Metric("of_peak", "% peak", "%", "higher"),
        Metric("cpu_ns", "CPU ns", "ns", "lower", 0),
        Metric("lock_wait_ns", "lock ns", "ns", "lower", 0),
        Metric("tx_ns", "sender's CPU ns", "ns", "lower", 0, ""),
        Metric("rx_ns", "receiver's CPU ns", "ns", "lower", 0, ""),
        Metric("sleeps", "sleeps a million frames", "", "lower", 0, ""),
        Metric("rings", "doorbells a million frames", "", "lower", 0, ""),
    )

    def __init__(self, settings: Any) -> None:
        """Check what was asked for.

        Raises:
            FabricError: a layout that there is not.
        """
        super().__init__(settings)
        self.layouts: Sequence[str] = settings.option("layouts", tuple(LAYOUTS))
        self.sizes: Sequence[int] = settings.option("sizes", (1500,) if settings.quick else SIZES)
        self.waiting: Sequence[str] = settings.option(
            "waiting", ("doorbells",) if settings.quick else tuple(WAITING)
        )
        self.crowds: Sequence[tuple[str, int]] = settings.option(
            "crowds", (("several to one", 3), ("all to all", 4)) if settings.quick else CROWDS
        )
        unknown = [name for name in self.layouts if name not in LAYOUTS]
        if unknown:
            raise FabricError(f"no layout {unknown[0]}; use one of {', '.join(LAYOUTS)}")

    def method(self) -> list[str]:
        """How it measures."""
        return [
            "Frames are sent back to back until all are received (the paper's method), through the"
            " ports' own entry points with look-up, checks and counters on; 1,024 distinct frames"
            " in turn, each copied in and copied out, published in batches of 32.",
            f"Packet buffer: {CHANNEL_BYTES:,} B. Processes are pinned to CPUs"
            f" {list(self.settings.cpus)}, in turn; with more processes than CPUs who waits yields,"
            " and CPU ns (of all processes, for one frame) says more than the throughput.",
            "Every configuration was first run once with numbered frames and all bytes checked.",
            "x memcpy: the throughput over that of streaming memcpy (32 MiB, one core) in the same"
            " turn.",
            PEAK_METHOD,
            "lock ns: waiting for the lock of layout shared, for one frame, all processes.",
        ]

    def described(self) -> dict[str, Any]:
        """What the runs have in common."""
        return {"channel_bytes": CHANNEL_BYTES, "distinct_frames": 1024, "batch": 32}

    def groups(self) -> Iterator[Group]:
        """One for pairs, one for each crowd."""
        pairs = [
            self._run(layout, waiting, size)
            for size in self.sizes
            for waiting in self.waiting
            for layout in self.layouts
        ]
        yield Group("one to one", partial(self._open, pairs))
        for pattern, ports in self.crowds:
            runs = [
                replace(self._run(layout, "doorbells", size), pattern=pattern, ports=ports)
                for size in self.sizes
                for layout in self.layouts
            ]
            yield Group(f"{pattern}, {ports} processes", partial(self._open, runs))

    def _run(self, layout: str, waiting: str, size: int) -> Run:
        cpus = self.settings.cpus
        return Run(layout, waiting, size, 0, channel_bytes=CHANNEL_BYTES, cpus=cpus)

    @contextmanager
    def _open(self, runs: Sequence[Run]) -> Iterator[list[Case]]:
        yield [_FrameCase(self, run).case() for run in runs]

    def conclude(self, result: Result) -> None:
        """The paper's figures beside these."""
        row = result.find(pattern="one to one", frame_bytes=1500, layout="per-channel")
        spread = row and row.spread("of_peak")
        if spread:
            result.notes.append(
                "The paper's UDP throughput was 38 % of its machine's memory bandwidth. Here"
                f" 1500-byte frames (per-channel, {row.key['waiting'] if row else ''}) make"
                f" {spread.text(0)} % of this machine's measured peak."
            )


class _FrameCase:
    """One configuration of frames."""

    def __init__(self, part: Frames, run: Run) -> None:
        self.part = part
        self.run = run

    def case(self) -> Case:
        r = self.run
        key: Key = {
            "pattern": r.pattern,
            "processes": r.ports,
            "layout": r.layout,
            "waiting": r.waiting,
            "frame_bytes": r.size,
        }

        def default_layout(other: Key) -> bool:
            return other == key | {"layout": "per-channel"}

        return Case(key, self.measure, self.prepare, against=default_layout)

    def prepare(self) -> dict[str, Any]:
        """Verify the payload once; find how many frames take about as long as was asked for."""
        guess = _FIRST_GUESS.get(self.run.size, 1e10 / (self.run.size * 8 + 2000))
        guess = min(guess, 5e6) / len(self.run.flows)
        check = max(100, min(_VERIFY_FRAMES, int(guess * 0.1)))
        if self.part.settings.quick:
            check = min(check, 2000)
        self._verify(check)
        trial = max(100, int(guess * min(0.05, self.part.settings.seconds / 4)))
        took = self.part.runner.ask(replace(self.run, frames=trial))["seconds"]
        wanted = int(trial / took * self.part.settings.seconds)
        self.run = replace(self.run, frames=max(200, wanted))
        return {"verified_frames": check * len(self.run.flows), "frames_a_flow": self.run.frames}

    def _verify(self, frames: int) -> None:
        run = replace(self.run, frames=frames, verify=True)
        ports = self.part.runner.ask(run)["ports"]
        bad = {
            name: sum(port[name] for port in ports)
            for name in ("lost", "reordered", "corrupted", "dropped")
        }
        if any(bad.values()):
            raise FabricError(f"{label(self.case().key)}: {bad}; please report this")

    def measure(self) -> dict[str, float]:
        """Once."""
        answer = self.part.runner.ask(self.run)
        ports, counters = answer["ports"], answer["counters"]
        frames = self.run.frames * len(self.run.flows)
        gbps = frames * self.run.size * 8 / answer["seconds"] / 1e9
        values = {
            "gbps": gbps,
            "mpps": frames / answer["seconds"] / 1e6,
            "of_memcpy": gbps / self.part.memcpy,
            "of_peak": 100 * gbps / self.part.peak,
            "cpu_ns": sum(port["cpu_ns"] for port in ports) / frames,
            "sleeps": sum(c["sleeps"] for c in counters) / frames * 1e6,
        }
        if self.run.layout == "shared":
            values["lock_wait_ns"] = sum(c["lock_wait_ns"] for c in counters) / frames
        if self.run.pattern == "one to one":
            values["tx_ns"], values["rx_ns"] = (port["cpu_ns"] / frames for port in ports)
        return values
