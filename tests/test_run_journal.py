# SPDX-License-Identifier: Apache-2.0
"""What a test run that was killed left is cleared by the next one; what a living one has is not."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

import pytest

import run_journal
from mint_vni.nodes.proc import process_start_time


def leave(base: Path, process: subprocess.Popen[bytes], patch: pytest.MonkeyPatch) -> None:
    """Journal a process as a node's of the run whose directory this is."""
    base.mkdir()
    patch.setenv("MINT_TEST_BASE", str(base))
    entry = {"pid": process.pid, "start": process_start_time(process.pid)}
    run_journal.note("0badcafe", "process", entry)


def test_dead_runs_are_cleared_and_living_ones_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    dead, alive, foreign = (tmp_path / f"mint-test-{name}" for name in ("dead", "alive", "old"))
    argv = ["/bin/sleep", "60"]
    with (
        subprocess.Popen(argv) as lost,
        subprocess.Popen(argv) as used,
        subprocess.Popen(argv) as old,
    ):
        try:
            for base, process in ((dead, lost), (alive, used), (foreign, old)):
                leave(base, process, monkeypatch)
            os.close(run_journal.claim(dead))  # it has ended
            held = run_journal.claim(alive)
            run_journal.clear_dead_runs()
            os.close(held)
            lost.wait(5)  # long before a minute is over
            assert not dead.exists()
            for base, process in ((alive, used), (foreign, old)):
                assert process.poll() is None, base
                assert (base / "nodes.journal").exists()
        finally:
            for process in (lost, used, old):
                process.kill()
