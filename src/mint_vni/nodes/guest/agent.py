# SPDX-License-Identifier: Apache-2.0
"""The agent of a guest node: what outlives its supervisor, its worker and its guest's reboots.

    python -P -m mint_vni.nodes.guest.agent FD

It serves the guest's vhost-user connection (control only: frames are the worker's), reads the
console, and carries the exec channel and, for QEMU, the monitor. So a supervisor or a worker that
is started anew finds all of these where they were, and a guest, which never reconnects (UML),
notices nothing.

**Privileges.** It starts as root, imports what it needs, and then becomes a user of its own with no
capability, no way to get one, and namespaces for network and IPC with nothing in them. What it
holds of the fabric are the sockets that the supervisor hands to it; of the guest, its memory.

**Start.** FD is a SOCK_SEQPACKET socket to the supervisor::

    supervisor -> {"name": …, …} + descriptors    see `Config`: the listening control and vhost-user
                                                  sockets; whatever else it is to keep open
    agent      -> {"ready": true}                 it listens, without privileges
    supervisor -> anything                        the journal is written: it may outlive us

When the supervisor ends before that, so does the agent.

**Requests** come over the control socket (SOCK_SEQPACKET, root only): one JSON object a packet, with
descriptors where said; answered by ``{"ok": true, …}`` or ``{"error": "…"}``:

===========  ======================================================================================
``guest``    + its console, its exec channel, and with ``qmp`` its monitor: a guest is about to boot
``link``     + a SOCK_SEQPACKET socket to a new worker
``status``   what is known, see `Agent.status`
``wait``     the same, as soon as the guest is ready, has a fault or ``seconds`` have passed
``log``      + a file, for which an answer is too long: a JSON object of ``bytes`` bytes is written
             there: what ``agent``, ``console`` and ``sshd`` said last
``console``  the connection becomes the console: packets of bytes, both ways
``exec``     the connection becomes a program's streams, see `mint_vni.nodes.guest.channel`
``power``    ``how``: "power-off" or "reboot": the guest is asked to; ``asked`` says whether it was
``carrier``  ``up``: the interface's link state
``stop``     it ends
===========  ======================================================================================
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import struct
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final

from mint_vni.nodes.guest._launch import (
    CLONE_NEWIPC,
    CLONE_NEWNET,
    check,
    drop_privileges,
    libc,
)
from mint_vni.nodes.guest.channel import CONTROL_BYTES, Bye, GuestChannel, serve_exec
from mint_vni.nodes.guest.console import Console, Scrollback
from mint_vni.nodes.proc import receive_fds
from mint_vni.ports.vhost_user.server import VhostUserServer

__all__ = ["Agent", "Config"]

_FDS_MAX: Final = 8
_PANIC: Final = b"Kernel panic - not syncing"
_PANIC_SECONDS: Final = 0.1
_LOG_BYTES: Final = 64 * 1024
_WAIT_MAX: Final = 600.0
_ACCEPT_AGAIN_S: Final = 0.2


@dataclass(frozen=True)
class Config:
    """What an agent is told at its start.

    Attributes:
        name: The node's.
        uid: The user to become.
        mac: The node's MAC address.
        mtu: Of its interface, bytes.
        offload: Whether its driver is offered checksum and segmentation offload.
        resets_max: How often a QEMU guest may be reset before it is ready.
        qmp: Whether the node is a QEMU.
    """

    name: str
    uid: int
    mac: str
    mtu: int
    offload: bool
    resets_max: int = 0
    qmp: bool = False


@dataclass
class _Boot:
    """What is known of the guest that booted last."""

    number: int = 0
    panicked: bool = False
    stuck: bool = False
    unread: bytes = b""
    ready: bool = False


@dataclass
class Agent:
    """One node's agent."""

    config: Config
    control: socket.socket
    vhost: socket.socket
    boot: _Boot = field(default_factory=_Boot)

    async def run(self) -> None:
        """Serve until somebody asks to stop."""
        loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._channel: GuestChannel | None = None
        self._monitor: Any = None
        self._sshd = Scrollback(_LOG_BYTES)
        self._own = Scrollback(_LOG_BYTES)
        self._console = Console(self._console_said, self._notice)
        config = self.config
        self._server = VhostUserServer(
            self.vhost, mac=config.mac, mtu=config.mtu, offload=config.offload, log=self._note
        )
        self._server.start(loop)
        accepting = asyncio.create_task(self._accept())
        try:
            await self._ended.wait()
        finally:
            accepting.cancel()
            for task in self._tasks:
                task.cancel()
            self._server.close()

    # ------------------------------------------------------------------ what happens

    def _note(self, text: str) -> None:
        """One line of the agent's own log."""
        self._own.append(text.encode(errors="replace")[:1000] + b"\n")

    def _notice(self) -> None:
        """Something changed that somebody may wait for."""
        self.boot.ready |= self._is_ready()
        self._changed.set()
        self._changed = asyncio.Event()

    def _console_said(self, data: bytes) -> None:
        boot = self.boot
        if not boot.panicked and _PANIC in boot.unread + data:
            # Whoever waits for it is to see why, too, which follows.
            asyncio.get_running_loop().call_later(_PANIC_SECONDS, self._panicked, boot)
        boot.unread = (boot.unread + data)[1 - len(_PANIC) :]

    def _panicked(self, boot: _Boot) -> None:
        boot.panicked = True
        self._notice()

    def _guest_said(self, source: str, data: bytes) -> None:
        (self._sshd if source == "sshd" else self._own).append(data)

    def _was_reset(self) -> None:
        """QEMU's guest rebooted, or panicked: a new boot, unless it never gets anywhere."""
        boot, monitor = self.boot, self._monitor
        if not boot.ready and monitor.resets > self.config.resets_max:
            boot.stuck = True
            self._spawn(monitor.execute("quit"))
        elif boot.ready:
            self.boot = _Boot(boot.number)
            monitor.resets = 0
        if self._channel is not None:
            self._channel.reset()
        self._notice()

    def _spawn(self, work: Awaitable[Any]) -> None:
        async def guarded() -> None:
            try:
                await work
            except (OSError, ValueError) as error:
                self._note(f"error: {error}")

        task = asyncio.create_task(guarded())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # ------------------------------------------------------------------ requests

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(self.control)
            except OSError as error:  # no descriptors left, say: whoever waits is served later
                self._note(f"error: a request cannot be served now: {error.strerror}")
                await asyncio.sleep(_ACCEPT_AGAIN_S)
                continue
            connection.setblocking(False)
            self._spawn(self._serve(connection))

    async def _serve(self, connection: socket.socket) -> None:
        kept = False
        try:
            if not _is_root(connection):
                return
            while not kept:
                data, fds = await _receive(connection)
                if not data:
                    return
                kept = await self._answer(connection, _parse(data), fds)
        except (OSError, ValueError, TypeError, KeyError) as error:
            # A request that makes no sense: its sender's mistake, and nobody else's trouble.
            with contextlib.suppress(OSError):
                _send(connection, {"error": str(error)})
        finally:
            if not kept:
                connection.close()

    async def _answer(
        self, connection: socket.socket, request: dict[str, Any], fds: list[int]
    ) -> bool:
        """Answer one request; true if the connection is somebody else's from here on."""
        op = str(request.get("op"))
        if op == "exec":
            _close(fds)
            await serve_exec(self._channel, connection, request, self.config.name)
            return True
        if op == "console":
            _send(connection, {"ok": True})
            await self._console.serve(connection)
            connection.close()
            return True
        try:
            handler = getattr(self, f"_op_{op}", None)
            if handler is None:
                raise ValueError(f"the agent knows no request {op!r}")
            answer = await handler(request, fds)
        finally:
            _close(fds)
        _send(connection, {"ok": True, **(answer or {})})
        return False

    async def _op_guest(self, request: dict[str, Any], fds: list[int]) -> None:
        """A guest is about to boot."""
        qmp = bool(request.get("qmp"))
        if len(fds) != 2 + qmp:
            raise ValueError(f"a guest comes with {2 + qmp} descriptors")
        streams = [socket.socket(fileno=fds.pop(0)) for _ in range(2 + qmp)]
        await self._part()
        self.boot = _Boot(self.boot.number + 1)
        self._console.connect(streams[0])
        self._channel = GuestChannel(
            streams[1],
            name=self.config.name,
            on_log=self._guest_said,
            on_change=self._notice,
        )
        if qmp:
            from mint_vni.nodes.guest.qmp import Monitor

            self._monitor = Monitor(self.config.name, self._was_reset)
            self._monitor.connect(streams[2])

    async def _part(self) -> None:
        """Let go of the guest before."""
        self._console.disconnect()
        if self._channel is not None:
            self._channel.close()
        if self._monitor is not None:
            await self._monitor.close()

    async def _op_link(self, _request: dict[str, Any], fds: list[int]) -> None:
        if len(fds) != 1:
            raise ValueError("a link is one descriptor")
        # After the answer: the worker is given its end by whoever awaits that.
        link = socket.socket(fileno=fds.pop())
        asyncio.get_running_loop().call_soon(self._server.link, link)

    async def _op_status(self, _request: dict[str, Any], _fds: list[int]) -> dict[str, Any]:
        return self.status()

    async def _op_wait(self, request: dict[str, Any], _fds: list[int]) -> dict[str, Any]:
        seconds = min(float(request.get("seconds", 1.0)), _WAIT_MAX)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not self._decided():
                    await self._changed.wait()
        return self.status()

    def _decided(self) -> bool:
        boot = self.boot
        return self._is_ready() or boot.panicked or boot.stuck or not self._console.open

    def _is_ready(self) -> bool:
        channel = self._channel
        return channel is not None and channel.connected and channel.ready

    def status(self) -> dict[str, Any]:
        """Return what is known of the guest.

        Returns:
            ``ready``: its sshd answers; ``guest``: its init talks to us; ``kernel``: what it calls
            itself; ``panicked``, ``stuck`` (reset before it was ready); ``console``: whether that is
            connected; ``bye``: the last words of its init; and what the vhost-user server says.
        """
        channel, boot = self._channel, self.boot
        return {
            **self._server.status(),
            "boots": boot.number,
            "ready": self._is_ready(),
            "guest": channel is not None and channel.connected,
            "kernel": channel.hello.release if channel is not None and channel.hello else "",
            "bye": channel.bye if channel is not None else None,
            "panicked": boot.panicked,
            "stuck": boot.stuck,
            "console": self._console.open,
        }

    async def _op_log(self, _request: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        if len(fds) != 1:
            raise ValueError("a log comes with one descriptor")
        sources = {"console": self._console.log, "sshd": self._sshd, "agent": self._own}
        data = json.dumps({name: log.text() for name, log in sources.items()}).encode()
        written = 0
        while written < len(data):
            written += os.pwrite(fds[0], data[written:], written)
        return {"bytes": len(data)}

    async def _op_power(self, request: dict[str, Any], _fds: list[int]) -> dict[str, Any]:
        how: Bye = "reboot" if request.get("how") == "reboot" else "power-off"
        asked = self._channel is not None and self._channel.power(how)
        if not asked and self._monitor is not None:
            command = "system_powerdown" if how == "power-off" else "system_reset"
            asked = await self._monitor.execute(command)
        return {"asked": asked}

    async def _op_carrier(self, request: dict[str, Any], _fds: list[int]) -> dict[str, Any]:
        up = bool(request["up"])
        if self._monitor is not None:
            return {"done": await self._monitor.execute("set_link", name="vni", up=up)}
        self._server.set_link(up)
        return {"done": True}

    async def _op_stop(self, _request: dict[str, Any], _fds: list[int]) -> None:
        asyncio.get_running_loop().call_later(0.01, self._ended.set)


# ---------------------------------------------------------------------------------- sockets


def _parse(data: bytes) -> dict[str, Any]:
    request = json.loads(data)
    if not isinstance(request, dict):
        raise TypeError("a request is a JSON object")
    return request


def _is_root(connection: socket.socket) -> bool:
    """Tell whether whoever connected is root, or the user that all of this runs as."""
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return struct.unpack("3i", data)[1] in (0, os.geteuid())


async def _receive(connection: socket.socket) -> tuple[bytes, list[int]]:
    """Receive one packet with its descriptors."""
    while True:
        try:
            return receive_fds(connection, CONTROL_BYTES, _FDS_MAX)
        except (BlockingIOError, InterruptedError):
            await _readable(connection)


async def _readable(connection: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not future.done():
            future.set_result(None)

    loop.add_reader(connection, wake)
    try:
        await future
    finally:
        loop.remove_reader(connection)


def _send(connection: socket.socket, message: dict[str, Any]) -> None:
    """Send an answer; a client that does not read it has left."""
    connection.send(json.dumps(message).encode())


def _close(fds: list[int]) -> None:
    while fds:
        os.close(fds.pop())


# ---------------------------------------------------------------------------------- start


def _give_up_privileges(uid: int) -> None:
    if os.geteuid() == 0:
        check("unshare its namespaces", libc.unshare(CLONE_NEWNET | CLONE_NEWIPC))
    drop_privileges(uid)


async def _wait_for_leave(leash: socket.socket, serve: Callable[[], Awaitable[None]]) -> None:
    """Serve; but end when the supervisor does before it has let go."""
    serving = asyncio.ensure_future(serve())
    await asyncio.sleep(0)  # it listens from here on
    leash.send(b'{"ready": true}')
    if not await asyncio.get_running_loop().sock_recv(leash, 1):
        serving.cancel()
    leash.close()
    with contextlib.suppress(asyncio.CancelledError):
        await serving


def main() -> None:
    """Take the descriptors, give up all privileges, serve."""
    leash = socket.socket(fileno=int(sys.argv[1]))
    data, fds = receive_fds(leash, 1 << 16, _FDS_MAX)
    if not data:
        return
    config = Config(**json.loads(data))
    if config.qmp:
        import mint_vni.nodes.guest.qmp  # noqa: F401  # while it can be read
    control, vhost = (socket.socket(fileno=fd) for fd in fds[:2])
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    _give_up_privileges(config.uid)
    for listener in (control, vhost, leash):
        listener.setblocking(False)
    agent = Agent(config, control, vhost)
    asyncio.run(_wait_for_leave(leash, agent.run))


if __name__ == "__main__":
    main()
