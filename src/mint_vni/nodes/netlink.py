# SPDX-License-Identifier: Apache-2.0
"""Configuring a node's interface over netlink.

pyroute2 enters a namespace by forking a helper, which a supervisor with threads must not do. Its
socket can be made in the namespace of the calling thread as well: so call `configure` through
`mint_vni.nodes.proc.in_netns`.

Importing pyroute2 takes longer than configuring an interface. Import this module early, while the
lab's keys are being made, say; nothing else in this package imports it before it is needed.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from pyroute2 import IPRoute, NetlinkError

__all__ = ["Interface", "InterfaceError", "configure"]

_IFA_F_NODAD: Final = 0x02
_LOOPBACK_INDEX: Final = 1  # in every namespace


@dataclass(frozen=True)
class Interface:
    """How an interface is to be.

    Attributes:
        name: Its name; it exists already.
        mac: Its address, ``02:4d:56:…``.
        mtu: In bytes, without the Ethernet header.
        addresses: With their prefix lengths, ``10.77.0.1/24``.
        queue: Frames that may wait for the worker (``txqueuelen``).
    """

    name: str
    mac: str
    mtu: int
    addresses: tuple[str, ...]
    queue: int = 1000


class InterfaceError(Exception):
    """The kernel refused a setting; ``str()`` names it and says why."""


def configure(interface: Interface) -> None:
    """Set up the loopback interface and one other, in the namespace of the calling thread.

    Both are up and all addresses usable at once when this returns: the IPv6 ones are marked as
    needing no duplicate address detection.

    Args:
        interface: What to set up.

    Raises:
        InterfaceError: The kernel refused a setting.
    """
    # AF_NETLINK sockets belong to the namespace that they were made in: this thread's.
    with IPRoute() as route:
        with _said(interface.name, "find the interface"):
            index = socket.if_nametoindex(interface.name)
        with _said("lo", "bring it up"):
            route.link("set", index=_LOOPBACK_INDEX, state="up")
        with _said(interface.name, f"set MAC address {interface.mac} and MTU {interface.mtu}"):
            route.link(
                "set",
                index=index,
                address=interface.mac,
                mtu=interface.mtu,
                txqlen=interface.queue,
            )
        for address in interface.addresses:
            with _said(interface.name, f"add the address {address}"):
                route.addr("add", index=index, **_address(address))
        with _said(interface.name, "bring it up"):
            route.link("set", index=index, state="up")


def _address(text: str) -> dict[str, Any]:
    """Return pyroute2's arguments for an address with its prefix length."""
    address = ipaddress.ip_interface(text)
    arguments: dict[str, Any] = {
        "address": str(address.ip),
        "prefixlen": address.network.prefixlen,
        "family": socket.AF_INET,
    }
    if address.version == 6:
        arguments |= {"family": socket.AF_INET6, "flags": _IFA_F_NODAD}
    elif address.network.prefixlen < 31:
        arguments["broadcast"] = str(address.network.broadcast_address)
    return arguments


@contextmanager
def _said(interface: str, what: str) -> Iterator[None]:
    """Turn the kernel's refusal into an `InterfaceError` that says what was tried."""
    try:
        yield
    except NetlinkError as error:
        raise InterfaceError(f"{interface}: cannot {what}: {os.strerror(error.code)}") from error
    except OSError as error:
        raise InterfaceError(f"{interface}: cannot {what}: {error.strerror}") from error
