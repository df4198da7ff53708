# SPDX-License-Identifier: Apache-2.0
"""Command lines that run something in a guest, or get to its console, without its network.

Facts of a guest node that are used here: ``name``; ``pid`` and ``start_time`` of the process that its
life hangs on; ``agent``, the same two of its agent; ``state_dir``, which has the agent's control
socket; ``ssh_dir``, the lab's keys; and, if it is no ``/usr/sbin/sshd``, ``sshd``, the path of the
guest's.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from mint_vni.errors import NodeError
from mint_vni.nodes.enter import kept_variables
from mint_vni.nodes.proc import process_start_time
from mint_vni.nodes.programs import find_program, search_path
from mint_vni.nodes.ssh import client_options, shell_command

__all__ = ["CONTROL_SOCKET", "console_argv", "exec_argv", "ssh_argv"]

#: Name of the agent's control socket in a node's state directory.
CONTROL_SOCKET: Final = "agent.sock"

_HERE: Final = Path(__file__).parent
_SSHD: Final = "/usr/sbin/sshd"


def exec_argv(
    facts: Mapping[str, Any],
    args: Sequence[str],
    *,
    tty: bool = False,
    cwd: str | None = None,
    env: Mapping[str, str] | None = None,
) -> list[str]:
    """Return a command line; see `mint_vni.nodes.exec_argv`."""
    _check_running(facts)
    return _exec(facts, args, tty=tty, cwd=cwd, env=env)


def _exec(
    facts: Mapping[str, Any],
    args: Sequence[str],
    *,
    tty: bool = False,
    cwd: str | None = None,
    env: Mapping[str, str] | None = None,
    log: bool = False,
) -> list[str]:
    request = {
        **_node(facts),
        "env": {"PATH": search_path()} | kept_variables() | dict(env or {}),
        "cwd": cwd,
        "tty": tty,
        "log": log,
    }
    return _python("exec_client.py", request, args)


def ssh_argv(
    facts: Mapping[str, Any], args: Sequence[str], *, tty: bool | None = None
) -> list[str]:
    """Return a command line; see `mint_vni.nodes.ssh_argv`.

    The host's ssh talks to an sshd of its own, started in the guest for this one connection and
    reached over the exec channel: no fault of the fabric, or of the guest's network, gets in the way.
    """
    _check_running(facts)
    if tty is None:
        tty = os.isatty(0) and os.isatty(1)
    sshd = _exec(facts, [facts.get("sshd", _SSHD), "-i", "-e"], cwd="/", log=True)
    # ssh expands %, and hands the line to a shell.
    proxy = shlex.join(sshd).replace("%", "%%")
    ssh = [find_program("ssh", "openssh-client")]
    ssh += client_options(Path(facts["ssh_dir"]), facts["name"])
    ssh += ["-o", f"ProxyCommand={proxy}", "-o", "ProxyUseFdpass=no"]
    terminal = ["-t"] if tty else []
    command = shell_command(args)
    return [*ssh, *terminal, f"root@{facts['name']}", *(["--", *command] if command else [])]


def console_argv(facts: Mapping[str, Any]) -> list[str]:
    """Return a command line that joins the caller's terminal to the guest's console.

    Raises:
        NodeError: The node has ended.
    """
    _check_running(facts)
    return _python("console_client.py", _node(facts), [])


def _node(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": facts["name"], "socket": str(Path(facts["state_dir"]) / CONTROL_SOCKET)}


def _python(script: str, request: Mapping[str, Any], args: Sequence[str]) -> list[str]:
    python = sys.executable or find_program("python3", "python3")
    return [python, "-I", "-S", str(_HERE / script), json.dumps(request), *args]


def _check_running(facts: Mapping[str, Any]) -> None:
    if process_start_time(facts["pid"]) != facts["start_time"]:
        raise NodeError(f"node {facts['name']} has ended; take the lab down and up again")
    agent = facts.get("agent")
    if agent and process_start_time(agent[0]) != agent[1]:
        raise NodeError(
            f"node {facts['name']} cannot be entered: its agent has ended; take the lab down and up"
            " again"
        )
