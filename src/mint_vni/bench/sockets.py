# SPDX-License-Identifier: Apache-2.0
"""``mint bench sockets``: unmodified iperf3 between nodes, the paper's table 2."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any, ClassVar

from mint_vni.bench import iperf, ways
from mint_vni.bench.iperf import Test
from mint_vni.bench.part import Case, Group, Part, Settings
from mint_vni.bench.result import Key, Metric, Result

TESTS = (
    Test("TCP"),
    Test("TCP, 4 streams", streams=4),
    Test("TCP, both directions", both=True),
    Test("UDP 1472 B", udp=True),
    Test("UDP 1472 B, 4 streams", udp=True, streams=4),
    Test("UDP 1472 B, both directions", udp=True, both=True),
)
QUICK_TESTS = (TESTS[0], TESTS[3])
POLLING_US = 100_000  # longer than any pause while something is measured: it does not sleep

METRICS = (
    Metric("gbps", "Gbps received", "Gbps", "higher", 2, "spread", ratio=True),
    Metric("sent_gbps", "sent", "Gbps", "", 2),
    Metric("loss_percent", "lost %", "%", "lower", 1),
    Metric("retransmits", "retrans.", "", "lower", 0),
    Metric("sleeps", "sleeps/s", "1/s", "lower", 0),
    Metric("rings", "doorbells/s", "1/s", "lower", 0, ""),
)


def total(counters: ways.Counters, name: str) -> int:
    """Of all ports."""
    return sum(port.get(name, 0) for port in counters.values())


def cases_of(way: ways.Way, tests: Sequence[Test], seconds: float, base: str) -> list[Case]:
    """One case a test, over one way.

    Args:
        way: which is open.
        tests: what to measure.
        seconds: each.
        base: name of the way to compare with, if it is there.
    """

    def measure(test: Test) -> Mapping[str, float]:
        before = way.counters()
        with way.active():
            flow = iperf.carry_out(test, way.server, way.client, way.address, seconds)
        after = way.counters()
        values = {"gbps": flow.gbps, "sent_gbps": flow.sent_gbps}
        values["loss_percent" if test.udp else "retransmits"] = (
            flow.loss_percent if test.udp else flow.retransmits
        )
        if after:
            span = max(1.0, round(seconds))
            values["sleeps"] = (total(after, "sleeps") - total(before, "sleeps")) / span
        return values

    def case(test: Test) -> Case:
        key: Key = {"test": test.name, "path": way.name}

        def is_base(other: Key) -> bool:
            return other == key | {"path": base}

        return Case(key, lambda: measure(test), against=is_base)

    return [case(test) for test in tests]


@contextmanager
def opened(
    openers: Sequence[Callable[[], AbstractContextManager[ways.Way]]],
    cases: Callable[[ways.Way], list[Case]],
) -> Iterator[list[Case]]:
    """The cases of several ways, in turns: for each of the first's, those of the others."""
    with ExitStack() as stack:
        found = [cases(stack.enter_context(opener())) for opener in openers]
        yield [case for turn in itertools.zip_longest(*found) for case in turn if case]


class Sockets(Part):
    """iperf3 between nodes."""

    name: ClassVar[str] = "sockets"
    title: ClassVar[str] = "Socket to socket: iperf3"
    root: ClassVar[bool] = True
    defaults: ClassVar[tuple[int, float]] = (5, 2.0)
    metrics: ClassVar[tuple[Metric, ...]] = METRICS

    def __init__(self, settings: Settings) -> None:
        """Check what was asked for.

        Raises:
            PlatformError: a kind of node that there is not.
        """
        super().__init__(settings)
        self.kinds = ways.kinds_of(settings.option("kinds", None), quick=settings.quick)

    def method(self) -> list[str]:
        """How it measures."""
        return [
            "Unmodified iperf3, MTU 1500, UDP payload 1472 B sent as fast as it goes. Each node has"
            f" one core for its programs and its worker (cores {list(self.settings.pair)}), as in"
            " the paper; veth's two namespaces likewise. Gbps are of payload, received.",
            "'no offloads' is compared with veth without offloads, everything else with veth. Both"
            " directions: two iperf3 at the same time, their sum.",
            f"polling: poll_us {POLLING_US}. sleeps/s: of both nodes' workers, from their counters.",
        ]

    def groups(self) -> Iterator[Group]:
        """One for each ordered pair of kinds."""
        for kinds in itertools.product(self.kinds, repeat=2):
            openers = self._ways(kinds)
            tests = QUICK_TESTS if self.settings.quick else TESTS
            yield Group(
                " to ".join(kinds),
                partial(self._open, openers, tests),
            )

    def _ways(self, kinds: Sequence[str]) -> list[Callable[[], Any]]:
        pair = self.settings.pair
        here = partial(ways.mint, cpus=pair, kinds=kinds)
        found: list[Callable[[], Any]] = [
            partial(here, "default"),
            partial(here, "polling", fabric={"poll_us": POLLING_US}),
            partial(ways.veth, pair),
        ]
        if not self.settings.quick:
            found += [
                partial(here, "no offloads", offload=False),
                partial(ways.veth, pair, offload=False),
            ]
        return found

    def _open(
        self, openers: Sequence[Callable[[], Any]], tests: Sequence[Test]
    ) -> AbstractContextManager[list[Case]]:
        def cases(way: ways.Way) -> list[Case]:
            base = "veth, no offloads" if way.name == "no offloads" else "veth"
            return cases_of(way, tests, self.settings.seconds, base)

        return opened(openers, cases)

    def conclude(self, result: Result) -> None:
        """What the paper's table has."""
        row = result.find(test="TCP", path="default")
        tcp = row and row.spread("gbps")
        if tcp:
            result.notes.append(
                f"The paper's table 2: TCP 10.51 Gbps, 5.1 % of 204.8 Gbps of memory bandwidth, UDP"
                f" 78.79 Gbps; one core for each Linux. Here TCP (default) {tcp.text(2)} Gbps."
            )
