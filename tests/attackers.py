# SPDX-License-Identifier: Apache-2.0
"""Hostile ports for tests: tests/attack/attacker.c in the place of a port of a lab."""

from __future__ import annotations

import contextlib
import os
import subprocess
from types import TracebackType
from typing import Self

import cbuild
from mint_vni.lab import Lab, wire
from mint_vni.lab.client import Client

ATTACK = cbuild.ROOT / "tests" / "attack"
PLAIN = cbuild.Build("plain", ("-O2",))

#: What attacker.c can do, by the digit that chooses it.
WAYS = {
    "any-words": 0,
    "changing-records": 1,
    "spoofed-flood": 2,
    "resets": 3,
    "demands": 4,
    "bell-storm": 5,
    "wants": 6,
    "scribble": 7,
    "false-progress": 8,
}


class Place:
    """A port of a lab, taken by its descriptors: what its worker would get, and nothing else.

    Attributes:
        index: the port's.
        message: OPEN, with the control region's descriptor.
        peers: ADD_PEER messages, each with the descriptors for one peer.
    """

    def __init__(self, lab: Lab, name: str) -> None:
        """Attach."""
        self._stack = contextlib.ExitStack()
        client = Client(lab.name)
        self._stack.callback(client.close)
        facts = client.request("attach", name=name, mac=None)
        self.index: int = facts["index"]
        self.capacity: int = facts["capacity"]
        self.message = wire.receive(client.sock)
        self._stack.callback(self.message.close)
        self.peers: dict[int, wire.Message] = {}
        for _ in range(facts["peers"]):
            message = wire.receive(client.sock)
            self._stack.callback(message.close)
            assert message.spec is not None
            self.peers[message.spec.index] = message

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def descriptors(self) -> list[int]:
        """All of them."""
        return [*self.message.fds, *(fd for peer in self.peers.values() for fd in peer.fds)]


class Attacker:
    """The attacking process; it burns until told to attack."""

    def __init__(self, place: Place) -> None:
        """Nothing is started yet."""
        self._place = place

    def __enter__(self) -> Self:
        place = self._place
        program = cbuild.program(ATTACK / "attacker.c", PLAIN)
        victims = [
            ":".join(map(str, [index, *message.fds])) for index, message in place.peers.items()
        ]
        assert place.message.spec is not None
        numbers = map(str, (place.index, place.message.slots, place.capacity, place.message.fds[0]))
        self.process = subprocess.Popen(
            [str(program), *numbers, place.message.spec.mac, *victims],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=place.descriptors(),
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"ready\n"
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()  # its end
        self.process.wait(10)
        self.process.stdout.close()

    def _order(self, letters: str) -> None:
        assert self.process.poll() is None, "the attacker died"
        assert self.process.stdin is not None
        os.write(self.process.stdin.fileno(), letters.encode())

    def attack(self, way: str = "") -> None:
        """Attack, in one way or in all in turn."""
        self._order(f"{WAYS[way]}a" if way else "*a")

    def burn(self, way: str = "") -> None:
        """Do the same to nobody."""
        self._order(f"{WAYS[way]}b" if way else "*b")
