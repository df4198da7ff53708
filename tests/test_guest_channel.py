# SPDX-License-Identifier: Apache-2.0
"""Programs in a guest over the exec channel: mint-guest as a plain process, no kernel of its own."""

from __future__ import annotations

import contextlib
import fcntl
import gc
import hashlib
import json
import os
import re
import shlex
import signal
import socket
import struct
import subprocess
import termios
import threading
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from guest_bench import Service, descendants
from mint_vni.nodes.guest import argv, channel, wire
from mint_vni.nodes.guest.channel import WINDOW
from mint_vni.nodes.guest.script import guest_program
from mint_vni.nodes.guest.wire import Type
from node_bench import PYTHON, Terminal, until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="takes root")


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    made = Service()
    yield made
    made.close()
    assert not made.host._errors


def sessions(service: Service) -> int:
    assert service.host.channel is not None
    return len(service.host.channel._sessions)


def ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


# ------------------------------------------------------------------------------ plain programs


def test_streams_and_status(service: Service) -> None:
    done = service.run("sh", "-c", "cat; echo said >&2; exit 7", input="hello\n")
    assert (done.stdout, done.stderr, done.returncode) == ("hello\n", "said\n", 7)
    assert service.run("sh", "-c", "kill -9 $$").returncode == -signal.SIGKILL
    missing = service.run("no-such-program")
    assert (missing.returncode, missing.stderr.split(":")[0]) == (127, "no-such-program")
    assert service.run("/etc/passwd").returncode == 126
    assert service.run("printf", "%s|", "a b", "", "$HOME", "--", "*").stdout == "a b||$HOME|--|*|"


def test_environment(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "hunter2")
    monkeypatch.setenv("TERM", "vt100")
    seen = dict(line.split("=", 1) for line in service.run("env").stdout.splitlines())
    assert set(seen) <= {
        *("PATH", "TERM", "LANG", "LANGUAGE", "LC_ALL", "LC_CTYPE", "COLORTERM", "TZ"),
        *("HOME", "USER", "LOGNAME", "SHELL"),
    }
    assert (seen["HOME"], seen["TERM"], seen["USER"]) == ("/root", "vt100", "root")
    line = service.argv("sh", "-c", "pwd; echo $X", cwd="/usr", env={"X": "y z"})
    assert subprocess.run(line, capture_output=True, text=True, check=True).stdout == "/usr\ny z\n"
    assert service.run("pwd").stdout == "/root\n"
    nowhere = subprocess.run(
        service.argv("true", cwd="/no/where"), capture_output=True, check=False
    )
    assert nowhere.returncode == 125
    assert b"/no/where" in nowhere.stderr


def test_a_closed_directory_in_the_path_hides_no_missing_program(service: Service) -> None:
    """As in a guest, whose root can't look into the host's private directories."""
    line = service.argv("no-such-program", env={"PATH": "/proc/1/fd/0:/usr/bin"})
    assert subprocess.run(line, capture_output=True, check=False).returncode == 127


def test_odd_arguments(service: Service) -> None:
    odd = ["", "a=b", "\n", "ü", "\udcff", "x" * 100_000]
    code = "import os, sys; os.write(1, repr([os.fsencode(a) for a in sys.argv[1:]]).encode())"
    said = service.run(PYTHON, "-c", code, *odd).stdout
    assert said == repr([os.fsencode(argument) for argument in odd])
    many = [str(number) for number in range(20_000)]
    assert service.run("sh", "-c", "echo $#", "sh", *many).stdout == "20000\n"
    done = service.run("true", *(["y" * 100_000] * 11))
    assert done.returncode == 125
    assert "too long" in done.stderr


def test_the_streams_a_program_is_not_given(service: Service) -> None:
    line = shlex.join(service.argv("sh", "-c", "cat; echo out; echo err >&2; exit 3"))
    done = subprocess.run(["sh", "-c", f"exec {line} <&- >&- 2>&-"], check=False, timeout=10)
    assert done.returncode == 3


def test_input_that_nobody_reads(service: Service) -> None:
    done = service.run("true", input="x" * 1_000_000)
    assert done.returncode == 0
    done = service.run("sh", "-c", "head -c 5; exec 0<&-; sleep 0.1; echo on", input="y" * 500_000)
    assert done.stdout == "yyyyyon\n"


def test_output_that_nobody_reads(service: Service) -> None:
    line = shlex.join(service.argv("sh", "-c", "echo $$ >&2; exec yes"))
    done = subprocess.run(
        ["bash", "-c", f"{line} | head -n 1; echo ${{PIPESTATUS[0]}}"],
        capture_output=True,
        text=True,
        timeout=10,
        check=True,
    )
    assert done.stdout == f"y\n{128 + signal.SIGPIPE}\n"
    pid = int(done.stderr)
    until("yes has ended", lambda: ended(pid))


def test_what_is_left_in_the_background_is_not_waited_for(service: Service) -> None:
    begin = time.monotonic()
    done = service.run("sh", "-c", "sleep 60 & echo $!")
    assert time.monotonic() - begin < 5
    pid = int(done.stdout)
    assert not ended(pid)
    os.kill(pid, signal.SIGKILL)


def test_last_words_arrive(service: Service) -> None:
    code = "import sys; sys.stdout.write('z' * 3_000_000); sys.stderr.write('e' * 100_000)"
    done = service.run(PYTHON, "-c", code)
    assert (len(done.stdout), len(done.stderr)) == (3_000_000, 100_000)


# -------------------------------------------------------------------------------------- signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_goes_to_the_program_and_then_ends_the_command_line(
    service: Service, number: int
) -> None:
    name = signal.Signals(number).name.removeprefix("SIG")
    script = f"trap 'echo bye; exit' {name}; echo ready; while :; do sleep 0.02; done"
    with subprocess.Popen(service.argv("sh", "-c", script), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(number)
        assert process.stdout.readline() == b"bye\n"
        assert process.wait(10) == -number


def test_a_killed_command_line_takes_the_program_along(service: Service, tmp_path: Path) -> None:
    said = tmp_path / "said"
    script = f"trap 'echo bye >{said}; exit' TERM; echo $$; while :; do sleep 0.02; done"
    with subprocess.Popen(service.argv("sh", "-c", script), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        process.kill()
        process.wait(10)
        until("the program was told", lambda: ended(pid) and said.exists())
    until("its session is over", lambda: sessions(service) == 0)


def test_signals_that_end_nothing(service: Service) -> None:
    script = "trap 'echo one' USR1; echo ready; read line; echo $line"
    with subprocess.Popen(
        service.argv("sh", "-c", script), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGUSR1)
        assert process.stdout.readline() == b"one\n"
        process.stdin.close()
        assert process.wait(10) == 0


# ------------------------------------------------------------------------------------- terminal


def test_terminal(service: Service) -> None:
    terminal = Terminal(service.argv("sh", tty=True))
    terminal.write("tty; stty size\n")
    terminal.expect(r"/dev/pts/\d+")
    fcntl.ioctl(terminal.fd, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 99, 0, 0))
    terminal.write("until stty size | grep -q 33; do sleep 0.01; done; stty size\n")
    terminal.expect("33 99")
    terminal.expect("# ")
    terminal.write("half a line")
    terminal.expect("half a line")
    terminal.write("\x03")
    terminal.expect("# ")
    terminal.write("echo $((40 + 2))\n")
    terminal.expect("\n42")
    terminal.write("exit 5\n")
    assert terminal.wait() == 5


def test_interrupt_on_a_terminal_is_the_programs(service: Service) -> None:
    code = (
        "import signal, time\n"
        "seen = []\n"
        "signal.signal(signal.SIGINT, lambda *_: seen.append(1))\n"
        "print('ready', flush=True)\n"
        "while not seen: time.sleep(0.01)\n"
        "print('got', len(seen), flush=True)\n"
    )
    terminal = Terminal(service.argv(PYTHON, "-c", code, tty=True))
    terminal.expect("ready")
    terminal.write("\x03")
    terminal.expect("got 1")
    assert terminal.wait() == 0
    terminal = Terminal(service.argv("sh", "-c", "echo on; exec sleep 61", tty=True))
    terminal.expect("on")
    terminal.write("\x03")
    assert terminal.wait() == -signal.SIGINT


def test_job_control_around_a_guest(service: Service) -> None:
    """A shell on the host stops, continues and outlives a program in a guest."""
    terminal = Terminal(["bash", "--norc", "--noediting"])
    terminal.expect("# ")
    terminal.write(shlex.join(service.argv("cat", tty=True)) + "\n")
    until("cat runs", lambda: sessions(service) == 1)
    terminal.write("one\n")
    terminal.expect("one\r\none\r\n")
    terminal.write("\x1a")
    terminal.expect("Stopped")
    terminal.write("echo $((40 + 2)); stty -a | grep -o -- '-*icanon'\n")
    terminal.expect("\n42")
    terminal.expect("\nicanon")
    terminal.write("fg\n")
    terminal.expect("cat\r?\n")
    terminal.write("two\n")
    terminal.expect("two\r\ntwo\r\n")
    terminal.write("\x04")
    terminal.expect("# ")
    terminal.write("exit 6\n")
    assert terminal.wait() == 6


def test_a_terminal_that_goes_away_hangs_the_program_up(service: Service, tmp_path: Path) -> None:
    said = tmp_path / "said"
    script = f"trap 'echo hup >{said}; exit' HUP; echo pid $$; while :; do sleep 0.02; done"
    terminal = Terminal(service.argv("sh", "-c", script, tty=True))
    pid = int(terminal.expect(r"pid (\d+)")[1])
    os.kill(terminal.pid, signal.SIGKILL)
    terminal.wait()
    until("it was hung up", lambda: ended(pid) and said.exists())


def test_a_pipe_behind_a_terminal_gets_what_was_written(service: Service) -> None:
    """`mint exec b -- CMD | ...` on a terminal: no line ends of a terminal in the pipe."""
    line = shlex.join(service.argv("sh", "-c", "test -t 0 && ! test -t 1 && echo a", tty=True))
    terminal = Terminal(["sh", "-c", f"{line} | od -c"])
    terminal.expect(r"a  \\n\r\n")
    assert terminal.wait() == 0


def test_tty_without_a_terminal_is_none(service: Service) -> None:
    line = service.argv("sh", "-c", "test -t 0 || echo no; cat", tty=True)
    done = subprocess.run(line, input=b"in", capture_output=True, timeout=10, check=True)
    assert done.stdout == b"no\nin"


# -------------------------------------------------------------------------------------- console


def test_console(service: Service) -> None:
    """The bench answers in capitals what is typed."""
    terminal = Terminal(argv.console_argv(service.facts()))
    terminal.expect(r"console of g; Ctrl-\] leaves")
    terminal.write("hello\x03\x1a")
    terminal.expect("HELLO\x03\x1a")
    terminal.write("x\x1dy")
    terminal.expect("left the console of g")
    assert terminal.wait() == 0
    until("what came before the key was typed", lambda: service.host.console.endswith(b"x"))


def test_console_of_a_shell_gives_the_terminal_back(service: Service) -> None:
    terminal = Terminal(["bash", "--norc", "--noediting"])
    terminal.expect("# ")
    terminal.write(shlex.join(argv.console_argv(service.facts())) + "\n")
    terminal.expect("leaves")
    terminal.write("\x1d")
    terminal.expect("left the console")
    terminal.expect("# ")
    terminal.write("stty -a | grep -o -- '-*icanon'; exit 3\n")
    terminal.expect("\nicanon")
    assert terminal.wait() == 3


def test_console_without_a_terminal(service: Service) -> None:
    done = subprocess.run(
        argv.console_argv(service.facts()), input=b"", capture_output=True, timeout=10, check=True
    )
    assert (done.stdout, done.stderr) == (b"", b"")


# ---------------------------------------------------------------------- flow, many at once


def test_much_data_arrives_intact_while_another_session_goes_on(service: Service) -> None:
    size = 100 << 20
    source = f"import sys, random; r = random.Random(1)\nfor _ in range({size >> 16}): "
    source += "sys.stdout.buffer.write(r.randbytes(1 << 16))"
    with subprocess.Popen(service.argv(PYTHON, "-c", source), stdout=subprocess.PIPE) as process:
        longest, count = 0.0, 0
        digest = hashlib.sha256()
        assert process.stdout is not None

        def read() -> None:
            assert process.stdout is not None
            while data := process.stdout.read(1 << 20):
                digest.update(data)

        reader = threading.Thread(target=read)
        reader.start()
        while reader.is_alive():
            begin = time.monotonic()
            assert service.run("echo", "here").stdout == "here\n"
            longest = max(longest, time.monotonic() - begin)
            count += 1
        reader.join()
        assert process.wait(10) == 0
    import random

    generator, wanted = random.Random(1), hashlib.sha256()
    for _ in range(size >> 16):
        wanted.update(generator.randbytes(1 << 16))
    assert digest.digest() == wanted.digest()
    print(f"{count} other commands, the longest took {longest:.2f} s")
    assert count > 1
    assert longest < 5


def test_input_arrives_intact(service: Service) -> None:
    data = os.urandom(1 << 20) * 20
    done = subprocess.run(
        service.argv("sha256sum"), input=data, capture_output=True, timeout=60, check=True
    )
    assert done.stdout.split()[0].decode() == hashlib.sha256(data).hexdigest()


def test_a_stopped_reader_holds_up_its_own_session_alone(service: Service) -> None:
    with contextlib.ExitStack() as stack:
        process = stack.enter_context(subprocess.Popen(service.argv("yes"), stdout=subprocess.PIPE))
        stack.callback(process.kill)
        assert process.stdout is not None
        assert process.stdout.read(2) == b"y\n"
        process.send_signal(signal.SIGSTOP)
        assert service.host.channel is not None
        begin = time.monotonic()
        for _ in range(5):
            assert service.run("echo", "here").stdout == "here\n"
        assert time.monotonic() - begin < 5
        session = next(s for s in service.host.channel._sessions.values() if s is not None)
        until("its window is full", lambda: session._room == 0)
        assert session._window == WINDOW
        process.send_signal(signal.SIGCONT)
        assert len(process.stdout.read(1 << 20)) == 1 << 20


def test_as_many_sessions_as_there_can_be(service: Service) -> None:
    until("no other session", lambda: sessions(service) == 0)
    with contextlib.ExitStack() as stack:
        running = [
            stack.enter_context(
                subprocess.Popen(service.argv("cat"), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            )
            for _ in range(wire.SESSIONS)
        ]
        until("all run", lambda: sessions(service) == wire.SESSIONS, 30)
        refused = service.run("true")
        assert refused.returncode == 125
        assert "64" in refused.stderr
        for number, process in enumerate(running):
            said, _ = process.communicate(f"{number}\n".encode(), timeout=10)
            assert (process.returncode, said) == (0, f"{number}\n".encode())
    assert service.run("true").returncode == 0
    until("all have gone", lambda: sessions(service) == 0)


# ------------------------------------------------------------------------------- ends and errors


def test_the_guest_dies(service: Service) -> None:
    line = service.argv("sh", "-c", "echo on; exec cat")
    pipe = subprocess.PIPE
    with subprocess.Popen(line, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"on\n"
        service.process.kill()
        service.process.wait()
        assert process.wait(10) == -signal.SIGKILL
        assert process.stderr is not None
        assert process.stderr.read() == b"node g has ended\n"
    service.start()
    assert service.run("echo", "again").stdout == "again\n"


def test_the_agent_dies(service: Service, tmp_path: Path) -> None:
    """The guest goes on: programs are told, and mint-guest is none of a service's any more."""
    said = tmp_path / "said"
    script = f"trap 'echo bye >{said}; exit' TERM; echo $$; while :; do sleep 0.02; done"
    with subprocess.Popen(
        service.argv("sh", "-c", script), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        assert service.host.channel is not None
        service.host.call(service.host.channel.close)
        until("the program was told", lambda: ended(pid) and said.exists())
        assert process.wait(10) == -signal.SIGKILL
    assert service.process.wait(10) == 0
    line = [word.replace("agent.sock", "no.sock") for word in service.argv("true")]
    refused = subprocess.run(
        line,
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode == 125
    assert "node g cannot be entered" in refused.stderr
    service.start()


def test_nothing_is_left(service: Service) -> None:
    until("no session", lambda: sessions(service) == 0)
    until("no process", lambda: not descendants(service.process.pid))
    descriptors = len(list(Path(f"/proc/{service.process.pid}/fd").iterdir()))
    assert descriptors <= 5
    status = Path(f"/proc/{service.process.pid}/status").read_text()
    match = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert match is not None
    assert int(match[1]) < 4096


def test_an_agent_that_sends_nonsense(service: Service) -> None:
    """mint-guest closes; it neither hangs nor crashes."""
    for junk in (
        struct.pack("<BBHI", Type.DATA, 0, 1, 1 << 30),
        struct.pack("<BBHI", 200, 0, 1, 0),
    ):
        ours, theirs = socket.socketpair()
        process = subprocess.Popen(
            [guest_program(), "--service", f"fd:{theirs.fileno()}"],
            pass_fds=[theirs.fileno()],
        )
        theirs.close()
        with ours:
            reader = wire.FrameReader()
            frames: list[wire.Frame] = []
            while not frames:
                frames += reader.feed(ours.recv(1000))
            hello = wire.Hello.decode(frames[0].payload)
            ours.sendall(b"left over" + hello.welcome() + junk)
            assert ours.recv(100) == b""
        assert process.wait(10) == 0


# ------------------------------------------------------------------------------ hostile guests


class Fake:
    """A guest of the test's own making, on the host's side of a channel."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.stream, theirs = socket.socketpair()
        self.stream.settimeout(60)
        service.host.connect(theirs)
        body = wire.MAGIC + struct.pack("<II", wire.VERSION, 0) + bytes(16) + b"fake"
        self.hello = wire.encode(Type.HELLO, payload=body)
        self.boot()

    def boot(self) -> None:
        """Begin anew, as mint-guest does."""
        self.stream.sendall(bytes(wire.FRAME_MAX + wire.HEAD_BYTES) + self.hello)
        while self.frame()[0] != Type.WELCOME:
            pass  # what was for the former

    def frame(self) -> tuple[int, int, bytes]:
        """Type, session and payload of the host's next frame."""
        head = self.stream.recv(wire.HEAD_BYTES, socket.MSG_WAITALL)
        kind, _, session, length = struct.unpack("<BBHI", head)
        return kind, session, self.stream.recv(length, socket.MSG_WAITALL) if length else b""

    def client(self) -> tuple[socket.socket, int]:
        """A client whose program this guest claims to run, and its session's number."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.settimeout(10)
        connection.connect(str(self.service.host.directory / "agent.sock"))
        connection.send(json.dumps({"op": "exec", "args": ["x"], "env": {}}).encode())
        kind, session, _ = self.frame()
        assert kind == Type.OPEN
        self.send(Type.STARTED, session)
        assert json.loads(connection.recv(1000)) == {"ok": True}
        assert connection.recv(1000)[0] == Type.WINDOW
        return connection, session

    def send(self, kind: Type, session: int = 0, payload: bytes = b"", stream: int = 0) -> None:
        self.stream.sendall(wire.encode(kind, session, payload, stream))


@pytest.fixture
def fake(service: Service) -> Iterator[Fake]:
    service.process.kill()
    service.process.wait()
    made = Fake(service)
    yield made
    made.stream.close()
    service.start()


def lost(connection: socket.socket) -> bytes:
    while packet := connection.recv(40000):
        if packet[0] == 255:
            return packet[2:]
    return b""


@pytest.mark.parametrize(
    ("kind", "session", "payload", "stream"),
    [
        (Type.DATA, None, b"x", 7),  # no such stream
        (Type.DATA, 999, b"x", 1),  # no such session
        (Type.EXIT, 999, b"\0\0", 0),
        (Type.ACK, 0, b"\xff\xff\xff\x7f", 0),  # of what was never sent
        (Type.OPEN, 1, b"", 0),  # the host's
        (Type.WINDOW, None, b"\0\0\0\0", 0),
        (Type.WINDOW, None, b"\1\0\0\0", 0),  # nothing was sent that it could have read
        (Type.WINDOW, None, b"\xff\xff\xff\xff", 0),
    ],
)
def test_a_guest_that_breaks_the_rules_loses_its_sessions(
    fake: Fake, kind: Type, session: int | None, payload: bytes, stream: int
) -> None:
    connection, number = fake.client()
    with connection:
        fake.send(kind, number if session is None else session, payload, stream)
        assert b"nonsense" in lost(connection)
    assert not fake.service.host.channel.connected  # type: ignore[union-attr]
    # It may begin anew, as a kernel that has booted again does.
    fake.boot()
    connection, number = fake.client()
    with connection:
        fake.send(Type.EXIT, number, bytes([0, 9]))
        assert connection.recv(100) == bytes([Type.EXIT, 0, 0, 9])
        assert connection.recv(100) == b""


def test_a_guest_cannot_send_more_than_its_window(fake: Fake) -> None:
    connection, number = fake.client()
    with connection:
        with contextlib.suppress(OSError):
            for _ in range(WINDOW // 16384 + 1):
                fake.send(Type.DATA, number, bytes(16384), 1)
        assert b"nonsense" in lost(connection)


def test_a_guest_cannot_have_read_more_than_it_was_sent(fake: Fake) -> None:
    connection, number = fake.client()
    with connection:
        for data in (b"ten bytes.", b"five."):
            connection.send(bytes([Type.DATA, 0]) + data)
            assert fake.frame() == (Type.DATA, number, data)
        for count in (7, 8):
            fake.send(Type.WINDOW, number, struct.pack("<I", count))
            assert connection.recv(100) == struct.pack("<BBI", Type.WINDOW, 0, count)
        fake.send(Type.WINDOW, number, struct.pack("<I", 1))
        assert b"nonsense" in lost(connection)


@contextlib.contextmanager
def memory_growth(most: int) -> Iterator[None]:
    """This process, the agent's code included, allocates no more than so much; which takes time."""
    gc.collect()
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    print(f"at most {peak} bytes")
    assert peak < most


def received(fake: Fake) -> None:
    """The host has taken all that the guest has sent."""
    made = fake.service.host.channel
    assert made is not None
    assert not made.ready
    fake.send(Type.READY)
    until("it was read", lambda: made.ready, 60)


def packets(connection: socket.socket) -> Iterator[bytes]:
    """What a client gets, to the end of its program."""
    while packet := connection.recv(40000):
        yield packet
        if packet[0] == Type.EXIT:
            return


def test_output_in_small_pieces_takes_no_more_memory(fake: Fake) -> None:
    """While its client does not read: a byte of each stream in turns, for a quarter of the window."""
    connection, number = fake.client()
    with connection:
        pair = b"".join(wire.encode(Type.DATA, number, b"oe"[i : i + 1], i + 1) for i in range(2))
        sent = pair * (WINDOW // 8)
        with memory_growth(3 << 19):
            fake.stream.sendall(sent)
            received(fake)
        fake.send(Type.EXIT, number, bytes(2))
        got = list(packets(connection))
        assert got.pop() == bytes([Type.EXIT, 0, 0, 0])
        assert got == [b"\x0a\x01o", b"\x0a\x02e"] * (WINDOW // 8)


def test_small_pieces_of_one_stream_become_large_packets(fake: Fake) -> None:
    connection, number = fake.client()
    with connection:
        whole = os.urandom(WINDOW)
        pieces = (wire.encode(Type.DATA, number, whole[i : i + 8], 1) for i in range(0, WINDOW, 8))
        fake.stream.sendall(b"".join(pieces))
        received(fake)
        fake.send(Type.EXIT, number, bytes(2))
        got = list(packets(connection))[:-1]
        assert b"".join(packet[2:] for packet in got) == whole
        assert max(map(len, got)) == wire.FRAME_MAX + 2
        assert len(got) < 1000, "those that the socket has not taken at once are few"


def test_a_client_is_told_once_that_its_program_was_stopped(fake: Fake) -> None:
    """However often a guest says it; and again after that was read."""
    connection, number = fake.client()
    with connection:
        sent = wire.encode(Type.STOPPED, number, b"\x14") * 100_000
        with memory_growth(1 << 20):
            fake.stream.sendall(sent)
            received(fake)
        fake.send(Type.EXIT, number, bytes(2))
        got = list(packets(connection))[:-1]
        assert set(got) == {bytes([Type.STOPPED, 0, 0x14])}
        assert len(got) < 10_000, "the socket holds some"


def test_room_for_input_is_added_up(fake: Fake) -> None:
    """A client that has sent much and does not read is told of all the room with few packets."""
    connection, number = fake.client()
    with connection:
        for _ in range(wire.STDIN_WINDOW // 16384):
            connection.send(bytes([Type.DATA, 0]) + bytes(16384))
            fake.frame()
        sent = wire.encode(Type.WINDOW, number, struct.pack("<I", 1)) * wire.STDIN_WINDOW
        with memory_growth(1 << 20):
            fake.stream.sendall(sent)
            received(fake)
        fake.send(Type.EXIT, number, bytes(2))
        got = list(packets(connection))[:-1]
        assert {packet[0] for packet in got} == {Type.WINDOW}
        room = sum(struct.unpack("<I", packet[2:])[0] for packet in got)
        assert room == wire.STDIN_WINDOW
        assert len(got) < 10_000, "the socket holds some"


def test_a_guest_that_does_not_read_loses_its_sessions(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It sends for ever, its client takes it and says so; what it is told piles up."""
    monkeypatch.setattr(channel, "_UNREAD_MAX", 4000)
    connection, number = fake.client()
    with connection:
        made = fake.service.host.channel
        assert made is not None
        made._stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        for _ in range(4000):
            fake.send(Type.DATA, number, b"x", 1)
            packet = connection.recv(100)
            if packet[0] == channel.LOST:
                break
            connection.send(struct.pack("<BBI", Type.WINDOW, 0, 1))
        assert b"nonsense" in packet
        assert not made._out


def test_a_client_that_sends_more_than_there_is_room_for_is_left(fake: Fake) -> None:
    connection, number = fake.client()
    with connection:
        for _ in range(wire.STDIN_WINDOW // 16384):
            connection.send(bytes([Type.DATA, 0]) + bytes(16384))
            assert fake.frame()[:2] == (Type.DATA, number)
        connection.send(bytes([Type.DATA, 0]) + b"x")
        assert fake.frame()[:2] == (Type.CLOSE, number)
        assert connection.recv(100) == b""


def test_sessions_that_a_guest_never_ends_are_bounded(fake: Fake) -> None:
    """It runs out of sessions, not the agent out of memory."""
    for _ in range(wire.SESSIONS):
        connection, _ = fake.client()
        connection.close()
        assert fake.frame()[0] == Type.CLOSE
    refused = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with refused:
        refused.settimeout(10)
        refused.connect(str(fake.service.host.directory / "agent.sock"))
        refused.send(json.dumps({"op": "exec", "args": [], "env": {}}).encode())
        assert "64 programs" in json.loads(refused.recv(1000))["error"]


def test_a_guest_that_boots_again_ends_what_ran(fake: Fake) -> None:
    connection, _ = fake.client()
    with connection:
        fake.boot()
        assert lost(connection) == b"node g has booted again"


@pytest.mark.parametrize(
    "request_",
    [
        {"args": ["x"]},
        {"args": ["x"], "env": {"A": "a\0b"}},
        {"args": 1, "env": {}},
        {"args": ["x"], "env": [], "rows": "many"},
    ],
)
def test_requests_that_make_no_sense(fake: Fake, request_: dict[str, object]) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(10)
        connection.connect(str(fake.service.host.directory / "agent.sock"))
        connection.send(json.dumps({"op": "exec", **request_}).encode())
        assert "cannot run this" in json.loads(connection.recv(1000))["error"]
