# SPDX-License-Identifier: Apache-2.0
"""``mint bench isolation``: what a neighbour does to the traffic of two others.

The paper's Linuxes "have no influence on each other". Here two nodes, a and b, are measured while
two more do something else. What they do costs CPU time, and on a machine with few cores that alone
slows others; so each is compared with a control that uses the same CPUs and no common traffic.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from mint_vni.bench import iperf, meter, ways
from mint_vni.bench.part import Case, Group, Part
from mint_vni.bench.result import Key, Metric
from mint_vni.errors import FabricError, NodeError
from mint_vni.fabric.regions import LAYOUTS
from mint_vni.lab import Lab

_SINK = "5401"
_RATE = 20_000  # datagrams a second that a sends c: they fill a channel of 2 MiB within 75 ms
_FOR_S = 600.0  # longer than any measurement: it is ended


@dataclass(frozen=True)
class Neighbour:
    """What goes on beside a and b.

    Attributes:
        name: for tables.
        control: the name of what it is compared with.
        begin: starts it, for the time of the block.
    """

    name: str
    control: str
    begin: Callable[[Lab], AbstractContextManager[Any]]


@contextmanager
def _idle(_lab: Lab) -> Iterator[None]:
    yield


@contextmanager
def _burning(lab: Lab) -> Iterator[None]:
    """Have c and d use their cores, and send nothing."""
    with ExitStack() as stack:
        # One process each takes somewhat more CPU time than programs and workers that send.
        for name in ("c", "d"):
            stack.enter_context(meter.serving(lab[name].exec_argv, ["burn", str(_FOR_S)]))
        yield


@contextmanager
def _flood(lab: Lab, src: str, dst: str, size: int, rate: int = 0) -> Iterator[None]:
    with (
        meter.serving(lab[dst].exec_argv, ["sink", _SINK, str(_FOR_S)]),
        meter.serving(
            lab[src].exec_argv,
            ["flood", ways.address_of(lab, dst), _SINK, str(size), str(rate), str(_FOR_S)],
        ),
    ):
        yield


@contextmanager
def _stalled(lab: Lab) -> Iterator[None]:
    """Have a send to c, whose worker is stopped: it takes nothing."""
    pid = next(p["worker"]["pid"] for p in lab.status()["ports"] if p["name"] == "c")
    with _flood(lab, "a", "c", 1400, _RATE):
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)


NEIGHBOURS = (
    Neighbour("idle", "", _idle),
    Neighbour("c and d only burn CPU", "idle", _burning),
    Neighbour(
        "c sends d 1400 B datagrams",
        "c and d only burn CPU",
        partial(_flood, src="c", dst="d", size=1400),
    ),
    Neighbour(
        "c floods b with 64 B", "c and d only burn CPU", partial(_flood, src="c", dst="b", size=64)
    ),
    Neighbour("a sends to c", "idle", partial(_flood, src="a", dst="c", size=1400, rate=_RATE)),
    Neighbour("a sends to c, which is stopped", "a sends to c", _stalled),
)


class Isolation(Part):
    """Two nodes beside others."""

    name: ClassVar[str] = "isolation"
    title: ClassVar[str] = "Traffic from a to b beside neighbours c and d"
    root: ClassVar[bool] = True
    defaults: ClassVar[tuple[int, float]] = (5, 1.0)
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("gbps", "TCP Gbps", "Gbps", "higher", 1, "spread", ratio=True),
        Metric("p50", "64 B p50 us", "us", "lower", 0, ratio=True),
        Metric("p99", "p99 us", "us", "lower", 0),
        Metric("drops", "lost", "", "lower", 0),
        Metric("beside", "beside/s", "1/s", "", 0),
        Metric("beside_drops", "lost", "", "", 0),
    )

    def __init__(self, settings: Any) -> None:
        """Check what was asked for.

        Raises:
            FabricError: a layout that there is not.
        """
        super().__init__(settings)
        self.layouts: Sequence[str] = settings.option(
            "layouts", ("per-channel",) if settings.quick else tuple(LAYOUTS)
        )
        self.neighbours = NEIGHBOURS[:2] + NEIGHBOURS[-2:] if settings.quick else NEIGHBOURS
        self.trips = max(50, int(4000 * settings.seconds))
        unknown = [name for name in self.layouts if name not in LAYOUTS]
        if unknown:
            raise FabricError(f"no layout {unknown[0]}; use one of {', '.join(LAYOUTS)}")

    def method(self) -> list[str]:
        """How it measures."""
        cpus = self.settings.cpus
        return [
            "A lab of four namespace nodes on CPUs"
            f" {[cpus[i % len(cpus)] for i in range(4)]} (a, b, c, d). From a to b: iperf3 TCP, then"
            f" {self.trips:,} TCP requests of 64 B, one at a time, while the neighbour does what the"
            " row says. Each row is compared with its control, named in its facts, which uses the"
            " same CPUs: sending with a process on each core that only burns it; 'a sends to c, which"
            " is stopped' with the same datagrams"
            f" ({_RATE:,} a second, 1400 B) to a c that takes them.",
            "Stopped: c's worker got SIGSTOP, so nothing empties its channels.",
            "lost: frames from a to b that the fabric dropped; beside/s: all other frames, a second,"
            " and how many of those it dropped.",
        ]

    def groups(self) -> Iterator[Group]:
        """One for each layout."""
        for layout in self.layouts:
            yield Group(f"layout {layout}", partial(self._open, layout))

    @contextmanager
    def _open(self, layout: str) -> Iterator[list[Case]]:
        lab_file = ways.lab_of(self.settings.cpus, ("netns",) * 4, fabric={"layout": layout})
        with (
            Lab.up(lab_file) as lab,
            meter.serving(lab["b"].exec_argv, ["echo", str(meter.PORT)]),
        ):
            yield [self._case(lab, layout, neighbour) for neighbour in self.neighbours]

    def _case(self, lab: Lab, layout: str, neighbour: Neighbour) -> Case:
        key: Key = {"layout": layout, "neighbour": neighbour.name}

        def control(other: Key) -> bool:
            return bool(neighbour.control) and other == key | {"neighbour": neighbour.control}

        def warm_up() -> dict[str, Any]:
            with neighbour.begin(lab):
                self._ask(lab)
            return {"control": neighbour.control}

        return Case(key, partial(self._measure, lab, neighbour), warm_up, control)

    def _ask(self, lab: Lab) -> dict[str, float]:
        address = ways.address_of(lab, "b")
        found = meter.ask(lab["a"].exec_argv, "tcp", address, 64, self.trips)
        if not found["trips"]:
            raise NodeError("node b does not answer node a; please report this")
        return found

    def _measure(self, lab: Lab, neighbour: Neighbour) -> Mapping[str, float]:
        with neighbour.begin(lab):
            before, began = _Traffic.of(lab), time.monotonic()
            flow = iperf.measure(
                lab["b"].exec_argv,
                lab["a"].exec_argv,
                ways.address_of(lab, "b"),
                seconds=self.settings.seconds,
            )
            found = self._ask(lab)
            after, seconds = _Traffic.of(lab), time.monotonic() - began
        return {
            "gbps": flow.gbps,
            "p50": found["p50"],
            "p99": found["p99"],
            "drops": after.drops - before.drops,
            "beside": (after.beside - before.beside) / seconds,
            "beside_drops": after.beside_drops - before.beside_drops,
        }


@dataclass(frozen=True)
class _Traffic:
    """What the fabric has moved so far.

    Attributes:
        drops: frames from a to b that it dropped.
        beside: frames that it moved, but for those between a and b.
        beside_drops: of these, those that it dropped instead.
    """

    drops: int
    beside: int
    beside_drops: int

    @classmethod
    def of(cls, lab: Lab) -> _Traffic:
        """Up to now."""
        channels = lab.status()["channels"]
        pair = [c for c in channels if (c["from"], c["to"]) == ("a", "b")]
        others = [c for c in channels if {c["from"], c["to"]} != {"a", "b"}]
        return cls(_dropped(pair), sum(c["frames"] for c in others), _dropped(others))


def _dropped(channels: Sequence[Mapping[str, Any]]) -> int:
    return sum(sum(channel["drops"].values()) for channel in channels)
