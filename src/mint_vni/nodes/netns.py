# SPDX-License-Identifier: Apache-2.0
"""Nodes of kind ``netns``: a Linux of its own on the host's kernel.

Network stack, hostname, System V and POSIX IPC, mounts, processes and the view of control groups
are namespaces of the node's own; CPUs and memory are enforced by `mint_vni.nodes.cgroup`. The file
system is the host's, but for /proc, /sys, /run, /tmp, /dev/shm, /var/log, /etc/hosts,
/etc/hostname, /etc/ssh, /etc/shadow and the users' ~/.ssh, which are private. Root in such a node
is root: the kind isolates labs from accidents, not the host from an attacker.

How a node starts (the names are those of `NodeContext.checkpoint`)::

    supervisor (this file)                      _netns_init.py, an exec'd script
    ----------------------                      --------------------------------
    "cgroup"     make the control groups
    "spawn"      start the script     ------->  join them, unshare, fork the first process
    "process"    pidfd, netns         <-------  its pid
    "tap"        TAP in its netns               mounts, hostname, files
    "interface"  netlink in its netns
    "namespaces" wait for it          <-------  ready
    "journal"    note pid and start
    "sshd"       go ahead             ------->  spawn sshd, become the init (`sleep`)

The supervisor's process stays where it is: a thread of its own enters the network namespace for a
moment (`mint_vni.nodes.proc.in_netns`), and the TAP and sockets made there can be used from
anywhere. Until "journal" is done the script ends when the supervisor does.

The logs of the node and of its sshd (`mint_vni.nodes.memlog`) are kept open by the init, so that a
later supervisor finds them.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self

from mint_vni.errors import NodeError, PlatformError
from mint_vni.nodes import enter
from mint_vni.nodes.base import Device, Facts, Node, NodeContext
from mint_vni.nodes.cgroup import NodeCgroup
from mint_vni.nodes.etc import etc_files
from mint_vni.nodes.memlog import make_log, open_log, quote, read_log
from mint_vni.nodes.proc import (
    in_netns,
    kill_process,
    open_process,
    process_start_time,
    reap,
    receive_fds,
)
from mint_vni.nodes.programs import find_program, search_path
from mint_vni.ports.tap import open_tap

if TYPE_CHECKING:
    from mint_vni.lab.plan import NodePlan

__all__ = ["NetnsNode"]

_SCRIPT: Final = Path(__file__).with_name("_netns_init.py")

# Longest that a step of the start may take: it takes milliseconds, on a machine that swaps more.
_STEP_SECONDS: Final = 20.0
_UNDO_SECONDS: Final = 10.0

_TMPFS_BYTES: Final = 1 << 30
_SSH_PORT: Final = 22

# The init's descriptors with the two logs.
_LOG_FDS: Final = {"node": 2, "sshd": 3}

_ACCEPT_DAD: Final = "/proc/sys/net/ipv6/conf/{}/accept_dad"
_DISABLE_IPV6: Final = "/proc/sys/net/ipv6/conf/{}/disable_ipv6"


class NetnsNode(Node):
    """A node of kind ``netns``; see the module."""

    kind: ClassVar[str] = "netns"
    attachment: ClassVar[str] = "tap"

    def __init__(self, plan: NodePlan, context: NodeContext) -> None:
        super().__init__(plan, context)
        self._state = "stopped"
        self._cgroup = NodeCgroup()
        self._pidfd: int | None = None
        self._sshd: int | None = None
        self._logs: dict[str, int | None] = {}
        self._said = dict.fromkeys(_LOG_FDS, "")

    # ------------------------------------------------------------------ start

    def start(self) -> None:
        """Make the node; see `Node.start`."""
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
        self._make_cgroup()
        self._done("cgroup")
        logs = {name: make_log(f"mint-{self.plan.name}-{name}") for name in _LOG_FDS}
        self._logs = dict(logs)
        request = self._request(logs["sshd"])
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours:
            with theirs:
                process = _spawn(theirs, logs)
            try:
                self._converse(ours, request)
            finally:
                # Its first process ends once it has forked, or when it finds our end closed.
                ours.close()
                process.wait()

    def _converse(self, channel: socket.socket, request: Mapping[str, Any]) -> None:
        """Lead the script through its steps; see `mint_vni.nodes._netns_init`."""
        channel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        channel.settimeout(_STEP_SECONDS)
        self._say(channel, request)
        self._done("spawn")
        self.pid = self._expect(channel, "pid")["pid"]
        if not self._hold_process():
            self._expect(channel, "ready")  # it will say why not
        self._done("process")
        self._make_interface()
        self._expect(channel, "ready")
        self._done("namespaces")
        self.context.journal("process", {"pid": self.pid, "start": self.start_time})
        self._done("journal")
        self._say(channel, {"go": True})
        self._expect(channel, "sshd")
        self._expect(channel, "")
        self._state = "running"
        self._done("sshd")

    def _done(self, step: str) -> None:
        self.context.checkpoint(step)

    def _request(self, sshd_log: int) -> dict[str, Any]:
        """Say what the script is to make; see `mint_vni.nodes._netns_init`."""
        plan = self.plan
        etc = etc_files(plan.name, self.context.hosts)
        return {
            "name": plan.name,
            "cgroups": self._cgroup.node_procs,
            "affinity": self._cgroup.affinity,
            "sysctls": self._sysctls(),
            "files": etc | self.context.ssh.node_files(plan.name),
            "cover": [*etc, "/etc/ssh"],
            "required": ["/etc/hosts", "/etc/ssh"],
            "cgroup_mounts": self.context.cgroups.views,
            "tmpfs_bytes": min(_TMPFS_BYTES, plan.memory // 2 if plan.memory else _TMPFS_BYTES),
            "sshd": [find_program("sshd", "openssh-server"), "-D", "-e"],
            "sshd_log": sshd_log,  # the script has it under the same number
            "sleep": find_program("sleep", "coreutils"),
            "path": search_path(""),
        }

    def _sysctls(self) -> dict[str, str]:
        """Return kernel settings of the new network namespace, before it has an interface."""
        if not Path(_ACCEPT_DAD.format("all")).exists():
            if self.plan.ipv6 is not None:
                raise PlatformError(
                    f"node {self.plan.name}: this kernel has no IPv6; boot it without "
                    "ipv6.disable=1, or leave ipv6 out of the lab's network"
                )
            return {}
        # Link-local addresses are usable at once, too: all who could have the same are ours.
        values = {_ACCEPT_DAD.format(name): "0" for name in ("all", "default")}
        if self.plan.ipv6 is not None:
            values |= {_DISABLE_IPV6.format(name): "0" for name in ("all", "default")}
        return values

    def _make_cgroup(self) -> None:
        self._cgroup = NodeCgroup.create(
            self.context.cgroups,
            f"mint-{self.context.lab_id}-{self.plan.name}",
            cpus=self.plan.cpus,
            memory=self.plan.memory,
            journal=self.context.journal,
        )

    def _say(self, channel: socket.socket, message: Mapping[str, Any]) -> None:
        try:
            channel.send(json.dumps(message).encode())
        except ConnectionError as error:
            raise self._error(f"could not be started: {self._ended()}") from error

    def _expect(self, channel: socket.socket, key: str) -> dict[str, Any]:
        """Receive the next message, which is to have this key; empty: the end of the conversation.

        Raises:
            NodeError: It says what went wrong, or there is none.
        """
        try:
            data, fds = receive_fds(channel, 1 << 16, 1)
        except TimeoutError:
            raise self._error(f"did not get to '{key}' within {_STEP_SECONDS:.0f} s") from None
        except ConnectionError:
            data, fds = b"", []
        self._sshd = fds[0] if fds else self._sshd
        if not data and not key:
            return {}
        message: dict[str, Any] = json.loads(data) if data else {"error": self._ended()}
        if key not in message:
            raise self._error(f"could not be started: {message.get('error', message)}")
        return message

    def _ended(self) -> str:
        limit = self.plan.memory
        hint = f"; is its memory, {limit >> 20} MiB, too small?" if limit is not None else ""
        return f"it ended before it was set up{hint}"

    def _hold_process(self) -> bool:
        """Get hold of the first process; unless it has ended, it waits for us."""
        start_time = process_start_time(self.pid)
        self._pidfd = None if start_time is None else open_process(self.pid, start_time)
        if start_time is None or self._pidfd is None:
            reap(self.pid)
            return False
        self.start_time = start_time
        return True

    def _make_interface(self) -> None:
        """Create and configure the node's interface, from outside."""
        # Imported here, as it takes long and only supervisors need it.
        from mint_vni.nodes import netlink

        plan = self.plan
        interface = netlink.Interface(
            name=plan.interface,
            mac=plan.mac,
            mtu=plan.mtu,
            addresses=tuple(a for a in (plan.ipv4, plan.ipv6) if a is not None),
        )
        netns = os.open(f"/proc/{self.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            self.tap_fd = in_netns(netns, lambda: open_tap(plan.interface, offload=plan.offload))
            self._done("tap")
            in_netns(netns, lambda: netlink.configure(interface))
            self._done("interface")
        except netlink.InterfaceError as error:
            raise self._error(str(error)) from error
        finally:
            os.close(netns)

    # ------------------------------------------------------------------ ready

    def wait_ready(self, deadline: float) -> None:
        """Wait for the sshd's banner; see `Node.wait_ready`."""
        netns = self._open_netns()
        try:
            in_netns(netns, lambda: self._await_banner(deadline))
        finally:
            os.close(netns)

    def _open_netns(self) -> int:
        try:
            netns = os.open(f"/proc/{self.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise self._error("has ended") from error
        if not self.alive():
            os.close(netns)
            raise self._error("has ended")
        return netns

    def _await_banner(self, deadline: float) -> None:
        ended = select.poll()
        for fd in (self._pidfd, self._sshd):
            if fd is not None:
                ended.register(fd, select.POLLIN)
        while True:
            refusal = _banner_refusal(deadline)
            if refusal is None:
                return
            if ended.poll(5):
                raise self._error("is not ready: its sshd ended", self.logs()["sshd"])
            if time.monotonic() >= deadline:
                raise self._error(
                    f"is not ready: its sshd does not answer ({refusal})", self.logs()["sshd"]
                )

    def device(self) -> Device:
        """Return the TAP; see `Node.device`."""
        if self.tap_fd is None:
            raise self._error("has ended")
        return Device("tap", self.tap_fd, self.plan.offload)

    # ------------------------------------------------------------------ re-adoption

    def describe(self) -> dict[str, Any]:
        """Return the node's facts; see `Node.describe`."""
        return {
            "kind": self.kind,
            "name": self.plan.name,
            "pid": self.pid,
            "start_time": self.start_time,
            "cgroup": self._cgroup.to_json(),
            "ssh_dir": str(self.context.ssh.directory),
        }

    @classmethod
    def adopt(cls, plan: NodePlan, context: NodeContext, facts: Facts, tap_fd: int | None) -> Self:
        """Take over a node; see `Node.adopt`."""
        node = cls(plan, context)
        node.pid, node.start_time = facts["pid"], facts["start_time"]
        node._cgroup = NodeCgroup.from_json(facts["cgroup"])
        node._pidfd = open_process(node.pid, node.start_time)
        if node._pidfd is not None:
            node._logs = {name: open_log(node.pid, fd) for name, fd in _LOG_FDS.items()}
        node.tap_fd = tap_fd
        node._state = "running"
        return node

    # ------------------------------------------------------------------ state

    def alive(self) -> bool:
        """Tell whether the node runs; see `Node.alive`."""
        return bool(self.pid) and process_start_time(self.pid) == self.start_time

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
        }

    def logs(self) -> dict[str, str]:
        """Return what was said; see `Node.logs`. The first 256 KiB of each, even after the end."""
        logs = self._logs
        return {name: read_log(logs[name]) for name in _LOG_FDS} if logs else self._said

    def worker_cgroup_join(self) -> list[str]:
        """Return files for the worker's pid; see `Node.worker_cgroup_join`."""
        return list(self._cgroup.worker_procs)

    # ------------------------------------------------------------------ stop

    def stop(self, deadline: float) -> None:
        """End the node; see `Node.stop`."""
        if self.pid and not kill_process(self.pid, self.start_time, deadline):
            raise self._error(f"could not be stopped: process {self.pid} does not end")
        self._close("_pidfd", "_sshd", "tap_fd")
        self._said = self.logs()
        for log in self._logs.values():
            if log is not None:
                os.close(log)
        self._logs = {}
        self._cgroup.remove(deadline)
        self._state = "stopped"

    def _close(self, *attributes: str) -> None:
        for attribute in attributes:
            fd = getattr(self, attribute)
            setattr(self, attribute, None)
            if fd is not None:
                os.close(fd)

    def _error(self, problem: str, said: str | None = None) -> NodeError:
        """Make an error that names the node and quotes the end of what was said."""
        said = self.logs()["node"] if said is None else said
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
        """Return a command line; see `mint_vni.nodes.exec_argv`."""
        return enter.exec_argv(facts, args, tty=tty, cwd=cwd, env=env)

    @classmethod
    def ssh_argv(cls, facts: Facts, args: Sequence[str], *, tty: bool | None = None) -> list[str]:
        """Return a command line; see `mint_vni.nodes.ssh_argv`."""
        return enter.ssh_argv(facts, args, tty=tty)


def _spawn(theirs: socket.socket, logs: Mapping[str, int]) -> subprocess.Popen[bytes]:
    """Start the script; its standard error is the node's log."""
    python = sys.executable or find_program("python3", "python3")
    return subprocess.Popen(
        [python, "-I", "-S", str(_SCRIPT), str(theirs.fileno())],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=logs["node"],
        pass_fds=(theirs.fileno(), logs["sshd"]),
        env={"PATH": search_path(""), "LANG": "C.UTF-8"},
        cwd="/",
        start_new_session=True,
    )


def _banner_refusal(deadline: float) -> str | None:
    """Look for an SSH banner on loopback, in the namespace of the calling thread.

    Returns:
        None if there is one, else why not.
    """
    try:
        left = max(0.01, deadline - time.monotonic())
        with socket.create_connection(("127.0.0.1", _SSH_PORT), timeout=left) as connection:
            banner = connection.recv(4)
    except OSError as error:
        return error.strerror or str(error)
    return None if banner == b"SSH-" else "it closes the connection"
