# SPDX-License-Identifier: Apache-2.0
"""First act: two Linuxes on the host's kernel, measured beside a veth pair, turn by turn."""

from __future__ import annotations

import time
from typing import Any

from rich.table import Table

from mint_vni.bench import iperf, veth
from mint_vni.bench.frames import Frames
from mint_vni.bench.noise import Spread, machine
from mint_vni.bench.part import run, settings_of
from mint_vni.bench.result import Result
from mint_vni.demo.stage import address, demand, out, step
from mint_vni.lab import Lab

_FILE_BYTES = 64 << 20
_FILE = "/run/demo-file"  # each node has a /run of its own
_REPETITIONS = 3
_SECONDS = 2.0
_PAPER = {"TCP": 10.51, "UDP": 78.79}  # table 2 of the paper, Gbps


def lab(cpus: tuple[int, int]) -> dict[str, Any]:
    """examples/pair.yaml under a name of its own, with this machine's CPUs."""
    return {
        "lab": "demo",
        "fabric": {"layout": "per-channel", "channel_bytes": "2M"},
        "network": {"ipv4": "10.77.0.0/24", "ipv6": "fd77::/64", "mtu": 1500},
        "ssh": "mesh",
        "nodes": {
            "a": {"cpus": [cpus[0]], "memory": "512M"},
            "b": {"cpus": [cpus[1]], "memory": "512M"},
        },
    }


class Demo:
    """Runs the steps and keeps what they found."""

    def __init__(self, lab: Lab, cpus: tuple[int, int]) -> None:
        """The lab is up."""
        self.lab, self.cpus = lab, cpus
        self.a, self.b = lab["a"], lab["b"]
        self.begin = time.monotonic()
        self.payload = 0  # bytes that applications sent from a to b

    def log_in(self) -> None:
        """OpenSSH from a to b."""
        name = self.a.run(["ssh", "b", "hostname"]).stdout.strip()
        demand(name == "b", f"ssh b hostname printed {name!r}")
        version = self.a.run(["ssh", "-V"]).stderr.strip()
        step(f"a$ ssh b hostname  ->  {name}    ({version}, unmodified)")

    def copy(self) -> None:
        """A file with scp, and its hash on both sides."""
        mib = _FILE_BYTES >> 20
        self.a.run(["dd", "if=/dev/urandom", f"of={_FILE}", "bs=1M", f"count={mib}", "status=none"])
        begin = time.monotonic()
        self.a.run(["scp", "-q", _FILE, f"b:{_FILE}"])
        seconds = time.monotonic() - begin
        sums = [node.run(["sha256sum", _FILE]).stdout.split()[0] for node in (self.a, self.b)]
        demand(sums[0] == sums[1], f"SHA-256 differ: {sums}")
        self.payload += _FILE_BYTES
        step(f"a$ scp file b:  ->  {mib} MiB in {seconds:.1f} s, SHA-256 equal: {sums[0][:16]}...")

    def ping(self) -> None:
        """Both families."""
        for family, label in (("-4", "IPv4"), ("-6", "IPv6")):
            args = ["ping", family, "-q", "-c", "20", "-i", "0.01", "b"]
            lines = self.a.run(args).stdout.splitlines()
            demand(any(" 0% packet loss" in line for line in lines), f"{label}: {lines}")
            step(f"a$ ping {family} b  ->  {lines[-2].split(',')[2].strip()}, {lines[-1].strip()}")

    def alone(self) -> None:
        """The nodes have no other way to each other."""
        for node in (self.a, self.b):
            links = set(node.run(["ls", "/sys/class/net"]).stdout.split())
            demand(links == {"lo", "vni0"}, f"node {node.name} has interfaces {links}")
        step("a$ ls /sys/class/net  ->  lo vni0    (and the same in b: no other interface)")

    def measure(self) -> dict[str, dict[str, list[iperf.Flow]]]:
        """iperf3 over the fabric and over veth, in turns."""
        flows: dict[str, dict[str, list[iperf.Flow]]] = {"TCP": {}, "UDP": {}}
        with veth.VethPair(self.cpus) as pair:
            places: dict[str, tuple[Any, Any, str]] = {
                "mint": (self.b.exec_argv, self.a.exec_argv, address(self.lab, "b")),
                "veth": (
                    lambda args: pair.argv(1, args),
                    lambda args: pair.argv(0, args),
                    veth.ADDRESSES[1],
                ),
            }
            for turn in range(_REPETITIONS):
                for protocol, results in flows.items():
                    for name, (server, client, target) in places.items():
                        flow = iperf.measure(
                            server, client, target, seconds=_SECONDS, udp=protocol == "UDP"
                        )
                        results.setdefault(name, []).append(flow)
                        self.payload += flow.bytes if name == "mint" else 0
                        extra = (
                            f"{flow.loss_percent:.0f}% of {flow.sent_gbps:.1f} Gbps lost"
                            if protocol == "UDP"
                            else f"{flow.retransmits} retransmissions"
                        )
                        step(
                            f"iperf3 {protocol} over {name}, {turn + 1} of {_REPETITIONS}:"
                            f" {flow.gbps:.2f} Gbps, {extra}"
                        )
        return flows

    def counted(self) -> None:
        """Every byte went through the fabric: its counters say so."""
        status = self.lab.status()
        table = Table(title="What went through the channels", title_justify="left")
        for name in ("channel", "frames", "bytes", "drops", "doorbells"):
            table.add_column(name, justify="left" if name == "channel" else "right")
        for c in status["channels"]:
            drops = ", ".join(f"{why} {n}" for why, n in c["drops"].items()) or "none"
            table.add_row(
                f"{c['from']} -> {c['to']}",
                f"{c['frames']:,}",
                f"{c['bytes']:,}",
                drops,
                f"{c['tx']['rings']:,}",
            )
        out.print(table)
        forward = next(c for c in status["channels"] if c["from"] == "a")
        demand(
            forward["bytes"] >= self.payload,
            f"the applications sent {self.payload} bytes, the channel carried {forward['bytes']}",
        )
        step(
            f"the applications received {self.payload:,} bytes of a's; the channel carried them all"
        )


def _table(flows: dict[str, dict[str, list[iperf.Flow]]], buffers: Result) -> Table:
    table = Table(title="Throughput in Gbps: median (min-max)", title_justify="left")
    table.add_column("1500-byte frames")
    for name in ("paper", "here", "veth, same run", "here / veth"):
        table.add_column(name, justify="right")
    for protocol, results in flows.items():
        ours, theirs = (Spread.of([f.gbps for f in results[n]]) for n in ("mint", "veth"))
        table.add_row(
            f"iperf3 {protocol}, socket to socket",
            f"{_PAPER[protocol]:.2f}",
            ours.text(2),
            theirs.text(2),
            f"{ours.median / theirs.median:.2f}",
        )
    for row in buffers.rows:
        table.add_row(
            f"packet buffer alone, {row.key['waiting']}",
            "78.79 (UDP)",
            Spread.of(row.values["gbps"]).text(),
            "-",
            "-",
        )
    return table


def play(lab: Lab, cpus: tuple[int, int]) -> None:
    """All steps, in order."""
    demo = Demo(lab, cpus)
    demo.alone()
    demo.log_in()
    demo.copy()
    demo.ping()
    flows = demo.measure()
    demo.counted()
    step("the packet buffers alone, process to process (mint bench frames)")
    settings = settings_of(
        Frames,
        repetitions=3,
        seconds=0.3,
        cpus=sorted(set(cpus)),
        sizes=[1500],
        layouts=["per-channel"],
        crowds=[],
    )
    buffers = run(Frames(settings))
    out.print(_table(flows, buffers))
    out.print(
        "The paper's machine is another one, and it does not say where its UDP sender sits: only"
        " 'here / veth' compares like with like. See docs/paper.md.",
    )
    facts = machine()
    out.print(f"{facts['cpu']}, {facts['cpus']} CPUs, Linux {facts['kernel']}")
