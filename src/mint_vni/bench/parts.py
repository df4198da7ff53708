# SPDX-License-Identifier: Apache-2.0
"""All parts of ``mint bench``, and how the command line runs one."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mint_vni.bench.frames import Frames
from mint_vni.bench.isolation import Isolation
from mint_vni.bench.latency import Latency
from mint_vni.bench.memory import Memory
from mint_vni.bench.part import Part, run, settings_of
from mint_vni.bench.peers import Peers
from mint_vni.bench.result import Result
from mint_vni.bench.show import progress, show
from mint_vni.bench.sockets import Sockets

#: A new part is one entry here, and its module.
PARTS: dict[str, type[Part]] = {
    kind.name: kind for kind in (Frames, Sockets, Latency, Isolation, Memory, Peers)
}


def measure(name: str, *, cpus: Sequence[int] | None = None, **asked: Any) -> Result:
    """Measure one part, with progress on standard error.

    Args:
        name: key of :data:`PARTS`.
        cpus: cores to use; None: all that may be used.
        asked: as for :func:`mint_vni.bench.part.settings_of`.
    """
    kind = PARTS[name]
    part = kind(settings_of(kind, cpus=cpus, **asked))
    with progress() as bar:
        return run(part, bar)


def run_cli(
    name: str, json_path: str | None, *, cpus: Sequence[int] | None = None, **asked: Any
) -> None:
    """``mint bench PART``: progress on standard error, tables on standard output.

    Args:
        name: key of :data:`PARTS`.
        json_path: where to write the results as JSON, too; None: nowhere.
        cpus: as for :func:`measure`.
        asked: as for :func:`measure`.
    """
    if json_path:
        Path(json_path).touch()  # rather now than after all the work
    result = measure(name, cpus=cpus, **asked)
    show(result)
    sys.stdout.flush()
    if json_path:
        Path(json_path).write_text(json.dumps(result.to_json(), indent=1) + "\n")
