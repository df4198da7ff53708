# SPDX-License-Identifier: Apache-2.0
"""Progress on standard error, tables on standard output."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from textwrap import fill
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from mint_vni.bench.noise import Spread
from mint_vni.bench.part import Progress as Report
from mint_vni.bench.result import Metric, Result, Row, varying

_PLAIN_WIDTH = 100
_LARGE = 1000  # from here on, nothing after the point
_NARROW = 10  # characters of a line over a column of ratios
_LONG = 20  # characters above which a name may be broken into lines


def console() -> Console:
    """Where tables go: as wide as the terminal, or 100 columns."""
    return Console(width=None if sys.stdout.isatty() else _PLAIN_WIDTH, highlight=False)


@contextmanager
def progress() -> Iterator[Report]:
    """A bar on standard error while something runs."""
    columns = (TextColumn("{task.description:<44}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task: TaskID = bar.add_task("starting", total=1.0)
        yield lambda text, done: bar.update(task, description=text[:60], completed=done)


def show(result: Result, out: Console | None = None) -> None:
    """Print a result: its table, what to know about it, and what is missing."""
    out = out or console()
    out.print(f"\n[bold]{result.title}[/bold]")
    for group in dict.fromkeys(row.group for row in result.rows):
        _show_group(result, [row for row in result.rows if row.group == group], group, out)
    for text in [*result.notes, *result.method, _turns(result)]:
        out.print(text, markup=False)
    for text in about(result):
        out.print(text, markup=False)
    for skipped in result.skipped:
        out.print(f"not measured: {skipped.what}: {skipped.why}", markup=False)


def _show_group(result: Result, rows: Sequence[Row], group: str, out: Console) -> None:
    names, shared = varying(rows)
    if len(rows) == 1:
        names, shared = list(rows[0].key), {}
    common = ", ".join(
        f"{name} {value}" for name, value in shared.items() if str(value) not in group
    )
    out.print(f"\n{group}" + (f" ({common})" if common else ""), markup=False)
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 0, 0, 1),
        pad_edge=False,
    )
    columns = shown(result.metrics, rows)
    if not columns:
        return
    for name in names:
        longest = max(len(str(row.key.get(name, ""))) for row in rows)
        title = name.replace("_bytes", " B").replace("_", " ")
        table.add_column(title, overflow="fold", no_wrap=longest < _LONG)
    for metric, ratio in columns:
        title = heading(metric, rows, ratio=ratio)
        table.add_column(fill(title, _NARROW) if ratio else title, justify="right", no_wrap=True)
    above = ""
    for row in rows:
        keys = [str(row.key.get(name, "-")) for name in names]
        if row.failed:
            out.print(f"failed: {', '.join(keys)}: {row.failed}", markup=False)
            continue
        first, *others = keys or [""]
        table.add_row(
            *(["" if first == above and others else first] if keys else []),  # once is enough
            *others,
            *(cell(row, m, ratio=ratio) for m, ratio in columns),
        )
        above = first
    out.print(table)


def shown(metrics: Sequence[Metric], rows: Sequence[Row]) -> list[tuple[Metric, bool]]:
    """The columns that these rows have something for: metrics, and their ratios."""
    found: list[tuple[Metric, bool]] = []
    for metric in metrics:
        if metric.show and any(metric.name in row.values for row in rows):
            found.append((metric, False))
        if metric.ratio and any(metric.name in row.ratios for row in rows):
            found.append((metric, True))
    return found


def heading(metric: Metric, rows: Sequence[Row], *, ratio: bool) -> str:
    """Over a column."""
    if not ratio:
        return metric.label
    others = set()
    for row in rows:
        if metric.name in row.ratios and row.against:
            others.add(next(v for k, v in row.against.items() if row.key.get(k) != v))
    return f"x {others.pop()}" if len(others) == 1 else "x control"


def cell(row: Row, metric: Metric, *, ratio: bool) -> str:
    """Of a table."""
    values = (row.ratios if ratio else row.values).get(metric.name)
    if not values:
        return "-"
    spread = Spread.of(values)
    if ratio:
        return f"{spread.median:.2f}" if spread.median >= 0.1 else f"{spread.median:.4f}"
    digits = metric.digits if spread.median < _LARGE else 0
    if metric.show == "spread" and spread.count > 1:
        return spread.text(digits)
    return f"{spread.median:,.{digits}f}"


def _turns(result: Result) -> str:
    count = result.settings["repetitions"]
    return (
        f"Median (least-greatest) of {count} repetitions"
        f" of about {result.settings['seconds']:g} s; all rows of a table took turns."
    )


def about(result: Result) -> list[str]:
    """Machine and noise, in two lines."""
    m: Mapping[str, Any] = result.about["machine"]
    noise = [
        f"{name.removesuffix('_gbps').replace('_', ' ')} {Spread.of(values).text()}"
        + (" Gbps" if name.endswith("_gbps") else "")
        for name, values in result.noise.items()
    ]
    return [
        f"{m['cpu']}, {m['cpus']} CPUs, Linux {m['kernel']}"
        f"{' (virtual machine)' if m['virtual'] else ''}, load {m['load']:.1f}",
        f"Meanwhile: {'; '.join(noise)}",
    ]
