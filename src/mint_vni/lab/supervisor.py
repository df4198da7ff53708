# SPDX-License-Identifier: Apache-2.0
"""The supervisor process: one a lab, started by ``mint up`` or by whoever finds the lab without one.

    python -m mint_vni.lab.supervisor up    DIRECTORY FD   bring the lab of DIRECTORY/plan.json up
    python -m mint_vni.lab.supervisor adopt DIRECTORY FD   take over from a dead supervisor

FD is a socket to whoever started it: progress, then a result or an error, in the protocol of
`mint_vni.lab.protocol`. Whoever brought a lab up then says that it is to be kept (any packet): when
the socket closes before that, everything is undone.

It serves ``supervisor.sock`` in the lab's directory (root only). Requests:

==========  ==============================================================================
``status``  the status, see docs/cli.md
``facts``   what it takes to enter each node, by name
``logs``    ``node``: what the node, its sshd and its worker said
``attach``  ``name``, ``mac`` (or null): a raw port; answered with its place, then OPEN and
            ADD_PEER messages of ``native/control.h`` with their descriptors; the connection
            stays as the port's control connection, and the port goes when it closes
``down``    take the lab down; answered when everything is gone
==========  ==============================================================================

The data path does not need this process: when it dies, frames go on, and the next ``mint`` command
starts one that adopts the lab.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import shutil
import signal
import socket
import struct
import sys
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from mint_vni.errors import LabStateError, MintError
from mint_vni.lab import paths, protocol, wire
from mint_vni.lab.adopt import adopt
from mint_vni.lab.clean import undo_all
from mint_vni.lab.engine import Engine, log
from mint_vni.lab.journal import Journal, boot_id
from mint_vni.lab.journal import read as read_journal
from mint_vni.lab.member import Member
from mint_vni.lab.plan import LabPlan

_PACKET = 65_536
_ACCEPT_AGAIN_S = 0.2
_THREADS = 6  # besides two for each node
_SEND_S = 10.0  # a client that does not read for so long is dropped


def _peer_uid(conn: socket.socket) -> int:
    data = conn.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", data)[1])


class Server:
    """Serves one lab until it is down."""

    def __init__(self, engine: Engine) -> None:
        """Listen at the lab's socket."""
        self.engine = engine
        self.done = asyncio.Event()
        self._stopped = False
        path = engine.directory / "supervisor.sock"
        path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        self._listener.bind(str(path))
        os.chmod(path, 0o600)
        self._listener.listen(64)
        self._clients: set[asyncio.Task[None]] = set()
        self._stopping = asyncio.Lock()

    async def accept(self) -> None:
        """Serve clients, for ever."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                conn, _ = await loop.sock_accept(self._listener)
            except OSError as error:  # no descriptors left, say: whoever waits is served later
                log(f"error: a client cannot be served now: {error.strerror}")
                await asyncio.sleep(_ACCEPT_AGAIN_S)
                continue
            conn.setblocking(False)
            task = asyncio.create_task(self._serve(conn))
            self._clients.add(task)
            task.add_done_callback(self._clients.discard)

    async def _serve(self, conn: socket.socket) -> None:
        member: Member | None = None
        try:
            uid = _peer_uid(conn)
            if uid not in (0, os.geteuid()):
                return
            decoder = protocol.Decoder()
            while member is None:
                request = await _receive(conn, decoder)
                member = await self._answer(conn, request, uid)
            await _until_closed(conn)
        except (ConnectionError, OSError, ValueError):
            pass  # the client is gone, or speaks nonsense: its own loss
        finally:
            if member is not None:
                await self.engine.detach(member)
            conn.close()

    async def _answer(
        self, conn: socket.socket, request: dict[str, Any], uid: int
    ) -> Member | None:
        """Answer one request; the new port if it was an attachment that succeeded."""
        op = request.get("op")
        try:
            if op == "attach":
                return await self._attach(conn, request, uid)
            if op == "status":
                result: Any = await self.engine.status()
            elif op == "facts":
                members = self.engine.members.values()
                result = {m.name: m.node.describe() for m in members if m.node}
            elif op == "logs":
                result = await self.engine.logs(str(request.get("node")))
            elif op == "down":
                result = {"problems": await self.stop()}
            else:
                unknown = f"the supervisor knows no request {op!r}; use the same version"
                await _send(conn, protocol.error_message(LabStateError(unknown)))
                return None
        except MintError as error:
            await _send(conn, protocol.error_message(error))
            return None
        except Exception as error:
            if op == "attach" and isinstance(error, OSError):
                raise  # the program that wanted to be a port has gone
            log(f"internal error: {traceback.format_exc()}")
            await _send(conn, protocol.error_message(error))
            return None
        try:
            await _send(conn, {"result": result})
        finally:
            if op == "down":  # also if nobody waits for the answer any more
                self.done.set()
        return None

    async def _attach(self, conn: socket.socket, request: dict[str, Any], uid: int) -> Member:
        engine, name, mac = self.engine, request.get("name"), request.get("mac")
        if engine.state != "ready" or not isinstance(name, str):
            raise LabStateError(
                f"lab {engine.plan.name} is {engine.state}; try again when it is up"
            )
        return await engine.attach(name, mac, conn, uid, partial(self._introduce, conn))

    def _introduce(self, conn: socket.socket, member: Member) -> None:
        """Give a raw port its regions and its peers."""
        engine, regions, index = self.engine, self.engine.regions, member.spec.index
        others = engine.others(member)
        place = {"index": index, "mac": member.spec.mac, "peers": len(others), "lab": engine.lab_id}
        conn.settimeout(_SEND_S)
        protocol.send(conn, {"result": place | {"capacity": engine.regions.capacity}})
        opening = wire.open_message(member.spec, regions.slots, regions.layout_code, 0, 0)
        _send_fds(conn, opening, regions.open_fds(index))
        for other in others:
            data = wire.add_peer_message(other.spec, engine.regions.capacity)
            _send_fds(conn, data, regions.peer_fds(index, other.spec.index))
        conn.setblocking(False)

    async def stop(self) -> list[str]:
        """Take the lab down; what could not be removed."""
        async with self._stopping:
            if self._stopped:
                return []
            problems = await self.engine.down()
            # What is not this process's own: of before it adopted the lab, or of a start cut short.
            entries = read_journal(self.engine.directory / "journal")
            problems += await asyncio.to_thread(undo_all, entries)
            self._stopped = True
            if not problems:
                # The journal first: without it there is no such lab, for whoever looks meanwhile.
                (self.engine.directory / "journal").unlink(missing_ok=True)
                shutil.rmtree(self.engine.directory, ignore_errors=True)
                with contextlib.suppress(OSError):
                    paths.RUN_DIR.rmdir()  # the last lab: leave nothing behind
            self._listener.close()
            for problem in problems:
                log(f"left behind: {problem}")
            return problems


def _send_fds(conn: socket.socket, data: bytes, fds: list[int]) -> None:
    try:
        wire.send(conn, data, fds)
    finally:
        for fd in fds:
            os.close(fd)


async def _receive(conn: socket.socket, decoder: protocol.Decoder) -> dict[str, Any]:
    loop = asyncio.get_running_loop()
    while True:
        packet = await loop.sock_recv(conn, _PACKET)
        if not packet:
            raise ConnectionError("client closed")
        message = decoder.feed(packet)
        if message is not None:
            return message


async def _send(conn: socket.socket, message: dict[str, Any]) -> None:
    loop = asyncio.get_running_loop()
    for packet in protocol.encode(message):
        await asyncio.wait_for(loop.sock_sendall(conn, packet), _SEND_S)


async def _until_closed(conn: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    while await loop.sock_recv(conn, _PACKET):
        pass  # answers of the port to what it was told


class Starter:
    """The connection to whoever started this process."""

    def __init__(self, fd: int) -> None:
        """Take the descriptor over."""
        self._sock = socket.socket(fileno=fd)
        self._sock.set_inheritable(False)  # its end tells the starter of ours, not of a worker's
        self._sock.setblocking(False)

    def progress(self, text: str) -> None:
        """Report a step."""
        self.tell({"progress": text})

    def tell(self, message: dict[str, Any]) -> None:
        """Send a message, if anybody is there."""
        with contextlib.suppress(OSError):
            for packet in protocol.encode(message):
                self._sock.send(packet)

    async def gone(self) -> None:
        """Return when the other side is gone."""
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError):
            while await loop.sock_recv(self._sock, _PACKET):
                pass

    async def keeps(self) -> bool:
        """Whether the other side wants the lab; it has gone otherwise."""
        try:
            return bool(await asyncio.get_running_loop().sock_recv(self._sock, _PACKET))
        except OSError:
            return False

    def close(self) -> None:
        """Close the connection."""
        self._sock.close()


async def _bring_up(engine: Engine, starter: Starter) -> BaseException | None:
    """Bring the lab up; the error if that failed or the starter went away."""
    work = asyncio.create_task(engine.up(starter.progress))
    gone = asyncio.create_task(starter.gone())
    await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
    if not work.done():
        log("whoever started this lab has gone; undoing")
        engine.abort()
        await asyncio.wait({work})
        return work.exception() or LabStateError(f"lab {engine.plan.name}: interrupted")
    gone.cancel()
    await asyncio.wait({gone})  # until the loop has let go of the descriptor
    return work.exception()


async def _run(mode: str, directory: Path, fd: int) -> int:
    starter = Starter(fd)
    plan = LabPlan.from_json(paths.read_json(directory / "plan.json"))
    _allow_descriptors(2 * plan.descriptors)
    journal = Journal(directory / "journal")
    facts = paths.read_json(directory / "state.json") or {}
    lab_id = facts.get("id") or os.urandom(4).hex()
    if mode == "up":
        journal.write("lab", {"id": lab_id, "name": plan.name, "boot": boot_id()})
    engine = Engine(plan, directory, lab_id, journal)
    threads = ThreadPoolExecutor(_THREADS + 2 * len(plan.nodes), "mint")  # a few may be stuck
    asyncio.get_running_loop().set_default_executor(threads)
    if mode == "up":
        engine.save()
        server = Server(engine)
        error = await _bring_up(engine, starter)
        problems = await server.stop() if error else []
    else:
        error, problems = await adopt(engine, facts), []
    if error is not None:
        log(f"error: {error}")
        starter.tell(protocol.error_message(error) | {"problems": problems})
        return 1
    if mode == "adopt":
        server = Server(engine)  # not before: the socket may be a living supervisor's
    accept = asyncio.create_task(server.accept())
    _on_signals(server)
    log(f"lab {plan.name} is {engine.state}")
    starter.tell({"result": {"id": engine.lab_id}})
    if mode == "up" and not await starter.keeps():
        log("whoever started this lab has gone; undoing")
        await server.stop()
        server.done.set()
    starter.close()
    await server.done.wait()
    accept.cancel()
    return 0


def _on_signals(server: Server) -> None:
    async def stop() -> None:
        await server.stop()
        server.done.set()

    loop = asyncio.get_running_loop()
    tasks: list[asyncio.Task[None]] = []
    handler: Callable[[], None] = lambda: tasks.append(asyncio.create_task(stop()))  # noqa: E731
    loop.add_signal_handler(signal.SIGTERM, handler)


def _allow_descriptors(needed: int) -> None:
    """Raise the limits of descriptors as far as the lab needs and we may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if needed <= soft:
        return
    for limits in ((needed, max(needed, hard)), (min(needed, hard), hard)):
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            return


def main() -> int:
    """Entry point; see the module."""
    mode, directory, fd = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    if os.fork():  # nobody's child, so that whoever started it need not wait for its end
        os._exit(0)
    return asyncio.run(_run(mode, directory, fd))


if __name__ == "__main__":
    sys.exit(main())
