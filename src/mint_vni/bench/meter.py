# SPDX-License-Identifier: Apache-2.0
"""Round trips and floods between two places: unmodified ping, and mint-meter (native/meter.c)."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mint_vni
from mint_vni.bench.iperf import Place
from mint_vni.bench.runner import quantiles
from mint_vni.errors import NodeError

PORT = 5301
_TIME = re.compile(r"time=([\d.]+) ms")


def program() -> str:
    """Where mint-meter is."""
    for folder in mint_vni.__path__:
        found = Path(folder, "_bin", "mint-meter")
        if found.exists():
            return str(found)
    raise NodeError("mint-meter is not installed; run make setup")


def run(place: Place, args: Sequence[str], limit: float) -> dict[str, Any]:
    """Run mint-meter in a place; its line of JSON.

    Raises:
        NodeError: it failed; with what it said.
    """
    try:
        done = subprocess.run(
            place([program(), *args]),
            capture_output=True,
            text=True,
            timeout=limit,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise NodeError(f"mint-meter {args[0]} did not end within {limit:.0f} s") from None
    lines = done.stdout.splitlines()
    answer: dict[str, Any] = json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {}
    if done.returncode != 0 or "error" in answer or not answer:
        said = answer.get("error") or (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise NodeError(f"mint-meter {args[0]}: {said}")
    return answer


@contextmanager
def serving(place: Place, args: Sequence[str]) -> Iterator[subprocess.Popen[Any]]:
    """mint-meter as a server in a place, from when it is ready to the end of the block."""
    process = subprocess.Popen(
        place([program(), *args]),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stderr is not None
    try:
        if args[0] in ("echo", "sink") and process.stdout.readline().strip() != "ready":
            raise NodeError(f"mint-meter {args[0]}: {process.stderr.read().strip() or 'it ended'}")
        yield process
    finally:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(5)
        process.stdout.close()
        process.stderr.close()


def ask(client: Place, protocol: str, address: str, size: int, count: int) -> dict[str, float]:
    """Requests and answers with a ``mint-meter echo``, one at a time.

    Args:
        client: where the asking side runs.
        protocol: ``tcp`` or ``udp``.
        address: of the other side.
        size: bytes of the request and of the answer.
        count: how many.

    Returns:
        ``p50``, ``p99``, ``p999`` and ``least``, microseconds; ``lost``; ``trips``.
    """
    found = run(client, ["ask", protocol, address, str(PORT), str(size), str(count)], 120.0)
    names = {"p50": "p50", "p99": "p99", "p999": "p999", "least": "min"}
    times = {name: found[key] / 1e3 for name, key in names.items()}
    return times | {"lost": found["lost"], "trips": found["trips"]}


def ping(client: Place, address: str, count: int, interval: float) -> dict[str, float]:
    """Unmodified ping.

    Args:
        client: where it runs.
        address: whom it asks.
        count: how often.
        interval: seconds between two; 0: as soon as an answer is there.

    Returns:
        As :func:`ask`.

    Raises:
        NodeError: no answer at all.
    """
    pace = ["-i", f"{interval:g}"] if interval else ["-A"]
    argv = ["ping", "-4", "-n", "-c", str(count), "-W", "1", *pace, address]
    done = subprocess.run(
        client(argv),
        capture_output=True,
        text=True,
        timeout=count * max(interval, 0.01) + 30,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    times = [round(float(ms) * 1e6) for ms in _TIME.findall(done.stdout)]
    if not times:
        raise NodeError(f"ping {address}: {(done.stderr or done.stdout).strip()[-200:]}")
    return quantiles(times) | {"lost": count - len(times), "trips": len(times)}
