# SPDX-License-Identifier: Apache-2.0
"""Joins the caller's terminal to a guest's console: ``python -I -S console_client.py JSON``.

A script of its own, like `exec_client`. JSON: ``name`` and ``socket`` of the node. The agent's answer
to ``{"op": "console"}`` is a JSON object; then packets are the console's bytes, both ways.

Ctrl-] leaves. Without a terminal it leaves at the end of standard input.
"""

import contextlib
import json
import os
import select
import signal
import socket
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from exec_client import (  # type: ignore[import-not-found]  # it lies beside this script
    CANNOT_ENTER,
    PACKET_BYTES,
    PIECE,
    Terminal,
    complain,
    connect,
    write_all,
)

ESCAPE = b"\x1d"


def main() -> int:
    """Relay until somebody leaves.

    Returns:
        The exit status: 0 after leaving, 125 if there is no console.
    """
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    request = json.loads(sys.argv[1])
    name = request["name"]
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        connect(connection, request["socket"])
        connection.send(json.dumps({"op": "console"}).encode(), socket.MSG_NOSIGNAL)
        answer = json.loads(connection.recv(PACKET_BYTES) or b"{}")
        connection.settimeout(None)
    except (OSError, ValueError) as error:
        complain(f"node {name} cannot be reached: its agent: {error}")
        return int(CANNOT_ENTER)
    if not answer.get("ok"):
        complain(answer.get("error") or f"node {name} has ended")
        return int(CANNOT_ENTER)
    terminal = Terminal()
    interactive = os.isatty(0) and terminal.take()
    if interactive:
        complain(f"console of {name}; Ctrl-] leaves\r")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    signal.signal(signal.SIGHUP, lambda *_: sys.exit(128 + signal.SIGHUP))
    try:
        ended = relay(connection, interactive)
    finally:
        terminal.give_back()
    if interactive:
        complain(f"\r\nnode {name} has ended" if ended else f"\r\nleft the console of {name}")
    return 0


def relay(connection: socket.socket, interactive: bool) -> bool:
    """Pass bytes both ways; returns whether the other end has gone."""
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    poll.register(0, select.POLLIN)
    while True:
        for fd, _ in poll.poll():
            if fd != 0:
                data = connection.recv(PACKET_BYTES)
                if not data:
                    return True
                write_all(1, data)
                continue
            data = typed()
            before, escape, _ = data.partition(ESCAPE) if interactive else (data, b"", b"")
            if before:
                with contextlib.suppress(OSError):
                    connection.send(before, socket.MSG_NOSIGNAL)
            if escape or not data:
                return False


def typed() -> bytes:
    """What there is on standard input; nothing at its end."""
    try:
        return os.read(0, PIECE)
    except OSError:
        return b""


if __name__ == "__main__":
    sys.exit(main())
