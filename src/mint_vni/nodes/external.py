# SPDX-License-Identifier: Apache-2.0
"""Nodes of kind ``external``: a virtual machine that the user starts, or any vhost-user front end.

The lab gives it a socket, a MAC address and its channels to all others; what is plugged in there
(QEMU, Cloud Hypervisor, crosvm, DPDK's virtio-user), when, and how often, is the user's affair. So
such a node is ready as soon as its socket is there, and nothing can be run in it by ``mint``.

Its life hangs on its agent, see `mint_vni.nodes.guest.agent`, which is all that runs here.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pwd
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self

from mint_vni.errors import NodeError
from mint_vni.nodes import files
from mint_vni.nodes.base import Device, Facts, Node, NodeContext
from mint_vni.nodes.cgroup import NodeCgroup
from mint_vni.nodes.guest.agent_client import IO_DIRECTORY, VHOST_SOCKET, AgentClient
from mint_vni.nodes.guest.launch import Running
from mint_vni.nodes.memlog import make_log, open_log, quote, read_log

if TYPE_CHECKING:
    from mint_vni.lab.plan import NodePlan

__all__ = ["ExternalNode"]

_UNDO_SECONDS: Final = 10.0
_AGENT_STDERR: Final = 2


class ExternalNode(Node):
    """A node of kind ``external``; see the module."""

    kind: ClassVar[str] = "external"
    attachment: ClassVar[str] = "vhost-user"
    has_sshd: ClassVar[bool] = False

    def __init__(self, plan: NodePlan, context: NodeContext) -> None:
        super().__init__(plan, context)
        self._state = "stopped"
        self._cgroup = NodeCgroup()
        self._agent = AgentClient(plan.name, context.state_dir)
        self._log: int | None = None
        self._said = ""
        self._made: dict[str, Any] = {}
        chosen = plan.socket
        self._socket = Path(chosen) if chosen else context.state_dir / IO_DIRECTORY / VHOST_SOCKET

    # ------------------------------------------------------------------ start

    def start(self) -> None:
        """Make the socket and whoever serves it; see `Node.start`."""
        self._state = "starting"
        self.pid = self.start_time = 0
        try:
            self._start()
        except BaseException as error:
            said = self.logs()["node"]
            with contextlib.suppress(NodeError):
                self.stop(time.monotonic() + _UNDO_SECONDS)
            self._state = "failed"
            if isinstance(error, OSError):
                raise self._error(f"could not be started: {error.strerror}", said) from error
            raise

    def _start(self) -> None:
        self._cgroup = NodeCgroup.create(
            self.context.cgroups,
            f"mint-{self.context.lab_id}-{self.plan.name}",
            cpus=self.plan.cpus,
            memory=None,
            journal=self.context.journal,
        )
        self.context.checkpoint("cgroup")
        self._log = make_log(f"mint-{self.plan.name}")
        self._start_agent(self._log)
        self._state = "running"
        self.context.checkpoint("agent")

    def _start_agent(self, log: int) -> None:
        from mint_vni.nodes.guest.agent import Config

        plan = self.plan
        config = Config(
            name=plan.name,
            uid=self.context.agent_uid,
            mac=plan.mac,
            mtu=plan.mtu,
            offload=plan.offload,
        )
        listener = self._listen() if plan.socket else None
        try:
            self._agent.start(config, self._owner(), log, self._hold_agent, listener=listener)
        except NodeError as error:
            raise self._error(f"could not be started: {error}") from error
        finally:
            if listener is not None:
                listener.close()
        process = self._agent.process
        assert process is not None
        self.pid, self.start_time = process.pid, process.start_time

    def _owner(self) -> int:
        """The user who may connect, besides root."""
        owner = self.plan.owner
        if owner is None:
            return os.geteuid()
        try:
            return int(owner) if owner.isdecimal() else pwd.getpwnam(owner).pw_uid
        except KeyError:
            raise self._error(f"could not be started: this machine has no user {owner}") from None

    def _listen(self) -> socket.socket:
        """Make the socket where the lab wants it; nothing that is there is touched."""
        path, sock = str(self._socket), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.bind(path)  # fails if there is something
            self._made = files.made_here(path)
            self.context.journal("file", self._made)
            os.chmod(path, 0o600)  # nobody can connect before it listens
            os.chown(path, self._owner(), -1)
            sock.listen(16)
        except BaseException as error:
            sock.close()
            if isinstance(error, OSError):
                taken = error.errno == errno.EADDRINUSE
                why = "something is there already" if taken else error.strerror or str(error)
                raise self._error(
                    f"could not be started: no socket at {path}: {why}; choose another place"
                ) from None
            raise
        return sock

    def _hold_agent(self, process: Running) -> None:
        self.context.journal("process", {"pid": process.pid, "start": process.start_time})
        for path in self._cgroup.worker_procs:
            Path(path).write_text(str(process.pid))

    def wait_ready(self, deadline: float) -> None:  # noqa: ARG002  # of the interface
        """Return at once: what is plugged in, and when, is the user's affair."""
        if not self.alive():
            raise self._error("is not ready: its agent has ended")

    # ------------------------------------------------------------------ the worker's end

    def device(self) -> Device:
        """Return a socket to the agent for a new worker; see `Node.device`."""
        return self._agent.device(offload=self.plan.offload)

    def worker_cgroup_join(self) -> list[str]:
        """Return files for the worker's pid; see `Node.worker_cgroup_join`."""
        return list(self._cgroup.worker_procs)

    # ------------------------------------------------------------------ re-adoption

    def describe(self) -> dict[str, Any]:
        """Return the node's facts; see `Node.describe`."""
        return {
            "kind": self.kind,
            "name": self.plan.name,
            "pid": self.pid,
            "start_time": self.start_time,
            "cgroup": self._cgroup.to_json(),
            "made": self._made,
        }

    @classmethod
    def adopt(cls, plan: NodePlan, context: NodeContext, facts: Facts, tap_fd: int | None) -> Self:
        """Take over a node; see `Node.adopt`."""
        node = cls(plan, context)
        node.pid, node.start_time = facts["pid"], facts["start_time"]
        node._cgroup = NodeCgroup.from_json(facts["cgroup"])
        node._made = facts["made"]
        node._agent.process = Running(node.pid, node.start_time)
        if node._agent.alive():
            node._log = open_log(node.pid, _AGENT_STDERR)
        if tap_fd is not None:
            os.close(tap_fd)
        node._state = "running"
        return node

    # ------------------------------------------------------------------ state

    def alive(self) -> bool:
        """Tell whether its socket is served; see `Node.alive`."""
        return bool(self.pid) and self._agent.alive()

    def status(self) -> dict[str, Any]:
        """Return the node's entry in the status; see `Node.status`."""
        plan, state = self.plan, self._state
        if state == "running" and not self.alive():
            state = "failed"
        return {
            "name": plan.name,
            "kind": self.kind,
            "state": state,
            "pid": self.pid,
            "cpus": list(plan.cpus),
            "cpus_enforced_by": self._cgroup.cpus_enforced_by,
            "memory_limit": None,
            "memory_used": None,
            "memory_enforced_by": self._cgroup.memory_enforced_by,
            "interface": plan.interface,
            "mac": plan.mac,
            "ipv4": plan.ipv4,
            "ipv6": plan.ipv6,
            "mtu": plan.mtu,
            "guest": {"socket": str(self._socket), **self._agent.facts()},
        }

    def logs(self) -> dict[str, str]:
        """Return what its agent said; see `Node.logs`."""
        said = self._said if self._log is None else read_log(self._log)
        if self._agent.alive():
            with contextlib.suppress(NodeError):
                said += self._agent.logs()["agent"]
        return {"node": said, "sshd": ""}

    # ------------------------------------------------------------------ stop

    def stop(self, deadline: float) -> None:
        """End the agent and remove the socket; see `Node.stop`."""
        self._said = self.logs()["node"]
        if not self._agent.stop(deadline):
            raise self._error("could not be stopped: its agent does not end")
        if self._made:
            files.remove(self._made)
            self._made = {}
        if self._log is not None:
            os.close(self._log)
            self._log = None
        self._cgroup.remove(deadline)
        self._state = "stopped"

    def _error(self, problem: str, said: str = "") -> NodeError:
        tail = quote(said.strip().splitlines()[-5:])
        return NodeError(f"node {self.plan.name} {problem}" + (f" [{tail}]" if tail else ""))

    # ------------------------------------------------------------------ commands

    @classmethod
    def exec_argv(
        cls,
        facts: Facts,
        args: Sequence[str],
        *,
        tty: bool = False,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> list[str]:
        """Refuse: see the module."""
        del args, tty, cwd, env
        raise _closed(facts)

    @classmethod
    def ssh_argv(cls, facts: Facts, args: Sequence[str], *, tty: bool | None = None) -> list[str]:
        """Refuse: see the module."""
        del args, tty
        raise _closed(facts)


def _closed(facts: Facts) -> NodeError:
    return NodeError(
        f"node {facts['name']} is a machine that you started yourself; use its own console, or ssh"
        " from another node"
    )
