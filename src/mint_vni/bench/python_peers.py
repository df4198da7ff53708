# SPDX-License-Identifier: Apache-2.0
"""Packets between two Python processes: ``python -m mint_vni.bench.python_peers KIND ...``.

A program of its own, so that what it forks and imports touches nobody else. Its arguments are the
kind, bytes, seconds and two cores; it prints one line of JSON.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

_END = b"e"


def _pipe_receiver(cpu: int, end: Connection, report: Connection) -> None:
    os.sched_setaffinity(0, {cpu})
    packets = 0
    while end.recv_bytes() != _END:
        packets += 1
    report.send((packets, time.monotonic()))


def pipe(size: int, seconds: float, cpus: tuple[int, int]) -> dict[str, float]:
    """``multiprocessing.Pipe``."""
    receiving, sending = multiprocessing.Pipe(duplex=False)
    reported, report = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(
        target=_pipe_receiver, args=(cpus[1], receiving, report)
    )
    process.start()
    os.sched_setaffinity(0, {cpus[0]})
    data, start = bytes(size), time.monotonic()
    while time.monotonic() - start < seconds:
        sending.send_bytes(data)
    sending.send_bytes(_END)
    packets, end = reported.recv()
    process.join()
    return {"packets": packets, "seconds": end - start}


def _iceoryx2_service(name: str, size: int) -> Any:
    import ctypes

    import iceoryx2 as iox2

    class Packet(ctypes.Structure):
        _fields_ = (("number", ctypes.c_int64), ("data", ctypes.c_uint8 * (size - 8)))

    iox2.set_log_level(iox2.LogLevel.Error)
    node = iox2.NodeBuilder.new().create(iox2.ServiceType.Ipc)
    service = (
        node.service_builder(iox2.ServiceName.new(name))
        .publish_subscribe(Packet)
        .subscriber_max_buffer_size(256)
        .enable_safe_overflow(False)
        .open_or_create()
    )
    return Packet, node, service


def _iceoryx2_receiver(
    cpu: int, name: str, size: int, ready: Connection, report: Connection
) -> None:
    os.sched_setaffinity(0, {cpu})
    _, _node, service = _iceoryx2_service(name, size)
    subscriber = service.subscriber_builder().buffer_size(256).create()
    ready.send(True)
    packets = 0
    while True:
        sample = subscriber.receive()
        if sample is None:
            continue
        if sample.payload().contents.number < 0:
            break
        packets += 1
        sample.delete()
    report.send((packets, time.monotonic()))


def iceoryx2(size: int, seconds: float, cpus: tuple[int, int]) -> dict[str, float]:
    """iceoryx2's publish and subscribe, polled; a full buffer blocks the publisher."""
    name = f"mint-bench-{os.getpid()}"
    ready, say_ready = multiprocessing.Pipe(duplex=False)
    reported, report = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(
        target=_iceoryx2_receiver, args=(cpus[1], name, size, say_ready, report)
    )
    process.start()
    os.sched_setaffinity(0, {cpus[0]})
    packet, _node, service = _iceoryx2_service(name, size)
    publisher = service.publisher_builder().create()
    ready.recv()
    start, number = time.monotonic(), 0
    while number >= 0:
        number = number + 1 if time.monotonic() - start < seconds else -1
        publisher.loan_uninit().write_payload(packet(number=number)).send()
    packets, end = reported.recv()
    process.join()
    return {"packets": packets, "seconds": end - start}


KINDS: dict[str, Callable[[int, float, tuple[int, int]], dict[str, float]]] = {
    "pipe": pipe,
    "iceoryx2": iceoryx2,
}

if __name__ == "__main__":
    kind, size, seconds, *cores = sys.argv[1:]
    found = KINDS[kind](int(size), float(seconds), (int(cores[0]), int(cores[1])))
    print(json.dumps(found))
