# SPDX-License-Identifier: Apache-2.0
"""Which node gets which MAC and which address.

What the file gives is respected. The rest follows from the file alone, so that a lab is the same
each time and everywhere:

* The nth node gets the nth host address of the subnet. If another node was given that one, it gets
  the lowest address that is still free, and no other node moves.
* A MAC is ``02:4d:56`` (locally administered, "MV") and three bytes of a hash of the names of lab
  and node, so that it does not depend on the order of the nodes; a taken one is hashed again.
  ``02:4d:56:ff`` is left to raw ports.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)
from typing import NamedTuple, TypeAlias

from mint_vni.lab.lines import LineMap, Path
from mint_vni.lab.model import LabModel

Network: TypeAlias = IPv4Network | IPv6Network
Address: TypeAlias = IPv4Address | IPv6Address

MAC_PREFIX = "02:4d:56"
RAW_PORTS = 0xFF  # fourth byte of the MACs that the fabric gives to ports without a node


def derive_mac(lab: str, name: str, taken: Collection[str] = ()) -> str:
    """The MAC of a port that was given none.

    Args:
        lab: Name of the lab.
        name: Name of the node or raw port.
        taken: MACs that others have, lower-case with colons.

    Returns:
        Lower-case MAC with colons that is not taken.
    """
    attempt = 0
    while True:
        seed = f"{lab}/{name}" if attempt == 0 else f"{lab}/{name}#{attempt}"
        tail = hashlib.sha256(seed.encode()).digest()[:3]
        mac = f"{MAC_PREFIX}:{tail.hex(':')}"
        if tail[0] != RAW_PORTS and mac not in taken:
            return mac
        attempt += 1


class Identity(NamedTuple):
    """What a node is known by on the fabric; addresses with prefix length, None for none."""

    mac: str
    ipv4: str | None
    ipv6: str | None


def assign(model: LabModel, lines: LineMap) -> dict[str, Identity]:
    """MAC and addresses of each node by its name.

    Args:
        model: The lab.
        lines: For errors.

    Raises:
        LabFileError: MACs or addresses clash, addresses lie outside their subnet, or the subnet is
            too small.
    """
    macs = _macs(model, lines)
    ipv4 = _addresses(model, lines, "ipv4", model.network.ipv4)
    ipv6 = _addresses(model, lines, "ipv6", model.network.ipv6)
    return {name: Identity(macs[name], ipv4[name], ipv6[name]) for name in model.nodes}


def _macs(model: LabModel, lines: LineMap) -> dict[str, str]:
    owner: dict[str, str] = {}
    for name, node in model.nodes.items():
        if node.mac is not None:
            _claim(owner, node.mac, name, ("nodes", name, "mac"), lines)
    given = {name: mac for mac, name in owner.items()}
    result: dict[str, str] = {}
    for name in model.nodes:
        result[name] = given.get(name) or derive_mac(model.lab, name, owner)
        owner[result[name]] = name
    return result


def _claim(owner: dict[str, str], what: str, name: str, path: Path, lines: LineMap) -> None:
    if what in owner:
        first = lines.line(("nodes", owner[what], str(path[-1])))
        where = "" if first is None else f", on line {first}"
        raise lines.error(
            path,
            f"{what} belongs to node {owner[what]} already{where}",
            "give each node its own, or leave it out",
        )
    owner[what] = name


def _host_range(network: Network) -> tuple[int, int]:
    """First and last host address of a subnet, as numbers; both are hosts."""
    first, last = int(network.network_address), int(network.broadcast_address)
    if network.prefixlen >= network.max_prefixlen - 1:
        return first, last  # RFC 3021, RFC 6164: two routers, or one host
    # The first is the subnet itself or its routers' anycast; in IPv4 the last is broadcast.
    return first + 1, last - 1 if isinstance(network, IPv4Network) else last


def _addresses(
    model: LabModel, lines: LineMap, family: str, network: Network | None
) -> dict[str, str | None]:
    owner: dict[str, str] = {}
    result: dict[str, str | None] = {}
    wanting: list[tuple[int, str]] = []
    for index, (name, node) in enumerate(model.nodes.items()):
        address: Address | None = getattr(node, family)
        path: Path = ("nodes", name, family)
        if address is not None:
            text = str(_checked(address, network, path, lines))
            _claim(owner, text, name, path, lines)
            result[name] = text
        elif network is None or family in node.model_fields_set:
            result[name] = None
        else:
            wanting.append((index, name))
    if network is None:
        return result
    _check_room(len(owner) + len(wanting), network, family, lines)
    result.update(_hand_out(wanting, owner, network))
    suffix = f"/{network.prefixlen}"
    return {name: text and text + suffix for name, text in result.items()}


def _check_room(needed: int, network: Network, family: str, lines: LineMap) -> None:
    first, last = _host_range(network)
    room = last - first + 1
    if needed > room:
        # The subnet's own address is no host, and in IPv4 its last one neither.
        spare = 2 if isinstance(network, IPv4Network) else 1
        prefix = network.max_prefixlen - (needed + spare - 1).bit_length()
        raise lines.error(
            ("network", family),
            f"{network} has {room} addresses for {needed} nodes",
            f"choose a subnet with prefix length {prefix} or less",
        )


def _hand_out(
    wanting: list[tuple[int, str]], owner: dict[str, str], network: Network
) -> dict[str, str]:
    """Addresses for the nodes, by index and name, that were given none."""
    kind = IPv4Address if isinstance(network, IPv4Network) else IPv6Address
    first, last = _host_range(network)
    taken = {int(kind(text)) for text in owner}
    chosen: dict[str, int] = {}
    for index, name in wanting:
        if first + index <= last and first + index not in taken:
            chosen[name] = first + index
    taken.update(chosen.values())
    lowest = first
    for _, name in wanting:
        if name not in chosen:
            while lowest in taken:
                lowest += 1
            chosen[name] = lowest
            taken.add(lowest)
    return {name: str(kind(number)) for name, number in chosen.items()}


def _checked(address: Address, network: Network | None, path: Path, lines: LineMap) -> Address:
    """An address that the file gives a node, without its prefix length."""
    family = str(path[-1])
    if network is None:
        raise lines.error(
            path,
            f"{address} has no subnet, since network has no {family}",
            f"write '{family}:' with a subnet below network, or leave the address out",
        )
    if isinstance(address, IPv4Interface | IPv6Interface):
        if address.network.prefixlen != network.prefixlen:
            raise lines.error(
                path,
                f"{address} has another prefix length than the subnet {network}",
                f"write {address.ip}",
            )
        address = address.ip
    first, last = _host_range(network)
    bare = int(address)
    if address not in network:
        raise lines.error(
            path, f"{address} is not in the subnet {network}", "choose an address within it"
        )
    if not first <= bare <= last:
        what = "the broadcast address" if bare > last else "the address of the subnet itself"
        raise lines.error(path, f"{address} is {what}", "choose another address within it")
    return address
