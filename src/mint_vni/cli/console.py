# SPDX-License-Identifier: Apache-2.0
"""``mint console``: a guest's console."""

from __future__ import annotations

from mint_vni.cli.common import LabOption, NodeArgument, become, find_node


def console(node: NodeArgument, lab: LabOption = None) -> None:
    """Join the terminal to the console of a node with a kernel of its own; Ctrl-] leaves.

    Raises:
        LabStateError: There is no such lab or node.
        NodeError: The node has ended, or is of a kind without a console.
    """
    become(find_node(node, lab)[1].console_argv())
