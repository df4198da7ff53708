# SPDX-License-Identifier: Apache-2.0
"""Writes the archive that a kernel unpacks into its first root file system.

The format is "newc" (Documentation/driver-api/early-userspace/buffer-format.rst in Linux): each
member is a header of 110 characters, "070701" and thirteen numbers of eight hexadecimal digits, then
its name with a zero, then its content, each padded to four bytes; the last is named ``TRAILER!!!``.
Nothing is compressed: that costs more, in a slow guest, than reading it.
"""

from __future__ import annotations

import stat
from pathlib import PurePosixPath
from typing import Final

__all__ = ["Initramfs"]

_MAGIC: Final = "070701"
_TRAILER: Final = "TRAILER!!!"
_BLOCK: Final = 512


class Initramfs:
    """An archive that grows; directories are made as they are needed, everything is root's."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._known: set[str] = set()
        self._inode = 0

    def file(self, path: str, content: bytes, mode: int = 0o644) -> None:
        """Add a file.

        Args:
            path: Absolute.
            content: What is in it.
            mode: Its permissions.
        """
        self._add(path, stat.S_IFREG | mode, content)

    def directory(self, path: str, mode: int = 0o755) -> None:
        """Add an empty directory, unless it is there already."""
        if path.strip("/") not in self._known:
            self._add(path, stat.S_IFDIR | mode, b"")

    def symlink(self, path: str, target: str) -> None:
        """Add a symbolic link to `target`."""
        self._add(path, stat.S_IFLNK | 0o777, target.encode())

    def device(self, path: str, mode: int, major: int, minor: int) -> None:
        """Add a character device."""
        self._add(path, stat.S_IFCHR | mode, b"", (major, minor))

    def archive(self) -> bytes:
        """Return the whole archive; more can be added afterwards, for another one."""
        parts = [*self._parts, _member(_TRAILER, 0, 0, b"", (0, 0))]
        size = sum(map(len, parts))
        return b"".join([*parts, bytes(-size % _BLOCK)])

    def _add(self, path: str, mode: int, content: bytes, device: tuple[int, int] = (0, 0)) -> None:
        name = path.strip("/")
        if not path.startswith("/") or not name or ".." in PurePosixPath(name).parts:
            raise ValueError(f"{path} is no absolute path of a member")
        if name in self._known:
            raise ValueError(f"{path} is there already")
        parent = str(PurePosixPath(name).parent)
        if parent != ".":
            self.directory("/" + parent)
        self._known.add(name)
        self._inode += 1
        self._parts.append(_member(name, self._inode, mode, content, device))


def _member(name: str, inode: int, mode: int, content: bytes, device: tuple[int, int]) -> bytes:
    encoded = name.encode() + b"\0"
    # inode, mode, uid, gid, links, mtime, size, device of the file system, device, name, checksum
    numbers = (inode, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(encoded), 0)
    head = (_MAGIC + "".join(f"{number:08X}" for number in numbers)).encode() + encoded
    return head + bytes(-len(head) % 4) + content + bytes(-len(content) % 4)
