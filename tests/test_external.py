# SPDX-License-Identifier: Apache-2.0
"""Nodes of kind external: a vhost-user socket, and machines that somebody else plugs in there."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

import guest_boot
import labs
import machine as machine_module
from guest_boot import NOBODY
from kinds import demand
from labs import Traffic, node_status, port_status, wait_for
from mint_vni.errors import FabricError, NodeError
from mint_vni.lab import Lab
from mint_vni.testing import VhostFrontend

MAC = guest_boot.MAC
NETWORK = {"ipv4": "10.78.0.0/24", "ipv6": "fd78::/64"}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Where anybody may go: unlike pytest's own, up to the root."""
    for path in (tmp_path, *tmp_path.parents):
        if path.stat().st_uid == os.geteuid() and path not in (Path("/"), Path("/tmp")):
            path.chmod(path.stat().st_mode | stat.S_IXOTH)
    return tmp_path


@pytest.fixture
def lab(lab_host: None, directory: Path) -> Iterator[Lab]:
    nodes = {
        "a": {},
        "vm": {
            "kind": "external",
            "socket": str(directory / "vm.sock"),
            "owner": str(NOBODY),
            "mac": MAC,
        },
    }
    with machine_module.unchanged():
        with Lab.up(labs.source("external", nodes, network=NETWORK)) as lab:
            yield lab
        assert not (directory / "vm.sock").exists()


def ping_request(lab: Lab) -> bytes:
    """An ARP request of the machine's, for a's address."""
    own = bytes.fromhex(MAC.replace(":", ""))
    addresses = [socket.inet_aton(labs.address(lab, name)) for name in ("vm", "a")]
    arp = bytes.fromhex("0001080006040001") + own + addresses[0] + bytes(6) + addresses[1]
    return b"\xff" * 6 + own + b"\x08\x06" + arp


def connected(lab: Lab) -> bool:
    return bool(node_status(lab, "vm")["guest"]["connected"])


def test_plug_in_and_out(lab: Lab, directory: Path) -> None:
    path = directory / "vm.sock"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.stat().st_uid == NOBODY
    assert not connected(lab)
    assert node_status(lab, "vm")["memory_enforced_by"] == "none"
    for round_ in range(3):
        with VhostFrontend(path, style="qemu" if round_ % 2 else "uml") as guest:
            guest.send(ping_request(lab))
            answer = next(f.data for f in iter(guest.recv, None) if f.data[12:14] == b"\x08\x06")
            assert answer[:6].hex(":") == MAC
            assert connected(lab)
            assert port_status(lab, "vm")["attachment"] == "vhost-user"
        wait_for("it is unplugged", lambda: not connected(lab))
    assert node_status(lab, "vm")["guest"]["connections"] == 3


def test_a_second_machine_is_turned_away(lab: Lab, directory: Path) -> None:
    path = directory / "vm.sock"
    with VhostFrontend(path) as guest:
        with pytest.raises(FabricError), VhostFrontend(path, timeout=2):
            pytest.fail("a second front end was served")
        guest.send(ping_request(lab))
        guest.recv()
        assert "a guest is connected already" in labs.mint("logs", f"{lab.name}/vm").stdout


def test_nonsense_ends_the_connection_only(lab: Lab, directory: Path) -> None:
    path = directory / "vm.sock"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(path))
        sock.sendall(os.urandom(4096))
        sock.settimeout(5)
        with contextlib.suppress(ConnectionResetError):
            assert sock.recv(1) == b""
    with VhostFrontend(path) as guest:
        guest.send(ping_request(lab))
        guest.recv()


def test_nothing_can_be_run_in_it(lab: Lab) -> None:
    with pytest.raises(NodeError, match="vm is a machine that you started yourself"):
        lab["vm"].run(["true"])


def test_it_outlives_a_supervisor(lab: Lab, directory: Path) -> None:
    with VhostFrontend(directory / "vm.sock") as guest:
        labs.kill(lab.status()["supervisor"]["pid"])
        guest.send(ping_request(lab))
        guest.recv()
        assert connected(lab)
        assert lab.status()["supervisor"]["adoptions"] == 1


def test_a_place_that_is_taken(lab_host: None, directory: Path) -> None:
    """Whatever is there stays there."""
    file = directory / "vm.sock"
    file.write_text("mine")
    source = labs.source("taken", {"a": {}, "vm": {"kind": "external", "socket": str(file)}})
    with machine_module.unchanged(), pytest.raises(NodeError, match="something is there already"):
        Lab.up(source)
    assert file.read_text() == "mine"


def test_what_others_put_in_its_place_stays(lab: Lab, directory: Path) -> None:
    path = directory / "vm.sock"
    path.unlink()
    path.write_text("mine")
    lab.down()
    assert path.read_text() == "mine"
    path.unlink()


def test_an_owner_who_is_nobody(lab_host: None, directory: Path) -> None:
    vm = {"kind": "external", "socket": str(directory / "s"), "owner": "no-such-user"}
    with machine_module.unchanged(), pytest.raises(NodeError, match="has no user no-such-user"):
        Lab.up(labs.source("owner", {"a": {}, "vm": vm}))
    assert not (directory / "s").exists()


def test_a_user_mode_linux_of_somebody_else(lab: Lab, directory: Path) -> None:
    """Started by hand as an unprivileged user, who owns the socket."""
    demand("uml")
    guest = guest_boot.start_uml(device=str(directory / "vm.sock"), user=NOBODY)
    try:
        target = labs.address(lab, "vm")
        wait_for("it answers", lambda: answers(lab, target), timeout=30)
        with Traffic(lab) as traffic:
            labs.ping(lab["a"], target, count=10)
        assert traffic.moved.frames("a", "vm") >= 10
    finally:
        guest.close()
    wait_for("it is unplugged", lambda: not connected(lab))


def test_a_qemu_of_somebody_else(lab: Lab, directory: Path) -> None:
    """With the command line of docs/external.md."""
    demand("qemu")
    device = f"virtio-net-pci,netdev=vni0,mac={MAC},rx_queue_size=1024,tx_queue_size=1024,vectors=0"
    words = [
        *("-chardev", f"socket,id=vni,path={directory / 'vm.sock'},reconnect=1"),
        *("-netdev", "vhost-user,id=vni0,chardev=vni", "-device", device),
    ]
    guest = guest_boot.start_qemu(*words, mac="52:54:00:00:00:99")
    try:
        wait_for("it has booted", lambda: guest.run("true").returncode == 0, timeout=40)
        wait_for("it answers", lambda: answers(lab, labs.address(lab, "vm")), timeout=30)
    finally:
        guest.close()


def answers(lab: Lab, target: str) -> bool:
    argv = ["ping", "-n", "-q", "-c", "1", "-W", "1", target]
    return lab["a"].run(argv, check=False, timeout=10).returncode == 0
