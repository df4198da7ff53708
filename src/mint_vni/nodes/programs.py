# SPDX-License-Identifier: Apache-2.0
"""Programs of the host that nodes need, found with an error that names the package to install."""

from __future__ import annotations

import os
import shutil

from mint_vni.errors import PlatformError

__all__ = ["find_program", "search_path"]

_STANDARD = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")


def search_path(path: str | None = None) -> str:
    """Return a search path with the administrator's directories in it.

    Args:
        path: What to start from; None for this process's own.
    """
    given = (path if path is not None else os.environ.get("PATH", "")).split(os.pathsep)
    words = [word for word in given if word]
    return os.pathsep.join(dict.fromkeys([*words, *_STANDARD]))


def find_program(name: str, package: str) -> str:
    """Find a program.

    Args:
        name: Its name.
        package: The Debian package that brings it.

    Returns:
        Its absolute path.

    Raises:
        PlatformError: It is not installed.
    """
    # The system's own first: a program of the same name in a virtual environment is not meant.
    path = shutil.which(name, path=os.pathsep.join(_STANDARD)) or shutil.which(
        name, path=search_path()
    )
    if path is None:
        raise PlatformError(f"{name} is not installed; run 'apt-get install {package}'")
    return path
