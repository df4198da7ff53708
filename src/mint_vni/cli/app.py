# SPDX-License-Identifier: Apache-2.0
"""Puts the verbs together, and turns whatever ends one into an exit status.

====  ==============================================================================
  0   done
  2   wrong usage, or a lab file that cannot be (`LabFileError`)
3–6   as the error says, see `mint_vni.errors`
 70   a mistake of Mint VNI itself
128+  ended by that signal: 130 Ctrl-C, 141 nobody reads standard output, 143 SIGTERM
====  ==============================================================================

``mint exec``, ``mint ssh`` and ``mint console`` end with the status of what they ran.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Annotated, Protocol, cast, runtime_checkable

import typer

from mint_vni.cli.bench import app as bench_app
from mint_vni.cli.common import INTERRUPTS, USAGE, demand_verb, note
from mint_vni.cli.console import console
from mint_vni.cli.doctor import doctor
from mint_vni.cli.down import down
from mint_vni.cli.exec import exec_
from mint_vni.cli.gc import gc
from mint_vni.cli.kernel import app as kernel_app
from mint_vni.cli.logs import logs
from mint_vni.cli.ssh import ssh
from mint_vni.cli.status import status
from mint_vni.cli.up import up
from mint_vni.errors import MintError

INTERNAL = 70
SIGNALLED = 128

app = typer.Typer(
    name="mint",
    help="Independent Linuxes on one machine, joined by a shared-memory Ethernet interface.",
    epilog="Exit statuses and JSON shapes: docs/cli.md.",
    # Plain help: quicker than Rich's, and it survives a pipe.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("up", help="Bring a lab up; returns when every node is ready.")(up)
app.command("down", help="Take a lab down, wholly; safe to repeat.")(down)
app.command("status", help="Nodes, ports, traffic, drops and memory: live, never cached.")(status)
app.command("exec", help="Run a command in a node, not over the network.")(exec_)
app.command("ssh", help="Log in to a node, or run a command, through its sshd.")(ssh)
app.command("console", help="Join a guest's console; Ctrl-] leaves.")(console)
app.command("logs", help="What a node and its worker said.")(logs)
app.command("gc", help="Remove what a crashed run recorded as its own, nothing else.")(gc)
app.command("doctor", help="What this machine can and cannot do, each with its remedy.")(doctor)
app.add_typer(kernel_app, name="kernel", help="Kernels for guests: which, fetch, try.")
app.add_typer(bench_app, name="bench", help="Measure.")


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        sys.stdout.write(f"mint {version('mint-vni')}\n")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    ctx: typer.Context,
    _show: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    demand_verb(ctx)


@runtime_checkable
class _UsageProblem(Protocol):
    """What Typer raises for wrong usage; the classes themselves are not public."""

    exit_code: int

    def format_message(self) -> str: ...


def main(args: Sequence[str] | None = None) -> int:
    """Run a ``mint`` command line.

    Args:
        args: Its words without ``mint``; this process's own when left out.

    Returns:
        The exit status.
    """
    _open_streams()
    with _signals_interrupt() as received:
        status = _run(args)
    return SIGNALLED + received[0] if received and status == SIGNALLED + signal.SIGINT else status


def _run(args: Sequence[str] | None) -> int:
    try:
        result = typer.main.get_command(app)(args=args, prog_name="mint", standalone_mode=False)
        sys.stdout.flush()
    except SystemExit as end:
        # Typer and Rich both turn a broken pipe into this.
        if isinstance(end.__context__, BrokenPipeError):
            return _explain(end.__context__)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException as error:  # noqa: BLE001  # one line, whatever it is, and never a traceback
        return _explain(error)
    return result if isinstance(result, int) else 0


def _explain(error: BaseException) -> int:
    """Say what ended a verb, if it was no signal; returns the exit status."""
    if isinstance(error, BrokenPipeError):
        _nobody_reads()
        return SIGNALLED + signal.SIGPIPE
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return SIGNALLED + signal.SIGINT
    if isinstance(error, _UsageProblem):
        note(_usage_line(error))
        return USAGE
    if os.environ.get("MINT_DEBUG", "") not in {"", "0"}:
        traceback.print_exception(error)
    if isinstance(error, MintError):
        note(_one_line(str(error)))
        return error.exit_code
    what = _one_line(f"{type(error).__name__}: {error}").rstrip(": ")
    note(f"internal error: {what}; MINT_DEBUG=1 shows the traceback, please report it")
    return INTERNAL


def _usage_line(error: _UsageProblem) -> str:
    """What is wrong with a command line, and where to read on."""
    context = cast("typer.Context | None", getattr(error, "ctx", None))
    path = context.command_path if context else "mint"
    verb = path.rpartition(" ")[2]
    line = f"{verb}: " if verb != "mint" else ""
    line += _one_line(error.format_message()).rstrip(".")
    if verb in {"exec", "ssh"} and hasattr(error, "option_name"):
        return f"{line}; put '--' before the command: mint {verb} NODE -- CMD"
    return f"{line}; try '{path} --help'"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _nobody_reads() -> None:
    """Standard output is a pipe that nobody reads any more: be silent, at exit too."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def _open_streams() -> None:
    """Make sure that there is something to write to, whatever it can encode."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the caller: mint ... >&-
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        if hasattr(stream := getattr(sys, name), "reconfigure"):
            stream.reconfigure(errors="replace")


@contextmanager
def _signals_interrupt() -> Iterator[list[int]]:
    """Make SIGTERM and SIGHUP end a verb as Ctrl-C does, by undoing what it did.

    Yields:
        The signals that were received.
    """
    received: list[int] = []

    def interrupt(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        raise KeyboardInterrupt

    before = {n: handler for n in INTERRUPTS if (handler := signal.getsignal(n)) is not None}
    try:
        for number, handler in before.items():
            if number != signal.SIGINT and handler != signal.SIG_IGN:
                signal.signal(number, interrupt)
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
