# SPDX-License-Identifier: Apache-2.0
"""Unmodified iperf3 between two places, each given as the command line that leads there."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mint_vni.errors import NodeError, PlatformError

#: Makes of a program's arguments a command line that runs it in some place.
Place = Callable[[Sequence[str]], list[str]]

_START_S = 5.0
_CONGESTION = "net.ipv4.tcp_congestion_control"
PORT = 5201  # iperf3's own
UDP_PAYLOAD = 1472  # bytes: with UDP, IPv4 and Ethernet headers a 1514-byte frame, 1500 of IP


@dataclass(frozen=True)
class Flow:
    """What one iperf3 run measured.

    Attributes:
        gbps: received, gigabits of payload a second.
        sent_gbps: sent.
        bytes: of payload received.
        retransmits: TCP segments sent again.
        loss_percent: UDP datagrams that did not arrive.
    """

    gbps: float
    sent_gbps: float
    bytes: int
    retransmits: int
    loss_percent: float

    def plus(self, other: Flow) -> Flow:
        """Both together."""
        sent = self.sent_gbps + other.sent_gbps
        lost = self.loss_percent * self.sent_gbps + other.loss_percent * other.sent_gbps
        return Flow(
            self.gbps + other.gbps,
            sent,
            self.bytes + other.bytes,
            self.retransmits + other.retransmits,
            lost / sent if sent else 0.0,
        )


@dataclass(frozen=True)
class Test:
    """What to measure.

    Attributes:
        name: for tables.
        udp: datagrams of 1472 bytes as fast as they can be sent, instead of TCP.
        streams: at once, in one iperf3.
        both: the same the other way at the same time, by a second iperf3.
        congestion: TCP's congestion control at both ends; empty: what each of them has.
    """

    name: str
    udp: bool = False
    streams: int = 1
    both: bool = False
    congestion: str = ""


def measure(
    server: Place,
    client: Place,
    address: str,
    *,
    seconds: float,
    udp: bool = False,
    options: Sequence[str] = (),
    port: int = PORT,
) -> Flow:
    """Run iperf3 once.

    Args:
        server: where the side runs that receives.
        client: where the side runs that sends.
        address: the server's.
        seconds: how long the client sends; iperf3 takes whole ones, at least one.
        udp: datagrams of 1472 bytes as fast as they can be sent, instead of TCP.
        options: further options of the client.
        port: the server's.

    Raises:
        PlatformError: iperf3 is not installed.
        NodeError: iperf3 failed; with what it said.
    """
    asked = ["iperf3", "-4", "-c", address, "-t", str(max(1, round(seconds))), "-J", *options]
    asked += ["-p", str(port)]
    if udp:
        asked += ["-u", "-b", "0", "-l", str(UDP_PAYLOAD)]
    try:
        serving = subprocess.Popen(
            server(["iperf3", "-4", "-s", "-1", "-p", str(port)]),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            stdin=subprocess.DEVNULL,
        )
    except FileNotFoundError as error:
        raise PlatformError(f"{error.filename} is not installed; see: mint doctor") from None
    try:
        return _parse(_ask(client(asked), serving, seconds + 20.0), udp)
    finally:
        serving.terminate()
        serving.wait(10)


def carry_out(test: Test, server: Place, client: Place, address: str, seconds: float) -> Flow:
    """Run a test once; of several flows at once the sum.

    Raises:
        PlatformError: iperf3 is not installed.
        NodeError: iperf3 failed; with what it said.
    """
    with ExitStack() as stack:
        for place in (server, client) if test.congestion else ():
            stack.enter_context(_congestion(place, test.congestion))
        return _carry_out(test, server, client, address, seconds)


@contextmanager
def _congestion(place: Place, name: str) -> Iterator[None]:
    """Have new TCP connections of a network namespace use this congestion control meanwhile.

    Not by iperf3's own option: a socket that was begun with bbr is paced for good.
    """
    before = _sysctl(place, "-n", _CONGESTION)
    _sysctl(place, "-qw", f"{_CONGESTION}={name}")
    try:
        yield
    finally:
        _sysctl(place, "-qw", f"{_CONGESTION}={before}")


def _sysctl(place: Place, *args: str) -> str:
    done = subprocess.run(
        place(["sysctl", *args]),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    if done.returncode != 0:
        raise NodeError(f"sysctl {args[-1]}: {done.stderr.strip() or 'it failed'}")
    return done.stdout.strip()


def paced() -> bool:
    """Whether this machine's TCP sets a timer for each segment (bbr), which can be the limit."""
    with suppress(OSError):
        return Path("/proc/sys", _CONGESTION.replace(".", "/")).read_text().strip() == "bbr"
    return False


def _carry_out(test: Test, server: Place, client: Place, address: str, seconds: float) -> Flow:
    options = ["-P", str(test.streams)] if test.streams > 1 else []
    if not test.both:
        return measure(server, client, address, seconds=seconds, udp=test.udp, options=options)

    def way(port: int, *more: str) -> Flow:
        return measure(
            server,
            client,
            address,
            seconds=seconds,
            udp=test.udp,
            options=[*options, *more],
            port=port,
        )

    with ThreadPoolExecutor(2) as pool:
        one, other = pool.submit(way, PORT), pool.submit(way, PORT + 1, "-R")
        return one.result().plus(other.result())


def _ask(argv: list[str], serving: subprocess.Popen[bytes], limit: float) -> dict[str, Any]:
    """Run the client; while the server is not listening yet, again."""
    deadline = time.monotonic() + _START_S
    while True:
        try:
            done = subprocess.run(
                argv,
                capture_output=True,
                text=True,
                timeout=limit,
                stdin=subprocess.DEVNULL,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise NodeError(f"iperf3 did not end within {limit:.0f} s") from None
        try:
            answer: dict[str, Any] = json.loads(done.stdout)
        except json.JSONDecodeError:
            answer = {"error": done.stderr.strip() or "iperf3 said nothing"}
        error = str(answer.get("error", ""))
        if not error:
            return answer
        early = "refused" in error or "unable to connect" in error
        if not early or time.monotonic() > deadline or serving.poll() is not None:
            raise NodeError(f"iperf3: {error}")
        time.sleep(0.02)


def _parse(answer: dict[str, Any], udp: bool) -> Flow:
    end = answer["end"]
    if not udp:
        got, sent = end["sum_received"], end["sum_sent"]
        return Flow(
            got["bits_per_second"] / 1e9,
            sent["bits_per_second"] / 1e9,
            got["bytes"],
            sent.get("retransmits", 0),
            0.0,
        )
    total = end["sum"]
    loss = float(total["lost_percent"])
    sent_gbps = total["bits_per_second"] / 1e9
    got = end.get("sum_received")
    if got and got.get("bytes"):
        return Flow(got["bits_per_second"] / 1e9, sent_gbps, got["bytes"], 0, loss)
    share = 1 - loss / 100  # iperf3 before 3.13: only what was sent, and how much of it was lost
    return Flow(sent_gbps * share, sent_gbps, int(total["bytes"] * share), 0, loss)
