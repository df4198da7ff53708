# SPDX-License-Identifier: Apache-2.0
"""Frames between two processes over shared memory: no lab, no root.

::

    .venv/bin/python examples/fabric_only.py

A parent and its child each serve one port of a fabric of two. The parent sends numbered frames in
batches, the child checks that none is missing, doubled or out of order, and answers with a summary.
"""

from __future__ import annotations

import os
import sys

import mint_vni as mint

FRAMES = 100_000
BATCH = 256
PAYLOAD = bytes(46)
ETHERTYPE = bytes.fromhex("88b5")  # for local experiments


def ethernet(src: str, dst: str, number: int) -> bytes:
    """A frame that carries a number."""
    head = bytes.fromhex((dst + src).replace(":", "")) + ETHERTYPE
    return head + number.to_bytes(8, "little") + PAYLOAD


def number_in(frame: bytes) -> int:
    """The number that a frame carries."""
    return int.from_bytes(frame[14:22], "little")


def child(fabric: mint.Fabric) -> None:
    """Receive everything, then send back how many frames were as expected."""
    with fabric.port("y") as port:
        expected = right = 0
        while expected < FRAMES:
            frames = port.recv_many(BATCH, timeout=5.0)
            if not frames:
                break  # nothing for five seconds: the parent has gone
            for frame in frames:
                right += number_in(frame) == expected
                expected += 1
        port.send(ethernet(port.mac, fabric.spec("x").mac, right))


def parent(fabric: mint.Fabric) -> int:
    """Send everything; the child's verdict."""
    with fabric.port("x") as port:
        to = fabric.spec("y").mac
        for start in range(0, FRAMES, BATCH):
            numbers = range(start, min(start + BATCH, FRAMES))
            port.send_many([ethernet(port.mac, to, number) for number in numbers])
        return number_in(port.recv(timeout=30.0))


def main() -> int:
    """Fork, talk, and show what the counters say."""
    # A sender that finds the channel full waits; after stall_us without any progress at the
    # receiver it drops (and counts) instead. The child may start late, so be patient with it.
    with mint.Fabric.create(ports=["x", "y"], stall_us=5_000_000) as fabric:
        # The receiver's ends must be there before the first frame: what is sent to a port that
        # nobody serves is dropped and counted.
        receiver = os.fork()
        if receiver == 0:
            status = 1
            try:
                child(fabric)
                status = 0
            finally:
                os._exit(status)
        while fabric.ends("y", "x").rx_state == "closed":
            os.sched_yield()
        right = parent(fabric)
        os.waitpid(receiver, 0)
        sent = fabric.ends("x", "y").tx
        print(f"{right} of {FRAMES} frames arrived in order")
        print(f"sender: {sent['frames']} frames, {sent['bytes']} bytes, {sent['waits']} waits")
        print(f"dropped: {fabric.drops('x') or 'none'}")
        print(f"memory: {fabric.memory()}")
    return 0 if right == FRAMES else 1


if __name__ == "__main__":
    sys.exit(main())
