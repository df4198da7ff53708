# SPDX-License-Identifier: Apache-2.0
"""``mint bench compare``: what moved between two results, and whether it is beyond the noise.

A metric of a row moved *beyond the noise* when its values before and after do not overlap: even the
best of the one is worse than the worst of the other. That takes three repetitions on both sides at
least. With n and m values of the same distribution it happens by chance in 2 n! m! / (n + m)! of all
cases (5 and 5: 0.8 %; 3 and 3: 10 %), so the number to expect by chance is said, too.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mint_vni.bench.noise import Spread
from mint_vni.bench.part import label
from mint_vni.bench.result import VERSION, Key, Row

LEAST = 3  # repetitions below which nothing is said


class BadResult(Exception):
    """A file that is no result of ``mint bench``."""


@dataclass(frozen=True)
class Change:
    """One metric of one row, before and after.

    Attributes:
        bench, key, metric: which.
        unit: the metric's.
        before, after: medians.
        percent: by how much it moved; None where it was 0.
        verdict: ``better``, ``worse`` or ``moved`` (where neither way is better): beyond the
            noise; ``same``: within it; ``unknown``: too few repetitions.
        by_chance: how likely values of one distribution are to fall apart so.
    """

    bench: str
    key: Key
    metric: str
    unit: str
    before: float
    after: float
    percent: float | None
    verdict: str
    by_chance: float


@dataclass(frozen=True)
class Comparison:
    """Two results, compared.

    Attributes:
        changes: all metrics of all rows that both have.
        only_before, only_after: rows that only one has, in words.
        warnings: why the two may not be comparable.
    """

    changes: list[Change]
    only_before: list[str]
    only_after: list[str]
    warnings: list[str]

    @property
    def by_chance(self) -> float:
        """How many changes beyond the noise are to be expected by chance alone."""
        return sum(change.by_chance for change in self.changes if change.verdict != "unknown")

    def to_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "version": 1,
            "changes": [asdict(change) for change in self.changes],
            "by_chance": self.by_chance,
            "only_before": self.only_before,
            "only_after": self.only_after,
            "warnings": self.warnings,
        }


def load(path: str) -> dict[str, dict[str, Any]]:
    """The results in a file, by part: one part's result, or a report's.

    Raises:
        BadResult: it is not to be read, or it is something else.
    """
    try:
        data = json.loads(Path(path).read_text())
    except OSError as error:
        raise BadResult(f"{path}: {error.strerror}") from None
    except ValueError:
        raise BadResult(f"{path} is not JSON; give what --json or a report wrote") from None
    if not isinstance(data, dict) or "bench" not in data:
        raise BadResult(f"{path} is no result of mint bench; give what --json or a report wrote")
    if data.get("version") != VERSION:
        raise BadResult(
            f"{path} has version {data.get('version')} and this mint knows {VERSION}; measure again"
        )
    parts = data["parts"] if data["bench"] == "report" else {data["bench"]: data}
    return {str(name): part for name, part in parts.items()}


def judge(before: Sequence[float], after: Sequence[float], better: str) -> str:
    """Whether values moved beyond the noise; see :attr:`Change.verdict`."""
    if min(len(before), len(after)) < LEAST:
        return "unknown"
    if min(after) > max(before):
        up = True
    elif max(after) < min(before):
        up = False
    else:
        return "same"
    if not better:
        return "moved"
    return "better" if up == (better == "higher") else "worse"


def by_chance(n: int, m: int) -> float:
    """How likely n and m values of one distribution do not overlap."""
    return 2 / math.comb(n + m, n)


def compare(before: dict[str, dict[str, Any]], after: dict[str, dict[str, Any]]) -> Comparison:
    """Compare results as :func:`load` gives them."""
    changes: list[Change] = []
    only: tuple[list[str], list[str]] = ([], [])
    for bench in dict.fromkeys([*before, *after]):
        rows = [_rows(side.get(bench)) for side in (before, after)]
        metrics = {m["name"]: m for side in (before, after) for m in _metrics(side.get(bench))}
        for name, row in rows[0].items():
            if name in rows[1]:
                changes += _changes(bench, row, rows[1][name], metrics)
        for here, there, names in ((rows[0], rows[1], only[0]), (rows[1], rows[0], only[1])):
            names += [f"{bench}: {label(r.key)}" for n, r in here.items() if n not in there]
    return Comparison(changes, *only, warnings=list(_warnings(before, after)))


def _metrics(result: dict[str, Any] | None) -> list[dict[str, Any]]:
    return list(result["metrics"]) if result else []


def _rows(result: dict[str, Any] | None) -> dict[str, Row]:
    """By group and key; those that failed are as good as not there."""
    found = [Row.from_json(data) for data in result["rows"]] if result else []
    return {
        json.dumps([row.group, row.key], sort_keys=True): row for row in found if not row.failed
    }


def _changes(
    bench: str, before: Row, after: Row, metrics: dict[str, dict[str, Any]]
) -> Iterator[Change]:
    for name, old in before.values.items():
        new = after.values.get(name)
        metric = metrics.get(name)
        if not new or not old or not metric:
            continue
        medians = [Spread.of(values).median for values in (old, new)]
        yield Change(
            bench,
            before.key,
            name,
            metric["unit"],
            medians[0],
            medians[1],
            100 * (medians[1] / medians[0] - 1) if medians[0] else None,
            judge(old, new, metric["better"]),
            by_chance(len(old), len(new)),
        )


def _warnings(before: dict[str, dict[str, Any]], after: dict[str, dict[str, Any]]) -> Iterator[str]:
    sides = [next(iter(side.values()), {}) for side in (before, after)]
    machines = [side.get("machine", {}) for side in sides]
    for name in ("cpu", "cpus", "kernel"):
        values = [m.get(name) for m in machines]
        if values[0] != values[1]:
            yield f"{name} was {values[0]} and is {values[1]}"
    memcpy = [side.get("noise", {}).get("memcpy_gbps", {}).get("all", []) for side in sides]
    if judge(memcpy[0], memcpy[1], "higher") in ("better", "worse"):
        medians = [Spread.of(values).median for values in memcpy]
        yield (
            f"the machine itself was another: memcpy {medians[0]:.0f} and {medians[1]:.0f} Gbps;"
            " what moved may be its doing"
        )


# -------------------------------------------------------------------------------- showing


def run_cli(before: str, after: str, *, everything: bool, json_path: str | None) -> None:
    """``mint bench compare``.

    Raises:
        BadResult: one of the files is no result.
    """
    found = compare(load(before), load(after))
    _show(found, everything=everything)
    if json_path:
        Path(json_path).write_text(json.dumps(found.to_json(), indent=1) + "\n")
    sys.stdout.flush()


def _show(found: Comparison, *, everything: bool) -> None:
    from rich import box
    from rich.table import Table

    from mint_vni.bench.show import console

    out = console()
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1), pad_edge=False)
    for name in ("part", "what", "metric"):
        table.add_column(name, overflow="fold")
    for name in ("before", "after", "change", "verdict"):
        table.add_column(name, justify="right", no_wrap=True)
    beyond = [c for c in found.changes if c.verdict in ("better", "worse", "moved")]
    for c in found.changes if everything else beyond:
        percent = "-" if c.percent is None else f"{c.percent:+.1f} %"
        unit = f"{c.metric} ({c.unit})" if c.unit else c.metric
        values = (f"{value:,.4g}" for value in (c.before, c.after))
        table.add_row(c.bench, label(c.key), unit, *values, percent, c.verdict)
    if table.row_count:
        out.print(table)
    judged = [c for c in found.changes if c.verdict != "unknown"]
    out.print(
        f"{len(beyond)} of {len(judged)} figures moved beyond the noise (their ranges do not"
        f" overlap); about {found.by_chance:.1f} would by chance alone."
    )
    if len(judged) < len(found.changes):
        out.print(
            f"Of {len(found.changes) - len(judged)} nothing is said: fewer than {LEAST} repetitions."
        )
    for text in found.warnings:
        out.print(f"Beware: {text}.", markup=False)
    for when, names in (("before", found.only_before), ("after", found.only_after)):
        if names:
            shown = "; ".join(names[:5]) + ("; ..." if len(names) > 5 else "")
            out.print(f"Only {when}: {len(names)} rows: {shown}", markup=False)
