# SPDX-License-Identifier: Apache-2.0
"""A supervisor dies, and so does something else: the next one takes over what is left of the lab.

What it cannot take over harms neither the rest nor the clean-up: `mint down` ends what is written
down, whoever made it. Beside each part that fails stands one that has to go on.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import kinds
import labs
import mint_vni
from labs import inside, mint, ping, wait_for
from mint_vni.fabric.config import PortSpec
from mint_vni.fabric.regions import create_region
from mint_vni.lab import Lab, journal, wire
from mint_vni.lab.process import Process
from mint_vni.lab.protocol import encode
from mint_vni.nodes.files import made_here
from mint_vni.nodes.proc import process_start_time
from test_lab_faults import is_back, worker

ANSWERED_S = 4.0  # `mint status` beside an agent that says nothing: it waits for that one second


@pytest.fixture
def lab(machine: None) -> Iterator[Lab]:
    with Lab.up(labs.source("adopted", "abc")) as lab:
        yield lab


def supervisor(lab: Lab) -> int:
    return int(lab.status()["supervisor"]["pid"])


def goes_on(lab: Lab) -> None:
    """Traffic, replacements and new ports, all but b's."""
    labs.kill(worker(lab, "a"))
    wait_for("a's worker", lambda: is_back(lab, "a", 1), timeout=10)
    ping(lab["a"], labs.address(lab, "c"), count=3)
    with lab.attach("newcomer"):
        ping(lab["a"], labs.address(lab, "c"), count=3)
    names = {"a", "b", "c"}
    wait_for("its end", lambda: {p["name"] for p in lab.status()["ports"]} == names)


def ended(pid: int, start: int | None) -> None:
    wait_for(f"process {pid} has ended", lambda: process_start_time(pid) != start)


# ------------------------------------------------------------------------ workers and nodes


def test_a_port_that_was_lost_hinders_nobody(lab: Lab) -> None:
    victim = worker(lab, "b")
    labs.kill(supervisor(lab))
    labs.kill(victim)
    assert labs.port_status(lab, "b")["state"] == "down"
    goes_on(lab)


def test_a_worker_that_hangs_is_ended(lab: Lab) -> None:
    """Left alone, it could neither be watched nor replaced, and would outlive the lab."""
    victim, boss = worker(lab, "b"), supervisor(lab)
    start = process_start_time(victim)
    os.kill(victim, signal.SIGSTOP)
    labs.kill(boss)
    assert labs.port_status(lab, "b")["state"] == "down"
    ended(victim, start)
    goes_on(lab)


def test_a_worker_that_nobody_wrote_into_the_state_is_found(lab: Lab) -> None:
    """The journal names it; a supervisor that dies just after it replaced one wrote no more."""
    labs.kill(worker(lab, "a"))
    wait_for("a's worker", lambda: is_back(lab, "a", 1))
    pid = worker(lab, "a")
    labs.kill(supervisor(lab))
    assert worker(lab, "a") == pid
    assert lab.status()["state"] == "ready"


def test_a_node_that_ended_is_kept_until_the_lab_goes(lab: Lab) -> None:
    """Its control groups would stay else; the machine is compared in the end."""
    boss = supervisor(lab)
    labs.kill(labs.node_status(lab, "b")["pid"])
    labs.kill(boss)
    assert labs.node_status(lab, "b")["state"] == "failed"
    goes_on(lab)
    lab.down()


class Liar:
    """Answers in a worker's place, at its socket."""

    def __init__(self, path: Path, answers: list[tuple[bytes, list[int]]]) -> None:
        path.unlink()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(str(path))
        self._listener.listen(4)
        self._answers = answers

    def __enter__(self) -> Liar:
        self._pid = os.fork()
        if self._pid == 0:
            with contextlib.suppress(OSError):
                link, _ = self._listener.accept()
                wire.receive(link)
                for data, fds in self._answers:
                    wire.send(link, data, fds)
                time.sleep(60)
            os._exit(0)
        self._listener.close()
        return self

    def __exit__(self, *_: object) -> None:
        labs.kill(self._pid)
        os.waitpid(self._pid, 0)


def lies(pid: int, uid: int) -> dict[str, list[tuple[bytes, list[int]]]]:
    """What b's worker could say, in place of what it holds."""
    held = {os.readlink(f"/proc/{pid}/fd/{fd}"): fd for fd in os.listdir(f"/proc/{pid}/fd")}

    def size(name: str) -> int:
        return os.stat(f"/proc/{pid}/fd/{held[f'/memfd:mint-{name} (deleted)']}").st_size

    def sealed(size: int) -> int:
        return create_region("liar", size, uid)

    control, channel = size("control-1"), size("channel-1-0")
    unsealed, null = os.memfd_create("liar"), os.open("/dev/null", os.O_RDWR)
    os.ftruncate(unsealed, control)
    os.chown(unsealed, uid, uid)
    opening = wire.open_message(PortSpec(1, "b", "02:00:00:00:00:01"), 8, 0, 0, 0)
    give: tuple[bytes, list[int]] = (wire.plain_message(wire.GIVE), [])
    right = (opening, [sealed(control)])

    def peer(index: int, *fds: int) -> tuple[bytes, list[int]]:
        spec = PortSpec(index, "x", "02:00:00:00:00:09")
        return wire.add_peer_message(spec, channel), list(fds)

    parts = [sealed(control), sealed(channel), sealed(channel)]
    bell, other = socket.socketpair()
    other.close()
    doorbell = bell.detach()
    return {
        "nothing": [give],
        "no-region": [(opening, [null]), give],
        "short-region": [(opening, [sealed(4096)]), give],
        "unsealed-region": [(opening, [unsealed]), give],
        "region-of-another": [(opening, [create_region("root", control)]), give],
        "no-descriptors": [(opening, []), give],
        "endless": [peer(0, null)] * 200,
        "no-slot": [right, peer(9999, *parts, doorbell), give],
        "invented-port": [right, peer(5, *parts, doorbell), give],
        "peer-twice": [right, peer(0, null), peer(0, null), give],
    }


LIES = [
    "nothing",
    "no-region",
    "short-region",
    "unsealed-region",
    "region-of-another",
    "no-descriptors",
    "endless",
    "no-slot",
    "invented-port",
    "peer-twice",
]


@pytest.mark.parametrize("lie", LIES)
def test_a_worker_that_lies_is_ended(lab: Lab, lie: str) -> None:
    """Its guest may have taken it over: what it gives is looked at before it is used.

    Without the check of regions, one of another owner is taken, and so is a port that is none, with
    which no worker could be replaced any more; size and seals are looked at again when it is mapped.
    """
    port = labs.port_status(lab, "b")
    victim, boss = port["worker"]["pid"], supervisor(lab)
    start = process_start_time(victim)
    said = lies(victim, port["worker"]["uid"])
    labs.kill(boss)
    with Liar(labs.lab_dir(lab.name) / "w-b.sock", said[lie]):
        after = lab.status()
    for fd in {fd for messages in said.values() for _, fds in messages for fd in fds}:
        os.close(fd)
    assert after["supervisor"]["adoptions"] == 1
    assert labs.by_name(after["ports"], "b")["state"] == "down"
    assert {port["name"] for port in after["ports"]} == {"a", "b", "c"}
    ended(victim, start)
    goes_on(lab)


def test_a_raw_ports_end_is_told_after_an_adoption_too(lab: Lab) -> None:
    """Or who gets its place next would be deaf and dumb: its peers would think that they know it."""
    first = lab.attach("first")
    index = labs.port_status(lab, "first")["index"]
    labs.kill(supervisor(lab))
    assert lab.status()["supervisor"]["adoptions"] == 1
    first.close()
    names = {"a", "b", "c"}
    wait_for("its end", lambda: {p["name"] for p in lab.status()["ports"]} == names)
    with lab.attach("second") as second:
        assert labs.port_status(lab, "second")["index"] == index
        with inside(lab["a"], "raw-listen", "vni0", "88b5") as listener:
            listener.result("ready")
            second.send(b"\xff" * 6 + bytes.fromhex(second.mac.replace(":", "")) + b"\x88\xb5here")
            assert bytes.fromhex(listener.result("frame")["frame"])[14:] == b"here"


# ------------------------------------------------------------------------------------- guests


@pytest.fixture
def guests(machine: None) -> Iterator[Lab]:
    kinds.demand("uml")
    with Lab.up(labs.source("guests", {"a": {}, "c": {}, "g": kinds.SMALL["uml"]})) as lab:
        yield lab


def test_a_guest_without_its_agent_is_ended_with_the_lab(guests: Lab) -> None:
    """Nothing else ends it: its process, its file server, its control groups."""
    status = labs.node_status(guests, "g")
    boss = supervisor(guests)
    labs.kill(status["guest"]["agent_pid"])
    labs.kill(boss)
    assert labs.node_status(guests, "g")["state"] == "failed"
    guests.down()


def test_a_guest_is_kept_whoever_adopts_it(
    guests: Lab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Where kernels are is the affair of who brought it up: another user's command adopts it."""
    pid = labs.node_status(guests, "g")["pid"]
    labs.kill(supervisor(guests))
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("MINT_CACHE_DIR", str(tmp_path))
        assert mint("status", guests.name).returncode == 0
    status = labs.node_status(guests, "g")
    assert (status["state"], status["pid"]) == ("running", pid)
    assert status["guest"]["kernel_version"]
    assert guests["g"].run(["hostname"]).stdout == "g\n"
    since = time.monotonic()
    labs.kill(pid)
    wait_for("another", lambda: labs.node_status(guests, "g")["pid"] != pid, timeout=30)
    kinds.wait_up(guests, "g", since)
    kinds.reaches(guests, "a", "g")


def test_a_guest_and_its_worker_that_die_together_both_come_back(guests: Lab) -> None:
    since = time.monotonic()
    pid, other = labs.node_status(guests, "g")["pid"], worker(guests, "g")
    labs.kill(pid)
    labs.kill(other)
    wait_for("the worker", lambda: is_back(guests, "g", 1), timeout=10)
    kinds.wait_up(guests, "g", since)
    kinds.reaches(guests, "a", "g")


def _turned_away(path: Path) -> bool:
    """Connect, and leave at once: whoever does not accept keeps the place occupied."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.setblocking(False)
        try:
            sock.connect(str(path))
        except BlockingIOError:
            return True
        return False


def test_an_agent_that_says_nothing_delays_nobody_for_long(guests: Lab) -> None:
    """Neither the status, though so many wait that nobody is let in any more, nor a replacement."""
    agent = labs.node_status(guests, "g")["guest"]["agent_pid"]
    path = labs.lab_dir(guests.name) / "nodes" / "g" / "agent.sock"
    os.kill(agent, signal.SIGSTOP)
    try:
        while not _turned_away(path):
            pass
        for _ in range(2):
            start = time.monotonic()
            assert mint("status", guests.name, "--json").returncode == 0
            assert time.monotonic() - start < ANSWERED_S
        labs.kill(worker(guests, "a"))
        wait_for("a's worker", lambda: is_back(guests, "a", 1), timeout=10)
        ping(guests["a"], labs.address(guests, "c"), count=3)
    finally:
        os.kill(agent, signal.SIGCONT)
    kinds.reaches(guests, "a", "g")


# ------------------------------------------------------------------------------------ clean-up


def test_down_is_done_though_nobody_waits_for_it(machine: None) -> None:
    """The command was interrupted: neither lab nor supervisor stay."""
    lab = Lab.up(labs.source("left", "ab"))
    boss = supervisor(lab)
    start = process_start_time(boss)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as asking:
        asking.connect(str(labs.lab_dir(lab.name) / "supervisor.sock"))
        for packet in encode({"op": "down"}):
            asking.send(packet)
    wait_for("the lab's end", lambda: lab.name not in Lab.names())
    ended(boss, start)


def test_down_undoes_what_is_written_down_whoever_made_it(lab: Lab, tmp_path: Path) -> None:
    """What the supervisor does not know of any more; nothing that only looks like it."""
    mine, others = tmp_path / "mine", tmp_path / "others"
    mine.touch()
    others.touch()
    record = journal.Journal(labs.lab_dir(lab.name) / "journal")
    record.write("file", made_here(str(mine)))
    record.write("file", made_here(str(others)) | {"made": 0})
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    start = process_start_time(child)
    assert start is not None
    record.write("process", {"pid": child, "start": start, "what": "worker a"})
    record.write("process", {"pid": os.getpid(), "start": 1, "what": "worker b"})
    record.close()
    lab.down()
    assert not mine.exists()
    assert others.exists()
    assert Process(child, start).alive() is False
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def test_gc_leaves_alone_what_is_no_lab(tmp_path: Path) -> None:
    """A user may name any directory as the place of labs, with things of his own in it."""
    place = tmp_path / "srv"
    for name in ("www", "empty", "half"):
        (place / name).mkdir(parents=True, mode=0o700)
    (place / "www" / "index.html").write_text("precious")
    for name in ("nodes", "log", "photos"):  # more than a lab has at first
        (place / "half" / name).mkdir()
    (place / "link").symlink_to(tmp_path)
    (place / ".new-7-mine").mkdir()
    (place / ".new-7-mine" / "letter").touch()
    dead = place / "dead"  # of a run that was ended before its journal's first line
    for name in ("nodes", "log"):
        (dead / name).mkdir(parents=True)
    dead.chmod(stat.S_IRWXU)
    (dead / "adopt.lock").touch()
    deader = place / ".new-7-dead"
    deader.mkdir(mode=0o700)
    time.sleep(1.1)
    before = sorted(str(p) for p in place.rglob("*") if not {dead, deader} & {p, *p.parents})
    done = mint("gc", "--json", env=os.environ | {"MINT_RUN_DIR": str(place)})
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["labs"] == []
    assert sorted(str(p) for p in place.rglob("*")) == before
    assert (place / "www" / "index.html").read_text() == "precious"


def test_a_lab_of_another_boot_is_not_adopted(lab: Lab) -> None:
    """Its journal's pids mean others by now."""
    boss, place = supervisor(lab), labs.lab_dir(lab.name) / "journal"
    labs.kill(boss)
    right = place.read_text()
    place.write_text(right.replace(journal.boot_id(), "00000000-0000-4000-8000-000000000000"))
    labs.one_sentence(
        mint("status", lab.name), mint_vni.LabStateError.exit_code, "mint gc", "started"
    )
    place.write_text(right)
    goes_on(lab)
