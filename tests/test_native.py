# SPDX-License-Identifier: Apache-2.0
"""Runs the C tests: each tests/native/test_*.c is a program that ends with status 0.

Each is compiled with the core under the address and undefined-behaviour sanitizers, warnings as
errors, and run with a deadline. A file says by comments what else it wants:

    /* tsan: yes */          once more under the thread sanitizer
    /* deadline: 300 s */    more time than `DEADLINE`

Objects are kept in build/native-tests, under a name that hashes all they are made from, so that a
run without a change compiles nothing.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import shutil
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NATIVE = ROOT / "native"
TESTS = ROOT / "tests" / "native"
CACHE = Path(os.environ.get("MINT_NATIVE_CACHE", ROOT / "build" / "native-tests"))
DEADLINE = 120.0
COMPILE_DEADLINE = 120.0
FLAGS = (
    *("-std=gnu11", "-D_GNU_SOURCE", f"-I{NATIVE}", f"-I{TESTS}", "-fno-strict-aliasing"),
    "-DMINT_TEST",  # native/pool_test.h: places where a test may have its process die
    *("-g", "-O1", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all", "-pthread"),
    *("-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-Wpointer-arith", "-Wcast-qual"),
    *("-Wstrict-prototypes", "-Werror"),
)


@dataclass(frozen=True)
class Build:
    """One way to compile everything."""

    name: str
    flags: tuple[str, ...]


ADDRESS = Build("asan-ubsan", ("-fsanitize=address,undefined",))
# gcc warns that it does not model atomic_thread_fence(). The core's fences order only its sleep
# flags; what a race could touch is ordered by acquire and release, which are modelled.
THREAD = Build("tsan", ("-fsanitize=thread", "-Wno-tsan"))


def cases() -> list[object]:
    """Each C test with each build that it wants."""
    found: list[object] = []
    for source in sorted(TESTS.glob("test_*.c")):
        builds = [ADDRESS, THREAD] if _says(source, r"tsan:\s*yes") else [ADDRESS]
        found += [pytest.param(source, b, id=f"{source.stem}-{b.name}") for b in builds]
    return found


def _says(source: Path, pattern: str) -> re.Match[str] | None:
    return re.search(rf"/\*\s*{pattern}\s*\*/", source.read_text())


def _core() -> list[Path]:
    """The sources of the core: those without a main()."""
    main = re.compile(r"^int main\(", re.MULTILINE)
    return [c for c in sorted(NATIVE.glob("*.c")) if not main.search(c.read_text())]


@functools.cache
def _headers_hash() -> str:
    headers = sorted([*NATIVE.rglob("*.h"), *TESTS.glob("*.h")])
    # A test may include a source to reach what is static in it.
    included = sorted(NATIVE.rglob("*.c"))
    return hashlib.sha256(b"".join(h.read_bytes() for h in [*headers, *included])).hexdigest()


@functools.cache
def _compiler() -> tuple[str, str]:
    """The compiler and what it says about its version."""
    gcc = shutil.which("gcc")
    if gcc is None:
        pytest.fail("there is no gcc: run make setup")
    version = subprocess.run([gcc, "--version"], capture_output=True, text=True, check=True)
    return gcc, version.stdout


def _run_compiler(args: list[str], made: Path) -> None:
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


def _object(source: Path, build: Build) -> Path:
    gcc, version = _compiler()
    flags = [*FLAGS, *build.flags]
    what = "\n".join([version, *flags, _headers_hash(), source.read_text()])
    key = hashlib.sha256(what.encode()).hexdigest()[:16]
    made = CACHE / build.name / f"{source.stem}-{key}.o"
    if not made.exists():
        made.parent.mkdir(parents=True, exist_ok=True)
        for old in made.parent.glob(f"{source.stem}-{'[0-9a-f]' * 16}.*"):
            old.unlink(missing_ok=True)
        _run_compiler([gcc, *flags, "-c", str(source)], made)
    return made


@functools.cache
def _core_objects(build: Build) -> tuple[Path, ...]:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return tuple(pool.map(lambda source: _object(source, build), _core()))


def _program(source: Path, build: Build) -> Path:
    test = _object(source, build)
    core = _core_objects(build)
    key = hashlib.sha256("".join(str(c) for c in core).encode()).hexdigest()[:8]
    made = test.with_suffix(f".{key}")
    if not made.exists():
        archive = made.with_name(f"{made.name}.a")
        archive.unlink(missing_ok=True)
        # An archive, so that a test which includes a source takes the place of its object.
        subprocess.run(["ar", "rcs", archive, *core], check=True, timeout=COMPILE_DEADLINE)
        _run_compiler([_compiler()[0], *build.flags, "-pthread", str(test), str(archive)], made)
        archive.unlink()
    return made


@functools.cache
def _fixed_addresses() -> tuple[str, ...]:
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


def _run(program: Path, deadline: float, cwd: Path) -> tuple[int | None, str]:
    """Run a program and all it starts.

    Returns:
        Its exit status (None: it missed the deadline and was ended) and what it printed.
    """
    environment = os.environ | {
        "ASAN_OPTIONS": "detect_leaks=1:detect_stack_use_after_return=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "TSAN_OPTIONS": "halt_on_error=1:second_deadlock_stack=1",
    }
    with subprocess.Popen(
        [*_fixed_addresses(), str(program)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        cwd=cwd,
        env=environment,
        start_new_session=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=deadline)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return None, process.communicate()[0]
        return process.returncode, output


def test_there_are_c_tests() -> None:
    assert cases(), f"no {TESTS}/test_*.c: the parametrised test below would pass by being empty"


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("source", "build"), cases())
def test_c(source: Path, build: Build, tmp_path: Path) -> None:
    wanted = _says(source, r"deadline:\s*(\d+)\s*s")
    deadline = float(wanted.group(1)) if wanted else DEADLINE
    status, output = _run(_program(source, build), deadline, tmp_path)
    assert status is not None, f"not done after {deadline:.0f} s; it printed:\n{output}"
    assert status == 0, f"status {status}; it printed:\n{output}"
