# SPDX-License-Identifier: Apache-2.0
"""``mint bench sockets``: unmodified iperf3 between nodes, the paper's table 2."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

from mint_vni.bench import guests, iperf, ways
from mint_vni.bench.iperf import Test
from mint_vni.bench.noise import Spread
from mint_vni.bench.part import EXPECTED, Case, Group, Settings, reason
from mint_vni.bench.result import Key, Metric, Result, Skipped
from mint_vni.bench.running import PEAK_METHOD, PeakPart

UNPACED = "reno"  # a congestion control that every kernel has
TESTS: tuple[Test, ...] = (
    Test("TCP"),
    Test("TCP, 4 streams", streams=4),
    Test("TCP, both ways", both=True),
    Test("UDP", udp=True),
    Test("UDP, 4 streams", udp=True, streams=4),
    Test("UDP, both ways", udp=True, both=True),
)
#: Where this machine's TCP is paced by a timer for each segment: the same without.
UNPACED_TESTS: tuple[Test, ...] = tuple(
    replace(test, name=f"{test.name}, {UNPACED}", congestion=UNPACED) for test in TESTS[:3]
)
QUICK_TESTS: tuple[Test, ...] = (TESTS[0], TESTS[3])
AIM = 1.2  # times what one would use instead between nodes with kernels of their own, TCP
POLLING_US = 100_000  # longer than any pause while something is measured: it does not sleep

METRICS = (
    Metric("gbps", "Gbps received", "Gbps", "higher", 2, "spread", ratio=True),
    Metric("of_peak", "% of peak", "%", "higher", 1, ""),
    Metric("sent_gbps", "sent", "Gbps", "", 2, ""),  # what is lost says it
    Metric("loss_percent", "lost %", "%", "lower", 1),
    Metric("retransmits", "retrans.", "", "lower", 0),
    Metric("sleeps", "sleeps/s", "1/s", "lower", 0),
    Metric("rings", "doorbells/s", "1/s", "lower", 0, ""),
)


def total(counters: ways.Counters, name: str) -> int:
    """Of all ports."""
    return sum(port.get(name, 0) for port in counters.values())


def cases_of(
    way: ways.Way,
    tests: Sequence[Test],
    seconds: float,
    base: str,
    peak: Callable[[], float] | None = None,
) -> list[Case]:
    """One case a test, over one way.

    Args:
        way: which is open.
        tests: what to measure.
        seconds: each.
        base: name of the way to compare with, if it is there.
        peak: the memory's bandwidth, Gbps, to set the throughput beside.
    """

    def measure(test: Test) -> Mapping[str, float]:
        before = way.counters()
        with way.active():
            flow = iperf.carry_out(test, way.server, way.client, way.address, seconds)
        after = way.counters()
        values = {"gbps": flow.gbps, "sent_gbps": flow.sent_gbps}
        if peak and (most := peak()):  # not before the first turn, when nothing counts yet
            values["of_peak"] = 100 * flow.gbps / most
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
    peers: Mapping[str, Callable[[], AbstractContextManager[ways.Way]]],
    skipped: list[Skipped],
) -> Iterator[list[Case]]:
    """The cases of several ways, in turns: for each of the first's, those of the others.

    Args:
        openers: ways without which there is nothing to measure.
        cases: of one way.
        peers: by name, ways that this machine may lack.
        skipped: is told of those.
    """
    with ExitStack() as stack:
        found = [cases(stack.enter_context(opener())) for opener in openers]
        for name, opener in peers.items():
            try:
                way = stack.enter_context(opener())
            except EXPECTED as error:
                skipped.append(Skipped(name, reason(error)))
                continue
            found.append(cases(way))
        yield [case for turn in itertools.zip_longest(*found) for case in turn if case]


class Sockets(PeakPart):
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
            "Both directions: two iperf3 at the same time, their sum. 'no offloads' is compared with"
            " veth without offloads, everything else with veth.",
            *_guests_method(self.kinds),
            *self._paced_method(),
            PEAK_METHOD,
            f"polling: poll_us {POLLING_US}. sleeps/s: of both nodes' workers, from their counters.",
        ]

    def _paced_method(self) -> list[str]:
        if self.settings.quick or not iperf.paced():
            return []
        return [
            "This machine's TCP is bbr, which sets a timer for each segment; on a virtual machine"
            " that is dear and can be the limit, for veth too. So nodes on its kernel are also"
            f" measured with {UNPACED}. Kernels of their own bring their own default."
        ]

    def groups(self) -> Iterator[Group]:
        """One for each ordered pair of kinds."""
        for kinds in itertools.product(self.kinds, repeat=2):
            # Between different kinds the figures are those of the slower one: few will do.
            mixed = len(set(kinds)) > 1
            tests = QUICK_TESTS if self.settings.quick or mixed else TESTS
            if set(kinds) == {"netns"} and self._paced_method():
                tests += UNPACED_TESTS
            yield Group(" to ".join(kinds), partial(self._open, kinds, tests))

    def _ways(self, kinds: Sequence[str]) -> list[Callable[[], Any]]:
        pair, quick = self.settings.pair, self.settings.quick
        here = partial(ways.mint, cpus=pair, kinds=kinds)
        found: list[Callable[[], Any]] = [
            partial(here, "default"),
            partial(here, "polling", fabric={"poll_us": POLLING_US}),
        ]
        if not quick:
            found.append(partial(here, "no offloads", offload=False))
        found.append(partial(ways.veth, pair))
        if not quick and not guests.peers_of(kinds):
            found.append(partial(ways.veth, pair, offload=False))
        return found

    def _open(
        self, kinds: Sequence[str], tests: Sequence[Test]
    ) -> AbstractContextManager[list[Case]]:
        peers = guests.peers_of(kinds)
        base = next(iter(peers), "veth")

        def cases(way: ways.Way) -> list[Case]:
            bare = way.name == "no offloads" and not peers
            to = "veth, no offloads" if bare else base
            return cases_of(way, tests, self.settings.seconds, to, lambda: self.peak)

        pair = self.settings.pair
        beside = {name: partial(opener, pair) for name, opener in peers.items()}
        return opened(self._ways(kinds), cases, beside, self.skipped)

    def conclude(self, result: Result) -> None:
        """What the paper's table has, and what is aimed at."""
        found = []
        for test in ("TCP", f"TCP, {UNPACED}", "UDP"):
            row = result.find(test=test, path="default")
            gbps, share = (row.spread("gbps"), row.spread("of_peak")) if row else (None, None)
            if row and gbps and share:
                found.append(
                    f"{test} {gbps.text(2)} Gbps, {share.text(1)} % of the measured peak"
                    f" ({row.group}, default)"
                )
        if found:
            result.notes.append(
                "The paper's table 2: TCP 10.51 Gbps, 5.1 % of 204.8 Gbps of memory bandwidth, UDP"
                f" 78.79 Gbps, 38 %; one core for each Linux. Here {'; '.join(found)}."
            )
        result.notes += [note for kind in self.kinds for note in _beside_peers(result, kind)]


def _guests_method(kinds: Sequence[str]) -> list[str]:
    """What to say of the peers of these kinds."""
    if not any(guests.PEERS.get(kind) for kind in kinds):
        return []
    return [
        "Between two nodes of kind uml, or qemu, everything is divided by what one would use instead"
        " there: the same guests (kernel, root, memory, core) with User-Mode Linux's vector driver"
        " on a TAP (gro=1, depth=128), QEMU's -netdev stream between the two QEMUs, or QEMU's"
        " -netdev tap; the TAPs are ports of a Linux bridge."
    ]


def _beside_peers(result: Result, kind: str) -> Iterator[str]:
    """How two nodes of a kind do beside what one would use instead, in a sentence."""
    rows = [r for r in result.rows if r.group == f"{kind} to {kind}" and r.key["test"] == "TCP"]
    found = []
    base = ""
    for row in rows:
        ratios = row.ratios.get("gbps")
        if ratios and row.against and row.key["path"] in ("default", "polling"):
            base = str(row.against["path"])
            found.append(f"{row.key['path']} {Spread.of(ratios).median:.2f} times")
    if found and base in guests.PEERS.get(kind, {}):
        yield f"TCP between nodes of kind {kind}: {', '.join(found)} {base}; the aim is {AIM:g}."
