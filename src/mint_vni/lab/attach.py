# SPDX-License-Identifier: Apache-2.0
"""A program as one more port of a running lab: the client's side of ``attach``."""

from __future__ import annotations

import contextlib
import socket

from mint_vni.errors import FabricError
from mint_vni.fabric.config import PortSpec
from mint_vni.fabric.port import Port
from mint_vni.lab import wire
from mint_vni.lab.client import Client


class _Attachment:
    """The control connection of an attached port: peers that come and go."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._sock: socket.socket = client.sock
        self.port: Port | None = None

    def open(self, name: str, mac: str | None) -> Port:
        place = self._client.request("attach", name=name, mac=mac)
        message = wire.receive(self._sock)
        if message.type != wire.OPEN or message.spec is None or not message.fds:
            message.close()
            raise FabricError(
                f"port {name}: the supervisor answered nonsense; use the same version"
            )
        try:
            pool = message.fds[1] if len(message.fds) > 1 else None
            port = Port(
                message.spec, message.slots, message.layout, message.fds[0], pool, self._closed
            )
        finally:
            message.close()
        self.port = port
        try:
            for _ in range(place["peers"]):
                self._apply(wire.receive(self._sock))
        except BaseException:
            port.close()
            raise
        # With a time-out, Python waits for the socket whatever MSG_DONTWAIT says.
        self._sock.setblocking(False)
        port.serve(self._sock.fileno(), self.service)
        return port

    def service(self) -> None:
        """Take what the supervisor has said since."""
        while True:
            try:
                message = wire.receive(self._sock, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except (ConnectionError, TimeoutError):
                self._supervisor_gone()
                return
            self._apply(message)

    def _apply(self, message: wire.Message) -> None:
        assert self.port is not None
        spec: PortSpec | None = message.spec
        try:
            if message.type == wire.ADD_PEER and spec is not None:
                self.port.add_peer(spec, message.capacity, message.fds)
            elif message.type == wire.DROP_PEER and spec is not None:
                self.port.drop_peer(spec.index)
        finally:
            message.close()

    def _supervisor_gone(self) -> None:
        """Frames go on; nobody tells of new ports any more."""
        if self.port is not None:
            self.port.unserve()

    def _closed(self, _port: Port) -> None:
        with contextlib.suppress(OSError):
            self._client.close()


def attach(lab: str, name: str, mac: str | None = None) -> Port:
    """Attach to a running lab as a port of its own.

    Args:
        lab: the lab's name.
        name: the port's name; must be free.
        mac: its MAC address; None: one is assigned.

    Raises:
        LabStateError: no such lab, or the name or MAC is taken.
        FabricError: the lab does not trust this user (layout ``shared``).
    """
    client = Client(lab)
    try:
        return _Attachment(client).open(name, mac)
    except BaseException:
        client.close()
        raise
