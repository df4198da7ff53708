# SPDX-License-Identifier: Apache-2.0
"""A node that is a bridge: further machines behind its port, each with a MAC of its own."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

import labs
import machine as machine_module
from labs import Traffic, inside, ping
from mint_vni.lab import Lab

# Inside c: a bridge with c's own port and two further namespaces on it.
BRIDGE = """
set -e
mac=$(cat /sys/class/net/vni0/address)
ip link add br0 type bridge
ip link set br0 address $mac
ip addr flush dev vni0
ip link set vni0 master br0
ip link set br0 up
ip addr add 10.77.0.3/24 dev br0
for guest in x y; do
    ip netns add $guest
    ip link add to-$guest type veth peer name eth0 netns $guest
    ip link set to-$guest master br0 up
    ip -n $guest link set lo up
    ip -n $guest link set eth0 up
done
ip -n x addr add 10.77.0.101/24 dev eth0
ip -n y addr add 10.77.0.102/24 dev eth0
"""

GUESTS = {"x": "10.77.0.101", "y": "10.77.0.102"}


@pytest.fixture(scope="module", params=["per-channel", "shared", "pooled"])
def lab(request: pytest.FixtureRequest, lab_host: None) -> Iterator[Lab]:
    nodes = {"a": {}, "b": {}, "c": {"bridge": True}}
    source = labs.source("bridge", nodes, network={"ipv6": None}, fabric={"layout": request.param})
    with machine_module.unchanged(), Lab.up(source) as lab:
        lab["c"].run(["sh", "-c", BRIDGE])
        yield lab


def test_machines_behind_a_bridge_are_reached_and_learned(lab: Lab) -> None:
    ping(lab["a"], GUESTS["x"])
    with Traffic(lab) as traffic:
        for node in ("a", "b"):
            for address in (*GUESTS.values(), "10.77.0.3"):
                ping(lab[node], address, count=20)
    # Learned: what is for a guest goes to c alone, no longer to everybody.
    assert traffic.moved.frames("a", "b") < 12
    assert traffic.moved.frames("b", "a") < 12
    assert traffic.moved.frames("a", "c") >= 60
    for node in ("a", "b"):
        counters = labs.port_status(lab, node)["counters"]
        assert counters["learned"] >= len(GUESTS), counters
    assert not traffic.moved.drops()


def test_machines_behind_a_bridge_reach_others_and_each_other(lab: Lab) -> None:
    for guest in GUESTS:
        for target in ("10.77.0.1", "10.77.0.2", "10.77.0.3", *GUESTS.values()):
            argv = ["ip", "netns", "exec", guest, "ping", "-n", "-q", "-c", "1", "-W", "3"]
            said = lab["c"].run([*argv, target], timeout=20, check=False).stdout
            assert " 1 received" in said, said


def test_streams_cross_a_bridge_whole(lab: Lab) -> None:
    """Offloaded frames too: what one stack left unsegmented, the other takes so."""
    enter = ["ip", "netns", "exec", "x"]
    server = [*enter, *labs.INSIDE, "answer", "5001", "3000000"]
    with labs.Child(lab["c"].exec_argv(server)) as answer:
        answer.result("ready")
        with inside(lab["a"], "exchange", GUESTS["x"], 5001, 10_000_000) as client:
            got, said = client.result("received"), answer.result("received")
    assert (got["received"], said["received"]) == (said["sent"], got["sent"])
    assert said["bytes"] == 10_000_000


def test_unknown_macs_are_asked_for_behind_the_bridge_only(lab: Lab) -> None:
    a = labs.node_status(lab, "a")["mac"].replace(":", "")
    # Its stack reports to all what it listens to in the first two seconds, and asks them for routers.
    lab["a"].run(["sysctl", "-qw", "net.ipv6.conf.vni0.router_solicitations=0"])
    labs.wait_for("a is quiet", lambda: _is_quiet(lab))
    with Traffic(lab) as traffic:
        with inside(lab["a"], "raw-send", "vni0", f"0200deadbeef{a}88b5{'00' * 46}") as sender:
            sender.result("sent")
        labs.wait_for("the frame in c's channel", lambda: _frames_to_c(lab) > 0)
    assert traffic.moved.frames("a", "c") >= 1
    assert traffic.moved.frames("a", "b") == 0
    assert not traffic.moved.drops()


def _is_quiet(lab: Lab) -> bool:
    """Whether a sends nothing for more than a second."""
    before = labs.port_status(lab, "a")["counters"]["in_frames"]
    time.sleep(1.2)
    return bool(labs.port_status(lab, "a")["counters"]["in_frames"] == before)


def _frames_to_c(lab: Lab) -> int:
    return int(labs.port_status(lab, "a")["counters"]["flooded"])


def test_only_a_bridge_may_send_as_another(lab: Lab) -> None:
    """a, no bridge, forges a guest's address: dropped, counted, and nothing is learned from it."""
    ping(lab["b"], GUESTS["x"])
    guest = lab["c"].run(["ip", "netns", "exec", "x", "cat", "/sys/class/net/eth0/address"])
    mac = guest.stdout.strip().replace(":", "")
    b = labs.node_status(lab, "b")["mac"].replace(":", "")
    with Traffic(lab) as traffic:
        with inside(lab["a"], "raw-send", "vni0", f"{b}{mac}88b5{'00' * 46}") as sender:
            sender.result("sent")
        ping(lab["b"], GUESTS["x"], count=5)
        labs.wait_for("the drop", lambda: _spoofs(lab, "a", "b") > 0)
    assert traffic.moved.drops() == {"a>b.drop_spoof": 1}
    assert traffic.moved.frames("b", "a") < 4


def test_a_bridge_cannot_take_a_nodes_own_address(lab: Lab) -> None:
    """MACs of the lab's ports are fixed: not even a bridge may send as one of them."""
    a, b = (labs.node_status(lab, name)["mac"].replace(":", "") for name in "ab")
    with Traffic(lab) as traffic:
        with inside(lab["c"], "raw-send", "vni0", f"{b}{a}88b5{'00' * 46}") as sender:
            sender.result("sent")
        labs.wait_for("the drop", lambda: _spoofs(lab, "c", "b") > 0)
        ping(lab["b"], "10.77.0.1", count=5)
    assert traffic.moved.drops() == {"c>b.drop_spoof": 1}


def _spoofs(lab: Lab, src: str, dst: str) -> int:
    for channel in lab.status()["channels"]:
        if (channel["from"], channel["to"]) == (src, dst):
            return int(channel["drops"].get("spoof", 0))
    return 0
