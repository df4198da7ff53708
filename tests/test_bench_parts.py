# SPDX-License-Identifier: Apache-2.0
"""Each part of ``mint bench``, once, in its quickest form: it works, whatever the figures are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from guest_nodes import need
from machine import descendants
from mint_vni.bench import guests, meter, ways
from mint_vni.bench.frames import Frames
from mint_vni.bench.latency import Latency
from mint_vni.bench.memory import Memory
from mint_vni.bench.part import run, settings_of
from mint_vni.bench.parts import PARTS
from mint_vni.bench.result import Result
from mint_vni.bench.runner import PATTERNS, Run, Runner, Trips, quantiles
from mint_vni.errors import FabricError, NodeError, PlatformError
from mint_vni.fabric.regions import LAYOUTS
from node_bench import until

SCHEMA = json.loads(
    (Path(__file__).resolve().parent.parent / "docs" / "bench.schema.json").read_text()
)
CPUS = tuple(sorted(os.sched_getaffinity(0)))[:2]


def quick(name: str, **asked: Any) -> Result:
    """Measure a part in its quickest form, and look at what every part promises."""
    kind = PARTS[name]
    result = run(kind(settings_of(kind, quick=True, seconds=0.02, **asked)))
    jsonschema.validate(result.to_json(), SCHEMA)
    assert result.method and result.rows
    names = {metric.name for metric in result.metrics}
    for row in result.rows:
        assert row.values.keys() <= names
    return result


def good(result: Result) -> None:
    """Nothing failed or was left out."""
    assert [row.failed for row in result.rows if row.failed] == []
    assert result.skipped == []


# --------------------------------------------------------------------------- without root


def test_frames_in_all_layouts_and_patterns() -> None:
    result = quick("frames")
    good(result)
    assert {row.key["layout"] for row in result.rows} == set(LAYOUTS)
    assert {row.key["pattern"] for row in result.rows} > {"one to one", "all to all"}
    assert all(row.values["gbps"][0] > 0 and row.facts["verified_frames"] for row in result.rows)
    assert result.noise["memory_peak_gbps"][0] > 0


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_byte_of_every_pattern_arrives(layout: str, pattern: str) -> None:
    ports = 2 if pattern == "one to one" else 4
    wanted = Run(layout, "doorbells", 700, 2000, pattern, ports, cpus=CPUS, verify=True)
    with Runner() as runner:
        answer = runner.ask(wanted)
    took = "frames" if pattern == "one to one" else "received"
    received = sum(answer["ports"][i][took] for i in {dst for _, dst in wanted.flows})
    assert received == 2000 * len(wanted.flows)
    for name in ("lost", "reordered", "corrupted", "dropped"):
        assert [port[name] for port in answer["ports"]] == [0] * ports


def test_a_run_that_fails_says_why_and_the_next_works() -> None:
    with Runner() as runner:
        with pytest.raises(FabricError, match="channel_bytes 1 is out of range"):
            runner.ask(Run("per-channel", "doorbells", 64, 10, channel_bytes=1))
        with pytest.raises(FabricError, match="Invalid argument"):
            runner.ask(Run("per-channel", "doorbells", 3, 10))
        assert runner.ask(Trips("per-channel", "doorbells", 64, 100, CPUS))["p50"] > 0


def test_an_unknown_layout_is_named() -> None:
    for kind in (Frames, Memory, PARTS["isolation"]):
        with pytest.raises(FabricError, match="no layout round; use one of per-channel"):
            kind(settings_of(kind, layouts=["round"]))


def test_doorbells_and_frames_to_and_fro(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mint_vni.bench.ways.KINDS", ())
    result = quick("latency")
    good(result)
    bell = result.find(test="doorbell")
    assert bell and bell.values["ring_ns"][0] > 0
    asleep = result.find(layout="per-channel", waiting="doorbells only")
    assert asleep and asleep.values["wakes"][0] > 0.5
    assert Latency.metrics


def test_memory_is_what_the_layouts_say() -> None:
    result = quick("memory")
    good(result)
    row = result.find(layout="per-channel", n=8)
    assert row
    assert row.values["reserved"] == [8 * 7 * 393_216 / 2**20]
    assert row.values["idle"] == [0.0]
    assert row.values["all_to_all"] == row.values["reserved"]
    assert row.values["sparse"] == [393_216 / 2**20]
    assert row.values["reclaimed"] == row.values["sparse"]  # what all had used was given back
    computed = result.find(layout="per-channel", n=256)
    assert computed and computed.values["formula"] == [pytest.approx(256 * 255 * 0.375)]


def test_quantiles_are_of_the_sorted_values() -> None:
    found = quantiles([3000, 1000, 2000, 5000, 4000])
    assert found == {"p50": 3.0, "p99": 5.0, "p999": 5.0, "least": 1.0}


@pytest.mark.parametrize("args", [["seqpacket", "64", "0.02"], ["seqtrip", "64", "50"]])
def test_the_meter_measures_local_sockets(args: Sequence[str]) -> None:
    pair = [str(CPUS[0]), str(CPUS[-1])]
    found = meter.run(list, [*args, *pair], 20)
    assert found.get("packets", found.get("trips", 0)) > 0


def test_the_meter_asks_and_answers() -> None:
    with meter.serving(list, ["echo", str(meter.PORT)]):
        for protocol in ("tcp", "udp"):
            found = meter.ask(list, protocol, "127.0.0.1", 100, 50)
            assert found["trips"] == 50 and found["p50"] <= found["p999"]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["ask", "tcp", "nowhere", "1", "1", "1"], "nowhere is no IPv4 address"),
        (["burn"], "see the head of native/meter.c"),
        (["seqtrip", "64", "1", "x", "0"], "x is not a number"),
    ],
)
def test_the_meter_says_what_is_wrong(args: Sequence[str], says: str) -> None:
    with pytest.raises(NodeError, match=says):
        meter.run(list, args, 10)


def test_pipes_between_python_processes() -> None:
    argv = [sys.executable, "-P", "-m", "mint_vni.bench.python_peers", "pipe", "64", "0.02"]
    done = subprocess.run(
        [*argv, str(CPUS[0]), str(CPUS[-1])], capture_output=True, check=True, timeout=30
    )
    assert json.loads(done.stdout)["packets"] > 0


def test_what_is_not_installed_is_named_with_its_package() -> None:
    with pytest.raises(
        PlatformError, match="no-such is not installed; apt-get install such-package"
    ):
        ways.need("no-such", "such-package")


# ------------------------------------------------------------------------------ with labs


@pytest.mark.usefixtures("machine")
def test_sockets_over_every_way() -> None:
    result = quick("sockets")
    assert [row.failed for row in result.rows if row.failed] == []
    for path in ("default", "polling", "veth"):
        row = result.find(path=path, test="TCP")
        assert row and row.values["gbps"][0] > 0
    assert result.find(path="default", test="TCP").ratios["gbps"]  # type: ignore[union-attr]


@pytest.mark.usefixtures("machine")
def test_round_trips_over_every_way() -> None:
    result = quick("latency")
    assert [row.failed for row in result.rows if row.failed] == []
    row = result.find(path="default", test="TCP 64 B")
    assert row and row.values["p50"][0] > 0 and "wakes" in row.values


@pytest.mark.usefixtures("machine")
def test_isolation_stops_and_continues_the_neighbour() -> None:
    result = quick("isolation")
    good(result)
    beside = result.find(neighbour="a sends to c")
    assert beside and beside.values["beside"][0] > 0
    stopped = result.find(neighbour="a sends to c, which is stopped")
    assert stopped and stopped.values["gbps"][0] > 0
    assert stopped.against == {"layout": "per-channel", "neighbour": "a sends to c"}


@pytest.mark.usefixtures("machine")
def test_peers_that_are_there_are_measured_and_the_others_named() -> None:
    result = quick("peers")
    found = {row.key["path"] for row in result.rows if not row.failed}
    assert {"Mint VNI", "veth", "Linux bridge", "AF_UNIX seqpacket"} <= found
    for skipped in result.skipped:
        assert "install" in skipped.why


# ---------------------------------------------------------------------------- with guests


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize("kind", guests.PEERS)
def test_guests_are_measured_beside_their_peers(kind: str) -> None:
    need(kind)
    result = quick("sockets", kinds=(kind,))
    good(result)
    base = next(iter(guests.PEERS[kind]))
    for path in ("default", "polling", "veth", *guests.PEERS[kind]):
        row = result.find(path=path, test="TCP")
        assert row and row.group == f"{kind} to {kind}" and row.values["gbps"][0] > 0
        assert row.against == (None if path == base else {"test": "TCP", "path": base})
    assert any(f"between nodes of kind {kind}: default" in note for note in result.notes)


@pytest.mark.usefixtures("machine")
def test_round_trips_between_every_two_kinds() -> None:
    need("uml")
    result = quick("latency", kinds=("netns", "uml"))
    good(result)
    pairs = ["netns to netns", "netns to uml", "uml to uml"]
    assert [g for g in dict.fromkeys(r.group for r in result.rows) if " to " in g] == pairs
    answered = [row for row in result.rows if row.group in pairs and row.key["test"] == "TCP 64 B"]
    assert {row.key["path"] for row in answered} > {"default", "veth", "UML vector tap"}
    assert all(row.values["p50"][0] > 0 for row in answered)


@pytest.mark.usefixtures("machine")
def test_a_peer_that_cannot_be_is_named_and_the_rest_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(_cpus: Sequence[int]) -> Any:
        raise PlatformError("there is none; buy one")

    monkeypatch.setitem(guests.PEERS, "netns", {"another": missing})
    result = quick("sockets", kinds=("netns",))
    assert [(s.what, s.why) for s in result.skipped] == [("another", "there is none; buy one")]
    row = result.find(path="default", test="TCP")
    assert row and row.values["gbps"][0] > 0 and row.against is None


HELD = """
import sys
from mint_vni.bench import guests
with guests.PEERS["uml"]["UML vector tap"]((0, 0)):
    print("up", flush=True)
    sys.stdin.read()
"""


@pytest.mark.usefixtures("machine")
def test_guests_end_with_who_measures_them_even_if_that_is_killed() -> None:
    need("uml")
    pinned = HELD.replace("(0, 0)", str(CPUS[:1] * 2))
    with subprocess.Popen(
        [sys.executable, "-c", pinned], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout and process.stdout.readline() == "up\n"
        assert guests_running()
        process.kill()
    until("the guests end", lambda: not guests_running(), 60.0)


def guests_running() -> list[int]:
    """Kernels that were started from here."""
    return [process.pid for process in descendants() if process.name == "linux"]
