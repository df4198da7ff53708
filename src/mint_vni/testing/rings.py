# SPDX-License-Identifier: Apache-2.0
"""Split virtqueues from the driver's side, built by hand (VIRTIO 1.2, section 2.7).

Theory of operation: a driver puts buffers into the descriptor table, names each chain's head in
the available ring and advances that ring's index; the device names the chains that it has used in
the used ring and advances its index. Either side says how it wants to be woken: by a flag, or, with
EVENT_IDX, by the index at which it wants it. Both look once more after having said so.

What orders a store before a later load of another place is a full fence. Python has none; taking
and releasing a lock is one on x86 (a locked instruction), and on Arm with its atomics in practice.

Everything in the rings can be read and written raw, as a hostile driver would: `Ring.desc`,
`Ring.avail_idx`, `Ring.avail_ring` and so on.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from mint_vni.errors import FabricError
from mint_vni.testing.memory import GuestMemory
from mint_vni.testing.protocol import NO_LOG

#: Flags of a descriptor.
NEXT = 1
WRITE = 2
INDIRECT = 4

#: Flags of the rings.
NO_INTERRUPT = 1  # available ring: do not call
NO_NOTIFY = 1  # used ring: do not kick

_DESC = struct.Struct("<QIHH")
_fence = threading.Lock()


def fence() -> None:
    """Order what was stored before with what is loaded after; see the module's text."""
    with _fence:
        pass


class Desc(NamedTuple):
    """A descriptor: guest address and length in bytes, flags, index of the next."""

    addr: int
    len: int
    flags: int = 0
    next: int = 0


class Part(NamedTuple):
    """One piece of a buffer: guest address, bytes, and whether the device writes it."""

    addr: int
    len: int
    write: bool = False


class DescTable:
    """A table of descriptors in guest memory: ``table[i] = Desc(...)``."""

    def __init__(self, memory: GuestMemory, addr: int, size: int) -> None:
        """Look at ``size`` descriptors at guest address ``addr``."""
        self.addr, self.size = addr, size
        self._view = memory.view(addr, size * _DESC.size)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Desc:
        return Desc(*_DESC.unpack_from(self._view, index * _DESC.size))

    def __setitem__(self, index: int, desc: Desc | tuple[int, int, int, int]) -> None:
        _DESC.pack_into(self._view, index * _DESC.size, *desc)

    def chain(self, indices: Sequence[int], parts: Sequence[Part]) -> None:
        """Write ``parts`` into the descriptors ``indices``, one after the other."""
        last = len(parts) - 1
        for i, (index, part) in enumerate(zip(indices, parts, strict=True)):
            flags = (WRITE if part.write else 0) | (NEXT if i < last else 0)
            self[index] = Desc(part.addr, part.len, flags, indices[i + 1] if i < last else 0)

    def release(self) -> None:
        """Let go of the memory."""
        self._view.release()


@dataclass
class Setup:
    """What the back end is told of a ring; change it before the start to lie.

    Attributes:
        num: descriptors.
        base: index in the available ring to start from.
        desc, used, avail: user addresses.
        log: address for the dirty log, flags: of SET_VRING_ADDR.
    """

    num: int
    base: int
    desc: int
    used: int
    avail: int
    log: int = NO_LOG
    flags: int = 0


@dataclass
class Chain:
    """A buffer that the device has: its descriptors, what they say, and memory to give back."""

    descs: list[int]
    parts: list[Part]
    owned: list[int] = field(default_factory=list)


class Used(NamedTuple):
    """A buffer that came back, and the bytes that the device says to have written."""

    chain: Chain
    len: int


class Ring:
    """One split virtqueue. For one thread at a time, apart from other rings."""

    def __init__(self, memory: GuestMemory, index: int, size: int) -> None:
        """Lay the ring out in guest memory; it is empty.

        Args:
            memory: where.
            index: its number: 0 receives, 1 sends.
            size: descriptors, a power of two up to 32,768.
        """
        self.memory, self.index, self.size = memory, index, size
        region = index % len(memory.regions)
        self.desc_addr = memory.alloc(16 * size, 4096, region)
        self.avail_addr = memory.alloc(6 + 2 * size, 4096, region)
        self.used_addr = memory.alloc(6 + 8 * size, 4096, region)
        self.desc = DescTable(memory, self.desc_addr, size)
        self._avail = memory.view(self.avail_addr, 6 + 2 * size).cast("H")
        used = memory.view(self.used_addr, 6 + 8 * size)
        self._used, self._elems = used.cast("H"), used[4 : 4 + 8 * size].cast("I")
        #: Raw entries of the available ring: ``ring.avail_ring[i % ring.size] = head``.
        self.avail_ring = self._avail[2 : 2 + size]
        self.event_idx = False
        self.kick_fd = self.err_fd = -1
        self.call: socket.socket | int = -1
        self.kicks = self.kicks_saved = self.calls = 0
        self.chains: dict[int, Chain] = {}
        self.next_avail = self._told = self.last_used = 0
        #: Where in the available ring the back end is to go on.
        self.base = 0
        self._spare = list(range(size - 1, -1, -1))

    # -- raw access -----------------------------------------------------------------------------

    @property
    def avail_flags(self) -> int:
        """Flags of the available ring."""
        return self._avail[0]

    @avail_flags.setter
    def avail_flags(self, value: int) -> None:
        self._avail[0] = value

    @property
    def avail_idx(self) -> int:
        """Index of the available ring."""
        return self._avail[1]

    @avail_idx.setter
    def avail_idx(self, value: int) -> None:
        self._avail[1] = value

    @property
    def used_event(self) -> int:
        """The index in the used ring at which the driver wants to be called."""
        return self._avail[2 + self.size]

    @used_event.setter
    def used_event(self, value: int) -> None:
        self._avail[2 + self.size] = value

    @property
    def used_flags(self) -> int:
        """Flags of the used ring."""
        return self._used[0]

    @property
    def used_idx(self) -> int:
        """Index of the used ring; the device's, to be written by the hostile only."""
        return self._used[1]

    @used_idx.setter
    def used_idx(self, value: int) -> None:
        self._used[1] = value

    @property
    def avail_event(self) -> int:
        """The index in the available ring at which the device wants to be kicked."""
        return self._used[2 + 4 * self.size]

    def used_entry(self, index: int) -> tuple[int, int]:
        """Head and length in entry ``index % size`` of the used ring."""
        at = 2 * (index % self.size)
        return self._elems[at], self._elems[at + 1]

    # -- buffers --------------------------------------------------------------------------------

    @property
    def spare(self) -> int:
        """Descriptors that are free."""
        return len(self._spare)

    def add(
        self, parts: Sequence[Part], owned: Sequence[int] = (), *, indirect: bool = False
    ) -> int:
        """Put a chain into the table and the available ring; unseen until :meth:`publish`.

        Args:
            parts: the chain, what the device reads before what it writes.
            owned: memory that belongs to it, see :meth:`free`.
            indirect: in a table of its own, for one descriptor of the ring's.

        Returns:
            The index of its head.

        Raises:
            BlockingIOError: too few descriptors are free.
        """
        need = 1 if indirect else len(parts)
        if need > len(self._spare) or not parts:
            raise BlockingIOError(
                f"ring {self.index}: {need} descriptors needed, {self.spare} free"
            )
        chain = Chain([self._spare.pop() for _ in range(need)], list(parts), list(owned))
        if indirect:
            table = self.memory.alloc(16 * len(parts))
            chain.owned.append(table)
            inner = DescTable(self.memory, table, len(parts))
            inner.chain(range(len(parts)), parts)
            inner.release()
            self.desc[chain.descs[0]] = Desc(table, 16 * len(parts), INDIRECT)
        else:
            self.desc.chain(chain.descs, parts)
        head = chain.descs[0]
        self.chains[head] = chain
        self.push(head)
        return head

    def push(self, head: int) -> None:
        """Name any head in the available ring; unseen until :meth:`publish`."""
        self.avail_ring[self.next_avail % self.size] = head
        self.next_avail = (self.next_avail + 1) & 0xFFFF

    def publish(self) -> None:
        """Let the device see what was added, and kick it if it wants that."""
        self.avail_idx = self.next_avail
        fence()
        old, self._told = self._told, self.next_avail
        if self.event_idx:
            added = (self.next_avail - old) & 0xFFFF
            wanted = (self.next_avail - self.avail_event - 1) & 0xFFFF < added
        else:
            wanted = not self.used_flags & NO_NOTIFY
        if wanted:
            self.kick()
        else:
            self.kicks_saved += 1

    def kick(self) -> None:
        """Kick the device, whether it wants that or not."""
        self.kicks += 1
        os.eventfd_write(self.kick_fd, 1)

    def collect(self) -> list[Used]:
        """What has come back since, oldest first; give its memory back with :meth:`free`.

        Raises:
            FabricError: the device gave back what it does not have.
        """
        came: list[Used] = []
        upto = self.used_idx
        if (upto - self.last_used) & 0xFFFF > self.size:
            raise FabricError(
                f"ring {self.index}: the used index went from {self.last_used} to {upto},"
                f" more than its {self.size} entries; the back end is broken"
            )
        while self.last_used != upto:
            head, length = self.used_entry(self.last_used)
            chain = self.chains.pop(head, None)
            if chain is None:
                raise FabricError(
                    f"ring {self.index}: used entry {self.last_used} names {head}, which the back"
                    " end does not have; it is broken"
                )
            self.last_used = (self.last_used + 1) & 0xFFFF
            self._spare += chain.descs
            came.append(Used(chain, length))
        return came

    def free(self, chain: Chain) -> None:
        """Give the memory back that belongs to a chain."""
        while chain.owned:
            self.memory.free(chain.owned.pop())

    def wait(self, deadline: float) -> bool:
        """Sleep until something has come back.

        Args:
            deadline: of ``time.monotonic()``.

        Returns:
            Whether something has.
        """
        while self.used_idx == self.last_used:
            if self.event_idx:
                self.used_event = self.last_used
            self.avail_flags = 0
            fence()
            if self.used_idx != self.last_used:
                break
            left = deadline - time.monotonic()
            if left <= 0 or not self._await_call(left):
                return self.used_idx != self.last_used
        if not self.event_idx:
            self.avail_flags = NO_INTERRUPT
        return True

    def _await_call(self, timeout: float) -> bool:
        poller = select.poll()
        poller.register(self.call, select.POLLIN)
        if not poller.poll(timeout * 1000):
            return False
        self.drain_calls()
        return True

    def drain_calls(self) -> int:
        """Take the calls that have come; how many they were (an eventfd adds them up)."""
        count = 0
        try:
            if isinstance(self.call, socket.socket):
                # Each call is one number of 8 bytes.
                while data := self.call.recv(4096, socket.MSG_DONTWAIT):
                    count += len(data) // 8
                    if len(data) % 8:
                        raise FabricError(
                            f"ring {self.index}: a call of {len(data)} bytes instead of 8;"
                            " the back end is broken"
                        )
            elif self.call >= 0:
                count = os.eventfd_read(self.call)
        except BlockingIOError:
            pass
        self.calls += count
        return count

    # -- life -----------------------------------------------------------------------------------

    def setup(self) -> Setup:
        """What the back end has to know."""
        user = self.memory.user
        return Setup(
            num=self.size,
            base=self.base,
            desc=user(self.desc_addr),
            used=user(self.used_addr),
            avail=user(self.avail_addr),
        )

    def reset(self, start: int = 0) -> None:
        """Make it empty, as a driver does after a reset of its device.

        Args:
            start: what both indices begin with; drivers begin with 0.
        """
        for chain in self.chains.values():
            self.free(chain)
        self.chains.clear()
        self._spare = list(range(self.size - 1, -1, -1))
        for i in range(len(self._avail)):
            self._avail[i] = 0
        for i in range(len(self._used)):
            self._used[i] = 0
        self.next_avail = self._told = self.last_used = self.base = start
        self._avail[1] = self._used[1] = start

    def open_doorbells(self, *, sockets: bool) -> int:
        """Make new descriptors for kicks, calls and errors.

        Args:
            sockets: calls come by a stream socket, as UML has it, instead of an eventfd.

        Returns:
            The back end's end for calls, to be closed once it was sent; -1: it is ``call`` itself.
        """
        self.close_doorbells()
        self.kick_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.err_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        if not sockets:
            self.call = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            return -1
        self.call, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        return other.detach()

    def close_doorbells(self) -> None:
        """Close the descriptors; safe to repeat."""
        for fd in (self.kick_fd, self.err_fd):
            if fd >= 0:
                os.close(fd)
        self.kick_fd = self.err_fd = -1
        if isinstance(self.call, socket.socket):
            self.call.close()
        elif self.call >= 0:
            os.close(self.call)
        self.call = -1

    def release(self) -> None:
        """Let go of everything; the ring can not be used any more."""
        self.close_doorbells()
        self.detach()

    def detach(self) -> None:
        """Let go of the memory alone, before it is cut short; safe to repeat."""
        self.desc.release()
        for view in (self.avail_ring, self._avail, self._elems, self._used):
            view.release()
