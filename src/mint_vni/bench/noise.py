# SPDX-License-Identifier: Apache-2.0
"""Medians and spreads of repeated measurements, and what machine they were made on."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from mint_vni.errors import FabricError


@dataclass(frozen=True)
class Spread:
    """Several measurements of one thing.

    Attributes:
        median, low, high: of the values, in their unit.
        count: how many there were.
    """

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summarise at least one value."""
        return cls(statistics.median(values), min(values), max(values), len(values))

    def text(self, digits: int = 1) -> str:
        """``12.3 (11.0-13.1)``: the median, and from the least to the greatest."""
        return f"{self.median:.{digits}f} ({self.low:.{digits}f}-{self.high:.{digits}f})"

    def to_json(self) -> dict[str, float]:
        """For JSON."""
        return dict(vars(self))


def machine() -> dict[str, Any]:
    """What machine this is, as far as measurements depend on it."""
    return {
        "cpu": _field("/proc/cpuinfo", "model name") or "unknown",
        "cpus": len(os.sched_getaffinity(0)),
        "caches": _caches(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "os": _os_name(),
        "virtual": "hypervisor" in _field("/proc/cpuinfo", "flags").split(),
        "load": os.getloadavg()[0],
    }


def _field(path: str, name: str) -> str:
    """The first ``name: value`` of a file; empty if there is none."""
    try:
        with open(path) as file:
            for line in file:
                if line.startswith(name):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return ""


def _caches() -> list[str]:
    """The first core's caches: ``L1 Data 48K`` ..."""
    found = []
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            level, kind, size = (
                (index / name).read_text().strip() for name in ("level", "type", "size")
            )
        except OSError:
            continue
        found.append(f"L{level} {kind} {size}")
    return found


def _os_name() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "unknown")
    except OSError:
        return "unknown"


def versions() -> dict[str, str]:
    """Of what was measured, and with what."""
    found = {"mint-vni": metadata.version("mint-vni"), "python": platform.python_version()}
    for program, argv in {"iperf3": ["iperf3", "--version"], "ping": ["ping", "-V"]}.items():
        try:
            done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=5)
        except (OSError, subprocess.SubprocessError):
            continue
        found[program] = done.stdout.partition("\n")[0].strip()
    return found


class Steal:
    """How much of this machine's time its hypervisor gave to others, since this was made."""

    def __init__(self) -> None:
        """Begin now."""
        self._before = self._read()

    @staticmethod
    def _read() -> tuple[int, int]:
        try:
            with open("/proc/stat") as file:
                ticks = [int(word) for word in file.readline().split()[1:9]]
        except (OSError, ValueError):
            return 0, 0
        return ticks[7] if len(ticks) > 7 else 0, sum(ticks)

    def percent(self) -> float:
        """Of all cores' time."""
        (stolen, total), (stolen0, total0) = self._read(), self._before
        return 100.0 * (stolen - stolen0) / (total - total0) if total > total0 else 0.0


def memcpy_gbps(cpu: int | None, size: int = 32 << 20, rounds: int = 8) -> float:
    """This machine's streaming memcpy, gigabits a second, on one core."""
    from mint_vni._native import lib

    before = os.sched_getaffinity(0)
    if cpu is not None:
        os.sched_setaffinity(0, {cpu})
    ns = int(lib.mint_bench_memcpy(size, rounds))
    os.sched_setaffinity(0, before)
    if not ns:
        raise FabricError("no memory for measuring memcpy; free some")
    return size * 8 / ns
