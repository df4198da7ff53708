# SPDX-License-Identifier: Apache-2.0
"""``mint exec``: run a command in a node."""

from __future__ import annotations

import os

from mint_vni.cli.common import CommandArgument, LabOption, NodeArgument, become, find_node


def exec_(
    node: NodeArgument,
    command: CommandArgument = None,
    lab: LabOption = None,
) -> None:
    """Become the command, inside the node: its streams, its terminal, its exit status.

    Raises:
        LabStateError: There is no such lab or node.
        NodeError: The node has ended.
    """
    # With a keyboard there, Ctrl-C is for the command and not for what carries it into the node.
    become(find_node(node, lab)[1].exec_argv(command or [], tty=os.isatty(0)))
