# SPDX-License-Identifier: Apache-2.0
"""Numbers as people read them: three digits that matter and a unit."""

from __future__ import annotations

from datetime import datetime, timedelta

_SI = ("", "k", "M", "G", "T", "P", "E")
_BINARY = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_PLAIN_MAX = 9_999  # up to here a count is shown as it is


def _scaled(value: float, step: int, units: tuple[str, ...]) -> str:
    size, unit = float(value), 0
    # 999.5 would round up to "1000": four digits where the next unit has three.
    while size >= step - 0.5 and unit < len(units) - 1:
        size /= step
        unit += 1
    places = 0 if unit == 0 or size >= 99.95 else 1 if size >= 9.995 else 2
    return f"{size:.{places}f} {units[unit]}".rstrip()


def count(value: int) -> str:
    """A number of things: ``9,999``, then ``12.3 k``, ``4.56 M``."""
    return f"{value:,}" if value <= _PLAIN_MAX else _scaled(value, 1000, _SI)


def size(value: int) -> str:
    """A number of bytes: ``393 B``, ``384 KiB``, ``2.00 MiB``."""
    return _scaled(value, 1024, _BINARY)


def rate(bits: float) -> str:
    """Bits a second: ``12.3 Gbit/s``; ``0`` when nothing moved."""
    if not bits:
        return "0"
    number, _, unit = _scaled(bits, 1000, _SI).partition(" ")
    return f"{number} {unit}bit/s"


def duration(span: timedelta) -> str:
    """A time in its two largest units: ``42 s``, ``3 min 5 s``, ``2 h 10 min``, ``4 d 1 h``."""
    seconds = max(0, int(span.total_seconds()))
    parts = [
        (seconds // 86_400, "d"),
        (seconds // 3600 % 24, "h"),
        (seconds // 60 % 60, "min"),
        (seconds % 60, "s"),
    ]
    first = next((i for i, (value, _) in enumerate(parts) if value), len(parts) - 1)
    return " ".join(f"{value} {unit}" for value, unit in parts[first : first + 2])


def instant(text: str) -> datetime | None:
    """The time that an ISO 8601 text with a zone says; None when it says none."""
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        return None
    return when if when.tzinfo else None
