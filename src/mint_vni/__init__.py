# SPDX-License-Identifier: Apache-2.0
"""Mint VNI: several independent Linuxes on one machine, joined by shared-memory Ethernet.

The public API, all of it here::

    import mint_vni as mint

    with mint.Lab.up("examples/pair.yaml") as lab:
        print(lab["a"].run(["ssh", "b", "hostname"]).stdout)
        with lab.attach("probe") as port:
            port.send(frame)

    with mint.Fabric.create(ports=["x", "y"]) as fabric:
        fabric["x"].send(frame)

`Lab` and `Node` need root, `Fabric` and `Port` do not. Names are looked up on first use, so that
``import mint_vni`` is quick and the fabric alone does not load what labs need.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mint_vni.errors import (
        ChannelFull,
        FabricError,
        FrameError,
        InternalError,
        LabFileError,
        LabStateError,
        MintError,
        NodeError,
        PlatformError,
        ReceiveTimeout,
    )
    from mint_vni.fabric import Fabric, Port
    from mint_vni.lab import Lab, Node

__all__ = [
    "ChannelFull",
    "Fabric",
    "FabricError",
    "FrameError",
    "InternalError",
    "Lab",
    "LabFileError",
    "LabStateError",
    "MintError",
    "Node",
    "NodeError",
    "PlatformError",
    "Port",
    "ReceiveTimeout",
]

_HOMES = {"Fabric": "fabric", "Port": "fabric", "Lab": "lab", "Node": "lab"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = importlib.import_module(f"mint_vni.{_HOMES.get(name, 'errors')}")
    return getattr(home, name)


def __dir__() -> list[str]:
    return sorted(__all__)
