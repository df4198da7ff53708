# SPDX-License-Identifier: Apache-2.0
"""``mint up``: bring a lab up."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mint_vni.cli.common import JsonOption, console, ignore_interrupts, lab_class, note, print_json

if TYPE_CHECKING:
    from mint_vni import Lab
    from mint_vni.lab.plan import LabPlan

LOOK_INTERVAL = 1.0  # seconds between looks whether a lab in the foreground is still there


def up(
    file: Annotated[
        Path, typer.Argument(metavar="LAB.yaml", help="The lab file.", show_default=False)
    ],
    foreground: Annotated[
        bool,
        typer.Option("--foreground", help="Stay; take the lab down at Ctrl-C or SIGTERM."),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the file and show the plan; do nothing.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Bring a lab up; whatever ends this before it is ready undoes what was done.

    Raises:
        MintError: The lab file is wrong, the lab is up already, the machine lacks something, or a
            node did not get ready.
    """
    if dry_run:
        _show_plan(file, json=json)
        return
    begun = time.monotonic()
    if foreground:
        _stay(file, begun, json=json)
        return
    # From the moment when it is to stay up, an interrupt is too late, and must not look as if it
    # were not.
    lab = lab_class().up(file, progress=note, ready=lambda _: ignore_interrupts())
    _say_ready(lab, time.monotonic() - begun, foreground=False)
    if json:
        print_json(lab.status())


def _stay(file: Path, begun: float, *, json: bool) -> None:
    """Bring a lab up and take it down at an interrupt."""
    ours: list[Lab] = []
    try:
        lab = lab_class().up(file, progress=note, ready=ours.append)
        _say_ready(lab, time.monotonic() - begun, foreground=True)
        if json:
            print_json(lab.status())
        _wait_while_up(lab)
    except KeyboardInterrupt:
        if not ours:
            raise
        note(f"taking lab {ours[0].name} down")
    finally:
        ignore_interrupts()  # a second Ctrl-C is not to leave half a lab behind
        for lab in ours:
            _take_down(lab)


def _say_ready(lab: Lab, seconds: float, *, foreground: bool) -> None:
    nodes = lab.nodes
    ready = f"lab {lab.name} is ready: {len(nodes)} nodes in {seconds:.1f} s"
    how = "Ctrl-C takes it down" if foreground else f"try 'mint ssh {nodes[0].name}'"
    note(f"{ready}; {how}" if nodes else ready)


def _wait_while_up(lab: Lab) -> None:
    """Return when somebody else has taken the lab down."""
    while lab.name in lab_class().names():
        time.sleep(LOOK_INTERVAL)


def _take_down(lab: Lab) -> None:
    if lab.name in lab_class().names():
        lab.down()
    note(f"lab {lab.name} is down")


# ---------------------------------------------------------------------------------- the plan


def _show_plan(file: Path, *, json: bool) -> None:
    from mint_vni.lab.plan import MachineFacts, check_machine, read_plan

    plan = read_plan(file)
    check_machine(plan, MachineFacts.here())
    if json:
        print_json({"version": 1, "plan": plan.to_json()})
    else:
        console().print(_plan_view(plan))


def _plan_view(plan: LabPlan) -> Any:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from mint_vni.lab.units import format_cpu_list, format_size

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for column in ("NODE", "KIND", "CPUS", "MEMORY", "INTERFACE", "ADDRESS", "MAC"):
        table.add_column(column)
    for node in plan.nodes:
        table.add_row(
            Text(node.name, style="bold"),
            node.kind + (" bridge" if node.bridge else ""),
            format_cpu_list(node.cpus) if node.cpus else "all",
            "no limit" if node.memory is None else format_size(node.memory),
            f"{node.interface} {node.mtu}",
            Text("\n".join(filter(None, (node.ipv4, node.ipv6))) or "–", overflow="fold"),
            node.mac,
        )
    heading = Text.assemble(
        (plan.name, "bold"),
        f"  layout {plan.layout}, {format_size(plan.channel_bytes)} a buffer, "
        f"{format_size(plan.buffer_bytes)} in all  mtu {plan.mtu}  ssh {plan.ssh}",
        (f"\n{plan.file}", "dim"),
    )
    return Group(heading, Text(), table)
