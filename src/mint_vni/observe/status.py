# SPDX-License-Identifier: Apache-2.0
"""A lab's status as a person reads it: from the dictionary of ``Lab.status()`` to Rich renderables.

Pure functions: nothing here asks the lab, the clock (but for a default) or the terminal. What is
zero, normal or equal everywhere is said once or not at all, so that what deviates stands out:

* up to three ports, the channels are listed; up to `MATRIX_MAX`, they are a matrix of senders and
  receivers; beyond, the busiest are listed and the rest summed up;
* a channel that is not open, has frames waiting or dropped some is listed whatever the number;
* the table of drops gives each reason in words.

All fits 100 columns with eight nodes; docs/cli.md describes the dictionary.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mint_vni.lab.units import format_cpu_list, format_size
from mint_vni.observe import units

Status = Mapping[str, Any]

LIST_MAX = 6  # channels of three ports
MATRIX_MAX = 8  # ports whose matrix fits 100 columns
BUSIEST = 20  # channels listed when there are too many for a matrix

GOOD = frozenset({"ready", "running", "up", "open"})
BAD = frozenset({"failed", "down", "degraded", "stalled", "reset"})

REASONS = {
    "device": "the node's interface refused the frame",
    "down": "the receiver is not there",
    "full": "no room, and a flooded frame does not wait",
    "long": "longer than the longest frame",
    "no_peer": "flooded while there was no other port",
    "queue": "the interface's queue in the node was full",
    "reset": "given up when the channel was reset",
    "restart": "in hand when a worker died",
    "self": "addressed to the port itself",
    "short": "shorter than an Ethernet header",
    "spoof": "source MAC is not the sender's",
    "stalled": "the receiver stopped draining its channel",
    "too_big": "longer than the receiver's MTU admits",
    "unknown": "no port has the destination MAC",
    "vnet": "offload metadata that makes no sense",
}


@dataclass(frozen=True)
class Since:
    """An earlier status to compare with, for rates instead of totals.

    Attributes:
        status: The earlier status.
        seconds: Time between the two, more than 0.
    """

    status: Status
    seconds: float


def render(status: Status, since: Since | None = None, now: datetime | None = None) -> Group:
    """All of one lab's status.

    Args:
        status: From ``Lab.status()``.
        since: An earlier status; then channels show bits a second instead of totals.
        now: What time it is; the clock's when left out.
    """
    parts: list[RenderableType] = [heading(status, now), Text()]
    for part in (
        nodes_table(status["nodes"]),
        limits_line(status["nodes"]),
        ports_table(status["ports"]),
        channels_view(status, since),
        trouble_table(status["channels"]),
        drops_table(status),
    ):
        if part is not None:
            parts += [part, Text()]
    parts += [memory_line(status["memory"]), trust_line(status["trust"])]
    return Group(*parts)


def labs_table(statuses: Iterable[Status]) -> Table:
    """One line a lab, for ``mint status --all``."""
    table = _table("LAB", "STATE", "NODES", "LAYOUT", "UP FOR", "FILE", right=("NODES",))
    for status in statuses:
        table.add_row(
            Text(status["lab"], style="bold"),
            _state(status["state"]),
            str(len(status["nodes"])),
            Text(status["layout"]),
            Text(_since(status, None)),
            Text(status["file"]),
        )
    return table


def heading(status: Status, now: datetime | None = None) -> Text:
    """The lab, its state, its fabric and its supervisor, in one line or two."""
    supervisor = status["supervisor"]
    line = Text.assemble((status["lab"], "bold"), "  ", _state(status["state"]))
    line.append(f"  up for {_since(status, now)}")
    line.append(f"  layout {status['layout']}, {format_size(status['channel_bytes'])} a buffer")
    line.append(f"  ssh {status['ssh']}  supervisor {supervisor['pid']}")
    if supervisor["adoptions"]:
        line.append(f", the lab was re-adopted {units.count(supervisor['adoptions'])} ×")
    line.append(f"\n{status['file']}  id {status['id']}", style="dim")
    return line


def nodes_table(nodes: Sequence[Status]) -> Table:
    """One line a node, one more where it has both kinds of address."""
    table = _table(
        *("NODE", "KIND", "STATE", "PID", "CPUS", "MEMORY", "INTERFACE", "ADDRESS", "MAC"),
        right=("PID", "MEMORY"),
    )
    for node in nodes:
        table.add_row(
            Text(node["name"], style="bold"),
            Text(node["kind"]),
            _state(node["state"]),
            Text("–" if node["pid"] is None else str(node["pid"])),
            Text(format_cpu_list(node["cpus"]) if node["cpus"] else "all"),
            Text(_memory(node["memory_used"], node["memory_limit"])),
            Text(f"{node['interface']} {node['mtu']}"),
            Text("\n".join(filter(None, (node["ipv4"], node["ipv6"]))) or "–"),
            Text(node["mac"]),
        )
    return table


def limits_line(nodes: Sequence[Status]) -> Text | None:
    """What makes the nodes keep to their CPUs and memory; None without nodes."""
    if not nodes:
        return None
    return Text.assemble(
        ("limits  ", "bold"),
        *("CPUs: ", _grouped({n["name"]: n["cpus_enforced_by"] for n in nodes})),
        *("   memory: ", _grouped({n["name"]: n["memory_enforced_by"] for n in nodes})),
    )


def ports_table(ports: Sequence[Status]) -> Table | None:
    """One line a port: its worker; frames and bytes that the node sent (in) and was given (out)."""
    if not ports:
        return None
    numbers = ("WORKER", "DIED", "CPU", "PRIVATE", "IN", "OUT", "DROPS")
    table = _table("PORT", "AT", "STATE", *numbers, right=numbers)
    for port in ports:
        table.add_row(
            Text(port["name"], style="bold"),
            Text(port["attachment"] + (" bridge" if port["bridge"] else "")),
            _state(port["state"]),
            *_worker(port["worker"]),
            _moved(port["in_frames"], port["in_bytes"]),
            _moved(port["out_frames"], port["out_bytes"]),
            _dropped(sum(port["drops"].values())),
        )
    return table


def channels_view(status: Status, since: Since | None = None) -> RenderableType | None:
    """Traffic from each port to each other, as a list or as a matrix; None without channels."""
    channels = status["channels"]
    names = [port["name"] for port in status["ports"]]
    if not channels:
        return None
    traffic = _traffic(channels, since)
    if len(channels) <= LIST_MAX:
        return _channel_list(channels, traffic)
    if len(names) <= MATRIX_MAX:
        return _channel_matrix(names, traffic, "bit/s" if since else "bytes")
    busiest = sorted(channels, key=lambda c: c["bytes"], reverse=True)[:BUSIEST]
    rest = len(channels) - len(busiest)
    note = f"… and {rest} more channels with {_total(channels) - _total(busiest):,} frames"
    return Group(_channel_list(busiest, traffic), Text(note if rest else "", style="dim"))


def trouble_table(channels: Sequence[Status]) -> Table | None:
    """The channels that are not as they should be, where they are too many to be listed all."""
    if len(channels) <= LIST_MAX:
        return None
    # Frames on their way are normal; what is queued counts only where nobody takes it.
    found = [c for c in channels if c["state"] not in {"open", "closed"} or c["drops"]]
    if not found:
        return None
    table = _table("CHANNEL", "STATE", "QUEUED", "DROPS", right=("QUEUED", "DROPS"))
    for channel in found[:BUSIEST]:
        table.add_row(
            _arrow(channel),
            _state(channel["state"]),
            units.size(channel["queued_bytes"]),
            _dropped(sum(channel["drops"].values())),
        )
    if len(found) > BUSIEST:
        table.add_row(Text(f"… and {len(found) - BUSIEST} more", style="dim"))
    return table


def drops_table(status: Status) -> Table | None:
    """Every drop: where, how many, why; None when there was none."""
    rows = [
        (Text(port["name"]), reason, frames)
        for port in status["ports"]
        for reason, frames in port["drops"].items()
    ]
    rows += [
        (_arrow(channel), reason, frames)
        for channel in status["channels"]
        for reason, frames in channel["drops"].items()
    ]
    if not rows:
        return None
    table = _table("DROPPED AT", "FRAMES", "REASON", right=("FRAMES",))
    rows.sort(key=lambda row: row[2], reverse=True)
    for where, reason, frames in rows[:BUSIEST]:
        table.add_row(where, units.count(frames), Text(_reason(reason)))
    if len(rows) > BUSIEST:
        others = sum(frames for *_, frames in rows[BUSIEST:])
        table.add_row(f"… {len(rows) - BUSIEST} more", units.count(others), Text())
    return table


def memory_line(memory: Status) -> Text:
    """What the fabric takes of the machine's memory."""
    return Text.assemble(
        ("memory  ", "bold"),
        f"packet buffers: {units.size(memory['reserved_bytes'])} reserved, "
        f"{units.size(memory['committed_bytes'])} committed"
        + (
            f" (given back when idle: {units.count(n)} times); "
            if (n := memory["reclaims"])
            else "; "
        )
        + f"control regions: {units.size(memory['control_bytes'])}",
    )


def trust_line(trust: Status) -> Text:
    """Who could touch whose memory."""
    style = "" if trust["workers"] == "separate-users" else "yellow"
    words = str(trust["workers"]).replace("-", " ")
    note = f"; {trust['note']}" if trust["note"] else ""
    return Text.assemble(("trust   ", "bold"), (f"workers: {words}{note}", style))


# ------------------------------------------------------------------------------- the cells


def _table(*columns: str, right: Sequence[str] = ()) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for column in columns:
        # What does not fit is folded into more lines, never cut.
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return table


def _state(state: str) -> Text:
    return Text(state, style="green" if state in GOOD else "red" if state in BAD else "yellow")


def _dropped(frames: int) -> Text:
    return Text(units.count(frames), style="red" if frames else "")


def _moved(frames: int, bytes_: int) -> str:
    return f"{units.count(frames)}, {units.size(bytes_)}"


def _arrow(channel: Status) -> Text:
    return Text(f"{channel['from']} → {channel['to']}")


def _memory(used: int | None, limit: int | None) -> str:
    shown = "–" if used is None else units.size(used)
    return shown if limit is None else f"{shown} / {format_size(limit)}"


def _worker(worker: Status | None) -> tuple[str, str, str, str]:
    """Cells of a port's worker: pid, restarts, CPU time, private memory."""
    if worker is None:
        return "–", "–", "–", "–"
    seconds = worker["cpu_seconds"]
    return (
        str(worker["pid"]),
        units.count(worker["restarts"]),
        f"{seconds:.2f} s" if seconds < 100 else f"{seconds:,.0f} s",
        units.size(worker["private_bytes"]),
    )


def _reason(reason: str) -> str:
    words = REASONS.get(reason)
    return f"{reason}: {words}" if words else reason


def _grouped(values: Mapping[str, str]) -> Text:
    """``cgroup-v2`` when all have it, else ``cgroup-v2 (a, b), none (c)``."""
    groups: dict[str, list[str]] = {}
    for name, value in values.items():
        groups.setdefault(value, []).append(name)
    line = Text()
    for value, names in groups.items():
        line.append(", " if line else "")
        line.append(value, style="yellow" if value == "none" else "")
        line.append(f" ({', '.join(names)})" if len(groups) > 1 else "")
    return line


def _since(status: Status, now: datetime | None) -> str:
    start = units.instant(status["since"])
    return "?" if start is None else units.duration((now or datetime.now(UTC)) - start)


def _total(channels: Iterable[Status]) -> int:
    return sum(int(channel["frames"]) for channel in channels)


def _traffic(channels: Sequence[Status], since: Since | None) -> dict[tuple[str, str], str]:
    """What to show for the traffic of each channel, by sender and receiver."""
    if since is None:
        return {(c["from"], c["to"]): units.size(c["bytes"]) for c in channels}
    before = {(c["from"], c["to"]): int(c["bytes"]) for c in since.status["channels"]}
    # A counter that went back belongs to another channel of the same name: count from 0.
    moved = {
        (c["from"], c["to"]): c["bytes"] - min(before.get((c["from"], c["to"]), 0), c["bytes"])
        for c in channels
    }
    return {ends: units.rate(bytes_ * 8 / since.seconds) for ends, bytes_ in moved.items()}


def _channel_list(channels: Sequence[Status], traffic: Mapping[tuple[str, str], str]) -> Table:
    table = _table(
        *("CHANNEL", "STATE", "FRAMES", "TRAFFIC", "QUEUED", "DROPS"),
        right=("FRAMES", "TRAFFIC", "QUEUED", "DROPS"),
    )
    for channel in channels:
        table.add_row(
            _arrow(channel),
            _state(channel["state"]),
            units.count(channel["frames"]),
            traffic[channel["from"], channel["to"]],
            units.size(channel["queued_bytes"]),
            _dropped(sum(channel["drops"].values())),
        )
    return table


def _channel_matrix(
    names: Sequence[str], traffic: Mapping[tuple[str, str], str], unit: str
) -> Group:
    table = _table("FROM", *names, right=names)
    for source in names:
        cells = (traffic.get((source, name), "·").removesuffix("bit/s") for name in names)
        table.add_row(Text(source, style="bold"), *cells)
    return Group(Text(f"traffic in {unit}, from the row's port to the column's", "dim"), table)
