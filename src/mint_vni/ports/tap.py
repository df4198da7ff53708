# SPDX-License-Identifier: Apache-2.0
"""TAP devices: the Ethernet interface of a node that runs on the host's kernel.

A TAP is created by opening ``/dev/net/tun`` and naming the interface. It belongs to the network
namespace of the *thread* that opened the file and lives as long as one descriptor of it is open,
so nothing has to be deleted afterwards, and a duplicate held by the supervisor keeps the
interface, with its addresses and routes, alive while a worker is being replaced.

Each frame read from the descriptor, or written to it, is preceded by a ``virtio_net_hdr_v1`` of 12
little-endian bytes. With offloads on, the kernel hands over TCP and UDP frames of up to 64 KiB
with their checksums still to be completed, and takes such frames back: what the header says
travels with the frame through the fabric.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from typing import Final

from mint_vni.errors import PlatformError

__all__ = ["TUN_DEVICE", "VNET_HEADER_BYTES", "open_tap"]

TUN_DEVICE: Final = "/dev/net/tun"

#: Bytes of the header before each frame (``struct virtio_net_hdr_v1``).
VNET_HEADER_BYTES: Final = 12

# linux/if_tun.h; the ioctl numbers are those of all architectures but alpha, mips, parisc, powerpc
# and sparc, which number the direction bits differently.
_TUNSETIFF: Final = 0x400454CA
_TUNSETOFFLOAD: Final = 0x400454D0
_TUNSETVNETHDRSZ: Final = 0x400454D8
_TUNSETVNETLE: Final = 0x400454DC

_IFF_TAP: Final = 0x0002
_IFF_NO_PI: Final = 0x1000
_IFF_VNET_HDR: Final = 0x4000

_TUN_F_CSUM: Final = 0x01
_TUN_F_TSO4: Final = 0x02
_TUN_F_TSO6: Final = 0x04
_TUN_F_TSO_ECN: Final = 0x08
_TUN_F_USO4: Final = 0x20
_TUN_F_USO6: Final = 0x40
_OFFLOADS: Final = _TUN_F_CSUM | _TUN_F_TSO4 | _TUN_F_TSO6 | _TUN_F_TSO_ECN
_OFFLOADS_UDP: Final = _TUN_F_USO4 | _TUN_F_USO6  # since Linux 6.2

_IFNAMSIZ: Final = 16


def open_tap(name: str, *, offload: bool) -> int:
    """Create a TAP in the network namespace of the calling thread.

    Args:
        name: Name of the interface, at most 15 bytes.
        offload: Exchange unsegmented frames with checksums to be completed; otherwise the kernel
            segments and completes them before it hands them over, and expects the same.

    Returns:
        A non-blocking, close-on-exec descriptor. The interface vanishes with its last duplicate.

    Raises:
        PlatformError: There is no TUN driver, or no permission to use it.
        FileExistsError: The namespace already has an interface of that name.
        OSError: The kernel refused for another reason.
    """
    fd = _open_device()
    try:
        request = struct.pack(
            f"{_IFNAMSIZ}sH22x", _interface_name(name), _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR
        )
        _create(fd, name, request)
        fcntl.ioctl(fd, _TUNSETVNETHDRSZ, struct.pack("i", VNET_HEADER_BYTES))
        fcntl.ioctl(fd, _TUNSETVNETLE, struct.pack("i", 1))
        _set_offload(fd, offload=offload)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _interface_name(name: str) -> bytes:
    encoded = name.encode()
    if not 0 < len(encoded) < _IFNAMSIZ:
        raise ValueError(f"interface name {name!r} must have 1 to {_IFNAMSIZ - 1} bytes")
    return encoded


def _open_device() -> int:
    try:
        return os.open(TUN_DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
            raise PlatformError(
                f"{TUN_DEVICE} is missing; load the driver with 'modprobe tun', or give this "
                "container the device"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM):
            raise PlatformError(
                f"no permission to open {TUN_DEVICE}; run as root, or give this container the "
                "device"
            ) from error
        raise


def _create(fd: int, name: str, request: bytes) -> None:
    try:
        fcntl.ioctl(fd, _TUNSETIFF, request)
    except OSError as error:
        if error.errno == errno.ENOTTY:
            raise PlatformError(
                f"{TUN_DEVICE} is another device; load the driver with 'modprobe tun', or give this"
                " container the real one"
            ) from error
        if error.errno == errno.EPERM:
            raise PlatformError(
                f"no permission to create the interface {name}; run as root"
            ) from error
        if error.errno == errno.EBUSY:
            raise FileExistsError(errno.EEXIST, "an interface of that name exists", name) from error
        raise


def _set_offload(fd: int, *, offload: bool) -> None:
    if not offload:
        fcntl.ioctl(fd, _TUNSETOFFLOAD, 0)
        return
    try:
        fcntl.ioctl(fd, _TUNSETOFFLOAD, _OFFLOADS | _OFFLOADS_UDP)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        fcntl.ioctl(fd, _TUNSETOFFLOAD, _OFFLOADS)
