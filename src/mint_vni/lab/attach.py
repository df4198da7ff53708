# SPDX-License-Identifier: Apache-2.0
"""A program as one more port of a running lab: the client's side of ``attach``."""

from __future__ import annotations

import contextlib
import socket
import time
import weakref

from mint_vni.errors import FabricError
from mint_vni.fabric.config import PortSpec
from mint_vni.fabric.counters import ControlView
from mint_vni.fabric.port import Port
from mint_vni.lab import wire
from mint_vni.lab.client import Client

_KNOWN_S = 0.3  # how long a new port waits until the others know of it
_LEFT_S = 1.0  # how long a port that leaves waits until the lab has let go of its name

# A port learns of others during its calls only. So that those of one process find each other at
# once, whatever they are called in turn, they are told of each other here.
_in_this_process: weakref.WeakSet[_Attachment] = weakref.WeakSet()


class _Attachment:
    """The control connection of an attached port: peers that come and go."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._peers: list[ControlView] = []  # while it is being opened
        self._sock = client.sock
        self.port: Port | None = None

    def open(self, name: str, mac: str | None) -> Port:
        place = self._client.request("attach", name=name, mac=mac)
        self._sock = self._client.sock  # another one if a new supervisor had to be started
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
            slots = message.slots
            for _ in range(place["peers"]):
                message = wire.receive(self._sock)
                if message.fds:
                    self._peers.append(ControlView(message.fds[0], slots))
                self._apply(message)
            for other in list(_in_this_process):
                other.service()
            self._await_peers(place["index"])
        except BaseException:
            port.close()
            raise
        finally:
            for view in self._peers:
                view.close()
        # With a time-out, Python waits for the socket whatever MSG_DONTWAIT says.
        self._sock.setblocking(False)
        port.serve(self._sock.fileno(), self.service)
        _in_this_process.add(self)
        return port

    def _await_peers(self, index: int) -> None:
        """Wait until the others listen, so that what is sent first is not lost.

        Not for long: a program that makes no calls on its port does not listen.
        """
        deadline = time.monotonic() + _KNOWN_S
        while time.monotonic() < deadline and any(
            peer.ends(index).rx_state == "closed" for peer in self._peers
        ):
            time.sleep(0.0005)

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
        _in_this_process.discard(self)
        if self.port is not None:
            self.port.unserve()

    def _closed(self, _port: Port) -> None:
        _in_this_process.discard(self)
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)
            self._sock.settimeout(_LEFT_S)
            while self._sock.recv(1 << 16):
                pass  # what there was to say meanwhile
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
        FabricError: the lab does not trust this user (layouts ``shared``, ``pooled``).
    """
    client = Client(lab)
    try:
        return _Attachment(client).open(name, mac)
    except BaseException:
        client.close()
        raise
