# SPDX-License-Identifier: Apache-2.0
"""Programs as ports of a lab: in this process, in others, coming and going while others talk."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

import labs
import machine as machine_module
import mint_vni as mint
from labs import Child, Traffic, inside
from mint_vni.lab import Lab

ADDRESS = "10.77.0.200"
ETHERTYPE = bytes.fromhex("88b5")
BROADCAST = b"\xff" * 6

# A program of its own that echoes frames of our type to where they came from.
ECHO = """
import sys
import mint_vni as mint
with mint.Lab.connect(sys.argv[1]).attach(sys.argv[2]) as port:
    print(port.mac, flush=True)
    while True:
        for frame in port.recv_many(64):
            if frame[12:14] == b"\\x88\\xb5":
                port.send(frame[6:12] + bytes.fromhex(port.mac.replace(":", "")) + frame[12:])
"""


@pytest.fixture(scope="module", params=["per-channel", "shared", "pooled"])
def lab(request: pytest.FixtureRequest, lab_host: None) -> Iterator[Lab]:
    fabric = {"layout": request.param, "slots": 6}
    with machine_module.unchanged(), Lab.up(labs.source("ports", "abc", fabric=fabric)) as lab:
        yield lab


@pytest.fixture(autouse=True)
def ports_are_gone(lab: Lab) -> Iterator[None]:
    """Whoever has gone is forgotten."""
    yield
    labs.wait_for("three ports are left", lambda: len(lab.status()["ports"]) == 3)


def raw(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def frame_to(port: mint.Port, mac: bytes, payload: bytes) -> bytes:
    return mac + raw(port.mac) + ETHERTYPE + payload


def receive(port: mint.Port, payload: bytes, timeout: float = 5.0) -> bytes:
    """The next frame of our type with this payload; nodes chatter, too."""
    while True:
        frame = port.recv(timeout)
        if frame[12:14] == ETHERTYPE and frame[14:] == payload:
            return frame


# ------------------------------------------------------------------------ being a port


def test_two_ports_of_one_process_talk(lab: Lab) -> None:
    with lab.attach("one") as one, lab.attach("two") as two:
        one.send(frame_to(one, raw(two.mac), b"hello"))
        assert receive(two, b"hello")[6:12] == raw(one.mac)
        one.send(frame_to(one, BROADCAST, b"all"))
        receive(two, b"all")
        many = [frame_to(two, raw(one.mac), b"%04d" % i) for i in range(200)]
        assert two.send_many(many) == 200
        got = [f for f in _drain(one, 200) if f[12:14] == ETHERTYPE]
        assert got == many


def _drain(port: mint.Port, count: int) -> list[bytes]:
    """So many frames of our type, and what else came before the last."""
    found: list[bytes] = []
    end = time.monotonic() + labs.DEADLINE
    while (seen := sum(f[12:14] == ETHERTYPE for f in found)) < count:
        assert time.monotonic() < end, f"{seen} frames of {count}"
        found += port.recv_many(256, timeout=1.0)
    return found


def test_a_port_talks_with_another_process(lab: Lab) -> None:
    with Child([sys.executable, "-c", ECHO, lab.name, "echo"]) as echo, lab.attach("here") as here:
        mac = echo.expect(":")
        for i in range(50):
            here.send(frame_to(here, raw(mac), b"%d" % i))
            assert receive(here, b"%d" % i)[6:12] == raw(mac)
        assert labs.port_status(lab, "echo")["attachment"] == "raw"
        assert labs.port_status(lab, "echo")["node"] is None


def test_a_program_that_is_killed_leaves_its_name_free(lab: Lab) -> None:
    for _ in range(2):
        with Child([sys.executable, "-c", ECHO, lab.name, "victim"]) as echo:
            echo.expect(":")
            labs.kill(echo.process.pid)
            labs.wait_for("the port is gone", lambda: len(lab.status()["ports"]) == 3)
    labs.ping(lab["a"], "b", count=3)


def test_a_port_answers_arp_and_ping_with_scapy(lab: Lab) -> None:
    """As examples/ show it: a Linux's equal on the fabric, in a few lines of Python."""
    scapy = pytest.importorskip("scapy.layers.inet", reason="scapy is not installed")
    l2 = pytest.importorskip("scapy.layers.l2")
    with lab.attach("scapy") as port:
        argv = lab["a"].exec_argv(["ping", "-n", "-q", "-c", "5", "-i", "0.2", ADDRESS])
        with Child(argv) as ping:
            answered = 0
            while answered < 5:
                packet = l2.Ether(port.recv(timeout=10))
                answer = _answer(l2, scapy, packet, port.mac)
                if answer is not None:
                    port.send(bytes(answer))
                    answered += answer.haslayer(scapy.ICMP)
            ping.expect(" 5 received")


def _answer(l2: Any, inet: Any, packet: Any, mac: str) -> Any:
    """An answer to ARP for `ADDRESS`, or to an echo request."""
    back = l2.Ether(src=mac, dst=packet.src)
    arp = packet.getlayer(l2.ARP)
    if arp is not None and arp.op == 1 and arp.pdst == ADDRESS:
        return back / l2.ARP(op=2, hwsrc=mac, psrc=ADDRESS, hwdst=arp.hwsrc, pdst=arp.psrc)
    echo = packet.getlayer(inet.ICMP)
    if echo is not None and echo.type == 8:
        reply = inet.ICMP(type=0, id=echo.id, seq=echo.seq)
        source = packet.getlayer(inet.IP).src
        return back / inet.IP(src=ADDRESS, dst=source) / reply / echo.payload
    return None


def test_bad_frames_are_refused_and_counted_and_nothing_is_sent(lab: Lab) -> None:
    with lab.attach("bad") as port, lab.attach("peer") as peer, Traffic(lab) as traffic:
        for length in (0, 13, 65_585, 70_000):
            with pytest.raises(mint.FrameError, match=str(length)):
                port.send(b"\x02" * length)
        port.send(frame_to(port, raw(peer.mac), b"good"))
        receive(peer, b"good")
    assert traffic.moved.drops() == {"bad.drop_short": 2, "bad.drop_long": 2}
    assert traffic.moved.frames("bad", "peer") == 1


# -------------------------------------------------------------------- coming and going


def test_ports_come_and_go_while_nodes_talk(lab: Lab) -> None:
    """A TCP stream between nodes does not notice: nothing is dropped, late or changed."""
    target, before = labs.address(lab, "b"), labs.unsent(lab["a"])
    with Traffic(lab) as traffic, inside(lab["b"], "sink", 5001) as sink:
        sink.result("ready")
        with inside(lab["a"], "source", target, 5001, 0, 60_000_000) as source:
            sink.result("received")
            for i in range(15):
                with lab.attach(f"guest{i % 3}") as port:
                    port.send(frame_to(port, BROADCAST, b"hello"))
                sink.result("received")
            source.close_input()
            sent, got = source.result("sent"), sink.result("done")
    assert (got["done"], got["sha256"]) == (sent["sent"], sent["sha256"])
    assert not traffic.moved.drops_of("abc")
    assert labs.unsent(lab["a"]) == before
    assert got["pause"] < 0.5


def test_ports_come_and_go_at_full_load(lab: Lab) -> None:
    """Workers that always have something to do find the time to hear of new ports."""
    with contextlib.ExitStack() as stack:
        streams: list[tuple[Child, Child]] = []
        for src, dst in ("ab", "cb", "ba"):
            number = 5000 + len(streams)
            sink = stack.enter_context(inside(lab[dst], "sink", number))
            sink.result("ready")
            argv = ("source", labs.address(lab, dst), number, 0, 0)
            streams.append((stack.enter_context(inside(lab[src], *argv)), sink))
        for _, sink in streams:
            sink.result("received")
        for i in range(10):
            start = time.monotonic()
            with lab.attach(f"guest{i % 3}") as port:
                port.send(frame_to(port, BROADCAST, b"hello"))
            assert time.monotonic() - start < 2.0
        for source, sink in streams:
            source.close_input()
            assert source.result("sent", 30)["sha256"] == sink.result("done", 30)["sha256"]
    assert [port["worker"]["restarts"] for port in lab.status()["ports"]] == [0, 0, 0]


def test_ports_find_each_other_at_once(lab: Lab) -> None:
    """What is sent right after attaching arrives, in one process and between two."""
    for _ in range(20):
        with lab.attach("one") as one, lab.attach("two") as two:
            two.send(frame_to(two, raw(one.mac), b"hello"))
            receive(one, b"hello", timeout=2.0)
    with Child([sys.executable, "-c", ECHO, lab.name, "echo"]) as echo:
        mac = echo.expect(":")
        for i in range(20):
            with lab.attach("here") as here:
                here.send(frame_to(here, raw(mac), b"%d" % i))
                receive(here, b"%d" % i, timeout=2.0)


def test_a_port_that_does_not_read_slows_nobody(lab: Lab) -> None:
    """Broadcasts pile up at a deaf port; they are dropped and counted, and others get theirs."""
    with lab.attach("deaf") as deaf, lab.attach("loud") as loud, lab.attach("other") as other:
        frames = [frame_to(loud, BROADCAST, b"%06d" % i + bytes(9000)) for i in range(8)]
        total = 0
        while not _drops(lab, "loud", "deaf"):
            total += loud.send_many(frames)
            _drain(other, len(frames))
            assert total < 2_000, "the deaf port's channel never got full"
        labs.ping(lab["a"], "b", count=5)
        assert deaf.recv_many(16, timeout=1.0)
    assert not _drops(lab, "a", "b")


def _drops(lab: Lab, src: str, dst: str) -> dict[str, int]:
    for channel in lab.status()["channels"]:
        if (channel["from"], channel["to"]) == (src, dst):
            drops: dict[str, int] = channel["drops"]
            return drops
    return {}


# ------------------------------------------------------------------------------- limits


def test_names_and_addresses_are_used_once(lab: Lab) -> None:
    with lab.attach("probe") as probe:
        for name in ("probe", "a"):
            with pytest.raises(mint.LabStateError, match=f"has a port {name} already"):
                lab.attach(name)
        for mac in (probe.mac, labs.node_status(lab, "a")["mac"]):
            with pytest.raises(mint.LabStateError, match=f"MAC {mac} is taken"):
                lab.attach("another", mac=mac)
    with lab.attach("probe", mac="02:00:00:00:00:77") as probe:
        assert probe.mac == "02:00:00:00:00:77"
        with pytest.raises(mint.LabStateError, match="taken"):
            lab.attach("another", mac="02:00:00:00:00:77".upper())


@pytest.mark.parametrize(
    ("name", "mac"),
    [
        ("", None),
        ("x" * 40, None),
        ("has space", None),
        ("../up", None),
        ("ok", "not a mac"),
        ("ok", "02:00:00:00:00"),
        ("ok", "01:00:5e:00:00:01"),
        ("ok", "ff:ff:ff:ff:ff:ff"),
        ("ok", "00:00:00:00:00:00"),
    ],
)
def test_impossible_names_and_addresses_are_refused(lab: Lab, name: str, mac: str | None) -> None:
    with pytest.raises(mint.MintError) as caught:
        lab.attach(name, mac=mac)
    assert caught.value.exit_code != mint.InternalError.exit_code, caught.value
    assert len(lab.status()["ports"]) == 3


def test_there_are_as_many_ports_as_slots(lab: Lab) -> None:
    ports = [lab.attach(f"p{i}") for i in range(3)]
    try:
        with pytest.raises(mint.LabStateError, match=r"no room for another port; .*slots"):
            lab.attach("p3")
        ports.pop().close()
        labs.wait_for("room", lambda: len(lab.status()["ports"]) == 5)
        ports.append(lab.attach("p3"))
    finally:
        for port in ports:
            port.close()


def test_a_stranger_may_not_even_connect(lab: Lab) -> None:
    """The control socket is its owner's: another user gets no further than the directory."""
    code = f"import socket; s = socket.socket(1, 5); s.connect({str(labs.lab_dir(lab.name))!r} + "
    argv = ["setpriv", "--reuid", "65534", "--clear-groups", sys.executable, "-I", "-S", "-c"]
    for name in ("supervisor.sock", "w-a.sock"):
        done = subprocess.run(
            [*argv, f"{code}'/{name}')"], capture_output=True, text=True, timeout=20, check=False
        )
        assert done.returncode != 0
        assert "PermissionError" in done.stderr, done.stderr
