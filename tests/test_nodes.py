# SPDX-License-Identifier: Apache-2.0
"""What a node of kind netns is, for real: takes root and /dev/net/tun."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import struct
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from mint_vni.errors import PlatformError
from mint_vni.nodes import KINDS, Node
from mint_vni.nodes.cgroup import CgroupHost
from mint_vni.nodes.proc import in_netns
from mint_vni.ports.tap import open_tap
from node_bench import (
    MEMORY,
    NAMESPACES,
    NEEDS,
    PYTHON,
    Bench,
    allowed,
    link,
    links,
    make_bench,
    make_pair,
    out,
    run,
    soon,
    ssh,
)

pytestmark = NEEDS
bench = pytest.fixture(make_bench)
pair = pytest.fixture(make_pair, scope="module")


def test_namespaces_are_its_own(pair: tuple[Node, Node]) -> None:
    for name in NAMESPACES:
        links = {link(f"/proc/{pid}/ns/{name}") for pid in ("self", pair[0].pid, pair[1].pid)}
        assert len(links) == 3, name
        inside = out(pair[0], "readlink", f"/proc/self/ns/{name}")
        assert inside == link(f"/proc/{pair[0].pid}/ns/{name}")


def test_names(pair: tuple[Node, Node]) -> None:
    assert [out(node, "hostname") for node in pair] == ["a", "b"]
    assert out(pair[0], "cat", "/etc/hostname") == "a"
    assert out(pair[0], "getent", "ahostsv4", "b").split()[0] == "10.99.0.2"
    assert out(pair[0], "getent", "ahostsv6", "b").split()[0] == "fd99::2"
    assert out(pair[0], "getent", "ahostsv4", "localhost").split()[0] == "127.0.0.1"
    assert "10.99.0.2" not in Path("/etc/hosts").read_text()
    assert socket.gethostname() not in ("a", "b")


def test_interface(pair: tuple[Node, Node]) -> None:
    for node, number, mtu in ((pair[0], 1, 1500), (pair[1], 2, 9000)):
        found = links(node)
        assert set(found) == {"lo", "vni0"}
        assert "UP" in found["lo"]["flags"]
        vni = found["vni0"]
        assert (vni["address"], vni["mtu"]) == (f"02:4d:56:99:00:0{number}", mtu)
        assert {"UP", "LOWER_UP"} <= set(vni["flags"])
        assert vni["txqlen"] >= 1000
        addresses = {a["local"]: a for a in vni["addr_info"]}
        assert addresses[f"10.99.0.{number}"]["prefixlen"] == 24
        assert addresses[f"10.99.0.{number}"]["broadcast"] == "10.99.0.255"
        assert addresses[f"fd99::{number}"]["prefixlen"] == 64
        assert any(local.startswith("fe80::") for local in addresses)
        assert not any("tentative" in address for address in addresses.values())
        assert out(node, "ls", "/sys/class/net").split() == ["lo", "vni0"]


TUNGETIFF, TUNGETVNETHDRSZ, TUNGETVNETLE = 0x800454D2, 0x800454D7, 0x800454DD


def test_tap(pair: tuple[Node, Node]) -> None:
    for node in pair:
        assert node.tap_fd is not None
        name, flags = struct.unpack("16sH22x", fcntl.ioctl(node.tap_fd, TUNGETIFF, bytes(40)))
        assert name.rstrip(b"\0") == b"vni0"
        assert flags & 0x5002 == 0x5002, "TAP, no packet information, vnet header"
        for request, value in ((TUNGETVNETHDRSZ, 12), (TUNGETVNETLE, 1)):
            assert struct.unpack("i", fcntl.ioctl(node.tap_fd, request, bytes(4))) == (value,)
        assert not os.get_inheritable(node.tap_fd)


@pytest.mark.skipif(shutil.which("ethtool", path="/usr/sbin:/sbin") is None, reason="no ethtool")
def test_offloads(pair: tuple[Node, Node]) -> None:
    on, off = (out(node, "ethtool", "-k", "vni0") for node in pair)
    for name in ("tx-checksum-ip-generic", "tx-tcp-segmentation", "tx-tcp6-segmentation"):
        assert f"{name}: on" in on
        assert f"{name}: off" in off


def test_tap_errors(pair: tuple[Node, Node], monkeypatch: pytest.MonkeyPatch) -> None:
    netns = os.open(f"/proc/{pair[0].pid}/ns/net", os.O_RDONLY)
    try:
        with pytest.raises(FileExistsError, match="vni0"):
            in_netns(netns, lambda: open_tap("vni0", offload=True))
    finally:
        os.close(netns)
    with pytest.raises(ValueError, match="15 bytes"):
        open_tap("a-name-too-long-", offload=True)
    monkeypatch.setattr("mint_vni.ports.tap.TUN_DEVICE", "/dev/net/none")
    with pytest.raises(PlatformError, match="modprobe tun"):
        open_tap("vni0", offload=True)


def test_private_places(pair: tuple[Node, Node], tmp_path: Path) -> None:
    a, b = pair
    for place in ("/tmp", "/run", "/dev/shm", "/var/log"):
        out(a, "sh", "-c", f"echo mine > {place}/mint-test")
        assert not Path(place, "mint-test").exists()
        assert run(b, "cat", f"{place}/mint-test").returncode == 1
    assert out(a, "stat", "-c", "%a", "/tmp") == "1777"
    assert out(a, "sh", "-c", "ls /proc | grep -c '^[0-9]'") < "9", "few processes, all its own"
    assert out(a, "cat", "/proc/1/comm") == "sleep"
    assert "$" not in out(a, "cat", "/etc/shadow"), "no password hashes"
    assert "root:*:" in out(a, "cat", "/etc/shadow")
    assert str(tmp_path) not in out(a, "ls", "/tmp")


def test_tmpfs_is_bounded(pair: tuple[Node, Node]) -> None:
    size = int(out(pair[0], "stat", "-f", "-c", "%b", "/tmp")) * 4096
    assert size == MEMORY // 2


def test_no_key_of_the_hosts_users_is_seen(bench: Bench, tmp_path: Path) -> None:
    """Uses root's home, which every Debian has; what is there is left as it was."""
    home = Path("/root/.ssh")
    made = not home.exists()
    if made:
        home.mkdir(mode=0o700)
    probe = home / f"mint-test-{bench.lab_id}"
    probe.write_text("secret")
    node = bench.node()
    try:
        node.start()
        assert out(node, "ls", "-A", "/root/.ssh") == ""
        assert out(node, "stat", "-c", "%a", "/root/.ssh") == "700"
        out(node, "sh", "-c", "echo x > /root/.ssh/known_hosts")
        assert not (home / "known_hosts").exists() or not made
    finally:
        node.stop(soon())
        probe.unlink()
        if made:
            home.rmdir()


def test_etc_ssh_is_the_labs(pair: tuple[Node, Node]) -> None:
    assert out(pair[0], "cat", "/etc/ssh/ssh_host_ed25519_key.pub").endswith("mint:bench/a")
    assert "Made by Mint VNI" not in Path("/etc/ssh/ssh_config").read_text()


def test_it_sees_its_own_control_groups(pair: tuple[Node, Node]) -> None:
    status = pair[0].status()
    if status["memory_enforced_by"] == "none":
        pytest.skip("this machine has no memory controller")
    name = {"cgroup-v1": "memory/memory.limit_in_bytes", "cgroup-v2": "memory.max"}
    seen = out(pair[0], "cat", f"/sys/fs/cgroup/{name[status['memory_enforced_by']]}")
    assert int(seen) == MEMORY
    changed = run(pair[0], "sh", "-c", "echo 1 > /sys/fs/cgroup/memory/memory.limit_in_bytes")
    assert changed.returncode != 0


def test_status(pair: tuple[Node, Node]) -> None:
    status = pair[0].status()
    assert json.loads(json.dumps(status)) == status
    assert status["state"] == "running"
    assert status["pid"] == pair[0].pid
    assert (status["name"], status["kind"]) == ("a", "netns")
    assert (status["cpus"], status["memory_limit"]) == ([0], MEMORY)
    assert status["memory_used"] is None or 0 < status["memory_used"] < MEMORY
    assert (status["interface"], status["mac"]) == ("vni0", "02:4d:56:99:00:01")
    assert (status["ipv4"], status["ipv6"], status["mtu"]) == ("10.99.0.1/24", "fd99::1/64", 1500)
    other = pair[1].status()
    assert (other["cpus"], other["cpus_enforced_by"]) == ([], "none")
    assert (other["memory_limit"], other["memory_enforced_by"]) == (None, "none")


def test_the_supervisor_stays_where_it_is(pair: tuple[Node, Node]) -> None:
    assert pair[0].alive()
    for task in Path("/proc/self/task").iterdir():
        assert link(task / "ns/net") == link("/proc/self/ns/net")
        assert link(task / "ns/mnt") == link("/proc/self/ns/mnt")
    assert not list(Path("/run/netns").glob("*mint*"))


def test_memory_limit(pair: tuple[Node, Node]) -> None:
    if pair[0].status()["memory_enforced_by"] == "none":
        pytest.skip("this machine has no memory controller")
    take = "b = bytearray({}); print(len(b))"
    fits, beyond = MEMORY // 4, MEMORY * 2
    assert out(pair[0], PYTHON, "-c", take.format(fits)) == str(fits)
    assert run(pair[0], PYTHON, "-c", take.format(beyond)).returncode == -9
    assert out(pair[1], PYTHON, "-c", take.format(beyond)) == str(beyond)
    assert ssh(pair[0], "hostname").stdout == "a\n", "the node lives on"


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="takes two CPUs")
def test_cpus(pair: tuple[Node, Node]) -> None:
    status = (
        "sh",
        "-c",
        "taskset -c -p 0-1023 $$ >/dev/null 2>&1; grep Cpus_allowed_list /proc/self/status",
    )
    assert out(pair[0], *status).split()[-1] == "0", "also for who would like to have more"
    assert out(pair[1], *status).split()[-1] != "0"
    assert allowed(pair[0].pid) == "0"
    assert "\t0" in ssh(pair[0], "grep Cpus_allowed_list /proc/self/status").stdout


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="takes two CPUs")
def test_worker_is_on_the_nodes_cpus_but_not_in_its_memory(pair: tuple[Node, Node]) -> None:
    if not pair[0].status()["cpus_enforced_by"].startswith("cgroup"):
        pytest.skip("this machine has no cpuset controller")
    with subprocess.Popen(["sleep", "60"]) as worker:
        try:
            for path in pair[0].worker_cgroup_join():
                Path(path).write_text(str(worker.pid))
            assert allowed(worker.pid) == "0"
            groups = Path(f"/proc/{worker.pid}/cgroup").read_text().splitlines()
            memory = [line for line in groups if ":memory:" in line and "mint-" in line]
            assert memory == []
        finally:
            worker.kill()


def test_without_controllers_affinity_does_it(bench: Bench) -> None:
    context = replace(bench.context("a"), cgroups=CgroupHost(None, None))
    node = KINDS["netns"](bench.plan("a"), context)
    try:
        node.start()
        assert node.status()["cpus_enforced_by"] == "affinity"
        assert node.status()["memory_enforced_by"] == "none"
        assert node.status()["memory_used"] is None
        assert allowed(node.pid) == "0"
        seen = out(node, "grep", "Cpus_allowed_list", "/proc/self/status")
        assert seen.split()[-1] == "0"
    finally:
        node.stop(soon())
