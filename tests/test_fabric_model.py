# SPDX-License-Identifier: Apache-2.0
"""All layouts against a model: queues of frames, one for each sender and receiver.

The machine sends, receives, floods, opens, closes and kills ports in any order. The model knows
which frames must come next from whom; at the end every frame that was accepted must have been
received, or counted as dropped, by either side of its channel.
"""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from mint_vni._native import lib

import mint_vni as mint
from fabric_util import BROADCAST
from mint_vni.fabric.config import mac_bytes

NAMES = ["a", "b", "c", "d"]
BRIDGES = ["c", "d"]
STATIONS = [bytes([0x02, 0, 0, 0, 0x77, i]) for i in range(3)]  # MACs behind the bridges
MULTICAST = bytes.fromhex("01005e000001")

names = st.sampled_from(NAMES)
sizes = st.one_of(
    st.integers(14, 200),
    st.integers(14, 2000),
    st.integers(14, 65584),
    st.sampled_from([14, 15, 48, 49, 1514, 65535, 65584]),
)


@dataclass
class Channel:
    """What the model knows of one direction between two ports."""

    queue: deque[tuple[bytes, bool]] = field(default_factory=deque)  # frame, may it be lost?
    accepted: int = 0
    received: int = 0


class FabricMachine(RuleBasedStateMachine):
    """Ports of one fabric; a subclass says which layout and capacity."""

    layout: str
    channel_bytes: int

    @initialize()
    def create(self) -> None:
        self.fabric = mint.Fabric.create(
            NAMES, self.layout, channel_bytes=self.channel_bytes, bridges=BRIDGES
        )
        self.macs = {name: mac_bytes(self.fabric.spec(name).mac) for name in NAMES}
        self.channels: dict[tuple[str, str], Channel] = defaultdict(Channel)
        self.learned: dict[str, dict[bytes, str]] = {name: {} for name in NAMES}
        self.crashed: set[str] = set()
        self.expected_drops: dict[str, dict[str, int]] = {n: defaultdict(int) for n in NAMES}
        self.taken: dict[str, int] = dict.fromkeys(NAMES, 0)
        self.number = 0
        self.ports: dict[str, mint.Port] = {name: self.fabric.port(name) for name in NAMES}

    def teardown(self) -> None:
        if not hasattr(self, "ports"):
            return
        try:
            self._settle()
            self._balance()
        finally:
            self.fabric.close()

    # -- sending ----------------------------------------------------------------------------------

    def _frame(self, dst: bytes, src: bytes, size: int) -> bytes:
        """A frame that no other equals: its number is its EtherType and fills it."""
        self.number += 1
        number = (self.number & 0xFFFF).to_bytes(2, "big")
        return (dst + src + number * (size // 2))[:size]

    def _receivers(self, sender: str, dst: bytes) -> list[str]:
        """Where the model says that a frame goes."""
        others = [n for n in NAMES if n != sender]
        if dst[0] & 1:
            return others
        for name in others:
            if self.macs[name] == dst:
                return [name]
        if dst == self.macs[sender]:
            return []
        if dst in self.learned[sender]:
            return [self.learned[sender][dst]]
        return [n for n in others if n in BRIDGES]

    def _sent(self, sender: str, data: bytes, *, flooded: bool) -> None:
        """A frame was accepted: note where it must arrive."""
        self.taken[sender] += 1
        receivers = self._receivers(sender, data[:6])
        if not receivers:
            self.expected_drops[sender]["self"] += 1
        for receiver in receivers:
            channel = self.channels[sender, receiver]
            channel.accepted += 1
            up = receiver in self.ports or receiver in self.crashed
            if up or flooded:  # a flooded frame is dropped where there is no room
                channel.queue.append((data, flooded or not up))

    def _send(self, sender: str, frames: list[bytes], *, flooded: bool) -> int:
        sent = self.ports[sender].send_many(frames, timeout=0)
        for data in frames[:sent]:
            self._sent(sender, data, flooded=flooded)
        if sent < len(frames):
            self._check_full(sender, frames[sent])
        return sent

    def _check_full(self, sender: str, data: bytes) -> None:
        """A channel may only be full when frames lie in it."""
        assert len(self._receivers(sender, data[:6])) == 1
        waiting = sum(len(channel.queue) for channel in self.channels.values())
        if self.layout == "per-channel":
            waiting = len(self.channels[sender, self._receivers(sender, data[:6])[0]].queue)
        assert waiting, f"{sender} finds no room in an empty channel"

    @precondition(lambda self: self.ports)
    @rule(data=st.data(), receiver=names, batch=st.lists(sizes, min_size=1, max_size=12))
    def send(self, data: Any, receiver: str, batch: list[int]) -> None:
        sender = data.draw(st.sampled_from(sorted(self.ports)))
        if sender == receiver:
            return
        dst, src = self.macs[receiver], self.macs[sender]
        self._send(sender, [self._frame(dst, src, size) for size in batch], flooded=False)

    @precondition(lambda self: self.ports)
    @rule(data=st.data(), receiver=names, size=sizes)
    def send_one(self, data: Any, receiver: str, size: int) -> None:
        sender = data.draw(st.sampled_from(sorted(self.ports)))
        if sender == receiver:
            return
        one = self._frame(self.macs[receiver], self.macs[sender], size)
        try:
            self.ports[sender].send(one, timeout=0)
        except mint.ChannelFull:
            self._check_full(sender, one)
        else:
            self._sent(sender, one, flooded=False)

    @precondition(lambda self: self.ports)
    @rule(data=st.data(), receiver=names, size=st.integers(14, 300), count=st.integers(50, 200))
    def fill(self, data: Any, receiver: str, size: int, count: int) -> None:
        """Many frames, so that channels do get full."""
        sender = data.draw(st.sampled_from(sorted(self.ports)))
        if sender == receiver:
            return
        dst, src = self.macs[receiver], self.macs[sender]
        self._send(sender, [self._frame(dst, src, size) for _ in range(count)], flooded=False)

    @precondition(lambda self: self.ports)
    @rule(data=st.data(), dst=st.sampled_from([BROADCAST, MULTICAST]), size=sizes)
    def flood(self, data: Any, dst: bytes, size: int) -> None:
        sender = data.draw(st.sampled_from(sorted(self.ports)))
        assert self._send(sender, [self._frame(dst, self.macs[sender], size)], flooded=True) == 1

    @precondition(lambda self: self.ports)
    @rule(data=st.data(), station=st.sampled_from(STATIONS), size=sizes)
    def send_to_station(self, data: Any, station: bytes, size: int) -> None:
        """Unknown to those who have not heard of it: then to all bridges, without waiting."""
        sender = data.draw(st.sampled_from(sorted(self.ports)))
        one = self._frame(station, self.macs[sender], size)
        receivers = self._receivers(sender, station)
        self._send(sender, [one], flooded=len(receivers) > 1 or station not in self.learned[sender])

    @precondition(lambda self: any(n in self.ports for n in BRIDGES))
    @rule(data=st.data(), receiver=names, station=st.sampled_from(STATIONS), size=sizes)
    def send_from_station(self, data: Any, receiver: str, station: bytes, size: int) -> None:
        sender = data.draw(st.sampled_from([n for n in BRIDGES if n in self.ports]))
        if sender != receiver:
            self._send(sender, [self._frame(self.macs[receiver], station, size)], flooded=False)

    @precondition(lambda self: self.ports)
    @rule(data=st.data())
    def send_to_self(self, data: Any) -> None:
        sender = data.draw(st.sampled_from(sorted(self.ports)))
        self._send(sender, [self._frame(self.macs[sender], self.macs[sender], 60)], flooded=False)

    @precondition(lambda self: self.ports)
    @rule(data=st.data(), size=st.sampled_from([0, 13, 65585, 70000]))
    def send_nonsense(self, data: Any, size: int) -> None:
        sender = data.draw(st.sampled_from(sorted(self.ports)))
        with pytest.raises(mint.FrameError):
            self.ports[sender].send(bytes(size), timeout=0)
        self.expected_drops[sender]["short" if size < 14 else "long"] += 1

    # -- receiving --------------------------------------------------------------------------------

    @precondition(lambda self: self.ports)
    @rule(data=st.data(), limit=st.integers(1, 256))
    def recv_many(self, data: Any, limit: int) -> None:
        receiver = data.draw(st.sampled_from(sorted(self.ports)))
        frames = self.ports[receiver].recv_many(limit, timeout=0)
        assert len(frames) <= limit
        for one in frames:
            self._arrived(receiver, one)

    @precondition(lambda self: self.ports)
    @rule(data=st.data())
    def recv(self, data: Any) -> None:
        receiver = data.draw(st.sampled_from(sorted(self.ports)))
        try:
            one = self.ports[receiver].recv(timeout=0)
        except mint.ReceiveTimeout:
            due = [s for s in NAMES if any(not lost for _, lost in self._queue(s, receiver))]
            assert not due, f"{receiver} receives nothing, though {due} sent something"
        else:
            self._arrived(receiver, one)

    def _queue(self, sender: str, receiver: str) -> deque[tuple[bytes, bool]]:
        return self.channels[sender, receiver].queue

    def _arrived(self, receiver: str, data: bytes) -> None:
        """It must be the next of one sender, but for those that may have been lost."""
        src = data[6:12]
        senders = [n for n in NAMES if self.macs[n] == src] or BRIDGES
        for sender in senders:
            queue = self._queue(sender, receiver)
            if any(one == data for one, _ in queue):
                break
        else:
            raise AssertionError(f"{receiver} received what nobody sent to it: {data[:20].hex()}")
        while True:
            one, may_be_lost = queue.popleft()
            if one == data:
                break
            assert may_be_lost, f"{receiver}: a frame of {sender} is lost or out of order"
        self.channels[sender, receiver].received += 1
        if src in STATIONS:
            self.learned[receiver][src] = sender

    # -- coming and going -------------------------------------------------------------------------

    @precondition(lambda self: len(self.ports) > 1)
    @rule(data=st.data())
    def close(self, data: Any) -> None:
        name = data.draw(st.sampled_from(sorted(self.ports)))
        self.ports.pop(name).close()
        for sender in NAMES:  # what it has not read may be lost now
            queue = self._queue(sender, name)
            queue.extend([(queue.popleft()[0], True) for _ in range(len(queue))])

    @precondition(lambda self: len(self.ports) > 1)
    @rule(data=st.data())
    def crash(self, data: Any) -> None:
        """As if its process died between two calls: its ends stay open."""
        name = data.draw(st.sampled_from(sorted(self.ports)))
        port = self.ports.pop(name)
        raw, port._port = port._port, None
        lib.mint_port_close(raw)
        port._free()
        self.fabric._closed(port)
        self.crashed.add(name)

    @precondition(lambda self: len(self.ports) < len(NAMES))
    @rule(data=st.data())
    def open(self, data: Any) -> None:
        name = data.draw(st.sampled_from([n for n in NAMES if n not in self.ports]))
        self.ports[name] = self.fabric.port(name)
        self.crashed.discard(name)
        self.learned[name] = {}

    # -- what always holds --------------------------------------------------------------------------

    @invariant()
    def settled(self) -> None:
        """Each frame that was taken is sent or counted as dropped when the call returns."""
        for name in getattr(self, "ports", {}):
            counters = self.fabric.counters(name)
            assert counters["in_frames"] == counters["in_done"] == self.taken[name]
            assert self.fabric.drops(name) == dict(self.expected_drops[name])

    def _settle(self) -> None:
        """Open all, and send and receive until every channel has said what it lost."""
        for name in NAMES:
            if name not in self.ports:
                self.ports[name] = self.fabric.port(name)
                self.learned[name] = {}
        self.crashed.clear()
        for _ in range(3):
            self._receive_all()
            for sender in NAMES:
                for receiver in NAMES:
                    if sender != receiver:
                        last = self._frame(self.macs[receiver], self.macs[sender], 64)
                        assert self._send(sender, [last], flooded=False) == 1
        self._receive_all()

    def _receive_all(self) -> None:
        for name, port in self.ports.items():
            while frames := port.recv_many(timeout=0):
                for one in frames:
                    self._arrived(name, one)

    def _balance(self) -> None:
        """Whatever was accepted was received, or counted as dropped."""
        for (sender, receiver), channel in self.channels.items():
            assert not any(not lost for _, lost in channel.queue), f"{sender}->{receiver}: lost"
            tx = self.fabric.ends(sender, receiver).tx
            rx = self.fabric.ends(receiver, sender).rx
            dropped = sum(n for c in (tx, rx) for key, n in c.items() if key.startswith("drop_"))
            assert channel.accepted == channel.received + dropped, (
                f"{sender}->{receiver}: {tx}, {rx}"
            )
            assert rx["frames"] == channel.received
            assert rx["resets"] == 0, "an honest channel was reset"
            assert tx["frames"] == channel.received + tx["drop_reset"]
            reasons = {key for key, n in tx.items() if key.startswith("drop_") and n}
            assert reasons <= {"drop_full", "drop_down", "drop_reset"}


class PerChannelMachine(FabricMachine):
    layout = "per-channel"
    channel_bytes = 135168  # two of the largest records


class SharedMachine(FabricMachine):
    layout = "shared"
    channel_bytes = 1 << 20


class PooledMachine(FabricMachine):
    layout = "pooled"
    channel_bytes = 135168  # two of the largest records


@pytest.mark.timeout(600)  # a failure takes minutes to be made small
@pytest.mark.parametrize("machine", [PerChannelMachine, SharedMachine, PooledMachine])
def test_like_the_model(machine: type[FabricMachine]) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=100,
            stateful_step_count=50,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        ),
    )
