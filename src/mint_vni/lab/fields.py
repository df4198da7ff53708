# SPDX-License-Identifier: Apache-2.0
"""How single values of a lab file are read and checked.

Each value has one reader: a function from what YAML or Python gives to what the model holds. A
reader raises `bad`, which carries the problem and the remedy apart, so that the loader can put the
place before them. `Reads` ties a reader and its JSON Schema to a field, so that both stand side by
side and the published schema cannot drift from the check.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from mint_vni.lab.units import (
    CPU_LIST_PATTERN,
    CPU_MAX,
    SIZE_PATTERN,
    format_size,
    parse_cpu_list,
    parse_size,
)

LAB_NAME_MAX = 32
NODE_NAME_MAX = 15  # an interface may carry a node's name, and the kernel allows it 15 bytes
INTERFACE_MAX = 15

NAME_PATTERN = r"^[a-z]([a-z0-9-]*[a-z0-9])?$"
INTERFACE_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"
NETWORK_PATTERN = r"^[0-9A-Fa-f:.]+/[0-9]{1,3}$"
ADDRESS_PATTERN = r"^[0-9A-Fa-f:.]+(/[0-9]{1,3})?$"
MAC_PATTERN = r"^[0-9A-Fa-f]{2}([:-][0-9A-Fa-f]{2}){5}$"
# /etc/hosts of a node gives these to the loopback interface.
RESERVED_NAMES = frozenset({"localhost", "ip6-localhost", "ip6-loopback"})
# lo exists already; the other two are directories of net.ipv4.conf that mean every interface.
RESERVED_INTERFACES = frozenset({"lo", "all", "default"})

ERROR_TYPE = "lab_value"
_SHOWN_MAX = 40
_SHOWN_BITS = 64  # str() of a huge number takes long, and Python refuses it beyond 4300 digits
_IPV4_PREFIX_MIN = 8  # anything wider than 10.0.0.0/8 would swallow loopback or multicast

Net = TypeVar("Net", ipaddress.IPv4Network, ipaddress.IPv6Network)


@dataclass(frozen=True, eq=False)
class Reads:
    """Annotation of a model's field: its reader and the JSON Schema of what the reader takes."""

    read: Callable[[Any], object]
    schema: Mapping[str, Any]

    def __get_pydantic_core_schema__(
        self, source: object, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """Have pydantic call the reader and nothing else."""
        return core_schema.no_info_plain_validator_function(self.read)

    def __get_pydantic_json_schema__(
        self, core: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """Publish the schema given beside the reader."""
        return dict(self.schema)


def bad(problem: str, remedy: str) -> PydanticCustomError:
    """An error that a reader raises.

    Args:
        problem: What is wrong, to be read after the name of the key.
        remedy: What to do about it.
    """
    # The type of the template is LiteralString; the braces of a user's value are data here.
    return PydanticCustomError(
        ERROR_TYPE, "{problem}; {remedy}", {"problem": problem, "remedy": remedy}
    )


def show(value: object) -> str:
    """A value as a message names it: short, on one line, as YAML would write it."""
    if value is None:
        return "an empty value"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple | set | frozenset):
        return "a list"
    if isinstance(value, int) and value.bit_length() > _SHOWN_BITS:
        return "a number that large"
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= _SHOWN_MAX else text[: _SHOWN_MAX - 1] + "…"


def did_you_mean(word: str, known: Iterable[str]) -> str | None:
    """The known word that `word` most resembles, if any does."""
    by_fold = {name.casefold().replace("_", "-"): name for name in known}
    found = difflib.get_close_matches(
        word.casefold().replace("_", "-"), list(by_fold), n=1, cutoff=0.6
    )
    return by_fold[found[0]] if found else None


def whole(low: int, high: int, unit: str = "") -> Reads:
    """A whole number from `low` to `high`, both included."""
    suffix = f" {unit}" if unit else ""

    def read(value: object) -> int:
        remedy = f"give a whole number from {low} to {high}{suffix}"
        if isinstance(value, bool) or not isinstance(value, int):
            raise bad(f"{show(value)} is not a whole number", remedy)
        if not low <= value <= high:
            raise bad(f"{show(value)} is out of range", remedy)
        return value

    return Reads(read, {"type": "integer", "minimum": low, "maximum": high})


def size(low: int, high: int, why: str) -> Reads:
    """A size in bytes from `low` to `high`; `why` says what asks for at least `low`."""

    def read(value: object) -> int:
        result = _read_bytes(value)
        if result < low:
            raise bad(f"{show(value)} is too small", f"give at least {low} bytes: {why}")
        if result > high:
            raise bad(f"{show(value)} is too large", f"give at most {format_size(high)}")
        return result

    return Reads(
        read,
        {"anyOf": [{"type": "integer", "minimum": low, "maximum": high}, _SIZE_TEXT]},
    )


_SIZE_TEXT = {"type": "string", "pattern": SIZE_PATTERN}
_SIZE_REMEDY = "give bytes, or a whole number with K, M, G or T (1024s), such as 512M"


def _read_bytes(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str):
        try:
            return parse_size(value.strip())
        except ValueError:
            pass
    raise bad(f"{show(value)} is not a size", _SIZE_REMEDY)


def one_of(options: Iterable[str], what: str) -> Reads:
    """One of some words; `what` names such a word in messages."""
    known = tuple(options)

    def read(value: object) -> str:
        if isinstance(value, str) and value in known:
            return value
        guess = did_you_mean(value, known) if isinstance(value, str) else None
        remedy = f"did you mean {guess}?" if guess else f"choose {_either(known)}"
        raise bad(f"{show(value)} is no {what}", remedy)

    return Reads(read, {"type": "string", "enum": list(known)})


def _either(words: tuple[str, ...]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _read_flag(value: object) -> bool:
    if isinstance(value, bool):
        return value
    raise bad(f"{show(value)} is neither true nor false", "write true or false")


FLAG = Reads(_read_flag, {"type": "boolean"})


TEXT_MAX = 4095


def text(what: str, example: str) -> Reads:
    """Text of one line; `what` names it in messages."""

    def read(value: object) -> str:
        remedy = f"write one such as {example}"
        if not isinstance(value, str):
            raise bad(f"{show(value)} is no {what}", f"{remedy}, in quotes if need be")
        if not value.isprintable() or not value.strip() or len(value) > TEXT_MAX:
            raise bad(f"{show(value)} is no {what}", remedy)
        return value

    return Reads(read, {"type": "string", "minLength": 1, "maxLength": TEXT_MAX})


USER_MAX = (1 << 32) - 2  # the number above it stands for no user

_TEXT_USER = text("user", "libvirt-qemu")


def _read_user(value: object) -> object:
    name = _TEXT_USER.read(value)
    if isinstance(name, str) and name.isdecimal() and int(name) > USER_MAX:
        raise bad(
            f"{show(value)} is no user's number", f"the highest is {USER_MAX}; or write the name"
        )
    return name


USER = Reads(_read_user, _TEXT_USER.schema)


def _read_name(value: object, what: str, longest: int) -> str:
    rule = (
        f"use at most {longest} lower-case letters, digits and hyphens, beginning with a letter "
        "and not ending with a hyphen"
    )
    if not isinstance(value, str):
        raise bad(f"{show(value)} is not text", f"{rule}, and quotes if need be")
    if len(value) > longest:
        raise bad(f"{show(value)} is {len(value)} characters long", rule)
    if re.fullmatch(NAME_PATTERN, value) is None:
        tamed = value.lower().replace("_", "-")
        fits = re.fullmatch(NAME_PATTERN, tamed) is not None
        raise bad(f"{show(value)} is no {what}", f"write {tamed}" if fits else rule)
    return value


def _read_lab_name(value: object) -> str:
    return _read_name(value, "name for a lab", LAB_NAME_MAX)


def _read_node_name(value: object) -> str:
    name = _read_name(value, "name for a node", NODE_NAME_MAX)
    if name in RESERVED_NAMES:
        raise bad("the name means the loopback interface in every node", "choose another name")
    return name


LAB_NAME = Reads(
    _read_lab_name, {"type": "string", "pattern": NAME_PATTERN, "maxLength": LAB_NAME_MAX}
)
NODE_NAME = Reads(
    _read_node_name, {"type": "string", "pattern": NAME_PATTERN, "maxLength": NODE_NAME_MAX}
)


def _read_interface(value: object) -> str:
    rule = (
        f"use at most {INTERFACE_MAX} letters, digits, dots, underscores and hyphens, "
        "beginning with a letter or digit"
    )
    if not isinstance(value, str):
        raise bad(f"{show(value)} is not text", f"{rule}, and quotes if need be")
    if len(value) > INTERFACE_MAX:
        raise bad(f"{show(value)} is {len(value)} characters long", rule)
    if re.fullmatch(INTERFACE_PATTERN, value) is None:
        raise bad(f"{show(value)} is no name for an interface", rule)
    if value in RESERVED_INTERFACES:
        raise bad(f"{show(value)} is a name that Linux keeps for itself", "choose another name")
    return value


INTERFACE = Reads(
    _read_interface,
    {
        "type": "string",
        "pattern": INTERFACE_PATTERN,
        "maxLength": INTERFACE_MAX,
        "not": {"enum": sorted(RESERVED_INTERFACES)},
    },
)


def _read_mac(value: object) -> str:
    if not isinstance(value, str) or re.fullmatch(MAC_PATTERN, value) is None:
        raise bad(
            f"{show(value)} is no MAC address", "write six pairs of hex digits: 02:00:00:00:00:0a"
        )
    mac = value.lower().replace("-", ":")
    if int(mac[:2], 16) & 1:
        raise bad(f"{mac} is a multicast address", "make the first pair even, such as 02")
    if mac == "00:00:00:00:00:00":
        raise bad("the all-zero address belongs to nobody", "give another one, or leave mac out")
    return mac


MAC = Reads(_read_mac, {"type": "string", "pattern": MAC_PATTERN})


def _read_cpus(value: object) -> tuple[int, ...]:
    remedy = "write a list such as [0, 1], or 0-1; leave cpus out for all CPUs"
    if isinstance(value, str):
        try:
            cpus = parse_cpu_list(value.replace(" ", ""))
        except ValueError:
            raise bad(f"{show(value)} is no list of CPUs", remedy) from None
    elif isinstance(value, list | tuple):
        cpus = tuple(_read_cpu(item, remedy) for item in value)
    else:
        cpus = (_read_cpu(value, remedy),)
    if not cpus:
        raise bad("the list is empty", "name at least one CPU, or leave cpus out for all CPUs")
    for position, cpu in enumerate(cpus):
        if cpu in cpus[:position]:
            raise bad(f"CPU {cpu} is there twice", "name each CPU once")
    return tuple(sorted(cpus))


def _read_cpu(value: object, remedy: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise bad(f"{show(value)} is not the number of a CPU", remedy)
    if not 0 <= value <= CPU_MAX:
        raise bad(f"there is no CPU {show(value)}", f"CPUs are numbered from 0 to {CPU_MAX}")
    return value


CPUS = Reads(
    _read_cpus,
    {
        "anyOf": [
            {
                "type": "array",
                "items": {"type": "integer", "minimum": 0, "maximum": CPU_MAX},
                "minItems": 1,
                "uniqueItems": True,
            },
            {"type": "integer", "minimum": 0, "maximum": CPU_MAX},
            {"type": "string", "pattern": CPU_LIST_PATTERN},
        ]
    },
)


def _parse_network(kind: type[Net], value: object, example: str) -> Net:
    """A subnet; an address with its host bits set, which is probably a slip, is refused."""
    version = 4 if kind is ipaddress.IPv4Network else 6
    remedy = f"write an address and a prefix length: {example}; null for none"
    if not isinstance(value, str) or re.fullmatch(NETWORK_PATTERN, value) is None:
        raise bad(f"{show(value)} is no IPv{version} subnet", remedy)
    try:
        network = kind(value, strict=False)
    except ValueError:
        raise bad(f"{show(value)} is no IPv{version} subnet", remedy) from None
    if str(network.network_address) != str(ipaddress.ip_address(value.partition("/")[0])):
        raise bad(f"{show(value)} is an address within a subnet", f"write {network}")
    first = network.network_address
    if first.is_unspecified or first.is_multicast or first.is_loopback:
        raise bad(f"{network} is no subnet for nodes", f"choose a private one: {example}")
    return network


def _read_ipv4_network(value: object) -> ipaddress.IPv4Network:
    network = _parse_network(ipaddress.IPv4Network, value, "10.77.0.0/24")
    if network.network_address.is_reserved or network.prefixlen < _IPV4_PREFIX_MIN:
        raise bad(f"{network} is no subnet for nodes", "choose a private one: 10.77.0.0/24")
    return network


def _read_ipv6_network(value: object) -> ipaddress.IPv6Network:
    network = _parse_network(ipaddress.IPv6Network, value, "fd77::/64")
    if network.network_address.is_link_local:
        raise bad(
            f"{network} is link-local, which every interface has already",
            "choose a unique local one: fd77::/64",
        )
    return network


IPV4_NETWORK = Reads(_read_ipv4_network, {"type": "string", "pattern": NETWORK_PATTERN})
IPV6_NETWORK = Reads(_read_ipv6_network, {"type": "string", "pattern": NETWORK_PATTERN})


def _read_ipv4(value: object) -> ipaddress.IPv4Address:
    """An address; with a prefix it becomes an IPv4Interface, which is an IPv4Address too."""
    try:
        if isinstance(value, str) and re.fullmatch(ADDRESS_PATTERN, value):
            return ipaddress.IPv4Interface(value) if "/" in value else ipaddress.IPv4Address(value)
    except ValueError:
        pass
    raise bad(f"{show(value)} is no IPv4 address", "write one such as 10.77.0.5; null for none")


def _read_ipv6(value: object) -> ipaddress.IPv6Address:
    """An address; with a prefix it becomes an IPv6Interface, which is an IPv6Address too."""
    try:
        if isinstance(value, str) and re.fullmatch(ADDRESS_PATTERN, value):
            return ipaddress.IPv6Interface(value) if "/" in value else ipaddress.IPv6Address(value)
    except ValueError:
        pass
    raise bad(f"{show(value)} is no IPv6 address", "write one such as fd77::5; null for none")


IPV4 = Reads(_read_ipv4, {"type": "string", "pattern": ADDRESS_PATTERN})
IPV6 = Reads(_read_ipv6, {"type": "string", "pattern": ADDRESS_PATTERN})
