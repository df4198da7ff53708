# SPDX-License-Identifier: Apache-2.0
"""An agent's exec channel without the rest of an agent, for the tests of guests."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import subprocess
import tempfile
import threading
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mint_vni.nodes.guest import argv
from mint_vni.nodes.guest.channel import CONTROL_BYTES, GuestChannel, serve_exec
from mint_vni.nodes.guest.script import guest_program
from mint_vni.nodes.proc import process_start_time
from node_bench import until


class Host:
    """Serves `exec` and `console` on a control socket, for one guest at a time."""

    def __init__(self, name: str = "g") -> None:
        self.name = name
        self.directory = Path(tempfile.mkdtemp(prefix="mint-guest-"))
        self.logs: dict[str, bytes] = {"sshd": b"", "guest": b""}
        self.channel: GuestChannel | None = None
        self.console = b""
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._errors: list[dict[str, Any]] = []
        self._loop.set_exception_handler(lambda _, context: self._errors.append(context))
        self._thread = threading.Thread(target=self._loop.run_forever, name="host")
        self._thread.start()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(str(self.directory / argv.CONTROL_SOCKET))
        self._listener.listen(64)
        self._listener.setblocking(False)
        self._loop.call_soon_threadsafe(self._spawn, self._accept)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
        if value is None:
            assert not self._errors, self._errors

    def close(self) -> None:
        async def end() -> None:
            if self.channel is not None:
                self.channel.close()
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        if self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(end(), self._loop).result(10)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(10)
            self._loop.close()
            self._listener.close()

    def call(self, function: Callable[[], Any]) -> Any:
        """Do something in the loop's thread."""

        async def work() -> Any:
            return function()

        return asyncio.run_coroutine_threadsafe(work(), self._loop).result(10)

    def connect(self, stream: socket.socket) -> None:
        """A guest boots, on the other end of this stream."""

        def make() -> None:
            if self.channel is not None:
                self.channel.close()
            self.channel = GuestChannel(stream, name=self.name, on_log=self._log)

        self.call(make)

    def until_connected(self, seconds: float = 10.0) -> None:
        until("the guest says hello", lambda: self.channel and self.channel.connected, seconds)

    def until_ready(self, seconds: float = 30.0) -> None:
        until("the guest is ready", lambda: self.channel and self.channel.ready, seconds)

    def _log(self, source: str, said: bytes) -> None:
        self.logs[source] += said

    def _spawn(self, function: Callable[..., Awaitable[None]], *args: Any) -> None:
        async def work() -> None:
            await function(*args)

        task = self._loop.create_task(work())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self) -> None:
        while True:
            connection, _ = await self._loop.sock_accept(self._listener)
            self._spawn(self._serve, connection)

    async def _serve(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        request = json.loads(await self._loop.sock_recv(connection, CONTROL_BYTES) or b"{}")
        if request.get("op") == "exec":
            await serve_exec(self.channel, connection, request, self.name)
        elif request.get("op") == "console":
            with connection, contextlib.suppress(OSError):  # it has gone
                await self._loop.sock_sendall(connection, b'{"ok": true}')
                while data := await self._loop.sock_recv(connection, CONTROL_BYTES):
                    self.console += data
                    await self._loop.sock_sendall(connection, data.upper())
        else:
            connection.close()


class Service:
    """mint-guest as a plain process of this machine, and the host's end of its channel."""

    def __init__(self, program: Path | None = None) -> None:
        self.host = Host()
        self.program = program or guest_program()
        self.process: subprocess.Popen[bytes]
        self.start()

    def start(self) -> None:
        ours, theirs = socket.socketpair()
        self.host.connect(ours)
        self.process = subprocess.Popen(
            [self.program, "--service", f"fd:{theirs.fileno()}"], pass_fds=[theirs.fileno()]
        )
        theirs.close()
        self.host.until_connected()

    def facts(self) -> dict[str, Any]:
        pid = self.process.pid
        return {
            "name": self.host.name,
            "state_dir": str(self.host.directory),
            "pid": pid,
            "start_time": process_start_time(pid),
        }

    def argv(self, *args: str, **options: Any) -> list[str]:
        return argv.exec_argv(self.facts(), args, **options)

    def run(self, *args: str, **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.argv(*args), capture_output=True, text=True, timeout=30, check=False, **options
        )

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.host.close()


def descendants(pid: int) -> Sequence[int]:
    """Processes below one."""
    found: list[int] = []
    todo = [pid]
    while todo:
        path = Path(f"/proc/{todo.pop()}/task")
        for task in path.glob("*/children"):
            children = [int(word) for word in task.read_text().split()]
            found += children
            todo += children
    return found
