# SPDX-License-Identifier: Apache-2.0
"""``mint kernel``: the kernels that guests boot: which there are, fetching them, trying them."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mint_vni.cli.common import JsonOption, console, demand_verb, note, print_json
from mint_vni.errors import PlatformError

if TYPE_CHECKING:
    from mint_vni.kernels import Kernel, Kind, Probe

app = typer.Typer(rich_markup_mode=None)


class KindName(StrEnum):
    """A kind of nodes that boot a kernel."""

    UML = "uml"
    QEMU = "qemu"


class PartName(StrEnum):
    """What can be installed."""

    UML = "uml"
    QEMU = "qemu"
    VIRTIOFSD = "virtiofsd"


@app.callback(invoke_without_command=True)
def _root(ctx: typer.Context) -> None:
    demand_verb(ctx)


# --------------------------------------------------------------------------------- list


@app.command("list", help="The kernels that are here, and what their probe boots showed.")
def list_(json: JsonOption = False) -> None:
    """Show what is there; boots nothing."""
    from mint_vni.kernels import KINDS, catalog, installed

    kernels = [kernel for kind in KINDS for kernel in installed(kind)]
    try:
        virtiofsd = catalog.virtiofsd()
    except PlatformError:
        virtiofsd = None
    if json:
        server = virtiofsd and {
            "path": str(virtiofsd.path),
            "version": virtiofsd.version,
            "origin": virtiofsd.origin,
        }
        shown = [described(kernel) for kernel in kernels]
        print_json({"version": 1, "kernels": shown, "virtiofsd": server})
        return
    rows = [_row(kernel) for kernel in kernels]
    if virtiofsd:
        origin = _short(virtiofsd.origin)
        rows.append(["virtiofsd", "", virtiofsd.version, origin, "", "for kind qemu"])
    if rows:
        console().print(_table(("KIND", "RELEASE", "VERSION", "FROM", "SIZE", "PROBE BOOT"), rows))
    for kind in KINDS:
        if not any(kernel.kind == kind for kernel in kernels):
            note(f"there is no kernel for nodes of kind {kind}; run 'mint kernel install {kind}'")


def _known(kernel: Kernel) -> list[Probe]:
    from mint_vni.kernels.model import METHODS
    from mint_vni.kernels.probe import remembered

    probes = (remembered(kernel, method) for method in METHODS[kernel.kind])
    return [probe for probe in probes if probe]


def described(kernel: Kernel, probes: list[Probe] | None = None) -> dict[str, Any]:
    """A kernel for programs.

    Args:
        kernel: The kernel.
        probes: Its probe boots; what is remembered if left out.
    """
    return {
        "kind": kernel.kind,
        "release": kernel.release,
        "version": kernel.version,
        "origin": kernel.origin,
        "image": str(kernel.image),
        "modules": str(kernel.modules),
        "bytes": kernel.size(),
        "probes": [probe.to_json() for probe in (_known(kernel) if probes is None else probes)],
    }


def _row(kernel: Kernel) -> list[str]:
    from mint_vni.observe.units import size

    return [
        *(kernel.kind, kernel.release, kernel.version, _short(kernel.origin), size(kernel.size())),
        _summary(_known(kernel)),
    ]


def _short(origin: str) -> str:
    """``Debian testing`` for ``http://deb.debian.org/debian testing``: the table has little room."""
    return f"Debian {origin.rsplit(maxsplit=1)[-1]}" if "://" in origin else origin


def _summary(probes: list[Probe]) -> str:
    """All of a kernel's probe boots in a few words; why one failed only if none went well."""
    good = [probe for probe in probes if probe.ok]
    if not good:
        return "\n".join(_sentence(probe) for probe in probes) or "not tried yet"
    bad = [f"not by {probe.method.upper()}" for probe in probes if not probe.ok]
    return ", ".join([*(_sentence(probe) for probe in good), *bad])


def _sentence(probe: Probe) -> str:
    by = "" if probe.method == "uml" else f" by {probe.method.upper()}"
    if probe.ok:
        return f"boots{by} in {probe.seconds:.1f} s"
    return f"does not boot{by}: {probe.reason}"


def _table(columns: tuple[str, ...], rows: list[list[str]]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


# ------------------------------------------------------------------------------ install


@app.command("install", help="Fetch what is missing from Debian's archive into your cache.")
def install(
    part: Annotated[
        list[PartName] | None,
        typer.Argument(
            metavar="[PART]...",
            help="uml, qemu (with virtiofsd) or virtiofsd; all if left out.",
            show_default=False,
        ),
    ] = None,
    upgrade: Annotated[
        bool, typer.Option("--upgrade", help="Fetch the newest, though there is one.")
    ] = False,
    suite: Annotated[
        str | None,
        typer.Option("--suite", metavar="SUITE", help="Of the archive, such as forky or sid."),
    ] = None,
) -> None:
    """Have kernels in the cache, each proven by a probe boot.

    Raises:
        PlatformError: One cannot be had, or does not boot here.
    """
    from mint_vni.kernels import KINDS, catalog, installed
    from mint_vni.kernels.install import installer

    parts = list(dict.fromkeys(part or [PartName.UML, PartName.QEMU]))
    if PartName.QEMU in parts and PartName.VIRTIOFSD not in parts:
        parts.append(PartName.VIRTIOFSD)
    progress = _Progress()
    with installer(progress) as do:
        for name in parts:
            got = do.install(name.value, upgrade=upgrade, suite=suite)
            progress.end()
            note(f"{name} {got.version} {'is installed' if got.fresh else 'is there'}: {got.path}")
    for kind in KINDS:
        if kind in parts and installed(kind):
            if kind == "qemu" and not catalog.qemu():
                note(f"QEMU itself is missing; run 'apt-get install {catalog.QEMU_PACKAGE}'")
                continue
            _prove(kind)


def _prove(kind: Kind) -> None:
    """Have a kind's kernels tried, if that was not done before; say which one is used."""
    from mint_vni.kernels import find, results

    kernel = find(kind)
    for probe in results(kernel):
        note(f"{kind} {kernel.version}: {_sentence(probe)}")


class _Progress:
    """Shows what is going on: a line each, and on a terminal the share that is done."""

    def __init__(self) -> None:
        self._last = ""
        self._shown = False

    def __call__(self, what: str, share: float | None) -> None:
        if share is None or what != self._last:
            self.end()
            self._last = what
            note(what)
        if share is not None and sys.stderr.isatty():
            sys.stderr.write(f"\r      {share:4.0%} ")
            sys.stderr.flush()
            self._shown = True

    def end(self) -> None:
        """Clear the share."""
        if self._shown:
            sys.stderr.write("\r           \r")
            self._shown = False


# -------------------------------------------------------------------------------- probe


@app.command("probe", help="Boot the kernels that are here, now, and remember which of them work.")
def probe(
    kind: Annotated[
        list[KindName] | None,
        typer.Argument(
            metavar="[KIND]...", help="uml or qemu; both if left out.", show_default=False
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Boot each kernel in each way.

    Raises:
        PlatformError: A kind has no kernel that boots.
    """
    from mint_vni.kernels import find, installed
    from mint_vni.kernels.model import METHODS
    from mint_vni.kernels.probe import probe as boot

    kinds: list[Kind] = [name.value for name in dict.fromkeys(kind or KindName)]
    shown = []
    for name in kinds:
        for kernel in installed(name):
            probes = [boot(kernel, method) for method in METHODS[name]]
            shown.append(described(kernel, probes))
            for made in [] if json else probes:
                _show(kernel, made)
    if json:
        print_json({"version": 1, "kernels": shown})
    for name in kinds:
        find(name)


def _show(kernel: Kernel, probe: Probe) -> None:
    lines = [f"{kernel.kind} {kernel.version} ({kernel.release}): {_sentence(probe)}"]
    if not probe.ok:
        lines += [f"    {line}" for line in probe.console]
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()
