# SPDX-License-Identifier: Apache-2.0
"""Ways from one place to another, over which the same programs are measured.

A `Way` is two places, each given as the command line that leads there, and the address of the
second. How they are joined is the way's own business: a lab, a veth pair, a bridge, VDE, DPDK.
Each is a context manager that leaves nothing behind; what this machine lacks is an error that names
the package to install. A new one is one function here.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute

from mint_vni.bench.iperf import Place
from mint_vni.bench.veth import ADDRESSES, Namespace, VethPair
from mint_vni.errors import NodeError, PlatformError
from mint_vni.lab import Lab, model
from mint_vni.nodes.proc import in_netns

_DEADLINE = 10.0
_numbers = itertools.count(1)
Counters = dict[str, dict[str, int]]

#: Kinds of nodes that programs can be run in: all but those that somebody else starts.
KINDS = tuple(name for name, kind in model.KINDS.items() if "socket" not in kind.keys)


@dataclass(frozen=True)
class Way:
    """Two places, joined.

    Attributes:
        name: of what joins them.
        client: the first place.
        server: the second place.
        address: the server's.
        counters: of the fabric's ports by name, where there is one; else nothing.
        lab: the lab, where there is one.
        polls: a process that uses a core all the time; 0: none.
    """

    name: str
    client: Place
    server: Place
    address: str
    counters: Callable[[], Counters] = dict
    lab: Lab | None = None
    polls: int = 0

    @contextmanager
    def active(self) -> Iterator[None]:
        """Around each measurement: what polls all the time is stopped while others are measured."""
        if self.polls:
            os.kill(self.polls, signal.SIGCONT)
        try:
            yield
        finally:
            if self.polls:
                os.kill(self.polls, signal.SIGSTOP)


def need(program: str, package: str) -> str:
    """Where a program is.

    Raises:
        PlatformError: nowhere; with what brings it.
    """
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    found = shutil.which(program, path=path)
    if not found:
        raise PlatformError(f"{program} is not installed; apt-get install {package}")
    return found


# ----------------------------------------------------------------------------------- labs


def lab_of(cpus: Sequence[int], kinds: Sequence[str], **settings: Any) -> dict[str, Any]:
    """A lab of as many nodes as there are kinds, named ``a``, ``b`` ..., each on its core.

    Args:
        cpus: cores, used in turn.
        kinds: of the nodes.
        settings: ``fabric``: keys of that section; the rest are keys of every node.
    """
    fabric = settings.pop("fabric", {})
    return {
        "lab": f"bench{os.getpid()}-{next(_numbers)}",
        "fabric": fabric,
        "nodes": {
            chr(ord("a") + i): {"kind": kind, "cpus": [cpus[i % len(cpus)]], **settings}
            for i, kind in enumerate(kinds)
        },
    }


def address_of(lab: Lab, name: str) -> str:
    """A node's IPv4 address."""
    node = next(n for n in lab.status()["nodes"] if n["name"] == name)
    return str(node["ipv4"]).partition("/")[0]


def counters_of(lab: Lab) -> Counters:
    """Of all ports, by name."""
    return {port["name"]: port["counters"] for port in lab.status()["ports"]}


def kinds_of(asked: Sequence[str] | None, *, quick: bool) -> tuple[str, ...]:
    """The kinds of nodes to measure.

    Raises:
        PlatformError: one that there is not.
    """
    for kind in asked or ():
        if kind not in KINDS:
            raise PlatformError(f"no kind of node {kind} to measure; use one of {', '.join(KINDS)}")
    return tuple(asked or (KINDS[:1] if quick else KINDS))


@contextmanager
def mint(
    name: str, cpus: Sequence[int], kinds: Sequence[str] = ("netns", "netns"), **settings: Any
) -> Iterator[Way]:
    """Two nodes of a lab; the arguments are those of :func:`lab_of`."""
    with Lab.up(lab_of(cpus, kinds, **settings)) as lab:
        a, b = lab["a"], lab["b"]
        yield Way(
            name, a.exec_argv, b.exec_argv, address_of(lab, "b"), lambda: counters_of(lab), lab
        )


# ------------------------------------------------------------------------------- the kernel


@contextmanager
def veth(cpus: tuple[int, int], *, offload: bool = True) -> Iterator[Way]:
    """Two namespaces joined by a veth pair."""
    with VethPair(cpus) as pair:
        if not offload:
            for side in (0, 1):
                argv = pair.argv(side, _ethtool(pair.names[side]))
                subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
        name = "veth" if offload else "veth, no offloads"
        yield Way(name, partial(pair.argv, 0), partial(pair.argv, 1), ADDRESSES[1])


def _ethtool(interface: str) -> list[str]:
    off = [word for name in ("tso", "gso", "gro", "tx", "rx") for word in (name, "off")]
    return [need("ethtool", "ethtool"), "-K", interface, *off]


@contextmanager
def _namespaces(name: str, cpus: tuple[int, int], devices: Sequence[str]) -> Iterator[Any]:
    """Two namespaces, and what makes a way of them once their devices are there."""
    with ExitStack() as stack:
        spaces = [stack.enter_context(Namespace()) for _ in cpus]

        def join() -> Way:
            for space, device, address in zip(spaces, devices, ADDRESSES, strict=True):
                _await_device(space, device)
                in_netns(space.netns, partial(configure, device, address))
            client, server = (
                partial(space.argv, cpu) for space, cpu in zip(spaces, cpus, strict=True)
            )
            return Way(name, client, server, ADDRESSES[1])

        yield spaces, join


def configure(device: str, address: str | None) -> None:
    """Bring a device up, with an address, and the loopback beside it."""
    with IPRoute() as ip:
        index = ip.link_lookup(ifname=device)[0]
        if address:
            ip.addr("add", index=index, address=address, prefixlen=24)
        ip.link("set", index=index, mtu=1500, state="up")
        ip.link("set", index=ip.link_lookup(ifname="lo")[0], state="up")


def _await_device(space: Namespace, device: str) -> None:
    def there() -> bool:
        with IPRoute() as ip:
            return bool(ip.link_lookup(ifname=device))

    await_(f"the interface {device}", lambda: in_netns(space.netns, there))


def await_(what: str, look: Callable[[], Any]) -> Any:
    """Look until there is something to see.

    Raises:
        NodeError: not in time.
    """
    end = time.monotonic() + _DEADLINE
    while not (seen := look()):
        if time.monotonic() > end:
            raise NodeError(f"{what} did not appear within {_DEADLINE:g} s")
        time.sleep(0.01)
    return seen


@contextmanager
def bridge(cpus: tuple[int, int]) -> Iterator[Way]:
    """Two namespaces, each joined by a veth pair to a Linux bridge in a third."""
    with (
        _namespaces("Linux bridge", cpus, ("port0", "port1")) as (spaces, join),
        Namespace() as middle,
    ):

        def create() -> None:
            with IPRoute() as ip:
                ip.link("add", ifname="br0", kind="bridge")
                index = ip.link_lookup(ifname="br0")[0]
                ip.link("set", index=index, state="up")
                for side, space in enumerate(spaces):
                    peer = {"ifname": f"port{side}", "net_ns_fd": space.netns}
                    ip.link("add", ifname=f"leg{side}", kind="veth", peer=peer)
                    leg = ip.link_lookup(ifname=f"leg{side}")[0]
                    ip.link("set", index=leg, master=index, state="up")

        in_netns(middle.netns, create)
        yield join()


# --------------------------------------------------------------------------- in user space


@contextmanager
def started(argv: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """A program that ends with the block."""
    nothing = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    process: subprocess.Popen[Any] = subprocess.Popen(list(argv), **{**nothing, **options})
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(5)
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream:
                stream.close()


@contextmanager
def vde(cpus: tuple[int, int]) -> Iterator[Way]:
    """Two namespaces with a TAP each, plugged into a vde_switch."""
    switch, plug = need("vde_switch", "vde2"), need("vde_plug2tap", "vde2")
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="mint-vde-"))
        # Without -d it reads commands from its standard input, and ends with it.
        stack.enter_context(started([switch, "-s", f"{folder}/switch"], stdin=subprocess.PIPE))
        await_("vde_switch's socket", lambda: Path(folder, "switch", "ctl").exists())
        spaces, join = stack.enter_context(_namespaces("VDE", cpus, ("tap0", "tap0")))
        for space, cpu in zip(spaces, cpus, strict=True):
            stack.enter_context(started(space.argv(cpu, [plug, "-s", f"{folder}/switch", "tap0"])))
        yield join()


def testpmd_argv(cores: str, prefix: str, devices: Sequence[str]) -> list[str]:
    """DPDK's testpmd without huge pages and without hardware."""
    return [
        need("dpdk-testpmd", "dpdk-dev"),
        *("-l", cores, "--no-huge", "-m", "512", "--no-pci", "--no-telemetry"),
        *("--file-prefix", prefix, "--log-level", "1"),
        *(word for device in devices for word in ("--vdev", device)),
        "--",
        *("--total-num-mbufs=8192", "--no-lsc-interrupt"),
    ]


@contextmanager
def dpdk_tap(cpus: tuple[int, int]) -> Iterator[Way]:
    """Two namespaces with a TAP each, joined by testpmd, which polls on the second core."""
    with (
        tempfile.TemporaryDirectory(prefix="mint-dpdk-") as folder,
        _namespaces("DPDK testpmd, TAP", cpus, ("dtap0", "dtap1")) as (spaces, join),
    ):
        devices = ("net_tap0,iface=dtap0", "net_tap1,iface=dtap1")
        # The main core sleeps; the second one polls.
        cores = f"{cpus[0]},{cpus[1]}" if cpus[0] != cpus[1] else f"({0},{1})@{cpus[0]}"
        argv = [
            *testpmd_argv(cores, f"mint{os.getpid()}", devices),
            *("--forward-mode=io", "--auto-start", "--nb-cores=1"),
        ]
        environment = os.environ | {"XDG_RUNTIME_DIR": folder}
        with started(spaces[0].argv(None, argv), stdin=subprocess.PIPE, env=environment) as process:
            _move(spaces, process)
            way = replace(join(), polls=process.pid)
            os.kill(process.pid, signal.SIGSTOP)
            try:
                yield way
            finally:
                os.kill(process.pid, signal.SIGCONT)  # or it could not end


def _move(spaces: Sequence[Namespace], process: subprocess.Popen[Any]) -> None:
    """The second TAP into the second namespace; its descriptor stays with testpmd."""

    def move() -> bool:
        with IPRoute() as ip:
            found = ip.link_lookup(ifname="dtap1")
            up = [link for link in found if ip.get_links(link)[0]["flags"] & 1]
            if up:
                ip.link("set", index=up[0], net_ns_fd=spaces[1].netns)
            return bool(up)

    def look() -> bool:
        if process.poll() is not None:
            raise NodeError(
                f"dpdk-testpmd ended with {process.returncode}; run it by hand to see why"
            )
        return in_netns(spaces[0].netns, move)

    await_("DPDK's TAP", look)


#: What the part `peers` compares with, by name.
PEERS: dict[str, Callable[[tuple[int, int]], Any]] = {
    "veth": veth,
    "Linux bridge": bridge,
    "VDE": vde,
    "DPDK testpmd, TAP": dpdk_tap,
}
