# SPDX-License-Identifier: Apache-2.0
"""What several verbs share: finding labs and nodes, printing, completion."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from mint_vni.errors import PlatformError

if TYPE_CHECKING:
    from rich.console import Console

    from mint_vni import Lab, Node

USAGE = 2  # exit status of wrong usage, as Typer's own
PLAIN_WIDTH = 100  # columns where there is no terminal to ask


def lab_class() -> type[Lab]:
    """The public Lab class; a function, so that importing a verb does not import the lab."""
    from mint_vni import Lab

    return Lab


INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def ignore_interrupts() -> None:
    """Let nothing short of SIGKILL end this verb any more; `main` takes it back.

    Raises:
        KeyboardInterrupt: One had come before.
    """
    # Blocked meanwhile: one that Python noted and has not acted upon would be lost with a warning.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, INTERRUPTS)
    try:
        for number in INTERRUPTS:
            signal.signal(number, signal.SIG_IGN)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


# ------------------------------------------------------------------------------- finding


def connect(name: str | None) -> Lab:
    """A running lab.

    Args:
        name: Its name; None for the only one.

    Raises:
        LabStateError: There is no such lab, or there are several to choose from.
    """
    return lab_class().connect(name)


def find_node(spec: str, lab_name: str | None) -> tuple[Lab, Node]:
    """The node that a command line names.

    Args:
        spec: ``NODE``, or ``LAB/NODE`` where several labs run.
        lab_name: What ``--lab`` says, if anything.

    Raises:
        BadParameter: Two labs are named.
        LabStateError: There is no such lab or no such node.
    """
    before, slash, name = spec.rpartition("/")
    if slash and lab_name not in (None, before):
        raise typer.BadParameter(f"{spec} and --lab {lab_name} name two labs")
    lab = connect(before if slash else lab_name)
    return lab, lab[name]


# ------------------------------------------------------------------------------ printing


def note(message: str) -> None:
    """Say something to a person: one line on standard error."""
    sys.stderr.write(f"mint: {message}\n")
    sys.stderr.flush()


def print_json(data: Any, *, indent: int | None = 2) -> None:
    """Print data for programs; ``indent=None`` puts it on one line."""
    sys.stdout.write(json.dumps(data, indent=indent) + "\n")
    sys.stdout.flush()


def console() -> Console:
    """Where tables for people go: standard output, as wide as the terminal."""
    from rich.console import Console

    out = Console(highlight=False)
    if not out.is_terminal and "COLUMNS" not in os.environ:
        out.width = PLAIN_WIDTH
    return out


def demand_verb(ctx: typer.Context) -> None:
    """Where a command has sub-commands and none is given: show which, as wrong usage."""
    if ctx.invoked_subcommand is None:
        sys.stderr.write(ctx.get_help() + "\n")
        raise typer.Exit(USAGE)


# ----------------------------------------------------------------------- becoming others


def become(argv: Sequence[str]) -> NoReturn:
    """Replace this process by another program, which gets its streams, terminal and exit status.

    Raises:
        PlatformError: The program is not there.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    # Python ignores these two, and what is ignored stays ignored across exec: `yes | head` in a
    # node would not end.
    numbers = (signal.SIGPIPE, signal.SIGXFSZ)
    before = [signal.signal(number, signal.SIG_DFL) for number in numbers]
    try:
        os.execvp(argv[0], list(argv))
    except FileNotFoundError:
        raise PlatformError(
            f"{argv[0]} is not installed; 'mint doctor' says what is missing"
        ) from None
    finally:  # this process goes on, after all
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


# ---------------------------------------------------------------------------- completion


def complete_lab(incomplete: str) -> list[str]:
    """Names of the labs that are up."""
    # Whatever goes wrong here must not be printed into somebody's half-typed line.
    with contextlib.suppress(Exception):
        return [name for name in lab_class().names() if name.startswith(incomplete)]
    return []


def complete_node(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of nodes, with their lab's where several are up."""
    with contextlib.suppress(Exception):
        labs = [name] if (name := ctx.params.get("lab")) else lab_class().names()
        several = len(labs) > 1
        found = [
            f"{lab}/{node.name}" if several else node.name
            for lab in labs
            for node in connect(lab).nodes
        ]
        return [name for name in found if name.startswith(incomplete)]
    return []


# ------------------------------------------------------- arguments that several verbs take

LabArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="[LAB]",
        help="Name of a lab; may be left out while one is up.",
        autocompletion=complete_lab,
        show_default=False,
    ),
]
NodeArgument = Annotated[
    str,
    typer.Argument(
        metavar="NODE",
        help="Name of a node, or LAB/NODE.",
        autocompletion=complete_node,
        show_default=False,
    ),
]
LabOption = Annotated[
    str | None,
    typer.Option(
        "--lab",
        metavar="LAB",
        help="The node's lab; may be left out while one is up.",
        autocompletion=complete_lab,
        show_default=False,
    ),
]
CommandArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[-- CMD...]", help="The command; a login shell if left out.", show_default=False
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
