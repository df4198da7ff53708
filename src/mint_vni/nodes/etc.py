# SPDX-License-Identifier: Apache-2.0
"""Files below ``/etc`` that every node has its own of, whatever its kind; `ssh` has the others."""

from __future__ import annotations

__all__ = ["etc_files"]

_HOSTS_HEAD = """\
127.0.0.1 localhost
::1 localhost ip6-localhost ip6-loopback
ff02::1 ip6-allnodes
ff02::2 ip6-allrouters
"""


def etc_files(
    name: str, hosts: tuple[tuple[str, tuple[str, ...]], ...]
) -> dict[str, tuple[int, str]]:
    """Say what is in them.

    Args:
        name: The node's name.
        hosts: Entries of ``/etc/hosts``: an address, and its names.

    Returns:
        Absolute path to permissions and text.
    """
    known = "".join(f"{address} {' '.join(names)}\n" for address, names in hosts)
    return {
        "/etc/hosts": (0o644, _HOSTS_HEAD + known),
        "/etc/hostname": (0o644, f"{name}\n"),
        # What the host allows its own services to talk to does not bind the node's.
        "/etc/hosts.allow": (0o644, ""),
        "/etc/hosts.deny": (0o644, ""),
    }
