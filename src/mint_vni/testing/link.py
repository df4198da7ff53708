# SPDX-License-Identifier: Apache-2.0
"""What a front end says, and the descriptors that it gives; see `VhostFrontend` for the whole."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Sequence

from mint_vni.errors import FabricError
from mint_vni.testing.handshake import STYLES, Style, check_config
from mint_vni.testing.memory import GuestMemory
from mint_vni.testing.protocol import (
    FLAG_NEED_REPLY,
    FLAG_REPLY,
    NO_FD,
    VERSION,
    Connection,
    Feature,
    Message,
    ProtocolFeature,
    Request,
    config_space,
    name_of,
    u64,
)
from mint_vni.testing.rings import Ring, Setup


class FrontendLink:
    """The connection to a back end and what both have agreed on.

    Attributes:
        memory: the guest's memory.
        rings: ring 0 receives, ring 1 sends; both may be written raw.
        setup: what the back end is told of each ring by the next start.
        wanted, offered, features: what this side can do, the back end offers, both agreed on.
        wanted_protocol, protocol_offered, protocol: the same of extensions of the protocol.
        mac, mtu, link_up: what the back end's configuration says; None where it was not asked.
        queue_pairs: what GET_QUEUE_NUM answered; None where it was not asked.
    """

    def __init__(
        self,
        where: str | os.PathLike[str] | socket.socket,
        style: str,
        timeout: float,
    ) -> None:
        """Nothing is connected yet; see `VhostFrontend` for the arguments."""
        self.style: Style = STYLES[style]
        self.memory: GuestMemory
        self.rings: list[Ring] = []
        self.setup: list[Setup] = []
        self.wanted = self.offered = self.features = Feature(0)
        self.wanted_protocol = self.style.protocol_features
        self.protocol_offered = self.protocol = ProtocolFeature(0)
        self.mac: str | None = None
        self.mtu: int | None = None
        self.link_up: bool | None = None
        self.queue_pairs: int | None = None
        self._where, self._timeout = where, timeout
        self._connection: Connection | None = None
        self._requests: Connection | None = None
        self._talking = threading.RLock()

    def dial(self) -> None:
        """Connect, without a word.

        Raises:
            FabricError: nobody listens.
        """
        if isinstance(self._where, socket.socket):
            sock = self._where
        else:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                sock.settimeout(self._timeout)
                sock.connect(os.fspath(self._where))
            except OSError as error:
                sock.close()
                raise FabricError(
                    f"vhost-user socket {os.fspath(self._where)}: {error.strerror or error};"
                    " start the back end first"
                ) from None
        self._connection = Connection(sock, self._timeout)

    def disconnect(self) -> None:
        """Lose the connection without a word, as when the front end is killed."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._requests is not None:
            self._requests.close()
            self._requests = None
        for ring in self.rings:
            ring.close_doorbells()

    @property
    def connection(self) -> Connection:
        """The connection, for messages of one's own."""
        if self._connection is None:
            raise FabricError("vhost-user front end: not connected; call connect() first")
        return self._connection

    def tell(
        self, request: int, payload: bytes = b"", fds: Sequence[int] = (), *, ack: bool = False
    ) -> None:
        """Send a message that has no answer of its own.

        Args:
            request: its number.
            payload: what it says.
            fds: descriptors to send along; they stay the caller's.
            ack: wait for an acknowledgement, if the back end can give one.

        Raises:
            FabricError: the back end is gone, or refused.
        """
        asked = ack and bool(self.protocol & ProtocolFeature.REPLY_ACK)
        with self._talking:
            flags = VERSION | (FLAG_NEED_REPLY if asked else 0)
            self.connection.send(request, payload, fds, flags)
            if asked and (status := self._answer(request).u64()):
                raise FabricError(
                    f"vhost-user back end: {name_of(request)} refused ({status}); see its log"
                )

    def ask(self, request: int, payload: bytes = b"", fds: Sequence[int] = ()) -> Message:
        """Send a message and take its answer.

        Raises:
            FabricError: the back end is gone, or the answer is to something else.
        """
        with self._talking:
            self.connection.send(request, payload, fds)
            return self._answer(request)

    def ask_u64(self, request: int) -> int:
        """Ask for a number."""
        return self.ask(request).u64()

    def _answer(self, request: int) -> Message:
        answer = self.connection.receive()
        answer.close()
        if answer.request != request or answer.flags != VERSION | FLAG_REPLY:
            raise FabricError(
                f"vhost-user back end: {name_of(request)} answered by {name_of(answer.request)}"
                f" with flags {answer.flags:#x}; it does not speak the protocol"
            )
        return answer

    def barrier(self) -> None:
        """Wait until the back end has done all that it was told before."""
        self.ask_u64(Request.GET_FEATURES)

    def read_config(self, size: int) -> bytes:
        """The first ``size`` bytes of the device's configuration.

        Raises:
            FabricError: the back end answered another size.
        """
        asked = config_space(0, bytes(size))
        return check_config(asked, self.ask(Request.GET_CONFIG, asked).payload)

    def give_request_socket(self, *, ack: bool) -> None:
        """Let the back end make requests of its own."""
        own, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._requests = Connection(own, self._timeout)
        with other:
            self.tell(Request.SET_BACKEND_REQ_FD, fds=[other.fileno()], ack=ack)

    def give_call(self, ring: Ring, *, ack: bool = False) -> None:
        """Give the back end a (new) descriptor for calls; the first time, make all of them.

        Calls that wait in the old descriptor are lost with it: the back end has to call once.
        """
        sockets, other = self.style.socket_calls, -1
        if sockets or ring.kick_fd < 0:
            other = ring.open_doorbells(sockets=sockets)
        fd = ring.call if isinstance(ring.call, int) else other
        try:
            self.tell(Request.SET_VRING_CALL, u64(ring.index), [fd], ack=ack)
        finally:
            if other >= 0:
                os.close(other)

    def give_kick(self, ring: Ring, *, ack: bool = False) -> None:
        """Give the back end the descriptor for kicks."""
        self.tell(Request.SET_VRING_KICK, u64(ring.index), [ring.kick_fd], ack=ack)

    def give_err(self, ring: Ring) -> None:
        """Give the back end the descriptor for errors."""
        self.tell(Request.SET_VRING_ERR, u64(ring.index), [ring.err_fd])

    def take_call_away(self, ring: Ring) -> None:
        """Tell the back end that nobody waits for calls."""
        self.tell(Request.SET_VRING_CALL, u64(ring.index | NO_FD))

    def backend_request(self, timeout: float = 0.0) -> Message | None:
        """The back end's next request, acknowledged if it asks for that.

        Returns:
            None if there is none within ``timeout`` seconds.
        """
        if self._requests is None or not self._requests.readable(timeout):
            return None
        message = self._requests.receive()
        if message.flags & FLAG_NEED_REPLY:
            self._requests.send(message.request, u64(0), flags=VERSION | FLAG_REPLY)
        return message

    def wait_closed(self, timeout: float = 5.0) -> bool:
        """Whether the back end hangs up within ``timeout`` seconds; what it says is dropped."""
        deadline = time.monotonic() + timeout
        sock = self.connection.sock
        while (left := deadline - time.monotonic()) > 0 and self.connection.readable(left):
            try:
                if not sock.recv(65536):
                    return True
            except OSError:
                return True
        return False
