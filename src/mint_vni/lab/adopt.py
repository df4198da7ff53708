# SPDX-License-Identifier: Apache-2.0
"""Taking a lab over from a supervisor that died.

The data path went on without it. Every worker still holds the descriptors of its control region,
its channels, its doorbells and its TAP, and gives them to whoever can connect to its socket; what
the nodes are is in ``state.json``. From these the regions are put together again:

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
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
from typing import Any

from mint_vni.errors import LabStateError, MintError
from mint_vni.fabric.config import PortSpec
from mint_vni.fabric.counters import ControlView
from mint_vni.fabric.regions import reopen
from mint_vni.lab import wire
from mint_vni.lab.engine import Engine, log
from mint_vni.lab.member import Member, node_spec, worker_uid
from mint_vni.lab.plan import NodePlan
from mint_vni.lab.process import Process
from mint_vni.nodes import KINDS


async def adopt(engine: Engine, facts: dict[str, Any]) -> BaseException | None:
    """Take over what a predecessor left.

    Args:
        engine: a new one, with the plan and the id of the old.
        facts: ``state.json``.

    Returns:
        The error, if the lab cannot be adopted; nothing was changed then.
    """
    if facts.get("state") != "ready":
        return LabStateError(
            f"lab {engine.plan.name}: its start was cut off; remove what is left with: mint gc"
        )
    engine.since = facts["since"]
    engine.adoptions = facts["adoptions"] + 1
    taps: dict[int, int] = {}
    raw: dict[int, tuple[PortSpec, int]] = {}
    for node in engine.plan.nodes:
        _adopt_port(engine, node, facts, taps, raw)
    if not engine.members:
        return LabStateError(
            f"lab {engine.plan.name}: none of its workers is left; remove the rest with: mint gc"
        )
    _restore_payload(engine)
    ssh = engine.ssh_material()
    for node in engine.plan.nodes:
        _adopt_node(engine, node, facts, taps, engine.context(node, ssh))
    for spec, ctl in raw.values():
        _adopt_raw(engine, spec, ctl)
    engine.state = "ready"
    engine.save()
    log(f"adopted with {len(engine.members)} ports")
    return None


def _adopt_port(
    engine: Engine,
    node: NodePlan,
    facts: dict[str, Any],
    taps: dict[int, int],
    raw: dict[int, tuple[PortSpec, int]],
) -> None:
    """Collect what one worker holds."""
    known = facts["workers"].get(node.name)
    process = Process(known["pid"], known["start"]) if known else None
    if process is None or not process.alive():
        log(f"worker of {node.name} died while there was no supervisor; its port stays down")
        return
    worker = engine.new_worker(node.name)
    try:
        worker.adopt(process)
        held = worker.collect()
    except (MintError, OSError) as error:
        log(f"worker of {node.name} is not to be adopted: {error}")
        return
    member = Member(node_spec(engine.plan, node), worker_uid(engine.lab_id, node.index))
    member.worker = worker
    for message in held:
        if message.type == wire.ADD_PEER and message.spec is not None:
            member.told.add(message.spec.index)
        _keep(engine, node.index, message, taps, raw)
    member.view = ControlView(engine.regions.control[node.index], engine.regions.slots)
    engine.members[node.index] = member


def _keep(
    engine: Engine,
    index: int,
    message: wire.Message,
    taps: dict[int, int],
    raw: dict[int, tuple[PortSpec, int]],
) -> None:
    """Put the descriptors of one message where they belong."""
    regions, fds = engine.regions, message.fds
    if message.type == wire.OPEN:
        regions.control[index] = fds.pop(0)
        regions.owners[index] = worker_uid(engine.lab_id, index)
        if fds and regions.layout == "pooled":
            regions.stock[index] = fds.pop(0)
        elif fds and regions.pool is None:
            # Reopened: the worker's own file description carries its liveness lock.
            regions.pool = reopen(fds[0], writable=True)
    elif message.type == wire.TAP:
        taps[index] = fds.pop(0)
    elif message.type == wire.ADD_PEER and message.spec is not None:
        peer = message.spec.index
        regions.bells[index, peer] = fds.pop()
        if len(fds) == 3:
            regions.payload[index, peer] = fds.pop(1)
            regions.read_only[peer, index] = fds.pop(1)
        elif len(fds) == 2 and peer not in regions.read_only_stock:
            regions.read_only_stock[peer] = fds.pop(1)
        if peer >= len(engine.plan.nodes) and peer not in raw:
            raw[peer] = (message.spec, fds.pop(0))
    message.close()


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
    member = engine.members.get(node.index)
    described = facts["nodes"].get(node.name)
    if member is None or described is None:
        _adopt_lost(engine, node, described, context)
        return
    try:
        member.node = KINDS[node.kind].adopt(node, context, described, taps.pop(node.index, None))
    except MintError as error:
        log(f"node {node.name} is not to be adopted: {error}")
        with contextlib.suppress(KeyError):
            os.close(taps.pop(node.index))
        member.state = "down"
        return
    member.state = "up"
    engine.watch(member)
    engine.watch_node(member)


def _adopt_lost(
    engine: Engine, node: NodePlan, described: dict[str, Any] | None, context: Any
) -> None:
    """A node whose worker is gone: keep it in the lab, so that it is seen and taken down."""
    if described is None:
        return
    member = Member(node_spec(engine.plan, node), worker_uid(engine.lab_id, node.index))
    with contextlib.suppress(MintError):
        member.node = KINDS[node.kind].adopt(node, context, described, None)
    engine.members[node.index] = member


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
