# SPDX-License-Identifier: Apache-2.0
"""Programs that the tests run inside nodes: ``python inside.py COMMAND ARGUMENT...``.

The standard library alone, and nothing of the package. Each prints lines of JSON; what comes first
says that it is ready.

========================================  =====================================================
``sink PORT``                             take one TCP connection, count and hash what comes
``source HOST PORT BYTES RATE``           send so many bytes, at most RATE a second (0: no limit);
                                          BYTES 0: until standard input ends
``exchange HOST PORT BYTES``              send, half-close, receive until the other side closes
``answer PORT BYTES``                     the other side of ``exchange``
``udp-listen PORT COUNT [GROUP]``         receive datagrams, also of a multicast group
``udp-send HOST PORT SIZE COUNT [GSO]``   send datagrams, several with one call if GSO
``udp-flood HOST PORT SIZE RATE``         send datagrams, RATE bytes a second, until input ends
``udp-paced HOST PORT SIZE RATE``         send numbered, checksummed datagrams, RATE a second,
                                          until input ends
``udp-check PORT``                        the other side of ``udp-paced``, until input ends
``raw-listen IFACE ETHERTYPE``            receive one frame of a type, with its VLAN tag
``raw-send IFACE HEX``                    send a frame as it is
``raw-garbage IFACE COUNT SEED``          send frames of random bytes and sizes
========================================  =====================================================
"""

from __future__ import annotations

import hashlib
import json
import random
import select
import socket
import struct
import sys
import time
import zlib
from collections.abc import Callable

CHUNK = 1 << 17
TIMEOUT = 60.0
QUIET = 0.5

SOL_UDP, UDP_SEGMENT = 17, 103
SOL_PACKET, PACKET_AUXDATA, TP_STATUS_VLAN_VALID = 263, 8, 16
ETH_P_ALL = 3
SO_RCVBUFFORCE = 33
IPV6_ADD = socket.IPV6_JOIN_GROUP


def say(**facts: object) -> None:
    """One line of JSON."""
    print(json.dumps(facts), flush=True)


def family_of(host: str) -> socket.AddressFamily:
    """The family of an address in numbers."""
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def listen(port: int) -> socket.socket:
    """Listen for TCP over IPv4 and IPv6."""
    server = socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    server.settimeout(TIMEOUT)
    return server


def connect(host: str, port: int) -> socket.socket:
    return socket.create_connection((host, port), timeout=TIMEOUT)


def receive_all(sock: socket.socket, progress: bool = False) -> tuple[int, str, float]:
    """Receive until the end: bytes, SHA-256, longest pause in seconds."""
    digest, total, pause, reported = hashlib.sha256(), 0, 0.0, 0
    last = time.monotonic()
    while data := sock.recv(CHUNK):
        now = time.monotonic()
        pause, last = max(pause, now - last) if total else 0.0, now
        digest.update(data)
        total += len(data)
        if progress and total - reported >= 1 << 20:
            reported = total
            say(received=total)
    return total, digest.hexdigest(), pause


def sink(port: str) -> None:
    with listen(int(port)) as server:
        say(ready=int(port))
        sock, peer = server.accept()
        sock.settimeout(TIMEOUT)
        say(accepted=peer[0])
        total, digest, pause = receive_all(sock, progress=True)
        say(done=total, sha256=digest, pause=pause)


def source(host: str, port: str, amount: str, rate: str) -> None:
    sock = connect(host, int(port))
    block = random.Random(7).randbytes(CHUNK)
    digest, total, start = hashlib.sha256(), 0, time.monotonic()
    limit, speed = int(amount), int(rate)
    say(connected=sock.getsockname()[1])
    while total < limit or (not limit and not select.select([sys.stdin], [], [], 0)[0]):
        data = block[: limit - total] if limit and limit - total < CHUNK else block
        sock.sendall(data)
        digest.update(data)
        total += len(data)
        if speed:
            time.sleep(max(0.0, start + total / speed - time.monotonic()))
    sock.shutdown(socket.SHUT_WR)
    say(sent=total, sha256=digest.hexdigest())


def exchange(host: str, port: str, amount: str) -> None:
    sock = connect(host, int(port))
    data = random.Random(8).randbytes(int(amount))
    sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)
    total, digest, _ = receive_all(sock)
    say(sent=hashlib.sha256(data).hexdigest(), received=digest, bytes=total)


def answer(port: str, amount: str) -> None:
    with listen(int(port)) as server:
        say(ready=int(port))
        sock, _ = server.accept()
        sock.settimeout(TIMEOUT)
        total, digest, _ = receive_all(sock)
        data = random.Random(9).randbytes(int(amount))
        sock.sendall(data)
        sock.close()
        say(sent=hashlib.sha256(data).hexdigest(), received=digest, bytes=total)


def udp_listen(port: str, count: str, group: str = "") -> None:
    sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    sock.bind(("", int(port)))
    sock.settimeout(TIMEOUT)
    if ":" in group:
        index = socket.if_nametoindex("vni0")
        request = socket.inet_pton(socket.AF_INET6, group) + struct.pack("=I", index)
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_ADD, request)
    elif group:
        request = socket.inet_aton(group) + struct.pack("=4si", b"", socket.if_nametoindex("vni0"))
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, request)
    say(ready=int(port))
    digest, sizes = hashlib.sha256(), []
    for _ in range(int(count)):
        data, peer = sock.recvfrom(1 << 16)
        digest.update(data)
        sizes.append(len(data))
    say(done=len(sizes), sha256=digest.hexdigest(), bytes=sum(sizes), peer=peer[0])


def udp_send(host: str, port: str, size: str, count: str, gso: str = "") -> None:
    sock = socket.socket(family_of(host), socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    if host == "255.255.255.255":  # there is no route for it
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"vni0")
    index = socket.if_nametoindex("vni0")
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
    else:
        request = struct.pack("=4s4si", b"", b"", index)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, request)
    generator, digest, each = random.Random(10), hashlib.sha256(), int(size)
    datagrams = [generator.randbytes(each) for _ in range(int(count))]
    for data in datagrams:
        digest.update(data)
    if gso:
        sock.setsockopt(SOL_UDP, UDP_SEGMENT, each)
        datagrams = [b"".join(datagrams)]
    for data in datagrams:
        sock.sendto(data, (host, int(port)))
    say(sent=int(count), sha256=digest.hexdigest())


def udp_flood(host: str, port: str, size: str, rate: str) -> None:
    sock = socket.socket(family_of(host), socket.SOCK_DGRAM)
    data, sent, start = bytes(int(size)), 0, time.monotonic()
    say(ready=True)
    while not select.select([sys.stdin], [], [], 0)[0]:
        sent += sock.sendto(data, (host, int(port)))
        time.sleep(max(0.0, start + sent / int(rate) - time.monotonic()))
    say(sent=sent)


def udp_paced(host: str, port: str, size: str, rate: str) -> None:
    sock = socket.socket(family_of(host), socket.SOCK_DGRAM)
    filler, number, start = random.Random(12).randbytes(int(size) - 12), 0, time.monotonic()
    say(ready=True)
    while not select.select([sys.stdin], [], [], 0)[0]:
        body = struct.pack("!Q", number) + filler
        sock.sendto(struct.pack("!I", zlib.crc32(body)) + body, (host, int(port)))
        number += 1
        time.sleep(max(0.0, start + number / int(rate) - time.monotonic()))
    say(sent=number)


def udp_check(port: str) -> None:
    sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 8 << 20)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    sock.bind(("", int(port)))
    say(ready=int(port))
    got = bad = again = late = 0
    expected, seen = 0, set()
    pause, last = 0.0, 0.0
    awaited = [sock, sys.stdin]
    while True:
        ready = select.select(awaited, [], [], TIMEOUT if len(awaited) > 1 else QUIET)[0]
        if not ready:
            break
        if sys.stdin in ready:
            awaited = [sock]  # told to end, once nothing comes any more
            continue
        data = sock.recv(1 << 16)
        now = time.monotonic()
        pause, last = max(pause, now - last) if got else 0.0, now
        checksum, number = struct.unpack_from("!IQ", data)
        got += 1
        bad += zlib.crc32(data[4:]) != checksum
        again += number in seen
        seen.add(number)
        late += number < expected
        expected = max(expected, number + 1)
    missing = sorted(set(range(expected)) - seen)[:8]
    say(
        got=got,
        distinct=len(seen),
        corrupted=bad,
        repeated=again,
        late=late,
        pause=pause,
        missing=missing,
    )


def raw_listen(interface: str, ethertype: str) -> None:
    # All types, since the kernel takes tags off before it hands frames to whoever wants one type.
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    sock.bind((interface, ETH_P_ALL))
    sock.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
    sock.settimeout(TIMEOUT)
    say(ready=ethertype)
    while True:
        data, extra, _, sender = sock.recvmsg(1 << 16, 1 << 8)
        if sender[2] == socket.PACKET_OUTGOING or data[12:14].hex() != ethertype:
            continue
        status, _, _, _, _, tag, _ = struct.unpack_from("=IIIHHHH", extra[0][2])
        say(frame=data.hex(), tag=tag if status & TP_STATUS_VLAN_VALID else None)
        return


def raw_send(interface: str, frame: str) -> None:
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    sock.bind((interface, 0))
    say(sent=sock.send(bytes.fromhex(frame)))


def raw_garbage(interface: str, count: str, seed: str) -> None:
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    sock.bind((interface, 0))
    generator = random.Random(seed)
    for _ in range(int(count)):
        sock.send(generator.randbytes(generator.randint(14, 1514)))
    say(sent=int(count))


COMMANDS: dict[str, Callable[..., None]] = {
    "sink": sink,
    "source": source,
    "exchange": exchange,
    "answer": answer,
    "udp-listen": udp_listen,
    "udp-send": udp_send,
    "udp-flood": udp_flood,
    "udp-paced": udp_paced,
    "udp-check": udp_check,
    "raw-listen": raw_listen,
    "raw-send": raw_send,
    "raw-garbage": raw_garbage,
}

if __name__ == "__main__":
    COMMANDS[sys.argv[1]](*sys.argv[2:])
