# SPDX-License-Identifier: Apache-2.0
"""What is killed comes back, what is not killed goes on, and in the end nothing is left."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

import pytest

import kinds
import labs
import mint_vni
from labs import Traffic, inside, mint, ping, wait_for
from mint_vni.lab import Lab

NODES = "abcd"
BACK_S = (
    5.0  # a killed worker is back within so long; 1 s is promised, of a machine that is not busy
)
RATE = 40_000_000  # bytes a second of each stream: it loads neither core
PIECE = 2_000_000


class Stream:
    """A TCP stream from one node to another, whose progress and end can be looked at."""

    def __init__(self, lab: Lab, src: str, dst: str) -> None:
        self._stack = contextlib.ExitStack()
        self._target = labs.address(lab, dst)
        self._lab, self._src, self._dst = lab, src, dst

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self._sink = stack.enter_context(inside(self._lab[self._dst], "sink", 5001))
            self._sink.result("ready")
            argv = ("source", self._target, 5001, 0, RATE)
            self._source = stack.enter_context(inside(self._lab[self._src], *argv))
            self._source.result("connected")
            self.flows()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def flows(self, timeout: float = 10.0) -> None:
        """Wait until more than what was under way has arrived."""
        at = self._sink.result("received")["received"]
        while self._sink.result("received", timeout)["received"] < at + PIECE:
            pass

    def end(self) -> dict[str, Any]:
        """End it; the facts of both ends, if all that was sent has arrived."""
        self._source.close_input()
        sent, got = self._source.result("sent", 30.0), self._sink.result("done", 30.0)
        assert (got["done"], got["sha256"]) == (sent["sent"], sent["sha256"])
        return sent | got


@pytest.fixture(params=["per-channel", "shared", "pooled"])
def lab(request: pytest.FixtureRequest, machine: None) -> Iterator[Lab]:
    source = labs.source("fault", NODES, fabric={"layout": request.param})
    with Lab.up(source) as lab:
        yield lab


@pytest.fixture
def plain_lab(machine: None) -> Iterator[Lab]:
    """In the default layout alone."""
    with Lab.up(labs.source("fault", "abc")) as lab:
        yield lab


def worker(lab: Lab, node: str) -> int:
    """The pid of a node's worker."""
    return int(labs.port_status(lab, node)["worker"]["pid"])


def interface(lab: Lab, node: str) -> object:
    """All that `ip` knows of a node's interface; another one would have another index."""
    said = json.loads(lab[node].run(["ip", "-j", "addr", "show", "vni0"]).stdout)
    return [{key: entry[key] for key in ("ifindex", "address", "addr_info")} for entry in said]


def is_back(lab: Lab, node: str, restarts: int) -> bool:
    port = labs.port_status(lab, node)
    return bool(port["state"] == "up" and port["worker"]["restarts"] == restarts)


# ------------------------------------------------------------------------------- workers


def test_a_killed_worker_is_back_and_others_do_not_notice(lab: Lab) -> None:
    """The receiver's, then the sender's: the stream through them survives, the other is untouched."""
    before = {node: interface(lab, node) for node in NODES}
    with Traffic(lab) as traffic, Stream(lab, "a", "b") as hit, Stream(lab, "c", "d") as other:
        for victim in "ba":
            labs.kill(worker(lab, victim))
            start = time.monotonic()
            wait_for("the worker", lambda: is_back(lab, victim, 1), timeout=BACK_S)  # noqa: B023
            labs.report(f"{victim}'s worker was back after {time.monotonic() - start:.3f} s")
            hit.flows()
            other.flows()
        hit.end()
        untouched = other.end()
    assert not traffic.moved.drops_of("cd")
    assert labs.unsent(lab["c"]) == labs.unsent(lab["d"]) == 0
    assert untouched["pause"] < 0.5, untouched
    assert {node: interface(lab, node) for node in NODES} == before
    for src, dst in ("ac", "bd", "ab", "ba"):
        ping(lab[src], dst, count=3)


def test_a_worker_comes_back_each_time(plain_lab: Lab) -> None:
    for times in (1, 2, 3):
        labs.kill(worker(plain_lab, "a"))
        wait_for("the worker", lambda: is_back(plain_lab, "a", times), timeout=5)  # noqa: B023
        ping(plain_lab["a"], "b", count=2)
    assert plain_lab.status()["state"] == "ready"


def test_all_workers_at_once(plain_lab: Lab) -> None:
    before = {node: interface(plain_lab, node) for node in "abc"}
    for pid in [worker(plain_lab, node) for node in "abc"]:
        labs.kill(pid)
    for node in "abc":
        wait_for("the workers", lambda: is_back(plain_lab, node, 1), timeout=5)  # noqa: B023
    for src, dst in ("ab", "bc", "ca"):
        ping(plain_lab[src], dst, count=3)
    assert {node: interface(plain_lab, node) for node in "abc"} == before


def test_a_stopped_worker_stalls_its_own_channels_only(lab: Lab) -> None:
    """It takes nothing more: senders wait once, then drop what is for it, and serve others."""
    ping(lab["a"], labs.address(lab, "c"))
    pid, target = worker(lab, "b"), labs.node_status(lab, "b")
    there = ["ip", "neigh", "replace", target["ipv4"][:-3], "lladdr", target["mac"]]
    lab["a"].run([*there, "dev", "vni0", "nud", "permanent"])  # b could not answer
    argv = ("udp-flood", labs.address(lab, "b"), 5009, 1400, 10_000_000)
    os.kill(pid, signal.SIGSTOP)
    try:
        with inside(lab["a"], *argv) as flood:
            wait_for("a stall", lambda: _channel(lab, "a", "b")["state"] == "stalled")
            ping(lab["a"], labs.address(lab, "c"), count=50)
            flood.close_input()
            flood.result("sent")
        assert _channel(lab, "a", "b")["drops"]["stalled"] > 0
    finally:
        os.kill(pid, signal.SIGCONT)
    ping(lab["a"], "b", count=5)
    assert _channel(lab, "a", "b")["state"] == "open"
    assert labs.port_status(lab, "b")["worker"]["restarts"] == 0


def _channel(lab: Lab, src: str, dst: str) -> dict[str, Any]:
    channels = lab.status()["channels"]
    return next(c for c in channels if (c["from"], c["to"]) == (src, dst))


# --------------------------------------------------------------------------------- nodes


def test_a_killed_node_is_seen_and_others_go_on(plain_lab: Lab) -> None:
    labs.kill(labs.node_status(plain_lab, "b")["pid"])
    wait_for("its end is seen", lambda: plain_lab.status()["state"] == "degraded")
    assert labs.node_status(plain_lab, "b")["state"] == "failed"
    ping(plain_lab["a"], "c", count=5)
    with pytest.raises(mint_vni.NodeError, match="node b has ended"):
        plain_lab["b"].run(["true"])
    done = mint("exec", "b", "--lab", plain_lab.name, "--", "true")
    labs.one_sentence(done, mint_vni.NodeError.exit_code, "node b has ended")


# ---------------------------------------------------------------------------- supervisor


def test_a_killed_agent_takes_its_guest_along_and_no_other(machine: None) -> None:
    """Under load; the guest is down for good, and said to be."""
    kinds.demand("uml")
    nodes = {"a": {}, "b": {}, "g": kinds.SMALL["uml"]}
    with Lab.up(labs.source("agents", nodes)) as lab:
        with Stream(lab, "a", "b") as other, Stream(lab, "a", "g") as hit:
            labs.kill(int(labs.node_status(lab, "g")["guest"]["agent_pid"]))
            wait_for("g is seen as failed", lambda: labs.node_status(lab, "g")["state"] == "failed")
            for _ in range(3):
                other.flows()
            other.end()
            del hit
        wait_for("its port is down", lambda: labs.port_status(lab, "g")["state"] != "up")
        ping(lab["a"], "b", count=5)
        done = mint("exec", "g", "--", "true")
        labs.one_sentence(done, mint_vni.NodeError.exit_code, "node g", "its agent has ended")


def test_without_a_supervisor_traffic_goes_on_and_the_next_command_adopts(lab: Lab) -> None:
    with Stream(lab, "a", "b") as stream, lab.attach("probe") as probe:
        before = lab.status()
        labs.kill(before["supervisor"]["pid"])
        stream.flows()
        lab["c"].run(["ping", "-c", "2", "-i", "0.1", labs.address(lab, "d")])
        _still_a_port(lab, probe)

        done = mint("status", lab.name, "--json")
        assert done.returncode == 0, done.stderr
        after = json.loads(done.stdout)
        assert after["supervisor"]["adoptions"] == 1
        assert after["supervisor"]["pid"] != before["supervisor"]["pid"]
        for key in ("id", "since", "layout", "state"):
            assert after[key] == before[key], key
        assert {p["name"] for p in after["ports"]} == {*NODES, "probe"}
        assert _pids(after) == _pids(before)
        stream.flows()

        labs.kill(worker(lab, "b"))
        wait_for("the worker", lambda: is_back(lab, "b", 1), timeout=BACK_S)
        stream.flows()
        stream.end()
        labs.check_worker(labs.port_status(lab, "b"), peers=4)
        with lab.attach("newcomer"):
            assert labs.port_status(lab, "newcomer")["state"] == "up"
        _still_a_port(lab, probe)
    names = set(NODES)
    wait_for("the ports' end", lambda: {p["name"] for p in lab.status()["ports"]} == names)


def _pids(status: dict[str, Any]) -> set[int]:
    workers = {port["worker"]["pid"] for port in status["ports"] if port["worker"]}
    return workers | {node["pid"] for node in status["nodes"]}


def _still_a_port(lab: Lab, probe: mint_vni.Port) -> None:
    """What the port broadcasts arrives at a node."""
    with inside(lab["d"], "raw-listen", "vni0", "88b5") as listener:
        listener.result("ready")
        probe.send(b"\xff" * 6 + bytes.fromhex(probe.mac.replace(":", "")) + b"\x88\xb5probe")
        assert bytes.fromhex(listener.result("frame")["frame"])[14:] == b"probe"


def test_a_lab_is_adopted_again_and_again(plain_lab: Lab) -> None:
    for times in (1, 2, 3):
        labs.kill(plain_lab.status()["supervisor"]["pid"])
        status = plain_lab.status()
        assert (status["supervisor"]["adoptions"], status["state"]) == (times, "ready")
        ping(plain_lab["a"], "b", count=2)


def test_one_of_many_commands_adopts_and_all_are_answered(plain_lab: Lab) -> None:
    labs.kill(plain_lab.status()["supervisor"]["pid"])
    with contextlib.ExitStack() as stack:
        argv = labs.mint_argv("status", plain_lab.name, "--json")
        children = [stack.enter_context(labs.Child(argv)) for _ in range(4)]
        for child in children:
            assert child.wait(30) == 0
    assert plain_lab.status()["supervisor"]["adoptions"] == 1


def gc_says(lab: str, *options: str) -> str:
    """What `mint gc` does about a lab."""
    done = mint("gc", "--json", *options)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["labs"]
    return next(str(entry["state"]) for entry in found if entry["lab"] == lab)


def test_gc_adopts_a_lab_that_runs(plain_lab: Lab) -> None:
    labs.kill(plain_lab.status()["supervisor"]["pid"])
    assert gc_says(plain_lab.name, "--dry-run") == "orphaned"
    assert gc_says(plain_lab.name) == "adopted"
    assert gc_says(plain_lab.name) == "running"
    assert plain_lab.status()["supervisor"]["adoptions"] == 1
    ping(plain_lab["a"], "b", count=2)


def test_a_worker_that_died_without_a_supervisor_is_told_of(plain_lab: Lab) -> None:
    """Its port stays down, the rest goes on, and the lab is still taken down wholly."""
    victim = worker(plain_lab, "b")
    labs.kill(plain_lab.status()["supervisor"]["pid"])
    labs.kill(victim)
    status = plain_lab.status()
    assert status["state"] == "degraded"
    assert labs.by_name(status["ports"], "b")["state"] == "down"
    ping(plain_lab["a"], "c", count=3)


def test_a_lab_of_which_only_the_nodes_are_left_is_cleared(machine: None) -> None:
    """No supervisor, no worker: gc removes the rest by what was written down."""
    lab = Lab.up(labs.source("wreck", "abc"))
    workers = [worker(lab, node) for node in "abc"]
    labs.kill(lab.status()["supervisor"]["pid"])
    for pid in workers:
        labs.kill(pid)
    done = mint("status", lab.name)
    labs.one_sentence(done, mint_vni.LabStateError.exit_code, lab.name, "mint gc")
    assert gc_says(lab.name, "--dry-run") == "garbage"
    assert labs.lab_dir(lab.name).exists()
    with Lab.up(labs.source("whole", "ab")) as whole:
        every = mint("status", "--all", "--json")
        assert every.returncode == mint_vni.LabStateError.exit_code
        assert [found["lab"] for found in json.loads(every.stdout)["labs"]] == [whole.name]
        assert lab.name in json.loads(every.stdout)["problems"][0]
    assert gc_says(lab.name) == "removed"
    assert Lab.names() == []
