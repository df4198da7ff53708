# SPDX-License-Identifier: Apache-2.0
"""The inside of real guests, booted without launcher, agent and lab: UML, and QEMU under TCG."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import shlex
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import guest_boot
from guest_bench import Host
from guest_boot import Guest, start_qemu, start_uml
from mint_vni import kernels
from mint_vni.errors import MintError
from mint_vni.nodes.guest import argv
from mint_vni.nodes.guest.script import GUEST_BIN, GuestRoot
from node_bench import PYTHON, Terminal, until

START: dict[kernels.Kind, Callable[[], Guest]] = {"uml": start_uml, "qemu": start_qemu}
BOOT_SECONDS = 60.0  # on a machine that does much else


def missing(kind: kernels.Kind) -> str | None:
    """Why guests of a kind can't be booted here."""
    if os.geteuid() != 0:
        return "takes root"
    try:
        kernels.find(kind)
        if kind == "qemu":
            kernels.virtiofsd()
    except MintError as error:
        return str(error)
    return None


def boot(kind: kernels.Kind) -> Guest:
    reason = missing(kind)
    if reason:
        pytest.skip(reason)
    guest = START[kind]()
    try:
        guest.host.until_connected(BOOT_SECONDS)
        until("sshd listens", lambda: b"listening" in guest.host.logs["sshd"], BOOT_SECONDS)
    except BaseException:
        print(guest.console.decode(errors="replace"))
        guest.close()
        raise
    print(f"{kind}: sshd listens after {time.monotonic() - guest.started:.2f} s")
    return guest


@pytest.fixture(scope="module", params=["uml", "qemu"])
def guest(request: pytest.FixtureRequest) -> Iterator[Guest]:
    made = boot(request.param)
    yield made
    made.close()


def out(guest: Guest, script: str) -> str:
    done = guest.run("sh", "-c", script)
    assert done.returncode == 0, (script, done.stderr)
    return done.stdout


def test_it_is_another_kernel_and_looks_like_a_node(guest: Guest) -> None:
    assert guest.host.channel is not None
    assert guest.host.channel.hello is not None
    release = out(guest, "uname -r").strip()
    assert release == guest.host.channel.hello.release != platform.release()
    assert out(guest, "hostname; cat /etc/hostname") == "b\nb\n"
    assert "10.78.0.2 b\n" in out(guest, "cat /etc/hosts")
    assert out(guest, "id -u; pwd; echo ~") == "0\n/root\n/root\n"
    shadow = dict(line.split(":")[:2] for line in out(guest, "cat /etc/shadow").splitlines())
    assert shadow["root"] == "*"
    assert set(shadow.values()) == {"*"}
    assert out(guest, "stat -c %a:%U:%G /etc/shadow") == "640:root:shadow\n"
    wanted = {path: mode for path, (mode, _) in guest.files.items()}
    said = out(guest, f"stat -c '%n %a %U' {' '.join(wanted)}")
    assert said == "".join(f"{path} {mode:o} root\n" for path, mode in wanted.items())
    assert sorted(out(guest, "ls /etc/ssh").split()) == sorted(
        path.rpartition("/")[2] for path in wanted if path.startswith("/etc/ssh/")
    )


def test_mounts_and_devices(guest: Guest) -> None:
    mounts = {
        line.split()[1]: line.split()[2] for line in out(guest, "cat /proc/mounts").splitlines()
    }
    assert mounts["/"] == "overlay"
    for path in ("/run", "/tmp", "/dev/shm", "/var/log", "/etc/ssh"):
        assert mounts[path] == "tmpfs", path
    for path, kind in (("/proc", "proc"), ("/sys", "sysfs"), ("/dev", "devtmpfs")):
        assert mounts[path] == kind
    assert mounts["/sys/fs/cgroup"] == "cgroup2"
    assert out(guest, "stat -c %a:%U /run /run/sshd /run/lock /tmp /dev/shm / /etc") == (
        "755:root\n755:root\n1777:root\n1777:root\n1777:root\n755:root\n755:root\n"
    )
    assert out(guest, "echo hi | cat /dev/stdin; echo x >/dev/stderr") == "hi\n"
    assert out(guest, "cat /proc/sys/net/ipv6/conf/default/accept_dad") == "0\n"
    assert out(guest, "cat /sys/class/net/lo/operstate; ping -c 1 -q localhost >&2") == "unknown\n"


def test_what_it_writes_stays_in_it(guest: Guest) -> None:
    name = f"/var/tmp/mint-guest-{os.getpid()}"
    out(guest, f"echo mine >{name}; echo more >>/etc/passwd; rm /usr/bin/ping; mkdir /usr/own")
    assert not Path(name).exists()
    assert "more" not in Path("/etc/passwd").read_text()
    assert out(guest, f"cat {name}; tail -n 1 /etc/passwd; ls -d /usr/own") == (
        "mine\nmore\n/usr/own\n"
    )
    out(guest, f"rm {name}; sed -i '$d' /etc/passwd")


def test_what_is_private_outside_stays_private(guest: Guest, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("hunter2")
    tmp_path.chmod(0o700)
    done = guest.run("cat", str(secret))
    assert done.returncode != 0
    assert "hunter2" not in done.stdout
    assert out(guest, "ls -A /root") == ""
    host = Path("/etc/shadow").read_text()
    assert out(guest, "cat /etc/shadow") != host


def test_ssh_without_the_network(guest: Guest) -> None:
    facts = guest.facts()
    done = subprocess.run(
        argv.ssh_argv(facts, ["hostname; cat; exit 3"]),
        input="through\n",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (3, "b\nthrough\n", "")
    assert b"Accepted publickey for root" in guest.host.logs["sshd"]
    terminal = Terminal(argv.ssh_argv(facts, [], tty=True))
    terminal.expect("root@b")
    terminal.write("tty; exit 4\n")
    terminal.expect("/dev/pts/")
    assert terminal.wait() == 4


def test_ssh_inside(guest: Guest) -> None:
    assert out(guest, "ssh localhost hostname") == "b\n"


def test_terminal(guest: Guest) -> None:
    terminal = Terminal(argv.exec_argv(guest.facts(), ["sh"], tty=True))
    terminal.expect("# ")
    terminal.write("stty size; tty; sleep 100\n")
    terminal.expect("/dev/pts/")
    time.sleep(0.2)
    terminal.write("\x03")
    terminal.expect("# ")
    terminal.write("exit 5\n")
    assert terminal.wait() == 5


def test_much_data_arrives_intact_while_another_session_goes_on(guest: Guest) -> None:
    size = 100 << 20
    digest, longest, count = hashlib.sha256(), 0.0, 0
    out(guest, "head -c 1048576 /dev/urandom >/tmp/piece; sha256sum /tmp/piece")
    script = "cat $(yes /tmp/piece | head -n 100)"
    begin = time.monotonic()
    with subprocess.Popen(
        argv.exec_argv(guest.facts(), ["sh", "-c", script]), stdout=subprocess.PIPE
    ) as process:
        received = 0

        def read() -> None:
            nonlocal received
            assert process.stdout is not None
            while data := process.stdout.read(1 << 20):
                digest.update(data)
                received += len(data)

        reader = threading.Thread(target=read)
        reader.start()
        while reader.is_alive():
            start = time.monotonic()
            assert out(guest, "echo here") == "here\n"
            longest, count = max(longest, time.monotonic() - start), count + 1
            reader.join(0.1)
        reader.join()
        seconds = time.monotonic() - begin
        assert process.wait(10) == 0
    assert received == size
    assert digest.hexdigest() == out(guest, f"({script}) | sha256sum").split()[0]
    print(f"{size / seconds / 1e6:.0f} MB/s out; {count} others, at most {longest:.2f} s")
    assert count > 1
    assert longest < 5


def test_input_arrives_intact_while_another_session_goes_on(guest: Guest) -> None:
    data = os.urandom(4 << 20)
    longest, begin = 0.0, time.monotonic()
    with subprocess.Popen(
        argv.exec_argv(guest.facts(), ["sha256sum"]),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        said: list[bytes] = []
        writer = threading.Thread(target=lambda: said.append(process.communicate(data)[0]))
        writer.start()
        while writer.is_alive():
            start = time.monotonic()
            assert out(guest, "echo here") == "here\n"
            longest = max(longest, time.monotonic() - start)
            writer.join(0.1)
    assert said[0].split()[0].decode() == hashlib.sha256(data).hexdigest()
    print(f"{len(data) / (time.monotonic() - begin) / 1e6:.1f} MB/s in; others {longest:.2f} s")
    assert longest < 5


def test_every_byte_passes(guest: Guest) -> None:
    """Control characters, flow control's and all, mean nothing to the stream below."""
    data = bytes(range(256)) * 64
    for _ in range(3):
        done = subprocess.run(
            argv.exec_argv(guest.facts(), ["cat"]), input=data, capture_output=True, check=True
        )
        assert done.stdout == data


def test_a_shell_on_the_console(guest: Guest) -> None:
    until("it is offered", lambda: b"Press Enter" in guest.console)
    guest.type(b"\n")
    until("a prompt", lambda: b"root@b" in guest.console)
    guest.type(b"echo $((40 + 2)); sleep 100\n")
    until("its answer", lambda: b"42" in guest.console)
    until("it sleeps", lambda: out(guest, "pgrep -c -f '[s]leep 100' || true") == "1\n")
    guest.type(b"\x03")
    until("it was interrupted", lambda: guest.console.count(b"root@b") >= 2)
    guest.type(b"exit\n")
    until("it is offered again", lambda: guest.console.count(b"Press Enter") == 2)


def test_orphans_are_reaped(guest: Guest) -> None:
    out(guest, "for i in 1 2 3 4; do (true &) ; done; (setsid sleep 0.1 &)")
    zombies = "cat /proc/[0-9]*/stat 2>/dev/null | grep -c ') Z ' || true"
    until("no zombie", lambda: out(guest, zombies) == "0\n")


# ------------------------------------------------------------------------- guests of their own


def test_the_driver_is_unloaded_and_loaded_again() -> None:
    guest = boot("qemu")
    with contextlib.closing(guest):
        guest.host.until_ready(BOOT_SECONDS)
        show = "ip -o addr show dev vni0 | awk '{print $4}' | sort; cat /sys/class/net/vni0/address"
        before = out(guest, show)
        assert {"10.78.0.2/24", "fd78::2/64", guest_boot.MAC} <= set(before.split())
        assert out(guest, "cat /proc/sys/net/ipv6/conf/vni0/accept_dad") == "0\n"
        assert "tentative" not in out(guest, "ip addr show dev vni0")
        out(guest, f"{GUEST_BIN}/mint-guest --unload virtio_net")
        assert guest.run("ip", "link", "show", "dev", "vni0").returncode != 0
        out(guest, f"{GUEST_BIN}/mint-guest --load {GUEST_BIN}/modules/*virtio_net.ko")
        wanted = {"10.78.0.2/24", "fd78::2/64", guest_boot.MAC}
        until("it is back", lambda: wanted <= set(guest.run("sh", "-c", show).stdout.split()))


@pytest.mark.parametrize("kind", ["uml", "qemu"])
def test_reboot_and_power_off(kind: kernels.Kind) -> None:
    for how in ("reboot", "power-off"):
        guest = boot(kind)
        with contextlib.closing(guest):
            assert guest.host.channel is not None
            begin = time.monotonic()
            with subprocess.Popen(
                argv.exec_argv(guest.facts(), ["sh", "-c", "trap '' HUP; sleep 100"]),
                stderr=subprocess.DEVNULL,
            ) as running:
                if how == "reboot":
                    assert guest.run("reboot").returncode == 0
                else:
                    guest.host.call(guest.host.channel.power)
                assert guest.processes[-1].wait(10) == 0
                assert running.wait(10) != 0
            assert time.monotonic() - begin < 8
            assert guest.host.channel.bye == how
            assert guest.host.channel.closed == "has ended"


@pytest.mark.parametrize("kind", ["uml", "qemu"])
def test_a_guest_that_cannot_be_set_up_says_why_and_ends(
    kind: kernels.Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guest_boot, "GuestRoot", lambda kind, _: GuestRoot(kind, "no-such"))
    reason = missing(kind)
    if reason:
        pytest.skip(reason)
    with contextlib.closing(START[kind]()) as guest:
        guest.processes[-1].wait(BOOT_SECONDS)
        until("it says why", lambda: b"cannot set the node up: mount" in guest.console)
        assert b"no-such" in guest.console


def test_as_a_service_beside_another_init() -> None:
    """What image nodes run: on a port of its own, with an init and an sshd that are not its."""
    ours, theirs = socket.socketpair()
    port = theirs.fileno()
    words = (
        "-chardev",
        f"socket,id=two,fd={port}",
        "-device",
        "virtserialport,name=two,chardev=two",
    )
    reason = missing("qemu")
    if reason:
        pytest.skip(reason)
    guest = start_qemu(*words, pass_fds=(port,))
    theirs.close()
    with contextlib.closing(guest), Host("second") as second:
        second.connect(ours)
        guest.host.until_ready(BOOT_SECONDS)
        facts = guest.facts() | {"name": "second", "state_dir": str(second.directory)}
        for _ in range(2):  # the second time with the rest of the first in the stream
            service = subprocess.Popen(
                argv.exec_argv(guest.facts(), [f"{GUEST_BIN}/mint-guest", "--service", "port:two"])
            )
            second.until_ready(BOOT_SECONDS)
            line = argv.exec_argv(facts, ["sh", "-c", "hostname; exec yes"])
            with subprocess.Popen(line, stdout=subprocess.PIPE) as running:
                assert running.stdout is not None
                assert running.stdout.readline() == b"b\n"
                out(guest, "pkill -KILL -f 'mint-guest [-]-service'")
                service.wait(10)
                channel = second.channel
                assert channel is not None
                running.kill()
            channel.ready = False  # nobody says so: the port stays open on this side
        service = subprocess.Popen(
            argv.exec_argv(guest.facts(), [f"{GUEST_BIN}/mint-guest", "--service", "port:two"])
        )
        second.until_ready(BOOT_SECONDS)
        second.call(lambda: second.channel and second.channel.power())
        assert guest.processes[-1].wait(20) == 0
        service.wait(10)
        assert second.channel is not None
        assert guest.host.channel is not None
        assert (second.channel.bye, guest.host.channel.bye) == ("power-off", "power-off")


def test_a_python_program_runs(guest: Guest) -> None:
    """Whatever the host has is there."""
    code = "import json, ssl; print(json.dumps([1]))"
    assert out(guest, shlex.join([PYTHON, "-c", code])) == "[1]\n"
