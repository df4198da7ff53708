# SPDX-License-Identifier: Apache-2.0
"""Logs that nobody can make grow: files in memory, of a fixed, sealed size.

What a node and its sshd say is caused by others, too: whoever connects to the sshd makes it write.
A file below the host's /run, that anybody can make grow, could fill it. These keep the first
`LOG_BYTES`; later writes fail. They have no name, are charged to the memory of who writes, and live
as long as one process has them open.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterable
from typing import Final

__all__ = ["LOG_BYTES", "QUOTED", "make_log", "open_log", "quote", "read_log"]

LOG_BYTES: Final = 256 * 1024
#: Characters of a line that is quoted.
QUOTED: Final = 200


def make_log(name: str, size: int = LOG_BYTES) -> int:
    """Make a log, for processes that share its descriptor to write to.

    Args:
        name: Shown in ``/proc/PID/fd``; need not be unique.
        size: Bytes, for good.

    Returns:
        A close-on-exec descriptor.

    Raises:
        OSError: Out of memory or descriptors.
    """
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size)
        seals = fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    except OSError:
        os.close(fd)
        raise
    return fd


def quote(lines: Iterable[str]) -> str:
    """Lines that somebody else has said, for one line of a message: each cut at `QUOTED`."""
    return " | ".join(line[:QUOTED] for line in lines)


def open_log(pid: int, fd: int) -> int | None:
    """Open for reading a log that another process has open.

    Args:
        pid: That process.
        fd: Its descriptor.

    Returns:
        A descriptor; None if it can't be had.
    """
    try:
        return os.open(f"/proc/{pid}/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None


def read_log(fd: int | None) -> str:
    """Read what was written to a log.

    Args:
        fd: Its descriptor; None for none.

    Returns:
        The text; empty if there is no log.
    """
    if fd is None:
        return ""
    try:
        data = os.pread(fd, LOG_BYTES, 0)
    except OSError as error:
        if error.errno == errno.ESPIPE:  # root in the node may have put a pipe in its place
            return ""
        raise
    return data.rstrip(b"\0").decode(errors="replace")
