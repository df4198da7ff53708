# SPDX-License-Identifier: Apache-2.0
"""Tries what a lab will need, in processes that end at once, and prints what happened as JSON.

Run as a program of its own, by path and without the package: a namespace, once entered, is not
left, so each attempt happens in a forked child, and only a process without threads may fork. Nothing
is made that has a name on the machine: a TAP lives in a network namespace that dies with its child.

Prints an object: the name of each attempt to what it gave, or to ``{"error": "EPERM"}``.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import struct
import sys
from collections.abc import Callable

CLONE = {
    "mount": 0x0002_0000,
    "cgroup": 0x0200_0000,
    "uts": 0x0400_0000,
    "ipc": 0x0800_0000,
    "user": 0x1000_0000,
    "pid": 0x2000_0000,
    "net": 0x4000_0000,
}
NOBODY = 65534

# linux/if_tun.h
TUNSETIFF = 0x4004_54CA
TUNSETOFFLOAD = 0x4004_54D0
TUNSETVNETHDRSZ = 0x4004_54D8
IFF_TAP = 0x0002
IFF_NO_PI = 0x1000
IFF_VNET_HDR = 0x4000
VNET_HEADER_BYTES = 12
OFFLOADS = {"csum": 0x01, "tso4": 0x02, "tso6": 0x04, "uso4": 0x20, "uso6": 0x40}
BASE_OFFLOADS = ("csum", "tso4", "tso6")

# linux/fcntl.h
F_ADD_SEALS = 1033
F_GET_SEALS = 1034
SEALS = 0x0001 | 0x0002 | 0x0004  # SEAL, SHRINK, GROW

_libc = ctypes.CDLL(None, use_errno=True)


def _unshare(*names: str) -> None:
    flags = sum(CLONE[name] for name in names)
    if _libc.unshare(flags) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def namespace(name: str) -> object:
    """Enter a new namespace of one type."""
    _unshare(name)
    return True


def user_namespace() -> object:
    """Enter user and network namespaces as a user without rights."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    _unshare("user", "net")
    return True


def tap() -> object:
    """Create a TAP with vnet headers; returns the offloads that it takes."""
    _unshare("net")
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    request = struct.pack("16sH22x", b"vni0", IFF_TAP | IFF_NO_PI | IFF_VNET_HDR)
    fcntl.ioctl(fd, TUNSETIFF, request)
    fcntl.ioctl(fd, TUNSETVNETHDRSZ, struct.pack("i", VNET_HEADER_BYTES))
    # From the newest kernel's to the oldest's; UDP segmentation comes for both families at once.
    for names in ((*OFFLOADS,), BASE_OFFLOADS, ("csum",)):
        try:
            fcntl.ioctl(fd, TUNSETOFFLOAD, sum(OFFLOADS[name] for name in names))
        except OSError:
            continue
        return list(names)
    return []


def sealed_memory() -> object:
    """Make a memfd that can be neither resized nor unsealed."""
    fd = os.memfd_create("mint-doctor", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, 4096)
    os.fchmod(fd, 0o600)
    fcntl.fcntl(fd, F_ADD_SEALS, SEALS)
    if fcntl.fcntl(fd, F_GET_SEALS) & SEALS != SEALS:
        raise OSError(errno.EINVAL, "the seals did not hold")
    return True


def pidfd() -> object:
    """Hold a process by a descriptor instead of its number."""
    os.close(os.pidfd_open(os.getpid()))
    return True


ATTEMPTS: dict[str, Callable[[], object]] = {
    **{f"{name} namespace": (lambda name=name: namespace(name)) for name in CLONE},  # type: ignore[misc]
    "user namespace without rights": user_namespace,
    "tap": tap,
    "sealed memory": sealed_memory,
    "pidfd": pidfd,
}


def in_child(attempt: Callable[[], object]) -> object:
    """Run an attempt in a forked child.

    Returns:
        What it returned, or ``{"error": name of the errno or what else went wrong}``.
    """
    receive, send = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            result = attempt()
        except OSError as error:
            result = {"error": errno.errorcode.get(error.errno or 0, str(error))}
        except BaseException as error:  # noqa: BLE001  # a child must not run on into the parent's code
            result = {"error": repr(error)}
        os.write(send, json.dumps(result).encode())
        os._exit(0)
    os.close(send)
    with os.fdopen(receive, "rb") as pipe:
        said = pipe.read()
    os.waitpid(pid, 0)
    return json.loads(said) if said else {"error": "the child died"}


def main() -> None:
    """Make all attempts and print the answers."""
    json.dump({name: in_child(attempt) for name, attempt in ATTEMPTS.items()}, sys.stdout)


if __name__ == "__main__":
    main()
