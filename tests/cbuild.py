# SPDX-License-Identifier: Apache-2.0
"""Compiles C programs of the tests together with the core, several ways.

Objects are kept in build/native-tests, under a name that hashes all they are made from, so that a
run without a change compiles nothing.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NATIVE = ROOT / "native"
TESTS = ROOT / "tests" / "native"
FUZZ = ROOT / "tests" / "fuzz"
CACHE = Path(os.environ.get("MINT_NATIVE_CACHE", ROOT / "build" / "native-tests"))
COMPILE_DEADLINE = 120.0
FLAGS = (
    *("-std=gnu11", "-D_GNU_SOURCE", "-fno-strict-aliasing", "-pthread"),
    *(f"-I{place}" for place in (NATIVE, TESTS, FUZZ)),
    "-DMINT_TEST",  # native/pool_test.h: places where a test may have its process die
    *("-g", "-O1", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all"),
    *("-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-Wpointer-arith", "-Wcast-qual"),
    *("-Wstrict-prototypes", "-Werror"),
)


@dataclass(frozen=True)
class Build:
    """One way to compile everything.

    Attributes:
        name: a directory of its own.
        flags: besides `FLAGS`.
        compiler: gcc or clang.
        link: flags for linking alone.
    """

    name: str
    flags: tuple[str, ...]
    compiler: str = "gcc"
    link: tuple[str, ...] = ()


def core_sources() -> list[Path]:
    """The sources of the core: those without a main()."""
    main = re.compile(r"^int main\(", re.MULTILINE)
    return [c for c in sorted(NATIVE.glob("*.c")) if not main.search(c.read_text())]


@functools.cache
def _headers_hash() -> str:
    headers = sorted(h for place in (NATIVE, TESTS, FUZZ) for h in place.rglob("*.h"))
    # A test may include a source to reach what is static in it.
    included = sorted(NATIVE.rglob("*.c"))
    return hashlib.sha256(b"".join(h.read_bytes() for h in [*headers, *included])).hexdigest()


@functools.cache
def compiler(name: str) -> tuple[str, str]:
    """A compiler and what it says about its version."""
    path = shutil.which(name)
    if path is None:
        pytest.fail(f"there is no {name}: run make setup")
    version = subprocess.run([path, "--version"], capture_output=True, text=True, check=True)
    return path, version.stdout


def _run(args: list[str], made: Path) -> None:
    """Compile or link to a private name, then rename, so that runs side by side do not meet."""
    private = made.with_name(f".{made.name}.{os.getpid()}")
    try:
        done = subprocess.run(
            [*args, "-o", str(private)],
            capture_output=True,
            text=True,
            timeout=COMPILE_DEADLINE,
            check=False,
        )
        assert done.returncode == 0, f"{' '.join(args)}\n{done.stderr}"
        private.rename(made)
    finally:
        private.unlink(missing_ok=True)


def compile_one(source: Path, build: Build) -> Path:
    """The object of one source."""
    path, version = compiler(build.compiler)
    flags = [*FLAGS, *build.flags]
    what = "\n".join([version, *flags, _headers_hash(), source.read_text()])
    key = hashlib.sha256(what.encode()).hexdigest()[:16]
    made = CACHE / build.name / f"{source.stem}-{key}.o"
    if not made.exists():
        made.parent.mkdir(parents=True, exist_ok=True)
        for old in made.parent.glob(f"{source.stem}-{'[0-9a-f]' * 16}.*"):
            old.unlink(missing_ok=True)
        _run([path, *flags, "-c", str(source)], made)
    return made


@functools.cache
def core(build: Build) -> tuple[Path, ...]:
    """The objects of the core."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return tuple(pool.map(lambda source: compile_one(source, build), core_sources()))


def program(source: Path, build: Build) -> Path:
    """A program of one source and the core; what the source defines itself is not taken from it."""
    test = compile_one(source, build)
    objects = core(build)
    key = hashlib.sha256("".join(str(c) for c in objects).encode()).hexdigest()[:8]
    made = test.with_suffix(f".{key}")
    if not made.exists():
        archive = made.with_name(f"{made.name}.a")
        archive.unlink(missing_ok=True)
        subprocess.run(["ar", "rcs", archive, *objects], check=True, timeout=COMPILE_DEADLINE)
        flags = (*build.flags, *build.link, "-pthread")
        _run([compiler(build.compiler)[0], *flags, str(test), str(archive)], made)
        archive.unlink()
    return made


@functools.cache
def fixed_addresses() -> tuple[str, ...]:
    """A prefix that turns address randomisation off, where the machine lets us.

    The sanitizers of gcc 12 and 13 keep their shadow where a kernel with vm.mmap_rnd_bits=32 puts a
    program now and then, and die with "unexpected memory mapping".
    """
    setarch = shutil.which("setarch")
    if setarch is None:
        return ()
    prefix = (setarch, "-R")
    works = subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode == 0
    return prefix if works else ()
