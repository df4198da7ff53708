# SPDX-License-Identifier: Apache-2.0
"""Runs the C tests: each tests/native/test_*.c is a program that ends with status 0.

Each is compiled with the core under the address and undefined-behaviour sanitizers, warnings as
errors, and run with a deadline. A file says by comments what else it wants:

    /* tsan: yes */          once more under the thread sanitizer
    /* deadline: 300 s */    more time than `DEADLINE`
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

import cbuild
from cbuild import TESTS, Build

DEADLINE = 120.0

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
        [*cbuild.fixed_addresses(), str(program)],
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
    status, output = _run(cbuild.program(source, build), deadline, tmp_path)
    assert status is not None, f"not done after {deadline:.0f} s; it printed:\n{output}"
    assert status == 0, f"status {status}; it printed:\n{output}"
