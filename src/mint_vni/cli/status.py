# SPDX-License-Identifier: Apache-2.0
"""``mint status``: what a lab is and does now."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mint_vni.cli.common import (
    JsonOption,
    LabArgument,
    connect,
    console,
    lab_class,
    note,
    print_json,
)
from mint_vni.errors import LabStateError

if TYPE_CHECKING:
    from mint_vni import Lab


def status(
    lab: LabArgument = None,
    json: JsonOption = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Again and again, with bits a second, until Ctrl-C.")
    ] = False,
    interval: Annotated[
        float, typer.Option("--interval", min=0.1, max=3600, help="Seconds between, for --watch.")
    ] = 1.0,
    every: Annotated[bool, typer.Option("--all", help="All labs, one line each.")] = False,
) -> None:
    """Print a lab's status; asked of the lab each time, never kept.

    Raises:
        LabStateError: There is no such lab, or several and none is named.
    """
    if every and (lab or watch):
        raise typer.BadParameter("--all goes with neither a lab's name nor --watch")
    if every:
        _all(json=json)
        return
    found = connect(lab)
    if watch and json:
        while True:
            print_json(found.status(), indent=None)
            time.sleep(interval)
    elif watch:
        _watch(found, interval)
    elif json:
        print_json(found.status())
    else:
        from mint_vni.observe.status import render

        console().print(render(found.status()))


def _all(*, json: bool) -> None:
    statuses, problems = [], []
    for name in lab_class().names():
        try:
            statuses.append(connect(name).status())
        except LabStateError as error:  # one that is left of a crash, say: the others are shown
            problems.append(str(error))
    if json:
        print_json({"version": 1, "labs": statuses, "problems": problems})
    else:
        from mint_vni.observe.status import labs_table

        console().print(labs_table(statuses))
        for problem in problems:
            note(problem)
    if problems:
        raise typer.Exit(LabStateError.exit_code)


def _watch(lab: Lab, interval: float) -> None:
    """Show the status until Ctrl-C: in place on a terminal, one below the other elsewhere."""
    from rich.live import Live

    from mint_vni.observe.status import Since, render

    out = console()
    before: tuple[float, dict[str, Any]] | None = None

    def frame() -> Any:
        nonlocal before
        now, data = time.monotonic(), lab.status()
        since = Since(before[1], max(now - before[0], 1e-3)) if before else None
        before = (now, data)
        return render(data, since)

    if not out.is_terminal:
        while True:
            out.print(frame(), "")
            out.file.flush()
            time.sleep(interval)
    with Live(frame(), console=out, screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(interval)
            live.update(frame(), refresh=True)
