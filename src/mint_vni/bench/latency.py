# SPDX-License-Identifier: Apache-2.0
"""``mint bench latency``: how long an answer takes, and how often somebody had to be woken for it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any, ClassVar

from mint_vni.bench import guests, meter, ways
from mint_vni.bench.part import Case, Group
from mint_vni.bench.result import Key, Metric, Result
from mint_vni.bench.runner import WAITING, Trips
from mint_vni.bench.running import RunnerPart
from mint_vni.bench.sockets import POLLING_US, opened, total
from mint_vni.fabric.regions import LAYOUTS

SIZES = (64, 256, 1024)
SLOWER = 10  # times fewer round trips where a kernel has to be emulated
INTERVALS = (0.01, 0.001, 0.0)  # seconds between two pings; 0: at once
METRICS = (
    Metric("p50", "p50 us", "us", "lower", 1, "spread", ratio=True),
    Metric("p99", "p99 us", "us", "lower", 1),
    Metric("p999", "p99.9 us", "us", "lower", 1),
    Metric("least", "least us", "us", "lower", 1, ""),
    Metric("wakes", "wake-ups/trip", "", "lower", 2),
    Metric("lost", "lost", "", "lower", 0, ""),
    Metric("ring_ns", "ring ns", "ns", "lower", 0),
)

Ask = Callable[[ways.Way], Mapping[str, float]]


def asks(count: int, *, quick: bool) -> dict[str, Ask]:
    """The kinds of round trips that are measured over a way, by name."""
    found: dict[str, Ask] = {}

    def ping(interval: float, way: ways.Way) -> Mapping[str, float]:
        number = min(count, int(3 / interval) if interval else count)
        return meter.ping(way.client, way.address, number, interval)

    def ask(protocol: str, size: int, way: ways.Way) -> Mapping[str, float]:
        return meter.ask(way.client, protocol, way.address, size, count)

    for interval in INTERVALS[1:2] if quick else INTERVALS:
        pace = f"every {interval * 1e3:g} ms" if interval else "adaptive (-A)"
        found[f"ping {pace}"] = partial(ping, interval)
    for protocol in ("tcp", "udp"):
        for size in SIZES[:1] if quick else SIZES:
            found[f"{protocol.upper()} {size} B"] = partial(ask, protocol, size)
    return found


@contextmanager
def answering(opener: Callable[[], AbstractContextManager[ways.Way]]) -> Iterator[ways.Way]:
    """A way with something that answers at its server's side."""
    with opener() as way, meter.serving(way.server, ["echo", str(meter.PORT)]):
        yield way


def cases_of(way: ways.Way, what: Mapping[str, Ask], base: str) -> list[Case]:
    """One case for each kind of round trip over one way."""

    def measure(ask: Ask) -> Mapping[str, float]:
        before = way.counters()
        with way.active():
            found = dict(ask(way))
        after = way.counters()
        trips = found.pop("trips")
        if after and trips:
            found["wakes"] = (total(after, "sleeps") - total(before, "sleeps")) / trips
        return found

    def case(name: str, ask: Ask) -> Case:
        key: Key = {"test": name, "path": way.name}

        def is_base(other: Key) -> bool:
            return other == key | {"path": base}

        return Case(key, lambda: measure(ask), against=is_base)

    return [case(name, ask) for name, ask in what.items()]


class Latency(RunnerPart):
    """Round trips."""

    name: ClassVar[str] = "latency"
    title: ClassVar[str] = "Round trips"
    defaults: ClassVar[tuple[int, float]] = (5, 1.0)
    metrics: ClassVar[tuple[Metric, ...]] = METRICS

    def __init__(self, settings: Any) -> None:
        """Nothing is started yet."""
        super().__init__(settings)
        self.count = max(50, int(20_000 * settings.seconds))
        self.kinds = ways.kinds_of(settings.option("kinds", None), quick=settings.quick)

    def method(self) -> list[str]:
        """How it measures."""
        return [
            f"One request at a time, {self.count:,} of them; cores {list(self.settings.pair)}."
            " Frames: two processes, through the ports' entry points. Doorbells: two processes that"
            " sleep in epoll until the other rings; ring ns: ringing while nobody sleeps. Sockets:"
            " mint-meter, TCP with TCP_NODELAY; ping: unmodified (fewer where they are paced)."
            f" With nodes of kinds uml and qemu a {SLOWER}th as many.",
            "wake-ups/trip: how often the two ports slept and were woken, from their counters, for"
            f" one round trip. polling: poll_us {POLLING_US}.",
        ]

    def described(self) -> dict[str, Any]:
        """How many."""
        return {"round_trips": self.count}

    def groups(self) -> Iterator[Group]:
        """Doorbells, frames, nodes of each kind."""
        yield Group("doorbells", partial(_as_context, self._bell_cases))
        yield Group("frames", partial(_as_context, self._frame_cases))
        for kinds in itertools.combinations_with_replacement(self.kinds, 2):
            yield Group(" to ".join(kinds), partial(self._nodes, kinds))

    def _bell_cases(self) -> list[Case]:
        pair = self.settings.pair
        places = {"two cores": pair, "one core": pair[:1] * 2}
        if pair[0] == pair[1]:
            del places["two cores"]

        def bells(cpus: Sequence[int]) -> Mapping[str, float]:
            return self.runner.do("bells", count=min(self.count, 5000), cpus=list(cpus))

        return [
            Case({"test": "doorbell", "path": name}, partial(bells, cpus))
            for name, cpus in places.items()
        ]

    def _frame_cases(self) -> list[Case]:
        quick = self.settings.quick
        return [
            self._frame_case(layout, waiting, size)
            for size in (SIZES[:1] if quick else SIZES)
            for layout in LAYOUTS
            for waiting in WAITING
        ]

    def _frame_case(self, layout: str, waiting: str, size: int) -> Case:
        trips = Trips(layout, waiting, size, self.count, self.settings.pair)

        def measure() -> Mapping[str, float]:
            found = self.runner.ask(trips)
            counters = found.pop("counters")
            return found | {"wakes": sum(c["sleeps"] for c in counters) / self.count}

        key: Key = {"test": f"frame {size} B", "layout": layout, "waiting": waiting}
        return Case(key, measure)

    def _nodes(self, kinds: Sequence[str]) -> AbstractContextManager[list[Case]]:
        pair, peers = self.settings.pair, guests.peers_of(kinds)
        count = self.count if set(kinds) == {"netns"} else max(50, self.count // SLOWER)
        what = asks(count, quick=self.settings.quick)
        openers = (
            partial(ways.mint, "default", pair, kinds),
            partial(ways.mint, "polling", pair, kinds, fabric={"poll_us": POLLING_US}),
            partial(ways.veth, pair),
        )
        base = next(iter(peers), "veth")
        return opened(
            [partial(answering, opener) for opener in openers],
            lambda way: cases_of(way, what, base),
            {name: partial(answering, partial(peer, pair)) for name, peer in peers.items()},
            self.skipped,
        )

    def conclude(self, result: Result) -> None:
        """What a doorbell costs."""
        row = result.find(test="doorbell", path="two cores")
        trip = row and row.spread("p50")
        if trip:
            result.notes.append(
                f"Waking a process on the other core by a doorbell takes about {trip.median / 2:.1f} us"
                " (half of a round trip of doorbells)."
            )


@contextmanager
def _as_context(cases: Callable[[], list[Case]]) -> Iterator[list[Case]]:
    with ExitStack():
        yield cases()
