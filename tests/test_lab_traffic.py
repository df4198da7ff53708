# SPDX-License-Identifier: Apache-2.0
"""Three Linuxes and the unmodified programs of others, in both layouts.

Three, because with two a mistake in look-up or isolation has nowhere to show. What the fabric's
counters say is compared with what the programs say: the frames of a conversation went through its
two channels and nowhere else.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import labs
import machine as machine_module
from labs import Traffic, inside, ping
from mint_vni.lab import Lab

NODES = ("a", "b", "c")
PAIRS = list(itertools.permutations(NODES, 2))

# What a conversation may cause besides: address resolution and the like, a few frames a channel.
STRAY = 12

VLAN, OTHER_VLAN, ETHERTYPE = 7, 8, "88b5"


@pytest.fixture(scope="module", params=["per-channel", "shared", "pooled"])
def lab(request: pytest.FixtureRequest, lab_host: None) -> Iterator[Lab]:
    source = labs.source("trio", NODES, fabric={"layout": request.param}, ssh="mesh")
    with machine_module.unchanged(), Lab.up(source) as lab:
        yield lab


# For what would be no different in the other layout.
once = pytest.mark.parametrize("lab", ["per-channel"], indirect=True)


# --------------------------------------------------------------------------- who is there


def test_nodes_have_no_interface_but_their_port_and_loopback(lab: Lab) -> None:
    for node in lab.nodes:
        links = json.loads(node.run(["ip", "-j", "link"]).stdout)
        assert [link["ifname"] for link in links] == ["lo", "vni0"]
        status = labs.node_status(lab, node.name)
        assert links[1]["address"] == status["mac"]
        assert links[1]["mtu"] == status["mtu"] == 1500


def test_each_pair_pings_over_its_own_two_channels(lab: Lab) -> None:
    for (src, dst), family in itertools.product(PAIRS, (4, 6)):
        # Neighbours known, so that what is counted below is the echoes alone.
        ping(lab[src], labs.address(lab, dst, family))
        with Traffic(lab) as traffic:
            ping(lab[src], labs.address(lab, dst, family), count=30)
        assert traffic.moved.channels(least=30) == {f"{src}>{dst}", f"{dst}>{src}"}
        others = {f"{s}>{d}" for s, d in PAIRS} - {f"{src}>{dst}", f"{dst}>{src}"}
        for channel in others:
            assert traffic.moved.frames(*channel.split(">")) < STRAY, channel
        assert not traffic.moved.drops()


@once
def test_every_byte_is_counted_at_both_ends(lab: Lab) -> None:
    """What a's port took, the channel carried and b's port handed over is the same."""
    ping(lab["a"], "b")
    with Traffic(lab) as traffic:
        ping(lab["a"], "b", count=200)
    moved = traffic.moved
    assert moved.frames("a", "b") + moved.frames("a", "c") >= moved.port("a", "in_frames") >= 200
    taken = moved.frames("a", "b") + moved.frames("c", "b")
    assert moved.port("b", "out_frames") == taken


def test_names_resolve(lab: Lab) -> None:
    for src, dst in itertools.product(NODES, NODES):
        found = lab[src].run(["getent", "ahosts", dst]).stdout
        addresses = {line.split()[0] for line in found.splitlines()}
        assert {labs.address(lab, dst, 4), labs.address(lab, dst, 6)} <= addresses
    assert lab["a"].run(["hostname"]).stdout == "a\n"


# ------------------------------------------------------------------------------- OpenSSH


def test_ssh_from_node_to_node(lab: Lab) -> None:
    pairs = PAIRS if lab.status()["layout"] == "per-channel" else [*zip("abc", "bca", strict=True)]
    for src, dst in pairs:
        with Traffic(lab) as traffic:
            assert lab[src].run(["ssh", dst, "hostname"], timeout=20).stdout == f"{dst}\n"
        assert traffic.moved.channels(least=STRAY) == {f"{src}>{dst}", f"{dst}>{src}"}


def test_ssh_from_the_host_to_a_node(lab: Lab) -> None:
    done = subprocess.run(
        lab["b"].ssh_argv(["hostname"]), capture_output=True, text=True, timeout=20, check=False
    )
    assert (done.returncode, done.stdout) == (0, "b\n"), done.stderr


def test_scp_of_50_megabytes_arrives_whole(lab: Lab) -> None:
    a, b = lab["a"], lab["b"]
    data = b"%08d" * 1024 % tuple(range(1024)) * (50 * 1024 // 8)
    assert len(data) == 50 << 20
    a.run(["sh", "-c", "cat >/tmp/big"], input=data, text=False, timeout=30)
    with Traffic(lab) as traffic:
        a.run(["scp", "-q", "/tmp/big", "b:/tmp/copy"], timeout=60)
    arrived = b.run(["sha256sum", "/tmp/copy"], timeout=30).stdout.split()[0]
    assert arrived == hashlib.sha256(data).hexdigest()
    assert traffic.moved.channels(least=STRAY) == {"a>b", "b>a"}
    a.run(["rm", "/tmp/big"])
    b.run(["rm", "/tmp/copy"])


@once
def test_sftp_there_and_back(lab: Lab) -> None:
    a, b = lab["a"], lab["b"]
    a.run(["sh", "-c", "echo hello >/tmp/there"])
    batch = "put /tmp/there /tmp/here\nget /tmp/here /tmp/back\nls -l /tmp/here\n"
    a.run(["sftp", "-q", "-b", "-", "b"], input=batch, timeout=20)
    assert b.run(["cat", "/tmp/here"]).stdout == "hello\n"
    assert a.run(["cat", "/tmp/back"]).stdout == "hello\n"


@once
def test_files_of_a_node_are_its_own(lab: Lab) -> None:
    name = "mint-test-private"
    for place in ("/tmp", "/run", "/dev/shm"):
        lab["a"].run(["touch", f"{place}/{name}"])
        assert not Path(place, name).exists()
        assert lab["b"].run(["test", "-e", f"{place}/{name}"], check=False).returncode == 1


# -------------------------------------------------------------------------------- iperf3


@pytest.mark.parametrize(("src", "dst"), [("a", "b"), ("b", "a")])
def test_iperf_tcp(lab: Lab, src: str, dst: str) -> None:
    with Traffic(lab) as traffic:
        got = labs.iperf(lab, src, dst, "-t", "1")
    assert got["bits_per_second"] > 0.3e9, got
    assert traffic.moved.channels(least=100) == {f"{src}>{dst}", f"{dst}>{src}"}
    assert not traffic.moved.drops()


def own_losses(lab: Lab, src: str, dst: str) -> int:
    """Packets that the nodes' own queues were too short for."""
    full = lab[dst].run(["cat", "/proc/net/snmp"]).stdout
    names, values = re.findall(r"^Udp: (.*)$", full, re.MULTILINE)
    errors: dict[str, int] = dict(zip(names.split(), map(int, values.split()), strict=True))
    return labs.unsent(lab[src]) + errors["RcvbufErrors"]


@pytest.mark.parametrize(("src", "dst"), [("a", "b"), ("b", "a")])
def test_iperf_udp_loses_nothing_in_the_fabric(lab: Lab, src: str, dst: str) -> None:
    """What iperf3 misses, if anything, the nodes' own kernels dropped: sender's or receiver's."""
    lost = own_losses(lab, src, dst)
    with Traffic(lab) as traffic:
        got = labs.iperf(
            lab, src, dst, "-t", "1", "-4", "-u", "-l", "1472", "-b", "300M", "-w", "4M"
        )
    lost = own_losses(lab, src, dst) - lost
    assert got["packets"] > 10_000, got
    assert not traffic.moved.drops(), traffic.moved.drops()
    assert got["lost_packets"] == lost
    assert traffic.moved.frames(src, dst) >= got["packets"] - lost


# -------------------------------------------------------------- broadcast, multicast, VLAN


@pytest.mark.parametrize(
    ("target", "group"),
    [("10.77.0.255", ""), ("255.255.255.255", ""), ("239.1.2.3", "239.1.2.3"), ("ff15::7",) * 2],
    ids=["subnet-broadcast", "broadcast", "multicast", "multicast-ipv6"],
)
def test_broadcast_and_multicast_reach_all_others(lab: Lab, target: str, group: str) -> None:
    listen: tuple[str | int, ...] = ("udp-listen", 5001, 3, *([group] if group else []))
    with inside(lab["b"], *listen) as one, inside(lab["c"], *listen) as other:
        for child in (one, other):
            child.result("ready")
        with Traffic(lab) as traffic, inside(lab["a"], "udp-send", target, 5001, 900, 3) as sender:
            sent = sender.result("sent")
            got = [child.result("done") for child in (one, other)]
    assert [g["sha256"] for g in got] == [sent["sha256"]] * 2
    assert traffic.moved.port("a", "flooded") >= 3
    assert traffic.moved.frames("a", "b") >= 3 <= traffic.moved.frames("a", "c")


def test_vlan_tags_travel(lab: Lab) -> None:
    """A tagged frame arrives at its receiver alone, with its tag, at the full MTU."""
    a, b = (labs.node_status(lab, name)["mac"].replace(":", "") for name in "ab")
    payload = (b"vlan" * 375).hex()
    frame = f"{b}{a}8100{VLAN:04x}{ETHERTYPE}{payload}"
    with inside(lab["b"], "raw-listen", "vni0", ETHERTYPE) as listener:
        listener.result("ready")
        with Traffic(lab) as traffic, inside(lab["a"], "raw-send", "vni0", frame) as sender:
            assert sender.result("sent")["sent"] == 1518
            got = listener.result("frame")
    assert got == {"frame": f"{b}{a}{ETHERTYPE}{payload}", "tag": VLAN}
    assert traffic.moved.frames("a", "c") < STRAY
    assert not traffic.moved.drops()


@once
def test_vlan_interfaces_talk(lab: Lab) -> None:
    a, b = lab["a"], lab["b"]
    add = ["ip", "link", "add", "link", "vni0", "name", "vni0.7", "type", "vlan", "id", str(VLAN)]
    if a.run(add, check=False).returncode != 0:
        pytest.skip("this kernel has no 8021q; the frames themselves are tested above")
    b.run(add)
    for node, host in ((a, 1), (b, 2)):
        node.run(["ip", "addr", "add", f"10.7.7.{host}/24", "dev", "vni0.7"])
        node.run(["ip", "link", "set", "vni0.7", "up"])
    ping(a, "10.7.7.2", count=5)
    with inside(b, "answer", 5003, 500_000) as server:
        server.result("ready")
        with inside(a, "exchange", "10.7.7.2", 5003, 2_000_000) as client:
            got, said = client.result("received"), server.result("received")
    assert (got["received"], said["received"]) == (said["sent"], got["sent"])
    for node in (a, b):
        node.run(["ip", "link", "del", "vni0.7"])


# ----------------------------------------------------------------------------- isolation


def test_a_node_sees_nothing_of_what_others_say(lab: Lab) -> None:
    """What a tells b is not even readable on c's interface: it never gets there."""
    before = lab["c"].run(["cat", "/sys/class/net/vni0/statistics/rx_bytes"]).stdout
    with inside(lab["b"], "sink", 5004) as sink:
        sink.result("ready")
        with inside(lab["a"], "source", labs.address(lab, "b"), 5004, 5_000_000, 0) as source:
            assert source.result("sent")["sha256"] == sink.result("done")["sha256"]
    after = lab["c"].run(["cat", "/sys/class/net/vni0/statistics/rx_bytes"]).stdout
    assert int(after) - int(before) < 10_000


def test_a_forged_source_address_is_dropped_and_counted(lab: Lab) -> None:
    """No node but a bridge may send as another: the receiver checks it."""
    b, c = (labs.node_status(lab, name)["mac"].replace(":", "") for name in "bc")
    forged = f"{b}{c}{ETHERTYPE}{'00' * 46}"
    unknown = f"{b}0200deadbeef{ETHERTYPE}{'00' * 46}"
    with Traffic(lab) as traffic, inside(lab["b"], "raw-listen", "vni0", ETHERTYPE) as listener:
        listener.result("ready")
        for frame in (forged, unknown):
            with inside(lab["a"], "raw-send", "vni0", frame) as sender:
                sender.result("sent")
        labs.wait_for(
            "two counted drops",
            lambda: _channel(lab, "a", "b")["drops"].get("spoof", 0) >= 2,
        )
        assert listener.process.poll() is None, "a forged frame arrived"
    assert traffic.moved.drops() == {"a>b.drop_spoof": 2}


def test_a_frame_to_nobody_is_dropped_and_counted(lab: Lab) -> None:
    a = labs.node_status(lab, "a")["mac"].replace(":", "")
    with Traffic(lab) as traffic:
        with inside(lab["a"], "raw-send", "vni0", f"0200deadbeef{a}{ETHERTYPE}0102") as sender:
            sender.result("sent")
        before = labs.port_status(lab, "a")["drops"]
        labs.wait_for("the drop", lambda: labs.port_status(lab, "a")["drops"] == before)
    assert traffic.moved.drops() == {"a.drop_unknown": 1}


def _channel(lab: Lab, src: str, dst: str) -> dict[str, dict[str, int]]:
    """A channel's entry in the status."""
    return next(c for c in lab.status()["channels"] if (c["from"], c["to"]) == (src, dst))


# ------------------------------------------------------------------------------ host-only


def test_host_only_lets_nodes_not_log_in_to_each_other(machine: None) -> None:
    with Lab.up(labs.source("closed", ("a", "b", "c"))) as lab:
        refused = lab["a"].run(["ssh", "b", "hostname"], check=False, timeout=20)
        assert refused.returncode == 255
        assert re.search("Permission denied", refused.stderr), refused.stderr
        done = subprocess.run(
            lab["b"].ssh_argv(["hostname"]), capture_output=True, text=True, timeout=20, check=False
        )
        assert (done.returncode, done.stdout) == (0, "b\n"), done.stderr
