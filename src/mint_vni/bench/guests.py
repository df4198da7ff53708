# SPDX-License-Identifier: Apache-2.0
"""What people would use instead, between two kernels: guests with another device than ours.

The guests are those of a lab (`mint_vni.nodes.uml`, `mint_vni.nodes.qemu`): the same kernel, root,
memory, CPU and confinement, started by the same code. Only what is behind their interface differs:

==============  =====================================================================
UML vector tap  ``vec0:transport=tap``, with the settings of the kernel's documentation; the
                TAPs are ports of a Linux bridge
QEMU stream     ``-netdev stream``: the two QEMUs joined by a local stream socket
QEMU tap        ``-netdev tap``: the TAPs are ports of a Linux bridge
==============  =====================================================================

TAPs and bridge are in a network namespace that nobody else has. All ends with this process, however
that ends, see `leash`.
"""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

from pyroute2 import IPRoute

from mint_vni.bench import ways
from mint_vni.bench.leash import recorded
from mint_vni.bench.veth import Namespace
from mint_vni.lab.journal import Journal
from mint_vni.lab.member import agent_uid, guest_uid
from mint_vni.lab.plan import LabPlan, NodePlan, read_plan
from mint_vni.nodes import NodeContext, SshMaterial
from mint_vni.nodes.guest.launch import Confinement
from mint_vni.nodes.guest.node import GuestNode, Streams
from mint_vni.nodes.proc import in_netns
from mint_vni.nodes.qemu import QemuNode
from mint_vni.nodes.uml import UmlNode
from mint_vni.ports.tap import open_tap

__all__ = ["PEERS", "peers_of"]

_STOP_SECONDS: Final = 20.0

# linux/if_tun.h
_TUNSETPERSIST: Final = 0x400454CB
_TUNSETOWNER: Final = 0x400454CC

Make = Callable[[NodePlan, NodeContext], GuestNode]
Opener = Callable[[Sequence[int]], AbstractContextManager[ways.Way]]


class _Vector(UmlNode):
    """User-Mode Linux with its own vector driver on a TAP that exists."""

    tap: str
    netns: str

    def _interface(self) -> list[str]:
        # The settings of the kernel's documentation: long queues, offloads in both directions.
        options = f"transport=tap,ifname={self.tap},depth=128,gro=1,mac={self.plan.mac}"
        return [f"vec0:{options}"]

    def _confinement(self, streams: Streams) -> Confinement:
        usual = super()._confinement(streams)
        return replace(usual, netns=self.netns, devices=[*usual.devices, "net/tun"])


class _Backed(QemuNode):
    """QEMU with a back end of its own behind the card, on a descriptor that it inherits."""

    backend: str
    fd: int

    def _interface(self) -> list[str]:
        # Longer queues for transmitting are for vhost-user alone. What can't go by vhost-user under
        # TCG is the default elsewhere, and quicker: interrupts by MSI-X.
        return [
            *("-netdev", self.backend),
            *("-device", self._card(",rx_queue_size=1024")),
        ]

    def _confinement(self, streams: Streams) -> Confinement:
        usual = super()._confinement(streams)
        return replace(usual, fds=[*usual.fds, self.fd])


# ------------------------------------------------------------------------------ two guests


@dataclass(frozen=True)
class _Pair:
    """Two guests to be.

    Attributes:
        plan: a lab of the two.
        lab_id: part of every name on the host.
        directory: for files.
        journal: of what has a name on the host.
    """

    plan: LabPlan
    lab_id: str
    directory: Path
    journal: Journal

    @property
    def ssh(self) -> SshMaterial:
        """Keys: a guest is ready when its sshd is."""
        plan = self.plan
        names = tuple(node.name for node in plan.nodes)
        return SshMaterial(self.directory / "ssh", plan.name, names, plan.hosts, "host-only")

    def context(self, node: NodePlan) -> NodeContext:
        """What a node is given."""
        state_dir = self.directory / node.name
        state_dir.mkdir(mode=0o700)
        return NodeContext(
            lab=self.plan.name,
            lab_id=self.lab_id,
            hosts=self.plan.hosts,
            state_dir=state_dir,
            ssh=self.ssh,
            journal=self.journal.write,
            guest_uid=guest_uid(self.lab_id, node.index),
            agent_uid=agent_uid(self.lab_id, node.index),
        )


@contextmanager
def _running(pair: _Pair, make: Make) -> Iterator[list[GuestNode]]:
    """Both guests, ready."""
    pair.ssh.generate()
    nodes = [make(plan, pair.context(plan)) for plan in pair.plan.nodes]

    def start(node: GuestNode) -> None:
        node.start()
        node.wait_ready(time.monotonic() + node.ready_seconds)

    with ThreadPoolExecutor(len(nodes)) as pool:
        try:
            for started in [pool.submit(start, node) for node in nodes]:
                started.result()
            yield nodes
        finally:
            deadline = time.monotonic() + _STOP_SECONDS
            for stopped in [pool.submit(node.stop, deadline) for node in nodes]:
                stopped.result()


@contextmanager
def _way(
    name: str,
    kind: str,
    cpus: Sequence[int],
    joining: Callable[[LabPlan, str], AbstractContextManager[Make]],
) -> Iterator[ways.Way]:
    """Two guests as a way.

    Args:
        name: of what joins them.
        kind: theirs.
        cpus: a core for each.
        joining: makes what joins them, for a plan and a lab's id, and then what makes the nodes.
    """
    plan, lab_id = read_plan(ways.lab_of(cpus, (kind, kind))), os.urandom(4).hex()
    with (
        recorded(lab_id, plan.name) as (directory, journal),
        joining(plan, lab_id) as make,
        _running(_Pair(plan, lab_id, directory, journal), make) as nodes,
    ):
        client, server = (partial(type(node).exec_argv, node.describe()) for node in nodes)
        yield ways.Way(name, client, server, str(plan.nodes[1].ipv4).partition("/")[0])


# --------------------------------------------------------------------------------- joining


def _tap_names(plan: LabPlan) -> list[str]:
    return [f"tap{node.index}" for node in plan.nodes]


def _bridge(taps: Sequence[str]) -> None:
    """Join TAPs of this namespace."""
    with IPRoute() as ip:
        ip.link("add", ifname="br0", kind="bridge")
        bridge = ip.link_lookup(ifname="br0")[0]
        ip.link("set", index=bridge, state="up")
        for tap in taps:
            index = ip.link_lookup(ifname=tap)[0]
            ip.link("set", index=index, master=bridge, mtu=1500, state="up")


@contextmanager
def _vector_taps(plan: LabPlan, lab_id: str) -> Iterator[Make]:
    """A TAP for each User-Mode Linux, which its user may open, and a bridge, in one namespace."""
    taps = _tap_names(plan)

    def create() -> None:
        for node, name in zip(plan.nodes, taps, strict=True):
            fd = open_tap(name, offload=True)
            owner = guest_uid(lab_id, node.index)
            fcntl.ioctl(fd, _TUNSETOWNER, owner)
            fcntl.ioctl(fd, _TUNSETPERSIST, 1)
            os.close(fd)
        _bridge(taps)

    with Namespace() as middle:
        in_netns(middle.netns, create)

        def make(node: NodePlan, context: NodeContext) -> GuestNode:
            made = _Vector(node, context)
            made.tap, made.netns = taps[node.index], f"/proc/{middle.pid}/ns/net"
            return made

        yield make


@contextmanager
def _qemu_taps(plan: LabPlan, _lab_id: str) -> Iterator[Make]:
    """A TAP for each QEMU, which inherits its descriptor, and a bridge."""
    taps = _tap_names(plan)
    with ExitStack() as stack:
        middle = stack.enter_context(Namespace())

        def create() -> list[int]:
            fds = []
            for name in taps:
                fds.append(open_tap(name, offload=True))
                stack.callback(os.close, fds[-1])
            _bridge(taps)
            return fds

        yield _backed("tap,id=vni,fd={fd}", in_netns(middle.netns, create))


@contextmanager
def _qemu_stream(_plan: LabPlan, _lab_id: str) -> Iterator[Make]:
    """A local stream socket from one QEMU to the other."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ends[0], ends[1]:
        backend = "stream,id=vni,server=off,addr.type=fd,addr.str={fd}"
        yield _backed(backend, [end.fileno() for end in ends])


def _backed(backend: str, fds: Sequence[int]) -> Make:
    def make(node: NodePlan, context: NodeContext) -> GuestNode:
        made = _Backed(node, context)
        made.fd = fds[node.index]
        made.backend = backend.format(fd=made.fd)
        return made

    return make


def _peer(
    name: str, kind: str, joining: Callable[[LabPlan, str], AbstractContextManager[Make]]
) -> tuple[str, Opener]:
    return name, lambda cpus: _way(name, kind, cpus, joining)


#: By kind of node, by name: opened with the cores of both guests. By the first of a kind all else is
#: divided.
PEERS: Final[dict[str, dict[str, Opener]]] = {
    "uml": dict([_peer("UML vector tap", "uml", _vector_taps)]),
    "qemu": dict(
        [
            _peer("QEMU stream", "qemu", _qemu_stream),
            _peer("QEMU tap", "qemu", _qemu_taps),
        ]
    ),
}


def peers_of(kinds: Sequence[str]) -> dict[str, Opener]:
    """What is measured beside two nodes of these kinds; nothing where they differ."""
    return PEERS.get(kinds[0], {}) if len(set(kinds)) == 1 else {}
