# SPDX-License-Identifier: Apache-2.0
"""The packet buffers against a model: hypothesis drives both and compares.

The model is a queue of frames for each channel. Whatever the order of sending, flooding and
receiving, with frames of any length and buffers that run full: each channel's frames come out whole
and in order, none is lost, none comes twice, and the counters agree.
"""

from __future__ import annotations

from collections import defaultdict, deque
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from fabric_util import BROADCAST, frame
from mint_vni.errors import ChannelFull
from mint_vni.fabric import Fabric
from mint_vni.fabric.config import FRAME_MAX, FRAME_MIN, mac_text

NAMES = ["x", "y", "z"]
# Small, so that buffers run full; the one buffer of all is less so, as shares of it may overlap.
CHANNEL = {"per-channel": 135_168, "shared": 524_288}

names = st.sampled_from(NAMES)
# Lengths around what matters: the least, a line, a page, an MTU, the greatest; and any.
lengths = st.one_of(
    st.sampled_from([FRAME_MIN, 48, 49, 112, 113, 1514, 4080, FRAME_MAX - 1, FRAME_MAX]),
    st.integers(FRAME_MIN, 2000),
    st.integers(FRAME_MIN, FRAME_MAX),
)


class Buffers(RuleBasedStateMachine):
    """Three ports and their six channels."""

    layout = "per-channel"

    def __init__(self) -> None:
        super().__init__()
        self.fabric = Fabric.create(NAMES, self.layout, CHANNEL[self.layout], poll_us=0)
        self.ports = {name: self.fabric[name] for name in NAMES}
        self.by_mac = {port.mac: name for name, port in self.ports.items()}
        self.queues: dict[tuple[str, str], deque[bytes]] = defaultdict(deque)
        self.sent: dict[str, int] = defaultdict(int)
        self.received: dict[str, int] = defaultdict(int)
        self.number = 0

    def teardown(self) -> None:
        self.fabric.close()

    def make(self, src: str, dst: str | bytes, length: int) -> bytes:
        """A frame unlike every other one, of this length (a header alone carries no number)."""
        self.number += 1
        pattern = self.number.to_bytes(4, "big") * (length // 4 + 1)
        to: Any = self.ports[dst] if isinstance(dst, str) else dst
        return frame(self.ports[src], to, pattern[: length - FRAME_MIN])

    @rule(src=names, dst=names, length=lengths)
    def send(self, src: str, dst: str, length: int) -> None:
        if src == dst:
            return
        data = self.make(src, dst, length)
        try:
            self.ports[src].send(data, timeout=0)
        except ChannelFull:
            waiting = any(self.queues[pair] for pair in self.queues if pair[1] == dst)
            assert waiting, "a receiver that has nothing to take has room"
            return
        self.queues[src, dst].append(data)
        self.sent[src] += 1

    @rule(src=names, dst=names, batch=st.lists(lengths, max_size=40))
    def send_many(self, src: str, dst: str, batch: list[int]) -> None:
        if src == dst:
            return
        frames = [self.make(src, dst, length) for length in batch]
        accepted = self.ports[src].send_many(frames, timeout=0)
        assert 0 <= accepted <= len(frames)
        self.queues[src, dst].extend(frames[:accepted])
        self.sent[src] += accepted

    @rule(src=names, length=st.integers(FRAME_MIN, 1514))
    def flood(self, src: str, length: int) -> None:
        data = self.make(src, BROADCAST, length)
        others = [name for name in NAMES if name != src]
        before = {o: self.fabric.ends(src, o).tx["drop_full"] for o in others}
        self.ports[src].send(data, timeout=0)
        self.sent[src] += 1
        for other in others:  # a flooded frame does not wait: it is dropped and counted
            if self.fabric.ends(src, other).tx["drop_full"] == before[other]:
                self.queues[src, other].append(data)

    @rule(dst=names, limit=st.integers(1, 64))
    def receive(self, dst: str, limit: int) -> None:
        frames = self.ports[dst].recv_many(limit, timeout=0)
        waiting = sum(len(q) for (_, to), q in self.queues.items() if to == dst)
        assert frames or not waiting, "frames wait, and none comes"
        for data in frames:
            src = self.by_mac[mac_text(data[6:12])]
            expected = self.queues[src, dst]
            assert expected, f"a frame from {src} that was not sent, or comes twice"
            assert data == expected.popleft(), f"channel {src} -> {dst}: not the next frame"
            self.received[dst] += 1

    @invariant()
    def counters_agree(self) -> None:
        for name in NAMES:
            counters = self.fabric.counters(name)
            assert counters["in_frames"] == counters["in_done"] == self.sent[name]
            assert counters["out_frames"] == self.received[name]


class SharedBuffer(Buffers):
    layout = "shared"


@pytest.mark.parametrize("machine", [Buffers, SharedBuffer], ids=["per-channel", "shared"])
def test_against_the_model(machine: type[RuleBasedStateMachine]) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=150,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        ),
    )
