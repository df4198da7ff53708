# SPDX-License-Identifier: Apache-2.0
"""Taking a lab over from a supervisor that died.

The data path went on without it. Every worker still holds the descriptors of its control region,
its channels, its doorbells and its TAP, and gives them to whoever can connect to its socket; which
processes the workers are is in the journal, what the nodes are in ``state.json``. From these the
regions are put together again:

=======================  ==================================================================
control region of p      from p's worker
payload region p -> q    from p's worker (writable); from q's, reopened, when p's is dead
stock region of p        the same (layout pooled)
doorbell ends            each from its worker
TAP of p                 from p's worker
=======================  ==================================================================

What only the dead supervisor and a dead worker held is gone: the port of a worker that died while
there was no supervisor stays down. Raw ports go on; they are recognised by the channels that the
workers have with them, and dropped when their doorbells close.

A worker may have been taken over by its guest, so what it gives is looked at first (`_checked`): a
region is one only if nobody can change its size any more and it has the right one and the right
owner. A worker that does not answer, or gives nonsense, is ended: it can be neither watched nor
replaced.
"""

from __future__ import annotations

import asyncio
import os
import select
import stat
import time
from dataclasses import dataclass, field
from typing import Any

from mint_vni._native import lib
from mint_vni.errors import FabricError, LabStateError, MintError
from mint_vni.fabric.config import PortSpec
from mint_vni.fabric.counters import ControlView
from mint_vni.fabric.regions import Regions, is_region, reopen
from mint_vni.lab import journal, wire
from mint_vni.lab.engine import STOP_S, Engine, log
from mint_vni.lab.member import Member, node_spec, worker_uid
from mint_vni.lab.plan import NodePlan
from mint_vni.lab.process import Process
from mint_vni.nodes import KINDS

_RAW_MARGIN = 8  # messages that a worker may give besides one for each port


async def adopt(engine: Engine, facts: dict[str, Any]) -> BaseException | None:
    """Take over what a predecessor left.

    Args:
        engine: a new one, with the plan and the id of the old.
        facts: ``state.json``.

    Returns:
        The error, if the lab cannot be adopted; nothing was changed then.
    """
    entries = journal.read(engine.directory / "journal")
    name = engine.plan.name
    if not journal.is_of_this_boot(entries):
        return LabStateError(
            f"lab {name}: it was up before this machine was started; clear it with: mint gc"
        )
    if facts.get("state") != "ready":
        return LabStateError(
            f"lab {name}: its start was cut off; remove what is left with: mint gc"
        )
    engine.since = facts["since"]
    engine.adoptions = facts["adoptions"] + 1
    engine.adopt_environment(facts["environment"])
    taps: dict[int, int] = {}
    raw: dict[int, tuple[PortSpec, int]] = {}
    workers = journal.workers(entries)
    for node in engine.plan.nodes:
        _adopt_port(engine, node, workers.get(node.name, []), taps, raw)
    if not engine.members:
        return LabStateError(
            f"lab {name}: none of its workers is left; remove the rest with: mint gc"
        )
    _restore_payload(engine)
    ssh = engine.ssh_material()
    for node in engine.plan.nodes:
        _adopt_node(engine, node, facts, taps, engine.context(node, ssh))
    for spec, ctl in raw.values():
        _adopt_raw(engine, spec, ctl)
    engine.state = "ready"
    engine.save_at_last()
    log(f"adopted with {len(engine.members)} ports")
    return None


def _adopt_port(
    engine: Engine,
    node: NodePlan,
    workers: list[Process],
    taps: dict[int, int],
    raw: dict[int, tuple[PortSpec, int]],
) -> None:
    """Collect what one worker holds."""
    if not workers:
        log(f"worker of {node.name} died while there was no supervisor; its port stays down")
        return
    process, *older = workers
    worker = engine.new_worker(node.name)
    try:
        for other in older:  # it was being replaced
            other.kill(time.monotonic() + STOP_S)
        worker.adopt(process)
        held = _checked(engine, node, worker.collect(engine.regions.slots + _RAW_MARGIN))
        member = Member(node_spec(engine.plan, node), worker_uid(engine.lab_id, node.index))
        try:
            member.view = ControlView(held.control, engine.regions.slots)
        except FabricError:
            held.close()
            raise
    except (MintError, OSError) as error:
        log(f"worker of {node.name} is not to be adopted: {error}; its port stays down")
        worker.disconnect()
        process.kill(time.monotonic() + STOP_S)
        return
    member.worker = worker
    member.told |= set(held.peers)
    _keep(engine, node.index, held, taps, raw)
    engine.members[node.index] = member


@dataclass
class _Held:
    """What a worker holds, by its word; the descriptors are the owner's of this.

    Attributes:
        control: its control region.
        frames: its stock region, or the pool; None in layout ``per-channel``.
        tap: its TAP; None where it has a vhost-user device.
        peers: by index: who it is and the descriptors, in the order of the control protocol.
    """

    control: int = -1
    frames: int | None = None
    tap: int | None = None
    peers: dict[int, tuple[PortSpec, list[int]]] = field(default_factory=dict)

    def close(self) -> None:
        """Close everything."""
        for fd in (self.control, self.frames, self.tap):
            if fd is not None and fd >= 0:
                os.close(fd)
        for _, fds in self.peers.values():
            while fds:
                os.close(fds.pop())


def _checked(engine: Engine, node: NodePlan, messages: list[wire.Message]) -> _Held:
    """Look at what a worker gave.

    Raises:
        FabricError: it makes no sense; all descriptors are closed.
    """
    held = _Held()
    try:
        for message in messages:
            _check(engine, node.index, message, held)
    except (FabricError, OSError) as error:
        held.close()
        raise FabricError(f"what it gives makes no sense ({error})") from None
    finally:
        for message in messages:
            message.close()
    if held.control < 0:
        held.close()
        raise FabricError("it gives no port")
    return held


def _check(engine: Engine, index: int, message: wire.Message, held: _Held) -> None:
    """Look at one message, and take its descriptors."""
    regions, fds, uid = engine.regions, message.fds, worker_uid(engine.lab_id, index)
    if message.type == wire.OPEN and held.control < 0:
        has_frames = regions.layout != "per-channel"
        if len(fds) != 1 + has_frames:
            raise FabricError(f"a port with {len(fds)} regions")
        _check_region(fds[0], int(lib.mint_ctl_bytes(regions.slots)), {uid})
        if has_frames:
            _check_region(fds[1], *_own_region(regions, uid))
            held.frames = fds.pop(1)
        held.control = fds.pop(0)
    elif message.type == wire.TAP and held.tap is None:
        if len(fds) != 1 or not stat.S_ISCHR(os.fstat(fds[0]).st_mode):
            raise FabricError("a device that is none")
        held.tap = fds.pop()
    elif message.type == wire.ADD_PEER and message.spec is not None:
        peer = message.spec.index
        if not 0 <= peer < regions.slots or peer == index or peer in held.peers:
            raise FabricError(f"a channel with port {peer}")
        _check_peer(engine, index, peer, fds)
        held.peers[peer] = (message.spec, list(fds))
        fds.clear()


def _own_region(regions: Regions, uid: int) -> tuple[int, set[int]]:
    """Size and possible owners of the region of frames that a port has besides its control region."""
    if regions.layout == "pooled":
        return int(lib.mint_stock_bytes(regions.slots, regions.channel_bytes)), {uid}
    return int(lib.mint_pool_bytes(regions.slots, regions.channel_bytes)), {os.geteuid()}


def _check_peer(engine: Engine, index: int, peer: int, fds: list[int]) -> None:
    """Look at the descriptors of a port's channels with a peer."""
    regions, lab_id = engine.regions, engine.lab_id
    ours = worker_uid(lab_id, index)
    # Raw ports are of programs that the supervisor answers: its own user's, or root's.
    node = peer < len(engine.plan.nodes)
    theirs = {worker_uid(lab_id, peer)} if node else {0, os.geteuid()}
    sizes = {
        "per-channel": [(regions.channel_bytes, {ours}), (regions.channel_bytes, theirs)],
        "pooled": [(int(lib.mint_stock_bytes(regions.slots, regions.channel_bytes)), theirs)],
        "shared": [],
    }[regions.layout]
    if len(fds) != 2 + len(sizes):
        raise FabricError(f"channels with port {peer} in {len(fds)} parts")
    _check_region(fds[0], int(lib.mint_ctl_bytes(regions.slots)), theirs)
    for fd, (size, owners) in zip(fds[1:-1], sizes, strict=True):
        _check_region(fd, size, owners)
    if not stat.S_ISSOCK(os.fstat(fds[-1]).st_mode):
        raise FabricError(f"a doorbell of port {peer} that is none")


def _check_region(fd: int, size: int, owners: set[int]) -> None:
    """Raise a FabricError unless this is a region of that size, for ever, of one of these users."""
    if not is_region(fd, size):
        raise FabricError("a region that is none")
    owner = os.fstat(fd).st_uid
    if owner not in owners:
        raise FabricError(f"a region of user {owner}")


def _keep(
    engine: Engine,
    index: int,
    held: _Held,
    taps: dict[int, int],
    raw: dict[int, tuple[PortSpec, int]],
) -> None:
    """Put the descriptors where they belong."""
    regions = engine.regions
    regions.control[index] = held.control
    regions.owners[index] = worker_uid(engine.lab_id, index)
    if held.frames is not None:
        if regions.layout == "pooled":
            regions.stock[index] = held.frames
        else:
            if regions.pool is None:
                # Reopened: the worker's own file description carries its liveness lock.
                regions.pool = reopen(held.frames, writable=True)
            os.close(held.frames)
    if held.tap is not None:
        taps[index] = held.tap
    for peer, (spec, fds) in held.peers.items():
        regions.bells[index, peer] = fds.pop()
        if regions.layout == "per-channel":
            regions.payload[index, peer] = fds.pop(1)
            regions.read_only[peer, index] = fds.pop(1)
        elif regions.layout == "pooled" and peer not in regions.read_only_stock:
            regions.read_only_stock[peer] = fds.pop(1)
        if peer >= len(engine.plan.nodes) and peer not in raw:
            raw[peer] = (spec, fds.pop(0))
        for fd in fds:
            os.close(fd)


def _restore_payload(engine: Engine) -> None:
    """Payload and stock regions of ports whose worker is dead: from their readers."""
    regions = engine.regions
    for channel, fd in regions.read_only.items():
        if channel not in regions.payload:
            regions.payload[channel] = reopen(fd, writable=os.geteuid() == 0)
        os.close(fd)
    regions.read_only.clear()
    for port, fd in regions.read_only_stock.items():
        if port not in regions.stock:
            regions.stock[port] = reopen(fd, writable=os.geteuid() == 0)
        os.close(fd)
    regions.read_only_stock.clear()


def _adopt_node(
    engine: Engine, node: NodePlan, facts: dict[str, Any], taps: dict[int, int], context: Any
) -> None:
    """Take a node over, also one that has ended or whose worker is gone: `down` is to end it all."""
    described = facts["nodes"].get(node.name)
    member = engine.members.get(node.index)
    if member is None:
        if described is None:
            return
        member = Member(node_spec(engine.plan, node), worker_uid(engine.lab_id, node.index))
        engine.members[node.index] = member
    tap = taps.pop(node.index, None)
    if described is not None:
        member.node = KINDS[node.kind].adopt(node, context, described, tap)
    elif tap is not None:
        os.close(tap)
    if member.worker is None:
        return
    if member.node is None or not member.node.servable():
        log(f"node {node.name} has ended; its port stays down")
        return
    member.state = "up"
    engine.watch(member)
    engine.watch_node(member)


def _adopt_raw(engine: Engine, spec: PortSpec, ctl: int) -> None:
    """A raw port goes on; watch one of its doorbells for its end."""
    index = spec.index
    view = ControlView(ctl, engine.regions.slots)
    spec = PortSpec(index, view.name(), spec.mac, spec.bridge)
    engine.regions.control[index] = ctl
    engine.regions.owners[index] = None
    member = Member(spec, os.geteuid(), state="up", view=view)
    engine.members[index] = member
    bells = [fd for (holder, other), fd in engine.regions.bells.items() if other == index]
    if not bells:
        engine.spawn(engine.detach(member))
        return
    poll = select.epoll()
    poll.register(bells[0], select.EPOLLHUP)  # not EPOLLIN: rings are the worker's
    loop = asyncio.get_running_loop()

    def hung_up() -> None:
        if any(event & select.EPOLLHUP for _, event in poll.poll(0)):
            loop.remove_reader(poll.fileno())
            poll.close()
            engine.spawn(engine.detach(member))

    loop.add_reader(poll.fileno(), hung_up)
