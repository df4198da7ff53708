# SPDX-License-Identifier: Apache-2.0
"""Whatever ends a lab's start, or comes in its way, leaves nothing behind and harms nobody else."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import labs
import mint_vni
from labs import Child, mint, one_sentence, ping, wait_for
from mint_vni.cli import main
from mint_vni.lab import Lab, client
from mint_vni.lab.plan import read_plan

pytestmark = pytest.mark.usefixtures("machine")

INTERRUPTED = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}


class Starting:
    """A ``mint up`` that runs, at whose steps one can wait."""

    def __init__(self, directory: Path, name: str = "start") -> None:
        source = labs.source(name, "abc")
        self.name: str = source["lab"]
        self.file = labs.write(directory, source)
        self.directory = labs.lab_dir(self.name)
        self.child = Child(labs.mint_argv("up", self.file), stderr=True)

    def reach(self, moment: str) -> None:
        """Wait until this has happened."""
        found = {
            "directory": self.directory.exists,
            "journal": (self.directory / "journal").exists,
            "socket": (self.directory / "supervisor.sock").exists,
            "node": lambda: "process" in self._journal(),
            "worker": lambda: "worker" in self._journal(),
        }
        if moment in found:
            _wait_closely(moment, found[moment])
        else:
            self.child.expect(moment)

    def _journal(self) -> str:
        with contextlib.suppress(OSError):
            return (self.directory / "journal").read_text()
        return ""

    def supervisor(self) -> int:
        """The pid of its supervisor, as soon as there is one."""

        def look() -> int:
            with contextlib.suppress(OSError, ValueError):
                return int(json.loads((self.directory / "state.json").read_text())["supervisor"])
            return 0

        return wait_for("the supervisor", look)


def _wait_closely(what: str, look: Callable[[], bool]) -> None:
    """As `labs.wait_for`, without a pause between two looks."""
    end = time.monotonic() + labs.DEADLINE
    while not look():
        assert time.monotonic() < end, what


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Starting]:
    """A ``mint up`` that has just been started."""
    starting = Starting(tmp_path)
    with starting.child:
        yield starting


MOMENTS = ("directory", "journal", "socket", "starting 3", "node", "worker", "joining", "waiting")


# ------------------------------------------------------------------------------- interrupts


@pytest.mark.parametrize(
    ("number", "moment"),
    [(signal.SIGKILL, moment) for moment in MOMENTS]
    + [(signal.SIGINT, moment) for moment in MOMENTS[::2]]
    + [(signal.SIGTERM, moment) for moment in MOMENTS[1::2]],
)
def test_an_interrupted_start_is_undone(start: Starting, number: int, moment: str) -> None:
    start.reach(moment)
    os.kill(start.child.process.pid, number)
    assert start.child.wait() == INTERRUPTED[signal.Signals(number)]
    if number != signal.SIGKILL:
        assert not start.directory.exists(), "it ended before all was undone"
        assert "Traceback" not in _rest(start.child)
    _wait_undone(start)


def _rest(child: Child) -> str:
    """All that it said."""
    with contextlib.suppress(AssertionError):
        child.expect("\0")
    return "\n".join(child.lines)


def _wait_undone(start: Starting) -> None:
    """The supervisor undoes what it did; where none was started yet, mint gc does."""

    def undone() -> bool:
        if start.directory.exists() and not (start.directory / "journal").exists():
            assert mint("gc").returncode == 0
        return not start.directory.exists()

    wait_for("everything is undone", undone)


@pytest.mark.parametrize("delay_ms", [0, 5, 10, 15, 20, 30, 40])
def test_an_interrupt_when_it_is_ready_leaves_all_or_nothing(
    start: Starting, delay_ms: int
) -> None:
    """Whether it was still in time is the race; what it says and what it did agree."""
    start.reach("waiting")
    time.sleep(delay_ms / 1000)  # it is the moment that is tried out here
    with contextlib.suppress(ProcessLookupError):
        os.kill(start.child.process.pid, signal.SIGINT)
    status, said = start.child.wait(), _rest(start.child)
    is_up = start.name in Lab.names()
    assert is_up == ("is ready" in said), said
    # The interpreter itself is ended by a signal that comes last of all.
    assert status in ((0, -signal.SIGINT) if is_up else (130,)), said
    if is_up:
        assert mint("down", start.name).returncode == 0


def test_an_interrupt_is_too_late_once_the_lab_is_to_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Between the supervisor's being told to keep it and the sentence that says so."""
    keep = client._keep

    def kept(*args: Any) -> None:
        keep(*args)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(client, "_keep", kept)
    file = labs.write(tmp_path, source := labs.source("late", "ab"))
    assert main(["up", str(file)]) == 0
    assert "is ready" in capfd.readouterr().err
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
    assert main(["down", source["lab"]]) == 0
    # In the foreground it is the way to take the lab down.
    assert main(["up", "--foreground", str(file)]) == 0
    assert "is down" in capfd.readouterr().err
    assert Lab.names() == []


def test_a_lab_does_not_stay_against_its_maker(tmp_path: Path) -> None:
    def ready(lab: Lab) -> None:
        ping(lab["a"], "b", count=1)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Lab.up(labs.source("unwanted", "ab"), ready=ready)
    assert Lab.names() == []


@pytest.mark.parametrize("moment", MOMENTS[2:])
def test_a_supervisor_killed_while_it_starts(start: Starting, moment: str) -> None:
    """Nobody is left who knows but ``mint up``, which undoes it by what was written down."""
    pid = start.supervisor()
    start.reach(moment)
    os.kill(pid, signal.SIGKILL)
    assert start.child.wait() == mint_vni.LabStateError.exit_code
    assert "supervisor" in _rest(start.child)
    assert "Traceback" not in _rest(start.child)
    assert not start.directory.exists()


def test_both_killed_at_once_is_what_gc_is_for(start: Starting) -> None:
    pid = start.supervisor()
    start.reach("joining")
    os.kill(start.child.process.pid, signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)
    start.child.wait()
    wait_for("their end", lambda: not Path(f"/proc/{pid}/root").exists())
    one_sentence(mint("status", start.name), 3, start.name, "mint gc")
    cleared = json.loads(mint("gc", "--json").stdout)
    assert start.name in json.dumps(cleared)
    assert not start.directory.exists()
    assert mint("up", start.file).returncode == 0
    assert mint("down", start.name).returncode == 0


def test_foreground_takes_the_lab_down_at_the_end(tmp_path: Path) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        file = labs.write(tmp_path, labs.source("front", "ab"))
        with Child(labs.mint_argv("up", "--foreground", file), stderr=True) as child:
            child.expect("is ready")
            os.kill(child.process.pid, number)
            child.expect("is down")
            assert child.wait() == 0


# ------------------------------------------------------------------------ twice, and at once


def test_up_twice_says_so_and_harms_nothing(tmp_path: Path) -> None:
    file = labs.write(tmp_path, source := labs.source("twice", "abc"))
    assert mint("up", file).returncode == 0
    lab = Lab.connect(source["lab"])
    before = lab.status()
    one_sentence(mint("up", file), 3, "already up", f"mint down {lab.name}")
    with pytest.raises(mint_vni.LabStateError, match="already up"):
        Lab.up(source)
    after = lab.status()
    assert [after[key] for key in ("id", "state", "since")] == [
        before[key] for key in ("id", "state", "since")
    ]
    ping(lab["a"], "b", count=2)
    lab.down()


def test_down_twice_is_nothing_to_do(tmp_path: Path) -> None:
    file = labs.write(tmp_path, source := labs.source("down", "ab"))
    assert mint("up", file).returncode == 0
    lab = Lab.connect(source["lab"])
    for _ in range(2):
        assert mint("down", source["lab"]).returncode == 0
        lab.down()
    assert mint("down").returncode == 0


def test_two_downs_at_once_both_succeed(tmp_path: Path) -> None:
    file = labs.write(tmp_path, source := labs.source("downs", "abc"))
    assert mint("up", file).returncode == 0
    argv = labs.mint_argv("down", source["lab"])
    with Child(argv, stderr=True) as one, Child(argv, stderr=True) as other:
        statuses = [one.wait(), other.wait()]
        assert statuses == [0, 0], (_rest(one), _rest(other))


def test_of_two_starts_at_once_one_wins(tmp_path: Path) -> None:
    file = labs.write(tmp_path, source := labs.source("race", "abc"))
    argv = labs.mint_argv("up", file)
    with Child(argv, stderr=True) as one, Child(argv, stderr=True) as other:
        assert sorted((one.wait(), other.wait())) == [0, 3]
    lab = Lab.connect(source["lab"])
    assert lab.status()["state"] == "ready"
    for src, dst in ("ab", "bc", "ca"):
        ping(lab[src], dst, count=2)
    lab.down()


def test_gc_while_a_lab_starts_harms_nothing(start: Starting) -> None:
    while start.child.process.poll() is None:
        assert mint("gc").returncode == 0
    assert start.child.wait() == 0
    lab = Lab.connect(start.name)
    ping(lab["a"], "b", count=2)
    lab.down()


# ------------------------------------------------------------------- what is not ours stays


@pytest.fixture
def bystanders(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """Somebody else's process, control group and network namespace, with names like ours."""
    program = tmp_path / "mint-worker"
    shutil.copy(shutil.which("sleep") or "/bin/sleep", program)
    netns = "mint-deadbeef-a"
    groups = [Path("/sys/fs/cgroup", name) for name in ("memory", "cpuset", "unified", "")]
    group = next(path for path in groups if (path / "cgroup.procs").exists()) / "mint-deadbeef-a"
    subprocess.run(["ip", "netns", "add", netns], check=True, timeout=10)
    group.mkdir()
    with Child([str(program), "1000"]) as child:
        start = Path(f"/proc/{child.process.pid}/stat").read_text().rpartition(")")[2].split()[19]
        with contextlib.suppress(OSError):  # a cpuset without CPUs takes nobody
            (group / "cgroup.procs").write_text(str(child.process.pid))
        yield {"child": child, "start": int(start), "group": group, "netns": netns}
        child.process.kill()
        child.wait()
    wait_for("the group is empty", lambda: not (group / "cgroup.procs").read_text())
    group.rmdir()
    subprocess.run(["ip", "netns", "del", netns], check=True, timeout=10)
    with contextlib.suppress(OSError):
        Path("/run/netns").rmdir()
    subprocess.run(["umount", "/run/netns"], check=False, timeout=10, capture_output=True)
    with contextlib.suppress(OSError):
        Path("/run/netns").rmdir()


def test_gc_touches_nothing_of_others(bystanders: dict[str, Any]) -> None:
    """Not by their names, and not when a crashed lab's journal names a pid that is theirs now."""
    lab = Lab.up(labs.source("wreck", "ab"))
    child, directory = bystanders["child"], labs.lab_dir(lab.name)
    status = lab.status()
    with (directory / "journal").open("a") as journal:
        for kind, entry in (
            ("process", {"pid": child.process.pid, "start": bystanders["start"] + 1}),
            ("cgroup", {"path": str(bystanders["group"])}),
            ("cgroup", {"path": "/sys/fs/cgroup"}),
        ):
            journal.write(json.dumps({"kind": kind, **entry}) + "\n")
    (directory.parent / "not-a-lab.txt").write_text("somebody's")
    for pid in (status["supervisor"]["pid"], *(p["worker"]["pid"] for p in status["ports"])):
        labs.kill(pid)
    done = mint("gc", "--json")
    assert done.returncode == 0, done.stderr
    assert not directory.exists()
    assert child.process.poll() is None
    assert bystanders["group"].is_dir()
    assert (
        bystanders["netns"]
        in subprocess.run(
            ["ip", "netns"], capture_output=True, text=True, timeout=10, check=True
        ).stdout
    )
    (directory.parent / "not-a-lab.txt").unlink()
    mint("gc")


# --------------------------------------------------------------------------- cannot come up


def unshared(*commands: str) -> list[str]:
    """Run these in a mount namespace of one's own, then the rest of the command line."""
    return ["unshare", "-m", "sh", "-c", f'{"; ".join(commands)}; exec "$@"', "sh"]


def run(argv: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        argv, capture_output=True, text=True, timeout=60, check=False, stdin=subprocess.DEVNULL
    )


HOSTILE = {
    "no root": (
        ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"],
        4,
        ("root", "sudo"),
    ),
    "tun is a dummy": (
        unshared("mount --bind /dev/null /dev/net/tun"),
        4,
        ("/dev/net/tun",),
    ),
    "no tun": (
        unshared("mount -t tmpfs none /dev/net"),
        4,
        ("/dev/net/tun", "modprobe tun"),
    ),
    "no sshd": (
        unshared("mount --bind /dev/null $(command -v sshd || echo /usr/sbin/sshd)"),
        4,
        ("sshd", "apt-get install openssh-server"),
    ),
    "no ssh-keygen": (
        unshared("mount --bind /dev/null $(command -v ssh-keygen)"),
        4,
        ("ssh-keygen", "apt-get install openssh-client"),
    ),
    "few descriptors": (
        ["setpriv", "--bounding-set=-sys_resource", "prlimit", "--nofile=48:48"],
        4,
        ("descriptors", "ulimit"),
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_cannot_come_up_says_why_in_one_sentence(case: str) -> None:
    before, status, words = HOSTILE[case]
    # Not in tmp_path: nobody but root gets there.
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        Path(directory).chmod(0o755)
        file = labs.write(Path(directory), labs.source("cannot", "ab"))
        one_sentence(run([*before, *labs.mint_argv("up", file)]), status, *words)
    assert Lab.names() == []


def test_as_many_descriptors_as_the_plan_says_are_enough(tmp_path: Path) -> None:
    """With the estimate that the check goes by, eight nodes come up and take a raw port."""
    source = labs.source("exact", [f"n{i}" for i in range(8)])
    limit = read_plan(source).descriptors
    keep = ["setpriv", "--bounding-set=-sys_resource", "prlimit", f"--nofile={limit}:{limit}"]
    done = run([*keep, *labs.mint_argv("up", labs.write(tmp_path, source))])
    assert done.returncode == 0, done.stderr
    lab = Lab.connect(source["lab"])
    ping(lab["n0"], "n7", count=2)
    lab.attach("probe").close()
    lab.down()


def test_root_raises_its_limit_of_descriptors_itself(tmp_path: Path) -> None:
    effective = re.search(r"CapEff:\s*(\w+)", Path("/proc/self/status").read_text())
    if effective is None or not int(effective[1], 16) >> 24 & 1:
        pytest.skip("root has not got CAP_SYS_RESOURCE here")
    file = labs.write(tmp_path, source := labs.source("limit", "ab"))
    done = run(["prlimit", "--nofile=64:64", *labs.mint_argv("up", file)])
    assert done.returncode == 0, done.stderr
    assert mint("down", source["lab"]).returncode == 0


def test_without_root_python_says_the_same() -> None:
    code = (
        "import mint_vni as mint\n"
        "try: mint.Lab.up({'lab': 'x', 'nodes': {'a': {}, 'b': {}}})\n"
        "except mint.PlatformError as error: print(error)"
    )
    argv = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
    done = run([*argv, sys.executable, "-c", code])
    assert "root" in done.stdout, done.stderr


def test_a_place_with_too_long_a_name_is_refused(machine: None, tmp_path: Path) -> None:
    """A socket's name has room for 107 bytes; nothing is made there."""
    place = tmp_path / ("long" * 30)
    source = labs.source("long", "ab")
    environment = os.environ | {"MINT_RUN_DIR": str(place)}
    done = labs.mint("up", labs.write(tmp_path, source), env=environment)
    one_sentence(done, mint_vni.PlatformError.exit_code, "MINT_RUN_DIR", "107")
    assert not place.exists()
