# SPDX-License-Identifier: Apache-2.0
"""The directory in the user's cache, its lock and its small files.

Labs are run as root, often by sudo, while kernels may have been installed by the user who calls
sudo. So there is one directory to write to and there may be another one to look into as well.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pwd
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mint_vni.errors import PlatformError


def directory() -> Path:
    """Where this user's kernels are and go; it need not exist."""
    if given := os.environ.get("MINT_CACHE_DIR"):
        return Path(given).absolute() / "kernels"
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(xdg) if os.path.isabs(xdg) and _ours(Path(xdg)) else _home() / ".cache"
    return base / "mint-vni" / "kernels"


def directories() -> list[Path]:
    """Where to look for kernels: this user's place, and under sudo also the caller's."""
    own = directory()
    caller = os.environ.get("SUDO_UID", "")
    if os.environ.get("MINT_CACHE_DIR") or os.geteuid() != 0 or not caller.isdecimal():
        return [own]
    try:
        home = Path(pwd.getpwuid(int(caller)).pw_dir)
    except KeyError:
        return [own]
    other = home / ".cache" / "mint-vni" / "kernels"
    return list(dict.fromkeys([own, other]))


def _home() -> Path:
    """This user's home; what sudo -E leaves in $HOME is another's."""
    home = Path(os.environ.get("HOME", ""))
    if home.is_absolute() and _ours(home):
        return home
    try:
        return Path(pwd.getpwuid(os.geteuid()).pw_dir)
    except KeyError:
        return home if home.is_absolute() else Path("/nonexistent")


def _ours(path: Path) -> bool:
    """Whether a directory, or the first one above it that exists, belongs to this user."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path.stat().st_uid == os.geteuid()


@contextlib.contextmanager
def locked(waiting: Callable[[], None]) -> Iterator[int]:
    """Hold the cache for an installation; made if it is not there.

    Args:
        waiting: Called once if somebody else holds it.

    Yields:
        The lock's descriptor: a process that inherits it keeps the lock for as long as it runs.

    Raises:
        PlatformError: The directory cannot be written.
    """
    where = directory()
    try:
        where.mkdir(mode=0o755, parents=True, exist_ok=True)
        lock = os.open(where / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise PlatformError(
            f"the cache {where} cannot be written ({error.strerror}); "
            "name another directory in MINT_CACHE_DIR"
        ) from None
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock
    finally:
        os.close(lock)


def read_json(path: Path) -> Any:
    """A small file's content; None where there is none or it is no JSON."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None


def update_json(path: Path, change: Callable[[Any], Any]) -> None:
    """Replace a small file in one step, one writer at a time.

    Args:
        path: The file; its directory is made.
        change: Gets the content, None where there is none; returns the new one.

    Raises:
        OSError: It cannot be written; nothing was changed.
    """
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    lock = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    temporary = path.with_suffix(".new")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        temporary.write_text(json.dumps(change(read_json(path)), indent=1), encoding="utf-8")
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)
        os.close(lock)
