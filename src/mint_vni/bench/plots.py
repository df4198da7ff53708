# SPDX-License-Identifier: Apache-2.0
"""Plots of results, with matplotlib (optional: ``pip install 'mint-vni[bench]'``).

Which plots there are is a list; each is a function from a result to a figure, or None where the
result has nothing for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mint_vni.bench.noise import Spread
from mint_vni.bench.result import Result, Row

_WIDTH, _HEIGHT = 8.0, 4.2  # inches
_BARS = 24  # groups of bars that can be told apart


def available() -> str:
    """Empty if plots can be made; otherwise why not, with the remedy."""
    try:
        import matplotlib as _  # noqa: F401, ICN001 - only whether it is there
    except ImportError:
        return "matplotlib is not installed; pip install matplotlib (or make bench-peers)"
    return ""


def _figure(title: str, x: str, y: str) -> tuple[Any, Any]:
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "mint"  # the same input makes the same file
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, _HEIGHT), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(visible=True, alpha=0.3)
    return figure, axes


def _with(rows: Sequence[Row], metric: str) -> Iterator[tuple[Row, Spread]]:
    for row in rows:
        spread = row.spread(metric)
        if spread:
            yield row, spread


def _legible(rows: Sequence[Row], tests: Sequence[str]) -> list[Row]:
    """All rows; or only those of some tests, where there are too many for one plot."""
    if len({(row.group, row.key.get("test")) for row in rows}) <= _BARS:
        return list(rows)
    return [row for row in rows if row.key.get("test") in tests]


def _line(axes: Any, points: Sequence[tuple[float, Spread]], name: str, **style: Any) -> None:
    ordered = sorted(points, key=lambda point: point[0])
    medians = [s.median for _, s in ordered]
    bars = [
        [s.median - s.low for _, s in ordered],
        [s.high - s.median for _, s in ordered],
    ]
    options = {"marker": "o", "markersize": 4, "capsize": 3} | style
    axes.errorbar([x for x, _ in ordered], medians, yerr=bars, label=name, **options)


def frames_by_size(result: Result) -> Any:
    """Throughput of one pair over the frame's size."""
    rows = [r for r in result.rows if r.key["pattern"] == "one to one"]
    lines: dict[str, list[tuple[float, Spread]]] = {}
    for row, spread in _with(rows, "gbps"):
        name = f"{row.key['layout']}, {row.key['waiting']}"
        lines.setdefault(name, []).append((float(row.key["frame_bytes"]), spread))
    if not lines:
        return None
    figure, axes = _figure("Frames, one process to another", "bytes of frame", "Gbps")
    for name, points in lines.items():
        _line(axes, points, name)
    axes.set_xscale("log")
    memcpy = result.noise.get("memcpy_gbps")
    if memcpy:
        axes.axhline(Spread.of(memcpy).median, ls="--", c="grey", label="memcpy, one core")
    axes.legend(fontsize=7)
    return figure


def frames_by_crowd(result: Result) -> Any:
    """CPU time of a frame for each pattern."""
    found = [
        (f"{r.key['pattern']}, {r.key['processes']}", str(r.key["layout"]), s)
        for r, s in _with(result.rows, "cpu_ns")
        if r.key["frame_bytes"] == 1500 and r.key["waiting"] == "doorbells"
    ]
    return _bars("CPU time of a 1500-byte frame, all processes", "ns", found)


def sockets(result: Result) -> Any:
    """Throughput of each test over each path."""
    found = [
        (f"{r.key['test']}\n{r.group}", str(r.key["path"]), s)
        for r, s in _with(_legible(result.rows, ("TCP", "UDP")), "gbps")
    ]
    return _bars("Socket to socket, received", "Gbps", found)


def latency(result: Result) -> Any:
    """Median round trip of each test over each path."""
    found = [
        (f"{r.key['test']}\n{r.group}", str(r.key["path"]), s)
        for r, s in _with(_legible(result.rows, ("ping every 1 ms", "TCP 64 B")), "p50")
        if "path" in r.key and r.key["test"] != "doorbell"
    ]
    return _bars("Round trips, median", "us", found, log=True)


def frame_trips(result: Result) -> Any:
    """Median round trip of raw frames."""
    found = [
        (str(r.key["test"]), f"{r.key['layout']}, {r.key['waiting']}", s)
        for r, s in _with(result.rows, "p50")
        if "layout" in r.key
    ]
    return _bars("Round trips of frames, median", "us", found, log=True)


def isolation(result: Result) -> Any:
    """TCP throughput beside each neighbour."""
    found = [
        (str(r.key["neighbour"]).replace(", ", ",\n"), str(r.key["layout"]), s)
        for r, s in _with(result.rows, "gbps")
    ]
    return _bars("TCP from a to b beside neighbours", "Gbps", found)


def memory(result: Result) -> Any:
    """Formula and measurement."""
    if not any("formula" in row.values for row in result.rows):
        return None
    figure, axes = _figure("Packet-buffer memory for n Linuxes", "n", "MiB")
    styles = {"reserved": "o", "all_to_all": "s", "sparse": "^", "reclaimed": "x", "idle": "v"}
    layouts = list(dict.fromkeys(str(r.key["layout"]) for r in result.rows))
    for color, layout in enumerate(layouts):
        rows = [r for r in result.rows if r.key["layout"] == layout]
        line = sorted((float(r.key["n"]), s.median) for r, s in _with(rows, "formula"))
        axes.plot(*zip(*line, strict=True), c=f"C{color}", lw=1, label=f"{layout}: formula")
        for metric, marker in styles.items():
            points = [(float(r.key["n"]), s.median) for r, s in _with(rows, metric) if s.median]
            if points:
                label = f"{layout}: {metric.replace('_', ' ')}"
                x, y = zip(*points, strict=True)
                axes.plot(x, y, marker, c=f"C{color}", ms=5, mfc="none", label=label)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.legend(fontsize=7, ncols=2)
    return figure


def peers(result: Result) -> Any:
    """Throughput of everything."""
    found = [(str(r.key["test"]), str(r.key["path"]), s) for r, s in _with(result.rows, "gbps")]
    return _bars("Throughput beside others", "Gbps", found, log=True)


def peers_latency(result: Result) -> Any:
    """Round trips of everything."""
    found = [(str(r.key["test"]), str(r.key["path"]), s) for r, s in _with(result.rows, "p50")]
    return _bars("Round trips beside others, median", "us", found, log=True)


def _bars(
    title: str, unit: str, found: Sequence[tuple[str, str, Spread]], *, log: bool = False
) -> Any:
    """Groups of bars: (group, bar, value); with least and greatest."""
    if not found:
        return None
    figure, axes = _figure(title, "", unit)
    groups = list(dict.fromkeys(group for group, _, _ in found))
    names = list(dict.fromkeys(name for _, name, _ in found))
    width = 0.8 / len(names)
    for i, name in enumerate(names):
        mine = [(groups.index(g), s) for g, n, s in found if n == name]
        x = [at - 0.4 + width * (i + 0.5) for at, _ in mine]
        errors = [[s.median - s.low for _, s in mine], [s.high - s.median for _, s in mine]]
        heights = [s.median for _, s in mine]
        axes.bar(x, heights, width, yerr=errors, label=name, error_kw={"lw": 0.8})
    axes.set_xticks(range(len(groups)), groups, fontsize=7, rotation=30 if len(groups) > 6 else 0)
    if log:
        axes.set_yscale("log")
    axes.legend(fontsize=7)
    return figure


#: By part, with the name of the file.
PLOTS: dict[str, dict[str, Callable[[Result], Any]]] = {
    "frames": {"frames-sizes": frames_by_size, "frames-crowds": frames_by_crowd},
    "sockets": {"sockets": sockets},
    "latency": {"latency": latency, "latency-frames": frame_trips},
    "isolation": {"isolation": isolation},
    "memory": {"memory": memory},
    "peers": {"peers": peers, "peers-latency": peers_latency},
}


def draw(result: Result, folder: Path) -> list[str]:
    """Write a result's plots as SVG and PNG; the names of the SVG files."""
    names = []
    for name, plot in PLOTS.get(result.bench, {}).items():
        figure = plot(result)
        if figure is not None:
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
            figure.savefig(folder / f"{name}.png", dpi=120)
            names.append(f"{name}.svg")
    return names
