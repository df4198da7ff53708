# SPDX-License-Identifier: Apache-2.0
"""A guest's agent and whoever asks it, without a guest: the two of them alone, or one with a fake."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mint_vni.errors import NodeError
from mint_vni.nodes.external import ExternalNode
from mint_vni.nodes.guest import argv, exec_client
from mint_vni.nodes.guest.agent import Agent, Config
from mint_vni.nodes.guest.agent_client import AGENT_SOCKET, AgentClient, connect_in, listen_in
from mint_vni.nodes.guest.console import CONSOLE_BYTES
from mint_vni.nodes.guest.launch import Confinement, Running
from mint_vni.nodes.guest.node import GuestNode, Streams
from mint_vni.nodes.proc import process_start_time, receive_fds
from node_bench import Bench, soon, until

# ------------------------------------------------------------------ agents that hang


def in_time(action: Callable[[], Any], seconds: float = 10.0) -> Any:
    """What an action returns or raises; it is a failure that it takes longer."""
    done: list[Any] = []

    def work() -> None:
        try:
            done.append((action(), None))
        except BaseException as error:  # noqa: BLE001  # raised by whoever waits
            done.append((None, error))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    assert done, f"it still waits after {seconds} s"
    result, error = done[0]
    if error is not None:
        raise error
    return result


@pytest.fixture
def silent(tmp_path: Path) -> Iterator[socket.socket]:
    """An agent that takes no connections, with as many waiting as may; its listener."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(listen_in(tmp_path, AGENT_SOCKET, socket.SOCK_SEQPACKET, 0))
        with contextlib.suppress(BlockingIOError):
            while True:
                client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
                stack.enter_context(client)
                client.connect(str(tmp_path / AGENT_SOCKET))
        yield listener


def test_an_agent_that_takes_no_connections_is_not_waited_for(
    silent: socket.socket, tmp_path: Path
) -> None:
    begin = time.monotonic()
    with pytest.raises(NodeError, match="node g: its agent does not answer 'status'"):
        in_time(lambda: AgentClient("g", tmp_path).request("status", wait=0.3))
    assert time.monotonic() - begin >= 0.3, "it has its time, though others wait"


def test_an_agent_that_takes_connections_late_is_waited_for(
    silent: socket.socket, tmp_path: Path
) -> None:
    def let_in() -> None:
        silent.accept()[0].close()

    late = threading.Timer(0.2, let_in)
    late.start()
    with in_time(lambda: connect_in(tmp_path, AGENT_SOCKET, socket.SOCK_SEQPACKET, 5)) as client:
        assert client.gettimeout() == 5
    late.join()


@pytest.mark.parametrize("script", ["exec_client", "console_client"])
def test_a_command_does_not_wait_for_ever_for_a_silent_agent(
    silent: socket.socket, tmp_path: Path, script: str
) -> None:
    request = json.dumps(
        {"name": "g", "socket": str(tmp_path / AGENT_SOCKET), "env": {}, "cwd": None}
        | {"tty": False, "log": False}
    )
    code = (
        f"import sys; sys.path.insert(0, {str(argv._HERE)!r}); sys.argv[1:] = [{request!r}, 'true']\n"
        f"import exec_client; exec_client.ANSWER_SECONDS = 1\n"
        f"import {script}; sys.exit({script}.main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=10, check=False
    )
    assert done.returncode == exec_client.CANNOT_ENTER
    assert "its agent: it takes no connections" in done.stderr


# ------------------------------------------------------------------ agents that answer nonsense


LOGS_BYTES = 8192


class Liar:
    """An agent that answers every request with the same bytes, and says them in its logs."""

    def __init__(self, directory: Path) -> None:
        self.answer = b""
        self.asked = 0
        self._listener = listen_in(directory, AGENT_SOCKET, socket.SOCK_SEQPACKET, os.geteuid())
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                with connection:
                    data, fds = receive_fds(connection, 65536, 1)
                    for fd in fds:
                        os.pwrite(fd, self.answer.ljust(LOGS_BYTES), 0)
                        os.close(fd)
                    if data:
                        self.asked += 1
                        connection.send(self.answer)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self._listener.close()


@pytest.fixture
def liar(tmp_path: Path) -> Iterator[Liar]:
    made = Liar(tmp_path)
    yield made
    made.close()


NONSENSE = {
    "no JSON": b"\xff{",
    "a list": b"[]",
    "a number": b"1" * 10_000,
    "nested": b"[" * 60_000,
    "nested in an object": b'{"ok": ' + b"[" * 60_000,
}


@pytest.mark.parametrize("what", NONSENSE)
def test_an_answer_that_is_nonsense_is_the_nodes_error(
    liar: Liar, tmp_path: Path, what: str
) -> None:
    liar.answer = NONSENSE[what]
    with pytest.raises(NodeError, match="node g: its agent answers nonsense to 'status'"):
        AgentClient("g", tmp_path).request("status")


def test_an_error_of_any_kind_is_one_sentence(liar: Liar, tmp_path: Path) -> None:
    liar.answer = json.dumps({"error": ["x" * 100_000]}).encode()
    with pytest.raises(NodeError) as raised:
        AgentClient("g", tmp_path).request("status")
    assert len(str(raised.value)) < 1100


ODD: list[dict[str, Any]] = [
    {},
    {"ok": True},
    {"agent": 1, "console": None, "sshd": [], "asked": "", "ready": 0},
    {"agent": "\ud800", "ready": [1], "agent_pid": 1, "console": {}, "panicked": "no"},
    {"deep": json.loads("[" * 200 + "]" * 200), "ready": {}},
    {"bytes": 5 << 20},
    {"bytes": -1},
    {"bytes": 10},  # zeros
]


class SomeGuest(GuestNode):
    """A guest of no kind in particular."""

    kind = "uml"
    overhead = 0

    def _find(self) -> None: ...

    def _write_files(self) -> None: ...

    def _confinement(self, streams: Streams) -> Confinement:
        raise NotImplementedError(streams)


@pytest.fixture(params=[SomeGuest, ExternalNode])
def node(request: pytest.FixtureRequest, tmp_path: Path, liar: Liar) -> SomeGuest | ExternalNode:
    """A node whose agent is a liar; it and its guest are this process, for want of others."""
    bench = Bench(tmp_path, names=("g",))
    made: SomeGuest | ExternalNode = request.param(bench.plan("g"), bench.context("g"))
    made.pid, made.start_time = os.getpid(), process_start_time(os.getpid()) or 0
    made._state = "running"
    made._agent = AgentClient("g", tmp_path, Running(made.pid, made.start_time))
    return made


@pytest.mark.parametrize("answer", ODD)
def test_a_node_gets_along_with_any_answer(
    node: SomeGuest | ExternalNode, liar: Liar, answer: dict[str, Any]
) -> None:
    """Whoever has taken an agent over spoils its own node's status, and nothing else."""
    liar.answer = json.dumps({"bytes": LOGS_BYTES} | answer).encode()
    for text in node.logs().values():
        assert text.encode() is not None
    status = node.status()
    assert json.loads(json.dumps(status)) == status
    assert status["guest"]["agent_pid"] == os.getpid()
    assert status["memory_enforced_by"] == "none", "one of the documented words"
    assert "deep" not in status["guest"]
    if isinstance(node, SomeGuest):
        with pytest.raises(NodeError, match="node g is not ready"):
            node.wait_ready(soon(0.2))
        asked = liar.asked
        node._power_off(soon(0.2))
        assert liar.asked == asked + 1


@pytest.mark.parametrize("node", [SomeGuest], indirect=True)
def test_an_agent_that_does_not_wait_is_not_asked_without_end(node: SomeGuest, liar: Liar) -> None:
    liar.answer = json.dumps({"ready": False, "console": True}).encode()
    with pytest.raises(NodeError, match="is not ready in time: its kernel did not boot"):
        node.wait_ready(soon(1.0))
    assert liar.asked < 40


# ------------------------------------------------------------------ an agent without a guest


class Listener(socket.socket):
    """A listener of a process that has no descriptors left, now and then."""

    exhausted = False

    def accept(self) -> tuple[socket.socket, Any]:
        if self.exhausted:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return super().accept()


class Served:
    """An agent in a thread of this process."""

    def __init__(self, directory: Path) -> None:
        self.client = AgentClient("g", directory)
        self.control, self.vhost = (
            Listener(socket.AF_UNIX, kind) for kind in (socket.SOCK_SEQPACKET, socket.SOCK_STREAM)
        )
        for listener, name in ((self.control, AGENT_SOCKET), (self.vhost, "vhost.sock")):
            listener.bind(str(directory / name))
            listener.listen(16)
            listener.setblocking(False)
        config = Config("g", os.geteuid(), "02:00:00:00:00:01", 1500, offload=True)
        self.agent = Agent(config, self.control, self.vhost)
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        until("it serves", lambda: hasattr(self.agent, "_server"))

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_until_complete(self.agent.run())
        self.loop.run_until_complete(asyncio.sleep(0))

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.agent._ended.set)
        self._thread.join(10)
        self.loop.close()
        self.control.close()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    made = Served(tmp_path)
    yield made
    made.close()


def test_logs_arrive_whole_whatever_is_in_them(served: Served) -> None:
    """As JSON they are six times as long: more than a packet can be on a stock Linux."""
    console = "".join(map(chr, range(32))) * (CONSOLE_BYTES // 32)
    with_lines = console.replace("\r\n", "\n")

    def say() -> None:
        served.agent._console.log.append(console.encode())
        served.agent._sshd.append(b"\xff" * 100_000)
        served.agent._own.append(b"\x1b" * 100_000)

    served.loop.call_soon_threadsafe(say)
    logs = served.client.logs()
    assert logs["console"] == with_lines
    assert set(logs["sshd"]) == {"\ufffd"} and len(logs["sshd"]) == 64 << 10
    assert logs["agent"] == "\x1b" * (64 << 10)


def test_the_answer_with_the_logs_is_short(served: Served) -> None:
    """So it fits, whatever limits the machine sets to packets."""
    served.loop.call_soon_threadsafe(served.agent._console.log.append, b"\0" * CONSOLE_BYTES)
    fd = os.memfd_create("logs", os.MFD_CLOEXEC)
    try:
        with connect_in(served.client.directory, AGENT_SOCKET, socket.SOCK_SEQPACKET) as sock:
            socket.send_fds(sock, [b'{"op": "log"}'], [fd])
            answer = sock.recv(4 << 20)
        assert len(answer) < 100
        size = json.loads(answer)["bytes"]
        assert size == os.stat(fd).st_size
        assert json.loads(os.pread(fd, size, 0))["console"] == "\0" * CONSOLE_BYTES
    finally:
        os.close(fd)
    with pytest.raises(NodeError, match="a log comes with one descriptor"):
        served.client.request("log")


def test_an_agent_without_descriptors_serves_later(served: Served) -> None:
    assert served.client.request("status")["connected"] is False
    served.control.exhausted = True
    late = threading.Timer(0.5, lambda: setattr(served.control, "exhausted", False))
    late.start()
    assert served.client.request("status")["connected"] is False
    late.join()
    assert b"cannot be served now: Too many open files" in served.agent._own._data
