# SPDX-License-Identifier: Apache-2.0
"""Files of a lab outside of its own directory: known by device and inode, not by name alone."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

__all__ = ["made_here", "remove"]


def made_here(path: str) -> dict[str, Any]:
    """Return what to journal about a file that was just made: `remove` takes it."""
    place = os.stat(path, follow_symlinks=False)
    return {"path": path, "dev": place.st_dev, "ino": place.st_ino}


def remove(data: Mapping[str, Any]) -> None:
    """Remove a file, if it still is the one that was made.

    Args:
        data: What `made_here` returned.

    Raises:
        OSError: It can't be removed.
    """
    try:
        place = os.stat(data["path"], follow_symlinks=False)
        if (place.st_dev, place.st_ino) == (data["dev"], data["ino"]):
            os.unlink(data["path"])
    except FileNotFoundError:
        pass
