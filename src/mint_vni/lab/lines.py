# SPDX-License-Identifier: Apache-2.0
"""Where each key and value of a lab file stands, so that every error can name its line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from mint_vni.errors import LabFileError
from mint_vni.lab.fields import show

Path: TypeAlias = tuple[str | int, ...]
"""Way to a value from the top of the file: ``("nodes", "a", "cpus", 0)``."""

MEMORY = "<memory>"
"""What stands for the file of a lab that was given as text or as a dictionary."""

_LABEL_MAX = 40


def label(key: str) -> str:
    """A key as a message names it: as it is, or quoted where that would not be one short line."""
    plain = key.isprintable() and 0 < len(key) <= _LABEL_MAX
    return key if plain else show(key)


def thing(path: Path) -> str:
    """What a message calls the place at `path`: ``node a: cpus``.

    Args:
        path: Keys from the top of the file.

    Returns:
        Words without a colon at the end; "the lab" for the top.
    """
    keys = [label(key) for key in path if isinstance(key, str)]
    if len(keys) > 1 and keys[0] == "nodes":
        keys[:2] = [f"node {keys[1]}"]
    return ": ".join(keys) if keys else "the lab"


@dataclass(frozen=True)
class LineMap:
    """The lines of a lab file by the path of what stands there.

    Attributes:
        file: The file as the user named it, or ``<memory>``; it begins each error.
        marks: For each path the line and column, counted from 1, of its key or list item. Empty
            where there is no text, as for a dictionary.
    """

    file: str = MEMORY
    marks: Mapping[Path, tuple[int, int]] = field(default_factory=dict, repr=False)

    def line(self, path: Path) -> int | None:
        """Line of `path`, or of the nearest thing around it that has one.

        Args:
            path: Keys from the top of the file; what was left out may be among them.
        """
        for end in range(len(path), -1, -1):
            if path[:end] in self.marks:
                return self.marks[path[:end]][0]
        return None

    def error(self, path: Path, problem: str, remedy: str) -> LabFileError:
        """An error about what stands at `path`, ready to be raised.

        Args:
            path: Keys from the top of the file.
            problem: What is wrong, to be read after the name of the thing.
            remedy: What to do about it.
        """
        return LabFileError(self.file, self.line(path), f"{thing(path)}: {problem}", remedy)
