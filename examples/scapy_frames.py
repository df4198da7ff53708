# SPDX-License-Identifier: Apache-2.0
"""A program that is one more host of a running lab: it answers ARP and ping, made with scapy.

The lab runs in processes of its own; this program attaches to it from outside and gets a port on
its fabric, as good as any Linux's. So it sees every broadcast, is sent what is meant for its MAC
address, and nothing else. In three terminals::

    sudo .venv/bin/mint up examples/pair.yaml
    sudo .venv/bin/python examples/scapy_frames.py              # prints its address, 10.77.0.254
    sudo .venv/bin/mint exec a -- ping 10.77.0.254

With ``--ping 10.77.0.1`` it also asks by itself: frames go out, answers come in.
"""

from __future__ import annotations

import argparse
import ipaddress
import time
from typing import Any

from scapy.layers.inet import ICMP, IP
from scapy.layers.l2 import ARP, Ether

import mint_vni as mint

ECHO_REPLY, ECHO_REQUEST = 0, 8
ARP_REQUEST, ARP_REPLY = 1, 2
EVERYBODY = "ff:ff:ff:ff:ff:ff"


class Host:
    """An IPv4 host of the simplest kind: no stack, a port and scapy."""

    def __init__(self, port: mint.Port, address: str) -> None:
        self.port = port
        self.address = address
        self.neighbours: dict[str, str] = {}  # IPv4 address to MAC
        self.replies: dict[int, float] = {}  # sequence number of an echo to when it came back

    def transmit(self, packet: Any) -> None:
        """Send a packet; the source MAC must be the port's own, or its receiver drops it."""
        self.port.send(bytes(packet))
        print("out", packet.summary(), flush=True)

    def listen(self, timeout: float) -> int:
        """Take what has come, answer what asks; how many frames that were."""
        frames = self.port.recv_many(64, timeout)
        for frame in frames:
            packet = Ether(frame)
            print("in ", packet.summary(), flush=True)
            if ARP in packet:
                self.on_arp(packet)
            elif ICMP in packet and packet[IP].dst == self.address:
                self.on_icmp(packet)
        return len(frames)

    def on_arp(self, packet: Any) -> None:
        """Remember who that is, and say who we are."""
        arp = packet[ARP]
        self.neighbours[arp.psrc] = arp.hwsrc
        if arp.op == ARP_REQUEST and arp.pdst == self.address:
            self.transmit(
                Ether(src=self.port.mac, dst=arp.hwsrc)
                / ARP(
                    op=ARP_REPLY,
                    hwsrc=self.port.mac,
                    psrc=self.address,
                    hwdst=arp.hwsrc,
                    pdst=arp.psrc,
                )
            )

    def on_icmp(self, packet: Any) -> None:
        """Send an echo back, with its payload; note one that came back to us."""
        icmp = packet[ICMP]
        if icmp.type == ECHO_REPLY:
            self.replies[icmp.seq] = time.monotonic()
        elif icmp.type == ECHO_REQUEST:
            self.transmit(
                Ether(src=self.port.mac, dst=packet.src)
                / IP(src=self.address, dst=packet[IP].src)
                / ICMP(type=ECHO_REPLY, id=icmp.id, seq=icmp.seq)
                / icmp.payload
            )

    def ping(self, target: str, number: int, timeout: float = 2.0) -> float:
        """Ask for a host's MAC if need be, then for an echo.

        Returns:
            The round trip in seconds.

        Raises:
            TimeoutError: No answer came.
        """
        deadline = time.monotonic() + timeout
        if target not in self.neighbours:
            self.transmit(
                Ether(src=self.port.mac, dst=EVERYBODY)
                / ARP(op=ARP_REQUEST, hwsrc=self.port.mac, psrc=self.address, pdst=target)
            )
        while target not in self.neighbours:
            self.listen_until(deadline, f"{target} does not answer ARP")
        sent = time.monotonic()
        self.transmit(
            Ether(src=self.port.mac, dst=self.neighbours[target])
            / IP(src=self.address, dst=target)
            / ICMP(type=ECHO_REQUEST, id=1, seq=number)
            / b"hello over shared memory"
        )
        while number not in self.replies:
            self.listen_until(deadline, f"{target} does not answer ping")
        return self.replies[number] - sent

    def listen_until(self, deadline: float, complaint: str) -> None:
        """Listen once, but not beyond the deadline."""
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError(complaint)
        self.listen(left)


def last_address(lab: mint.Lab) -> str:
    """The last host address of the lab's IPv4 subnet: nodes are numbered from its beginning."""
    given = [node["ipv4"] for node in lab.status()["nodes"] if node["ipv4"]]
    if not given:
        raise SystemExit("this lab has no IPv4; scapy_frames.py speaks nothing else")
    return str(ipaddress.ip_interface(given[0]).network.broadcast_address - 1)


def main() -> None:
    """Attach, say hello, answer until Ctrl-C."""
    parser = argparse.ArgumentParser(description="One more host of a running lab, made with scapy.")
    parser.add_argument("--lab", help="the lab's name; may be left out while one lab runs")
    parser.add_argument("--name", default="probe", help="name of the port (probe)")
    parser.add_argument("--address", help="IPv4 address (the last one of the lab's subnet)")
    parser.add_argument("--ping", metavar="ADDRESS", help="ask this host three times, then leave")
    arguments = parser.parse_args()

    lab = mint.Lab.connect(arguments.lab)
    address = arguments.address or last_address(lab)
    with lab.attach(arguments.name) as port:
        host = Host(port, address)
        print(f"{address} is {port.mac}, attached to lab {lab.name}", flush=True)
        try:
            if arguments.ping:
                for number in range(1, 4):
                    took = host.ping(arguments.ping, number)
                    print(f"{arguments.ping} answered in {took * 1e3:.2f} ms", flush=True)
            else:
                while True:
                    host.listen(timeout=60.0)
        except KeyboardInterrupt:
            print("leaving", flush=True)


if __name__ == "__main__":
    try:
        main()
    except (mint.MintError, TimeoutError) as error:
        raise SystemExit(f"scapy_frames.py: {error}") from None
