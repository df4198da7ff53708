# SPDX-License-Identifier: Apache-2.0
"""What the kernel enforces: who can write, map, resize or reopen a region, and who cannot."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import stat
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from fabric_util import Child, frame, gives_back, wait_until
from mint_vni.fabric.config import PortSpec, mac_bytes
from mint_vni.fabric.counters import ControlView
from mint_vni.fabric.fabric import default_mac
from mint_vni.fabric.port import Port
from mint_vni.fabric.regions import Regions, create_region, reopen

CAPACITY = 135168
SEALS = fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
ALICE, BOB, EVE = 61001, 61002, 61003  # users that need not exist

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")


def refused(call: Callable[[], Any], *allowed: int) -> None:
    """The call fails, with one of these errors."""
    with pytest.raises(OSError, match="|".join(os.strerror(number) for number in allowed)):
        call()


def child_as(uid: int, function: Callable[[], Any]) -> Child:
    """A child that runs a function as another user, without any privilege."""

    def run() -> Any:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        return function()

    return Child(run)


def as_user(uid: int, function: Callable[[], Any]) -> Any:
    """What a function returns when another user runs it."""
    return child_as(uid, function).result()


@pytest.fixture
def regions() -> Iterator[Regions]:
    """Two ports, each of its own user where that is possible."""
    with gives_back():
        made = Regions("per-channel", 2, CAPACITY)
        for index, uid in enumerate((ALICE, BOB)):
            made.add_port(index, uid if os.geteuid() == 0 else None)
        yield made
        made.close()


@pytest.fixture
def reader_fds(regions: Regions) -> Iterator[dict[str, int]]:
    """What port 1 holds of its channels with port 0."""
    fds = regions.peer_fds(1, 0)
    yield dict(zip(("control", "tx", "rx", "bell"), fds, strict=True))
    for fd in fds:
        os.close(fd)


def all_regions(regions: Regions) -> list[int]:
    return [*regions.control.values(), *regions.payload.values()]


def test_regions_are_sealed_and_private(regions: Regions) -> None:
    for fd in all_regions(regions):
        assert fcntl.fcntl(fd, fcntl.F_GET_SEALS) == SEALS
        assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o600
        assert fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC


@needs_root
def test_regions_belong_to_their_writer(regions: Regions) -> None:
    owner = {0: ALICE, 1: BOB}
    for index, fd in regions.control.items():
        assert os.fstat(fd).st_uid == owner[index]
    for (sender, _), fd in regions.payload.items():
        assert os.fstat(fd).st_uid == owner[sender]


def test_a_pool_is_sealed_and_private() -> None:
    with gives_back():
        regions = Regions("shared", 2, 1 << 20)
        regions.add_port(0)
        assert regions.pool is not None
        assert fcntl.fcntl(regions.pool, fcntl.F_GET_SEALS) == SEALS
        assert stat.S_IMODE(os.fstat(regions.pool).st_mode) == 0o600
        regions.close()


@pytest.mark.parametrize("which", ["control", "rx"])
def test_a_reader_cannot_write(reader_fds: dict[str, int], which: str) -> None:
    fd = reader_fds[which]
    size = os.fstat(fd).st_size
    assert fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
    assert os.pread(fd, 4, 0) == bytes(4)
    refused(lambda: os.write(fd, b"x"), errno.EBADF)
    refused(lambda: os.pwrite(fd, b"x", 100), errno.EBADF)
    refused(lambda: os.ftruncate(fd, 0), errno.EINVAL, errno.EPERM)
    refused(lambda: os.posix_fallocate(fd, 0, size), errno.EBADF)
    refused(lambda: mmap.mmap(fd, size, prot=mmap.PROT_READ | mmap.PROT_WRITE), errno.EACCES)
    refused(lambda: mmap.mmap(fd, size, prot=mmap.PROT_WRITE), errno.EACCES)
    refused(lambda: fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE), errno.EPERM)


@pytest.mark.parametrize("which", ["control", "rx"])
def test_a_reading_mapping_stays_one(reader_fds: dict[str, int], which: str) -> None:
    """mprotect() does not make it writable."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, *[ctypes.c_size_t] * 5]
    page = mmap.PAGESIZE
    at = libc.mmap(None, page, mmap.PROT_READ, mmap.MAP_SHARED, reader_fds[which], 0)
    assert at != ctypes.c_void_p(-1).value
    both = mmap.PROT_READ | mmap.PROT_WRITE
    assert libc.mprotect(ctypes.c_void_p(at), ctypes.c_size_t(page), both) == -1
    assert ctypes.get_errno() == errno.EACCES
    libc.munmap(ctypes.c_void_p(at), ctypes.c_size_t(page))


def test_a_writer_cannot_resize(regions: Regions) -> None:
    """Nor can anybody: so no reader is ever left with a mapping that faults."""
    for fd in all_regions(regions):
        size = os.fstat(fd).st_size
        for wanted in (0, size - 4096, size + 4096):
            refused(partial(os.ftruncate, fd, wanted), errno.EPERM)
        refused(partial(os.posix_fallocate, fd, 0, size + 4096), errno.EPERM)
        refused(partial(fcntl.fcntl, fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE), errno.EPERM)
        assert os.fstat(fd).st_size == size


@needs_root
def test_another_user_cannot_reopen(regions: Regions) -> None:
    """Through /proc, a descriptor's file is opened anew: its mode and owner decide."""
    fds = [regions.peer_fds(1, 0), regions.peer_fds(0, 1)]
    readable = [fds[0][0], fds[0][2], fds[1][0], fds[1][2]]

    def attack() -> list[str]:
        opened = []
        for fd in [*all_regions(regions), *readable]:
            for mode in (os.O_RDWR, os.O_WRONLY, os.O_RDONLY):
                try:
                    os.open(f"/proc/self/fd/{fd}", mode)
                except PermissionError:
                    continue
                opened.append(f"{os.readlink(f'/proc/self/fd/{fd}')} {mode}")
        return opened

    assert as_user(EVE, attack) == []
    for fd in [*fds[0], *fds[1]]:
        os.close(fd)


@needs_root
def test_without_its_mode_another_user_could(regions: Regions) -> None:
    """That the test above tests something: a memfd as the kernel makes it is open to all."""
    naked = os.memfd_create("naked", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    reader = reopen(naked)
    as_user(EVE, lambda: os.close(os.open(f"/proc/self/fd/{reader}", os.O_RDWR)))
    os.close(naked)
    os.close(reader)


@needs_root
def test_a_reader_cannot_change_the_mode(reader_fds: dict[str, int]) -> None:
    """The receiver is another user than the sender, so the sender's region is not its own."""

    def attack() -> None:
        for which in ("control", "rx"):
            fd = reader_fds[which]
            refused(partial(os.fchmod, fd, 0o777), errno.EPERM)
            refused(partial(os.fchown, fd, BOB, BOB), errno.EPERM)
            refused(partial(os.open, f"/proc/self/fd/{fd}", os.O_RDWR), errno.EACCES)
            refused(partial(os.utime, fd), errno.EACCES, errno.EPERM)

    as_user(BOB, attack)


@needs_root
def test_a_region_is_its_owners() -> None:
    """The owner can reopen it for writing: a worker that is replaced gets it again."""
    with gives_back():
        fd = create_region("mine", 8192, ALICE)
        as_user(ALICE, lambda: os.pwrite(os.open(f"/proc/self/fd/{fd}", os.O_RDWR), b"x", 0))
        assert os.pread(fd, 1, 0) == b"x"
        os.close(fd)


def spec(index: int) -> PortSpec:
    return PortSpec(index, f"p{index}", default_mac(index))


def open_port(regions: Regions, index: int, own: list[int], peer: list[int]) -> Port:
    port = Port(spec(index), regions.slots, regions.layout_code, own[0])
    port.add_peer(spec(1 - index), CAPACITY, peer)
    return port


@needs_root
def test_a_port_needs_no_more_than_it_gets(regions: Regions) -> None:
    """A process of the port's own user, with the port's own descriptors and no others."""
    own, peer = regions.open_fds(1), regions.peer_fds(1, 0)
    mine, others = regions.open_fds(0), regions.peer_fds(0, 1)

    def serve() -> int:
        for fd in [*all_regions(regions), *regions.bells.values(), *mine, *others]:
            os.close(fd)
        with open_port(regions, 1, own, peer) as port:
            for _ in range(100):
                port.send(frame(port, mac_bytes(spec(0).mac), port.recv(timeout=20)[14:]))
        return os.geteuid()

    with open_port(regions, 0, mine, others) as port:
        child = child_as(BOB, serve)
        view = ControlView(regions.control[1], regions.slots)
        wait_until(lambda: view.ends(0).rx_state != "closed", "the other end is open")
        view.close()
        for i in range(100):
            data = frame(port, mac_bytes(spec(1).mac), i.to_bytes(4, "big") * 100)
            port.send(data)
            assert port.recv(timeout=20) == frame(spec(1).mac, port, data[14:])
        assert child.result() == BOB
    for fd in [*own, *peer, *mine, *others]:
        os.close(fd)
