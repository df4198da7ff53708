# SPDX-License-Identifier: Apache-2.0
"""``mint ssh``: log in to a node."""

from __future__ import annotations

from mint_vni.cli.common import CommandArgument, LabOption, NodeArgument, become, find_node


def ssh(
    node: NodeArgument,
    command: CommandArgument = None,
    lab: LabOption = None,
) -> None:
    """Become an unmodified ssh to the node's sshd, with the lab's keys.

    Raises:
        LabStateError: There is no such lab or node.
        NodeError: The node has ended.
    """
    become(find_node(node, lab)[1].ssh_argv(command or []))
