# SPDX-License-Identifier: Apache-2.0
"""``mint doctor``: what this machine can and cannot do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from mint_vni.cli.common import JsonOption, console, note, print_json
from mint_vni.errors import PlatformError

if TYPE_CHECKING:
    from mint_vni.doctor import Check

COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


def doctor(json: JsonOption = False) -> None:
    """Examine this machine; exits with `PlatformError.exit_code` if labs cannot run here.

    Raises:
        PlatformError: There is not even a /proc to look into.
    """
    from mint_vni.doctor import Status, examine, gather

    checks = examine(gather())
    failed = [check.name for check in checks if check.status is Status.FAIL]
    if json:
        print_json(
            {"version": 1, "ok": not failed, "checks": [check.to_json() for check in checks]}
        )
    else:
        console().print(_table(checks))
    if failed:
        note(f"labs cannot run here until this is mended: {', '.join(failed)}")
        raise typer.Exit(PlatformError.exit_code)


def _table(checks: list[Check]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for column in ("CHECK", "", "FOUND"):
        table.add_column(column, overflow="fold")
    for check in checks:
        found = Text(check.detail)
        if check.remedy:
            found.append(f"\n→ {check.remedy}", style=COLOURS[check.status])
        table.add_row(check.name, Text(check.status, style=COLOURS[check.status]), found)
    return table
