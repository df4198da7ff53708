# SPDX-License-Identifier: Apache-2.0
"""``mint bench``: measurements, one sub-verb each."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from mint_vni.cli.common import demand_verb

app = typer.Typer(rich_markup_mode=None)

SizeOption = Annotated[
    list[int] | None,
    typer.Option("--size", min=14, max=65584, help="Bytes of a frame; may be repeated."),
]
LayoutOption = Annotated[
    list[str] | None,
    typer.Option("--layout", metavar="LAYOUT", help="A layout of the fabric; may be repeated."),
]
KindOption = Annotated[
    list[str] | None,
    typer.Option("--kind", metavar="KIND", help="Only nodes of this kind; may be repeated."),
]
RepetitionsOption = Annotated[
    int | None,
    typer.Option("--repetitions", min=1, max=1000, help="Measurements of each row."),
]
SecondsOption = Annotated[
    float | None,
    typer.Option("--seconds", min=0.01, max=3600, help="About how long one takes."),
]
CpusOption = Annotated[
    str | None,
    typer.Option("--cpus", metavar="LIST", help="CPUs to use, in order, as in 0,1."),
]
QuickOption = Annotated[
    bool, typer.Option("--quick", help="Few rows, short: shows that it works, no figures to use.")
]
FileOption = Annotated[
    str | None, typer.Option("--json", metavar="FILE", help="Write the results here, too.")
]


@app.callback(invoke_without_command=True)
def _root(ctx: typer.Context) -> None:
    demand_verb(ctx)


def _cpus(text: str | None) -> tuple[int, ...] | None:
    from mint_vni.lab.units import parse_cpu_list

    try:
        return tuple(parse_cpu_list(text)) if text else None
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--cpus") from None


def _run(name: str, json: str | None, cpus: str | None, **asked: Any) -> None:
    pinned = _cpus(cpus)
    from mint_vni.bench.parts import run_cli

    run_cli(name, json, cpus=pinned, **asked)


def _some(values: list[Any] | None) -> tuple[Any, ...] | None:
    return tuple(values) if values else None


@app.command("frames", help="The packet buffers alone, as the paper measured them.")
def frames(
    size: SizeOption = None,
    layout: LayoutOption = None,
    repetitions: RepetitionsOption = None,
    seconds: SecondsOption = None,
    cpus: CpusOption = None,
    quick: QuickOption = False,
    json: FileOption = None,
) -> None:
    """Measure sending frames from process to process.

    Raises:
        MintError: This machine lacks something, or a run failed.
    """
    _run(
        "frames",
        json,
        cpus,
        sizes=_some(size),
        layouts=_some(layout),
        repetitions=repetitions,
        seconds=seconds,
        quick=quick,
    )


@app.command("sockets", help="iperf3 between nodes, beside a veth pair.")
def sockets(
    kind: KindOption = None,
    repetitions: RepetitionsOption = None,
    seconds: SecondsOption = None,
    cpus: CpusOption = None,
    quick: QuickOption = False,
    json: FileOption = None,
) -> None:
    """Measure TCP and UDP between all kinds of nodes that can run here.

    Raises:
        MintError: This machine lacks something.
    """
    _run(
        "sockets",
        json,
        cpus,
        kinds=_some(kind),
        repetitions=repetitions,
        seconds=seconds,
        quick=quick,
    )


@app.command("latency", help="Round trips: frames, ping, TCP, UDP, doorbells.")
def latency(
    kind: KindOption = None,
    repetitions: RepetitionsOption = None,
    seconds: SecondsOption = None,
    cpus: CpusOption = None,
    quick: QuickOption = False,
    json: FileOption = None,
) -> None:
    """Measure how long an answer takes.

    Raises:
        MintError: This machine lacks something.
    """
    _run(
        "latency",
        json,
        cpus,
        kinds=_some(kind),
        repetitions=repetitions,
        seconds=seconds,
        quick=quick,
    )


@app.command("isolation", help="What a neighbour does to the traffic of two others.")
def isolation(
    layout: LayoutOption = None,
    repetitions: RepetitionsOption = None,
    seconds: SecondsOption = None,
    cpus: CpusOption = None,
    quick: QuickOption = False,
    json: FileOption = None,
) -> None:
    """Measure two nodes beside a busy, a flooding and a stalled one.

    Raises:
        MintError: This machine lacks something.
    """
    _run(
        "isolation",
        json,
        cpus,
        layouts=_some(layout),
        repetitions=repetitions,
        seconds=seconds,
        quick=quick,
    )


@app.command("memory", help="Memory of the packet buffers for 2 to 256 Linuxes.")
def memory(
    layout: LayoutOption = None,
    repetitions: RepetitionsOption = None,
    cpus: CpusOption = None,
    quick: QuickOption = False,
    json: FileOption = None,
) -> None:
    """Measure memory reserved and committed, and compute it beyond.

    Raises:
        MintError: This machine lacks something.
    """
    _run("memory", json, cpus, layouts=_some(layout), repetitions=repetitions, quick=quick)


@app.command("peers", help="The same over what one would use instead.")
def peers(
    repetitions: RepetitionsOption = None,
    seconds: SecondsOption = None,
    cpus: CpusOption = None,
    quick: QuickOption = False,
    json: FileOption = None,
) -> None:
    """Measure veth, a bridge, VDE, DPDK, local sockets, pipes, iceoryx2.

    Raises:
        MintError: This machine lacks something.
    """
    _run("peers", json, cpus, repetitions=repetitions, seconds=seconds, quick=quick)


@app.command("report", help="All parts, written into a folder.")
def report(
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="Made if it is not there.")],
    part: Annotated[
        list[str] | None,
        typer.Option("--part", metavar="PART", help="Only this part; may be repeated."),
    ] = None,
    repetitions: RepetitionsOption = None,
    seconds: SecondsOption = None,
    cpus: CpusOption = None,
    quick: QuickOption = False,
) -> None:
    """Run everything; write pages, plots and the raw results.

    Raises:
        MintError: This machine lacks something.
    """
    pinned = _cpus(cpus)
    from mint_vni.bench.report import run_cli

    run_cli(
        folder,
        parts=_some(part),
        repetitions=repetitions,
        seconds=seconds,
        cpus=pinned,
        quick=quick,
    )


@app.command("compare", help="What moved between two results, and whether beyond the noise.")
def compare(
    before: Annotated[str, typer.Argument(metavar="A.json", help="A result, or a report's.")],
    after: Annotated[str, typer.Argument(metavar="B.json", help="The later one.")],
    everything: Annotated[
        bool, typer.Option("--all", help="Also what did not move beyond the noise.")
    ] = False,
    json: FileOption = None,
) -> None:
    """Compare two results.

    Raises:
        BadParameter: One of them is no result.
    """
    from mint_vni.bench.compare import BadResult, run_cli

    try:
        run_cli(before, after, everything=everything, json_path=json)
    except BadResult as error:
        raise typer.BadParameter(str(error)) from None
