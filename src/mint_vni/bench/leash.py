# SPDX-License-Identifier: Apache-2.0
"""Undoes what a journal names when whoever wrote it has ended, however that came about.

    python -P -m mint_vni.bench.leash DIRECTORY

Reads standard input to its end, which is the writer's; then ends what ``DIRECTORY/journal`` names, as
``mint gc`` does for labs, and removes the directory. What can't be undone is told on standard error.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mint_vni.errors import NodeError
from mint_vni.lab import clean, journal

_UNDO_SECONDS = 30.0


@contextmanager
def recorded(lab_id: str, name: str) -> Iterator[tuple[Path, journal.Journal]]:
    """A directory, and the journal in it: what that names ends with the block, or with this process.

    Args:
        lab_id: part of the names of all that is to be undone.
        name: for whoever reads the journal.

    Raises:
        NodeError: something is left.
    """
    directory = Path(tempfile.mkdtemp(prefix="mint-bench-"))
    writer = journal.Journal(directory / "journal")
    writer.write("lab", {"id": lab_id, "name": name, "boot": journal.boot_id()})
    # In a session of its own: Ctrl-C is for us, who then end in good order.
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "mint_vni.bench.leash", str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield directory, writer
    finally:
        writer.close()
        _, said = process.communicate(timeout=_UNDO_SECONDS)
        if process.returncode != 0:
            raise NodeError((said.strip().splitlines() or [f"{directory} is left"])[-1])


def main() -> None:
    """Wait, undo."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    directory = Path(sys.argv[1])
    sys.stdin.read()
    problems = clean.undo_all(journal.read(directory / "journal"))
    if problems:
        sys.exit("\n".join(problems))  # the journal stays, for whoever looks after it
    shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
