# SPDX-License-Identifier: Apache-2.0
"""A kernel's modules: which files, in which order, and their bytes.

Dependencies are read from the modules themselves (``depends=`` in the ELF section ``.modinfo``), since
the file ``modules.dep`` is made by depmod when a package is installed, and these are only unpacked.
"""

from __future__ import annotations

import gzip
import lzma
import os
import struct
import zlib
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path

from mint_vni.errors import PlatformError
from mint_vni.kernels.model import Kernel

_UNPACK: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.decompress,
    ".xz": lzma.decompress,
}
_PACKED = (*_UNPACK, ".zst")  # Python 3.11 has nothing for the last; Debian does not use it

# elf(5), ELF64, little-endian
_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")


def load_order(kernel: Kernel, names: Iterable[str]) -> list[Path]:
    """The files to load for some modules, each after those that it needs.

    Args:
        kernel: The kernel.
        names: Modules, as ``virtio_net`` or ``virtio-net``. What is built into the kernel needs no
            file and is left out.

    Returns:
        Each file once; its bytes are had by `module_bytes`.

    Raises:
        PlatformError: The kernel has no such module, or a file is no module.
    """
    files, builtin = _index(kernel.modules)
    order: dict[str, Path] = {}

    def add(name: str, path: tuple[str, ...]) -> None:
        if name in order or name in builtin or name in path:
            return
        if name not in files:
            raise PlatformError(
                f"the kernel {kernel.release} has no module {name} in {kernel.modules}; "
                f"run 'mint kernel install {kernel.kind} --upgrade' for another kernel"
            )
        for needed in _depends(files[name]):
            add(needed, (*path, name))
        order[name] = files[name]

    for name in names:
        add(_normal(name), ())
    return list(order.values())


def module_bytes(path: Path) -> bytes:
    """A module as the kernel takes it: uncompressed.

    Args:
        path: From `load_order`.

    Raises:
        PlatformError: It cannot be read, or is compressed in an unknown way.
    """
    unpack = _UNPACK.get("" if path.suffix == ".ko" else path.suffix)
    if unpack is None:
        raise PlatformError(
            f"the module {path} is compressed in an unknown way; unpack it in place"
        )
    try:
        return unpack(path.read_bytes())
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise PlatformError(
            f"the module {path} cannot be read ({error}); remove its kernel's directory and run "
            "'mint kernel install'"
        ) from None


def _normal(name: str) -> str:
    """The kernel takes both signs for one; files have either."""
    return name.replace("-", "_")


def _name(file: str) -> str | None:
    """The module in a file; None if it is none."""
    stem, dot, rest = file.partition(".ko")
    return _normal(stem) if dot and rest in _PACKED else None


@lru_cache(maxsize=8)
def _index(modules: Path) -> tuple[dict[str, Path], frozenset[str]]:
    """The files below a directory by the names of their modules, and what is built in."""
    files = {
        module: Path(where, name)
        for where, _, names in os.walk(modules)
        for name in names
        if (module := _name(name))
    }
    try:
        lines = (modules / "modules.builtin").read_text(encoding="utf-8").split()
    except OSError:
        lines = []
    builtin = (_name(line.rpartition("/")[2]) for line in lines)
    return files, frozenset(name for name in builtin if name)


def _depends(path: Path) -> list[str]:
    try:
        information = _section(module_bytes(path), b".modinfo")
    except (struct.error, ValueError):
        raise PlatformError(
            f"{path} is no kernel module; remove its kernel's directory and run "
            "'mint kernel install'"
        ) from None
    values = [part[8:] for part in information.split(b"\0") if part.startswith(b"depends=")]
    names = b",".join(values).decode(errors="replace").split(",")
    return [_normal(name) for name in names if name]


def _section(elf: bytes, wanted: bytes) -> bytes:
    """The content of a named section.

    Raises:
        struct.error: It ends too early.
        ValueError: It is no ELF file of the known form, or has no such section.
    """
    header = _HEADER.unpack_from(elf)
    if header[0][:6] != b"\x7fELF\x02\x01":
        raise ValueError("no ELF64 file")
    table, size, count, names_index = header[6], header[11], header[12], header[13]
    sections = [_SECTION.unpack_from(elf, table + size * i) for i in range(count)]
    names = sections[names_index]
    for name, _, _, _, offset, length, *_ in sections:
        start = names[4] + name
        if elf[start : elf.index(b"\0", start)] == wanted:
            return elf[offset : offset + length]
    raise ValueError("no such section")
