# SPDX-License-Identifier: Apache-2.0
"""``mint logs``: what a node and its worker said."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from mint_vni.cli.common import JsonOption, LabOption, NodeArgument, find_node, print_json

if TYPE_CHECKING:
    from mint_vni import Node

LOOK_INTERVAL = 0.25  # seconds between looks for more


def logs(
    node: NodeArgument,
    lab: LabOption = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with what is said, until Ctrl-C.")
    ] = False,
    source: Annotated[
        str | None,
        typer.Option(
            "--source", metavar="node|worker|sshd", help="One log alone.", show_default=False
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Print a node's logs, each under its name as ``tail`` does it.

    Raises:
        LabStateError: There is no such lab or node.
    """
    if follow and json:
        raise typer.BadParameter("--follow and --json do not go together")
    found, target = find_node(node, lab)
    texts = _read(target, source)
    if json:
        print_json({"version": 1, "lab": found.name, "node": target.name, "logs": texts})
        return
    printer = _Printer(headings=source is None)
    printer.print(texts)
    while follow:
        time.sleep(LOOK_INTERVAL)
        printer.print(_read(target, source))


def _read(node: Node, source: str | None) -> dict[str, str]:
    texts = node.logs()
    if source is None:
        return texts
    if source not in texts:
        raise typer.BadParameter(
            f"node {node.name} has no log {source!r}; it has {', '.join(texts)}"
        )
    return {source: texts[source]}


class _Printer:
    """Prints what is new in some texts, with a heading wherever the source changes."""

    def __init__(self, *, headings: bool) -> None:
        self._headings = headings
        self._last: str | None = None
        self._seen: dict[str, str] = {}

    def print(self, texts: Mapping[str, str]) -> None:
        for name, text in texts.items():
            before = self._seen.get(name, "")
            # A log that does not go on where it was has been begun anew.
            new = text.removeprefix(before)
            self._seen[name] = text
            if new:
                self._emit(name, new)
        sys.stdout.flush()

    def _emit(self, name: str, text: str) -> None:
        if self._headings and name != self._last:
            gap = "" if self._last is None else "\n"
            sys.stdout.write(f"{gap}==> {name} <==\n")
        self._last = name
        sys.stdout.write(text)
        if self._headings and not text.endswith("\n"):
            sys.stdout.write("\n")
