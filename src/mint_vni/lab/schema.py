# SPDX-License-Identifier: Apache-2.0
"""The JSON Schema of lab files, made from the model.

It is published as ``docs/lab.schema.json``, for editors that complete and check YAML by it. A test
keeps the file up to date; to write it anew::

    python -m mint_vni.lab.schema > docs/lab.schema.json
"""

from __future__ import annotations

import json
import sys
from typing import Any

from mint_vni.lab.fields import NODE_NAME
from mint_vni.lab.model import LabModel

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def lab_schema() -> dict[str, Any]:
    """The schema as a dictionary."""
    schema = LabModel.model_json_schema()
    _tidy(schema)
    for section in schema["$defs"].values():
        section["type"] = ["object", "null"]  # a section that is written but left empty
    for key in ("ipv4", "ipv6"):
        # Left out and null differ here, so there is no default that could be written.
        del schema["$defs"]["NodeModel"]["properties"][key]["default"]
    for key in ("fabric", "network", "defaults"):
        del schema["properties"][key]["default"]  # each of their keys has its own
    nodes = schema["properties"]["nodes"]
    nodes.pop("patternProperties", None)  # which would let other names through unchecked
    nodes["propertyNames"] = dict(NODE_NAME.schema)
    nodes["additionalProperties"] = {"$ref": "#/$defs/NodeModel"}
    return {
        "$schema": DIALECT,
        "$comment": "SPDX-License-Identifier: Apache-2.0",
        "title": "Mint VNI lab",
        **{key: value for key, value in schema.items() if key != "title"},
    }


def schema_text() -> str:
    """The schema as the text of ``docs/lab.schema.json``."""
    return json.dumps(lab_schema(), indent=2, ensure_ascii=False) + "\n"


def _tidy(schema: Any) -> None:
    """Drop the titles that pydantic makes of the names of keys and classes."""
    if isinstance(schema, dict):
        if isinstance(schema.get("title"), str):
            del schema["title"]
        for value in schema.values():
            _tidy(value)
    elif isinstance(schema, list):
        for value in schema:
            _tidy(value)


if __name__ == "__main__":
    sys.stdout.write(schema_text())
