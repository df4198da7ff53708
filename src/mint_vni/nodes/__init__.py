# SPDX-License-Identifier: Apache-2.0
"""Kinds of nodes: start one, wait until it is ready, run a command in it, stop it.

`base` has the interface, `KINDS` the kinds, one file each; `ssh` makes a lab's keys, `cgroup`
enforces CPUs and memory, `proc` names processes and enters network namespaces, `netlink` configures
interfaces.

The functions here serve whoever has a node's facts (`Node.describe`) but not its object: the
command line, the Python API in another process, and the clean-up after a crash.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from mint_vni.errors import NodeError
from mint_vni.nodes import cgroup, files
from mint_vni.nodes.base import Device, Facts, Node, NodeContext
from mint_vni.nodes.external import ExternalNode
from mint_vni.nodes.netns import NetnsNode
from mint_vni.nodes.proc import kill_process
from mint_vni.nodes.qemu import QemuNode
from mint_vni.nodes.ssh import SshMaterial
from mint_vni.nodes.uml import UmlNode

__all__ = [
    "KINDS",
    "Device",
    "Facts",
    "Node",
    "NodeContext",
    "SshMaterial",
    "console_argv",
    "exec_argv",
    "ssh_argv",
    "undo",
]

#: The kinds of nodes, by the name that lab files use.
KINDS: Final[dict[str, type[Node]]] = {
    kind.kind: kind for kind in (NetnsNode, UmlNode, QemuNode, ExternalNode)
}


def exec_argv(
    facts: Facts,
    args: Sequence[str],
    *,
    tty: bool = False,
    cwd: str | None = None,
    env: Mapping[str, str] | None = None,
) -> list[str]:
    """Return a command line that runs a program inside a node, not over its network.

    Whichever root process of the host runs it, the program is in all namespaces and control groups
    of the node, inherits the streams, and its exit status is that of the command line (125: the
    node could not be entered; 126 and 127: the program could not be run). A program that outlives
    the command line, because that was ended by a signal, gets SIGTERM (SIGHUP with a terminal).

    Args:
        facts: What `Node.describe` returned.
        args: The program and its arguments; empty: root's login shell.
        tty: Whether standard input and output are a terminal that is all the program's: then it is
            put in the foreground there, and can be interrupted and stopped from the keyboard as if
            a shell had started it. Not for parts of a pipeline.
        cwd: Where it starts; None: in root's home directory.
        env: Variables to set besides HOME, PATH, TERM, LANG and the like; nothing else of the
            caller's environment is passed on.

    Raises:
        NodeError: The node has ended.
        PlatformError: A program that this takes is not installed.
    """
    return _kind(facts).exec_argv(facts, args, tty=tty, cwd=cwd, env=env)


def ssh_argv(facts: Facts, args: Sequence[str], *, tty: bool | None = None) -> list[str]:
    """Return a command line that logs in to a node with the host's own, unmodified ssh.

    It uses the lab's keys alone: nothing of the user's configuration, agent or known hosts.

    Args:
        facts: What `Node.describe` returned.
        args: The command; one word is a line for the node's shell, several are run as they are;
            empty: a login shell.
        tty: Whether to ask for a terminal in the node; None: if standard input and output are one.

    Raises:
        NodeError: The node has ended.
        PlatformError: A program that this takes is not installed.
    """
    return _kind(facts).ssh_argv(facts, args, tty=tty)


def console_argv(facts: Facts) -> list[str]:
    """Return a command line that joins the caller's terminal to a node's console.

    What its kernel and its first process say is there, and behind Enter a shell; Ctrl-] leaves.

    Args:
        facts: What `Node.describe` returned.

    Raises:
        NodeError: The node has ended, or is of a kind without a console.
        PlatformError: A program that this takes is not installed.
    """
    return _kind(facts).console_argv(facts)


def undo(kind: str, data: Mapping[str, Any], lab_id: str, deadline: float) -> None:
    """Undo what a node's entry in the journal says, for a lab whose supervisor is gone.

    Safe to repeat, and for entries whose object has gone or never was made. Go through the entries
    of kind "process" first, then "file", "cgroup", "cgroup-control"; other kinds are ignored.

    Args:
        kind: What was journalled.
        data: With which facts.
        lab_id: The lab's id: no control group is touched that does not carry it.
        deadline: `time.monotonic` value at which to give up.

    Raises:
        NodeError: Something is left; it names what.
    """
    if kind == "process":
        # Its id and its time of start tell this process from every other one.
        if not kill_process(data["pid"], data["start"], deadline):
            raise NodeError(f"process {data['pid']} could not be ended; look at it with ps")
    elif kind == "file":
        files.remove(data)
    else:
        cgroup.undo(kind, data, lab_id, deadline)


def _kind(facts: Facts) -> type[Node]:
    return KINDS[facts["kind"]]
