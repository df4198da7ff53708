# SPDX-License-Identifier: Apache-2.0
"""Command lines that run something in a node whose namespaces are on this host's kernel."""

from __future__ import annotations

import json
import os
import pwd
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from mint_vni.errors import NodeError
from mint_vni.lab.units import format_cpu_list
from mint_vni.nodes.base import Facts
from mint_vni.nodes.proc import process_start_time
from mint_vni.nodes.programs import find_program, search_path
from mint_vni.nodes.ssh import client_options, shell_command

__all__ = ["exec_argv", "kept_variables", "ssh_argv"]

_SCRIPT: Final = Path(__file__).with_name("_enter_tty.py")

# Joins control groups, then becomes the rest of its arguments.
_JOIN: Final = 'while [ "$1" != -- ]; do echo 0 >"$1" || exit 125; shift; done; shift; exec "$@"'

# What a program in a node gets to know of the caller's environment.
_KEPT_VARIABLES: Final = ("TERM", "COLORTERM", "LANG", "LANGUAGE", "LC_ALL", "LC_CTYPE", "TZ")


def exec_argv(
    facts: Facts,
    args: Sequence[str],
    *,
    tty: bool = False,
    cwd: str | None = None,
    env: Mapping[str, str] | None = None,
) -> list[str]:
    """Return a command line; see `mint_vni.nodes.exec_argv`."""
    _check_running(facts)
    home, shell = _root()
    request = {
        "name": facts["name"],
        "pid": facts["pid"],
        "start_time": facts["start_time"],
        "cgroups": facts["cgroup"]["node_procs"],
        "affinity": facts["cgroup"]["affinity"],
        "cwd": cwd or home,
        "env": _environment(home, shell) | dict(env or {}),
        "args": list(args) or [shell, "-l"],
    }
    return _on_terminal(request) if tty else _without_terminal(request)


def _on_terminal(request: Mapping[str, Any]) -> list[str]:
    """Use the script that does job control, see `mint_vni.nodes._enter_tty`."""
    python = sys.executable or find_program("python3", "python3")
    return [python, "-I", "-S", str(_SCRIPT), json.dumps(request)]


def _without_terminal(request: Mapping[str, Any]) -> list[str]:
    """Use the system's small programs: in a third of the time, and with no interpreter in memory.

    nsenter has to fork to get into the PID namespace. Its parent half dies of the signals that are
    meant for the program; then the program gets SIGTERM, by setpriv.
    """
    join = ["/bin/sh", "-c", _JOIN, "mint-exec", *request["cgroups"], "--"]
    nsenter = [find_program("nsenter", "util-linux"), "-t", str(request["pid"])]
    nsenter += ["-m", "-u", "-i", "-n", "-p", "-C", "--"]
    nsenter += [find_program("setpriv", "util-linux"), "--pdeathsig", "TERM", "--"]
    if request["affinity"]:
        taskset = find_program("taskset", "util-linux")
        nsenter += [taskset, "-c", format_cpu_list(request["affinity"])]
    clean = [find_program("env", "coreutils"), "-i", f"--chdir={request['cwd']}"]
    clean += [f"{name}={value}" for name, value in request["env"].items()]
    args = request["args"]
    # env would take a program with "=" in its name for a variable.
    program = ["/bin/sh", "-c", 'exec "$@"', "sh"] if "=" in args[0] else []
    return [*join, *nsenter, *clean, *program, *args]


def ssh_argv(facts: Facts, args: Sequence[str], *, tty: bool | None = None) -> list[str]:
    """Return a command line; see `mint_vni.nodes.ssh_argv`.

    The host's ssh enters the node's network namespace only, and meets the sshd on loopback: no
    fault of the fabric gets in the way.
    """
    _check_running(facts)
    if tty is None:
        tty = os.isatty(0) and os.isatty(1)
    netns = f"--net=/proc/{facts['pid']}/ns/net"
    nsenter = [find_program("nsenter", "util-linux"), netns, "--"]
    ssh = [find_program("ssh", "openssh-client")]
    ssh += client_options(Path(facts["ssh_dir"]), facts["name"])
    terminal = ["-t"] if tty else []
    command = shell_command(args)
    return [*nsenter, *ssh, *terminal, "root@127.0.0.1", *(["--", *command] if command else [])]


def _check_running(facts: Facts) -> None:
    if process_start_time(facts["pid"]) != facts["start_time"]:
        raise NodeError(f"node {facts['name']} has ended; take the lab down and up again")


def _root() -> tuple[str, str]:
    """Return root's home directory and shell."""
    try:
        entry = pwd.getpwuid(0)
    except KeyError:
        return "/", "/bin/sh"
    return entry.pw_dir, entry.pw_shell or "/bin/sh"


def _environment(home: str, shell: str) -> dict[str, str]:
    """Return the variables for a program in a node."""
    own = {"HOME": home, "USER": "root", "LOGNAME": "root", "SHELL": shell}
    return {"PATH": search_path(), **own, **kept_variables()}


def kept_variables() -> dict[str, str]:
    """Return what a program in a node gets to know of the caller's environment."""
    return {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
