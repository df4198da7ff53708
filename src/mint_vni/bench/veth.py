# SPDX-License-Identifier: Apache-2.0
"""What people would use instead, between two namespaces of one kernel: a veth pair.

The namespaces have no name: each is held by a process that sleeps, and vanishes with it.
"""

from __future__ import annotations

import os
import select
import subprocess
from collections.abc import Sequence
from functools import partial
from types import TracebackType

from pyroute2 import IPRoute

from mint_vni.errors import PlatformError
from mint_vni.nodes.proc import in_netns

ADDRESSES = ("198.18.0.1", "198.18.0.2")  # RFC 2544: for measurements
_NAMES = ("mintveth0", "mintveth1")


class Namespace:
    """A network namespace, held by a process; a context manager."""

    def __init__(self) -> None:
        """Start the process; returns when the namespace exists.

        Raises:
            PlatformError: it may not be made.
        """
        self._process = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", "echo; exec cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], 5.0)
        if not ready or not os.read(self._process.stdout.fileno(), 1):
            self.close()
            raise PlatformError("no network namespace can be made; run as root")
        self.pid = self._process.pid
        self.netns = os.open(f"/proc/{self.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    def __enter__(self) -> Namespace:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def argv(self, cpu: int | None, args: Sequence[str]) -> list[str]:
        """A command line that runs ``args`` in it, on one core."""
        pinned = [] if cpu is None else ["taskset", "-c", str(cpu)]
        return ["nsenter", f"--net=/proc/{self.pid}/ns/net", *pinned, *args]

    def close(self) -> None:
        """End the process, and the namespace with it."""
        self._process.kill()
        self._process.wait(5)
        for stream in (self._process.stdin, self._process.stdout):
            if stream:
                stream.close()
        if hasattr(self, "netns"):
            os.close(self.netns)


class VethPair:
    """Two namespaces joined by a veth pair; a context manager.

    Each side's programs are pinned to one CPU, as nodes with ``cpus`` are.

    Attributes:
        names: of the two interfaces.
    """

    names = _NAMES

    def __init__(self, cpus: tuple[int, int], mtu: int = 1500) -> None:
        """Nothing is made yet."""
        self._cpus = cpus
        self._mtu = mtu
        self._spaces: list[Namespace] = []

    def __enter__(self) -> VethPair:
        try:
            self._spaces = [Namespace(), Namespace()]
            first, second = self._spaces

            def create() -> None:
                with IPRoute() as ip:
                    peer = {"ifname": _NAMES[1], "net_ns_fd": second.netns}
                    ip.link("add", ifname=_NAMES[0], kind="veth", peer=peer)

            in_netns(first.netns, create)
            for side, space in enumerate(self._spaces):
                in_netns(space.netns, partial(self._configure, side))
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for space in self._spaces:
            space.close()
        self._spaces = []

    def _configure(self, side: int) -> None:
        with IPRoute() as ip:
            index = ip.link_lookup(ifname=_NAMES[side])[0]
            ip.addr("add", index=index, address=ADDRESSES[side], prefixlen=24)
            ip.link("set", index=index, mtu=self._mtu, state="up")
            ip.link("set", index=ip.link_lookup(ifname="lo")[0], state="up")

    def argv(self, side: int, args: Sequence[str]) -> list[str]:
        """A command line that runs ``args`` on one side (0 or 1)."""
        return self._spaces[side].argv(self._cpus[side], args)
