# SPDX-License-Identifier: Apache-2.0
"""Reading ports' control regions: counters and states, at no cost to whoever serves the port."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mint_vni._native import ffi, lib
from mint_vni.errors import FabricError


def _names(count: int, name: Callable[[int], Any]) -> list[tuple[int, str]]:
    pairs = ((i, name(i)) for i in range(count))
    return [(i, ffi.string(text).decode()) for i, text in pairs if text != ffi.NULL]


TX_NAMES = _names(int(lib.MINT_TX_COUNTERS), lib.mint_tx_counter_name)
RX_NAMES = _names(int(lib.MINT_RX_COUNTERS), lib.mint_rx_counter_name)
PORT_NAMES = _names(int(lib.MINT_PORT_COUNTERS), lib.mint_port_counter_name)

#: What a position grows by for each descriptor in layout ``pooled``.
DESCRIPTOR_STEP = int(lib.MINT_LINE)

_END_STATES = {
    int(lib.MINT_END_CLOSED): "closed",
    int(lib.MINT_END_OPEN): "open",
    int(lib.MINT_END_RESET): "reset",
}


@dataclass(frozen=True)
class Ends:
    """One port's ends of its two channels with another.

    Attributes:
        head: bytes published towards the other; tail: bytes released of what came from it (layout
            ``pooled``: :data:`DESCRIPTOR_STEP` for each frame; ``shared``: 0).
        tx_state, rx_state: ``closed``, ``open`` or ``reset``.
        stalled: whether frames towards the other are dropped because it does not drain.
        tx, rx: counters by name.
    """

    head: int
    tail: int
    tx_state: str
    rx_state: str
    stalled: bool
    tx: dict[str, int]
    rx: dict[str, int]


class ControlView:
    """A read-only look at one port's control region."""

    def __init__(self, fd: int, slots: int) -> None:
        """Map the region; the descriptor stays the caller's."""
        self._slots = slots
        self._ctl: Any = lib.mint_ctl_map(fd, slots)
        if self._ctl == ffi.NULL:
            raise FabricError(f"control region: {os.strerror(ffi.errno)}")

    def close(self) -> None:
        """Unmap; safe to repeat."""
        if self._ctl is not None:
            lib.mint_ctl_unmap(self._ctl, self._slots)
            self._ctl = None

    def counters(self) -> dict[str, int]:
        """The port's own counters, by name."""
        view = ffi.new("struct mint_ctl_view *")
        lib.mint_ctl_read(self._ctl, view)
        return {name: view.counter[i] for i, name in PORT_NAMES}

    def name(self) -> str:
        """The port's name, as it says itself."""
        view = ffi.new("struct mint_ctl_view *")
        lib.mint_ctl_read(self._ctl, view)
        return bytes(ffi.string(view.name)).decode(errors="replace")

    def pid(self) -> int:
        """The process that serves the port, as it says itself; 0: none."""
        view = ffi.new("struct mint_ctl_view *")
        lib.mint_ctl_read(self._ctl, view)
        return int(view.pid)

    def ends(self, other: int) -> Ends:
        """This port's ends of its channels with port ``other`` (an index)."""
        if not 0 <= other < self._slots:
            raise IndexError(other)
        view = ffi.new("struct mint_slot_view *")
        lib.mint_slot_read(self._ctl, other, view)
        return Ends(
            head=view.head,
            tail=view.tail,
            tx_state=_END_STATES.get(view.tx_end & 0xFF, "unknown"),
            rx_state=_END_STATES.get(view.rx_end & 0xFF, "unknown"),
            stalled=bool(view.tx_stalled),
            tx={name: view.tx_counter[i] for i, name in TX_NAMES},
            rx={name: view.rx_counter[i] for i, name in RX_NAMES},
        )


def drops(counters: dict[str, int]) -> dict[str, int]:
    """The reasons for which frames were dropped, without those that never happened."""
    return {
        name.removeprefix("drop_"): value
        for name, value in counters.items()
        if name.startswith("drop_") and value
    }
