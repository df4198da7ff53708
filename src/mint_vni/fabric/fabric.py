# SPDX-License-Identifier: Apache-2.0
"""A fabric of one's own: ports joined by shared memory, without a lab and without root."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from mint_vni._native import lib
from mint_vni.errors import FabricError
from mint_vni.fabric.config import PortSpec
from mint_vni.fabric.counters import ControlView, Ends, drops
from mint_vni.fabric.port import Port
from mint_vni.fabric.regions import LAYOUTS, Regions, round_to_page

if TYPE_CHECKING:
    from types import TracebackType


def default_mac(index: int) -> str:
    """The MAC address of port ``index`` where none was asked for: locally administered."""
    return f"02:4d:56:ff:{index >> 8:02x}:{index & 0xFF:02x}"


class Fabric:
    """Ports and the channels between all of them.

    The creating process holds all regions. Its ports are opened with :meth:`port`; a child process
    made by ``os.fork()`` (or ``multiprocessing`` with the ``fork`` method) may open ports of the
    fabric that it inherited, each port in one process.

    All processes of such a fabric belong to one user and are mutually trusted: the kernel keeps a
    receiver from writing a sender's memory, not from tricks such as ptrace.
    """

    def __init__(self, specs: Mapping[str, PortSpec], regions: Regions) -> None:
        """Use :meth:`create`."""
        self._specs = dict(specs)
        self._regions = regions
        self._open: dict[str, Port] = {}
        self._opening = threading.RLock()  # two threads may ask for the same port
        self._pid = os.getpid()

    @classmethod
    def create(
        cls,
        ports: Iterable[str],
        layout: str = "per-channel",
        channel_bytes: int = 2 << 20,
        poll_us: int = 50,
        stall_us: int = 20_000,
        bridges: Iterable[str] = (),
        *,
        idle_reclaim: float = 5.0,
    ) -> Fabric:
        """Create a fabric.

        Args:
            ports: their names, 2 to 1,024.
            layout: ``per-channel``: one lock-free buffer a channel; ``shared``: one buffer for
                all, under a lock; ``pooled``: one lock-free pool a sender, which all its peers can
                read.
            channel_bytes: capacity of a channel (layout ``shared``: of the one buffer; ``pooled``:
                of each port's pool), bytes; rounded up to pages.
            poll_us: longest spin before a port that waits goes to sleep, microseconds.
            stall_us: a receiver that drains nothing for so long counts as stalled, microseconds.
            bridges: ports that further MACs live behind.
            idle_reclaim: seconds after which the memory of a channel (layout ``pooled``: of a pool)
                that has been idle is given back, the next time that its sender waits or sends; 0:
                never. Not in layout ``shared``.

        Raises:
            FabricError: names that clash, an unknown layout, a channel too small, or the process
                ran out of descriptors or memory.
        """
        names = list(ports)
        _validate(names, layout, channel_bytes)
        behind = set(bridges)
        specs = {
            name: PortSpec(
                i,
                name,
                default_mac(i),
                name in behind,
                poll_us=poll_us,
                stall_us=stall_us,
                idle_s=idle_reclaim,
            )
            for i, name in enumerate(names)
        }
        regions = Regions(layout, len(names), round_to_page(channel_bytes))
        try:
            for spec in specs.values():
                regions.add_port(spec.index)
        except OSError as error:
            regions.close()
            raise FabricError(
                f"fabric of {len(names)} ports: {error.strerror}; use fewer ports, smaller channels"
                " or raise the limit of descriptors (ulimit -n)"
            ) from None
        return cls(specs, regions)

    def __enter__(self) -> Fabric:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __getitem__(self, name: str) -> Port:
        return self.port(name)

    @property
    def names(self) -> list[str]:
        """The ports' names, in order."""
        return list(self._specs)

    def spec(self, name: str) -> PortSpec:
        """What the fabric knows about a port."""
        try:
            return self._specs[name]
        except KeyError:
            raise FabricError(
                f"no port {name} in this fabric; it has {', '.join(self._specs)}"
            ) from None

    def port(self, name: str) -> Port:
        """Open a port in this process; the same object while it is open.

        Raises:
            FabricError: no such port, or (layout ``shared``) another process serves it.
        """
        if os.getpid() != self._pid:  # a forked child has its own ports
            self._pid, self._open, self._opening = os.getpid(), {}, threading.RLock()
        with self._opening:
            if name not in self._open:
                self._open[name] = self._open_port(self.spec(name))
            return self._open[name]

    def _open_port(self, spec: PortSpec) -> Port:
        r = self._regions
        control, own = r.control[spec.index], r.own_region(spec.index)
        port = Port(spec, r.slots, r.layout_code, control, own, self._closed)
        try:
            for other in self._specs.values():
                if other.index == spec.index:
                    continue
                try:
                    fds = r.peer_fds(spec.index, other.index)
                except OSError as error:
                    raise FabricError(
                        f"port {spec.name}: channel with {other.name}: {error.strerror};"
                        " raise the limit of descriptors (ulimit -n)"
                    ) from None
                try:
                    port.add_peer(other, r.capacity, fds)
                finally:
                    for fd in fds:
                        os.close(fd)
        except BaseException:
            port.close()
            raise
        return port

    def _closed(self, port: Port) -> None:
        self._open.pop(port.name, None)

    def counters(self, name: str) -> dict[str, int]:
        """A port's counters, whoever serves it."""
        view = self._view(name)
        try:
            return view.counters()
        finally:
            view.close()

    def ends(self, name: str, other: str) -> Ends:
        """One port's ends of its channels with another."""
        view = self._view(name)
        try:
            return view.ends(self.spec(other).index)
        finally:
            view.close()

    def _view(self, name: str) -> ControlView:
        return ControlView(self._regions.control[self.spec(name).index], self._regions.slots)

    def drops(self, name: str) -> dict[str, int]:
        """Why a port dropped frames: reason to number."""
        return drops(self.counters(name))

    def memory(self) -> dict[str, int]:
        """Bytes of shared memory: ``reserved_bytes``, ``committed_bytes``, ``control_bytes``."""
        return self._regions.memory()

    def close(self) -> None:
        """Close this process's ports and all regions; safe to repeat."""
        if os.getpid() == self._pid:
            for port in list(self._open.values()):
                port.close()
        self._regions.close()


def _validate(names: list[str], layout: str, channel_bytes: int) -> None:
    limit: Any = int(lib.MINT_PORTS_MAX)
    if len(set(names)) != len(names):
        raise FabricError("two ports of the fabric have the same name; give each its own")
    if not 2 <= len(names) <= limit:
        raise FabricError(f"a fabric has 2 to {limit} ports, not {len(names)}")
    if layout not in LAYOUTS:
        raise FabricError(f"no layout {layout}; use one of {', '.join(LAYOUTS)}")
    if not lib.MINT_CAP_MIN <= channel_bytes <= lib.MINT_CAP_MAX:
        raise FabricError(
            f"channel_bytes {channel_bytes} is out of range;"
            f" use {int(lib.MINT_CAP_MIN)} to {int(lib.MINT_CAP_MAX)}"
        )
