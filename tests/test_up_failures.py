# SPDX-License-Identifier: Apache-2.0
"""``mint up`` fails after each of its steps in turn, and leaves the machine as it was.

Once the step raises, as it would for want of memory, descriptors or room on the disk, and the
supervisor undoes what it did; once the supervisor dies there, and ``mint up`` undoes what its
journal says. Which steps there are is not written down here: a start that succeeds tells.

In `make test` after every other step of two nodes of kind netns (dying: after every fifth), which
take the same steps, and raising after all that a node of kind uml takes. With ``MINT_LONG=1`` after all
steps, both, and for kind qemu.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import kinds
import labs
import machine as machine_module
from mint_vni.errors import MintError
from mint_vni.lab import Lab, client

PROGRAM = str(Path(__file__).with_name("failing_supervisor.py"))
LONG = bool(os.environ.get("MINT_LONG"))
NO_STEP = "none"
GUESTS = [("uml", "raise"), ("uml", "die"), ("qemu", "raise"), ("qemu", "die")]


class Starts:
    """Starts of one lab that fail where they are told to."""

    def __init__(self, place: Path, nodes: dict[str, Any], patch: pytest.MonkeyPatch) -> None:
        self._record, self._patch = place / "steps", patch
        self.source = labs.source("fails", nodes)

    def at(self, step: str, how: str) -> list[str]:
        """Start it, to fail after `step`; the steps that it got through. It is down afterwards."""
        self._record.unlink(missing_ok=True)
        program = (PROGRAM, str(self._record), step, how)
        self._patch.setattr(client, "SUPERVISOR", program)
        if step == NO_STEP:  # a start that succeeds
            with Lab.up(self.source):
                return self._record.read_text().splitlines()  # the rest is of taking it down
        else:
            with pytest.raises(MintError) as caught:
                Lab.up(self.source)
            said = str(caught.value)
            assert how == "die" or "on purpose" in said, (step, said)
        return self._record.read_text().splitlines()


@pytest.fixture
def place(tmp_path: Path, lab_host: None) -> Iterator[Path]:
    with machine_module.unchanged():
        yield tmp_path


def fail_everywhere(starts: Starts, how: str, only: str = "", every: int = 1) -> None:
    """A failure after each step; `only`: steps whose names contain this, `every`: of how many one."""
    steps = [step for step in starts.at(NO_STEP, how) if only in step][::every]
    assert len(steps) == len(set(steps)) > 5, steps
    start, changed = time.monotonic(), {}
    for step in steps:
        try:
            with machine_module.unchanged():
                got_through = starts.at(step, how)
            assert step in got_through
            assert Lab.names() == []
        except (AssertionError, pytest.fail.Exception) as error:
            changed[step] = str(error)
    seconds = time.monotonic() - start
    labs.report(f"{how}: failed after each of {len(steps)} steps in {seconds:.0f} s: {steps}")
    assert changed == {}


PAIR: dict[str, Any] = {"a": {"memory": "64M"}, "b": {"cpus": [0]}}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("how", ["raise", "die"])
def test_a_failure_after_any_step_leaves_nothing(
    place: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    every = 1 if LONG else 2 if how == "raise" else 5
    fail_everywhere(Starts(place, PAIR, monkeypatch), how, every=every)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("kind", "how"), GUESTS if LONG else GUESTS[:1])
def test_a_failure_after_any_step_of_a_guest_leaves_nothing(
    place: Path, monkeypatch: pytest.MonkeyPatch, kind: str, how: str
) -> None:
    kinds.demand(kind)
    nodes = {"a": {}, "g": kinds.SMALL[kind]}
    fail_everywhere(Starts(place, nodes, monkeypatch), how, only=" g")
