# SPDX-License-Identifier: Apache-2.0
"""``mint down``: take a lab down."""

from __future__ import annotations

from typing import Annotated

import typer

from mint_vni.cli.common import LabArgument, connect, lab_class, note
from mint_vni.errors import LabStateError, MintError


def down(
    lab: LabArgument = None,
    every: Annotated[bool, typer.Option("--all", help="All labs that are up.")] = False,
) -> None:
    """Take labs down. What is not up is nothing to do, and no error.

    Raises:
        LabStateError: Several labs are up and none is named.
        MintError: A lab could not be taken down; with ``--all`` the others are, before.
    """
    if lab and every:
        raise typer.BadParameter(f"{lab} and --all are two answers")
    names = lab_class().names()
    if lab is None and not every and len(names) > 1:
        raise LabStateError(f"several labs are up: {', '.join(names)}; name one, or give --all")
    targets = [lab] if lab else names
    if not targets:
        note("no lab is up: nothing to do")
    failure: MintError | None = None
    for name in targets:
        try:
            _take_down(name)
        except MintError as error:
            failure = failure or error
    if failure:
        raise failure


def _take_down(name: str) -> None:
    if name not in lab_class().names():
        note(f"lab {name} is not up: nothing to do")
        return
    try:
        connect(name).down()
    except LabStateError:
        # Somebody else may have been quicker.
        if name in lab_class().names():
            raise
    note(f"lab {name} is down")
