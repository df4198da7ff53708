# SPDX-License-Identifier: Apache-2.0
"""From a validated lab file to a plan: every address, MAC and limit decided, nothing touched.

`resolve` is a pure function of the model: the same file gives the same plan on every machine.
`check_machine` then compares the plan with what one machine has. The plan is what the supervisor
applies, and what it keeps on disk as JSON.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path as FilePath
from typing import Any, Final

from mint_vni.errors import PlatformError
from mint_vni.lab.assign import Identity, assign
from mint_vni.lab.lines import MEMORY, LineMap, Path
from mint_vni.lab.loader import lab_from_dict, load_lab, parse_lab
from mint_vni.lab.model import (
    KINDS,
    MTU_MIN_IPV6,
    PAGE,
    PORTS_MAX,
    ROOT,
    SLOTS_MIN,
    SLOTS_SPARE,
    LabModel,
    NodeModel,
)
from mint_vni.lab.units import format_cpu_list, format_size, parse_cpu_list


@dataclass(frozen=True)
class NodePlan:
    """One node, resolved.

    Attributes:
        name: Its name, which is its hostname and its port's name too.
        kind: Key of `model.KINDS`.
        index: Position in the file, from 0; also the index of its port.
        mac: Lower-case, with colons.
        ipv4: Address with prefix length, ``10.77.0.1/24``; None: no IPv4.
        ipv6: Address with prefix length, ``fd77::1/64``; None: no IPv6.
        cpus: CPUs it may use, ascending; empty: all.
        memory: Bytes it may use; None: no limit.
        interface: Name of the interface inside.
        bridge: Whether further MACs live behind it.
        mtu: MTU of the interface, bytes.
        offload: Whether its stack is offered checksum and segmentation offload.
        poll_us: Longest polling of its worker before it sleeps, microseconds.
        root: ``host``, or absolute path of the directory that a guest has as its root.
        image: Absolute path of the disk image that a guest boots; None: it boots from its root.
        kernel: Version of a guest's kernel; None: the newest.
        trusted_userland: Whether programs of a User-Mode Linux may reach its kernel's memory.
        socket: Absolute path of the socket of a machine of the user's; None: in the lab's directory.
        owner: User who may connect there, besides root; None: nobody.
    """

    name: str
    kind: str
    index: int
    mac: str
    ipv4: str | None
    ipv6: str | None
    cpus: tuple[int, ...]
    memory: int | None
    interface: str
    bridge: bool
    mtu: int
    offload: bool
    poll_us: int
    root: str = ROOT
    image: str | None = None
    kernel: str | None = None
    trusted_userland: bool = False
    socket: str | None = None
    owner: str | None = None


@dataclass(frozen=True)
class LabPlan:
    """A lab, resolved.

    Attributes:
        name: The lab's name.
        file: Absolute path of the lab file, or ``<memory>``.
        layout: ``per-channel``, ``shared`` or ``pooled``.
        channel_bytes: Size of each packet buffer, whole pages.
        slots: Ports that the fabric has room for.
        mtu: MTU inside the nodes, bytes.
        ipv4: Subnet, or None.
        ipv6: Subnet, or None.
        ssh: ``mesh`` or ``host-only``.
        poll_us: Longest polling of a worker, unless its node says otherwise, microseconds.
        stall_us: Longest wait for room in a channel, microseconds.
        idle_reclaim: Seconds until the memory of an idle channel is given back; 0: never.
        trust_all: Whether ports of other users may join a buffer that is not the pair's own.
        nodes: The nodes in the order of the file.
        hosts: For ``/etc/hosts`` of the nodes: addresses, each with its names; without loopback.
        lines: Where in the file the values stand, for `check_machine`. Not part of the JSON nor
            of comparisons.
    """

    name: str
    file: str
    layout: str
    channel_bytes: int
    slots: int
    mtu: int
    ipv4: str | None
    ipv6: str | None
    ssh: str
    poll_us: int
    stall_us: int
    idle_reclaim: int
    trust_all: bool
    nodes: tuple[NodePlan, ...]
    hosts: tuple[tuple[str, tuple[str, ...]], ...]
    lines: LineMap = field(default_factory=LineMap, repr=False, compare=False)

    @property
    def buffer_bytes(self) -> int:
        """Bytes that the packet buffers between the nodes may come to take; committed when touched.

        In layout shared the lists and the lock beside the buffer are not counted.
        """
        if self.layout == "shared":
            return self.channel_bytes
        if self.layout == "pooled":  # a pool, a page of descriptors a peer, one of notes
            return (self.channel_bytes + PAGE * len(self.nodes)) * len(self.nodes)
        return self.channel_bytes * len(self.nodes) * (len(self.nodes) - 1)

    @property
    def descriptors(self) -> int:
        """About how many file descriptors the supervisor will hold open."""
        n = len(self.nodes)
        regions = n * (n - 1) if self.layout == "per-channel" else n
        return regions + n * (n - 1) + 16 * n + 64

    def to_json(self) -> dict[str, Any]:
        """The plan as a dictionary for ``json.dumps``; `from_json` takes it back."""
        data = {item.name: getattr(self, item.name) for item in fields(self)}
        del data["lines"]
        return data | {"nodes": [asdict(node) for node in self.nodes]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LabPlan:
        """A plan from what `to_json` gave, also after a round trip through JSON text.

        Args:
            data: The dictionary.

        Returns:
            A plan equal to the first one, but without line numbers.

        Raises:
            KeyError: A field is missing.
        """
        values = {item.name: data[item.name] for item in fields(cls) if item.name != "lines"}
        values["nodes"] = tuple(_node_from_json(node) for node in data["nodes"])
        values["hosts"] = tuple((address, tuple(names)) for address, names in data["hosts"])
        return cls(**values, lines=LineMap(data["file"]))


def _node_from_json(data: Mapping[str, Any]) -> NodePlan:
    values = {item.name: data[item.name] for item in fields(NodePlan)}
    values["cpus"] = tuple(values["cpus"])
    return NodePlan(**values)


def read_plan(source: str | os.PathLike[str] | Mapping[str, Any]) -> LabPlan:
    """Load, validate and resolve a lab.

    Args:
        source: A path; or YAML text, which is recognised by a line break or a leading ``{``; or a
            dictionary.

    Returns:
        The plan.

    Raises:
        LabFileError: It is no valid lab.
    """
    if isinstance(source, Mapping):
        model, lines = lab_from_dict(source)
    elif isinstance(source, str) and ("\n" in source or source.lstrip().startswith("{")):
        model, lines = parse_lab(source)
    else:
        model, lines = load_lab(source)
    return resolve(model, lines.file, lines)


def resolve(model: LabModel, file: str = MEMORY, lines: LineMap | None = None) -> LabPlan:
    """Decide all that a lab file leaves open, and check what spans several of its values.

    Args:
        model: From `loader`.
        file: Where the lab comes from; made absolute unless it is ``<memory>``.
        lines: From `loader`, so that errors name their line.

    Returns:
        The plan.

    Raises:
        LabFileError: Values that do not go together.
    """
    lines = lines or LineMap(file)
    network = model.network
    _check_mtu(model, lines)
    identities = assign(model, lines)
    nodes = tuple(
        _node(model, name, index, identities[name], lines) for index, name in enumerate(model.nodes)
    )
    return LabPlan(
        name=model.lab,
        file=file if file == MEMORY else str(FilePath(file).absolute()),
        layout=model.fabric.layout,
        channel_bytes=-(-model.fabric.channel_bytes // PAGE) * PAGE,
        slots=_slots(model, lines),
        mtu=network.mtu,
        ipv4=str(network.ipv4) if network.ipv4 else None,
        ipv6=str(network.ipv6) if network.ipv6 else None,
        ssh=_ssh(model, lines),
        poll_us=model.fabric.poll_us,
        stall_us=model.fabric.stall_us,
        idle_reclaim=model.fabric.idle_reclaim,
        trust_all=model.fabric.trust == "all",
        nodes=nodes,
        hosts=_hosts(nodes),
        lines=lines,
    )


def _check_mtu(model: LabModel, lines: LineMap) -> None:
    if model.network.ipv6 and model.network.mtu < MTU_MIN_IPV6:
        raise lines.error(
            ("network", "mtu"),
            f"{model.network.mtu} is too small for IPv6",
            f"give at least {MTU_MIN_IPV6}, or write 'ipv6: null' below network",
        )


def _slots(model: LabModel, lines: LineMap) -> int:
    count = len(model.nodes)
    slots = model.fabric.slots
    if slots is None:
        return min(PORTS_MAX, max(SLOTS_MIN, count + SLOTS_SPARE))
    if slots < count:
        raise lines.error(
            ("fabric", "slots"),
            f"{slots} is too few for {count} nodes",
            f"give at least {count}, or leave slots out",
        )
    return slots


def _ssh(model: LabModel, lines: LineMap) -> str:
    if model.ssh == "mesh" and not (model.network.ipv4 or model.network.ipv6):
        raise lines.error(
            ("ssh",),
            "nodes can't log in to each other without addresses",
            "give network an ipv4 or ipv6 subnet, or write 'ssh: host-only'",
        )
    return model.ssh


def _hosts(nodes: tuple[NodePlan, ...]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    return tuple(
        (address.partition("/")[0], (node.name,))
        for node in nodes
        for address in (node.ipv4, node.ipv6)
        if address is not None
    )


def _source(model: LabModel, name: str, key: str) -> tuple[Any, Path]:
    """A node's value of a key, and where it was written: at the node, in defaults, nowhere."""
    node: NodeModel = model.nodes[name]
    if key not in node.model_fields_set and key in model.defaults.model_fields_set:
        return getattr(model.defaults, key), ("defaults", key)
    return getattr(node, key), ("nodes", name, key)


def _node(model: LabModel, name: str, index: int, identity: Identity, lines: LineMap) -> NodePlan:
    def value(key: str) -> Any:
        return _source(model, name, key)[0]

    kind = value("kind")
    memory, path = _source(model, name, "memory")
    if memory is not None and memory < KINDS[kind].memory_min:
        least = format_size(KINDS[kind].memory_min)
        raise lines.error(
            path,
            f"{format_size(memory)} is too little for a node of kind {kind}",
            f"give at least {least}, or leave memory out",
        )
    poll_us = value("poll_us")
    special = _special(model, name, kind, lines)
    return NodePlan(
        name=name,
        kind=kind,
        index=index,
        mac=identity.mac,
        ipv4=identity.ipv4,
        ipv6=identity.ipv6,
        cpus=value("cpus") or (),
        memory=KINDS[kind].memory if memory is None else memory,
        interface=value("interface"),
        bridge=value("bridge"),
        mtu=model.network.mtu,
        offload=value("offload"),
        poll_us=model.fabric.poll_us if poll_us is None else poll_us,
        **special,
    )


_SPECIAL: Final = ("root", "image", "kernel", "trusted_userland", "socket", "owner")


def _special(model: LabModel, name: str, kind: str, lines: LineMap) -> dict[str, Any]:
    """What a node says that not all kinds have; from ``defaults`` only what its kind has."""
    node, known = model.nodes[name], KINDS[kind].keys
    for key in _SPECIAL:
        if key in node.model_fields_set and key not in known:
            others = " or ".join(other for other, spec in KINDS.items() if key in spec.keys)
            problem = f"a node of kind {kind} has no {key}"
            remedy = f"leave {key} out, or write 'kind: {others}'"
            raise lines.error(("nodes", name, key), problem, remedy)
    found: dict[str, tuple[Any, Path]] = {
        key: _source(model, name, key) for key in _SPECIAL if key in known
    }
    values: dict[str, Any] = {key: value for key, (value, _) in found.items()}
    if values.get("image"):
        for key in ("root", "kernel"):
            value, path = found[key]
            if value != NodeModel.model_fields[key].default:
                problem = f"a node that boots the image {values['image']} has no {key} besides it"
                raise lines.error(path, problem, f"leave {key} out, or image")
        values["image"] = _beside(lines.file, values["image"])
    if values.get("socket"):
        values["socket"] = _beside(lines.file, values["socket"])
    if values.get("root", ROOT) != ROOT:
        values["root"] = _beside(lines.file, values["root"])
    return values


def _beside(file: str, path: str) -> str:
    """A path that stands in a lab file, absolute."""
    base = FilePath() if file == MEMORY else FilePath(file).parent
    return os.path.normpath((base / FilePath(path).expanduser()).absolute())


_CAP_SYS_RESOURCE: Final = 24


def _may_raise_limits() -> bool:
    """Whether this process has the right to; root of a container often has not."""
    status = FilePath("/proc/self/status").read_text(encoding="ascii", errors="replace")
    effective = next(line for line in status.splitlines() if line.startswith("CapEff:"))
    return bool(int(effective.split()[1], 16) >> _CAP_SYS_RESOURCE & 1)


@dataclass(frozen=True)
class MachineFacts:
    """What `check_machine` needs to know about a machine.

    Attributes:
        cpus: CPUs that are online.
        memory: All of its memory, bytes.
        descriptors: File descriptors that one process may come to have.
    """

    cpus: frozenset[int]
    memory: int
    descriptors: int

    @classmethod
    def here(cls) -> MachineFacts:
        """The facts of this machine.

        Raises:
            PlatformError: /sys or /proc do not tell them.
        """
        try:
            online = FilePath("/sys/devices/system/cpu/online").read_text(encoding="ascii")
            cpus = frozenset(parse_cpu_list(online.strip()))
            memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
            limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
            if _may_raise_limits() or limit == resource.RLIM_INFINITY:
                # Root may raise the hard limit up to what the kernel allows any process.
                limit = int(FilePath("/proc/sys/fs/nr_open").read_text(encoding="ascii"))
        except (OSError, ValueError) as error:
            raise PlatformError(
                f"this machine does not tell its CPUs, memory and limits ({error}); "
                "mount /proc and /sys"
            ) from None
        return cls(cpus=cpus, memory=memory, descriptors=limit)


def check_machine(plan: LabPlan, machine: MachineFacts) -> None:
    """Check that a machine has what a plan asks for.

    Args:
        plan: From `resolve`; its line map places the errors.
        machine: From `MachineFacts.here()`.

    Raises:
        LabFileError: CPUs or memory that the machine has not.
        PlatformError: The lab needs more descriptors than a process may have.
    """
    for node in plan.nodes:
        _check_cpus(plan, node, machine)
        _check_files(plan, node)
    _check_memory(plan, machine)
    if plan.descriptors > machine.descriptors:
        problem = (
            f"{len(plan.nodes)} nodes need about {plan.descriptors} file descriptors, and a "
            f"process may have {machine.descriptors} here"
        )
        remedy = f"raise the limit with 'ulimit -Hn {plan.descriptors}', or take fewer nodes"
        raise PlatformError(str(plan.lines.error(("nodes",), problem, remedy)))


def _written(plan: LabPlan, node: NodePlan, key: str) -> Path:
    """Where a node's key stands: at the node, or else in defaults."""
    path: Path = ("nodes", node.name, key)
    default: Path = ("defaults", key)
    return default if path not in plan.lines.marks and default in plan.lines.marks else path


def _check_cpus(plan: LabPlan, node: NodePlan, machine: MachineFacts) -> None:
    absent = sorted(set(node.cpus) - machine.cpus)
    if absent:
        what = "CPU" if len(absent) == 1 else "CPUs"
        raise plan.lines.error(
            _written(plan, node, "cpus"),
            f"this machine has no {what} {format_cpu_list(absent)}",
            f"choose from {format_cpu_list(machine.cpus)}, or leave cpus out for all",
        )


def _check_files(plan: LabPlan, node: NodePlan) -> None:
    """A guest's root is a directory, its image a file, and both can be read."""
    wanted = [("root", node.root, "directory")] if node.root != ROOT else []
    if node.image is not None:
        wanted.append(("image", node.image, "file"))
    for key, path, what in wanted:
        place = _written(plan, node, key)
        if not os.path.exists(path):
            raise plan.lines.error(place, f"there is no {path}", "check the path")
        if os.path.isdir(path) != (what == "directory"):
            raise plan.lines.error(place, f"{path} is no {what}", f"name a {what}")
        if not os.access(path, os.R_OK):
            remedy = f"run 'chmod +r {path}', or use sudo"
            raise plan.lines.error(place, f"no permission to read {path}", remedy)


def _check_memory(plan: LabPlan, machine: MachineFacts) -> None:
    total = 0
    has = f"this machine has {machine.memory >> 20}M"
    for node in plan.nodes:
        total += node.memory or 0
        path = _written(plan, node, "memory")
        if (node.memory or 0) > machine.memory:
            raise plan.lines.error(
                path, f"{format_size(node.memory or 0)} is too much, {has}", "give less"
            )
        if total > machine.memory:
            raise plan.lines.error(
                path,
                f"with node {node.name} the nodes' memory comes to {total >> 20}M, {has}",
                "give the nodes less",
            )
    if plan.buffer_bytes > machine.memory:
        raise plan.lines.error(
            ("fabric", "channel_bytes"),
            f"the packet buffers may come to {plan.buffer_bytes >> 20}M, {has}",
            "give less, or take fewer nodes",
        )
