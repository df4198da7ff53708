# SPDX-License-Identifier: Apache-2.0
"""The shared memory of a fabric: which regions exist and who may do what with them.

Every region is a memfd, sealed against growing and shrinking, of mode 0600 and owned by its
writer. A reader never gets the writer's descriptor: it gets one opened read-only, and since the
file belongs to another user it cannot reopen it for writing through ``/proc``. What the kernel
enforces thereby (with one user per port):

=================  ======================  =====================================
region             writer                  readers
=================  ======================  =====================================
control, port p    p                       all peers of p, and the supervisor
payload, p -> q    p                       q
pool               everybody               everybody (layout ``shared`` only)
stock, port p      p                       all peers of p (layout ``pooled`` only)
=================  ======================  =====================================

Where all ports run under one user (no root), the ports of a fabric are mutually trusted.

Regions are sparse files: memory is committed page by page when it is touched.
"""

from __future__ import annotations

import fcntl
import os
import socket
from dataclasses import dataclass, field

from mint_vni._native import lib

LAYOUTS = {
    "per-channel": int(lib.MINT_LAYOUT_PER_CHANNEL),
    "shared": int(lib.MINT_LAYOUT_SHARED),
    "pooled": int(lib.MINT_LAYOUT_POOLED),
}

_PAGE = os.sysconf("SC_PAGE_SIZE")
_SEALS = fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL


def round_to_page(size: int) -> int:
    """Round a size in bytes up to whole pages."""
    return -(-size // _PAGE) * _PAGE


def create_region(name: str, size: int, owner: int | None = None) -> int:
    """Create a sealed memory file.

    Args:
        name: what ``/proc/PID/maps`` shows after ``/memfd:``.
        size: bytes.
        owner: user id to own it (root only); None: the caller.

    Returns:
        A descriptor open for reading and writing, close-on-exec.

    Raises:
        OSError: out of memory or descriptors.
    """
    fd = os.memfd_create(f"mint-{name}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size)
        os.fchmod(fd, 0o600)  # a memfd is created 0777: anybody could reopen it for writing
        if owner is not None:
            os.fchown(fd, owner, owner)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except OSError:
        os.close(fd)
        raise
    return fd


def is_region(fd: int, size: int) -> bool:
    """Whether this is a region of that many bytes, which it has for ever."""
    try:
        sealed = fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _SEALS == _SEALS
    except OSError:  # it is no memory file
        return False
    return sealed and os.fstat(fd).st_size == size


def reopen(fd: int, *, writable: bool = False) -> int:
    """Open a region again, as a file description of its own (read-only by default)."""
    mode = os.O_RDWR if writable else os.O_RDONLY
    return os.open(f"/proc/self/fd/{fd}", mode | os.O_CLOEXEC)


def committed_bytes(fd: int) -> int:
    """Bytes of memory that a region occupies now."""
    return os.fstat(fd).st_blocks * 512


@dataclass
class Regions:
    """All regions and doorbells of a fabric, by port index.

    Attributes:
        layout: ``per-channel``, ``shared`` or ``pooled``.
        slots: ports that there is room for.
        channel_bytes: capacity of one channel (layout ``shared``: of the one buffer of all;
            ``pooled``: of each port's pool).
        control: descriptor of each port's control region.
        payload: descriptor of each channel's payload region, by (sender, receiver).
        bells: each port's end of the doorbell that it shares with another, by (holder, other).
        pool: descriptor of the pool region, or None.
        stock: descriptor of each port's stock region (layout ``pooled``).
        owners: the user that each port's regions belong to; None: the caller.
        read_only: while a lab is being adopted, payload regions as their readers have them.
        read_only_stock: the same for stock regions.
    """

    layout: str
    slots: int
    channel_bytes: int
    control: dict[int, int] = field(default_factory=dict)
    payload: dict[tuple[int, int], int] = field(default_factory=dict)
    bells: dict[tuple[int, int], int] = field(default_factory=dict)
    pool: int | None = None
    stock: dict[int, int] = field(default_factory=dict)
    owners: dict[int, int | None] = field(default_factory=dict)
    read_only: dict[tuple[int, int], int] = field(default_factory=dict)
    read_only_stock: dict[int, int] = field(default_factory=dict)

    @property
    def layout_code(self) -> int:
        """The layout as the core knows it."""
        return LAYOUTS[self.layout]

    @property
    def capacity(self) -> int:
        """Bytes of what a peer is told of: a payload region or a pool; 0 where there is neither."""
        return 0 if self.layout == "shared" else self.channel_bytes

    def add_port(self, index: int, owner: int | None = None) -> None:
        """Create a port's control region, and its channels and doorbells with all others."""
        if self.layout == "shared" and self.pool is None:
            self.pool = self._create_pool()
        size = int(lib.mint_ctl_bytes(self.slots))
        self.control[index] = create_region(f"control-{index}", size, owner)
        if self.layout == "pooled":
            size = int(lib.mint_stock_bytes(self.slots, self.channel_bytes))
            self.stock[index] = create_region(f"stock-{index}", size, owner)
        self.owners[index] = owner
        for other in self.control:
            if other != index:
                self._join(index, other)

    def _create_pool(self) -> int:
        data = self.channel_bytes
        fd = create_region("pool", int(lib.mint_pool_bytes(self.slots, data)))
        err = lib.mint_pool_format(fd, self.slots, data)
        if err < 0:
            os.close(fd)
            raise OSError(-err, os.strerror(-err))
        return fd

    def _join(self, a: int, b: int) -> None:
        if self.layout == "per-channel":
            for src, dst in ((a, b), (b, a)):
                self.payload[src, dst] = create_region(
                    f"channel-{src}-{dst}", self.channel_bytes, self.owners[src]
                )
        one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.bells[a, b], self.bells[b, a] = one.detach(), other.detach()

    def peers_of(self, index: int) -> list[int]:
        """Indices of all other ports."""
        return [i for i in self.control if i != index]

    def joined(self, index: int, peer: int) -> bool:
        """Whether there is all that port ``index`` needs for its channels with ``peer``."""
        return peer in self.control and (index, peer) in self.bells

    def peer_fds(self, index: int, peer: int) -> list[int]:
        """Descriptors that port ``index`` needs for its channels with ``peer``.

        In the order of the control protocol; freshly opened (the caller closes them), each with no
        more rights than the port may have.
        """
        fds: list[int] = []
        try:
            fds.append(reopen(self.control[peer]))
            if self.layout == "per-channel":
                fds.append(os.dup(self.payload[index, peer]))
                fds.append(reopen(self.payload[peer, index]))
            if self.layout == "pooled":
                fds.append(reopen(self.stock[peer]))
            fds.append(os.dup(self.bells[index, peer]))
        except OSError:
            _close(*fds)
            raise
        return fds

    def open_fds(self, index: int) -> list[int]:
        """Descriptors that port ``index`` needs for itself; freshly opened."""
        fds = [os.dup(self.control[index])]
        try:
            if self.pool is not None:
                fds.append(reopen(self.pool, writable=True))
            if self.layout == "pooled":
                fds.append(os.dup(self.stock[index]))
        except OSError:
            _close(*fds)
            raise
        return fds

    def own_region(self, index: int) -> int | None:
        """Descriptor of what port ``index`` writes frames to, if it is one region for all its peers."""
        return self.stock.get(index, self.pool)

    def remove_port(self, index: int) -> None:
        """Forget a port. What others still map lives until they let go."""
        _close(self.control.pop(index, None), self.stock.pop(index, None))
        _close(*self._take(self.payload, index))
        _close(*self._take(self.bells, index))
        self.owners.pop(index, None)

    @staticmethod
    def _take(table: dict[tuple[int, int], int], index: int) -> list[int]:
        return [table.pop(key) for key in list(table) if index in key]

    def close(self) -> None:
        """Close all descriptors."""
        _close(*self.control.values(), *self.payload.values(), *self.bells.values(), self.pool)
        _close(*self.stock.values())
        self.control.clear()
        self.stock.clear()
        self.payload.clear()
        self.bells.clear()
        self.pool = None

    def memory(self) -> dict[str, int]:
        """Bytes of shared memory: reserved, committed now, and of these for control regions."""
        control = sum(committed_bytes(fd) for fd in self.control.values())
        fds = [*self.payload.values(), *self.stock.values()]
        if self.pool is not None:
            fds.append(self.pool)
        return {
            "reserved_bytes": sum(os.fstat(fd).st_size for fd in fds),
            "committed_bytes": sum(committed_bytes(fd) for fd in fds),
            "control_bytes": control,
        }


def _close(*fds: int | None) -> None:
    for fd in fds:
        if fd is not None:
            os.close(fd)
