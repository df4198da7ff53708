# SPDX-License-Identifier: Apache-2.0
"""docs/cli.md says what the command line does: its verbs, options, statuses and shapes."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import typer

import status_sample
from mint_vni import errors
from mint_vni.bench.compare import Change, Comparison
from mint_vni.cli.app import app
from mint_vni.cli.kernel import described
from mint_vni.doctor import Check
from mint_vni.kernels import Kernel, Probe
from mint_vni.lab.clean import Cleared
from mint_vni.lab.plan import read_plan
from mint_vni.observe.status import REASONS

TEXT = (Path(__file__).resolve().parent.parent / "docs" / "cli.md").read_text()
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL))
# Which counters there are is the ABI's business, and which drops occurred the traffic's.
OPEN_ENDED = {"counters", "drops", "tx", "rx"}


def example(section: str) -> Any:
    """The JSON example of a section."""
    found = re.search(r"^```json\n(.*?)^```", SECTIONS[section], re.MULTILINE | re.DOTALL)
    assert found, f"no JSON example in {section}"
    return json.loads(found[1])


def shape(data: Any) -> Any:
    """The names in a structure of dictionaries and lists, without the values."""
    if isinstance(data, dict):
        return {k: None if k in OPEN_ENDED else shape(v) for k, v in data.items()}
    if isinstance(data, list):
        return shape(data[0]) if data and isinstance(data[0], dict) else []
    return None


def verbs() -> dict[str, Any]:
    """All commands by name, sub-commands as ``bench frames``."""
    found = {}
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        for sub, below in getattr(command, "commands", {"": command}).items():
            found[f"{name} {sub}".strip()] = below
    return found


@pytest.mark.parametrize("verb", verbs())
def test_each_verb_has_its_section_with_its_options(verb: str) -> None:
    synopsis = re.search(r"^`(mint .*?)`$", SECTIONS[f"mint {verb}"], re.MULTILINE)
    assert synopsis or verb == "doctor"
    text = SECTIONS[f"mint {verb}"]
    for param in verbs()[verb].params:
        for option in param.opts:
            if option.startswith("--") and option != "--help":
                assert option in text


def test_no_section_tells_of_a_verb_that_is_not_there() -> None:
    documented = {name.removeprefix("mint ") for name in SECTIONS if name.startswith("mint ")}
    assert documented == verbs().keys()


def test_the_exit_statuses_are_the_errors() -> None:
    documented = {
        int(n) for n in re.findall(r"^\| (\d+) \|", SECTIONS["Exit statuses"], re.MULTILINE)
    }
    kinds = [getattr(errors, name) for name in errors.__all__]
    codes = {kind.exit_code for kind in kinds if kind is not errors.MintError}
    assert codes <= documented


def test_the_status_example_has_the_shape() -> None:
    documented = example("mint status")
    sample = status_sample.status()
    assert shape(documented) == shape(sample)


def test_every_reason_is_in_words() -> None:
    table = SECTIONS["mint status"].partition("| reason |")[2]
    cells = re.findall(r"^\| (`.+?) \| ", table, re.MULTILINE)
    documented = {word for cell in cells for word in re.findall(r"`(\w+)`", cell)}
    assert documented == REASONS.keys()


def test_the_plan_example_has_the_shape() -> None:
    plan = read_plan(
        {"lab": "pair", "network": {"ipv4": "10.77.0.0/24"}, "nodes": {"a": {}, "b": {}}}
    )
    printed = json.loads(json.dumps({"version": 1, "plan": plan.to_json()}))
    assert shape(example("mint up")) == shape(printed)


def test_the_other_examples_have_the_shape() -> None:
    assert example("mint gc")["labs"][0].keys() == {field.name for field in fields(Cleared)}
    assert all(
        check.keys() == {field.name for field in fields(Check)}
        for check in example("mint doctor")["checks"]
    )
    changes = example("mint bench compare")
    assert changes.keys() == Comparison([], [], [], []).to_json().keys()
    assert changes["changes"][0].keys() == {field.name for field in fields(Change)}
    kernel = example("mint kernel list")["kernels"][0]
    assert kernel["probes"][0].keys() == {field.name for field in fields(Probe)}
    made = Kernel("uml", "1", "1.2", Path("linux"), Path("modules"), None, "here")
    assert kernel.keys() == described(made, []).keys()
