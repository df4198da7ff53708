# SPDX-License-Identifier: Apache-2.0
"""``mint logs``: what a node and its worker said."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from itertools import takewhile
from typing import TYPE_CHECKING, Annotated

import typer

from mint_vni.cli.common import JsonOption, LabOption, NodeArgument, find_node, print_json

if TYPE_CHECKING:
    from mint_vni import Node

LOOK_INTERVAL = 0.25  # seconds between looks for more
TAIL = 2000  # characters by which the end of what was printed is found again


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
            # The rest of a character or of a line's end that was cut in two is still to come.
            whole, before = text.rstrip("\r\ufffd"), self._seen.get(name, "")
            if before.startswith(whole):
                continue  # nothing new; or a part is missing now, where an agent does not answer
            new = _new_part(before, whole)
            self._seen[name] = whole
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


def _new_part(old: str, new: str) -> str:
    """What a text has that it had not before.

    A log goes on at its end; a guest's, which is several, one after the other, also in its middle;
    and one that is longer than its window loses its begin. One that is none of these was begun anew.
    """
    if new.startswith(old):
        return new[len(old) :]
    before, after = old.split("\n"), new.split("\n")
    inserted = _inserted(before, after)
    if inserted is not None:
        return inserted
    same = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(before, after, strict=False))))
    tail = "\n".join(before[same:])[-TAIL:]
    found = new.rfind(tail)
    return new if found < 0 else new[found + len(tail) :]


def _inserted(old: list[str], new: list[str]) -> str | None:
    """The lines that a text has besides those of another; None if it has not all of those.

    Args:
        old: Lines; the last one may be the begin of one.
        new: The same.
    """
    found: list[str] = []
    at = 0
    for number, line in enumerate(new):
        end = "\n" if number + 1 < len(new) else ""
        if at + 1 < len(old) and line == old[at] and end:
            at += 1
        elif at + 1 == len(old) and line.startswith(old[at]):
            found.append(line[len(old[at]) :] + end)
            at += 1
        else:
            found.append(line + end)
    return "".join(found) if at == len(old) else None
