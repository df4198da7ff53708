# SPDX-License-Identifier: Apache-2.0
"""Fakes for tests: a vhost-user front end that needs no guest.

==============  ==================================================================
`frontend`      the front end (public: `VhostFrontend`, `Frame`)
`link`          what it says (public through `VhostFrontend`)
`handshake`     in which order QEMU and User-Mode Linux say what
`protocol`      messages (public: `Request`, `Feature`, `ProtocolFeature`, ...)
`rings`         split virtqueues by hand (public: `Ring`, `Desc`, `Part`)
`memory`        the guest's memory (public: `GuestMemory`)
`vnet`          the header before each frame (public: `Vnet`)
==============  ==================================================================
"""

from mint_vni.testing.frontend import RX, TX, Frame, VhostFrontend
from mint_vni.testing.memory import GuestMemory, Region
from mint_vni.testing.protocol import (
    BackendRequest,
    Feature,
    Message,
    ProtocolFeature,
    Request,
)
from mint_vni.testing.rings import INDIRECT, NEXT, WRITE, Desc, Part, Ring
from mint_vni.testing.vnet import Vnet

__all__ = [
    "INDIRECT",
    "NEXT",
    "RX",
    "TX",
    "WRITE",
    "BackendRequest",
    "Desc",
    "Feature",
    "Frame",
    "GuestMemory",
    "Message",
    "Part",
    "ProtocolFeature",
    "Region",
    "Request",
    "Ring",
    "VhostFrontend",
    "Vnet",
]
