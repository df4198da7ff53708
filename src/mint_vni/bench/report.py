# SPDX-License-Identifier: Apache-2.0
"""``mint bench report``: all parts, written into a folder.

=====================  ============================================================
``report.html``        everything on one page that needs no other file
``report.md``          the same for reading in a repository; refers to the plots
``results.json``       all results, for ``mint bench compare``
``machine.json``       what machine this is
``*.svg``, ``*.png``   plots, where matplotlib is installed
=====================  ============================================================
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mint_vni.bench import plots
from mint_vni.bench.noise import machine, versions
from mint_vni.bench.part import run, settings_of, usable_cpus
from mint_vni.bench.parts import PARTS
from mint_vni.bench.result import VERSION, Metric, Result, Row, varying
from mint_vni.bench.show import about, cell, console, heading, progress, show, shown
from mint_vni.errors import MintError, PlatformError

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62em; margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; margin: 1em 0; font-size: 13px; }
th, td { padding: 2px 10px; border-bottom: 1px solid #8884; text-align: right; }
th:first-child, td:first-child { text-align: left; }
.key { text-align: left; } pre, code { background: #8882; padding: 1px 4px; }
p.note { margin: .3em 0; } svg { max-width: 100%; height: auto; background: white; }
"""


@dataclass(frozen=True)
class Table:
    """A table as text: a line of headings, lines of cells; the first `keys` columns are names."""

    title: str
    keys: int
    head: list[str]
    lines: list[list[str]]


def tables(result: Result) -> list[Table]:
    """A result's tables, one a group."""
    found = []
    for group in dict.fromkeys(row.group for row in result.rows):
        rows = [row for row in result.rows if row.group == group]
        found.append(_table(result.metrics, rows, group))
    return found


def _table(metrics: Sequence[Metric], rows: Sequence[Row], group: str) -> Table:
    names, shared = varying(rows)
    if len(rows) == 1:
        names, shared = list(rows[0].key), {}
    common = ", ".join(f"{n} {v}".replace("_", " ") for n, v in shared.items() if v != group)
    title = f"{group} ({common})" if group and common else group or common
    columns = shown(metrics, rows)
    head = [name.replace("_", " ") for name in names]
    head += [heading(metric, rows, ratio=ratio) for metric, ratio in columns]
    lines = []
    for row in rows:
        keys = [str(row.key.get(name, "-")) for name in names]
        cells = [cell(row, metric, ratio=ratio) for metric, ratio in columns]
        lines.append([*keys, *([f"failed: {row.failed}"] if row.failed else cells)])
    return Table(title, len(names), head, lines)


# --------------------------------------------------------------------------------- pages


def _plain(result: Result) -> list[str]:
    """What goes with the tables, in paragraphs."""
    lines = [*result.notes, *result.method, *about(result)]
    lines += [f"Not measured: {s.what}: {s.why}" for s in result.skipped]
    return lines


def _command(result: Result) -> str:
    asked = result.settings
    words = ["mint", "bench", result.bench]
    words += ["--repetitions", str(asked["repetitions"])]
    if result.bench != "memory":
        words += ["--seconds", f"{asked['seconds']:g}"]
    if asked["quick"]:
        words.append("--quick")
    return " ".join(words)


def markdown(results: Sequence[Result], pictures: dict[str, list[str]]) -> str:
    """The report as Markdown; refers to the plots' files."""
    text = ["<!-- SPDX-License-Identifier: Apache-2.0 -->", "# Mint VNI: measurements", ""]
    text += [*_facts(), ""]
    for result in results:
        text += [f"## {result.title}", "", f"`{_command(result)}`", ""]
        text += [f"![{name.removesuffix('.svg')}]({name})\n" for name in pictures[result.bench]]
        for table in tables(result):
            text += [f"**{table.title}**", ""] if table.title else []
            text.append("| " + " | ".join(table.head) + " |")
            rule = ["---"] * table.keys + ["--:"] * (len(table.head) - table.keys)
            text.append("|" + "|".join(rule) + "|")
            text += ["| " + " | ".join(line) + " |" for line in table.lines]
            text.append("")
        for line in _plain(result):
            text += [line, ""]
    return "\n".join(text).rstrip() + "\n"


def _facts() -> list[str]:
    m, v = machine(), versions()
    virtual = " (a virtual machine)" if m["virtual"] else ""
    return [
        f"{m['cpu']}, {m['cpus']} CPUs{virtual}, {', '.join(m['caches'])},"
        f" {m['memory_bytes'] / 2**30:.0f} GiB; Linux {m['kernel']}, {m['os']};"
        f" {', '.join(f'{name} {text}' for name, text in v.items())}.",
        "",
        "Figures from other machines do not compare with these; rows of one table do. Each table was"
        " measured in turns. Raw results, every repetition: results.json.",
    ]


def page(results: Sequence[Result], pictures: dict[str, list[str]], folder: Path) -> str:
    """The report as one HTML page, its plots inside."""
    text = [
        "<!doctype html><html lang=en><meta charset=utf-8><title>Mint VNI: measurements</title>",
        f"<style>{_STYLE}</style><h1>Mint VNI: measurements</h1>",
    ]
    text += [f"<p>{html.escape(line)}</p>" for line in _facts() if line]
    for result in results:
        text.append(f"<h2>{html.escape(result.title)}</h2><pre>{_command(result)}</pre>")
        text += [_inline((folder / name).read_text()) for name in pictures[result.bench]]
        text += [_html_table(table) for table in tables(result)]
        text += [f"<p class=note>{html.escape(line)}</p>" for line in _plain(result)]
    return "\n".join(text) + "\n</html>\n"


def _inline(svg: str) -> str:
    """An SVG without its prologue, its ids made its own so that several can be on a page."""
    body = svg[svg.index("<svg") :]
    prefix = f"m{abs(hash(body)) % 10**8}-"
    body = re.sub(r'\bid="', f'id="{prefix}', body)
    return re.sub(r'(url\(#|href="#)', rf"\1{prefix}", body)


def _html_table(table: Table) -> str:
    def cells(tag: str, words: Sequence[str]) -> str:
        return "".join(
            f"<{tag}{' class=key' if i < table.keys else ''}>{html.escape(word)}</{tag}>"
            for i, word in enumerate(words)
        )

    lines = "".join(f"<tr>{cells('td', line)}</tr>" for line in table.lines)
    title = f"<p><b>{html.escape(table.title)}</b></p>" if table.title else ""
    return f"{title}<table><tr>{cells('th', table.head)}</tr>{lines}</table>"


# ------------------------------------------------------------------------------- writing


def write(folder: Path, results: Sequence[Result]) -> list[str]:
    """Write the folder.

    Returns:
        What is missing in it, and why.
    """
    folder.mkdir(parents=True, exist_ok=True)
    missing = plots.available()
    pictures = {r.bench: [] if missing else plots.draw(r, folder) for r in results}
    (folder / "report.md").write_text(markdown(results, pictures))
    (folder / "report.html").write_text(page(results, pictures, folder))
    (folder / "machine.json").write_text(
        json.dumps({"machine": machine(), "versions": versions()}, indent=1) + "\n"
    )
    (folder / "results.json").write_text(json.dumps(to_json(results), indent=1) + "\n")
    return [f"plots: {missing}"] if missing else []


def to_json(results: Sequence[Result]) -> dict[str, Any]:
    """All results as one."""
    return {
        "version": VERSION,
        "bench": "report",
        "parts": {result.bench: result.to_json() for result in results},
    }


def run_cli(
    folder: str,
    *,
    parts: Sequence[str] | None,
    repetitions: int | None,
    seconds: float | None,
    cpus: Sequence[int] | None,
    quick: bool,
) -> None:
    """``mint bench report``: progress and tables as each part would, then the folder.

    Raises:
        PlatformError: a part that there is not, or the folder can't be written.
    """
    unknown = [name for name in parts or () if name not in PARTS]
    if unknown:
        raise PlatformError(f"no part {unknown[0]}; use one of {', '.join(PARTS)}")
    usable_cpus(cpus)
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PlatformError(f"{folder}: {error.strerror}; give another folder") from None
    results, problems = [], []
    for name in parts or PARTS:
        kind = PARTS[name]
        # Amounts of memory do not vary from one repetition to the next.
        turns = None if name == "memory" else repetitions
        settings = settings_of(kind, repetitions=turns, seconds=seconds, cpus=cpus, quick=quick)
        try:
            with progress() as bar:
                result = run(kind(settings), bar)
        except MintError as error:
            problems.append(f"{name}: {error}")
            continue
        show(result)
        results.append(result)
    problems += write(Path(folder), results)
    out = console()
    for problem in problems:
        out.print(f"missing: {problem}", markup=False)
    out.print(f"\nWritten: {folder}/report.html, report.md, results.json", markup=False)
