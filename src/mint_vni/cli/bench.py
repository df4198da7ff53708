# SPDX-License-Identifier: Apache-2.0
"""``mint bench``: measurements, one sub-verb each."""

from __future__ import annotations

from typing import Annotated

import typer

from mint_vni.cli.common import demand_verb

app = typer.Typer(rich_markup_mode=None)


@app.callback(invoke_without_command=True)
def _root(ctx: typer.Context) -> None:
    demand_verb(ctx)


@app.command("frames", help="The packet buffers alone, as the paper measured them.")
def frames(
    size: Annotated[
        list[int] | None,
        typer.Option("--size", min=14, max=65584, help="Bytes of a frame; may be repeated."),
    ] = None,
    layout: Annotated[
        list[str] | None,
        typer.Option(
            "--layout", metavar="LAYOUT", help="per-channel, shared or pooled; may be repeated."
        ),
    ] = None,
    repetitions: Annotated[
        int,
        typer.Option("--repetitions", min=1, max=1000, help="Runs of which to show the median."),
    ] = 5,
    seconds: Annotated[
        float, typer.Option("--seconds", min=0.01, max=3600, help="About how long a run takes.")
    ] = 1.0,
    cpus: Annotated[
        str | None,
        typer.Option("--cpus", metavar="LIST", help="CPUs to pin the processes to, as in 0,1."),
    ] = None,
    json: Annotated[
        str | None, typer.Option("--json", metavar="FILE", help="Write the results here, too.")
    ] = None,
) -> None:
    """Measure sending frames from one process to another.

    Raises:
        MintError: This machine lacks something, or a run failed.
    """
    from mint_vni.lab.units import parse_cpu_list

    try:
        pinned = parse_cpu_list(cpus) if cpus else None
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--cpus") from None
    from mint_vni.bench.frames import run_cli

    run_cli(
        json,
        sizes=tuple(size) if size else None,
        layouts=tuple(layout) if layout else None,
        repetitions=repetitions,
        seconds=seconds,
        cpus=pinned,
    )
