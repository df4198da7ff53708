# SPDX-License-Identifier: Apache-2.0
"""What a guest boots: its kernel, the modules that it needs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from mint_vni import kernels
from mint_vni.errors import PlatformError
from mint_vni.nodes.guest.launch import files_limit
from mint_vni.nodes.guest.script import Module

if TYPE_CHECKING:
    from mint_vni.kernels import Kernel, Kind
    from mint_vni.lab.plan import NodePlan

__all__ = ["choose_kernel", "inodes_limit", "modules_of"]


def choose_kernel(plan: NodePlan, kind: Kind) -> Kernel:
    """Return the kernel that a node asks for, else the newest that boots here.

    Args:
        plan: The node.
        kind: Of kernel.

    Raises:
        PlatformError: There is none, or not the one that is asked for.
    """
    if plan.kernel is None:
        return kernels.find(kind)
    known = kernels.installed(kind)
    for kernel in known:
        if plan.kernel in (kernel.version, kernel.release, str(kernel.image)):
            return kernel
    there = ", ".join(kernel.version for kernel in known) or "none"
    raise PlatformError(
        f"node {plan.name}: there is no kernel {plan.kernel} for nodes of kind {kind} "
        f"(there is: {there}); run 'mint kernel list', or leave kernel out"
    )


def modules_of(kernel: Kernel, names: Iterable[str]) -> list[Module]:
    """Return kernel modules in the order in which to load them.

    Args:
        kernel: Whose.
        names: Those that are wanted; what they need comes before them.
    """
    files = kernels.load_order(kernel, names)
    return [Module(path.name.partition(".")[0], kernels.module_bytes(path)) for path in files]


def inodes_limit() -> int:
    """Return how many inodes a guest's kernel may remember.

    Each but the overlay's, which are half of them, keeps a file of the host's open.
    """
    return files_limit() * 3 // 4
