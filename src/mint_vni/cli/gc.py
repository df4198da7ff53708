# SPDX-License-Identifier: Apache-2.0
"""``mint gc``: remove what crashed runs left."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from mint_vni.cli.common import JsonOption, console, note, print_json
from mint_vni.errors import NodeError

if TYPE_CHECKING:
    from mint_vni.lab.clean import Cleared


def gc(
    json: JsonOption = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be removed; remove nothing.")
    ] = False,
) -> None:
    """Clear the labs whose supervisor died and that cannot be taken up again.

    Raises:
        MintError: The records cannot be read.
    """
    from mint_vni.lab.clean import collect

    labs = collect(dry_run=dry_run)
    if json:
        print_json({"version": 1, "dry_run": dry_run, "labs": [lab.to_json() for lab in labs]})
    elif labs:
        console().print(_table(labs))
    if not any(lab.state != "running" for lab in labs):
        note("no crashed lab left anything")
    problems = [f"lab {lab.lab}: {problem}" for lab in labs for problem in lab.problems]
    for problem in problems:
        note(problem)
    if problems:
        raise typer.Exit(NodeError.exit_code)


def _table(labs: list[Cleared]) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for column in ("LAB", "STATE", "RECORDED"):
        table.add_column(column, overflow="fold")
    for lab in labs:
        table.add_row(lab.lab, lab.state, "\n".join(lab.entries) or "–")
    return table
