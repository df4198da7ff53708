# SPDX-License-Identifier: Apache-2.0
"""A status dictionary as ``Lab.status()`` gives it, for any number of nodes."""

from __future__ import annotations

from typing import Any


def node(index: int, name: str) -> dict[str, Any]:
    return {
        "name": name,
        "kind": "netns",
        "state": "running",
        "pid": 4_000_000 + index,
        "cpus": [index % 2],
        "cpus_enforced_by": "cgroup-v1",
        "memory_limit": 512 << 20,
        "memory_used": 123_456_789,
        "memory_enforced_by": "cgroup-v1",
        "interface": "vni0",
        "mac": f"02:4d:56:12:34:{index:02x}",
        "ipv4": f"10.77.0.{index + 1}/24",
        "ipv6": f"fd77::{index + 1:x}/64",
        "mtu": 1500,
    }


def port(index: int, name: str) -> dict[str, Any]:
    return {
        "name": name,
        "index": index,
        "attachment": "tap",
        "node": name,
        "mac": f"02:4d:56:12:34:{index:02x}",
        "bridge": False,
        "state": "up",
        "worker": {
            "pid": 4_000_100 + index,
            "uid": 60_000 + index,
            "restarts": 0,
            "cpu_seconds": 12.345,
            "private_bytes": 345_678,
        },
        "in_frames": 98_765_432,
        "in_bytes": 149_851_238_400,
        "out_frames": 98_765_431,
        "out_bytes": 149_851_236_900,
        "drops": {},
        "counters": {"sleeps": 17},
    }


def channel(source: str, target: str, frames: int = 12_345) -> dict[str, Any]:
    return {
        "from": source,
        "to": target,
        "state": "open",
        "frames": frames,
        "bytes": frames * 1514,
        "queued_bytes": 0,
        "drops": {},
        "tx": {"frames": frames},
        "rx": {"frames": frames},
    }


def status(nodes: int = 2, lab: str = "pair") -> dict[str, Any]:
    """The status of a lab whose nodes are called a, b, c, …"""
    names = [chr(ord("a") + i) if i < 26 else f"n{i}" for i in range(nodes)]
    return {
        "version": 1,
        "lab": lab,
        "id": "3fa9c1d2",
        "file": f"/srv/labs/{lab}.yaml",
        "state": "ready",
        "since": "2026-11-23T01:00:00Z",
        "layout": "per-channel",
        "channel_bytes": 2 << 20,
        "ssh": "mesh",
        "supervisor": {"pid": 4_000_000, "adoptions": 0},
        "nodes": [node(i, name) for i, name in enumerate(names)],
        "ports": [port(i, name) for i, name in enumerate(names)],
        "channels": [channel(a, b) for a in names for b in names if a != b],
        "memory": {
            "reserved_bytes": nodes * (nodes - 1) * (2 << 20),
            "committed_bytes": 3 << 20,
            "control_bytes": nodes * 8192,
            "reclaims": 0,
        },
        "trust": {"workers": "separate-users", "note": "each worker runs as a user of its own"},
    }
