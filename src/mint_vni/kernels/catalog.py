# SPDX-License-Identifier: Apache-2.0
"""Which kernels there are: in the cache, and the distribution's own User-Mode Linux."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path

from mint_vni.errors import PlatformError
from mint_vni.kernels import cache, host
from mint_vni.kernels.model import Kernel, Kind, Program

IMAGES: dict[Kind, str] = {"uml": "linux", "qemu": "vmlinuz"}
MACHINE = "x86_64"
QEMU = "qemu-system-x86_64"
QEMU_PACKAGE = "qemu-system-x86"
BY_HAND = "put there by hand"
SYSTEM = "this system"
_UML_NAMES = ("linux.uml", "linux")
_UML_MODULES = Path("/usr/lib/uml/modules")
_VIRTIOFSD_PLACES = ("/usr/libexec", "/usr/lib/qemu", "/usr/lib")


def demand_machine(kind: str) -> None:
    """Refuse where no kernel of a kind can run, whatever were installed.

    Raises:
        PlatformError: This machine has another architecture.
    """
    machine = platform.machine()
    if machine != MACHINE:
        why = {
            "uml": "User-Mode Linux exists for x86 alone",
            "qemu": f"only {MACHINE} guests on {MACHINE} hosts were made to work so far",
        }
        raise PlatformError(
            f"nodes of kind {kind} need an {MACHINE} host, this one is {machine} "
            f"({why.get(kind, why['qemu'])}); use nodes of kind netns here"
        )


def installed(kind: Kind) -> list[Kernel]:
    """The kernels of a kind, newest first; whether they boot is another question, see `probe`."""
    found = [
        kernel
        for base in cache.directories()
        for path in _subdirectories(base / kind)
        if (kernel := _in_cache(kind, path))
    ]
    if kind == "uml" and (own := _distribution_uml()):
        found.append(own)
    return sorted(found, key=lambda kernel: kernel.order, reverse=True)


def _subdirectories(path: Path) -> Iterator[Path]:
    try:
        names = sorted(os.listdir(path))
    except OSError:
        return
    # What begins with a dot is an installation that was cut off.
    yield from (path / name for name in names if not name.startswith("."))


def _in_cache(kind: Kind, path: Path) -> Kernel | None:
    image = path / IMAGES[kind]
    if not image.is_file():
        return None
    said = cache.read_json(path / "kernel.json") or {}
    modules = next(_subdirectories(path / "lib" / "modules"), None)
    release = modules.name if modules else str(said.get("release", path.name))
    return Kernel(
        kind=kind,
        version=str(said.get("version", path.name)),
        release=release,
        image=image,
        modules=modules or path / "lib" / "modules" / release,
        directory=path if kind == "uml" else None,
        origin=str(said.get("origin", BY_HAND)),
    )


def _distribution_uml() -> Kernel | None:
    """Debian's package user-mode-linux, or another's that is in PATH."""
    for name in _UML_NAMES:
        path = host.which(name)
        # The second name is a likely one for something else.
        release = host.first_line([path, "--version"]) if path else ""
        if path and re.fullmatch(r"\d+\.\d+\S*", release):
            version = host.first_line(["dpkg-query", "-W", "-f", "${Version}", "user-mode-linux"])
            modules = _UML_MODULES / release
            return Kernel("uml", version or release, release, Path(path), modules, None, SYSTEM)
    return None


def qemu() -> str | None:
    """The path of QEMU; None if it is not installed."""
    return host.which(QEMU)


def virtiofsd() -> Program:
    """The file server that lets a QEMU guest see the host's files.

    That is the one in Rust, the system's before the cache's. The older one in C, in Debian 12, wants
    root or a user namespace.

    Raises:
        PlatformError: There is none.
    """
    for place in _VIRTIOFSD_PLACES:
        path = Path(place, "virtiofsd")
        if path.is_file() and (version := _rust_version(path)):
            return Program(path, None, version, SYSTEM)
    found = [
        path / "virtiofsd"
        for base in cache.directories()
        for path in _subdirectories(base / "virtiofsd")
        if (path / "virtiofsd").is_file()
    ]
    if not found:
        demand_machine("qemu")
        raise PlatformError(
            "there is no virtiofsd of the kind that runs without root (version 1 and later); "
            "run 'mint kernel install virtiofsd'"
        )
    newest = max(found, key=lambda path: [int(n) for n in re.findall(r"\d+", path.parent.name)])
    said = cache.read_json(newest.with_name("kernel.json")) or {}
    return Program(
        path=newest,
        directory=newest.parent,
        version=str(said.get("version", newest.parent.name)),
        origin=str(said.get("origin", BY_HAND)),
    )


def _rust_version(path: Path) -> str:
    """``1.14.0``; empty for the one in C, which says ``virtiofsd version 7.2.22 (Debian …``."""
    match = re.fullmatch(r"virtiofsd (\d+\.\S+)", host.first_line([str(path), "--version"]))
    return match.group(1) if match else ""
