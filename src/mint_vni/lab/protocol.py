# SPDX-License-Identifier: Apache-2.0
"""JSON messages over a SOCK_SEQPACKET socket, between ``mint`` and a lab's supervisor.

A message is one or more packets: a byte ``+`` (more follows) or ``.`` (last), then UTF-8 JSON.
Requests are objects with ``op``; an answer has ``result``, or ``error`` with the exception's class
name and sentence. While a request runs there may be any number of ``{"progress": text}`` before.
"""

from __future__ import annotations

import contextlib
import json
import socket
from typing import Any

from mint_vni import errors

_CHUNK = 60_000  # below the default limit of a packet's size


def encode(message: dict[str, Any]) -> list[bytes]:
    """A message as packets."""
    data = json.dumps(message).encode()
    parts = [data[i : i + _CHUNK] for i in range(0, len(data), _CHUNK)] or [b""]
    return [b"+" + part for part in parts[:-1]] + [b"." + parts[-1]]


class Decoder:
    """Puts packets together."""

    def __init__(self) -> None:
        """Start with nothing."""
        self._parts: list[bytes] = []

    def feed(self, packet: bytes) -> dict[str, Any] | None:
        """Add a packet; the message when it is complete.

        Raises:
            ValueError: not a packet of this protocol.
        """
        if packet[:1] not in (b"+", b".") or len(self._parts) > 1000:
            raise ValueError("not a packet of the lab protocol")
        self._parts.append(packet[1:])
        if packet[:1] == b"+":
            return None
        data, self._parts = b"".join(self._parts), []
        try:
            message = json.loads(data)
        except RecursionError:
            raise ValueError("nested too deeply") from None
        if not isinstance(message, dict):
            raise ValueError("not an object")  # noqa: TRY004 - nonsense like any other
        return message


def send(sock: socket.socket, message: dict[str, Any]) -> None:
    """Send one message; waits for room."""
    for packet in encode(message):
        sock.send(packet)


def receive(sock: socket.socket) -> dict[str, Any]:
    """The next message.

    Raises:
        ConnectionError: the other side is gone.
    """
    decoder = Decoder()
    while True:
        packet = sock.recv(_CHUNK + 1)
        if not packet:
            raise ConnectionError("the lab's supervisor is gone")
        message = decoder.feed(packet)
        if message is not None:
            return message


def error_message(error: BaseException) -> dict[str, Any]:
    """An exception as an answer."""
    known = isinstance(error, errors.MintError)
    kind = type(error).__name__ if known else "InternalError"
    return {"error": {"kind": kind, "text": str(error) if known else f"{error!r}"}}


def raise_error(answer: dict[str, Any]) -> None:
    """Raise what an answer says went wrong, if anything."""
    error = answer.get("error")
    if error is None:
        return
    kind = getattr(errors, str(error.get("kind")), errors.InternalError)
    if not (isinstance(kind, type) and issubclass(kind, errors.MintError)):
        kind = errors.InternalError
    with contextlib.suppress(TypeError):
        raise kind(error.get("text", "unknown"))
    raise errors.InternalError(error.get("text", "unknown"))
