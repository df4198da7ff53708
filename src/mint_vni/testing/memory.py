# SPDX-License-Identifier: Apache-2.0
"""A guest's memory that is none: files in memory, in regions, with guest and user addresses.

Three kinds of addresses name the same byte. *Guest addresses* stand in descriptors; *user
addresses* stand in SET_VRING_ADDR (where the front end itself has the memory, so that a back end
must translate them, too); *offsets* are those in the files that the back end maps.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import threading
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

_PAGE = mmap.PAGESIZE
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_GRAIN = 64
_SEAM = 64 << 10  # bytes at both ends of a region that are not allocated
_USER_BASE = 0x7F20_0000_0000
_USER_STRIDE = 0x4_0000_0000  # far more than a region: none adjoins another in user addresses


def parse_size(size: int | str) -> int:
    """Bytes of ``65536``, ``"64K"``, ``"64M"`` or ``"1G"``."""
    if isinstance(size, int):
        return size
    unit = _UNITS.get(size[-1:].upper())
    try:
        return int(size[:-1]) * unit if unit else int(size)
    except ValueError:
        raise ValueError(f"memory size {size!r}; write for example '64M'") from None


@dataclass(frozen=True)
class Region:
    """One region, as SET_MEM_TABLE describes it; everything in bytes.

    Attributes:
        guest: guest address of its first byte.
        size: its length.
        user: user address of its first byte.
        offset: where it begins in its file.
        fd: the file.
    """

    guest: int
    size: int
    user: int
    offset: int
    fd: int

    @property
    def end(self) -> int:
        """Guest address behind its last byte."""
        return self.guest + self.size

    def entry(self) -> tuple[int, int, int, int]:
        """Its entry in the memory table."""
        return self.guest, self.size, self.user, self.offset


class GuestMemory:
    """Regions, and an allocator on top of them. Safe to use by several threads."""

    def __init__(
        self,
        size: int | str = "64M",
        regions: int = 2,
        *,
        same_addresses: bool = False,
        base: int = 1 << 20,
        gap: int = 0,
        sealed: bool = False,
    ) -> None:
        """Create the memory.

        Args:
            size: of all regions together, bytes or as ``"64M"``; whole pages go to each.
            regions: how many.
            same_addresses: user addresses are guest addresses, and each region has a file of its
                own, as UML has it; otherwise all share one file and have addresses of their own,
                as QEMU has it.
            base: guest address of region 0, and its offset in its file; a multiple of the page.
            gap: bytes of guest addresses between regions; without, a buffer may reach from one
                region into the next.
            sealed: forbid that the files shrink, as QEMU does by default.
        """
        each = parse_size(size) // regions // _PAGE * _PAGE
        if each <= 4 * _SEAM or base % _PAGE or gap % _PAGE:
            raise ValueError(
                f"{size} in {regions} regions at {base:#x}: not whole pages, or too little"
            )
        self._lock = threading.Lock()
        self._fds: list[int] = []
        self.regions: list[Region] = []
        shared = -1 if same_addresses else self._file(base + regions * each)
        for i in range(regions):
            guest = base + i * (each + gap)
            if same_addresses:
                fd, user, offset = self._file((base if i == 0 else 0) + each), guest, 0
                offset = base if i == 0 else 0
            else:
                fd, user, offset = shared, _USER_BASE + i * _USER_STRIDE, base + i * each
            self.regions.append(Region(guest, each, user, offset, fd))
        self._maps = [mmap.mmap(r.fd, r.size, offset=r.offset) for r in self.regions]
        self._views = [memoryview(m) for m in self._maps]
        self._bump = [_SEAM] * regions
        self._turn = 0
        self._free: dict[tuple[int, int], list[int]] = defaultdict(list)
        self._sizes: dict[int, int] = {}
        if sealed:
            for fd in self._fds:
                fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)

    def _file(self, size: int) -> int:
        fd = os.memfd_create("mint-guest", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        self._fds.append(fd)
        os.ftruncate(fd, size)
        return fd

    def close(self) -> None:
        """Unmap and close; views that are still held keep their mapping. Safe to repeat."""
        self.unmap()
        while self._fds:
            os.close(self._fds.pop())

    def unmap(self) -> None:
        """Let go of this process's own mappings; the files stay."""
        for view in self._views:
            view.release()
        self._views = []
        for one in self._maps:
            try:
                one.close()
            except BufferError:
                pass  # a view of a ring is still held: it goes with that
        self._maps = []

    def truncate(self, size: int = 0) -> None:
        """Make the files so short (bytes), under everybody's mappings.

        Whoever touches what is cut off gets SIGBUS, this process, too: it unmaps its own memory
        before, and rings can not be used any more.
        """
        self.unmap()
        for fd in self._fds:
            os.ftruncate(fd, size)

    def table(self) -> list[tuple[int, int, int, int]]:
        """The regions' entries for SET_MEM_TABLE."""
        return [region.entry() for region in self.regions]

    def fds(self) -> list[int]:
        """Each region's file, in the same order."""
        return [region.fd for region in self.regions]

    @property
    def end(self) -> int:
        """First guest address behind all memory."""
        return max(region.end for region in self.regions)

    def user(self, guest: int) -> int:
        """The user address of a guest address.

        Raises:
            ValueError: outside all regions.
        """
        region = self.regions[self._which(guest)]
        return region.user + guest - region.guest

    def _which(self, guest: int) -> int:
        for i, region in enumerate(self.regions):
            if region.guest <= guest < region.end:
                return i
        raise ValueError(f"guest address {guest:#x} is outside all regions")

    # -- bytes ----------------------------------------------------------------------------------

    def _pieces(self, guest: int, size: int) -> Iterator[memoryview]:
        while size:
            i = self._which(guest)
            at = guest - self.regions[i].guest
            piece = min(size, self.regions[i].size - at)
            yield self._views[i][at : at + piece]
            guest, size = guest + piece, size - piece

    def view(self, guest: int, size: int) -> memoryview:
        """The memory itself, writable; within one region.

        Raises:
            ValueError: it reaches out of the region.
        """
        i = self._which(guest)
        at = guest - self.regions[i].guest
        if at + size > self.regions[i].size:
            raise ValueError(f"{size} bytes at {guest:#x} reach out of their region")
        return self._views[i][at : at + size]

    def read(self, guest: int, size: int) -> bytes:
        """Copy out, also across regions that adjoin."""
        return b"".join(self._pieces(guest, size))

    def write(self, guest: int, data: bytes | bytearray | memoryview) -> None:
        """Copy in, also across regions that adjoin."""
        at = 0
        for piece in self._pieces(guest, len(data)):
            piece[:] = data[at : at + len(piece)]
            at += len(piece)

    # -- allocation -----------------------------------------------------------------------------

    def alloc(self, size: int, align: int = _GRAIN, region: int | None = None) -> int:
        """Take memory; regions take turns.

        Args:
            size: bytes.
            align: power of two; up to 64 for memory that is to be freed and used again.
            region: in this one only.

        Returns:
            Its guest address.

        Raises:
            MemoryError: none left.
        """
        size = -(-max(size, 1) // _GRAIN) * _GRAIN
        with self._lock:
            count = len(self.regions)
            order = (
                [region] if region is not None else [(self._turn + i) % count for i in range(count)]
            )
            self._turn = (self._turn + 1) % count
            for i in order:
                if align <= _GRAIN and self._free[i, size]:
                    return self._free[i, size].pop()
                at = -(-self._bump[i] // align) * align
                if at + size + _SEAM <= self.regions[i].size:
                    self._bump[i] = at + size
                    guest = self.regions[i].guest + at
                    self._sizes[guest] = size
                    return guest
        raise MemoryError(f"the guest's memory is full: no {size} bytes; give it more")

    def free(self, guest: int) -> None:
        """Give memory back that :meth:`alloc` gave."""
        with self._lock:
            self._free[self._which(guest), self._sizes[guest]].append(guest)

    def seam(self, size: int, after: int = 0) -> int:
        """Memory half in one region, half in the next; always the same, and apart from others.

        Args:
            size: bytes, up to 128 KiB.
            after: the first of the two regions.

        Returns:
            Its guest address.

        Raises:
            ValueError: there is no next region, the regions do not adjoin, or too much.
        """
        first, second = self.regions[after : after + 2]
        if first.end != second.guest or size > 2 * _SEAM:
            raise ValueError(f"no seam of {size} bytes there; make the memory with gap=0")
        return first.end - size // 2
