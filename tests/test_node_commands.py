# SPDX-License-Identifier: Apache-2.0
"""Programs in a node of kind netns, on a terminal or not, and ssh into it and between nodes."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import select
import shlex
import signal
import socket
import struct
import subprocess
import termios
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mint_vni import nodes
from mint_vni.nodes import Node
from node_bench import (
    NEEDS,
    PYTHON,
    Bench,
    Terminal,
    inside,
    make_pair,
    out,
    run,
    soon,
    ssh,
    until,
)

pytestmark = NEEDS
pair = pytest.fixture(make_pair, scope="module")


def test_exec_streams_and_status(pair: tuple[Node, Node]) -> None:
    done = run(pair[0], "sh", "-c", "cat; echo said >&2; exit 7", input="hello\n")
    assert (done.stdout, done.stderr, done.returncode) == ("hello\n", "said\n", 7)
    assert run(pair[0], "sh", "-c", "kill -9 $$").returncode == -9
    assert run(pair[0], "no-such-program").returncode == 127
    assert run(pair[0], "printf", "%s|", "a b", "", "$HOME", "--", "*").stdout == "a b||$HOME|--|*|"


def test_exec_environment(pair: tuple[Node, Node], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "hunter2")
    monkeypatch.setenv("TERM", "vt100")
    seen = dict(line.split("=", 1) for line in out(pair[0], "env").splitlines())
    assert "SECRET" not in seen
    assert (seen["HOME"], seen["TERM"]) == ("/root", "vt100")
    assert {"/usr/sbin", "/usr/bin"} <= set(seen["PATH"].split(":"))
    argv = nodes.exec_argv(
        pair[0].describe(), ["sh", "-c", "pwd; echo $X"], cwd="/usr", env={"X": "y z"}
    )
    assert subprocess.run(argv, capture_output=True, text=True, check=True).stdout == "/usr\ny z\n"
    assert out(pair[0], "pwd") == "/root"


def test_exec_of_odd_names(pair: tuple[Node, Node]) -> None:
    out(pair[0], "sh", "-c", "printf '#!/bin/sh\necho odd $1\n' > /tmp/a=b; chmod +x /tmp/a=b")
    assert out(pair[0], "/tmp/a=b", "c=d") == "odd c=d"


def has(procs: str, pid: int) -> bool:
    return str(pid) in Path(procs).read_text().split()


def test_exec_is_part_of_the_node(pair: tuple[Node, Node]) -> None:
    groups = out(pair[0], "cat", "/proc/self/cgroup")
    procs = pair[0].describe()["cgroup"]["node_procs"]
    with subprocess.Popen(nodes.exec_argv(pair[0].describe(), ["sleep", "60"])) as process:
        try:
            until("it is in all groups", lambda: all(has(path, process.pid) for path in procs))
        finally:
            process.kill()
    assert ":memory:/\n" in groups + "\n" or "0::/" in groups


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_ending_the_command_line_ends_the_program(pair: tuple[Node, Node], end: int) -> None:
    script = "trap 'echo bye; exit' TERM; echo ready; while :; do sleep 0.02; done"
    argv = nodes.exec_argv(pair[0].describe(), ["sh", "-c", script])
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(end)
        assert process.wait(10) == -end
        assert process.stdout.readline() == "bye\n", "the program was told, and could clean up"


def test_terminal(pair: tuple[Node, Node]) -> None:
    terminal = Terminal(nodes.exec_argv(pair[0].describe(), ["sh"], tty=True))
    terminal.write("tty; stty size; hostname\n")
    terminal.expect(r"/dev/pts/\d+")
    fcntl.ioctl(terminal.fd, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 99, 0, 0))
    terminal.write("stty size\n")
    terminal.expect("33 99")
    terminal.expect("# ")
    terminal.write("half a line")
    terminal.expect("half a line")
    terminal.write("\x03")
    terminal.expect("# ")  # an interrupt at the prompt ends the line, not the shell
    terminal.write("echo $((40 + 2))\n")
    terminal.expect("\n42")
    terminal.write("exit 5\n")
    assert terminal.wait() == 5


def test_interrupt_on_a_terminal_is_the_programs(pair: tuple[Node, Node]) -> None:
    code = (
        "import signal, sys, time\n"
        "seen = []\n"
        "signal.signal(signal.SIGINT, lambda *_: seen.append(1))\n"
        "print('ready', flush=True)\n"
        "while not seen: time.sleep(0.01)\n"
        "print('got', len(seen), flush=True)\n"
        "print(sys.stdin.readline().upper(), flush=True)\n"
    )
    terminal = Terminal(nodes.exec_argv(pair[0].describe(), [PYTHON, "-c", code], tty=True))
    terminal.expect("ready")
    terminal.write("\x03")
    terminal.expect("got 1")
    terminal.write("still there\n")
    terminal.expect("STILL THERE")
    assert terminal.wait() == 0
    terminal = Terminal(nodes.exec_argv(pair[0].describe(), ["sleep", "61"], tty=True))
    until("sleep runs", lambda: inside(pair[0], "sleep 61"))
    terminal.write("\x03")
    assert terminal.wait() == -signal.SIGINT


def test_job_control_around_a_node(pair: tuple[Node, Node]) -> None:
    """A shell on the host stops, continues and outlives a program in a node."""
    terminal = Terminal(["bash", "--norc", "--noediting"])
    terminal.expect("# ")
    argv = nodes.exec_argv(pair[0].describe(), ["cat"], tty=True)
    terminal.write(shlex.join(argv) + "\n")
    until("cat runs", lambda: inside(pair[0], "cat$"))
    terminal.write("one\n")
    terminal.expect("one\r\none\r\n")
    terminal.write("\x1a")
    terminal.expect("Stopped")
    terminal.write("echo $((40 + 2))\n")
    terminal.expect("\n42")
    terminal.write("fg\n")
    terminal.expect("cat")
    terminal.write("two\n")
    terminal.expect("two\r\ntwo\r\n")
    terminal.write("\x04")
    terminal.expect("# ")
    terminal.write("echo status $?; exit\n")
    terminal.expect("status 0")
    assert terminal.wait() == 0


def test_terminal_that_goes_away(pair: tuple[Node, Node]) -> None:
    terminal = Terminal(nodes.exec_argv(pair[0].describe(), ["sleep", "62"], tty=True))
    until("sleep runs", lambda: inside(pair[0], "sleep 62"))
    os.kill(terminal.pid, signal.SIGKILL)
    assert terminal.wait() == -signal.SIGKILL
    until("sleep has ended", lambda: not inside(pair[0], "sleep 62"))


def test_exec_on_a_terminal_is_part_of_the_node(pair: tuple[Node, Node]) -> None:
    script = (
        "hostname; cat /proc/self/cgroup; grep Cpus_allowed_list /proc/self/status; pwd; exit 6"
    )
    terminal = Terminal(nodes.exec_argv(pair[0].describe(), ["sh", "-c", script], tty=True))
    terminal.expect(r"a\r\n")
    if pair[0].status()["memory_enforced_by"] == "cgroup-v1":
        terminal.expect(":memory:/\r\n")
    terminal.expect(r"Cpus_allowed_list:\s0\r\n/root\r\n")
    assert terminal.wait() == 6
    terminal = Terminal(nodes.exec_argv(pair[0].describe(), ["no-such-program"], tty=True))
    terminal.expect("no-such-program: not found in node a")
    assert terminal.wait() == 127


def test_orphans_are_reaped(pair: tuple[Node, Node]) -> None:
    out(pair[0], "sh", "-c", "(sleep 0.05 & sleep 0.05 &) ; true")
    until(
        "no orphan is left, not even a zombie",
        lambda: (
            out(pair[0], "sh", "-c", "ps -e -o comm= | sort | uniq").split()
            == ["ps", "sh", "sleep", "sort", "sshd", "uniq"]
            and out(pair[0], "sh", "-c", "ps -e -o stat= | grep -c Z || true") == "0"
        ),
    )


def test_the_init_cannot_be_killed_from_inside(pair: tuple[Node, Node]) -> None:
    for name in ("TERM", "KILL", "INT", "HUP"):
        out(pair[0], "kill", f"-{name}", "1")
    assert out(pair[0], "hostname") == "a"
    assert pair[0].alive()


def test_ssh_from_the_host(pair: tuple[Node, Node]) -> None:
    done = ssh(pair[0], "hostname")
    assert (done.stdout, done.stderr, done.returncode) == ("a\n", "", 0)
    assert ssh(pair[1], "echo $((6 * 7)); exit 3").returncode == 3
    assert ssh(pair[1], "printf", "%s|", "a b", "$HOME").stdout == "a b|$HOME|"
    assert "Accepted publickey for root" in pair[0].logs()["sshd"]


def test_ssh_terminal(pair: tuple[Node, Node]) -> None:
    terminal = Terminal(nodes.ssh_argv(pair[0].describe(), ["tty; exit 4"], tty=True))
    terminal.expect(r"/dev/pts/\d+")
    assert terminal.wait() == 4


def test_ssh_uses_nothing_of_the_users(pair: tuple[Node, Node], tmp_path: Path) -> None:
    config = tmp_path / ".ssh" / "config"
    config.parent.mkdir()
    config.write_text("Host *\n  Port 1\n  User nobody\n")
    environment = {**os.environ, "HOME": str(tmp_path), "SSH_AUTH_SOCK": str(tmp_path / "agent")}
    assert ssh(pair[0], "whoami", env=environment).stdout == "root\n"
    assert [path.name for path in config.parent.iterdir()] == ["config"]


@pytest.fixture
def wire(pair: tuple[Node, Node]) -> Iterator[None]:
    """Joins the two TAPs, in place of a fabric: with offloads on one side only, so as is."""
    end, stop = socket.socketpair()
    fds = [node.tap_fd for node in pair if node.tap_fd is not None]

    def carry() -> None:
        while True:
            ready, _, _ = select.select([*fds, end.fileno()], [], [])
            if end.fileno() in ready:
                return
            for one, other in (fds, fds[::-1]):
                with contextlib.suppress(BlockingIOError):
                    os.write(other, os.read(one, 70000))

    thread = threading.Thread(target=carry)
    thread.start()
    yield
    stop.send(b"x")
    thread.join()
    end.close()
    stop.close()


def test_ping_and_ssh_between_nodes(pair: tuple[Node, Node], wire: None) -> None:
    for target in ("10.99.0.2", "fd99::2"):
        assert run(pair[0], "ping", "-c", "2", "-i", "0.05", "-W", "2", target).returncode == 0
    for target in ("b", "b.bench", "10.99.0.2", "fd99::2"):
        done = run(pair[0], "ssh", target, "hostname")
        assert (done.stdout, done.stderr) == ("b\n", ""), target
    assert "10.99.0.1" in out(pair[0], "ssh", "-4", "b", "echo $SSH_CONNECTION")
    assert out(pair[0], "ssh", "b", "ssh a hostname") == "a"


def test_scp_and_sftp_between_nodes(pair: tuple[Node, Node], wire: None) -> None:
    script = """
    head -c 300000 /dev/urandom > /tmp/one && scp -q /tmp/one b:/tmp/two &&
    ssh b cat /tmp/two | cmp - /tmp/one && echo "get /tmp/two /tmp/three" | sftp -q -b - b &&
    cmp /tmp/one /tmp/three && echo same
    """
    assert out(pair[0], "sh", "-c", script).splitlines()[-1] == "same"


def test_host_only_keeps_nodes_out_of_each_other(tmp_path: Path) -> None:
    lab = Bench(tmp_path, "host-only", names=("a",))
    node = lab.started("a")
    try:
        node.wait_ready(soon())
        assert ssh(node, "hostname").stdout == "a\n"
        assert "mesh_key" not in out(node, "ls", "/etc/ssh")
        refused = run(node, "ssh", "-o", "BatchMode=yes", "a", "hostname")
        assert refused.returncode == 255
        assert "Permission denied" in refused.stderr
    finally:
        node.stop(soon())
    assert lab.leftovers() == []


def test_another_labs_key_is_refused(pair: tuple[Node, Node], tmp_path: Path) -> None:
    other = Bench(tmp_path)
    facts = {**pair[0].describe(), "ssh_dir": str(other.ssh.directory)}
    argv = nodes.ssh_argv(facts, ["hostname"], tty=False)
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 255
    assert "Host key verification failed" in done.stderr
    argv = [word.replace("StrictHostKeyChecking=yes", "StrictHostKeyChecking=no") for word in argv]
    argv = [re.sub(r"UserKnownHostsFile=.*", "UserKnownHostsFile=/dev/null", w) for w in argv]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    assert "Permission denied" in done.stderr
