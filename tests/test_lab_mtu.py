# SPDX-License-Identifier: Apache-2.0
"""Every MTU from the smallest that IP allows to the largest packet that there is."""

from __future__ import annotations

import json

import pytest

import labs
from labs import Traffic, inside, ping
from mint_vni.lab import Lab

NODES = ("a", "b", "c")
IPV4_ICMP, IPV6_ICMP = 28, 48  # bytes of headers in an echo


@pytest.mark.parametrize(
    ("mtu", "layout", "offload"),
    [
        (576, "per-channel", True),
        (1280, "per-channel", True),
        (9000, "per-channel", True),
        (9000, "per-channel", False),
        (9000, "shared", True),
        (65521, "per-channel", True),
        (65521, "shared", False),
    ],
)
def test_an_mtu_is_what_it_says(machine: None, mtu: int, layout: str, offload: bool) -> None:
    """The largest packets pass unfragmented, streams and datagrams arrive whole, nothing drops."""
    network = {"mtu": mtu} | ({"ipv6": None} if mtu < 1280 else {})
    source = labs.source(
        "mtu", NODES, network=network, fabric={"layout": layout}, defaults={"offload": offload}
    )
    with Lab.up(source) as lab, Traffic(lab) as traffic:
        for src, dst in ("ab", "bc", "ca"):
            ping(lab[src], labs.address(lab, dst), "-M", "do", "-s", str(mtu - IPV4_ICMP), count=5)
            if mtu >= 1280:
                size = str(mtu - IPV6_ICMP)
                ping(lab[src], labs.address(lab, dst, 6), "-M", "do", "-s", size, count=5)
        too_much = ["ping", "-c1", "-W0.1", "-M", "do", "-s", str(mtu - IPV4_ICMP + 1), "b"]
        if mtu < 65521:
            assert lab["a"].run([*too_much[:1], "-4", *too_much[1:]], check=False).returncode != 0
        stream(lab, "a", "b")
        got = labs.iperf(lab, "c", "a", "-n", "64M")["bytes"]
        assert got > 60_000_000  # iperf3 stops to count before it has read the last
        datagrams(lab, "b", "c", mtu - IPV4_ICMP)
        report = json.loads(lab["a"].run(["ip", "-j", "link", "show", "vni0"]).stdout)
        assert report[0]["mtu"] == labs.node_status(lab, "a")["mtu"] == mtu
    assert not traffic.moved.drops()


def stream(lab: Lab, src: str, dst: str) -> None:
    """20 MB there, 1 MB back, whole."""
    with inside(lab[dst], "answer", 5001, 1_000_000) as server:
        server.result("ready")
        with inside(lab[src], "exchange", labs.address(lab, dst), 5001, 20_000_000) as client:
            got, said = client.result("received"), server.result("received")
    assert (got["received"], said["received"]) == (said["sent"], got["sent"])
    assert (got["bytes"], said["bytes"]) == (1_000_000, 20_000_000)


def datagrams(lab: Lab, src: str, dst: str, size: int) -> None:
    """Ten datagrams of the largest size, one record each."""
    with inside(lab[dst], "udp-listen", 5002, 10) as server:
        server.result("ready")
        with inside(lab[src], "udp-send", labs.address(lab, dst), 5002, size, 10) as client:
            assert client.result("sent")["sha256"] == server.result("done")["sha256"]
