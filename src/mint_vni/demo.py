# SPDX-License-Identifier: Apache-2.0
"""The main job, shown: two Linuxes, joined by nothing but shared memory; what ``make demo`` runs.

Every step is an unmodified program that a user would run, and its output is checked here. The
figures are measured beside a veth pair in the same run, turn by turn.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from mint_vni.bench import iperf, veth
from mint_vni.bench.frames import Frames
from mint_vni.bench.noise import Spread, machine
from mint_vni.bench.part import run, settings_of
from mint_vni.bench.result import Result
from mint_vni.errors import MintError, NodeError
from mint_vni.lab import Lab
from mint_vni.lab.paths import lab_dir
from mint_vni.lab.process import Process
from mint_vni.nodes.proc import process_start_time

_FILE_BYTES = 64 << 20
_FILE = "/run/demo-file"  # each node has a /run of its own
_REPETITIONS = 3
_SECONDS = 2.0
_PAPER = {"TCP": 10.51, "UDP": 78.79}  # table 2 of the paper, Gbps

out = Console(highlight=False, width=None if sys.stdout.isatty() else 100)


def _cpus() -> tuple[int, int]:
    """Two CPUs, one a node as in the paper; the same twice where there is only one."""
    allowed = sorted(os.sched_getaffinity(0))
    return allowed[0], allowed[min(1, len(allowed) - 1)]


def _lab(cpus: tuple[int, int]) -> dict[str, Any]:
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
        _demand(name == "b", f"ssh b hostname printed {name!r}")
        version = self.a.run(["ssh", "-V"]).stderr.strip()
        _step(f"a$ ssh b hostname  ->  {name}    ({version}, unmodified)")

    def copy(self) -> None:
        """A file with scp, and its hash on both sides."""
        mib = _FILE_BYTES >> 20
        self.a.run(["dd", "if=/dev/urandom", f"of={_FILE}", "bs=1M", f"count={mib}", "status=none"])
        begin = time.monotonic()
        self.a.run(["scp", "-q", _FILE, f"b:{_FILE}"])
        seconds = time.monotonic() - begin
        sums = [node.run(["sha256sum", _FILE]).stdout.split()[0] for node in (self.a, self.b)]
        _demand(sums[0] == sums[1], f"SHA-256 differ: {sums}")
        self.payload += _FILE_BYTES
        _step(f"a$ scp file b:  ->  {mib} MiB in {seconds:.1f} s, SHA-256 equal: {sums[0][:16]}...")

    def ping(self) -> None:
        """Both families."""
        for family, label in (("-4", "IPv4"), ("-6", "IPv6")):
            args = ["ping", family, "-q", "-c", "20", "-i", "0.01", "b"]
            lines = self.a.run(args).stdout.splitlines()
            _demand(any(" 0% packet loss" in line for line in lines), f"{label}: {lines}")
            _step(f"a$ ping {family} b  ->  {lines[-2].split(',')[2].strip()}, {lines[-1].strip()}")

    def alone(self) -> None:
        """The nodes have no other way to each other."""
        for node in (self.a, self.b):
            links = set(node.run(["ls", "/sys/class/net"]).stdout.split())
            _demand(links == {"lo", "vni0"}, f"node {node.name} has interfaces {links}")
        _step("a$ ls /sys/class/net  ->  lo vni0    (and the same in b: no other interface)")

    def measure(self) -> dict[str, dict[str, list[iperf.Flow]]]:
        """iperf3 over the fabric and over veth, in turns."""
        flows: dict[str, dict[str, list[iperf.Flow]]] = {"TCP": {}, "UDP": {}}
        with veth.VethPair(self.cpus) as pair:
            places: dict[str, tuple[Any, Any, str]] = {
                "mint": (self.b.exec_argv, self.a.exec_argv, _address(self.lab, "b")),
                "veth": (
                    lambda args: pair.argv(1, args),
                    lambda args: pair.argv(0, args),
                    veth.ADDRESSES[1],
                ),
            }
            for turn in range(_REPETITIONS):
                for protocol, results in flows.items():
                    for name, (server, client, address) in places.items():
                        flow = iperf.measure(
                            server, client, address, seconds=_SECONDS, udp=protocol == "UDP"
                        )
                        results.setdefault(name, []).append(flow)
                        self.payload += flow.bytes if name == "mint" else 0
                        extra = (
                            f"{flow.loss_percent:.0f}% of {flow.sent_gbps:.1f} Gbps lost"
                            if protocol == "UDP"
                            else f"{flow.retransmits} retransmissions"
                        )
                        _step(
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
        _demand(
            forward["bytes"] >= self.payload,
            f"the applications sent {self.payload} bytes, the channel carried {forward['bytes']}",
        )
        _step(
            f"the applications received {self.payload:,} bytes of a's; the channel carried them all"
        )


def _address(lab: Lab, name: str) -> str:
    node = next(n for n in lab.status()["nodes"] if n["name"] == name)
    return str(node["ipv4"]).partition("/")[0]


def _demand(holds: bool, otherwise: str) -> None:
    if not holds:
        raise NodeError(f"the demonstration failed: {otherwise}")


def _step(text: str) -> None:
    out.print(f"  {text}", markup=False)


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


def _host() -> set[str]:
    """What has a name on the host and is nobody's in particular: interfaces and mounts."""
    links = {f"interface {p.name}" for p in Path("/sys/class/net").iterdir()}
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    return links | {f"mount {line.split()[4]}" for line in mounts}


class Belongings:
    """What a lab has on the host, to be looked for when it is down."""

    def __init__(self, lab: Lab) -> None:
        """Note it while the lab is up."""
        status = lab.status()
        self._directory = lab_dir(lab.name)
        self._id = status["id"]
        pids = [status["supervisor"]["pid"], *(n["pid"] for n in status["nodes"])]
        pids += [port["worker"]["pid"] for port in status["ports"]]
        self._processes = [Process(pid, process_start_time(pid) or 0) for pid in pids]

    def left(self) -> set[str]:
        """What is still there."""
        groups = {f"control group {p}" for p in Path("/sys/fs/cgroup").rglob(f"*{self._id}*")}
        processes = {f"process {p.pid}" for p in self._processes if p.alive()}
        files = {f"files {self._directory}"} if self._directory.exists() else set()
        return groups | processes | files


def _run(steps: Callable[[Lab, tuple[int, int]], None]) -> None:
    cpus = _cpus()
    before = _host()
    begin = time.monotonic()
    out.rule("[bold]Mint VNI: two Linuxes, one machine, shared memory between them")
    with Lab.up(_lab(cpus), lambda text: _step(f"mint up: {text}")) as lab:
        _step(f"ready after {time.monotonic() - begin:.2f} s")
        belongings = Belongings(lab)
        steps(lab, cpus)
        _step("mint down")
    left = (_host() - before) | belongings.left()
    _demand(not left, f"left behind: {sorted(left)}")
    _step("nothing is left: no interface, process, mount, control group or file")
    out.print(
        f"\nDone in {time.monotonic() - begin:.0f} s. Next: sudo .venv/bin/mint up"
        " examples/pair.yaml"
    )


def _steps(lab: Lab, cpus: tuple[int, int]) -> None:
    demo = Demo(lab, cpus)
    demo.alone()
    demo.log_in()
    demo.copy()
    demo.ping()
    flows = demo.measure()
    demo.counted()
    _step("the packet buffers alone, process to process (mint bench frames)")
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


def main(_args: Sequence[str] = ()) -> int:
    """Run the demonstration; the exit status."""
    try:
        _run(_steps)
    except MintError as error:
        print(f"mint: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("mint: interrupted; everything was taken down", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
