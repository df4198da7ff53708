# SPDX-License-Identifier: Apache-2.0
"""One port of a lab as its supervisor sees it, and who serves it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from dataclasses import dataclass, field
from typing import Any

from mint_vni.fabric.config import FRAME_OVERHEAD, PortSpec
from mint_vni.fabric.counters import DESCRIPTOR_STEP, ControlView, Ends, drops
from mint_vni.lab.plan import LabPlan, NodePlan
from mint_vni.lab.worker import Worker
from mint_vni.nodes import Node

#: Workers' user ids start here: a range that no convention assigns (systemd's list of ranges).
UID_BASE = 1_879_048_192
_UID_STEP = 1 << 26  # all that `worker_uid` can give


def worker_uid(lab_id: str, index: int) -> int:
    """The user id of the worker of port ``index``; without root, the caller's own.

    It is no other port's, and no other lab's unless the labs' ids agree in 16 bits.
    """
    if os.geteuid() != 0:
        return os.geteuid()
    return UID_BASE + (int(lab_id[:4], 16) << 10) + index


def guest_uid(lab_id: str, index: int) -> int:
    """The user id of a guest of port ``index``: apart from all workers'."""
    uid = worker_uid(lab_id, index)
    return uid if os.geteuid() != 0 else uid + _UID_STEP


def agent_uid(lab_id: str, index: int) -> int:
    """The user id of the agent of port ``index``: apart from all workers' and guests'."""
    uid = worker_uid(lab_id, index)
    return uid if os.geteuid() != 0 else uid + 2 * _UID_STEP


def node_spec(plan: LabPlan, node: NodePlan) -> PortSpec:
    """The port of a node."""
    return PortSpec(
        index=node.index,
        name=node.name,
        mac=node.mac,
        bridge=node.bridge,
        frame_max=node.mtu + FRAME_OVERHEAD,
        poll_us=node.poll_us,
        stall_us=plan.stall_us,
        idle_s=plan.idle_reclaim,
    )


@dataclass(eq=False)
class Member:
    """A port.

    Attributes:
        spec: what the fabric knows of it.
        uid: the user its worker runs as.
        node: the Linux behind it; None for a raw port.
        worker: the process that serves it; None for a raw port.
        link: a raw port's connection to the supervisor; None once a supervisor has adopted the
            port from a dead one.
        state: ``up``, ``restarting`` or ``down``.
        restarts: how often its worker was started again.
        view: a look at its control region.
        revivals: when its node was started again, by `time.monotonic`.
        told: ports that its worker, or whoever else serves it, knows of.
        lock: held by who tells its worker something, or replaces it.
    """

    spec: PortSpec
    uid: int
    node: Node | None = None
    worker: Worker | None = None
    link: socket.socket | None = None
    state: str = "down"
    restarts: int = 0
    view: ControlView | None = None
    last_start: float = field(default=0.0)
    revivals: list[float] = field(default_factory=list)
    told: set[int] = field(default_factory=set)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def name(self) -> str:
        """The port's name."""
        return self.spec.name

    @property
    def attachment(self) -> str:
        """How the port is joined to what is behind it."""
        return self.node.attachment if self.node is not None else "raw"

    def close(self) -> None:
        """Let go of what is held here; ends nothing."""
        if self.view is not None:
            self.view.close()
        if self.worker is not None:
            self.worker.disconnect()
        if self.link is not None:
            with contextlib.suppress(OSError):
                self.link.close()

    def status(self) -> dict[str, Any]:
        """The port's entry in the status, from live values."""
        counters = self.view.counters() if self.view else {}
        return {
            "name": self.name,
            "index": self.spec.index,
            "attachment": self.attachment,
            "node": self.node.plan.name if self.node else None,
            "mac": self.spec.mac,
            "bridge": self.spec.bridge,
            "state": self._live_state(),
            "worker": self._worker_status(),
            **{name: counters.get(name, 0) for name in _TRAFFIC},
            "drops": drops(counters) | ({"queue": queue} if (queue := self._queue_drops()) else {}),
            "counters": counters,
        }

    def _queue_drops(self) -> int:
        """Frames that the node's kernel dropped because the worker did not take them in time.

        ``/proc/PID/net/dev`` is of the process's own namespace; the 12th number of an interface is
        of frames that were not transmitted.
        """
        if self.node is None:
            return 0
        try:
            with open(f"/proc/{self.node.pid}/net/dev") as file:
                for line in file:
                    name, _, numbers = line.partition(":")
                    if name.strip() == self.node.plan.interface:
                        return int(numbers.split()[11])
        except OSError:
            pass  # the node has ended
        return 0

    def _live_state(self) -> str:
        if self.node is not None and not self.node.alive():
            return "down"
        if self.state == "up" and self.worker and self.worker.process:
            return "up" if self.worker.process.alive() else "restarting"
        return self.state

    def _worker_status(self) -> dict[str, Any] | None:
        process = self.worker.process if self.worker else None
        if process is None:
            return None
        return {
            "pid": process.pid,
            "uid": self.uid,
            "restarts": self.restarts,
            "cpu_seconds": process.cpu_seconds(),
            "private_bytes": process.private_bytes(),
        }


def _queued(out: Ends, into: Ends, layout: str, capacity: int) -> int:
    """Bytes that wait in a channel; in layout ``pooled``, where positions count frames, about.

    Head and tail are their writers' to set: two that can't both be true count as nothing waiting.
    """
    waiting = out.head - into.tail
    if layout == "pooled":
        waiting = waiting // DESCRIPTOR_STEP * (out.tx["bytes"] // max(1, out.tx["frames"]))
    return waiting if 0 <= waiting <= capacity else 0


_TRAFFIC = ("in_frames", "in_bytes", "out_frames", "out_bytes")


def channel_status(src: Member, dst: Member, layout: str, capacity: int) -> dict[str, Any]:
    """A channel's entry in the status: the sender's end and the receiver's.

    Args:
        src: the sender.
        dst: the receiver.
        layout: of the lab.
        capacity: bytes that can wait in the channel.
    """
    assert src.view is not None and dst.view is not None
    out, into = src.view.ends(dst.spec.index), dst.view.ends(src.spec.index)
    states = {out.tx_state, into.rx_state}
    if out.stalled and states == {"open"}:
        state = "stalled"
    else:
        state = next((s for s in ("closed", "reset") if s in states), "open")
    return {
        "from": src.name,
        "to": dst.name,
        "state": state,
        "frames": out.tx["frames"],
        "bytes": out.tx["bytes"],
        "queued_bytes": _queued(out, into, layout, capacity),
        "drops": drops(out.tx) | drops(into.rx),
        "tx": out.tx,
        "rx": into.rx,
    }
