# SPDX-License-Identifier: Apache-2.0
"""What is enforced and not agreed: each test attacks, and is refused by the kernel or the worker.

Every attack is first made with its defence switched off, and must succeed there: otherwise it would
show nothing that it fails.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

import labs
from attackers import Place
from labs import inside, ping
from mint_vni.fabric.regions import create_region, reopen
from mint_vni.lab import Lab, paths
from mint_vni.lab.member import worker_uid

STRANGER = 65_534  # nobody: a user who owns none of this
ETHERTYPE = "88b5"  # for experiments


@pytest.fixture
def lab(machine: None) -> Iterator[Lab]:
    with Lab.up(labs.source("enforced", "abc")) as lab:
        yield lab


def attempt(code: str, *args: object, uid: int = STRANGER, fds: Sequence[int] = ()) -> str:
    """Run a line of Python as a user, with these descriptors: what it printed, or the error's name.

    Args:
        code: `args` are strings in it, the modules of the standard library are there.
        args: for it.
        uid: of whoever tries; without any capability.
        fds: descriptors that it has.
    """
    program = (
        "import ctypes, errno, fcntl, mmap, os, socket, sys\n"
        "args = sys.argv[1:]\n"
        f"try:\n    print({code})\n"
        "except OSError as error:\n    print(errno.errorcode[error.errno])\n"
        "except ValueError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        ["/usr/bin/python3", "-I", "-S", "-c", program, *map(str, args)],
        user=uid,
        group=uid,
        extra_groups=[],
        pass_fds=fds,
        cwd="/",
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


REOPEN = "os.write(os.open(f'/proc/self/fd/{args[0]}', os.O_RDWR), b'evil')"
WRITE = "os.write(int(args[0]), b'evil')"
MAP = "len(mmap.mmap(int(args[0]), 4096))"  # shared, to read and to write


# ------------------------------------------------------------------------------ regions


def test_a_reader_cannot_write_through_its_descriptor(lab: Lab) -> None:
    own = create_region("own", 4096)
    try:
        assert attempt(WRITE, own, fds=[own]) == "4", "a writable descriptor does not write"
        assert attempt(MAP, own, fds=[own]) == "4096"
    finally:
        os.close(own)
    with Place(lab, "evil") as place:
        control, _, payload, _ = place.peers[0].fds
        for fd in (control, payload):
            assert attempt(WRITE, fd, fds=[fd]) == "EBADF"
            assert attempt(MAP, fd, fds=[fd]) == "EACCES"


def test_a_reader_cannot_reopen_what_it_reads_for_writing(lab: Lab) -> None:
    """A memfd as the kernel makes it can be: its mode is 0777."""
    bare = os.memfd_create("bare", os.MFD_CLOEXEC)
    os.ftruncate(bare, 4096)
    read_only = reopen(bare)
    try:
        assert attempt(REOPEN, read_only, fds=[read_only]) == "4", "the attack does not work"
    finally:
        os.close(read_only)
        os.close(bare)
    with Place(lab, "evil") as place:
        control, _, payload, _ = place.peers[0].fds
        other = worker_uid(lab.status()["id"], 2)  # c's, for which a's regions are a stranger's
        for fd in (control, payload):
            for uid in (STRANGER, other):
                assert attempt(REOPEN, fd, uid=uid, fds=[fd]) == "EACCES"


TRUNCATE = "os.ftruncate(int(args[0]), int(args[1]))"


@pytest.mark.parametrize("size", [0, 4096, 1 << 30])
def test_nobody_can_change_a_regions_size_not_even_its_writer(lab: Lab, size: int) -> None:
    bare = os.memfd_create("bare", os.MFD_CLOEXEC)
    os.ftruncate(bare, 8192)
    try:
        assert attempt(TRUNCATE, bare, size, fds=[bare]) == "None", "the attack does not work"
    finally:
        os.close(bare)
    with Place(lab, "evil") as place:
        writable = [place.message.fds[0], place.peers[0].fds[1]]
        for fd in writable:
            assert attempt(TRUNCATE, fd, size, fds=[fd]) == "EPERM"
            seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
            assert seals & fcntl.F_SEAL_SEAL, (
                "a seal could be added, to harm the writer's successor"
            )


def test_a_worker_holds_its_own_channels_and_no_others(lab: Lab) -> None:
    """What is mapped as well as what is open; the supervisor shows what there would be to find."""
    everything = _channels(lab.status()["supervisor"]["pid"])
    assert everything == {(i, j) for i in range(3) for j in range(3) if i != j}
    for port in lab.status()["ports"]:
        index, pid = port["index"], port["worker"]["pid"]
        own = {ends for ends in everything if index in ends}
        assert _channels(pid) == own
        assert {ends for ends, writable in _mapped(pid) if writable} == {
            ends for ends in own if ends[0] == index
        }


def _channels(pid: int) -> set[tuple[int, int]]:
    """Payload regions that a process has open."""
    links = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # it has just been closed
            links.append(os.readlink(entry))
    return {_ends(link) for link in links if "channel-" in link}


def _mapped(pid: int) -> set[tuple[tuple[int, int], bool]]:
    """Payload regions that a process has mapped, and whether it may write."""
    lines = [
        line for line in Path(f"/proc/{pid}/maps").read_text().splitlines() if "channel-" in line
    ]
    return {(_ends(line), "w" in line.split()[1]) for line in lines}


def _ends(name: str) -> tuple[int, int]:
    src, dst = name.partition("channel-")[2].split()[0].split("-")
    return int(src), int(dst)


STEAL = (
    "ctypes.CDLL(None, use_errno=True).syscall(438,"
    " ctypes.CDLL(None).syscall(434, int(args[0]), 0), int(args[1]), 0) >= 0"
)  # pidfd_getfd(pidfd_open(pid), fd)


def test_no_other_worker_can_take_a_workers_descriptors(lab: Lab) -> None:
    """By pidfd_getfd() and by /proc; of a process of the same user both give them."""
    victim = labs.port_status(lab, "a")["worker"]
    other = labs.port_status(lab, "b")["worker"]["uid"]
    look = "len(os.listdir(f'/proc/{args[0]}/fd')) > 0"
    with _bystander(other) as pid:
        assert attempt(look, pid, uid=other) == "True", "the attack does not work"
        if Path("/proc/sys/kernel/yama/ptrace_scope").exists() is False:
            assert attempt(STEAL, pid, 0, uid=other) == "True", "the attack does not work"
    assert attempt(look, victim["pid"], uid=other) == "EACCES"
    assert attempt(STEAL, victim["pid"], 3, uid=other) == "False"
    # Not dumpable: not even its own user may.
    assert attempt(look, victim["pid"], uid=victim["uid"]) == "EACCES"
    assert attempt(STEAL, victim["pid"], 3, uid=victim["uid"]) == "False"


class _bystander:  # noqa: N801 - used as a function
    """A process of a user, of no interest."""

    def __init__(self, uid: int) -> None:
        self._process = subprocess.Popen(["/bin/sleep", "60"], user=uid, group=uid, extra_groups=[])

    def __enter__(self) -> int:
        return self._process.pid

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()


# ------------------------------------------------------------------------------ sockets

CONNECT = "socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET).connect(args[0])"


def _sockets(lab: Lab) -> list[Path]:
    return sorted(paths.lab_dir(lab.name).glob("*.sock"))


def test_no_other_user_reaches_the_sockets_of_a_lab(lab: Lab, tmp_path: Path) -> None:
    """Neither a stranger, nor a worker of this lab or of another."""
    open_place = Path("/tmp") / f"mint-enforced-{os.getpid()}.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(open_place))
        try:
            open_place.chmod(0o666)
            listener.listen()
            assert attempt(CONNECT, open_place) == "None", "the attack does not work"
        finally:
            open_place.unlink()
    assert len(_sockets(lab)) == 4
    with Lab.up(labs.source("other", "xy")) as second:
        uids = [
            lab.status()["ports"][0]["worker"]["uid"],
            second.status()["ports"][0]["worker"]["uid"],
        ]
        assert len(set(uids)) == 2, "two labs share a user"
        for path in [*_sockets(lab), *_sockets(second)]:
            for uid in (STRANGER, *uids):
                assert attempt(CONNECT, path, uid=uid) == "EACCES"


def test_a_stranger_who_gets_to_the_socket_is_not_answered(lab: Lab) -> None:
    """The second line: the first, the modes, is switched off here."""
    ask = (
        '(lambda s: (s.connect(args[0]), s.settimeout(5), s.send(b\'.{"op": "status"}\'),'
        " len(s.recv(65536)))[-1])(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))"
    )
    path = paths.lab_dir(lab.name) / "supervisor.sock"
    assert int(attempt(ask, path, uid=0)) > 100, "root is not answered"
    path.chmod(0o666)
    path.parent.chmod(0o711)
    base = path.parent.parent.parent
    mode = base.stat().st_mode
    base.chmod(0o711)
    try:
        assert attempt(ask, path) in ("0", "EPIPE", "ECONNRESET")
    finally:
        base.chmod(mode)
        path.parent.chmod(0o700)
    assert lab.status()["state"] == "ready"


def test_two_labs_do_not_hear_each_other(lab: Lab) -> None:
    """What is broadcast in one arrives in it, and not in the other, which has the same addresses."""
    frame = "ffffffffffff" + "{}" + ETHERTYPE + "00" * 46
    with Lab.up(labs.source("other", "xy")) as second:
        assert labs.address(lab, "a") == labs.address(second, "x")
        with lab.attach("ear") as here, second.attach("ear") as there:
            mac = labs.node_status(lab, "a")["mac"].replace(":", "")
            with inside(lab["a"], "raw-send", "vni0", frame.format(mac)) as sender:
                sender.result("sent")
            assert _heard(here) == [bytes.fromhex(mac)]
            assert _heard(there) == []


def _heard(port: object, timeout: float = 0.5) -> list[bytes]:
    """Source MACs of the frames of our type that arrive."""
    found: list[bytes] = []
    while frames := port.recv_many(64, timeout=timeout):  # type: ignore[attr-defined]
        found += [frame[6:12] for frame in frames if frame[12:14].hex() == ETHERTYPE]
    return found


# -------------------------------------------------------------------------------- frames


@pytest.mark.parametrize("trusted", [True, False], ids=["bridge", "node"])
def test_a_node_cannot_use_another_mac(machine: None, trusted: bool) -> None:
    """The defence is off for nodes that are bridges: there it arrives."""
    nodes = {"a": {"bridge": trusted}, "b": {}}
    stolen = "02aabbccddee"
    with Lab.up(labs.source("spoof", nodes)) as lab, lab.attach("ear") as ear:
        frame = "ffffffffffff" + stolen + ETHERTYPE + "00" * 46
        with inside(lab["a"], "raw-send", "vni0", frame) as sender:
            sender.result("sent")
        assert _heard(ear) == ([bytes.fromhex(stolen)] if trusted else [])
        channels = {(c["from"], c["to"]): c["rx"]["drop_spoof"] for c in lab.status()["channels"]}
        assert channels["a", "b"] == (0 if trusted else 1)
        ping(lab["b"], "a")


# ------------------------------------------------------------------------------- workers


def test_workers_have_no_privileges_left(lab: Lab) -> None:
    """Their supervisor shows that /proc would tell."""
    assert _status_of(lab.status()["supervisor"]["pid"])["CapEff"] != "0" * 16
    uids = set()
    for port in lab.status()["ports"]:
        status = _status_of(port["worker"]["pid"])
        uid = str(port["worker"]["uid"])
        uids.add(uid)
        assert status["Uid"].split() == status["Gid"].split() == [uid] * 4
        assert int(uid) == worker_uid(lab.status()["id"], port["index"])
        for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert status[kind] == "0" * 16, kind
        assert (status["NoNewPrivs"], status["Seccomp"], status["Groups"]) == ("1", "2", "")
        mounts = Path(f"/proc/{port['worker']['pid']}/mounts").read_text().splitlines()
        assert [line.split()[:3] for line in mounts] == [["mint-worker", "/", "tmpfs"]]
    assert len(uids) == 3


def _status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}
