# SPDX-License-Identifier: Apache-2.0
"""What a lab file may say: its sections and keys, their types, defaults and descriptions.

The model is the one source for three things: what `loader` accepts, the JSON Schema that is
published as ``docs/lab.schema.json`` (see `schema`), and the defaults. It checks each value by
itself; what depends on other values (addresses in their subnet, clashes, what fits) is checked when
`plan` resolves the model.

Whether a key was written matters where ``defaults:`` is merged and where ``null`` means "none": so
look at `model_fields_set`, or better, at the resolved plan.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Annotated, Any, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from mint_vni.lab import fields as f
from mint_vni.lab.units import format_size

# Bounds that native/abi.h sets.
PORTS_MAX: Final = 1024  # MINT_PORTS_MAX
CHANNEL_BYTES_MIN: Final = 131_200  # MINT_CAP_MIN: two largest records
CHANNEL_BYTES_MAX: Final = 1 << 30  # MINT_CAP_MAX
PAGE: Final = 4096

# Defaults of the fabric, all in one place.
LAYOUTS: Final = ("per-channel", "shared", "pooled")
LAYOUT: Final = "per-channel"
CHANNEL_BYTES: Final = 2 << 20
SLOTS_MIN: Final = 32  # unless the lab says otherwise, room for at least so many ports,
SLOTS_SPARE: Final = 16  # and for so many raw ports besides the nodes
POLL_US: Final = 50
POLL_US_MAX: Final = 100_000
STALL_US: Final = 20_000
STALL_US_MAX: Final = 10_000_000
IDLE_RECLAIM: Final = 5
IDLE_RECLAIM_MAX: Final = 3600
TRUSTS: Final = ("peers", "all")
TRUST: Final = "peers"

# Defaults of the network. The subnets exist inside the lab alone, so that all labs may share them.
IPV4: Final = IPv4Network("10.77.0.0/24")
IPV6: Final = IPv6Network("fd77::/64")
MTU: Final = 1500
MTU_MIN: Final = 576
MTU_MIN_IPV6: Final = 1280
MTU_MAX: Final = 65_521  # a 65,535-byte packet, less 14 bytes that Linux adds to a device's MTU

SSH_MODES: Final = ("mesh", "host-only")
SSH: Final = "host-only"
INTERFACE: Final = "vni0"
KIND: Final = "netns"


@dataclass(frozen=True)
class KindSpec:
    """What the lab file needs to know about a kind of node.

    Attributes:
        summary: What it is, for messages and documentation.
        memory_min: Bytes below which a node of this kind can't get ready.
        memory: Bytes of a node that does not say; None: no limit.
        keys: Keys of a node that only this kind and those like it have.
    """

    summary: str
    memory_min: int
    memory: int | None = None
    keys: frozenset[str] = frozenset()


# A new kind of node is one entry here (and its module in mint_vni.nodes).
KINDS: Final[Mapping[str, KindSpec]] = {
    "netns": KindSpec(
        summary="own network stack, hostname, mounts and processes on the host's kernel",
        memory_min=32 << 20,
    ),
    "uml": KindSpec(
        summary="a kernel of its own, User-Mode Linux, as a process of the host",
        memory_min=64 << 20,
        memory=256 << 20,
        keys=frozenset({"root", "kernel", "trusted_userland"}),
    ),
    "qemu": KindSpec(
        summary="a kernel of its own in a virtual machine, by KVM where that works",
        memory_min=128 << 20,
        memory=512 << 20,
        keys=frozenset({"root", "kernel", "image"}),
    ),
    "external": KindSpec(
        summary="a virtual machine that you start yourself, or another vhost-user front end",
        memory_min=0,
        keys=frozenset({"socket", "owner"}),
    ),
}

#: What a guest sees as its root unless the lab says otherwise: the host's file system.
ROOT: Final = "host"

MEMORY_MAX: Final = 1 << 50


class Section(BaseModel):
    """A mapping of known keys. One that is written but left empty is as good as ``{}``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _mapping(cls, data: Any) -> Any:
        if data is None:
            return {}
        if isinstance(data, Mapping | cls):
            return data
        raise f.bad(f"{f.show(data)} stands where keys are expected", _keys_of(cls))


def _keys_of(section: type[BaseModel]) -> str:
    return f"write 'key: value' pairs with the keys {', '.join(section.model_fields)}"


class FabricModel(Section):
    """The shared memory that joins the nodes."""

    layout: Annotated[str, f.one_of(LAYOUTS, "layout")] = Field(
        default=LAYOUT,
        description="How frames lie in shared memory: per-channel gives each ordered pair of ports "
        "a lock-free buffer of its own; shared gives all ports one buffer, under a lock; pooled "
        "gives each port one lock-free pool for all it sends, which all other ports can read.",
    )
    channel_bytes: Annotated[
        int,
        f.size(CHANNEL_BYTES_MIN, CHANNEL_BYTES_MAX, "a channel holds two of the largest records"),
    ] = Field(
        default=CHANNEL_BYTES,
        description="Size of each packet buffer: of every channel in layout per-channel, of the "
        "one buffer in layout shared, of each port's pool in layout pooled. Rounded up to whole pages of 4096 bytes.",
        examples=["2M", 393216],
    )
    slots: Annotated[int, f.whole(2, PORTS_MAX)] | None = Field(
        default=None,
        description="Ports that the fabric has room for: the nodes and the programs that attach. "
        "Null: the nodes and 16 more, at least 32.",
        examples=[64],
    )
    poll_us: Annotated[int, f.whole(0, POLL_US_MAX, "microseconds")] = Field(
        default=POLL_US,
        description="Longest time in microseconds that a worker without work polls before it "
        "sleeps; 0: it sleeps at once.",
    )
    stall_us: Annotated[int, f.whole(1, STALL_US_MAX, "microseconds")] = Field(
        default=STALL_US,
        description="Longest time in microseconds that a sender waits for room in a full channel; "
        "then the channel is stalled, and frames for it are dropped and counted until the "
        "receiver drains it.",
    )
    idle_reclaim: Annotated[int, f.whole(0, IDLE_RECLAIM_MAX, "seconds")] = Field(
        default=IDLE_RECLAIM,
        description="Seconds after which the memory of a channel that has been idle is given back "
        "to the machine (layout pooled: of a pool that has been idle; not in layout shared); 0: it "
        "is kept.",
    )
    trust: Annotated[str, f.one_of(TRUSTS, "kind of trust")] = Field(
        default=TRUST,
        description="Who may share a packet buffer that isn't the pair's own (layouts shared and "
        "pooled): peers admits the lab's own workers only, all admits programs of other users too.",
    )


class NetworkModel(Section):
    """Subnets and MTU; they exist inside the lab alone."""

    ipv4: Annotated[IPv4Network, f.IPV4_NETWORK] | None = Field(
        default=IPV4, description="IPv4 subnet of the nodes; null: no IPv4."
    )
    ipv6: Annotated[IPv6Network, f.IPV6_NETWORK] | None = Field(
        default=IPV6, description="IPv6 subnet of the nodes; null: no IPv6."
    )
    mtu: Annotated[int, f.whole(MTU_MIN, MTU_MAX)] = Field(
        default=MTU,
        description="MTU of the nodes' interfaces in bytes; at least 1280 where there is IPv6.",
    )


class DefaultsModel(Section):
    """What holds for every node that does not say otherwise."""

    kind: Annotated[str, f.one_of(KINDS, "kind of node")] = Field(
        default=KIND,
        description="What the node is: "
        + "; ".join(f"{name} ({kind.summary})" for name, kind in KINDS.items())
        + ".",
    )
    cpus: Annotated[tuple[int, ...], f.CPUS] | None = Field(
        default=None,
        description="CPUs that the node and its worker may use: a list, one number, or text such "
        'as "0-3,6". Null: all.',
        examples=[[0], [0, 1], "0-3,6"],
    )
    memory: (
        Annotated[int, f.size(1 << 20, MEMORY_MAX, "nothing runs in less than 1 MiB")] | None
    ) = Field(
        default=None,
        description="Memory that the node may use, in bytes or with K, M, G or T. Null: "
        + ", ".join(
            f"{format_size(kind.memory)} ({name})" if kind.memory else f"no limit ({name})"
            for name, kind in KINDS.items()
        )
        + ".",
        examples=["512M"],
    )
    interface: Annotated[str, f.INTERFACE] = Field(
        default=INTERFACE, description="Name of the virtual network interface inside the node."
    )
    bridge: Annotated[bool, f.FLAG] = Field(
        default=False,
        description="Further MACs live behind this node: they are learned, and frames of any "
        "source MAC are accepted from it.",
    )
    offload: Annotated[bool, f.FLAG] = Field(
        default=True,
        description="Offer checksum and segmentation offload to the node's protocol stack.",
    )
    poll_us: Annotated[int, f.whole(0, POLL_US_MAX, "microseconds")] | None = Field(
        default=None, description="The node's own fabric.poll_us. Null: the fabric's."
    )
    root: Annotated[str, f.text("directory", "./rootfs")] = Field(
        default=ROOT,
        description="Kinds uml and qemu: what the guest has as its root, read-only below a layer "
        "in its memory: host, the host's file system; or a directory, relative to the lab file.",
        examples=["host", "./rootfs"],
    )
    image: Annotated[str, f.text("path of a disk image", "./my.qcow2")] | None = Field(
        default=None,
        description="Kind qemu: disk image from which the node boots its own system, relative to "
        "the lab file. It is never written to. Null: the node boots from its root.",
        examples=["./my.qcow2"],
    )
    kernel: Annotated[str, f.text("version of a kernel", '"7.2um1"')] | None = Field(
        default=None,
        description="Kinds uml and qemu: version of the kernel, as mint kernel list shows it. "
        "Null: the newest that boots here.",
        examples=["7.2um1"],
    )
    trusted_userland: Annotated[bool, f.FLAG] = Field(
        default=False,
        description="Kind uml: run the guest's programs by seccomp, which is quicker than ptrace "
        "and lets them reach the guest kernel's memory.",
    )


class NodeModel(DefaultsModel):
    """One Linux."""

    socket: Annotated[str, f.text("path of a socket", "./vm.sock")] | None = Field(
        default=None,
        description="Kind external: where to make the socket that your machine connects to, relative "
        "to the lab file. Nothing may be there yet. Null: below /run/mint, for root alone.",
        examples=["./vm.sock"],
    )
    owner: Annotated[str, f.USER] | None = Field(
        default=None,
        description="Kind external: the user who may connect, by name or number. Null: root alone.",
        examples=["libvirt-qemu"],
    )
    mac: Annotated[str, f.MAC] | None = Field(
        default=None,
        description="MAC address of the interface. Null: derived from the names of lab and node.",
        examples=["52:54:00:12:34:56"],
    )
    ipv4: Annotated[IPv4Address, f.IPV4] | None = Field(
        default=None,
        description="IPv4 address within network.ipv4. Left out: the subnet's nth address for the "
        "nth node. Null: none.",
        examples=["10.77.0.5"],
    )
    ipv6: Annotated[IPv6Address, f.IPV6] | None = Field(
        default=None,
        description="IPv6 address within network.ipv6. Left out: the subnet's nth address for the "
        "nth node. Null: none.",
        examples=["fd77::5"],
    )


def _check_nodes(value: Any) -> Any:
    remedy = "write each node under its name, such as 'nodes: {a: {}, b: {}}'"
    if value is None or value == {}:
        raise f.bad("the lab has no nodes", remedy)
    if not isinstance(value, Mapping):
        raise f.bad(f"{f.show(value)} stands where names of nodes are expected", remedy)
    if len(value) > PORTS_MAX:
        raise f.bad(f"{len(value)} nodes are too many", f"a fabric has {PORTS_MAX} ports at most")
    return value


class LabModel(Section):
    """A lab: independent Linuxes on one machine and the fabric that joins them."""

    lab: Annotated[str, f.LAB_NAME] = Field(
        description="Name of the lab, by which commands refer to it; one lab of that name runs on "
        "a machine at a time.",
        examples=["pair"],
    )
    fabric: FabricModel = Field(
        default=FabricModel(), description="The shared memory between the nodes."
    )
    network: NetworkModel = Field(
        default=NetworkModel(), description="Addresses and MTU inside the lab."
    )
    ssh: Annotated[str, f.one_of(SSH_MODES, "ssh mode")] = Field(
        default=SSH,
        description="Who may log in to the nodes by SSH: mesh lets the nodes log in to each other, "
        "host-only lets in the host alone.",
    )
    defaults: DefaultsModel = Field(
        default=DefaultsModel(),
        description="Keys that hold for every node that does not set them itself.",
    )
    nodes: Annotated[
        dict[Annotated[str, f.NODE_NAME], NodeModel], BeforeValidator(_check_nodes)
    ] = Field(
        description="The nodes by name; their order gives them their addresses.",
        examples=[{"a": {"cpus": [0], "memory": "512M"}, "b": {}}],
        json_schema_extra={"minProperties": 1, "maxProperties": PORTS_MAX},
    )
