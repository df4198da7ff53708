# SPDX-License-Identifier: Apache-2.0
"""Ten million frames of mixed sizes from process to process, numbered, every byte compared.

For both layouts, polling and with doorbells; then frames up to the longest. Each frame carries its
number; length and payload follow from it (native/bench.c), so that a lost, late, repeated, torn or
shortened frame is told apart from a whole one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from fabric_util import LAYOUTS
from mint_vni.bench.frames import Runner
from mint_vni.bench.runner import WAITING, Run, request_of
from mint_vni.fabric.config import FRAME_MAX

SMALL = 3_400_000  # for each way of waiting: more than ten million a layout
LARGE = 30_000
CPUS = tuple(sorted(os.sched_getaffinity(0))[:2])


@pytest.fixture(scope="module")
def runner() -> Iterator[Runner]:
    process = Runner()
    yield process
    process.close()


def check(answer: dict[str, Any], frames: int) -> None:
    assert answer["rx"]["corrupted"] == 0
    assert answer["rx"]["reordered"] == 0
    assert answer["rx"]["lost"] == 0
    assert answer["rx"]["frames"] == frames
    assert answer["tx"]["dropped"] == 0
    assert answer["tx"]["bytes"] == answer["rx"]["bytes"]
    for counters in answer["counters"].values():
        assert not any(value for name, value in counters.items() if name.startswith("drop_"))


@pytest.mark.parametrize("waiting", WAITING)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_small_and_medium_frames(runner: Runner, layout: str, waiting: str) -> None:
    run = Run(layout, waiting, 22, 1514, SMALL, cpus=CPUS, verify=True)
    check(runner.ask(request_of(run)), SMALL)


@pytest.mark.parametrize("waiting", WAITING)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_frames_of_all_sizes(runner: Runner, layout: str, waiting: str) -> None:
    run = Run(layout, waiting, 22, FRAME_MAX, LARGE, cpus=CPUS, verify=True, batch=3)
    check(runner.ask(request_of(run)), LARGE)
