# SPDX-License-Identifier: Apache-2.0
"""Lab files: from YAML text to a validated model, each error with its line.

ruamel.yaml parses the text (YAML 1.2: ``52:54:00:12:34:56``, ``no`` and ``on`` are text) and
resolves anchors. Its graph of nodes, in which each node knows its line and column, is turned into
plain data here, and not by ruamel's own constructors: those forget where merged keys stand, and
make numbers of keys such as ``010``, while here all keys are names and stay as they are written.
The plain data then goes through the model, and what pydantic finds becomes one `LabFileError`:
the first in the order of the file.

The text is untrusted: its length and the number of values that aliases may multiply it to are
bounded, no YAML tag creates objects, and nothing but `LabFileError` leaves this module.
"""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path as FilePath
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from mint_vni.errors import LabFileError
from mint_vni.lab.fields import ERROR_TYPE, did_you_mean, show
from mint_vni.lab.lines import MEMORY, LineMap, Path, label, thing
from mint_vni.lab.model import DefaultsModel, FabricModel, LabModel, NetworkModel, NodeModel

TEXT_MAX = 1 << 20
VALUES_MAX = 100_000
EXAMPLE = "write at least 'lab: NAME' and 'nodes: {a: {}, b: {}}'"

_TAG = "tag:yaml.org,2002:"
_PLAIN_TAGS = frozenset({"str", "int", "float", "bool", "null", "timestamp", "map", "seq"})


def load_lab(path: str | PathLike[str]) -> tuple[LabModel, LineMap]:
    """Read and validate a lab file.

    Args:
        path: The file; a pipe such as ``/dev/stdin`` will do.

    Returns:
        The model, and where in the file its values stand.

    Raises:
        LabFileError: The file can't be read, or is no valid lab.
    """
    name = str(path)
    try:
        with FilePath(path).open("rb") as file:
            raw = file.read(TEXT_MAX + 1)
    except FileNotFoundError:
        raise LabFileError(
            name, None, "there is no such file", "check the path of the lab file"
        ) from None
    except IsADirectoryError:
        raise LabFileError(name, None, "this is a directory", "name the lab file in it") from None
    except PermissionError:
        raise LabFileError(
            name, None, "no permission to read it", f"run 'chmod +r {name}', or use sudo"
        ) from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise LabFileError(
            name, None, f"it can't be read ({reason})", "check the path of the lab file"
        ) from None
    if len(raw) > TEXT_MAX:
        raise LabFileError(
            name, None, f"it is longer than {TEXT_MAX} bytes", "check that it is a lab file"
        )
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise LabFileError(
            name, line, "this is not text in UTF-8", "check that it is a lab file"
        ) from None
    return parse_lab(text, name)


def parse_lab(text: str, name: str = MEMORY) -> tuple[LabModel, LineMap]:
    """Validate a lab given as YAML text.

    Args:
        text: One YAML document.
        name: What errors call the place where the text comes from.

    Returns:
        The model, and where in the text its values stand.

    Raises:
        LabFileError: The text is no valid lab.
    """
    if len(text) > TEXT_MAX:
        raise LabFileError(
            name, None, f"it is longer than {TEXT_MAX} characters", "check that it is a lab file"
        )
    yaml = YAML(typ="safe", pure=True)
    yaml.composer.warn_double_anchors = False  # YAML allows it: an alias means the latest
    root = _compose(yaml, text, name)
    builder = _Builder(yaml, name)
    try:
        data = builder.build(root, ()) if root is not None else None
    except RecursionError:
        raise _too_deep(name) from None
    if data is None:
        raise LabFileError(name, None, "there is nothing in it", EXAMPLE)
    return _validate(data, LineMap(name, builder.marks))


def lab_from_dict(data: Mapping[str, Any]) -> tuple[LabModel, LineMap]:
    """Validate a lab given as a dictionary of the same shape as a lab file.

    Args:
        data: Keys and values as YAML would give them; tuples will do for lists.

    Returns:
        The model, and a line map without lines.

    Raises:
        LabFileError: It is no valid lab; its ``line`` is None.
    """
    return _validate(data, LineMap())


def _compose(yaml: YAML, text: str, name: str) -> Node | None:
    """Parse text to a graph of YAML nodes."""
    try:
        root: Node | None = yaml.compose(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = " ".join(str(error.problem or error.context).split())
        raise _syntax_error(name, mark.line + 1 if mark else None, problem) from None
    except YAMLError as error:
        position = getattr(error, "position", None)
        line = text.count("\n", 0, position) + 1 if isinstance(position, int) else None
        raise _syntax_error(name, line, " ".join(str(error).split("\n")[0].split())) from None
    except RecursionError:
        raise _too_deep(name) from None
    except Exception as error:  # noqa: BLE001 - said below
        # Odd input makes the parser itself stumble now and then; it is the input's fault.
        raise _syntax_error(name, None, type(error).__name__) from None
    return root


def _too_deep(name: str) -> LabFileError:
    return LabFileError(
        name, None, "lists or mappings are nested too deeply", "check that it is a lab file"
    )


def _syntax_error(name: str, line: int | None, problem: str) -> LabFileError:
    if "'\\t'" in problem:
        return LabFileError(
            name, line, "a tab stands where YAML wants spaces", "replace the tab by spaces"
        )
    if "another document" in problem:
        return LabFileError(
            name, line, "a second YAML document begins here", "keep to one lab a file"
        )
    if "special characters are not allowed" in problem:
        return LabFileError(
            name, line, "there are control characters in it", "check that it is a lab file"
        )
    return LabFileError(
        name, line, f"this is not valid YAML ({problem})", "check indentation, brackets and quotes"
    )


class _Builder:
    """Turns a graph of YAML nodes into plain data and notes where everything stands."""

    def __init__(self, yaml: YAML, name: str) -> None:
        self.marks: dict[Path, tuple[int, int]] = {}
        self._constructor = yaml.constructor
        self._name = name
        self._values = 0
        self._open: list[Node] = []  # the mappings and lists around the value in hand

    def build(self, node: Node, path: Path) -> Any:
        """Plain data of `node`: dict, list, str, int, float, bool or None."""
        self._count(1, node, path)
        self.marks.setdefault(path, (node.start_mark.line + 1, node.start_mark.column + 1))
        tag = str(node.tag)
        if not tag.startswith(_TAG) or tag.removeprefix(_TAG) not in _PLAIN_TAGS:
            raise self._error(node, path, f"the YAML tag {show(tag)} is not known", "remove it")
        if isinstance(node, ScalarNode):
            return self._scalar(node, path)
        if any(node is around for around in self._open):
            raise self._error(node, path, "the alias contains itself", "write the value out")
        self._open.append(node)
        try:
            if isinstance(node, SequenceNode):
                return self._sequence(node, path)
            return self._mapping(node, path)
        finally:
            self._open.pop()

    def _count(self, values: int, node: Node, path: Path) -> None:
        """Bound what aliases, each a few bytes long, may multiply the file to."""
        self._values += values
        if self._values > VALUES_MAX:
            raise self._error(node, path, f"there are over {VALUES_MAX} values", "write fewer")

    def _scalar(self, node: ScalarNode, path: Path) -> Any:
        if str(node.tag) in (_TAG + "str", _TAG + "timestamp"):
            return str(node.value)
        try:
            return self._constructor.construct_object(node)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, YAMLError):
            # Whatever ruamel's readers of numbers and booleans stumble over.
            problem = f"{show(str(node.value))} does not fit its YAML tag"
            raise self._error(node, path, problem, "remove the tag") from None

    def _sequence(self, node: SequenceNode, path: Path) -> list[Any]:
        return [self.build(item, (*path, index)) for index, item in enumerate(node.value)]

    def _mapping(self, node: Node, path: Path) -> dict[str, Any]:
        result: dict[str, Any] = {}
        merged: dict[str, tuple[Node, Node]] = {}
        for key_node, value_node in node.value:
            if str(key_node.tag) == _TAG + "merge":
                for key, pair in self._merged(value_node, path, []).items():
                    merged.setdefault(key, pair)
                continue
            key = self._key(key_node, path)
            if key in result:
                first = self.marks[(*path, key)][0]
                what = "node" if path == ("nodes",) else "key"
                problem = f"the {what} {label(key)} is there already, on line {first}"
                raise self._error(key_node, path, problem, "rename or remove one of the two")
            result[key] = self._item(key_node, value_node, (*path, key))
        for key, (key_node, value_node) in merged.items():
            if key not in result:
                result[key] = self._item(key_node, value_node, (*path, key))
        return result

    def _item(self, key_node: Node, value_node: Node, path: Path) -> Any:
        self.marks[path] = (key_node.start_mark.line + 1, key_node.start_mark.column + 1)
        return self.build(value_node, path)

    def _merged(self, node: Node, path: Path, around: list[Node]) -> dict[str, tuple[Node, Node]]:
        """Keys that ``<<: *alias`` or ``<<: [*one, *other]`` brings; the first of a key wins."""
        sources = list(node.value) if isinstance(node, SequenceNode) else [node]
        pairs: dict[str, tuple[Node, Node]] = {}
        for source in sources:
            if not isinstance(source, MappingNode):
                raise self._error(source, path, "<< merges mappings only", "name a mapping")
            if any(source is other for other in around):
                raise self._error(source, path, "<< merges a mapping with itself", "remove it")
            self._count(len(source.value), source, path)
            inherited: dict[str, tuple[Node, Node]] = {}
            for key_node, value_node in source.value:
                if str(key_node.tag) == _TAG + "merge":
                    inherited |= self._merged(value_node, path, [*around, source])
                else:
                    pairs.setdefault(self._key(key_node, path), (key_node, value_node))
            for key, pair in inherited.items():
                pairs.setdefault(key, pair)
        return pairs

    def _key(self, node: Node, path: Path) -> str:
        if not isinstance(node, ScalarNode):
            raise self._error(node, path, "a list or mapping can't be a key", "write a name")
        return str(node.value)

    def _error(self, node: Node, path: Path, problem: str, remedy: str) -> LabFileError:
        # The line is the node's own; only the name of the thing comes from the path.
        return LineMap(self._name, {path: (node.start_mark.line + 1, 1)}).error(
            path, problem, remedy
        )


def _validate(data: object, lines: LineMap) -> tuple[LabModel, LineMap]:
    """Run data through the model; its first error in the order of the file is raised."""
    if not isinstance(data, Mapping):
        raise lines.error((), f"{show(data)} stands where a mapping of keys is expected", EXAMPLE)
    try:
        return LabModel.model_validate(data), lines
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)
    except RecursionError:
        raise lines.error((), "it is nested too deeply", EXAMPLE) from None
    found.sort(key=lambda detail: lines.line(_path(detail)) or 0)
    raise _explain(found[0], lines)


def _path(detail: ErrorDetails) -> Path:
    loc = detail["loc"]
    return loc[:-1] if len(loc) > 1 and loc[-1] == "[key]" else loc


def _explain(detail: ErrorDetails, lines: LineMap) -> LabFileError:
    """A pydantic error as a sentence."""
    path = _path(detail)
    context = detail.get("ctx", {})
    if detail["type"] == ERROR_TYPE:
        return lines.error(path, context["problem"], context["remedy"])
    if detail["type"] == "missing":
        return lines.error(path[:-1], f"the key {path[-1]} is missing", EXAMPLE)
    if detail["type"] == "extra_forbidden":
        around, key = path[:-1], str(path[-1])
        problem = f"{thing(around)}: the key {show(key)} is not known"
        return LabFileError(lines.file, lines.line(path), problem, _unknown_key_remedy(around, key))
    return lines.error(path, detail["msg"], "see docs/lab-file.md")


_SECTIONS: dict[str, type[BaseModel]] = {
    "fabric": FabricModel,
    "network": NetworkModel,
    "defaults": DefaultsModel,
    "nodes": NodeModel,
}


def _unknown_key_remedy(around: Path, key: str) -> str:
    """What to do about an unknown key: the like-named one, the right section, or all keys."""
    section = _SECTIONS[str(around[0])] if around else LabModel
    known = list(section.model_fields)
    guess = did_you_mean(key, known)
    if guess:
        return f"did you mean {guess}?"
    homes: dict[str, type[BaseModel]] = {"": LabModel, **_SECTIONS}
    for home, model in homes.items():
        if model is not section and key in model.model_fields:
            return f"move it {_home(home, around)}"
    return f"the keys here are {', '.join(known)}"


def _home(home: str, around: Path) -> str:
    """Where a key belongs that stands in another section."""
    if home == "":
        return "to the top of the file, unindented"
    if home == "nodes":
        return "to the node that it is meant for"
    return f"below '{home}:'" if around else f"below '{home}:', indented"
