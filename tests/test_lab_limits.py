# SPDX-License-Identifier: Apache-2.0
"""Labs that run out of something, hang in part, or are started again and again.

``MINT_LONG=1`` makes the repetitions what docs/security.md reports: see `LONG`.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import labs
import machine as machine_module
import mint_vni
from labs import ping, wait_for
from mint_vni.lab import Lab
from mint_vni.lab.journal import boot_id
from mint_vni.nodes.proc import process_start_time
from test_attack_live import stream
from test_lab_faults import BACK_S, is_back, worker

LONG = bool(os.environ.get("MINT_LONG"))
ROUNDS = 200 if LONG else 5  # times up and down
NODES = 64 if LONG else 12  # of the largest lab
GARBAGE = 10_000  # frames
STOPPED_S = 10.0
FREE_PAGES = (*range(24), 256) if LONG else (0, 2, 5, 8, 12, 256)  # on the disk


@pytest.fixture
def lab(machine: None) -> Iterator[Lab]:
    with Lab.up(labs.source("limits", "abcd")) as lab:
        yield lab


def restarts(lab: Lab) -> dict[str, int]:
    """How often each worker was started again."""
    return {p["name"]: p["worker"]["restarts"] for p in lab.status()["ports"] if p["worker"]}


# ------------------------------------------------------------------------- nonsense and hanging


def test_garbage_at_a_tap_harms_nobody(lab: Lab) -> None:
    """Ten thousand frames of random bytes; all of them are taken or counted."""
    before = labs.port_status(lab, "a")["counters"]["in_frames"]
    with stream(lab, "c", "d") as got:
        with labs.inside(lab["a"], "raw-garbage", "vni0", GARBAGE, 7) as sender:
            assert sender.result("sent", 60.0)["sent"] == GARBAGE
        wait_for("it is taken", lambda: _taken(lab, before) >= GARBAGE)
    labs.report(f"beside {GARBAGE} frames of garbage: {got}")
    assert got["corrupted"] == 0
    assert got["distinct"] == got["sent"]
    assert set(restarts(lab).values()) == {0}
    ping(lab["a"], "b", count=5)


def _taken(lab: Lab, before: int) -> int:
    """Frames that a's worker took since, or that found no room before it."""
    port = labs.port_status(lab, "a")
    return int(port["counters"]["in_frames"]) - before + int(port["drops"].get("queue", 0))


def test_a_worker_that_is_stopped_for_long_harms_nobody(lab: Lab) -> None:
    pid = worker(lab, "b")
    with stream(lab, "c", "d") as got:
        os.kill(pid, signal.SIGSTOP)
        start = time.monotonic()
        try:
            while time.monotonic() < start + STOPPED_S:
                ping(lab["a"], labs.address(lab, "c"), count=20)
                assert lab.status()["state"] == "ready"
        finally:
            os.kill(pid, signal.SIGCONT)
        ping(lab["a"], "b", count=5)
    assert got["corrupted"] == 0
    assert got["distinct"] == got["sent"]
    assert set(restarts(lab).values()) == {0}, "it had done no harm"


def test_a_hung_worker_delays_no_replacement(lab: Lab) -> None:
    """Whoever attaches waits until it is taken for hung, and it is replaced; others are at once."""
    hung, other = worker(lab, "b"), worker(lab, "c")
    os.kill(hung, signal.SIGSTOP)
    try:
        start = time.monotonic()
        code = f"import mint_vni; mint_vni.Lab.connect({lab.name!r}).attach('probe').close()"
        with labs.Child([sys.executable, "-c", code]) as attaching:
            wait_for("the attachment began", lambda: "probe" in _names(lab))
            labs.kill(other)
            killed = time.monotonic()
            wait_for("its replacement", lambda: is_back(lab, "c", 1))
            replaced = time.monotonic() - killed
            hanging = process_start_time(hung) is not None
            assert attaching.wait() == 0
        attached = time.monotonic() - start
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(hung, signal.SIGCONT)
    labs.report(f"replaced after {replaced:.3f} s beside a hung one; attached in {attached:.1f} s")
    assert hanging, "the replacement waited for the hung worker's end"
    wait_for("the hung worker's successor", lambda: is_back(lab, "b", 1))
    for src, dst in ("ab", "bc", "cd"):
        ping(lab[src], dst, count=3)


def _names(lab: Lab) -> set[str]:
    return {port["name"] for port in lab.status()["ports"]}


# ----------------------------------------------------------------------------------- full disks


@pytest.fixture
def small_disk(machine: None, tmp_path: Path) -> Iterator[Path]:
    """A directory for labs with little room, which `fill` takes."""
    place = tmp_path / "d"
    place.mkdir()
    argv = ["mount", "-t", "tmpfs", "-o", "size=4m,mode=0711", "mint-test-disk", str(place)]
    subprocess.run(argv, check=True, timeout=10)
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True, timeout=10)


def fill(disk: Path, leave: int) -> None:
    """Take all room but `leave` bytes."""
    (disk / "full").unlink(missing_ok=True)
    free = os.statvfs(disk)
    with (disk / "full").open("wb") as file:
        file.write(b"x" * (free.f_bavail * free.f_bsize - leave))


def test_a_full_disk_undoes_the_start(small_disk: Path, tmp_path: Path) -> None:
    """Wherever it gets full: the state, the journal, the keys, a log."""
    source = labs.source("full", "ab")
    file, place = labs.write(tmp_path, source), small_disk / "labs"
    environment = os.environ | {"MINT_RUN_DIR": str(place)}
    failed = 0
    for pages in FREE_PAGES:
        fill(small_disk, pages * 4096)
        before = machine_module.Machine.now()
        done = labs.mint("up", file, env=environment)
        if done.returncode == 0:
            assert labs.mint("down", source["lab"], env=environment).returncode == 0
        else:
            failed += 1
            assert "Traceback" not in done.stderr, done.stderr
            said = done.stderr.strip().splitlines()[-1]
            assert said.startswith("mint: "), done.stderr
            assert "space" in said or "supervisor" in said, said
        assert not (place / source["lab"]).exists(), pages
        wait_for("all is undone", lambda b=before: not _changed(b))  # type: ignore[misc]
    labs.report(f"a full disk: {failed} starts failed and were undone")
    assert failed >= 3
    assert done.returncode == 0, "with room it comes up"


def _changed(before: machine_module.Machine) -> list[str]:
    return before.differences(machine_module.Machine.now())


def test_a_full_disk_stops_neither_replacement_nor_adoption(
    small_disk: Path, tmp_path: Path
) -> None:
    """What cannot be written down now is as soon as there is room."""
    source = labs.source("full", "ab")
    environment = os.environ | {"MINT_RUN_DIR": str(small_disk / "labs")}

    def status() -> dict[str, Any]:
        said = labs.mint("status", source["lab"], "--json", env=environment).stdout
        found: dict[str, Any] = json.loads(said)
        return found

    def port() -> dict[str, Any]:
        return labs.by_name(status()["ports"], "a")

    file = labs.write(tmp_path, source)
    assert labs.mint("up", file, env=environment).returncode == 0
    fill(small_disk, 0)
    for times in (1, 2):
        labs.kill(port()["worker"]["pid"])
        wait_for("its replacement", lambda t=times: _served(port(), t))  # type: ignore[misc]
    state = small_disk / "labs" / source["lab"] / "state.json"
    pid = port()["worker"]["pid"]
    labs.kill(status()["supervisor"]["pid"])
    assert status()["supervisor"]["adoptions"] == 1
    assert status()["state"] == "ready"
    assert port()["worker"]["pid"] == pid
    assert json.loads(state.read_text())["adoptions"] == 0, "the disk was not full"
    (small_disk / "full").unlink()
    wait_for("the state", lambda: json.loads(state.read_text())["adoptions"] == 1, timeout=30)
    assert labs.mint("down", source["lab"], env=environment).returncode == 0


def _served(port: dict[str, Any], times: int) -> bool:
    return bool(port["state"] == "up" and port["worker"]["restarts"] == times)


# ------------------------------------------------------------------------- descriptors and memory


@contextlib.contextmanager
def limited(pid: int, what: int, limit: int) -> Iterator[None]:
    """A limit of a process that runs."""
    before = resource.prlimit(pid, what)
    resource.prlimit(pid, what, (limit, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, what, before)


@pytest.mark.parametrize("spare", range(24) if LONG else (0, 3, 5))
def test_a_supervisor_out_of_descriptors_recovers(lab: Lab, spare: int) -> None:
    """Wherever an attachment runs out of them: it fails, and is undone wholly."""
    pid = lab.status()["supervisor"]["pid"]
    held = wait_for("no client is connected", lambda: _steady(pid))
    numbers = {int(fd) for fd in os.listdir(f"/proc/{pid}/fd")}
    # The limit is of the number, not of how many: those that are free below count, too.
    limit, free = 0, 0
    while free < spare + 1:
        free += limit not in numbers
        limit += 1
    limit_it = limited(pid, resource.RLIMIT_NOFILE, limit)
    with limit_it, contextlib.suppress(mint_vni.MintError, OSError):
        lab.attach("probe").close()
    wait_for("it is answered again", lambda: _names(lab) == set("abcd"))
    wait_for("nothing was leaked", lambda: _steady(pid) <= held)
    lab.attach("probe").close()
    labs.kill(worker(lab, "a"))
    wait_for("the worker", lambda: is_back(lab, "a", restarts(lab)["a"]))
    ping(lab["a"], "b", count=3)


def _steady(pid: int) -> int:
    """How many descriptors a process has, once the number stays."""
    seen = -1
    for _ in range(100):
        now = len(os.listdir(f"/proc/{pid}/fd"))
        if now == seen:
            return now
        seen = now
        time.sleep(0.03)
    raise AssertionError("the number of descriptors does not settle")


def test_a_supervisor_out_of_memory_recovers(lab: Lab) -> None:
    pid = lab.status()["supervisor"]["pid"]
    size = int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()
    limit_it = limited(pid, resource.RLIMIT_AS, size)
    with limit_it, contextlib.suppress(mint_vni.MintError, OSError):
        lab.attach("probe").close()
    wait_for("it is answered again", lambda: _names(lab) == set("abcd"))
    lab.attach("probe").close()
    ping(lab["a"], "b", count=3)


def test_a_node_out_of_memory_harms_no_other(machine: None) -> None:
    with Lab.up(labs.source("memory", {"a": {"memory": "64M"}, "b": {}, "c": {}})) as lab:
        if labs.node_status(lab, "a")["memory_enforced_by"] == "none":
            pytest.skip("this machine has no controller for memory")
        with stream(lab, "b", "c") as got:
            code = "b = bytearray(256 << 20); print(len(b))"
            done = lab["a"].run(["/usr/bin/python3", "-c", code], check=False, timeout=60)
            assert done.returncode != 0, "it got more than the node has"
        assert got["corrupted"] == 0
        assert got["distinct"] == got["sent"]
        assert set(restarts(lab).values()) == {0}


# ------------------------------------------------------------------------------ again, and large


@pytest.mark.timeout(1800)
def test_up_and_down_again_and_again_grows_nothing(machine: None) -> None:
    """Descriptors and memory of a process that does it; the rest of the machine by the fixture."""
    source = labs.source("again", "ab")
    figures = []
    for _ in range(ROUNDS):
        with Lab.up(source):
            pass
        gc.collect()
        kib = int(Path("/proc/self/statm").read_text().split()[1]) * 4
        figures.append((len(os.listdir("/proc/self/fd")), kib))
    settled = figures[len(figures) // 4 :]
    labs.report(
        f"{ROUNDS} times up and down: descriptors and KiB at first {figures[0]}, after a quarter"
        f" {settled[0]}, at last {figures[-1]}"
    )
    # Another thread of the tests has one open now and then.
    assert settled[-1][0] <= settled[0][0] + 1
    assert settled[-1][1] < settled[0][1] + 4096


@pytest.mark.timeout(600)
def test_a_large_lab(machine: None) -> None:
    names = [f"n{i}" for i in range(NODES)]
    start = time.monotonic()
    with Lab.up(labs.source("large", names, fabric={"channel_bytes": "264K"})) as lab:
        ready = time.monotonic() - start
        for i, name in enumerate(names):
            ping(lab[name], labs.address(lab, names[(i + 1) % NODES]), count=2)
        killed = names[:: max(1, NODES // 8)]
        for name in killed:
            labs.kill(worker(lab, name))
        begin = time.monotonic()
        for name in killed:
            wait_for(f"worker of {name}", lambda n=name: is_back(lab, n, 1))  # type: ignore[misc]
        back = time.monotonic() - begin
        for name in killed:
            ping(lab[name], labs.address(lab, names[-1]), count=2)
        assert lab.status()["state"] == "ready"
        memory, down = lab.status()["memory"], time.monotonic()
    labs.report(
        f"{NODES} nodes: up in {ready:.1f} s, {len(killed)} workers killed at once back in"
        f" {back:.2f} s, down in {time.monotonic() - down:.1f} s, {memory}"
    )
    assert back < BACK_S * len(killed)


# --------------------------------------------------------------------------------- after a reboot


@pytest.mark.parametrize("boot", ["this", "another"])
def test_a_journal_of_another_boot_ends_nobody(machine: None, boot: str) -> None:
    """Its pids are somebody else's by now, even if they started at the same tick."""
    place = labs.lab_dir("rebooted")
    place.mkdir(parents=True)
    with subprocess.Popen(["/bin/sleep", "60"]) as bystander:
        entries = [
            {
                "kind": "lab",
                "id": "0badcafe",
                "name": "rebooted",
                "boot": boot_id() if boot == "this" else "00000000-0000-4000-8000-000000000000",
            },
            {
                "kind": "process",
                "pid": bystander.pid,
                "start": process_start_time(bystander.pid),
                "what": "worker a",
            },
            {"kind": "cgroup", "path": "/sys/fs/cgroup/memory/mint-0badcafe-a"},
        ]
        (place / "journal").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
        (place / "state.json").write_text('{"id": "0badcafe", "state": "starting"}')
        (place / "plan.json").write_text("{}")
        done = labs.mint("gc")
        assert done.returncode == 0, done.stderr
        assert not place.exists()
        # In this boot that process is what the journal says: the attack on the bystander works.
        if boot == "this":
            assert bystander.wait(5) == -signal.SIGKILL
        else:
            assert bystander.poll() is None
        bystander.kill()
