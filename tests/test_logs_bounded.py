# SPDX-License-Identifier: Apache-2.0
"""What others say takes a bounded place in the host's /run and in its messages."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from mint_vni.lab import engine
from mint_vni.nodes.external import ExternalNode
from mint_vni.nodes.guest import node as guest_node
from node_bench import Bench

LONG = "x" * 100_000


def test_last_words_are_cut() -> None:
    """They go to the supervisor's log with each of a guest's ends."""
    said = f"one\n{LONG}\n\nshort\n{LONG}"
    node = SimpleNamespace(logs=lambda: {"node": said})
    assert engine._last_words(node) == f"{LONG[:200]} | short | {LONG[:200]}"


def test_a_guests_last_words_are_cut_in_errors() -> None:
    assert guest_node._telling([LONG, "Kernel panic", "short"]) == ["Kernel panic", "short"]
    assert guest_node._telling([LONG]) == [LONG[:200]]


def test_an_agents_last_words_are_cut_in_errors(tmp_path: Path) -> None:
    bench = Bench(tmp_path, names=("g",))
    node = ExternalNode(bench.plan("g", kind="external"), bench.context("g"))
    assert str(node._error("failed", f"{LONG}\nlast")) == f"node g failed [{LONG[:200]} | last]"


FILL = """
import sys
from mint_vni.lab import engine
for number in range(int(sys.argv[1])):
    engine.log(f"{number} " + "y" * 10_000)
print("beside it", file=sys.stderr)
"""


@pytest.mark.parametrize("lines", [10, 2000])
def test_the_supervisors_log_keeps_its_end(tmp_path: Path, lines: int) -> None:
    path = tmp_path / "supervisor.log"
    with path.open("ab") as log:
        subprocess.run([sys.executable, "-c", FILL, str(lines)], stderr=log, timeout=60, check=True)
    assert path.stat().st_size <= 4 << 20
    first, *said, last = path.read_text().splitlines()
    assert last == "beside it", "by whoever else has it open"
    if lines == 10:
        assert len(said) == 9
        return
    assert first == "(what was said before is gone)"
    numbers = [int(line.split()[1]) for line in said]
    assert numbers == list(range(numbers[0], lines)), "whole lines, none missing from there on"
    assert len(numbers) >= 200


def test_a_log_that_is_no_file_is_left_alone() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FILL, "500"], capture_output=True, timeout=60, check=True
    )
    assert len(done.stderr.splitlines()) == 501
