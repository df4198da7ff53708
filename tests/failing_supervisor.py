# SPDX-License-Identifier: Apache-2.0
"""A lab's supervisor that fails after a chosen step of ``mint up``, in the place of the real one.

    python failing_supervisor.py RECORD STEP HOW  up DIRECTORY FD

Steps are all that changes anything outside this process or waits for somebody: entries of the
journal, regions, the checkpoints of nodes, workers started, each message to a worker, the files of
state. Each is named by what it is, whose, and how often it came before. Those that are done are
appended to RECORD. After STEP the process dies (HOW is ``die``) or that step raises (``raise``).
"""

from __future__ import annotations

import functools
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mint_vni.errors import FabricError
from mint_vni.fabric.regions import Regions
from mint_vni.lab import engine, journal, paths, supervisor, worker
from mint_vni.nodes import KINDS, SshMaterial

RECORD, STEP, HOW = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
_seen: Counter[str] = Counter()
_lock = threading.Lock()


def done(what: str) -> None:
    """A step is done."""
    with _lock:
        _seen[what] += 1
        name = f"{what} {_seen[what]}"
        with RECORD.open("a") as file:
            file.write(name + "\n")
    if name != STEP:
        return
    if HOW == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    raise FabricError(f"failed on purpose after: {name}")


def after(owner: Any, method: str, label: Callable[..., str]) -> None:
    """Have a function of a class or module count as a step when it has returned."""
    function = getattr(owner, method)

    @functools.wraps(function)
    def wrapped(*args: Any, **options: Any) -> Any:
        result = function(*args, **options)
        done(label(*args, **options))
        return result

    setattr(owner, method, wrapped)


def _entry(_self: Any, kind: str, data: dict[str, Any]) -> str:
    """An entry of the journal, without what differs from run to run."""
    what = data.get("what") or Path(str(data.get("path", ""))).name.rpartition("-")[2]
    return f"journal {kind} {what}".strip()


def _write(path: Path, _data: Any) -> str:
    return f"write {path.name}"


def instrument() -> None:
    """Have all steps counted."""
    after(journal.Journal, "write", _entry)
    after(paths, "write_json", _write)
    after(SshMaterial, "generate", lambda _self: "keys")
    after(Regions, "add_port", lambda _self, index, *_: f"regions {index}")
    after(worker.Worker, "start", lambda self: f"worker {self.name} started")
    after(worker.Worker, "request", lambda self, *_: f"worker {self.name} told")
    after(engine.Engine, "_start_worker", lambda _self, member: f"worker {member.name} open")
    after(engine.Engine, "_begin", lambda _self, member: f"worker {member.name} began")
    for kind in {KINDS[name] for name in ("netns", "uml", "qemu")}:
        after(kind, "_done", lambda self, step: f"node {self.plan.name} {step}")
        after(kind, "wait_ready", lambda self, _deadline: f"node {self.plan.name} ready")


if __name__ == "__main__":
    del sys.argv[1:4]
    instrument()
    sys.exit(supervisor.main())
