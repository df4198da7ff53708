# SPDX-License-Identifier: Apache-2.0
"""In which order real front ends say what: QEMU 7.2 and User-Mode Linux's ``virtio_uml``.

What differs, and has broken back ends before:

- QEMU does not wait for answers that it did not ask for: several messages lie in the socket at
  once, each with its own descriptors. It enables the rings before it sets them up, stops them by
  GET_VRING_BASE, connects again after a loss, and goes on where the used ring stands.
- UML has every message acknowledged. Its user addresses are guest addresses; it reads the
  configuration from offset 0 in growing sizes; its descriptors for calls are stream sockets; it
  never asks for GET_VRING_BASE: it disables the rings, the last first, and asks for GET_FEATURES to
  know that this has been done. After that the driver may be loaded again, on the same connection.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Protocol

from mint_vni.errors import FabricError
from mint_vni.testing.protocol import (
    NO_LOG,
    Feature,
    ProtocolFeature,
    Request,
    mem_table,
    u64,
    vring_addr,
    vring_state,
)

if TYPE_CHECKING:
    from mint_vni.testing.link import FrontendLink

#: Where the fields of the configuration lie, in bytes: MAC address, link status, MTU.
CONFIG_MAC, CONFIG_STATUS, CONFIG_MTU = 0, 6, 10

# Of these QEMU tells its back end; MAC, STATUS and so on it does itself.
_QEMU_TELLS = ~(Feature.MAC | Feature.STATUS | Feature.CTRL_VQ | Feature.GUEST_ANNOUNCE)


class Style(Protocol):
    """What a kind of front end does at each turn of its life."""

    same_addresses: bool
    socket_calls: bool
    protocol_features: ProtocolFeature

    def connect(self, fe: FrontendLink) -> None:
        """Talk until the features are known and the guest's driver may come."""
        ...

    def start(self, fe: FrontendLink) -> None:
        """The driver has come: tell of memory and rings, and let them run."""
        ...

    def stop(self, fe: FrontendLink) -> None:
        """The driver goes, or the guest resets."""
        ...


def _learn_protocol(fe: FrontendLink, wanted: ProtocolFeature) -> None:
    offered = ProtocolFeature(fe.ask_u64(Request.GET_PROTOCOL_FEATURES))
    fe.protocol_offered = offered
    fe.protocol = offered & wanted


class Qemu:
    """QEMU 7.2 with ``-netdev vhost-user``."""

    same_addresses = False
    socket_calls = False
    protocol_features = (
        ProtocolFeature.MQ
        | ProtocolFeature.REPLY_ACK
        | ProtocolFeature.MTU
        | ProtocolFeature.BACKEND_REQ
        | ProtocolFeature.RESET_DEVICE
    )  # not CONFIG: for network devices it warns about it and leaves it out; STATUS is of 8.1

    def connect(self, fe: FrontendLink) -> None:
        """See `Style`."""
        fe.offered = Feature(fe.ask_u64(Request.GET_FEATURES))
        if fe.offered & Feature.PROTOCOL_FEATURES:
            _learn_protocol(fe, self.protocol_features & fe.wanted_protocol)
            fe.tell(Request.SET_PROTOCOL_FEATURES, u64(fe.protocol))
            if fe.protocol & ProtocolFeature.MQ:
                fe.queue_pairs = fe.ask_u64(Request.GET_QUEUE_NUM)
            if fe.protocol & ProtocolFeature.BACKEND_REQ:
                fe.give_request_socket(ack=True)
        fe.tell(Request.SET_OWNER)
        fe.offered = Feature(fe.ask_u64(Request.GET_FEATURES))
        fe.features = fe.offered & fe.wanted & _QEMU_TELLS
        for ring in fe.rings:
            fe.give_call(ring)
            fe.give_err(ring)
        self._enable(fe)
        if fe.mtu is not None and fe.protocol & ProtocolFeature.MTU:
            fe.tell(Request.NET_SET_MTU, u64(fe.mtu), ack=True)

    @staticmethod
    def _enable(fe: FrontendLink) -> None:
        if fe.offered & Feature.PROTOCOL_FEATURES:
            for ring in fe.rings:
                fe.tell(Request.SET_VRING_ENABLE, vring_state(ring.index, 1))

    def start(self, fe: FrontendLink) -> None:
        """See `Style`."""
        self._enable(fe)
        fe.tell(Request.SET_FEATURES, u64(fe.features))
        fe.tell(Request.SET_MEM_TABLE, mem_table(fe.memory.table()), fe.memory.fds(), ack=True)
        for ring in fe.rings:
            told = fe.setup[ring.index]
            fe.tell(Request.SET_VRING_NUM, vring_state(ring.index, told.num))
            fe.tell(Request.SET_VRING_BASE, vring_state(ring.index, told.base))
            log = 0 if told.log == NO_LOG else told.log
            fe.tell(
                Request.SET_VRING_ADDR,
                vring_addr(ring.index, told.desc, told.used, told.avail, log, told.flags),
            )
            fe.give_kick(ring)
            fe.give_call(ring)

    def stop(self, fe: FrontendLink) -> None:
        """See `Style`."""
        for ring in fe.rings:
            reply = fe.ask(Request.GET_VRING_BASE, vring_state(ring.index, 0))
            if len(reply.payload) != 8:
                raise FabricError("vhost-user back end: GET_VRING_BASE answered by nonsense")
            index, base = struct.unpack("=II", reply.payload)
            if index != ring.index:
                raise FabricError(
                    f"vhost-user back end: GET_VRING_BASE of ring {ring.index} answered for {index}"
                )
            ring.base = base


class Uml:
    """User-Mode Linux 5.4 to 7.2 with ``virtio_uml.device=``."""

    same_addresses = True
    socket_calls = True
    protocol_features = (
        ProtocolFeature.MQ
        | ProtocolFeature.REPLY_ACK
        | ProtocolFeature.BACKEND_REQ
        | ProtocolFeature.CONFIG
    )

    def connect(self, fe: FrontendLink) -> None:
        """See `Style`."""
        fe.tell(Request.SET_OWNER)
        fe.offered = Feature(fe.ask_u64(Request.GET_FEATURES))
        if fe.offered & Feature.PROTOCOL_FEATURES:
            _learn_protocol(fe, self.protocol_features & fe.wanted_protocol)
            fe.tell(Request.SET_PROTOCOL_FEATURES, u64(fe.protocol), ack=True)
            if fe.protocol & ProtocolFeature.BACKEND_REQ:
                fe.give_request_socket(ack=True)
        fe.features = fe.offered & fe.wanted

    def start(self, fe: FrontendLink) -> None:
        """See `Style`."""
        self._configure(fe)
        fe.tell(Request.SET_FEATURES, u64(fe.features), ack=True)
        if fe.features & Feature.STATUS and fe.protocol & ProtocolFeature.CONFIG:
            self.status(fe)
        fe.tell(Request.SET_MEM_TABLE, mem_table(fe.memory.table()), fe.memory.fds(), ack=True)
        for ring in fe.rings:
            told = fe.setup[ring.index]
            fe.give_call(ring, ack=True)
            fe.tell(Request.SET_VRING_NUM, vring_state(ring.index, told.num), ack=True)
            fe.tell(Request.SET_VRING_BASE, vring_state(ring.index, told.base), ack=True)
            fe.tell(
                Request.SET_VRING_ADDR,
                vring_addr(ring.index, told.desc, told.used, told.avail, told.log, told.flags),
                ack=True,
            )
        for ring in fe.rings:
            fe.give_kick(ring, ack=True)
            if fe.features & Feature.PROTOCOL_FEATURES:
                fe.tell(Request.SET_VRING_ENABLE, vring_state(ring.index, 1), ack=True)

    @staticmethod
    def _configure(fe: FrontendLink) -> None:
        """MTU and MAC; each field by a read from offset 0 up to its end.

        Without CONFIG its kernel goes on with whatever it has.
        """
        if not fe.protocol & ProtocolFeature.CONFIG:
            return
        if fe.features & Feature.MTU:
            fe.mtu = int.from_bytes(fe.read_config(CONFIG_MTU + 2)[CONFIG_MTU:], "little")
        if fe.features & Feature.MAC:
            mac = b"".join(fe.read_config(CONFIG_MAC + i + 1)[-1:] for i in range(6))
            fe.mac = mac.hex(":")

    @staticmethod
    def status(fe: FrontendLink) -> int:
        """Read the link's status."""
        data = fe.read_config(CONFIG_STATUS + 2)
        fe.link_up = bool(data[CONFIG_STATUS] & 1)
        return data[CONFIG_STATUS]

    def stop(self, fe: FrontendLink) -> None:
        """See `Style`."""
        for ring in reversed(fe.rings):
            fe.tell(Request.SET_VRING_ENABLE, vring_state(ring.index, 0), ack=True)
        fe.ask_u64(Request.GET_FEATURES)
        for ring in fe.rings:
            ring.close_doorbells()


STYLES: dict[str, Style] = {"qemu": Qemu(), "uml": Uml()}


def check_config(asked: bytes, answer: bytes) -> bytes:
    """What a GET_CONFIG brought, checked as UML checks it.

    Raises:
        FabricError: the back end answered another size.
    """
    if len(answer) != len(asked) or answer[4:8] != asked[4:8]:
        raise FabricError(
            f"vhost-user back end: {len(asked)} bytes of GET_CONFIG answered by {len(answer)};"
            " it has to echo the size"
        )
    return answer[12:]
