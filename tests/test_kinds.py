# SPDX-License-Identifier: Apache-2.0
"""Labs of several kinds: kernels of their own, the same commands, deaths and reboots."""

from __future__ import annotations

import itertools
import json
import os
import platform
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import labs
import machine as machine_module
from kinds import SMALL, boots, demand, logs_in, reaches, wait_up
from labs import Traffic, inside, node_status, port_status, wait_for
from mint_vni.lab import Lab

KIND = {"n": "netns", "u": "uml", "q": "qemu"}
GUESTS = ["u", "q"]
PAIRS = list(itertools.permutations(KIND, 2))


@pytest.fixture(scope="module")
def lab(lab_host: None) -> Iterator[Lab]:
    demand(*KIND.values())
    nodes = {name: SMALL[kind] for name, kind in KIND.items()}
    source = labs.source("kinds", nodes, ssh="mesh")
    with machine_module.unchanged(), Lab.up(source) as lab:
        yield lab


class TestTogether:
    def test_each_guest_has_a_kernel_of_its_own(self, lab: Lab) -> None:
        releases = {name: lab[name].run(["uname", "-r"]).stdout.strip() for name in KIND}
        assert releases["n"] == platform.release()
        assert len(set(releases.values())) == 3
        for name in GUESTS:
            driver = lab[name].run(["readlink", "/sys/class/net/vni0/device/driver"]).stdout
            assert driver.strip().endswith("/virtio_net")
            assert "Linux version" in lab[name].run(["cat", "/proc/version"]).stdout
            assert releases[name] in labs_log(lab, name)

    @pytest.mark.parametrize(("src", "dst"), PAIRS)
    def test_ssh(self, lab: Lab, src: str, dst: str) -> None:
        assert lab[src].run(["ssh", dst, "hostname"], timeout=30).stdout == f"{dst}\n"

    def test_ssh_across_three_kernels(self, lab: Lab) -> None:
        done = lab["n"].run(["ssh", "u", "ssh", "q", "hostname"], timeout=30)
        assert done.stdout == "q\n"

    @pytest.mark.parametrize("src", GUESTS)
    def test_scp(self, lab: Lab, src: str) -> None:
        dst = next(name for name in GUESTS if name != src)
        lab[src].run(["dd", "if=/dev/urandom", "of=/run/file", "bs=1M", "count=4"])
        lab[src].run(["scp", "-q", "/run/file", f"{dst}:/run/copy"], timeout=40)
        sums = [
            lab[name].run(["sha256sum", path]).stdout.split()[0]
            for name, path in ((src, "/run/file"), (dst, "/run/copy"))
        ]
        assert sums[0] == sums[1]

    @pytest.mark.parametrize(("src", "dst"), PAIRS)
    def test_iperf(self, lab: Lab, src: str, dst: str) -> None:
        with Traffic(lab) as traffic:
            assert labs.iperf(lab, src, dst, "-t", "1")["bytes"] > 1_000_000
        assert traffic.moved.frames(src, dst) > 50

    @pytest.mark.parametrize(("src", "dst"), PAIRS)
    @pytest.mark.parametrize("family", [4, 6])
    def test_ping(self, lab: Lab, src: str, dst: str, family: int) -> None:
        with Traffic(lab) as traffic:
            labs.ping(lab[src], labs.address(lab, dst, family), "-i", "0.01", count=20)
        assert not traffic.moved.drops_of(src + dst)
        assert traffic.moved.frames(src, dst) >= 20

    def test_what_the_status_says(self, lab: Lab) -> None:
        for name in GUESTS:
            node, port = node_status(lab, name), port_status(lab, name)
            assert (node["kind"], node["state"]) == (KIND[name], "running")
            assert (port["attachment"], port["state"]) == ("vhost-user", "up")
            assert {"MRG_RXBUF", "GUEST_TSO4", "HOST_TSO4", "EVENT_IDX"} <= set(
                node["guest"]["features"]
            )
            assert [queue["enabled"] for queue in node["guest"]["queues"]] == [True, True]
        json.dumps(lab.status())


def labs_log(lab: Lab, node: str) -> str:
    """What `mint logs NODE` shows."""
    done = labs.mint("logs", f"{lab.name}/{node}")
    assert done.returncode == 0, done.stderr
    return done.stdout


class TestTrouble:
    @pytest.mark.parametrize("node", GUESTS)
    def test_exec_needs_no_network(self, lab: Lab, node: str) -> None:
        lab[node].run(["ip", "link", "set", "vni0", "down"])
        assert lab[node].run(["hostname"]).stdout == f"{node}\n"
        done = labs.mint("ssh", f"{lab.name}/{node}", "hostname")
        assert done.stdout == f"{node}\n"
        lab[node].run(["ip", "link", "set", "vni0", "up"])
        reaches(lab, "n", node)

    @pytest.mark.parametrize("node", GUESTS)
    def test_the_driver_is_unbound_and_bound_again(self, lab: Lab, node: str) -> None:
        """The node configures its interface as it did when it booted."""
        lines = [
            "device=$(basename $(readlink -f /sys/class/net/vni0/device))",
            "echo $device >/sys/bus/virtio/drivers/virtio_net/unbind",
            "[ ! -e /sys/class/net/vni0 ]",
            "echo $device >/sys/bus/virtio/drivers/virtio_net/bind",
        ]
        lab[node].run(["sh", "-e", "-c", "\n".join(lines)], timeout=20)
        reaches(lab, node, "n")
        other = next(name for name in GUESTS if name != node)
        reaches(lab, other, node)

    @pytest.mark.parametrize("node", GUESTS)
    def test_a_stream_survives_its_worker(self, lab: Lab, node: str) -> None:
        """Both ways: a guest's worker is killed while it sends, and while it receives."""
        for src, dst in ((node, "n"), ("n", node)):
            with inside(lab[dst], "sink", 5003) as sink:
                sink.result("ready")
                target = labs.address(lab, dst)
                with inside(lab[src], "source", target, 5003, 4_000_000, 4_000_000) as source:
                    source.result("connected")
                    restarts = port_status(lab, node)["worker"]["restarts"]
                    labs.kill(port_status(lab, node)["worker"]["pid"])
                    sent = source.result("sent", timeout=30)
                    done = sink.result("done", timeout=30)
            assert done["sha256"] == sent["sha256"]
            assert port_status(lab, node)["worker"]["restarts"] == restarts + 1

    @pytest.mark.parametrize("node", GUESTS)
    def test_a_guest_reboots(self, lab: Lab, node: str) -> None:
        since, before = time.monotonic(), boots(lab, node)
        lab[node].run(["reboot"], check=False, timeout=20)
        wait_up(lab, node, since)
        reaches(lab, "n", node)
        reaches(lab, node, "n")
        assert boots(lab, node) >= before
        logs_in(lab, "n", node)

    @pytest.mark.parametrize("node", GUESTS)
    def test_a_guest_is_killed(self, lab: Lab, node: str) -> None:
        """It is booted again, and the others' traffic does not notice."""
        since, pid = time.monotonic(), node_status(lab, node)["pid"]
        other = next(name for name in GUESTS if name != node)
        with inside(lab["n"], "sink", 5004) as sink:
            sink.result("ready")
            target = labs.address(lab, "n")
            with inside(lab[other], "source", target, 5004, 4_000_000, 2_000_000) as source:
                source.result("connected")
                os.kill(pid, signal.SIGKILL)
                sent, done = source.result("sent", timeout=30), sink.result("done", timeout=30)
        assert done["sha256"] == sent["sha256"]
        assert done["pause"] < 1.0
        wait_for(f"{node} runs again", lambda: node_status(lab, node)["state"] == "running", 30)
        wait_up(lab, node, since)
        assert node_status(lab, node)["pid"] != pid
        reaches(lab, "n", node)

    def test_a_dead_supervisor(self, lab: Lab) -> None:
        """Guests go on, and the next command adopts them."""
        labs.kill(lab.status()["supervisor"]["pid"])
        labs.ping(lab["u"], labs.address(lab, "q"), "-i", "0.05", count=5)
        assert lab.status()["supervisor"]["adoptions"] >= 1
        for node in GUESTS:
            assert node_status(lab, node)["state"] == "running"
            assert lab[node].run(["hostname"]).stdout == f"{node}\n"
            labs.kill(port_status(lab, node)["worker"]["pid"])
            wait_for("its worker is back", lambda: port_status(lab, node)["state"] == "up")  # noqa: B023
            reaches(lab, "n", node)


@pytest.mark.parametrize("mtu", [9000])
def test_jumbo_frames(lab_host: None, mtu: int) -> None:
    demand(*KIND.values())
    nodes = {name: SMALL[kind] for name, kind in KIND.items()}
    source = labs.source("jumbo", nodes, network={"mtu": mtu})
    with machine_module.unchanged(), Lab.up(source) as lab:
        for src, dst in PAIRS:
            size = ["-s", str(mtu - 28), "-M", "do"]
            labs.ping(lab[src], labs.address(lab, dst), *size, count=3)


def test_down_shuts_guests_down(lab_host: None) -> None:
    """Cleanly: what a guest says last is that it powers off."""
    demand("uml", "qemu")
    nodes = {"u": SMALL["uml"], "q": SMALL["qemu"]}
    with machine_module.unchanged():
        lab = Lab.up(labs.source("clean", nodes))
        agents = [node_status(lab, node)["guest"]["agent_pid"] for node in nodes]
        start = time.monotonic()
        lab.down()
        assert time.monotonic() - start < 8
        assert not [pid for pid in agents if Path(f"/proc/{pid}").exists()]


def test_no_kernel(lab_host: None, tmp_path: Path) -> None:
    """One sentence that says which command brings one; nothing is left."""
    file = labs.write(tmp_path, labs.source("bare", {"u": {"kind": "uml"}}))
    env = os.environ | {"MINT_CACHE_DIR": str(tmp_path / "cache"), "PATH": "/usr/bin:/bin"}
    with machine_module.unchanged():
        done = labs.mint("up", file, env=env)
    if done.returncode == 0:
        labs.mint("down", "bare")
        pytest.skip("the machine's own user-mode-linux boots")
    labs.one_sentence(done, 4, "mint kernel install")
    assert re.search("uml|User-Mode", done.stderr)
