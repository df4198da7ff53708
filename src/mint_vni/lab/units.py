# SPDX-License-Identifier: Apache-2.0
"""Sizes and CPU lists as people write them.

A size is a whole number of bytes, alone or with a unit of 1024s: ``393216``, ``64K``, ``2M``,
``1G``. ``KiB``, ``MiB`` … say the same; ``KB``, ``MB`` … are refused, since they are read both as
1000s and as 1024s. A CPU list is what the kernel writes: ``0-3,6``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
SIZE_PATTERN = r"^[0-9]+ ?([KkMmGgTt]([Ii][Bb])?)?$"
CPU_LIST_PATTERN = r"^[0-9]+(-[0-9]+)?(,[0-9]+(-[0-9]+)?)*$"
CPU_MAX = 8191  # the highest CPU number that a Linux kernel can be built for

_SIZE = re.compile(SIZE_PATTERN)
# More digits than this are no size and no CPU; int() refuses thousands of them by itself.
_DIGITS_MAX = 15


def parse_size(text: str) -> int:
    """Bytes of a size such as ``2M``.

    Args:
        text: Digits and an optional unit K, M, G or T (1024s).

    Returns:
        Bytes.

    Raises:
        ValueError: It is not a size.
    """
    match = _SIZE.fullmatch(text)
    digits = re.match(r"[0-9]*", text)
    if match is None or digits is None or len(digits.group()) > _DIGITS_MAX:
        raise ValueError(f"not a size: {text!r}")
    unit = (match.group(1) or "")[:1].upper()
    return int(digits.group()) * UNITS[unit]


def format_size(size: int) -> str:
    """A size in the largest unit that expresses it exactly: ``2097152`` is ``2M``.

    Args:
        size: Bytes, not negative.
    """
    for unit in ("T", "G", "M", "K"):
        if size and size % UNITS[unit] == 0:
            return f"{size // UNITS[unit]}{unit}"
    return str(size)


def parse_cpu_list(text: str) -> tuple[int, ...]:
    """CPUs of a list such as ``0-3,6``.

    Args:
        text: Numbers and ranges, separated by commas.

    Returns:
        The numbers in the order given, repetitions included.

    Raises:
        ValueError: It is not such a list, or a number is beyond `CPU_MAX`.
    """
    if re.fullmatch(CPU_LIST_PATTERN, text) is None:
        raise ValueError(f"not a list of CPUs: {text!r}")
    cpus: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        if max(len(first), len(last)) > _DIGITS_MAX:
            raise ValueError(f"no such CPU: {part}")
        low, high = int(first), int(last or first)
        if low > high or high > CPU_MAX:
            raise ValueError(f"no such CPUs: {part}")
        cpus.extend(range(low, high + 1))
        if len(cpus) > CPU_MAX + 1:
            raise ValueError("more CPUs than a kernel can have")
    return tuple(cpus)


def format_cpu_list(cpus: Iterable[int]) -> str:
    """The shortest list of some CPUs: ``{0, 1, 2, 5}`` is ``0-2,5``.

    Args:
        cpus: CPU numbers, in any order.
    """
    runs: list[list[int]] = []
    for cpu in sorted(set(cpus)):
        if runs and runs[-1][1] == cpu - 1:
            runs[-1][1] = cpu
        else:
            runs.append([cpu, cpu])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
