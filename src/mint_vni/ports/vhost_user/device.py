# SPDX-License-Identifier: Apache-2.0
"""The virtio-net device that a front end sees, as far as an agent keeps it.

It holds what the guest handed over (memory, descriptors, addresses), so that each worker can be
told all of it, and answers the front end's messages.

**Life of a queue.** Its size, addresses and descriptors come in any order: QEMU enables queues
before it sets them up, UML sets the addresses of a queue anew while it is enabled. A queue *runs*
in the worker once it has a size, addresses and a memory table, and the front end has sent its kick
message (vhost-user, "Starting and stopping rings"), until the front end asks for its base or
disconnects. Where it goes on is read from its used ring, by the worker, not from SET_VRING_BASE:
chains are used in order here, so both say the same, and the ring also knows after a worker died.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from mint_vni.ports.vhost_user import protocol
from mint_vni.ports.vhost_user.link import LinkError, WorkerLink
from mint_vni.ports.vhost_user.protocol import (
    BackendRequest,
    Config,
    Feature,
    ProtocolError,
    ProtocolFeature,
    Region,
    Request,
    VringAddress,
    VringState,
)

__all__ = ["QUEUES", "VhostDevice"]

#: Queues of a device: 0 to the guest, 1 from it. More would take VIRTIO_NET_F_MQ or _CTRL_VQ.
QUEUES: Final = 2

_CONFIG_BYTES: Final = 256
_LINK_UP: Final = 1  # VIRTIO_NET_S_LINK_UP
_ALWAYS: Final = (
    Feature.MTU
    | Feature.MAC
    | Feature.MRG_RXBUF
    | Feature.STATUS
    | Feature.ANY_LAYOUT
    | Feature.INDIRECT_DESC
    | Feature.EVENT_IDX
    | Feature.VERSION_1
    | Feature.PROTOCOL_FEATURES
)
_OFFLOADS: Final = (
    Feature.CSUM
    | Feature.GUEST_CSUM
    | Feature.GUEST_TSO4
    | Feature.GUEST_TSO6
    | Feature.GUEST_ECN
    | Feature.HOST_TSO4
    | Feature.HOST_TSO6
    | Feature.HOST_ECN
)
_PROTOCOL_FEATURES: Final = (
    ProtocolFeature.REPLY_ACK
    | ProtocolFeature.NET_MTU
    | ProtocolFeature.BACKEND_REQ
    | ProtocolFeature.CONFIG
)


@dataclass
class _Queue:
    size: int = 0
    address: VringAddress | None = None
    kick: int | None = None
    call: int | None = None
    err: int | None = None
    started: bool = False
    enabled: bool = False

    def release_worker(self) -> None:
        """Take what waits in the call descriptor.

        An eventfd is one file for all who have it: the guest can fill it and undo O_NONBLOCK, and
        then the worker's signal waits, also when the guest is gone. RWF_NOWAIT: so that ours can't.
        """
        if self.call is not None:
            with contextlib.suppress(OSError):
                os.preadv(self.call, [bytearray(8)], -1, os.RWF_NOWAIT)

    def close(self) -> None:
        for fd in (self.kick, self.call, self.err):
            if fd is not None:
                os.close(fd)
        self.kick = self.call = self.err = None


class VhostDevice:
    """One device; see the module."""

    def __init__(self, mac: str, mtu: int, *, offload: bool, log: Callable[[str], None]) -> None:
        """Begin with no guest and no worker.

        Args:
            mac: Its MAC address.
            mtu: Its MTU, bytes.
            offload: Whether checksum and segmentation offload are offered.
            log: Called with one line for each thing worth knowing.
        """
        self._mac = bytes.fromhex(mac.replace(":", ""))
        self._mtu = mtu
        self._log = log
        self._offered = int(_ALWAYS | _OFFLOADS if offload else _ALWAYS)
        self._link: WorkerLink | None = None
        self._link_up = True
        self._queues = [_Queue() for _ in range(QUEUES)]
        self._memory: list[tuple[Region, int]] = []
        self._requests: socket.socket | None = None  # to the front end
        self._features = 0
        self._protocol_features = 0
        self._handlers: dict[int, Callable[[bytes, list[int]], bytes | None]] = {
            Request.GET_FEATURES: self._get_features,
            Request.SET_FEATURES: self._set_features,
            Request.SET_OWNER: _nothing,
            Request.RESET_OWNER: self._reset_owner,
            Request.SET_MEM_TABLE: self._set_mem_table,
            Request.SET_VRING_NUM: self._set_vring_num,
            Request.SET_VRING_ADDR: self._set_vring_addr,
            Request.SET_VRING_BASE: self._set_vring_base,
            Request.GET_VRING_BASE: self._get_vring_base,
            Request.SET_VRING_KICK: self._set_vring_kick,
            Request.SET_VRING_CALL: self._set_vring_call,
            Request.SET_VRING_ERR: self._set_vring_err,
            Request.GET_PROTOCOL_FEATURES: self._get_protocol_features,
            Request.SET_PROTOCOL_FEATURES: self._set_protocol_features,
            Request.GET_QUEUE_NUM: self._get_queue_num,
            Request.SET_VRING_ENABLE: self._set_vring_enable,
            Request.SEND_RARP: _nothing,  # the guest announces itself
            Request.NET_SET_MTU: self._net_set_mtu,
            Request.SET_BACKEND_REQ_FD: self._set_backend_req_fd,
            Request.GET_CONFIG: self._get_config,
            Request.SET_CONFIG: _refuse_config,
        }

    # -- the front end -------------------------------------------------------------------------

    def handle(
        self, request: int, payload: bytes, fds: list[int], *, need_reply: bool
    ) -> bytes | None:
        """Do what a message says.

        Args:
            request: Its type.
            payload: What follows the header.
            fds: The descriptors that came along; those that are kept are taken out.
            need_reply: Whether it wants an acknowledgement.

        Returns:
            What to send back; None: nothing.

        Raises:
            ProtocolError: It is nonsense; end the connection.
        """
        handler = self._handlers.get(request)
        if handler is None:
            name = next((r.name for r in Request if r == request), f"type {request}")
            if not need_reply:
                raise ProtocolError(f"message {name} is for something that was not offered")
            return protocol.reply(request, protocol.u64(1))
        failed = False
        answer = None
        try:
            answer = handler(payload, fds)
        except LinkError as error:
            self._worker_failed(error)
            failed = error.errno is not None
        if answer is not None:
            return protocol.reply(request, answer)
        if need_reply and self._protocol_features & ProtocolFeature.REPLY_ACK:
            return protocol.reply(request, protocol.u64(int(failed)))
        return None

    def reset(self) -> None:
        """Forget the guest: it disconnected."""
        for queue in self._queues:
            queue.release_worker()
        self._with_link(WorkerLink.clear)
        self._drop_memory()
        for queue in self._queues:
            queue.close()
        self._queues = [_Queue() for _ in range(QUEUES)]
        self._features = self._protocol_features = 0
        if self._requests is not None:
            self._requests.close()
            self._requests = None

    def _queue(self, index: int) -> _Queue:
        if index >= QUEUES:
            raise ProtocolError(f"there is no queue {index}; this device has {QUEUES}")
        return self._queues[index]

    def _get_features(self, payload: bytes, _fds: list[int]) -> bytes:
        _expect_empty(payload)
        return protocol.u64(self._offered)

    def _set_features(self, payload: bytes, _fds: list[int]) -> None:
        features = protocol.parse_u64(payload)
        if features & ~self._offered:
            raise ProtocolError(f"features {features & ~self._offered:#x} were not offered")
        self._features = features
        if not features & Feature.PROTOCOL_FEATURES:
            # "Ring states": without it queues are enabled from their start.
            for queue in self._queues:
                queue.enabled = True
        if self._link is not None:
            self._link.features(features)
            self._run_all()

    def _reset_owner(self, payload: bytes, _fds: list[int]) -> None:
        _expect_empty(payload)
        for index, queue in enumerate(self._queues):
            queue.started = False
            if self._link is not None:
                self._link.stop(index)

    def _set_mem_table(self, payload: bytes, fds: list[int]) -> None:
        regions = protocol.parse_regions(payload)
        if len(fds) != len(regions):
            raise ProtocolError(f"{len(fds)} descriptors for {len(regions)} regions of memory")
        self._drop_memory()
        self._memory = list(zip(regions, fds, strict=True))
        fds.clear()
        try:
            self._tell_memory()
        except LinkError as error:
            if error.errno is not None:  # not kept: no later worker would take it either
                self._drop_memory()
                self._with_link(WorkerLink.clear)
            raise

    def _set_vring_num(self, payload: bytes, _fds: list[int]) -> None:
        state = VringState.parse(payload)
        self._queue(state.index).size = state.value

    def _set_vring_addr(self, payload: bytes, _fds: list[int]) -> None:
        address = VringAddress.parse(payload)
        self._queue(address.index).address = address
        self._run(address.index)

    def _set_vring_base(self, payload: bytes, _fds: list[int]) -> None:
        self._queue(VringState.parse(payload).index)  # see the module

    def _get_vring_base(self, payload: bytes, _fds: list[int]) -> bytes:
        index = VringState.parse(payload).index
        queue = self._queue(index)
        base = None
        if self._link is not None:
            try:
                base = self._link.stop(index)
            except LinkError as error:
                self._worker_failed(error)
        if base is None or not queue.started:
            base = self._used_index(queue)
        queue.started = False
        return VringState(index, base).pack()

    def _set_vring_kick(self, payload: bytes, fds: list[int]) -> None:
        queue = self._take_fd("kick", payload, fds)
        self._queues[queue].started = True
        self._run(queue)

    def _set_vring_call(self, payload: bytes, fds: list[int]) -> None:
        index = self._take_fd("call", payload, fds)
        queue = self._queues[index]
        if queue.started and self._link is not None:
            self._link.call(index, queue.call)

    def _set_vring_err(self, payload: bytes, fds: list[int]) -> None:
        self._take_fd("err", payload, fds)

    def _take_fd(self, name: str, payload: bytes, fds: list[int]) -> int:
        """Keep a queue's descriptor in place of the one before; return the queue."""
        index, comes = protocol.parse_vring_fd(payload)
        queue = self._queue(index)
        if len(fds) != comes:
            raise ProtocolError(f"{len(fds)} {name} descriptors for queue {index}")
        old = getattr(queue, name)
        setattr(queue, name, fds.pop() if fds else None)
        if old is not None:
            os.close(old)
        return index

    def _get_protocol_features(self, payload: bytes, _fds: list[int]) -> bytes:
        _expect_empty(payload)
        return protocol.u64(_PROTOCOL_FEATURES)

    def _set_protocol_features(self, payload: bytes, _fds: list[int]) -> None:
        features = protocol.parse_u64(payload)
        if features & ~_PROTOCOL_FEATURES:
            raise ProtocolError(f"protocol features {features:#x} were not all offered")
        self._protocol_features = features

    def _get_queue_num(self, payload: bytes, _fds: list[int]) -> bytes:
        _expect_empty(payload)
        return protocol.u64(1)  # pairs

    def _set_vring_enable(self, payload: bytes, _fds: list[int]) -> None:
        state = VringState.parse(payload)
        self._queue(state.index).enabled = bool(state.value)
        if self._link is not None:
            self._link.enable(state.index, bool(state.value))

    def _net_set_mtu(self, payload: bytes, _fds: list[int]) -> None:
        mtu = protocol.parse_u64(payload)
        if mtu > self._mtu:
            self._log(f"the guest uses an MTU of {mtu}, the lab one of {self._mtu}")

    def _set_backend_req_fd(self, payload: bytes, fds: list[int]) -> None:
        _expect_empty(payload)
        if len(fds) != 1:
            raise ProtocolError(f"{len(fds)} descriptors for the back end's requests")
        if self._requests is not None:
            self._requests.close()
        try:
            self._requests = socket.socket(fileno=fds[0])
        except OSError:
            raise ProtocolError("the channel for the back end's requests is no socket") from None
        fds.clear()

    def _get_config(self, payload: bytes, _fds: list[int]) -> bytes:
        wanted = Config.parse(payload)
        if wanted.offset + wanted.size > _CONFIG_BYTES:
            return wanted.pack(b"")
        return wanted.pack(self._config()[wanted.offset : wanted.offset + wanted.size])

    def _config(self) -> bytes:
        """The configuration space: section 5.1.4."""
        status = _LINK_UP if self._link_up else 0
        fields = struct.pack("<6sHHH", self._mac, status, 1, self._mtu)
        return fields.ljust(_CONFIG_BYTES, b"\0")

    def set_link(self, up: bool) -> None:
        """Plug the guest's cable in, or pull it, and tell a front end that listens."""
        self._link_up = up
        if self._requests is None or not self._protocol_features & ProtocolFeature.CONFIG:
            return
        message = protocol.backend_message(BackendRequest.CONFIG_CHANGE_MSG)
        with contextlib.suppress(OSError):  # a front end that does not read is its own loss
            self._requests.send(message, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)

    # -- the worker ----------------------------------------------------------------------------

    def link(self, link: WorkerLink) -> None:
        """Serve the guest by this worker from now on."""
        self.unlink()
        self._link = link
        try:
            link.features(self._features)
            self._tell_memory()
            link.start()
        except LinkError as error:
            self._worker_failed(error)

    def unlink(self) -> None:
        """The worker is gone; what the guest handed over is kept for the next."""
        if self._link is not None:
            self._link.close()
            self._link = None

    def link_readable(self) -> None:
        """The worker said something unasked: what it still owed, or that it has ended."""
        self._with_link(WorkerLink.catch_up)

    @property
    def linked(self) -> bool:
        """Whether there is a worker."""
        return self._link is not None

    def _worker_failed(self, error: LinkError) -> None:
        self._log(str(error))
        if error.errno is None:
            self.unlink()

    def _with_link(self, action: Callable[[WorkerLink], None]) -> None:
        if self._link is None:
            return
        try:
            action(self._link)
        except LinkError as error:
            self._worker_failed(error)

    def _drop_memory(self) -> None:
        for _, fd in self._memory:
            os.close(fd)
        self._memory = []

    def _tell_memory(self) -> None:
        """Tell the worker of the guest's memory, and then of the queues in it."""
        if self._link is None:
            return
        self._link.clear()
        for region, fd in self._memory:
            self._link.memory(region, fd)
        self._run_all()

    def _run_all(self) -> None:
        """Have the worker serve what queues there are.

        One that it refuses waits for another address, and is not the fault of what was said last.
        """
        for index in range(QUEUES):
            try:
                self._run(index)
            except LinkError as error:
                self._worker_failed(error)

    def _run(self, index: int) -> None:
        """Have the worker serve a queue, if all of it is known."""
        queue = self._queues[index]
        if self._link is None or not queue.started or not self._memory or queue.address is None:
            return
        if not queue.size:
            return
        at = queue.address
        self._link.ring(
            index,
            queue.size,
            (at.desc, at.avail, at.used),
            kick=queue.kick,
            call=queue.call,
            enabled=queue.enabled,
        )

    def _used_index(self, queue: _Queue) -> int:
        """Where the used ring says that the queue is; 0 if that is not to be had."""
        if queue.address is None:
            return 0
        at = queue.address.used + 2
        for region, fd in self._memory:
            if region.uva <= at and at + 2 <= region.uva + region.size:
                try:
                    data = os.pread(fd, 2, at - region.uva + region.offset)
                except (OSError, OverflowError):
                    return 0
                return int.from_bytes(data, "little")
        return 0

    def status(self) -> dict[str, Any]:
        """What is known of the guest's device."""
        return {
            "features": [f.name for f in Feature if self._features & f],
            "memory_bytes": sum(region.size for region, _ in self._memory),
            "queues": [
                {"size": q.size, "started": q.started, "enabled": q.enabled} for q in self._queues
            ],
            "link_up": self._link_up,
            "linked": self.linked,
            "late": self._link is not None and self._link.late,
        }


def _nothing(_payload: bytes, _fds: list[int]) -> None:
    """Do nothing: the message is of no consequence here."""


def _refuse_config(payload: bytes, _fds: list[int]) -> None:
    """The configuration space of a modern device is read-only (section 5.1.4.2)."""
    Config.parse(payload)


def _expect_empty(payload: bytes) -> None:
    if payload:
        raise ProtocolError(f"{len(payload)} bytes where a message has no payload")
