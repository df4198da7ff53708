# SPDX-License-Identifier: Apache-2.0
"""What a supervisor does with its lab: bring it up, keep it up, change it, take it down.

Theory of operation: everything here runs in the supervisor's event loop; what blocks (starting a
node, talking to a worker) runs in threads. The order of things, and why:

up      regions first, then nodes and their workers side by side, then the channels, for a worker
        is told of a peer only once both control regions exist; ready when every node's sshd
        answers.
crash   a dead worker is replaced at once: the new one gets the same regions, doorbells and TAP
        (this process holds duplicates of them all) and goes on where the old one stopped.
down    workers, nodes, then names on the host; every step is tried, whatever failed before it.

The set of ports changes one port at a time (`_changing`); what a worker is told, and its
replacement, one after the other for each worker (`Member.lock`). So a worker that hangs delays who
comes or goes, by the time that it takes to call it hung, but never another worker's replacement.

Regions belong to the users of the ports' workers; see `mint_vni.fabric.regions`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import stat
import sys
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from mint_vni.errors import FabricError, LabStateError, MintError, NodeError
from mint_vni.fabric.config import PortSpec
from mint_vni.fabric.counters import ControlView
from mint_vni.fabric.fabric import default_mac
from mint_vni.fabric.regions import Regions
from mint_vni.lab import paths, wire
from mint_vni.lab.journal import Journal
from mint_vni.lab.member import (
    Member,
    agent_uid,
    channel_status,
    guest_uid,
    node_spec,
    worker_uid,
)
from mint_vni.lab.plan import LabPlan, NodePlan
from mint_vni.lab.process import Process
from mint_vni.lab.worker import TELL_S, Worker
from mint_vni.nodes import KINDS, NodeContext, SshMaterial
from mint_vni.nodes.memlog import quote

T = TypeVar("T")

STOP_S = 10.0
_BACKOFF_S = (0.0, 0.05, 0.2, 1.0)  # before a worker's next start, by how often it died lately
_LATELY_S = 5.0
_SAVE_AGAIN_S = 1.0  # between two tries to write the state, where the disk is full
_REVIVALS, _REVIVALS_S = 5, 60.0  # a node may end so often in so long before it is given up
_REVIVE_AGAIN_S = 1.0
# What a port can do with frames that are none of its own, by layout.
_REACH = {"shared": "write all frames", "pooled": "read all that its peers send"}
_PORT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,30}")
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_LOG_BYTES = 256 * 1024  # of a worker's log, from its end
# What decides where programs and kernels are found; whoever starts a supervisor may have others.
_ENVIRONMENT = ("HOME", "MINT_CACHE_DIR", "PATH", "SUDO_UID", "XDG_CACHE_HOME")
_OWN_LOG_BYTES = 4 << 20  # of the supervisor's log, before half of it goes
_logging = threading.Lock()


def log(text: str) -> None:
    """One line to the supervisor's log, of which no more than the end is kept."""
    with _logging:
        sys.stderr.write(f"{datetime.now(UTC).isoformat(timespec='milliseconds')} {text}\n")
        sys.stderr.flush()
        with contextlib.suppress(OSError, ValueError):  # where it is written to is no file
            _shorten(sys.stderr.fileno())


def _shorten(fd: int) -> None:
    """Remove the begin of a log that is written by appending, if that is too long."""
    info = os.fstat(fd)
    if not stat.S_ISREG(info.st_mode) or info.st_size <= _OWN_LOG_BYTES:
        return
    with open(f"/proc/self/fd/{fd}", "r+b") as file:
        file.seek(-_OWN_LOG_BYTES // 2, os.SEEK_END)
        file.readline()  # the rest of a line
        kept = file.read()
        file.seek(0)
        file.write(b"(what was said before is gone)\n" + kept)
        file.truncate()


class Engine:
    """The lab."""

    def __init__(self, plan: LabPlan, directory: Path, lab_id: str, journal: Journal) -> None:
        """Nothing is made yet."""
        self.plan = plan
        self.directory = directory
        self.lab_id = lab_id
        self.journal = journal
        self.state = "starting"
        self.since = datetime.now(UTC).isoformat(timespec="seconds")
        self.adoptions = 0
        self.regions = Regions(plan.layout, plan.slots, plan.channel_bytes)
        self.members: dict[int, Member] = {}
        self._changing = asyncio.Lock()  # one change of the set of ports at a time
        self._tasks: set[asyncio.Task[None]] = set()
        self._saving = False  # a failed save is being tried again
        self._environment = {k: os.environ[k] for k in _ENVIRONMENT if k in os.environ}

    # -- helpers --------------------------------------------------------------------------------

    def by_name(self, name: str) -> Member:
        """The port of this name."""
        for member in self.members.values():
            if member.name == name:
                return member
        names = ", ".join(m.name for m in self.members.values())
        raise LabStateError(f"lab {self.plan.name} has no node {name}; it has {names}")

    def others(self, member: Member) -> list[Member]:
        """All other ports that it has channels with: not those whose regions were lost."""
        index = member.spec.index
        return [m for m in self.members.values() if self.regions.joined(index, m.spec.index)]

    def context(self, node: NodePlan, ssh: SshMaterial) -> NodeContext:
        """What a node is given."""
        state_dir = self.directory / "nodes" / node.name
        state_dir.mkdir(mode=0o700, exist_ok=True)
        return NodeContext(
            lab=self.plan.name,
            lab_id=self.lab_id,
            hosts=self.plan.hosts,
            state_dir=state_dir,
            ssh=ssh,
            journal=self.journal.write,
            checkpoint=self._checkpoint,
            guest_uid=guest_uid(self.lab_id, node.index),
            agent_uid=agent_uid(self.lab_id, node.index),
        )

    def _checkpoint(self, _step: str) -> None:
        """Between the steps of a node's start: give up when the lab is being taken down."""
        if self.state == "stopping":
            raise NodeError(f"lab {self.plan.name}: interrupted before the nodes were started")

    def abort(self) -> None:
        """Make an :meth:`up` that runs fail soon; :meth:`down` is to follow it."""
        self.state = "stopping"
        for member in self.members.values():
            if member.node and member.node.pid:
                Process(member.node.pid, member.node.start_time).kill(time.monotonic() + STOP_S)

    def ssh_material(self) -> SshMaterial:
        """The lab's keys, generated or not."""
        return SshMaterial(
            directory=self.directory / "ssh",
            lab=self.plan.name,
            nodes=tuple(node.name for node in self.plan.nodes if KINDS[node.kind].has_sshd),
            hosts=self.plan.hosts,
            mode="mesh" if self.plan.ssh == "mesh" else "host-only",
        )

    def save(self) -> None:
        """Write down what a supervisor after this one needs to know."""
        members = self.members.values()
        paths.write_json(
            self.directory / "state.json",
            {
                "id": self.lab_id,
                "since": self.since,
                "state": self.state,
                "adoptions": self.adoptions,
                "supervisor": os.getpid(),
                "environment": self._environment,
                "nodes": {m.name: m.node.describe() for m in members if m.node and m.node.pid},
            },
        )

    def adopt_environment(self, environment: dict[str, str]) -> None:
        """Look for programs and kernels where the lab's first supervisor did."""
        for name in _ENVIRONMENT:
            os.environ.pop(name, None)
        os.environ.update(environment)
        self._environment = environment

    def save_at_last(self) -> None:
        """As `save`; where that fails, say so and go on trying: traffic does not depend on it."""
        try:
            self.save()
        except OSError as error:
            log(f"state.json cannot be written ({error.strerror}); trying again")
            if not self._saving:
                self.spawn(self._save_again())

    async def _save_again(self) -> None:
        self._saving = True
        try:
            while self.state != "stopping":
                await asyncio.sleep(_SAVE_AGAIN_S)
                try:
                    self.save()
                    log("state.json is written again")
                    return
                except OSError:
                    continue
        finally:
            self._saving = False

    # -- up -------------------------------------------------------------------------------------

    async def up(self, progress: Callable[[str], None]) -> None:
        """Make everything; returns when every node is ready.

        Raises:
            MintError: something failed; call :meth:`down` to undo the rest.
        """
        ssh = self.ssh_material()
        keys = asyncio.create_task(asyncio.to_thread(ssh.generate))
        try:
            for node in self.plan.nodes:
                self._add_node(node)
        except OSError as error:
            await keys
            raise self._no_buffers(error) from None
        await keys
        members = list(self.members.values())
        progress(f"starting {len(members)} nodes")
        await _all(self._start_node(m, ssh) for m in members)
        progress("joining them over shared memory")
        await _all(asyncio.to_thread(self._join, m, self.others(m)) for m in members)
        # Only now, for what a node sends before all others listen would be dropped.
        await _all(asyncio.to_thread(self._begin, m) for m in members)
        for member in members:
            member.state = "up"
        progress("waiting until every node answers")
        await _all(asyncio.to_thread(_await_ready, m) for m in members)
        self.state = "ready"
        for member in members:
            self.watch_node(member)
        self.save()

    def _add_node(self, node: NodePlan) -> None:
        uid = worker_uid(self.lab_id, node.index)
        self._add_member(Member(node_spec(self.plan, node), uid))

    def _add_member(self, member: Member) -> None:
        index = member.spec.index
        try:
            self.regions.add_port(index, member.uid if os.geteuid() == 0 else None)
            member.view = ControlView(self.regions.control[index], self.regions.slots)
        except BaseException:
            self.regions.remove_port(index)  # half of it may be there
            raise
        self.members[index] = member

    async def _start_node(self, member: Member, ssh: SshMaterial) -> None:
        plan = self.plan.nodes[member.spec.index]
        node = KINDS[plan.kind](plan, self.context(plan, ssh))
        member.node = node
        await asyncio.to_thread(node.start)
        member.worker = self.new_worker(member.name)
        await asyncio.to_thread(self._start_worker, member)
        self.watch(member)

    def new_worker(self, name: str) -> Worker:
        """A worker for this node; nothing is started."""
        log_path = self.directory / "log" / f"{name}.worker.log"
        return Worker(name, self.directory / f"w-{name}.sock", log_path)

    def _start_worker(self, member: Member) -> None:
        """Start a member's worker and give it its port."""
        worker, node = member.worker, _node(member)
        assert worker is not None
        member.last_start = time.monotonic()
        member.told.clear()
        process = worker.start()
        self.journal.write(
            "process", {"pid": process.pid, "start": process.start, "what": f"worker {member.name}"}
        )
        for path in node.worker_cgroup_join():
            Path(path).write_text(str(process.pid))
        spec, slots = member.spec, self.regions.slots
        opening = wire.open_message(spec, slots, self.regions.layout_code, member.uid, member.uid)
        _request(worker, opening, self.regions.open_fds(spec.index))

    def _join(self, member: Member, others: Iterable[Member]) -> None:
        """Tell a member's worker of its peers."""
        worker = member.worker
        assert worker is not None
        for other in others:
            data = wire.add_peer_message(other.spec, self.regions.capacity)
            _request(worker, data, self.regions.peer_fds(member.spec.index, other.spec.index))
            member.told.add(other.spec.index)

    def _begin(self, member: Member) -> None:
        """Give a member's worker its device, with which frames begin to move.

        After its peers: in layout shared frames may wait for it already, whose senders it must
        know.
        """
        worker, device = member.worker, _node(member).device()
        assert worker is not None
        if device.kind == "tap":
            worker.request(wire.tap_message(device.offload), [device.fd])
        else:
            _request(worker, wire.vhost_message(), [device.fd])

    # -- crashes --------------------------------------------------------------------------------

    def watch(self, member: Member) -> None:
        """Have a member's worker replaced when it dies."""
        assert member.worker is not None and member.worker.process is not None
        process, loop = member.worker.process, asyncio.get_running_loop()
        fd = process.pidfd()
        if fd is None:
            self._worker_died(member, process)
            return

        def ended() -> None:
            loop.remove_reader(fd)
            os.close(fd)
            self._worker_died(member, process)

        loop.add_reader(fd, ended)

    def _worker_died(self, member: Member, process: Process) -> None:
        process.reap()
        if self.state == "stopping" or member.spec.index not in self.members:
            return
        log(f"worker of {member.name} (pid {process.pid}) died")
        member.state = "restarting"
        self.spawn(self._replace_worker(member))

    def spawn(self, work: Awaitable[None]) -> None:
        """Run something besides; its errors go to the log."""

        async def guarded() -> None:
            try:
                await work
            except (MintError, OSError) as error:
                log(f"error: {error}")
            except Exception:  # noqa: BLE001  # a mistake of ours: seen, and all else goes on
                log(f"internal error: {traceback.format_exc()}")

        task = asyncio.create_task(guarded())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _replace_worker(self, member: Member) -> None:
        lately = time.monotonic() - member.last_start < _LATELY_S
        member.restarts += 1
        step = min(member.restarts, len(_BACKOFF_S) - 1) if lately else 0
        await asyncio.sleep(_BACKOFF_S[step])
        async with member.lock:
            if self.state == "stopping":
                return
            node = _node(member)
            if not node.servable():
                member.state = "down"
                log(f"node {member.name} has ended; its port stays down")
                return
            try:
                await asyncio.to_thread(self._start_worker, member)
                await asyncio.to_thread(self._join, member, self.others(member))
                await asyncio.to_thread(self._begin, member)
                member.state = "up"
            except (MintError, OSError) as error:
                log(f"worker of {member.name} cannot be replaced: {error}")
                self._drop_half_started(member)
            finally:
                self.watch(member)  # whatever fails: the next death must be seen, too

    def _drop_half_started(self, member: Member) -> None:
        """End a worker that was not told all it needs; it is replaced in its turn."""
        process = member.worker.process if member.worker else None
        if process is not None and process.alive():
            process.kill(time.monotonic())

    def watch_node(self, member: Member) -> None:
        """Have a member's node started again when it ends, if it is of a kind that can be."""
        node = member.node
        if node is None or not node.revivable:
            return
        loop = asyncio.get_running_loop()
        fd = Process(node.pid, node.start_time).pidfd()
        if fd is None:
            self.spawn(self._revive(member))
            return

        def ended() -> None:
            loop.remove_reader(fd)
            os.close(fd)
            if self.state != "stopping" and member.spec.index in self.members:
                self.spawn(self._revive(member))

        loop.add_reader(fd, ended)

    async def _revive(self, member: Member) -> None:
        """Start a node again that has ended by itself; too often, and it stays down."""
        node = _node(member)
        said = await asyncio.to_thread(_last_words, node)
        log(f"node {member.name} (pid {node.pid}) ended: {said}")
        now = time.monotonic()
        member.revivals = [t for t in member.revivals if now - t < _REVIVALS_S] + [now]
        if len(member.revivals) > _REVIVALS:
            log(f"node {member.name} ended {_REVIVALS} times in {_REVIVALS_S:.0f} s; it stays down")
            return
        async with self._changing:
            if self.state == "stopping":
                return
            try:
                await asyncio.to_thread(node.revive)
            except MintError as error:
                log(f"error: {error}")
                if node.servable():  # no descriptors left, say: there may be some soon
                    self.spawn(self._revive_later(member))
                return
            self.watch_node(member)
            self.save_at_last()  # its pid
        log(f"node {member.name} was started again (pid {node.pid})")

    async def _revive_later(self, member: Member) -> None:
        await asyncio.sleep(_REVIVE_AGAIN_S)
        if self.state != "stopping":
            await self._revive(member)

    # -- raw ports ------------------------------------------------------------------------------

    async def attach(
        self,
        name: str,
        mac: str | None,
        link: socket.socket,
        uid: int,
        introduce: Callable[[Member], None],
    ) -> Member:
        """Add a raw port.

        Args:
            name: its name; must be free.
            mac: its MAC address; None: one that follows from its index.
            link: the connection of the program that serves it.
            uid: the user of that program.
            introduce: gives the program its port; before anybody else tells it of other ports.

        Raises:
            OSError: the program is gone.
            LabStateError: the name or the MAC is taken, or there is no slot left.
            FabricError: layout ``shared`` or ``pooled`` and a user who is not trusted.
        """
        async with self._changing:
            spec = self._raw_spec(name, mac)
            reach = _REACH.get(self.plan.layout)
            if reach and uid != os.geteuid() and not self.plan.trust_all:
                raise FabricError(
                    f"lab {self.plan.name}: with layout {self.plan.layout} every port can {reach};"
                    " run as the lab's owner, or set fabric: {trust: all} in the lab file"
                )
            member = Member(spec, uid, link=link, state="up")
            try:
                self._add_member(member)
            except OSError as error:
                raise self._no_buffers(error) from None
            try:
                await self._tell_all(
                    member, wire.add_peer_message(spec, self.regions.capacity), adding=True
                )
                await asyncio.to_thread(introduce, member)
            except BaseException:
                await self._remove(member)
                raise
            return member

    def _no_buffers(self, error: OSError) -> FabricError:
        return FabricError(
            f"lab {self.plan.name}: packet buffers: {error.strerror}; use fewer nodes, smaller"
            " channels, or raise the limits of descriptors and memory"
        )

    def _raw_spec(self, name: str, mac: str | None) -> PortSpec:
        if not _PORT_NAME.fullmatch(name):
            raise FabricError(
                f"{name!r} is no name for a port; use at most 31 letters, digits, dots, hyphens and"
                " underscores, beginning with a letter or digit"
            )
        if any(m.name == name for m in self.members.values()):
            raise LabStateError(f"lab {self.plan.name} has a port {name} already; use another name")
        index = next((i for i in range(self.regions.slots) if i not in self.members), None)
        if index is None:
            raise LabStateError(
                f"lab {self.plan.name} has no room for another port;"
                f" raise fabric: {{slots: {self.regions.slots}}} in the lab file"
            )
        mac = default_mac(index) if mac is None else _checked_mac(mac)
        if any(m.spec.mac == mac for m in self.members.values()):
            raise LabStateError(f"lab {self.plan.name}: MAC {mac} is taken; use another")
        return PortSpec(
            index,
            name,
            mac,
            stall_us=self.plan.stall_us,
            poll_us=self.plan.poll_us,
            idle_s=self.plan.idle_reclaim,
        )

    async def _tell_all(self, member: Member, data: bytes, *, adding: bool) -> None:
        """Tell every other port that a port has come or gone."""
        index = member.spec.index
        # Not others(member): an adopted raw port's own ends of its channels are not held here.
        told = [m for m in self.members.values() if self.regions.joined(m.spec.index, index)]
        await _all(self._tell(other, member, data, adding) for other in told)

    async def _tell(self, other: Member, member: Member, data: bytes, adding: bool) -> None:
        async with other.lock:
            # A worker that was replaced meanwhile was told by the way.
            if other.worker is None or (member.spec.index in other.told) is not adding:
                await asyncio.to_thread(self._tell_now, other, member, data, adding)

    def _tell_now(self, other: Member, member: Member, data: bytes, adding: bool) -> None:
        index = member.spec.index
        (other.told.add if adding else other.told.discard)(index)
        fds = self.regions.peer_fds(other.spec.index, index) if adding else []
        try:
            if other.worker is not None:
                other.worker.request(data, fds, TELL_S)
            elif other.link is not None:
                wire.send(other.link, data, fds)
        except (FabricError, OSError) as error:
            # It learns the rest when it is replaced; a raw port that does not read is its own
            # user's trouble.
            log(f"port {other.name} was not told of {member.name}: {error}")
            if other.worker and other.worker.process and (adding or not other.worker.connected):
                other.worker.process.kill(time.monotonic())
        finally:
            _close(fds)

    async def detach(self, member: Member) -> None:
        """Remove a raw port."""
        async with self._changing:
            await self._remove(member)

    async def _remove(self, member: Member) -> None:
        if self.members.pop(member.spec.index, None) is None:
            return
        await self._tell_all(member, wire.drop_peer_message(member.spec.index), adding=False)
        member.close()
        self.regions.remove_port(member.spec.index)

    # -- status ---------------------------------------------------------------------------------

    async def status(self) -> dict[str, Any]:
        """The lab's status, from live values; docs/cli.md has its shape."""
        found = [m.node for m in self.members.values() if m.node]
        # In threads: some nodes ask others for it, who may take their time.
        known = dict(
            zip(found, await _all(asyncio.to_thread(n.status) for n in found), strict=True)
        )
        members = sorted(self.members.values(), key=lambda m: m.spec.index)
        seen = [m for m in members if m.view]
        separate = os.geteuid() == 0
        nodes = [known[m.node] for m in members if m.node in known]
        degraded = self.state == "ready" and (
            any(node["state"] != "running" for node in nodes)
            or any(m.state != "up" for m in members)
        )
        return {
            "version": 1,
            "lab": self.plan.name,
            "id": self.lab_id,
            "file": self.plan.file,
            "state": "degraded" if degraded else self.state,
            "since": self.since,
            "layout": self.plan.layout,
            "channel_bytes": self.plan.channel_bytes,
            "ssh": self.plan.ssh,
            "supervisor": {"pid": os.getpid(), "adoptions": self.adoptions},
            "nodes": nodes,
            "ports": [m.status() for m in members],
            "channels": [
                channel_status(a, b, self.plan.layout, self.regions.capacity)
                for a in seen
                for b in seen
                if a is not b
            ],
            "memory": self.regions.memory() | {"reclaims": _reclaims(members)},
            "trust": {
                "workers": "separate-users" if separate else "same-user",
                "note": "" if separate else "all ports run as one user and trust each other",
            },
        }

    async def logs(self, name: str) -> dict[str, str]:
        """What a node, its sshd and its worker said; bounded."""
        member = self.by_name(name)
        logs = await asyncio.to_thread(member.node.logs) if member.node else {}
        return logs | {"worker": _tail(self.directory / "log" / f"{name}.worker.log")}

    # -- down -----------------------------------------------------------------------------------

    async def down(self) -> list[str]:
        """End everything.

        Returns:
            What could not be removed, one sentence each.
        """
        self.state = "stopping"
        async with self._changing:  # what is half done, such as a worker's start, is finished first
            members = list(self.members.values())
            for member in members:
                async with member.lock:
                    pass  # nobody starts anything any more: see _replace_worker(), _revive()
            problems = await asyncio.gather(*(self._stop_member(m) for m in members))
            for member in members:
                member.close()
            self.members.clear()
            self.regions.close()
        return [problem for found in problems for problem in found]

    async def _stop_member(self, member: Member) -> list[str]:
        deadline = time.monotonic() + STOP_S
        problems = []
        for part in (member.worker, member.node):
            if part is None:
                continue
            try:
                await asyncio.to_thread(part.stop, deadline)
            except (MintError, OSError) as error:
                problems.append(f"{member.name}: {error}")
            except Exception as error:  # noqa: BLE001  # a mistake of ours: the rest is ended
                log(f"internal error: {traceback.format_exc()}")
                problems.append(f"{member.name}: internal error: {error!r}")
        return problems


def _reclaims(members: Iterable[Member]) -> int:
    """How often the memory of idle channels was given back."""
    return sum(m.view.counters()["reclaims"] for m in members if m.view)


def _tail(path: Path) -> str:
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _LOG_BYTES))
            return file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""


def _checked_mac(mac: str) -> str:
    """A MAC address that a port can have, in lower case."""
    mac = mac.lower()
    group = _MAC.fullmatch(mac) is not None and int(mac[:2], 16) & 1
    if not _MAC.fullmatch(mac) or group or not mac.strip("0:"):
        raise FabricError(
            f"{mac!r} is no MAC address for a port; write six pairs of hex digits, the first even:"
            " 02:00:00:00:00:0a"
        )
    return mac


def _await_ready(member: Member) -> None:
    node = _node(member)
    node.wait_ready(time.monotonic() + node.ready_seconds)


def _last_words(node: Any) -> str:
    """The end of what a node said, for a line of the log."""
    lines = [line.strip() for line in node.logs()["node"].splitlines() if line.strip()]
    return quote(lines[-3:]) or "it said nothing"


def _node(member: Member) -> Any:
    """The node behind a port that has one."""
    assert member.node is not None
    return member.node


def _close(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)


def _request(worker: Worker, data: bytes, fds: list[int]) -> None:
    """Send a message with descriptors that are not needed here afterwards."""
    try:
        worker.request(data, fds)
    finally:
        _close(fds)


async def _all(work: Iterable[Awaitable[T]]) -> list[T]:
    """Wait for all, also when one fails: nothing may go on unseen while the rest is undone."""
    results = await asyncio.gather(*work, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            if isinstance(result, OSError):
                what = result.strerror or str(result)
                raise NodeError(f"{result.filename or 'a node'}: {what}") from result
            raise result
    return [r for r in results if not isinstance(r, BaseException)]
