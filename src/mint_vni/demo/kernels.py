# SPDX-License-Identifier: Apache-2.0
"""Second act: a User-Mode Linux and a QEMU guest, each with a kernel of its own, talk.

No image is downloaded: both see a copy-on-write view of the host's file system, so the host's ssh,
scp and iperf3 are there at once. Their network interface is the stock virtio-net driver's.
"""

from __future__ import annotations

import platform
import time
from typing import Any

from rich.table import Table

from mint_vni.bench import iperf
from mint_vni.demo.stage import address, demand, out, step
from mint_vni.lab import Lab

_FILE_BYTES = 16 << 20
_FILE = "/run/demo-file"
_SECONDS = 2.0


def lab(cpus: tuple[int, int]) -> dict[str, Any]:
    """A UML node and a QEMU node, each on a CPU of its own."""
    return {
        "lab": "demo-kernels",
        "network": {"ipv4": "10.78.0.0/24", "ipv6": "fd78::/64"},
        "ssh": "mesh",
        "nodes": {
            "u": {"kind": "uml", "cpus": [cpus[0]], "memory": "256M"},
            "q": {"kind": "qemu", "cpus": [cpus[1]], "memory": "512M"},
        },
    }


def play(running: Lab) -> None:
    """All steps, in order."""
    _versions(running)
    _log_in(running)
    _copy(running)
    _ping(running)
    _measure(running)
    _counted(running)


def _versions(running: Lab) -> None:
    host = platform.release()
    step(f"host$ uname -r  ->  {host}")
    for node in running.nodes:
        release = node.run(["uname", "-r"]).stdout.strip()
        demand(release != host, f"node {node.name} runs the host's kernel, {release}")
        driver = node.run(["readlink", "/sys/class/net/vni0/device/driver"]).stdout.strip()
        step(
            f"host$ mint exec {node.name} -- uname -r  ->  {release}"
            f"    (vni0's driver: {driver.rpartition('/')[2]})"
        )


def _log_in(running: Lab) -> None:
    for a, b in (("u", "q"), ("q", "u")):
        said = running[a].run(["ssh", b, "hostname; uname -r"]).stdout.split()
        demand(said[0] == b, f"ssh {b} hostname printed {said}")
        step(f"{a}$ ssh {b} 'hostname; uname -r'  ->  {' '.join(said)}")


def _copy(running: Lab) -> None:
    u, q, mib = running["u"], running["q"], _FILE_BYTES >> 20
    u.run(["dd", "if=/dev/urandom", f"of={_FILE}", "bs=1M", f"count={mib}", "status=none"])
    begin = time.monotonic()
    u.run(["scp", "-q", _FILE, f"q:{_FILE}"])
    seconds = time.monotonic() - begin
    sums = [node.run(["sha256sum", _FILE]).stdout.split()[0] for node in (u, q)]
    demand(sums[0] == sums[1], f"SHA-256 differ: {sums}")
    step(f"u$ scp file q:  ->  {mib} MiB in {seconds:.1f} s, SHA-256 equal: {sums[0][:16]}...")


def _ping(running: Lab) -> None:
    for family in ("-4", "-6"):
        args = ["ping", family, "-q", "-c", "20", "-i", "0.05", "q"]
        lines = running["u"].run(args).stdout.splitlines()
        demand(any(" 0% packet loss" in line for line in lines), f"ping {family}: {lines}")
        step(f"u$ ping {family} q  ->  {lines[-2].split(',')[2].strip()}, {lines[-1].strip()}")


def _measure(running: Lab) -> None:
    for a, b in (("u", "q"), ("q", "u")):
        flow = iperf.measure(
            running[b].exec_argv,
            running[a].exec_argv,
            address(running, b),
            seconds=_SECONDS,
            udp=False,
        )
        step(f"iperf3 TCP {a} -> {b}: {flow.gbps:.2f} Gbps, {flow.retransmits} retransmissions")


def _counted(running: Lab) -> None:
    status = running.status()
    table = Table(title="What went through the channels", title_justify="left")
    for name in ("channel", "frames", "bytes", "drops"):
        table.add_column(name, justify="left" if name == "channel" else "right")
    for c in status["channels"]:
        drops = ", ".join(f"{why} {n}" for why, n in c["drops"].items()) or "none"
        name = f"{c['from']} -> {c['to']}"
        table.add_row(name, f"{c['frames']:,}", f"{c['bytes']:,}", drops)
    out.print(table)
    forward = next(c for c in status["channels"] if c["from"] == "u")
    demand(forward["bytes"] > _FILE_BYTES, f"the channel carried {forward['bytes']} bytes only")
