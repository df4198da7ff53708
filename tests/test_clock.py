# SPDX-License-Identifier: Apache-2.0
"""The wall clock steps, by years, while labs start, run and end; nobody waits longer or shorter.

The machine's clock is left alone: tests/clock/step.c gives the processes of a lab, by LD_PRELOAD,
another one. Workers start with an empty environment and do not get it; they look at the wall clock for
nothing but their log.
"""

from __future__ import annotations

import mmap
import os
import re
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

import cbuild
import labs
from labs import mint, ping, wait_for
from mint_vni.lab import Lab
from test_attack_live import stream
from test_lab_faults import is_back, worker

YEAR_S = 365 * 86_400
STEPS = (10 * YEAR_S, -10 * YEAR_S, 3600, -3600, 0)
SOON_S = 10.0  # what takes a second takes no longer when the clock steps

Step = Callable[[int], None]


@pytest.fixture
def step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Step]:
    """Set how far the clock of what is started from now on, and stays, is off: seconds."""
    library, offset = tmp_path / "step.so", tmp_path / "offset"
    compiler, _ = cbuild.compiler("gcc")
    source = cbuild.ROOT / "tests" / "clock" / "step.c"
    subprocess.run([compiler, "-O2", "-shared", "-fPIC", source, "-o", library], check=True)
    offset.write_bytes(bytes(8))
    monkeypatch.setenv("LD_PRELOAD", str(library))
    monkeypatch.setenv("MINT_TEST_CLOCK", str(offset))
    with offset.open("r+b") as file, mmap.mmap(file.fileno(), 8) as shared:

        def set_offset(seconds: int) -> None:
            shared[:] = struct.pack("=q", seconds)

        yield set_offset


def years_in_log(lab: Lab) -> set[int]:
    """Of the times in the supervisor's log."""
    text = (labs.lab_dir(lab.name) / "log" / "supervisor.log").read_text()
    return {int(year) for year in re.findall(r"^(\d{4})-", text, re.MULTILINE)}


def test_a_running_lab_does_not_notice(machine: None, step: Step) -> None:
    """Its worker is replaced, ports come and go, commands are answered, and no frame is lost."""
    now = datetime.now(UTC).year
    victims = "cdefg"  # one for each: who is killed again soon is restarted later, on purpose
    with Lab.up(labs.source("clock", "ab" + victims)) as lab:
        with stream(lab, "a", "b") as got:
            for victim, seconds in zip(victims, STEPS, strict=True):
                step(seconds)
                begin = time.monotonic()
                labs.kill(worker(lab, victim))
                wait_for("the worker", lambda: is_back(lab, victim, 1), timeout=SOON_S)  # noqa: B023
                with lab.attach("probe") as port:
                    port.send(b"\xff" * 6 + bytes.fromhex(port.mac.replace(":", "")) + bytes(50))
                assert mint("status", lab.name).returncode == 0
                assert mint("gc").returncode == 0
                ping(lab["a"], victim)
                assert time.monotonic() - begin < SOON_S
        assert got["got"] == got["sent"]
        assert (got["late"], got["corrupted"]) == (0, 0)
        assert {now + 10, now - 10} <= years_in_log(lab), "the clock did not step"


@pytest.mark.parametrize("seconds", [10 * YEAR_S, -10 * YEAR_S])
def test_a_lab_starts_and_ends_across_a_step(machine: None, step: Step, seconds: int) -> None:
    """Up before, adopted and down after it; then up again, in the past of its own files."""
    lab = Lab.up(labs.source("clock", "ab"))
    try:
        step(seconds)
        labs.kill(lab.status()["supervisor"]["pid"])
        begin = time.monotonic()
        assert mint("gc").returncode == 0
        assert Lab.connect(lab.name).status()["state"] == "ready"
        assert time.monotonic() - begin < SOON_S
        ping(lab["a"], "b")
    finally:
        begin = time.monotonic()
        lab.down()
    assert time.monotonic() - begin < SOON_S
    step(0)
    with Lab.up(labs.source("clock", "ab")) as lab:
        ping(lab["a"], "b")


def test_the_library_steps_the_clock(step: Step) -> None:
    """So that the tests above are known to test something."""
    ask = ["python3", "-c", "import time; print(time.time(), time.monotonic())"]
    for seconds in (0, 10 * YEAR_S, -10 * YEAR_S):
        step(seconds)
        said = subprocess.run(ask, check=True, capture_output=True, text=True).stdout.split()
        assert abs(float(said[0]) - time.time() - seconds) < 60
        assert abs(float(said[1]) - time.monotonic()) < 60
    assert os.environ["LD_PRELOAD"]
