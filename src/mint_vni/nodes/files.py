# SPDX-License-Identifier: Apache-2.0
"""Files of a lab outside of its own directory: known by more than their names.

Some file systems give a new file the inode of the one that was removed just before, so the time at
which it was made counts, too: as its time of modification, for sockets are not written to.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

__all__ = ["made_here", "remove"]


def made_here(path: str) -> dict[str, Any]:
    """Return what to journal about a file that was just made: `remove` takes it."""
    device, inode, made = _identity(path)
    return {"path": path, "dev": device, "ino": inode, "made": made}


def remove(data: Mapping[str, Any]) -> None:
    """Remove a file, if it still is the one that was made.

    Args:
        data: What `made_here` returned.

    Raises:
        OSError: It can't be removed.
    """
    try:
        if _identity(data["path"]) == tuple(data[key] for key in ("dev", "ino", "made")):
            os.unlink(data["path"])
    except FileNotFoundError:
        pass


def _identity(path: str) -> tuple[int, int, int]:
    place = os.stat(path, follow_symlinks=False)
    return place.st_dev, place.st_ino, place.st_mtime_ns
