# SPDX-License-Identifier: Apache-2.0
"""Puts kernels, and what belongs to them, into the cache.

What is installed appears in one step, by a rename, or not at all. One installation runs at a time;
a second one waits, and then finds what the first one brought. After an error, Ctrl-C or SIGTERM
nothing is left, with one exception: where the archive stopped answering, the packages that did come
are kept in ``download/``, and the next attempt goes on from there. What kill -9 leaves is removed by
the next installation.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from mint_vni.errors import PlatformError
from mint_vni.kernels import cache, catalog, elf, host, sources
from mint_vni.kernels.archive import Archive, Package, Report, Unreachable
from mint_vni.kernels.sources import Host, read_host

#: Where the newest packages are; the second one has what the first one lacks for a while.
NEWEST = ("testing", "unstable")
_DEADLINE = 300.0
_SPARE = 64 << 20  # bytes to be left on the disk


@dataclass(frozen=True)
class Recipe:
    """How one thing is made of packages.

    Attributes:
        package: The package to begin with.
        own_release: Whether it is taken from this machine's own release, not from the newest.
        wanted: Whether another package, from the dependencies, belongs to it.
        collect: Makes the directory for the cache out of the unpacked packages; returns the release
            of the kernel, or nothing.
    """

    package: str
    own_release: bool
    wanted: Callable[[str], bool]
    collect: Callable[[Path, Path], str]


@dataclass(frozen=True)
class Installed:
    """What an installation came to.

    Attributes:
        name: ``uml``, ``qemu`` or ``virtiofsd``.
        path: Its directory, or what was there already.
        version: Of its package.
        fresh: Whether it is new.
    """

    name: str
    path: Path
    version: str
    fresh: bool


def _collect_uml(root: Path, target: Path) -> str:
    elf.take(root, "usr/bin/linux.uml", target / "linux")
    return _move_modules(root / "usr/lib/uml/modules", target)


def _collect_virtiofsd(root: Path, target: Path) -> str:
    elf.take(root, "usr/libexec/virtiofsd", target / "virtiofsd")
    return ""


def _collect_qemu(root: Path, target: Path) -> str:
    # Debian 12 and 13 have all in one package, /boot and /lib; later there are several, all in /usr.
    places = [root / "usr/lib/modules", root / "lib/modules"]
    release = _move_modules(next((p for p in places if p.is_dir()), places[0]), target)
    inside = target / "lib/modules" / release / "vmlinuz"
    outside = root / "boot" / f"vmlinuz-{release}"
    shutil.move(inside if inside.is_file() else outside, target / "vmlinuz")
    return release


def _move_modules(modules: Path, target: Path) -> str:
    """Move ``RELEASE/`` with a kernel's modules; returns the release."""
    (release,) = os.listdir(modules)
    (target / "lib" / "modules").mkdir(parents=True, exist_ok=True)
    shutil.move(modules / release, target / "lib" / "modules" / release)
    return release


def _is_library(name: str) -> bool:
    return name.startswith("lib") and "gconv" not in name


RECIPES: dict[str, Recipe] = {
    "uml": Recipe("user-mode-linux", False, _is_library, _collect_uml),
    "qemu": Recipe(
        "linux-image-cloud-amd64",
        True,
        lambda name: name.startswith("linux-") and name.endswith("-cloud-amd64"),
        _collect_qemu,
    ),
    "virtiofsd": Recipe("virtiofsd", False, _is_library, _collect_virtiofsd),
}


class Installer:
    """Installs one thing after another; made by `installer`."""

    def __init__(self, report: Report, etc: Path, lock: int) -> None:
        self._report = report
        self._etc = etc
        self._lock = lock
        self._host: Host | None = None
        self._archives: dict[tuple[str, ...], Archive] = {}

    def install(self, name: str, *, upgrade: bool = False, suite: str | None = None) -> Installed:
        """Have a thing in the cache.

        Args:
            name: A key of `RECIPES`.
            upgrade: Look for a newer one even if there is one.
            suite: Of the archive, instead of the one that the recipe says.

        Raises:
            Unreachable: The archive does not answer; what came is kept for the next attempt.
            PlatformError: It cannot be had; nothing was left.
        """
        catalog.demand_machine("uml" if name == "uml" else "qemu")
        present = _present(name)
        if present and not upgrade and not suite:
            return present
        self._host = self._host or read_host(self._etc)
        for program in ("apt-get", "dpkg-deb"):
            host.need(program, "apt" if program == "apt-get" else "dpkg")
        try:
            return self._fetch(name, suite)
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise _full(cache.directory(), error.strerror or "") from None
            raise PlatformError(
                f"{name} cannot be put into {cache.directory()} ({error}); "
                "name another directory in MINT_CACHE_DIR"
            ) from None

    def _fetch(self, name: str, suite: str | None) -> Installed:
        recipe = RECIPES[name]
        archive, package = self._look(recipe, suite)
        packages = [package, *_belonging(archive, package, recipe)]
        # The kernel of a package that only depends on it counts.
        version = package.version
        target = cache.directory() / name / version.replace(":", "%3a")
        if target.is_dir():
            return Installed(name, target, version, fresh=False)
        need = sum(p.size + 2 * p.unpacked for p in packages) + _SPARE
        if (free := shutil.disk_usage(cache.directory()).free) < need:
            raise _full(cache.directory(), f"{free >> 20} MiB free, {need >> 20} MiB wanted")
        files = archive.download(packages)
        self._report(f"unpacking {package.name} {version}", None)
        with _in_one_step(target) as fresh:
            root = fresh / "root"
            root.mkdir()
            for file in files:
                _unpack(file, root)
            try:
                release = recipe.collect(root, fresh)
            except (FileNotFoundError, ValueError) as error:
                raise PlatformError(
                    f"{package.name} {version} from {archive.origin} is not made up as Mint VNI "
                    f"knows it ({error}); try another suite: mint kernel install --suite SUITE"
                ) from None
            shutil.rmtree(root)
            record = {
                "version": version,
                "release": release,
                "origin": archive.origin,
                "packages": [
                    {"name": p.name, "version": p.version, "sha256": p.sha256} for p in packages
                ],
                "installed": datetime.now().astimezone().isoformat(timespec="seconds"),
            }
            (fresh / "kernel.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
        return Installed(name, target, version, fresh=True)

    def _look(self, recipe: Recipe, suite: str | None) -> tuple[Archive, Package]:
        """The archive, among those to be looked into, that has a recipe's package."""
        choices: list[tuple[str, ...]] = [(suite,)] if suite else [(name,) for name in NEWEST]
        if recipe.own_release and not suite:
            choices = [()]
        archive: Archive | None = None
        for suites in choices:
            archive = self._archive(suites)
            if package := archive.package(recipe.package):
                return archive, package
        assert archive is not None
        raise PlatformError(
            f"{archive.origin} has no package {recipe.package}; "
            "try another suite: mint kernel install --suite SUITE"
        )

    def _archive(self, suites: tuple[str, ...]) -> Archive:
        """The archive with some suites, its index read; with none, this machine's own release."""
        assert self._host is not None
        if suites not in self._archives:
            if suites:
                places = [(self._host.base, suites)]
            else:
                places = [(source, source.suites) for source in self._host.own if source.suites]
            base = _downloads() / ("-".join(suites).replace("/", "_") or "own")
            archive = Archive(base, places, self._report, (self._lock,))
            archive.update()
            self._archives[suites] = archive
        return self._archives[suites]


@contextlib.contextmanager
def installer(report: Report, etc: Path | None = None) -> Iterator[Installer]:
    """Hold the cache and install into it.

    Args:
        report: Told what is going on; with None for the share that is done, something new begins.
        etc: The directory with ``os-release`` and ``apt``; the system's if left out.

    Raises:
        PlatformError: The cache cannot be written.
    """
    with cache.locked(lambda: report("waiting for another installation", None)) as lock:
        _clear_leftovers()
        keep = False
        try:
            yield Installer(report, etc or sources.ETC, lock)
        except Unreachable:
            keep = any(_downloads().glob("*/packages/*"))
            raise
        finally:
            if not keep:
                shutil.rmtree(_downloads(), ignore_errors=True)


def _downloads() -> Path:
    return cache.directory() / "download"


def _present(name: str) -> Installed | None:
    """What need not be installed, since it is there: in the cache or, if it serves, the system's."""
    if name == "virtiofsd":
        try:
            program = catalog.virtiofsd()
        except PlatformError:
            return None
        return Installed(name, program.directory or program.path, program.version, fresh=False)
    from mint_vni.kernels.probe import result

    for kernel in catalog.installed("uml" if name == "uml" else "qemu"):
        # The system's own is enough where it boots; a fetched one that does not is not improved by
        # being fetched again.
        if kernel.origin != catalog.SYSTEM or result(kernel, "uml").ok:
            return Installed(
                name, kernel.directory or kernel.image.parent, kernel.version, fresh=False
            )
    return None


def _belonging(archive: Archive, package: Package, recipe: Recipe) -> list[Package]:
    """The further packages of a recipe, from the dependencies of the first and of these."""
    found: dict[str, Package] = {}
    wanted = list(package.depends)
    while wanted:
        name = wanted.pop(0)
        if name in found or not recipe.wanted(name):
            continue
        if other := archive.package(name):
            found[name] = other
            wanted += other.depends
    return list(found.values())


@contextlib.contextmanager
def _in_one_step(target: Path) -> Iterator[Path]:
    """A directory beside the target that becomes the target at the end, or vanishes."""
    fresh = target.with_name(f".new-{target.name}")
    try:
        fresh.mkdir(mode=0o755, parents=True)
        yield fresh
        # On disk before it has its name: after a power cut there is no half of a kernel.
        _sync(fresh)
        fresh.rename(target)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        with contextlib.suppress(OSError):
            fresh.parent.rmdir()  # if it is empty
        raise


def _sync(path: Path) -> None:
    try:
        done = _run("sync", "-f", str(path))
        why = _reason(done)
    except subprocess.TimeoutExpired:
        why = f"not within {_DEADLINE:.0f} s"
    if why:
        raise PlatformError(
            f"what was unpacked cannot be brought to the disk with {path.parent} ({why}); repeat, and "
            "if it stays so, check that disk, or name another directory in MINT_CACHE_DIR"
        )


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        env={**os.environ, "LC_ALL": "C"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_DEADLINE,
        check=False,
    )


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    """Why a program failed, in its own words; empty if it did not."""
    if not done.returncode:
        return ""
    said = done.stderr.strip().splitlines()
    return said[0] if said else f"exit status {done.returncode}"


def _clear_leftovers() -> None:
    """Remove what an installation that was killed left; only the lock's holder may."""
    for name in RECIPES:
        for path in (cache.directory() / name).glob(".new-*"):
            shutil.rmtree(path, ignore_errors=True)


def _unpack(file: Path, root: Path) -> None:
    try:
        done = _run("dpkg-deb", "-x", str(file), str(root))
    except subprocess.TimeoutExpired:
        raise PlatformError(
            f"{file.name} is not unpacked within {_DEADLINE:.0f} s; repeat when the machine has less "
            "to do, or name a directory on a faster disk in MINT_CACHE_DIR"
        ) from None
    if why := _reason(done):
        if "No space left" in done.stderr or "quota" in done.stderr:
            raise _full(root, why)
        raise PlatformError(
            f"{file.name} cannot be unpacked ({why}); repeat, and if it stays so, choose another "
            "mirror"
        )


def _full(path: Path, why: str) -> PlatformError:
    return PlatformError(
        f"the disk with {path} is full ({why}); make room there, or name another directory in "
        "MINT_CACHE_DIR"
    )
