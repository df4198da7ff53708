# SPDX-License-Identifier: Apache-2.0
"""What a part of ``mint bench`` found, and the form in which it is written down.

Every part gives the same shape, so that tables, reports and comparisons need not know which part
it was. docs/benchmarks.md describes it, docs/bench.schema.json checks it.

==============  ===================================================================
a `Metric`      is one thing that is measured: its unit, and which way is better
a `Row`         is one configuration (its key) with every repetition of each metric
a `Result`      is the part's rows, and what one must know to read them
==============  ===================================================================
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mint_vni.bench.noise import Spread

#: Of the JSON; raised when a field is renamed, removed or given another meaning.
VERSION = 2

Key = dict[str, str | int | float]


@dataclass(frozen=True)
class Metric:
    """One thing that is measured.

    Attributes:
        name: in JSON.
        label: over the table's column, with the unit.
        unit: ``Gbps``, ``us``, ``B`` ...
        better: ``higher``, ``lower``, or nothing where neither is.
        digits: after the point.
        show: ``spread`` (median, least and greatest), ``median``, or nothing: only in JSON.
        ratio: whether the table has it divided by what the row is compared with.
    """

    name: str
    label: str
    unit: str
    better: str = ""
    digits: int = 1
    show: str = "median"
    ratio: bool = False

    def text(self, value: float) -> str:
        """A value as the table has it."""
        return f"{value:,.{self.digits}f}"

    def to_json(self) -> dict[str, str]:
        """For JSON."""
        return {"name": self.name, "label": self.label, "unit": self.unit, "better": self.better}


@dataclass
class Row:
    """One configuration and what was measured of it.

    Attributes:
        key: what tells it from the others, in order.
        values: by name of metric, one value a repetition.
        facts: what was found once.
        against: key of the row that it is compared with, measured in the same turns; or None.
        ratios: by name of metric: value over the other's value, turn by turn.
        failed: why it could not be measured (wholly); empty if it could.
        group: which rows were measured in turns.
    """

    key: Key
    values: dict[str, list[float]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    against: Key | None = None
    ratios: dict[str, list[float]] = field(default_factory=dict)
    failed: str = ""
    group: str = ""

    def add(self, values: Mapping[str, float]) -> None:
        """Take the values of one repetition."""
        for name, value in values.items():
            self.values.setdefault(name, []).append(float(value))

    def spread(self, name: str) -> Spread | None:
        """Of one metric; None if there is no value."""
        values = self.values.get(name)
        return Spread.of(values) if values else None

    def compare_with(self, other: Row) -> None:
        """Divide by what the other row had in the same turns."""
        self.against = other.key
        for name, mine in self.values.items():
            theirs = other.values.get(name, [])
            found = [a / b for a, b in zip(mine, theirs, strict=False) if b]
            if found:
                self.ratios[name] = found

    def to_json(self) -> dict[str, Any]:
        """For JSON: every repetition, and its summary."""
        return {
            "group": self.group,
            "key": self.key,
            "values": _series(self.values),
            "against": self.against,
            "ratios": _series(self.ratios),
            "facts": self.facts,
            "failed": self.failed,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Row:
        """The reverse of :meth:`to_json`."""
        return cls(
            key=dict(data["key"]),
            values={name: list(s["all"]) for name, s in data["values"].items()},
            facts=dict(data.get("facts", {})),
            against=data.get("against"),
            ratios={name: list(s["all"]) for name, s in data.get("ratios", {}).items()},
            failed=data.get("failed", ""),
            group=data.get("group", ""),
        )


def _series(values: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    return {name: Spread.of(v).to_json() | {"all": list(v)} for name, v in values.items() if v}


@dataclass
class Skipped:
    """What was not measured, and why.

    Attributes:
        what: a group of rows.
        why: a sentence, with the remedy where there is one.
    """

    what: str
    why: str


@dataclass
class Result:
    """What a part found.

    Attributes:
        bench, title: the part's.
        metrics: in the order of the table's columns.
        method: how it was measured, in sentences.
        rows: in order.
        settings: what was asked for.
        noise: of the machine meanwhile: each a list with one value a turn, or one value.
        notes: what is worth saying about the outcome.
        skipped: what was not measured.
        about: ``command``, ``began``, ``seconds``, ``machine``, ``versions``.
    """

    bench: str
    title: str
    metrics: Sequence[Metric]
    method: list[str] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    noise: dict[str, list[float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)

    def find(self, **key: str | float) -> Row | None:
        """The first row whose key has all of these."""
        return next((r for r in self.rows if all(r.key.get(k) == v for k, v in key.items())), None)

    def to_json(self) -> dict[str, Any]:
        """The documented shape."""
        return {
            "version": VERSION,
            "bench": self.bench,
            "title": self.title,
            **self.about,
            "settings": self.settings,
            "method": self.method,
            "noise": _series(self.noise),
            "metrics": [m.to_json() for m in self.metrics],
            "rows": [row.to_json() for row in self.rows],
            "notes": self.notes,
            "skipped": [vars(s) for s in self.skipped],
        }


def varying(rows: Iterable[Row]) -> tuple[list[str], Key]:
    """The names in the keys of which the rows differ, and those that all share with their value."""
    keys = [row.key for row in rows]
    names = list(dict.fromkeys(name for key in keys for name in key))
    shared: Key = {
        n: keys[0][n] for n in names if n in keys[0] and all(k.get(n) == keys[0][n] for k in keys)
    }
    return [n for n in names if n not in shared], shared
