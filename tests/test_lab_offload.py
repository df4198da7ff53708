# SPDX-License-Identifier: Apache-2.0
"""Checksums are right at every receiver, whatever the sender left to be offloaded.

Every ordered pair of a TAP with offloads, a TAP without and a raw port. A TAP's receiver is a
kernel, which counts wrong checksums; a raw port's is `rawhost`, which computes them itself. What a
stream carries is hashed at both ends.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Iterator

import pytest

import labs
import machine as machine_module
from labs import Traffic, inside
from mint_vni.lab import Lab
from rawhost import RawHost, wait_datagrams

# Two of each kind, so that each meets its like, too.
TAPS = {"on1": True, "on2": True, "off1": False, "off2": False}
# Each pair with one version of IP, each version with half of the pairs.
PAIRS = [(*pair, 4 + 2 * (i % 2)) for i, pair in enumerate(itertools.permutations(TAPS, 2))]
RAW_ADDRESS = {4: "10.77.0.200", 6: "fd77::200"}

THERE, BACK = 3_000_000, 1_000_000


@pytest.fixture(scope="module", params=["per-channel", "shared", "pooled"])
def lab(request: pytest.FixtureRequest, lab_host: None) -> Iterator[Lab]:
    nodes = {name: {"offload": offload} for name, offload in TAPS.items()}
    source = labs.source("offload", nodes, fabric={"layout": request.param})
    with machine_module.unchanged(), Lab.up(source) as lab:
        yield lab
        for node in lab.nodes:
            assert wrong_checksums(lab, node.name) == 0


def wrong_checksums(lab: Lab, node: str) -> int:
    """Packets that the node's kernel refused for their checksum."""
    text = lab[node].run(["cat", "/proc/net/snmp", "/proc/net/snmp6"]).stdout
    total, names = 0, [""]
    for line in text.splitlines():
        words = line.split()
        if words[0].endswith("CsumErrors") or words[0] == "Icmp6InErrors":
            total += int(words[1])
        elif words[0].endswith(":") and words[1].isdecimal():
            total += sum(
                int(value) for name, value in zip(names, words, strict=True) if "CsumErr" in name
            )
        names = words
    return total


@pytest.mark.parametrize(("src", "dst", "family"), PAIRS)
def test_tap_to_tap(lab: Lab, src: str, dst: str, family: int) -> None:
    target = labs.address(lab, dst, family)
    with Traffic(lab) as traffic:
        with inside(lab[dst], "answer", 5001, BACK) as server:
            server.result("ready")
            with inside(lab[src], "exchange", target, 5001, THERE) as client:
                got, said = client.result("received"), server.result("received")
        for gso in ((), (1,)):
            with inside(lab[dst], "udp-listen", 5002, 20) as listener:
                listener.result("ready")
                with inside(lab[src], "udp-send", target, 5002, 1400, 20, *gso) as sender:
                    assert sender.result("sent")["sha256"] == listener.result("done")["sha256"]
    assert (got["received"], said["received"]) == (said["sent"], got["sent"])
    assert (got["bytes"], said["bytes"]) == (BACK, THERE)
    assert not traffic.moved.drops()
    assert wrong_checksums(lab, src) == wrong_checksums(lab, dst) == 0
    # Offloads travel: between stacks with offloads a stream takes fewer frames than segments.
    if TAPS[src] and TAPS[dst]:
        assert traffic.moved.frames(src, dst) < THERE // 1448


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("node", ["on1", "off1"])
def test_tap_and_raw_port(lab: Lab, node: str, family: int) -> None:
    """A stream in both directions, datagrams in both, every checksum computed anew."""
    own, peer = RAW_ADDRESS[family], labs.address(lab, node, family)
    with lab.attach("probe") as port:
        neighbour(lab, node, own, port.mac)
        mac = labs.node_status(lab, node)["mac"]
        with RawHost(port, own, mac, BACK) as host:
            with inside(lab[node], "exchange", own, 5001, THERE) as client:
                got = client.result("received", timeout=40)
                assert host.finished.wait(10)
            assert (got["received"], host.received) == (host.sent, got["sent"])
            assert (got["bytes"], host.bytes) == (BACK, THERE)
            datagrams(lab, node, host, peer)
            assert host.longest <= 1514, "a frame that was not segmented"
        assert wrong_checksums(lab, node) == 0


def neighbour(lab: Lab, node: str, address: str, mac: str) -> None:
    """Tell a node the MAC of an address."""
    argv = ["ip", "neigh", "replace", address, "lladdr", mac, "dev", "vni0", "nud", "permanent"]
    lab[node].run(argv)


def datagrams(lab: Lab, node: str, host: RawHost, peer: str) -> None:
    """From the node to the raw port, also many at once, and from the raw port to the node."""
    for gso in ((), (1,)):
        host.datagrams.clear()
        with inside(lab[node], "udp-send", host.address, 5002, 1400, 20, *gso) as sender:
            sent = sender.result("sent")["sha256"]
            got = b"".join(wait_datagrams(host, 20))
        assert hashlib.sha256(got).hexdigest() == sent
    payloads = [random.Random(i).randbytes(700 + i) for i in range(20)]
    with inside(lab[node], "udp-listen", 5002, 20) as listener:
        listener.result("ready")
        host.send_udp(peer, 5002, payloads)
        done = listener.result("done")
    assert done["sha256"] == hashlib.sha256(b"".join(payloads)).hexdigest()


@pytest.mark.parametrize("family", [4, 6])
def test_raw_port_to_raw_port(lab: Lab, family: int) -> None:
    """What a program computed is left as it is."""
    prefix = RAW_ADDRESS[family][:-3]
    with lab.attach("one") as one, lab.attach("two") as two:
        payloads = [random.Random(i).randbytes(i) for i in range(1, 1400, 70)]
        with RawHost(two, f"{prefix}202", one.mac) as receiver:
            sender = RawHost(one, f"{prefix}201", two.mac)
            sender.send_udp(receiver.address, 7, payloads)
            assert wait_datagrams(receiver, len(payloads)) == payloads
