# SPDX-License-Identifier: Apache-2.0
"""The frame of a part: what is measured in turns, how often, and what goes on meanwhile.

A part offers groups; a group is what is compared with one another. The frame opens a group (labs,
namespaces, processes), lets each of its cases warm up once, then measures all cases again and again
in turns, every second turn in reverse: what drifts meanwhile meets all of them alike. In each turn
it also measures the machine's memcpy, so that a reader sees how steady the machine was.

What can't be opened is skipped with its reason; a case that fails says so in its row. The rest goes
on.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any, ClassVar

from mint_vni.bench.noise import Steal, machine, memcpy_gbps, versions
from mint_vni.bench.result import Key, Metric, Result, Row, Skipped
from mint_vni.errors import MintError, PlatformError

#: Called with what is done now, and the part (0..1) that is done.
Progress = Callable[[str, float], None]

#: What keeps one thing from being measured, and not the rest.
EXPECTED = (MintError, OSError, subprocess.SubprocessError)


def silent(_text: str, _done: float) -> None:
    """Report no progress."""


@dataclass(frozen=True)
class Settings:
    """What was asked for.

    Attributes:
        repetitions: measurements of each case.
        seconds: about how long one takes.
        cpus: cores to use, in order; the first two are the pair's.
        quick: only what shows that it works: few cases, short.
        options: the part's own.
    """

    repetitions: int = 5
    seconds: float = 1.0
    cpus: tuple[int, ...] = ()
    quick: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def pair(self) -> tuple[int, int]:
        """The two cores of a pair; the same twice where there is one."""
        return self.cpus[0], self.cpus[min(1, len(self.cpus) - 1)]

    def option(self, name: str, otherwise: Any) -> Any:
        """One of the part's own, if it was given."""
        value = self.options.get(name)
        return otherwise if value is None else value


@dataclass
class Case:
    """One configuration.

    Attributes:
        key: what tells it from the others.
        measure: measure once; values by name of metric. Names without a metric are facts' business.
        warm_up: what to do before the first turn; returns facts. None: measure once and forget it
            (not where it is to be quick).
        against: whether a key is that of the case to divide by.
    """

    key: Key
    measure: Callable[[], Mapping[str, float]]
    warm_up: Callable[[], dict[str, Any]] | None = None
    against: Callable[[Key], bool] | None = None


@dataclass
class Group:
    """Cases that are measured in turns.

    Attributes:
        name: for messages.
        open: sets up what the cases need.
    """

    name: str
    open: Callable[[], AbstractContextManager[Sequence[Case]]]


class Part(ABC):
    """One of ``mint bench``'s parts."""

    name: ClassVar[str]
    title: ClassVar[str]
    #: Without root it measures nothing.
    root: ClassVar[bool] = False
    metrics: ClassVar[tuple[Metric, ...]]
    #: Repetitions and seconds where the user says nothing.
    defaults: ClassVar[tuple[int, float]] = (5, 1.0)

    def __init__(self, settings: Settings) -> None:
        """Measure with these settings."""
        self.settings = settings
        self.skipped: list[Skipped] = []

    @abstractmethod
    def method(self) -> list[str]:
        """How it measures, in sentences."""

    @abstractmethod
    def groups(self) -> Iterator[Group]:
        """What it measures; what can't be measured goes to :attr:`skipped`."""

    def described(self) -> dict[str, Any]:
        """Settings of its own, for the result."""
        return {}

    def each_turn(self) -> dict[str, float]:
        """What to look at in each turn, as noise."""
        return {"memcpy_gbps": memcpy_gbps(self.settings.cpus[0])}

    def conclude(self, result: Result) -> None:  # noqa: B027 - most parts have nothing to add
        """Add what follows from all rows together."""

    def close(self) -> None:  # noqa: B027 - most parts hold nothing
        """Give back what the part itself holds."""


class _Run:
    """One run of a part."""

    def __init__(self, part: Part, progress: Progress) -> None:
        self.part = part
        self.progress = progress
        self.result = Result(part.name, part.title, part.metrics)
        self.share = (0.0, 1.0)

    def group(self, group: Group) -> None:
        """Open, warm up, measure in turns."""
        self._tell(group.name, 0.0)
        try:
            with group.open() as cases:
                self._cases(group, list(cases))
        except EXPECTED as error:
            self.result.skipped.append(Skipped(group.name, reason(error)))

    def _tell(self, text: str, done: float) -> None:
        begin, end = self.share
        self.progress(text, begin + (end - begin) * done)

    def _cases(self, group: Group, cases: list[Case]) -> None:
        rows = [Row(key=case.key, group=group.name) for case in cases]
        self.result.rows += rows
        total = len(cases) * (self.part.settings.repetitions + 1)
        work = list(zip(cases, rows, strict=True))
        for done, (case, row) in enumerate(work):
            self._tell(f"{label(case.key)}: warming up", done / total)
            self._try(row, partial(self._warm_up, case, row))
        for turn in range(self.part.settings.repetitions):
            self._noise()
            order = work[::-1] if turn % 2 else work
            for done, (case, row) in enumerate(order, (turn + 1) * len(work)):
                self._tell(label(case.key), done / total)
                self._try(row, partial(self._measure, case, row))
        _compare(work)

    def _warm_up(self, case: Case, row: Row) -> None:
        if case.warm_up:
            row.facts.update(case.warm_up())
        elif not self.part.settings.quick:
            case.measure()

    @staticmethod
    def _measure(case: Case, row: Row) -> None:
        row.add(case.measure())

    @staticmethod
    def _try(row: Row, work: Callable[[], None]) -> None:
        if row.failed:
            return
        try:
            work()
        except EXPECTED as error:
            row.failed = reason(error)

    def _noise(self) -> None:
        for name, value in self.part.each_turn().items():
            self.result.noise.setdefault(name, []).append(value)


def _compare(work: Sequence[tuple[Case, Row]]) -> None:
    for case, row in work:
        base = case.against and next((r for c, r in work if case.against(c.key)), None)
        if base and base is not row and not base.failed and not row.failed:
            row.compare_with(base)


def reason(error: BaseException) -> str:
    """An error as the reason for which something was not measured."""
    if isinstance(error, subprocess.TimeoutExpired):
        return f"{error.cmd[0] if isinstance(error.cmd, list) else error.cmd} took too long"
    if isinstance(error, OSError) and not isinstance(error, MintError):
        return f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}"
    return str(error)


def label(key: Mapping[str, Any]) -> str:
    """A key in a few words."""
    return ", ".join(f"{v} B" if k.endswith("bytes") else str(v) for k, v in key.items())


def usable_cpus(wanted: Sequence[int] | None) -> tuple[int, ...]:
    """The cores to use: those asked for, or all that this process may use.

    Raises:
        PlatformError: a core that this process may not use.
    """
    allowed = sorted(os.sched_getaffinity(0))
    for cpu in wanted or ():
        if cpu not in allowed:
            raise PlatformError(f"CPU {cpu} is not to be used here; choose from {allowed}")
    return tuple(wanted) if wanted else tuple(allowed)


def settings_of(
    kind: type[Part],
    *,
    repetitions: int | None = None,
    seconds: float | None = None,
    cpus: Sequence[int] | None = None,
    quick: bool = False,
    **options: Any,
) -> Settings:
    """What was asked for, with the part's own defaults for the rest."""
    turns, span = (1, 0.1) if quick else kind.defaults
    return Settings(
        repetitions if repetitions is not None else turns,
        seconds if seconds is not None else span,
        usable_cpus(cpus),
        quick,
        options,
    )


def run(part: Part, progress: Progress = silent) -> Result:
    """Measure a part.

    Raises:
        PlatformError: it needs root, and this is not.
    """
    if part.root and os.geteuid() != 0:
        raise PlatformError(f"mint bench {part.name} makes namespaces; run it as root")
    began, start, steal = datetime.now(UTC), time.monotonic(), Steal()
    run_ = _Run(part, progress)
    result = run_.result
    try:
        groups = list(part.groups())
        for i, group in enumerate(groups):
            run_.share = (i / len(groups), (i + 1) / len(groups))
            run_.group(group)
        result.method = part.method()
        result.settings = _settings(part)
        result.skipped = [*part.skipped, *result.skipped]
        result.noise["steal_percent"] = [steal.percent()]
        result.about = {
            "command": shlex.join(["mint", *sys.argv[1:]]) if len(sys.argv) > 1 else "",
            "began": began.isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - start, 1),
            "machine": machine(),
            "versions": versions(),
        }
        part.conclude(result)
    finally:
        part.close()
    return result


def _settings(part: Part) -> dict[str, Any]:
    s = part.settings
    return {
        "repetitions": s.repetitions,
        "seconds": s.seconds,
        "cpus": list(s.cpus),
        "quick": s.quick,
        **part.described(),
    }
