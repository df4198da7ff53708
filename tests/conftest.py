# SPDX-License-Identifier: Apache-2.0
"""What the tests of whole labs share: a place of their own on disk, and a look at the machine.

``MINT_RUN_DIR`` is set here, before anything of the package is imported, so that no test ever meets
a lab of whoever runs it.
"""

from __future__ import annotations

import gc
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

# A shell ignores SIGINT for what it runs in the background, nohup ignores SIGHUP, and what is ignored
# is inherited; tests of interrupts would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Short: names of sockets below it are limited to 107 bytes. Below it, not itself: mint removes its
# directory with the last lab.
BASE = Path(tempfile.mkdtemp(prefix="mint-test-"))
os.environ["MINT_RUN_DIR"] = str(BASE / "labs")
os.environ["MINT_TEST_BASE"] = str(BASE)

import labs  # noqa: E402  # it reads the variable
import machine as machine_module  # noqa: E402
import run_journal  # noqa: E402

machine_module.IGNORED.add(str(BASE))
_alive = run_journal.claim(BASE)  # held to the end


@pytest.fixture(scope="session")
def lab_host() -> Iterator[None]:
    """A machine that can run labs; skipped with the reason where it cannot."""
    reason = labs.why_not()
    if reason:
        pytest.skip(reason)
    run_journal.clear_dead_runs()
    # Orphans become this process's children instead of init's: so they are known to be ours.
    machine_module.adopt_orphans()
    yield
    labs.clear_all()


@pytest.fixture
def machine(lab_host: None) -> Iterator[None]:
    """Compares the machine before and after the test; see `machine.Machine`."""
    with machine_module.unchanged():
        yield


@pytest.fixture(autouse=True, scope="module")
def older_objects_kept() -> None:
    """Who looks for garbage of a test, or of each example, need not look at what was there before."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    """Remove the directory of this run, unless a lab is left in it: then the next run clears it."""
    if not any(BASE.glob("labs/*/journal")):
        shutil.rmtree(BASE, ignore_errors=True)
