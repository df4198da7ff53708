# SPDX-License-Identifier: Apache-2.0
"""Tools for tests of whole labs: starting programs, waiting for states, comparing counters.

Nothing here waits without a deadline, and nothing that is started outlives its test.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, TypeVar

from mint_vni.errors import MintError
from mint_vni.lab import Lab, Node, paths

T = TypeVar("T")

DEADLINE = 15.0  # seconds; what normally takes milliseconds has failed after so long

#: The program that runs inside nodes.
#: What a node runs ``inside.py`` with: the host's own Python, and the text of it as an argument,
#: for a checkout below /tmp does not exist in a node.
INSIDE = ["/usr/bin/python3", "-I", "-S", "-c", Path(__file__).with_name("inside.py").read_text()]

_MINT_CODE = "from mint_vni.cli import main; raise SystemExit(main())"
_numbers = itertools.count(1)


def why_not() -> str | None:
    """Why this machine cannot run the tests' labs; None if it can."""
    if os.geteuid() != 0:
        return "labs need root"
    if not os.path.exists("/dev/net/tun"):
        return "there is no /dev/net/tun"
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    for program in ("sshd", "ssh", "scp", "sftp", "ip", "ping", "iperf3", "nsenter", "setpriv"):
        if shutil.which(program, path=path) is None:
            return f"there is no {program}; 'make setup' installs it"
    return None


def clear_all() -> None:
    """Take down whatever a failed test left."""
    for name in Lab.names():
        with contextlib.suppress(MintError):
            Lab.connect(name).down()
    subprocess.run(mint_argv("gc"), check=False, timeout=60, capture_output=True)


# ------------------------------------------------------------------------------- waiting


def wait_for(what: str, look: Callable[[], T], timeout: float = DEADLINE) -> T:
    """Look again and again until there is something to see.

    Args:
        what: Told when the time is over.
        look: What to call; a true value ends the wait.
        timeout: Seconds.

    Returns:
        What `look` returned at last.
    """
    end = time.monotonic() + timeout
    while not (seen := look()):
        assert time.monotonic() < end, f"not within {timeout} s: {what} (last seen: {seen!r})"
        time.sleep(0.005)
    return seen


class Child:
    """A program that runs meanwhile; its lines can be waited for. It ends with the ``with`` block."""

    def __init__(self, argv: Sequence[str], *, stderr: bool = False, **options: Any) -> None:
        self.argv = list(argv)
        self.lines: list[str] = []
        self._queue: queue.Queue[str | None] = queue.Queue()
        streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        streams["stderr"] = subprocess.STDOUT if stderr else subprocess.PIPE
        self.process = subprocess.Popen(self.argv, text=True, **(streams | options))
        self._reader = threading.Thread(target=self._read, args=(self.process.stdout,), daemon=True)
        self._reader.start()

    def _read(self, stream: IO[str]) -> None:
        for line in stream:
            self._queue.put(line.rstrip("\n"))
        self._queue.put(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            # What runs in a node ends with the program that entered it, by SIGTERM.
            self.process.terminate()
            try:
                self.process.wait(2)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(DEADLINE)
        self._reader.join(DEADLINE)
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def expect(self, text: str, timeout: float = DEADLINE) -> str:
        """The next line that contains `text`; lines before it are skipped."""
        end = time.monotonic() + timeout
        while True:
            try:
                line = self._queue.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                raise AssertionError(
                    f"{self.argv[-3:]} did not say {text!r} within {timeout} s: {self.lines[-5:]}"
                ) from None
            if line is None:
                self._queue.put(None)  # for whoever asks again
                raise AssertionError(
                    f"{self.argv[-3:]} ended without {text!r}: {self.lines[-5:]} {self._complaint()}"
                )
            self.lines.append(line)
            if text in line:
                return line

    def _complaint(self) -> str:
        if self.process.stderr is None:
            return ""
        self.process.wait(DEADLINE)
        return self.process.stderr.read()

    def result(self, key: str, timeout: float = DEADLINE) -> dict[str, Any]:
        """The next line of JSON that has this key."""
        data: dict[str, Any] = json.loads(self.expect(f'"{key}"', timeout))
        return data

    def say(self, text: str) -> None:
        """Write a line to its standard input."""
        assert self.process.stdin is not None
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()

    def close_input(self) -> None:
        """End its standard input."""
        assert self.process.stdin is not None
        self.process.stdin.close()

    def wait(self, timeout: float = DEADLINE) -> int:
        """Its exit status."""
        return self.process.wait(timeout)


# ---------------------------------------------------------------------------- the command


def mint_argv(*args: str) -> list[str]:
    """The command line ``mint ...``: the installed program, if this interpreter has one."""
    program = Path(sys.executable).with_name("mint")
    if program.exists() and "PYTHONPATH" not in os.environ:
        return [str(program), *args]
    return [sys.executable, "-c", _MINT_CODE, *args]


def mint(*args: str, timeout: float = 60.0, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run ``mint`` as a process of its own and wait for it."""
    options = {"stdin": subprocess.DEVNULL} | options
    return subprocess.run(
        mint_argv(*args), text=True, capture_output=True, timeout=timeout, check=False, **options
    )


def one_sentence(done: subprocess.CompletedProcess[str], status: int, *words: str) -> None:
    """Check that a run of mint failed properly: status, one line, its words, no traceback."""
    said = [line for line in done.stderr.splitlines() if not _is_progress(line)]
    assert done.returncode == status, (done.returncode, done.stderr)
    assert len(said) == 1, done.stderr
    assert said[0].startswith("mint: "), done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in said[0], (word, said[0])


PROGRESS = ("starting ", "joining them", "waiting until every node")


def _is_progress(line: str) -> bool:
    return line.removeprefix("mint: ").startswith(PROGRESS)


# ----------------------------------------------------------------------------- lab files


def source(name: str, nodes: Mapping[str, Any] | Sequence[str], **sections: Any) -> dict[str, Any]:
    """A lab as a dictionary; its name is made unique within the run.

    Args:
        name: A word about it.
        nodes: Names, or what stands under ``nodes:``.
        sections: ``fabric``, ``network``, ``ssh``, ``defaults``.
    """
    given = dict(nodes) if isinstance(nodes, Mapping) else {node: {} for node in nodes}
    return {"lab": f"{name}-{next(_numbers)}", "nodes": given, **sections}


def write(directory: Path, lab: Mapping[str, Any]) -> str:
    """Write a lab file (JSON is YAML); its path."""
    path = directory / f"{lab['lab']}.yaml"
    path.write_text(json.dumps(lab))
    return str(path)


def lab_dir(name: str) -> Path:
    """Where a lab's files are."""
    return paths.lab_dir(name)


# ------------------------------------------------------------------------------- in nodes


def inside(node: Node, *args: str | int, **options: Any) -> Child:
    """Start a command of ``inside.py`` in a node."""
    words = [*INSIDE, *map(str, args)]
    return Child(node.exec_argv(words), **options)


def ping(node: Node, target: str, *options: str, count: int = 1) -> None:
    """Ping; fails unless every packet came back."""
    argv = ["ping", "-n", "-q", "-i", "0.002", "-W", "3", "-c", str(count), *options, target]
    said = node.run(argv, timeout=30, check=False)
    assert f"{count} packets transmitted" in said.stdout, (node, said.stdout, said.stderr)
    if f" {count} received" not in said.stdout:
        # ping waits for the last reply only twice as long as for the others before.
        wait_for("all replies", lambda: _unanswered(node) == 0, timeout=3.0)


def _unanswered(node: Node) -> int:
    """Echo requests of both IP versions that this node sent and that nobody answered."""
    text = node.run(["cat", "/proc/net/snmp", "/proc/net/snmp6"]).stdout
    names, values = (line.split() for line in text.splitlines() if line.startswith("Icmp: "))
    counters = dict(zip(names, values, strict=True))
    counters |= dict(line.split() for line in text.splitlines() if line.startswith("Icmp6"))
    asked = int(counters["OutEchos"]) + int(counters.get("Icmp6OutEchos", 0))
    return asked - int(counters["InEchoReps"]) - int(counters.get("Icmp6InEchoReplies", 0))


def address(lab: Lab, node: str, family: int = 4) -> str:
    """A node's address, without prefix length."""
    return str(node_status(lab, node)[f"ipv{family}"]).partition("/")[0]


def iperf(lab: Lab, src: str, dst: str, *options: str) -> dict[str, float]:
    """Run iperf3 from src to dst; what the receiving side says at the end."""
    with Child(lab[dst].exec_argv(["iperf3", "-s", "-1", "--forceflush"])) as server:
        server.expect("listening")
        client = ["iperf3", "-c", address(lab, dst), "-J", *options]
        done = lab[src].run(client, timeout=30)
        server.wait()
    end = json.loads(done.stdout)["end"]
    result: dict[str, float] = end.get("sum_received") or end["sum"]
    return result


def unsent(node: Node) -> int:
    """Packets for which the queue of a node's interface had no room."""
    return int(node.run(["cat", "/sys/class/net/vni0/statistics/tx_dropped"]).stdout)


def node_status(lab: Lab, node: str) -> dict[str, Any]:
    """A node's entry in the status."""
    return by_name(lab.status()["nodes"], node)


def port_status(lab: Lab, port: str) -> dict[str, Any]:
    """A port's entry in the status."""
    return by_name(lab.status()["ports"], port)


def by_name(entries: Sequence[dict[str, Any]], name: str) -> dict[str, Any]:
    """The entry of this name."""
    return next(entry for entry in entries if entry["name"] == name)


# -------------------------------------------------------------------------------- counters


class Moved:
    """What moved through a lab between two looks."""

    def __init__(self, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
        self._ports = _deltas(before["ports"], after["ports"], lambda p: str(p["name"]))
        self._channels = _deltas(
            before["channels"], after["channels"], lambda c: f"{c['from']}>{c['to']}"
        )

    def frames(self, src: str, dst: str) -> int:
        """Frames that a channel carried."""
        return self._channels[f"{src}>{dst}"]["frames"]

    def channels(self, least: int = 1) -> set[str]:
        """The channels, ``src>dst``, that carried at least so many frames."""
        return {name for name, moved in self._channels.items() if moved["frames"] >= least}

    def port(self, name: str, counter: str) -> int:
        """By how much a port's counter grew."""
        return self._ports[name][f"counters.{counter}"]

    def drops_of(self, names: str) -> dict[str, int]:
        """Every drop at these ports (of one letter each) and in the channels between them."""
        places = {*names, *(f"{a}>{b}" for a in names for b in names)}
        return {k: v for k, v in self.drops().items() if k.partition(".")[0] in places}

    def drops(self) -> dict[str, int]:
        """Every counted drop: ``place.reason``."""
        found = {}
        for entries in (self._ports, self._channels):
            for name, moved in entries.items():
                for key, value in moved.items():
                    kind, _, counter = key.partition(".")
                    if counter.startswith("drop_") and kind in ("counters", "tx", "rx") and value:
                        found[f"{name}.{counter}"] = value
        return found


def _deltas(
    before: Sequence[Mapping[str, Any]],
    after: Sequence[Mapping[str, Any]],
    key: Callable[[Mapping[str, Any]], str],
) -> dict[str, dict[str, int]]:
    old = {key(entry): _numbers_of(entry) for entry in before}
    new = {key(entry): _numbers_of(entry) for entry in after}
    return {
        name: {what: value - old.get(name, {}).get(what, 0) for what, value in numbers.items()}
        for name, numbers in new.items()
    }


def _numbers_of(entry: Mapping[str, Any], prefix: str = "") -> dict[str, int]:
    found: dict[str, int] = {}
    for name, value in entry.items():
        if isinstance(value, Mapping):
            found |= _numbers_of(value, f"{prefix}{name}.")
        elif isinstance(value, int) and not isinstance(value, bool):
            found[prefix + name] = value
    return found


class Traffic:
    """``with Traffic(lab) as traffic:`` … then ``traffic.moved``."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self.moved: Moved

    def __enter__(self) -> Self:
        self._before = self._lab.status()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.moved = Moved(self._before, self._lab.status())


def check_worker(port: Mapping[str, Any], peers: int) -> None:
    """A worker holds its regions, its doorbells and its TAP, nothing of others, and no privileges.

    Args:
        port: Its port's entry in the status.
        peers: How many other ports there are.
    """
    pid, targets = port["worker"]["pid"], []
    own = ("/dev/null", "/dev/net/tun", "socket:", "anon_inode:[eventpoll]", "/memfd:mint-")
    for fd in os.listdir(f"/proc/{pid}/fd"):
        target = os.readlink(f"/proc/{pid}/fd/{fd}")
        targets.append(target.partition("[")[0])
        assert target.startswith(own) or target.endswith(f"/{port['name']}.worker.log"), (
            fd,
            target,
        )
        if "channel-" in target:
            ends = target.partition("channel-")[2].split()[0].split("-")
            assert str(port["index"]) in ends, (port["name"], target)
    assert targets.count("/dev/net/tun") == 1
    assert targets.count("socket:") == peers + 2, "its control socket, its connection, doorbells"
    status = Path(f"/proc/{pid}/status").read_text()
    assert f"Uid:\t{port['worker']['uid']}\t" in status
    assert "CapEff:\t0000000000000000" in status
    assert "Seccomp:\t2" in status


def report(text: str) -> None:
    """Print a figure; ``pytest -rP`` shows it."""
    print(text)


def kill(pid: int) -> None:
    """End a process at once."""
    os.kill(pid, signal.SIGKILL)
