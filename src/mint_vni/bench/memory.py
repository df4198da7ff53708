# SPDX-License-Identifier: Apache-2.0
"""``mint bench memory``: the packet buffers' memory as the number of Linuxes grows.

The paper leaves this question open. Memory is reserved when a fabric is made and committed, page by
page, when it is touched; so four amounts are measured besides what is reserved: idle, after few
pairs have talked, after all have, and after all have and only few go on. Up to 64 ports they are measured, with all ports in
one process; beyond, what is reserved is computed.
"""

from __future__ import annotations

import random
import resource
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar

from mint_vni.bench.part import Case, Group, Part
from mint_vni.bench.result import Key, Metric, Result, Row
from mint_vni.errors import FabricError
from mint_vni.fabric import Fabric
from mint_vni.fabric.regions import LAYOUTS

MEASURED = (2, 4, 8, 16, 32, 64)
COMPUTED = (128, 256)
CHANNEL_BYTES = 393_216  # as in `frames`
FRAME_BYTES = 1500
SPARSE = 0.01  # of all pairs
IDLE_RECLAIM = 0.1  # seconds; a lab's default is 5, but who has time to wait
_BATCH = 64  # frames sent before they are taken: well below what any channel holds
_MIB = 1 << 20


class Memory(Part):
    """Memory of the packet buffers."""

    name: ClassVar[str] = "memory"
    title: ClassVar[str] = "Packet-buffer memory for n Linuxes, MiB"
    defaults: ClassVar[tuple[int, float]] = (1, 1.0)
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("formula", "formula", "MiB", "", 2),
        Metric("reserved", "reserved", "MiB", "lower", 2),
        Metric("idle", "idle", "MiB", "lower", 2),
        Metric("all_to_all", "all to all", "MiB", "lower", 2, "median", ratio=True),
        Metric("sparse", "sparse", "MiB", "lower", 2),
        Metric("reclaimed", "later", "MiB", "lower", 2),
        Metric("control", "control", "MiB", "lower", 2),
    )

    def __init__(self, settings: Any) -> None:
        """Check what was asked for.

        Raises:
            FabricError: a layout that there is not.
        """
        super().__init__(settings)
        self.layouts: Sequence[str] = settings.option("layouts", tuple(LAYOUTS))
        self.counts = settings.option("counts", MEASURED[:3] if settings.quick else MEASURED)
        unknown = [name for name in self.layouts if name not in LAYOUTS]
        if unknown:
            raise FabricError(f"no layout {unknown[0]}; use one of {', '.join(LAYOUTS)}")

    def method(self) -> list[str]:
        """How it measures."""
        return [
            f"Raw ports in one process; {CHANNEL_BYTES:,} B for each channel (shared: for the one"
            " buffer; pooled: for each port's pool). Committed is what the kernel says the regions"
            " occupy.",
            f"all to all: every port sent every other as many {FRAME_BYTES}-byte frames as fill a"
            f" channel once over, received in batches of {_BATCH}. sparse: one pair in a hundred"
            " (at least one) did, the others nothing. later: all pairs had, and then for"
            f" longer than idle_reclaim ({IDLE_RECLAIM} s here; not with shared) only those few;"
            " the other figures without idle_reclaim. control: the ports' control regions (all to"
            " all), not in the other figures.",
            "formula: a n² + b n + c through the three smallest fabrics that were measured; the"
            " others check it, and beyond the largest it computes what would be reserved.",
        ]

    def described(self) -> dict[str, Any]:
        """What the fabrics have in common."""
        return {
            "channel_bytes": CHANNEL_BYTES,
            "frame_bytes": FRAME_BYTES,
            "sparse_share": SPARSE,
        }

    def groups(self) -> Iterator[Group]:
        """One for all layouts, so that they are compared at each n."""
        yield Group("", self._open)

    @contextmanager
    def _open(self) -> Iterator[list[Case]]:
        with _many_descriptors():
            yield [self._case(layout, n) for layout in self.layouts for n in self.counts]

    def _case(self, layout: str, n: int) -> Case:
        key: Key = {"layout": layout, "n": n}

        def per_channel(other: Key) -> bool:
            return other == key | {"layout": "per-channel"}

        return Case(key, partial(measure, layout, n), warm_up=dict, against=per_channel)

    def conclude(self, result: Result) -> None:
        """Fit the formula, compute beyond the measured."""
        for layout in self.layouts:
            rows = [r for r in result.rows if r.key["layout"] == layout and "reserved" in r.values]
            points = [(int(r.key["n"]), r.values["reserved"][0]) for r in rows]
            if len(points) < 3:
                continue
            formula = fit(points[:3])
            for row in rows:
                row.values["formula"] = [formula(int(row.key["n"]))]
            for n in COMPUTED:
                key: Key = {"layout": layout, "n": n}
                row = Row(key=key, facts={"computed": True})
                row.values["formula"] = [formula(n)]
                result.rows.append(row)
        result.rows.sort(key=lambda r: (self.layouts.index(str(r.key["layout"])), r.key["n"]))
        result.notes += _answers(result)


def fit(points: Sequence[tuple[int, float]]) -> Callable[[float], float]:
    """The polynomial of second degree through three points (Lagrange)."""

    def formula(n: float) -> float:
        total = 0.0
        for i, (x, y) in enumerate(points):
            term = y
            for k, (other, _) in enumerate(points):
                if k != i:
                    term *= (n - other) / (x - other)
            total += term
        return total

    return formula


def _answers(result: Result) -> list[str]:
    """What the issue asks: pooled against per-channel, and sparse traffic."""
    notes = []
    largest = max((int(r.key["n"]) for r in result.rows if r.values.get("sparse")), default=0)
    for row in result.rows:
        sparse, reserved = row.values.get("sparse"), row.values.get("reserved")
        if row.key["n"] == largest and sparse and reserved and reserved[0]:
            ratio = row.ratios.get("all_to_all")
            against = f"; all to all {ratio[0]:.3f} x per-channel" if ratio else ""
            later = row.values.get("reclaimed")
            also = f", {later[0] / reserved[0]:.4f} after all to all" if later else ""
            notes.append(
                f"{row.key['layout']}, n = {largest}: sparse traffic commits"
                f" {sparse[0] / reserved[0]:.4f} of what is reserved{also}{against}."
            )
    return notes


@contextmanager
def _many_descriptors() -> Iterator[None]:
    """As many as this process may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65_536 if hard == resource.RLIM_INFINITY else max(hard, soft)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# ------------------------------------------------------------------------------ measuring


def measure(layout: str, n: int) -> Mapping[str, float]:
    """All amounts for one layout and number of ports, MiB."""
    names = [f"p{i}" for i in range(n)]
    pairs = [(a, b) for a in names for b in names if a != b]
    few = random.Random(1).sample(pairs, max(1, round(SPARSE * len(pairs))))  # noqa: S311 - no secret
    found: dict[str, float] = {}
    with Fabric.create(names, layout, CHANNEL_BYTES, idle_reclaim=0) as fabric:
        for name in names:
            fabric.port(name)
        idle = fabric.memory()
        talk(fabric, few)
        sparse = fabric.memory()
        talk(fabric, pairs)
        busy = fabric.memory()
    found["reserved"] = idle["reserved_bytes"] / _MIB
    found["idle"] = idle["committed_bytes"] / _MIB
    found["sparse"] = sparse["committed_bytes"] / _MIB
    found["all_to_all"] = busy["committed_bytes"] / _MIB
    found["control"] = busy["control_bytes"] / _MIB
    if layout != "shared":
        found["reclaimed"] = reclaimed(layout, names, pairs, few) / _MIB
    return found


def reclaimed(
    layout: str,
    names: Sequence[str],
    pairs: Iterable[tuple[str, str]],
    few: Iterable[tuple[str, str]],
) -> int:
    """Bytes committed when few pairs go on after all have talked."""
    with Fabric.create(names, layout, CHANNEL_BYTES, idle_reclaim=IDLE_RECLAIM) as fabric:
        ports = [fabric.port(name) for name in names]
        talk(fabric, pairs)
        for _ in range(3):  # a port sees that nothing was sent, then once more; and one to spare
            time.sleep(1.1 * IDLE_RECLAIM)
            for port in ports:
                port.recv_many(timeout=0.0005)  # it looks when it is about to sleep
        talk(fabric, few)
        return int(fabric.memory()["committed_bytes"])


def talk(fabric: Fabric, pairs: Iterable[tuple[str, str]]) -> None:
    """Send as much over each pair as fills its channel once over, and receive it.

    Raises:
        FabricError: frames did not arrive.
    """
    frames = CHANNEL_BYTES // FRAME_BYTES + _BATCH
    for a, b in pairs:
        src, dst = fabric[a], fabric[b]
        head = bytes.fromhex((dst.mac + src.mac).replace(":", "") + "88b5")
        batch = [head + bytes(FRAME_BYTES - len(head))] * _BATCH
        left = frames
        while left > 0:
            # In one buffer for all a receiver may have less than a batch: send what there is room for.
            sent, got = src.send_many(batch[: min(left, _BATCH)], timeout=0), 0
            while frames_now := dst.recv_many(timeout=0):
                got += len(frames_now)
            if not sent or got != sent:
                raise FabricError(
                    f"of {sent} frames from {a} to {b} {got} came; please report this"
                )
            left -= sent
