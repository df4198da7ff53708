# SPDX-License-Identifier: Apache-2.0
"""Two processes, millions of frames of mixed sizes: numbered, and every byte checked.

The loops are those of ``mint bench frames`` in their verifying form (native/bench.c): through the
ports' own entry points, with all checks, look-up and counters on.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any

import pytest
from mint_vni._native import ffi, lib

import mint_vni as mint
from fabric_util import LAYOUTS, Child, results, wait_until
from mint_vni.fabric.config import mac_bytes

TIMEOUT_NS = 20_000_000_000


@dataclass(frozen=True)
class Load:
    """Frames of sizes between two bounds, evenly spread."""

    frames: int
    least: int
    most: int


#: What one run sends: 5 million frames, so 10 million in each layout, most of them small, some of every size there is.
LOADS = [
    Load(4_000_000, 22, 128),
    Load(940_000, 22, 1514),
    Load(40_000, 22, 9014),
    Load(20_000, 22, 65535),
]
FRAMES = sum(load.frames for load in LOADS)


def run_end(fabric: mint.Fabric, name: str, load: Load) -> dict[str, int]:
    """One side of one load, in this process."""
    config = ffi.new("struct mint_bench_config *")
    result = ffi.new("struct mint_bench_result *")
    config.frames, config.size_min, config.size_max = load.frames, load.least, load.most
    config.distinct, config.batch, config.verify = 64, 32, 1
    config.timeout_ns = TIMEOUT_NS
    config.src, config.dst = (mac_bytes(fabric.spec(n).mac) for n in ("tx", "rx"))
    run = lib.mint_bench_send if name == "tx" else lib.mint_bench_recv
    port = fabric.port(name)
    err = run(port._port, config, result)
    fields = ("frames", "bytes", "dropped", "lost", "reordered", "corrupted")
    return {"err": err} | {f: int(getattr(result, f)) for f in fields}


def receive_all(fabric: mint.Fabric, ready: int) -> list[dict[str, int]]:
    """The receiving process: each load in turn, telling the sender when it may begin."""
    fabric.port("rx")
    results = []
    for load in LOADS:
        os.write(ready, b"r")
        results.append(run_end(fabric, "rx", load))
    return results


def send_all(fabric: mint.Fabric, ready: int) -> list[dict[str, int]]:
    results = []
    for load in LOADS:
        assert os.read(ready, 1) == b"r"
        results.append(run_end(fabric, "tx", load))
    return results


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("poll_us", [1000, 0], ids=["polling", "doorbells"])
def test_nothing_is_lost_reordered_or_corrupted(layout: str, poll_us: int) -> None:
    ready_r, ready_w = os.pipe()
    start = time.monotonic()
    with mint.Fabric.create(
        ["tx", "rx"], layout, channel_bytes=393216, poll_us=poll_us, stall_us=20_000_000
    ) as fabric:
        receiver = Child(receive_all, fabric, ready_w)
        wait_until(lambda: fabric.ends("rx", "tx").rx_state != "closed", "the receiver is there")
        sender = Child(send_all, fabric, ready_r)
        sent, received = results(sender, receiver, deadline_s=120)
        took = time.monotonic() - start
        for load, tx, rx in zip(LOADS, sent, received, strict=True):
            assert tx["err"] == rx["err"] == 0
            assert (tx["frames"], tx["dropped"]) == (load.frames, 0)
            wanted = {"frames": load.frames, "lost": 0, "reordered": 0, "corrupted": 0}
            assert {key: rx[key] for key in wanted} == wanted
            assert rx["bytes"] == tx["bytes"]
        check_counters(fabric, poll_us)
    os.close(ready_r)
    os.close(ready_w)
    print(f"{layout}, poll_us={poll_us}: {FRAMES} frames in {took:.1f} s")


def check_counters(fabric: mint.Fabric, poll_us: int) -> None:
    tx, rx = fabric.ends("tx", "rx").tx, fabric.ends("rx", "tx").rx
    assert tx["frames"] == rx["frames"] == FRAMES
    assert tx["bytes"] == rx["bytes"]
    drops = {k: n for c in (tx, rx) for k, n in c.items() if k.startswith("drop_") and n}
    assert drops == {}
    assert (tx["stalls"], rx["resets"]) == (0, 0)
    counters: dict[str, Any] = fabric.counters("rx")
    assert counters["poll_ns"] > 0 if poll_us else counters["poll_ns"] == 0
    if not poll_us:
        assert counters["sleeps"] > 0, "it never slept: the doorbells were not tried"
