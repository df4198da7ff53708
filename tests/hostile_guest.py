# SPDX-License-Identifier: Apache-2.0
"""A hostile guest: it does to its port's back end what it can, in the ways below.

    python hostile_guest.py SOCKET SOURCE_MAC TARGET_MAC

Orders come by stdin, a line each: ``attack WAY`` or ``burn``. When it burns it takes as much of a CPU
and talks to nobody. It ends with its stdin.
"""

from __future__ import annotations

import os
import random
import select
import sys
import time
from collections.abc import Callable
from contextlib import suppress

from mint_vni.errors import MintError
from mint_vni.testing import INDIRECT, NEXT, TX, WRITE, Desc, Ring, VhostFrontend
from mint_vni.testing.protocol import Request, vring_addr, vring_state

SLICE_S = 0.05  # it looks for orders so often
QUEUE = 64
HEADER = 12


def cut_memory(fe: VhostFrontend) -> None:
    """Shrink a guest's memory to nothing below the back end's mapping, and have it look."""
    kicks = [ring.kick_fd for ring in fe.rings]
    for ring in fe.rings:
        ring.detach()
    fe.memory.truncate(0)
    for fd in kicks:
        os.eventfd_write(fd, 1)


class Guest:
    """Connected, as long as the back end lets it."""

    def __init__(self, path: str, source: str, target: str) -> None:
        self._path, self._rng = path, random.Random(7)
        macs = (bytes.fromhex(mac.replace(":", "")) for mac in (target, source))
        self.frame = b"".join(macs) + b"\x88\xb5" + bytes(1400)

    def frontend(self) -> VhostFrontend:
        """In either style, with rings that wrap soon."""
        style = self._rng.choice(["qemu", "uml"])
        return VhostFrontend(
            self._path, style=style, queue_size=QUEUE, memory="4M", auto_refill=False
        )

    def scribbles(self, end: float) -> None:
        """Descriptors, indices and flags at random, with a kick behind each change."""
        with self.frontend() as fe:
            while time.monotonic() < end:
                for ring in fe.rings:
                    scribble(self._rng, fe, ring)
                    ring.kick()

    def moves_rings(self, end: float) -> None:
        """Frames are on their way while the rings, and the memory, move to elsewhere and nowhere."""
        with self.frontend() as fe:
            while time.monotonic() < end:
                fill(fe, self.frame)
                for ring, setup in zip(fe.rings, fe.setup, strict=True):
                    places = [setup.desc, setup.used, setup.avail]
                    if self._rng.random() < 0.5:
                        places = [self._rng.choice([*places, 0, 1 << 63]) for _ in places]
                    desc, used, avail = places
                    said = vring_addr(ring.index, desc, used, avail, setup.log, setup.flags)
                    fe.tell(Request.SET_VRING_ADDR, said)
                    base = vring_state(ring.index, self._rng.getrandbits(16))
                    fe.tell(Request.SET_VRING_BASE, base)
                    ring.kick()

    def comes_and_goes(self, end: float) -> None:
        """A new connection, memory and rings, again and again."""
        while time.monotonic() < end:
            with self.frontend() as fe:
                fill(fe, self.frame)

    def cuts_memory(self, end: float) -> None:
        """The files shrink below the back end's mapping, with work in the rings."""
        while time.monotonic() < end:
            with self.frontend() as fe:
                fill(fe, self.frame)
                cut_memory(fe)

    def kicks(self, end: float) -> None:
        """Kicks with nothing behind them."""
        with self.frontend() as fe:
            while time.monotonic() < end:
                for ring in fe.rings:
                    ring.kick()

    def floods(self, end: float) -> None:
        """Frames from another's address, as fast as they go, from buffers that are given twice."""
        with self.frontend() as fe:
            ring = fe.rings[TX]
            fill(fe, self.frame)
            while time.monotonic() < end:
                if (ring.next_avail - ring.used_idx) & 0xFFFF <= QUEUE // 2:
                    for head in range(QUEUE // 2):
                        ring.push(head)
                    ring.publish()
                    ring.kick()


def fill(fe: VhostFrontend, frame: bytes) -> None:
    """Buffers for frames that come, and half a ring of frames."""
    fe.refill(QUEUE // 2)
    data = bytes(HEADER) + frame
    place = fe.memory.alloc(len(data))
    fe.memory.write(place, data)
    ring = fe.rings[TX]
    for head in range(QUEUE // 2):
        ring.desc[head] = Desc(place, len(data), 0)
        ring.push(head)
    ring.publish()
    ring.kick()


def scribble(rng: random.Random, fe: VhostFrontend, ring: Ring) -> None:
    """A few words of a ring at random."""
    where = [fe.memory.regions[0].guest, fe.memory.end - 100, 0, 1 << 63, ring.used_addr]
    for _ in range(rng.randint(1, 8)):
        ring.desc[rng.randrange(ring.size)] = Desc(
            rng.choice([*where, fe.memory.regions[0].guest + 64 * rng.randrange(1024)]),
            rng.choice([0, 1, 12, 26, 64, 2000, 1 << 20, 0xFFFF_FFFF]),
            rng.choice([0, 0, NEXT, WRITE, WRITE, WRITE | NEXT, INDIRECT, rng.getrandbits(16)]),
            rng.choice([rng.randrange(ring.size), rng.getrandbits(16)]),
        )
        ring.avail_ring[rng.randrange(ring.size)] = rng.choice([rng.randrange(8), 9, 65_535])
    ring.avail_idx = (ring.avail_idx + rng.randint(0, 9)) & 0xFFFF
    ring.used_event = rng.getrandbits(16)
    ring.avail_flags = rng.getrandbits(16)
    if rng.random() < 0.3:
        ring.used_idx = rng.getrandbits(16)


WAYS: dict[str, Callable[[Guest, float], None]] = {
    "scribbles": Guest.scribbles,
    "moves-rings": Guest.moves_rings,
    "comes-and-goes": Guest.comes_and_goes,
    "cuts-memory": Guest.cuts_memory,
    "kicks": Guest.kicks,
    "floods": Guest.floods,
}


def main(argv: list[str]) -> None:
    guest, ways, done = Guest(*argv), [], 0
    print("ready", flush=True)
    while True:
        if select.select([0], [], [], 0)[0]:
            order = sys.stdin.readline().split()
            if not order:
                print(f"rounds {done}", flush=True)
                return
            ways = [WAYS[name] for name in order[1:]]
        end = time.monotonic() + SLICE_S
        for way in ways:
            with suppress(MintError, OSError):  # the back end may hang up
                way(guest, end if len(ways) == 1 else time.monotonic() + SLICE_S / len(ways))
            done += 1
        while not ways and time.monotonic() < end:
            pass


if __name__ == "__main__":
    main(sys.argv[1:])
