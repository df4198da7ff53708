# SPDX-License-Identifier: Apache-2.0
"""Labs: a YAML file becomes running Linuxes, joined by a fabric.

YAML → model → plan (`loader`, `model`, `plan`) → `client` starts a `supervisor`, whose `engine`
applies the plan; `lab` has the public handles, `clean` what is left to do after a crash.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mint_vni.lab.lab import Lab, Node

__all__ = ["Lab", "Node"]


def __getattr__(name: str) -> Any:
    # Looked up on first use: the supervisor and its helpers do without the public handles.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mint_vni.lab import lab

    return getattr(lab, name)
