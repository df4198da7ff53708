# SPDX-License-Identifier: Apache-2.0
"""Memory of idle channels is given back, by workers in their sandbox; who may join which layout."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

import pytest

import labs
from labs import Traffic, ping
from mint_vni.errors import FabricError
from mint_vni.lab import Lab
from mint_vni.lab.engine import Engine
from mint_vni.lab.journal import Journal
from mint_vni.lab.plan import read_plan


@pytest.mark.parametrize("layout", ["per-channel", "pooled"])
def test_idle_memory_goes_and_comes_back(machine: None, layout: str) -> None:
    source = labs.source("idle", "ab", fabric={"layout": layout, "idle_reclaim": 1})
    with Lab.up(source) as lab, Traffic(lab) as traffic:
        for _ in range(2):
            before = lab.status()["memory"]["reclaims"]
            ping(lab["a"], "b", "-i", "0.005", "-s", "1400", count=300)
            assert lab.status()["memory"]["committed_bytes"] >= 100 << 10
            labs.wait_for(
                "memory to be given back",
                lambda: lab.status()["memory"]["committed_bytes"] <= 128 << 10,
            )
            assert lab.status()["memory"]["reclaims"] > before
        for name in "ab":
            assert labs.port_status(lab, name)["worker"]["restarts"] == 0
    assert not traffic.moved.drops()


@pytest.mark.parametrize(
    ("layout", "reach"),
    [("shared", "write all frames"), ("pooled", "read all that its peers send")],
)
def test_a_stranger_does_not_join_what_is_everybodys(
    tmp_path: Path, layout: str, reach: str
) -> None:
    plan = read_plan({"lab": "own", "nodes": {"a": {}, "b": {}}, "fabric": {"layout": layout}})
    engine = Engine(plan, tmp_path, "0badcafe", Journal(tmp_path / "journal"))
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(FabricError, match=rf"every port can {reach}.*trust: all"):
        asyncio.run(engine.attach("raw", None, theirs, os.geteuid() + 1, print))
    assert not engine.members
