# SPDX-License-Identifier: Apache-2.0
"""What every kind of node promises to the supervisor, and what it is given.

A node is an independent Linux: its own CPUs, memory, network stack, name and processes. A kind of
node is a class derived from `Node`, in a file of its own, listed in `mint_vni.nodes.KINDS`.

**Life.** ``Node(plan, context)`` does nothing yet; `Node.start` makes the node or raises and leaves
nothing behind; `Node.wait_ready` returns when its sshd answers; `Node.stop` ends it wholly and may
be called at any time, any number of times. A supervisor that takes over from a dead one makes the
object by `Node.adopt` from the facts that its predecessor had from `Node.describe`.

**Threads.** Different nodes may be started, awaited and stopped at once by different threads. One
node is used by one thread at a time, except for `Node.alive`, `Node.status` and `Node.logs`.

**Names on the host.** Whatever a node needs that has one is journalled before it is made; the
entries are undone by `mint_vni.nodes.undo`.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from mint_vni.errors import NodeError
from mint_vni.nodes.cgroup import CgroupHost
from mint_vni.nodes.ssh import SshMaterial

if (
    TYPE_CHECKING
):  # it brings pydantic along, which whoever runs a command in a node need not wait for
    from mint_vni.lab.plan import NodePlan

__all__ = ["Device", "Facts", "Node", "NodeContext"]

#: What `Node.describe` returns: plain data that survives a trip through JSON.
Facts = Mapping[str, Any]


@dataclass(frozen=True)
class Device:
    """What a node's worker is given to move frames with.

    Attributes:
        kind: ``tap``: `fd` is a TAP device and stays the node's; ``vhost-user``: `fd` is a socket to
            the node's agent, and whoever asked for it is to close it.
        fd: The descriptor.
        offload: Whether the device takes frames with checksums to complete and segments to cut.
    """

    kind: Literal["tap", "vhost-user"]
    fd: int
    offload: bool


def _go_on(step: str) -> None:
    """Let every step pass."""


@dataclass(frozen=True)
class NodeContext:
    """What the lab gives every node.

    Attributes:
        lab: The lab's name.
        lab_id: Its random id; part of every name on the host.
        hosts: Entries of ``/etc/hosts``: an address, and its names.
        state_dir: The node's own directory on the host: exists, mode 0700, root.
        ssh: The lab's keys, made already.
        journal: Called as ``journal(kind, data)`` before anything is made that has a name on the
            host ("cgroup": ``path``; "cgroup-control": ``path``, ``added``), and before the node can
            outlive the supervisor ("process": ``pid``, ``start``). If it raises, nothing is made.
            Called from the thread that starts the node.
        checkpoint: Called with the name of each step of `Node.start` when it is done. If it raises,
            the start fails there and is undone: for interrupts, and for tests.
        cgroups: What control groups the machine offers; looked up once per lab.
        guest_uid: The user that a guest of this node runs as.
        agent_uid: The user that its agent runs as.
    """

    lab: str
    lab_id: str
    hosts: tuple[tuple[str, tuple[str, ...]], ...]
    state_dir: Path
    ssh: SshMaterial
    journal: Callable[[str, dict[str, Any]], None]
    checkpoint: Callable[[str], None] = _go_on
    cgroups: CgroupHost = field(default_factory=CgroupHost.detect)
    guest_uid: int = field(default_factory=os.geteuid)
    agent_uid: int = field(default_factory=os.geteuid)


class Node(ABC):
    """One node of a lab, as the supervisor sees it.

    Attributes:
        kind: The kind's name in lab files.
        attachment: How its interface is joined to its port: ``tap`` or ``vhost-user``.
        ready_seconds: A node that is not ready after so long has failed.
        has_sshd: Whether the lab's ssh keys are for it, too.
        revivable: Whether it can be started again, by `revive`, when it has ended by itself.
        plan: What the node is to be.
        pid: Process id, on the host, of the process that the node's life hangs on; 0 before
            `start`.
        start_time: When that started (field 22 of ``/proc/PID/stat``).
        tap_fd: The node's interface, as opened by `mint_vni.ports.tap.open_tap`; None for kinds
            whose interface is no TAP, and before `start` and after `stop`. It is this object's;
            duplicates of it are to be closed before `stop`, for the interface to vanish.
    """

    kind: ClassVar[str]
    attachment: ClassVar[str]
    ready_seconds: float = 30.0
    has_sshd: ClassVar[bool] = True
    revivable: ClassVar[bool] = False

    def __init__(self, plan: NodePlan, context: NodeContext) -> None:
        self.plan = plan
        self.context = context
        self.pid = 0
        self.start_time = 0
        self.tap_fd: int | None = None

    @abstractmethod
    def start(self) -> None:
        """Make the node: its interface is configured and up, its sshd launched.

        Raises:
            NodeError: It could not be made; nothing of it is left.
            PlatformError: The machine lacks something; nothing of it is left.
        """

    @abstractmethod
    def wait_ready(self, deadline: float) -> None:
        """Return when the node's sshd answers with its banner.

        Args:
            deadline: `time.monotonic` value at which to give up.

        Raises:
            NodeError: It did not answer in time, or the node or its sshd ended; with the reason.
        """

    @abstractmethod
    def device(self) -> Device:
        """Return what a worker of the node, each new one, is to be given.

        Raises:
            NodeError: The node has ended.
        """

    def revive(self) -> None:
        """Start a node again that has ended by itself; with the same identity and place.

        Raises:
            NodeError: It could not be started, or is of a kind that can't.
        """
        raise NodeError(f"node {self.plan.name} has ended; take the lab down and up again")

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return the facts that `adopt`, `exec_argv` and `ssh_argv` need; JSON-able."""

    @classmethod
    @abstractmethod
    def adopt(cls, plan: NodePlan, context: NodeContext, facts: Facts, tap_fd: int | None) -> Self:
        """Take over a node from a supervisor that has died.

        The node, or a part of it, may have ended since: then it is not `alive`, and `stop` removes
        the rest.

        Args:
            plan: What the node is.
            context: As for a new one.
            facts: What `describe` returned to the predecessor.
            tap_fd: A duplicate of the predecessor's, owned by the new object; None: it was lost.
        """

    @abstractmethod
    def alive(self) -> bool:
        """Tell whether the node runs."""

    def servable(self) -> bool:
        """Tell whether a new worker can be given the node's device now."""
        return self.alive()

    @abstractmethod
    def status(self) -> dict[str, Any]:
        """Return the node's entry in ``mint status --json``; live values."""

    @abstractmethod
    def logs(self) -> dict[str, str]:
        """Return what the node ("node") and its sshd ("sshd") said; bounded."""

    @abstractmethod
    def stop(self, deadline: float) -> None:
        """End the node with all its processes and remove what it had on the host.

        Safe to repeat, and at any time after the constructor. Stop its worker before: whatever is
        left in the node's control groups is killed.

        Args:
            deadline: `time.monotonic` value at which to give up.

        Raises:
            NodeError: Something is left; it names what.
        """

    @abstractmethod
    def worker_cgroup_join(self) -> list[str]:
        """Return the files into which to write the pid of the node's worker.

        It then runs on the node's CPUs, without being charged to the node's memory.
        """

    @classmethod
    @abstractmethod
    def exec_argv(
        cls,
        facts: Facts,
        args: Sequence[str],
        *,
        tty: bool = False,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> list[str]:
        """Return a command line that runs a program inside a node; see `mint_vni.nodes`."""

    @classmethod
    @abstractmethod
    def ssh_argv(cls, facts: Facts, args: Sequence[str], *, tty: bool | None = None) -> list[str]:
        """Return a command line that runs ssh into a node; see `mint_vni.nodes`."""

    @classmethod
    def console_argv(cls, facts: Facts) -> list[str]:
        """Return a command line that joins a terminal to a node's console; see `mint_vni.nodes`."""
        raise NodeError(
            f"node {facts['name']} is of kind {facts['kind']}, which has no console; "
            f"try 'mint exec {facts['name']}'"
        )
