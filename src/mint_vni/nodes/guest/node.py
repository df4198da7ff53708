# SPDX-License-Identifier: Apache-2.0
"""What kinds of nodes with a kernel of their own have in common: `GuestNode`.

How a node starts (the names are those of `NodeContext.checkpoint`)::

    supervisor (this file)                          others
    ----------------------                          ------
    find kernel and programs
    "cgroup"      make the control groups
    "agent"       start the agent         ------->  agent.py: listens for guest and requests
    "files"       write the initramfs
    "helpers"     start what the guest's process needs (QEMU: virtiofsd)
                  tell the agent          ------->  console and exec channel of the new guest
    "spawn"       start the launcher      ------->  _launch.py: control groups, namespaces
    "process"     hold its process        <-------  its pid
    "namespaces"  wait for it             <-------  its mounts stand
    "journal"     note pid and start
    "boot"        go ahead                ------->  no privileges left; becomes UML or QEMU

The node's life hangs on two processes: the guest's (`Node.pid`) and its agent. The guest can die and
be booted again (`GuestNode.revive`): agent and sockets, which the worker uses, stay.

Files in the node's directory: ``agent.sock``, ``io/vhost.sock``, ``initramfs`` (it holds keys: only
root and the guest's user read it), and empty directories as mount points, on which nothing is
mounted that the host can see.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self

from mint_vni.errors import NodeError
from mint_vni.nodes.base import Device, Facts, Node, NodeContext
from mint_vni.nodes.cgroup import NodeCgroup
from mint_vni.nodes.guest import argv
from mint_vni.nodes.guest.agent_client import IO_DIRECTORY, AgentClient
from mint_vni.nodes.guest.launch import Confinement, Running, launch
from mint_vni.nodes.memlog import QUOTED, make_log, open_log, read_log
from mint_vni.nodes.proc import open_process, wait_ended

if TYPE_CHECKING:
    from mint_vni.lab.plan import NodePlan

__all__ = ["GuestNode", "Streams"]

_UNDO_SECONDS: Final = 10.0
_POWER_OFF_SECONDS: Final = 3.0
_ASK_AGAIN_SECONDS: Final = 0.05
_AGENT_STDERR: Final = 2
_QUOTED_LINES: Final = 8
_PANIC: Final = "Kernel panic"
_ESCAPES: Final = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[^\S\n ]|[\x00-\x08\x0e-\x1f]")


@dataclass(frozen=True)
class Streams:
    """The guest's ends of what joins it to its agent; inherited by its process.

    Attributes:
        console: Its console.
        exec: Its exec channel.
        monitor: QEMU's monitor; None for other kinds.
        files: Files that this boot takes, see `GuestNode._open_files`.
    """

    console: int
    exec: int
    monitor: int | None = None
    files: tuple[int, ...] = ()

    @property
    def fds(self) -> list[int]:
        """All of them."""
        streams = (self.console, self.exec, self.monitor)
        return [fd for fd in streams if fd is not None] + list(self.files)


class GuestNode(Node):
    """A node whose kernel runs in a process of the host; see the module."""

    attachment: ClassVar[str] = "vhost-user"
    ready_seconds: float = 60.0
    revivable: ClassVar[bool] = True
    #: Bytes that the guest's process may take besides the guest's memory.
    overhead: ClassVar[int]
    #: Whether there is a monitor.
    monitored: ClassVar[bool] = False
    #: How often the guest may be reset before it is ready.
    resets_max: int = 0

    def __init__(self, plan: NodePlan, context: NodeContext) -> None:
        super().__init__(plan, context)
        self._state = "stopped"
        self._cgroup = NodeCgroup()
        self._agent = AgentClient(plan.name, context.state_dir)
        self._helpers: list[Running] = []
        self._log: int | None = None
        self._keep: tuple[int, ...] = ()
        self._said = {"node": "", "sshd": ""}
        self._found = False
        self._shown: dict[str, Any] = {}

    # ------------------------------------------------------------------ what a kind has to say

    @abstractmethod
    def _find(self) -> None:
        """Look for kernel, programs and files, before anything is made.

        Raises:
            PlatformError: The machine lacks one.
            NodeError: A file of the user's is missing or can't be used.
        """

    @abstractmethod
    def _write_files(self) -> None:
        """Write what the guest boots from into the node's directory."""

    @abstractmethod
    def _confinement(self, streams: Streams) -> Confinement:
        """Return the guest's process."""

    def _make_kept(self) -> tuple[int, ...]:
        """Return descriptors that the agent is to hold for all boots of the guest."""
        return ()

    def _open_files(self) -> list[int]:
        """Open what one boot takes besides; closed when the guest's process has it."""
        return []

    def _start_helpers(self) -> None:
        """Start processes that the guest's needs, see `_launch_helper`."""

    def _details(self) -> dict[str, Any]:
        """Return what the kind adds to the status."""
        return {}

    # ------------------------------------------------------------------ start

    def start(self) -> None:
        """Boot the guest; see `Node.start`."""
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
                place = f" ({error.filename})" if error.filename else ""
                problem = f"could not be started: {error.strerror}{place}"
                raise self._error(problem, said) from error
            raise

    def _look(self) -> None:
        """Find what it boots from, unless that was done."""
        if not self._found:
            self._find()
            self._found, self._shown = True, self._details()

    def _start(self) -> None:
        self._look()
        self._make_cgroup()
        self._done("cgroup")
        self._log = make_log(f"mint-{self.plan.name}")
        self._keep = self._make_kept()
        self._start_agent()
        self._done("agent")
        self._write_files()
        self._done("files")
        self._boot()

    def _done(self, step: str) -> None:
        self.context.checkpoint(step)

    def _make_cgroup(self) -> None:
        memory = self.plan.memory
        self._cgroup = NodeCgroup.create(
            self.context.cgroups,
            f"mint-{self.context.lab_id}-{self.plan.name}",
            cpus=self.plan.cpus,
            memory=None if memory is None else memory + self.overhead,
            journal=self.context.journal,
        )

    def _start_agent(self) -> None:
        from mint_vni.nodes.guest.agent import Config

        assert self._log is not None
        plan = self.plan
        config = Config(
            name=plan.name,
            uid=self.context.agent_uid,
            mac=plan.mac,
            mtu=plan.mtu,
            offload=plan.offload,
            resets_max=self.resets_max,
            qmp=self.monitored,
        )
        uid, hold = self.context.guest_uid, self._hold_agent
        try:
            self._agent.start(config, uid, self._log, hold, self._keep)
        except NodeError as error:
            raise self._error(f"could not be started: {error}") from error

    def _hold_agent(self, process: Running) -> None:
        self._journal(process)
        for path in self._cgroup.worker_procs:
            Path(path).write_text(str(process.pid))

    def _journal(self, process: Running) -> None:
        self.context.journal("process", {"pid": process.pid, "start": process.start_time})

    def _boot(self) -> None:
        """Boot the guest, for the first time or again."""
        self._end_helpers(time.monotonic() + _UNDO_SECONDS)
        self._start_helpers()
        self._done("helpers")
        with contextlib.ExitStack() as opened:
            files = self._open_files()
            for fd in files:
                opened.callback(os.close, fd)
            pairs = [socket.socketpair() for _ in range(2 + self.monitored)]
            for end in (end for pair in pairs for end in pair):
                opened.enter_context(end)
            ours, theirs = [a.fileno() for a, _ in pairs], [b.fileno() for _, b in pairs]
            self._agent.request("guest", ours, qmp=self.monitored)
            monitor = theirs[2] if self.monitored else None
            streams = Streams(theirs[0], theirs[1], monitor, tuple(files))
            self._launch(self._confinement(streams))
        self._state = "running"

    def _launch(self, spec: Confinement) -> None:
        assert self._log is not None
        try:
            running = launch(spec, self._log, self._hold_guest, self._done)
        except NodeError as error:
            raise self._error(f"could not be started: {error}") from error
        self.pid, self.start_time = running.pid, running.start_time

    def _hold_guest(self, process: Running) -> None:
        self.pid, self.start_time = process.pid, process.start_time
        self._journal(process)

    def _launch_helper(self, spec: Confinement) -> None:
        """Start a process that ends with this boot of the guest."""
        assert self._log is not None
        try:
            self._helpers.append(launch(spec, self._log, self._journal))
        except NodeError as error:
            raise self._error(
                f"could not be started: {Path(spec.argv[0]).name}: {error}"
            ) from error

    def _end_helpers(self, deadline: float) -> bool:
        """End what was left of a boot before."""
        self._helpers = [helper for helper in self._helpers if not helper.kill(deadline)]
        return not self._helpers

    def revive(self) -> None:
        """Boot the guest again after its process has ended; see `Node.revive`."""
        if not self._agent.alive():
            raise self._error(
                "can't be booted again: its agent has ended; take the lab down and up"
            )
        if not Running(self.pid, self.start_time).kill(time.monotonic() + _UNDO_SECONDS):
            raise self._error(f"can't be booted again: process {self.pid} does not end")
        self._state = "starting"
        try:
            self._look()
            self._boot()
        except OSError as error:
            raise self._error(f"could not be booted again: {error.strerror}") from error
        finally:
            if self._state != "running":
                self._state = "failed"

    # ------------------------------------------------------------------ ready

    def wait_ready(self, deadline: float) -> None:
        """Wait until the guest says that its sshd answers; see `Node.wait_ready`."""
        while True:
            left = max(0.01, deadline - time.monotonic())
            status = self._agent.request("wait", wait=left + 5.0, seconds=left)
            if status.get("ready") is True:
                return
            problem = self._fault(status)
            if problem is None and time.monotonic() >= deadline:
                booted = status.get("guest")
                heard = "its sshd does not answer" if booted else "its kernel did not boot"
                problem = f"is not ready in time: {heard}"
            if problem is not None:
                raise self._error(problem)
            time.sleep(_ASK_AGAIN_SECONDS)  # it waits itself, unless it is none of ours any more

    def _fault(self, status: Mapping[str, Any]) -> str | None:
        """Say why the guest won't get ready; None while it may."""
        if status.get("panicked"):
            return "is not ready: its kernel panicked"
        if status.get("stuck"):
            return "is not ready: it was reset while it booted"
        if not self._guest_alive():
            return "is not ready: it ended while it booted"
        if not status.get("console"):
            # Its process is about to end, or has thrown its console away.
            pidfd = open_process(self.pid, self.start_time)
            if pidfd is not None:
                wait_ended(pidfd, time.monotonic() + 1.0)
                os.close(pidfd)
            return "is not ready: it ended while it booted"
        return None

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
        agent = self._agent.process
        return {
            "kind": self.kind,
            "name": self.plan.name,
            "pid": self.pid,
            "start_time": self.start_time,
            "agent": [agent.pid, agent.start_time] if agent else None,
            "helpers": [[helper.pid, helper.start_time] for helper in self._helpers],
            "keep": list(self._keep),
            "details": self._shown,
            "cgroup": self._cgroup.to_json(),
            "state_dir": str(self.context.state_dir),
            "ssh_dir": str(self.context.ssh.directory),
        }

    @classmethod
    def adopt(cls, plan: NodePlan, context: NodeContext, facts: Facts, tap_fd: int | None) -> Self:
        """Take over a node; see `Node.adopt`. The guest may be down: then it is revived.

        What it boots from is looked for only then: the guest runs, whatever became of that.
        """
        node = cls(plan, context)
        node.pid, node.start_time = facts["pid"], facts["start_time"]
        node._cgroup = NodeCgroup.from_json(facts["cgroup"])
        agent = Running(*facts["agent"])
        node._agent.process = agent
        node._helpers = [Running(*helper) for helper in facts["helpers"]]
        node._shown = dict(facts["details"])
        if tap_fd is not None:
            os.close(tap_fd)
        if agent.alive():
            with contextlib.suppress(OSError):  # it ends just now
                node._keep = tuple(_reopen(agent.pid, fd) for fd in facts["keep"])
            node._log = open_log(agent.pid, _AGENT_STDERR)
        node._state = "running"
        return node

    # ------------------------------------------------------------------ state

    def alive(self) -> bool:
        """Tell whether the node runs; see `Node.alive`."""
        return self._guest_alive() and self._agent.alive()

    def servable(self) -> bool:
        """Tell whether a worker can serve it; see `Node.servable`. The guest may be rebooting."""
        return self._agent.alive()

    def _guest_alive(self) -> bool:
        return bool(self.pid) and Running(self.pid, self.start_time).alive()

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
            "memory_limit": plan.memory,
            "memory_used": self._cgroup.memory_used(),
            "memory_enforced_by": self._cgroup.memory_enforced_by,
            "interface": plan.interface,
            "mac": plan.mac,
            "ipv4": plan.ipv4,
            "ipv6": plan.ipv6,
            "mtu": plan.mtu,
            "guest": self._shown | self._agent.facts(),
        }

    def logs(self) -> dict[str, str]:
        """Return what the guest's console and its sshd said; see `Node.logs`."""
        said = self._said["node"] if self._log is None else read_log(self._log)
        if not self._agent.alive():
            return {"node": said + self._said.get("console", ""), "sshd": self._said["sshd"]}
        try:
            logs = self._agent.logs()
        except NodeError:
            return {"node": said, "sshd": ""}
        return {"node": said + logs["agent"] + logs["console"], "sshd": logs["sshd"]}

    # ------------------------------------------------------------------ stop

    def stop(self, deadline: float) -> None:
        """End the guest and its agent; see `Node.stop`."""
        self._power_off(deadline)
        guest = Running(self.pid, self.start_time)
        if self.pid and not guest.kill(deadline):
            raise self._error(f"could not be stopped: process {self.pid} does not end")
        if not self._end_helpers(deadline):
            raise self._error(f"could not be stopped: process {self._helpers[0].pid} does not end")
        self._said = self.logs()
        if not self._agent.stop(deadline):
            raise self._error("could not be stopped: its agent does not end")
        self._close_files()
        self._cgroup.remove(deadline)
        self._state = "stopped"

    def _power_off(self, deadline: float) -> None:
        """Ask the guest to shut down, and give it a moment to do so."""
        if self._state != "running" or not self.alive():
            return
        pidfd = open_process(self.pid, self.start_time)
        if pidfd is None:
            return
        try:
            if self._agent.request("power", how="power-off", wait=2.0).get("asked"):
                wait_ended(pidfd, min(deadline, time.monotonic() + _POWER_OFF_SECONDS))
        except NodeError:
            pass  # it does not matter any more what the agent says
        finally:
            os.close(pidfd)

    def _close_log(self) -> None:
        for fd in (self._log, *self._keep):
            if fd is not None:
                os.close(fd)
        self._log, self._keep = None, ()

    def _close_files(self) -> None:
        self._close_log()
        for name in (IO_DIRECTORY, "initramfs", "root", "fs", "fs-root", "seed.iso"):
            path = self.context.state_dir / name
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    def _error(self, problem: str, said: str | None = None) -> NodeError:
        """Make an error that names the node and quotes the end of what was said."""
        said = self.logs()["node"] if said is None else said
        lines = [line.strip() for line in _ESCAPES.sub("", said).splitlines()]
        tail = " | ".join(_telling([line for line in lines if line]))
        return NodeError(f"node {self.plan.name} {problem}" + (f" [{tail}]" if tail else ""))

    def _mount_point(self, name: str) -> str:
        """Return an empty directory for a process to mount its root on."""
        path = self.context.state_dir / name
        path.mkdir(mode=0o700, exist_ok=True)
        return str(path)

    def _write_private(self, name: str, data: bytes) -> Path:
        """Write a file for the guest's user alone."""
        path = self.context.state_dir / name
        path.unlink(missing_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400)
        with os.fdopen(fd, "wb") as file:
            os.fchown(fd, self.context.guest_uid, self.context.guest_uid)
            file.write(data)
        return path

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
        """Return a command line; see `mint_vni.nodes.exec_argv`."""
        return argv.exec_argv(facts, args, tty=tty, cwd=cwd, env=env)

    @classmethod
    def ssh_argv(cls, facts: Facts, args: Sequence[str], *, tty: bool | None = None) -> list[str]:
        """Return a command line; see `mint_vni.nodes.ssh_argv`."""
        return argv.ssh_argv(facts, args, tty=tty)

    @classmethod
    def console_argv(cls, facts: Facts) -> list[str]:
        """Return a command line; see `mint_vni.nodes.console_argv`."""
        return argv.console_argv(facts)


def _telling(lines: list[str]) -> list[str]:
    """The lines that say most of why it ended: the last, or those from its last panic on; cut."""
    panics = [number for number, line in enumerate(lines) if _PANIC in line]
    start = panics[-1] if panics else len(lines) - _QUOTED_LINES
    return [line[:QUOTED] for line in lines[max(0, start) :][:_QUOTED_LINES]]


def _reopen(pid: int, fd: int) -> int:
    """Open a file that another process holds, for both reading and writing."""
    return os.open(f"/proc/{pid}/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
