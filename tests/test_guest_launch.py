# SPDX-License-Identifier: Apache-2.0
"""What a confined program gets to see and may do: small programs, no guest."""

from __future__ import annotations

import os
import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mint_vni.errors import NodeError
from mint_vni.nodes.guest.launch import Bind, Confinement, Running, launch, library_binds
from mint_vni.nodes.memlog import make_log, read_log
from node_bench import NAMESPACES, link, soon, until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="takes root")

UID = 1_946_157_061
STEPS = ["spawn", "process", "namespaces", "journal", "boot"]


class Launcher:
    """Runs shell scripts as confined programs."""

    def __init__(self, directory: Path) -> None:
        self.mount_point = directory / "root"
        self.mount_point.mkdir()
        self.log = make_log("test-launch")
        self.running: list[Running] = []
        self.steps: list[str] = []

    def spec(self, script: str, **changes: Any) -> Confinement:
        programs = ("/bin/sh", "/bin/cat", "/bin/ls", "/bin/sleep", "/usr/bin/id", "/bin/dd")
        binds: dict[str, Bind] = {}
        for program in programs:
            binds |= {bind[1]: bind for bind in library_binds(str(program))}
        values: dict[str, Any] = {
            "name": "confined",
            "uid": UID,
            "mount_point": str(self.mount_point),
            "argv": ["/bin/sh", "-c", script],
            "env": {"PATH": "/bin:/usr/bin"},
            "binds": [*binds.values(), *changes.pop("more_binds", [])],
        }
        return Confinement(**(values | changes))

    def start(self, script: str, **changes: Any) -> Running:
        running = launch(
            self.spec(script, **changes), self.log, self.running.append, self.steps.append
        )
        assert self.running[-1] == running
        return running

    def say(self, script: str, **changes: Any) -> str:
        """Run a script to its end; what it printed."""
        running = self.start(script, **changes)
        until("it ends", lambda: not running.alive())
        return read_log(self.log)

    def close(self) -> None:
        for running in self.running:
            assert running.kill(soon())
        os.close(self.log)


@pytest.fixture
def launcher(tmp_path: Path) -> Iterator[Launcher]:
    made = Launcher(tmp_path)
    yield made
    made.close()
    assert not list(made.mount_point.iterdir()), "what is mounted there is seen by nobody else"


def field(status: str, name: str) -> str:
    match = re.search(rf"^{name}:[ \t]*(.*)$", status, re.MULTILINE)
    assert match, name
    return match[1]


def test_privileges(launcher: Launcher) -> None:
    status = launcher.say("cat /proc/self/status; cat /proc/1/status")
    for name in ("Uid", "Gid"):
        assert (
            re.findall(rf"^{name}:[ \t]*(.*)$", status, re.MULTILINE)
            == ["\t".join([str(UID)] * 4)] * 2
        ), "also of the first process"
    assert field(status, "Groups") == ""
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        values = re.findall(rf"^{name}:[ \t]*(.*)$", status, re.MULTILINE)
        assert [int(value, 16) for value in values] == [0, 0], name
    assert field(status, "NoNewPrivs") == "1"


def test_namespaces_are_its_own_and_end_with_it(launcher: Launcher) -> None:
    running = launcher.start("sleep 60 & sleep 60")
    for name in NAMESPACES:
        assert link(f"/proc/{running.pid}/ns/{name}") not in (None, link(f"/proc/self/ns/{name}"))
    assert launcher.steps == STEPS
    inside = link(f"/proc/{running.pid}/ns/pid")

    def others() -> list[str]:
        return [str(p) for p in Path("/proc").glob("[0-9]*/ns/pid") if link(p) == inside]

    until("both run", lambda: len(others()) >= 4)
    assert running.kill(soon())
    # Its own first process may still wait to be reaped by whoever inherited it.
    assert set(others()) <= {f"/proc/{running.pid}/ns/pid"}


def test_it_sees_only_what_it_was_given(launcher: Launcher) -> None:
    said = launcher.say("ls -A /; ls -A /dev; ls /bin; ls /proc | grep -c '^[0-9]' || true")
    names = set(said.split())
    assert {"bin", "dev", "lib", "mint-first", "proc", "usr", "null", "zero", "urandom"} <= names
    assert not names & {"etc", "home", "root", "sys", "run", "tmp", "var", "boot", "kvm", "mem"}


def test_nothing_can_be_written_but_what_is_meant_to(launcher: Launcher, tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir(mode=0o777)
    (tmp_path / "shared").chmod(0o777)
    shared = str(tmp_path / "shared")
    said = launcher.say(
        "for f in /x /bin/x /dev/x /proc/x /ro/x; do echo x > $f || echo no $f; done;"
        "echo x > /rw/x && echo yes; echo x > /tmp/x && echo yes; echo x > /dev/null && echo yes",
        more_binds=[(shared, "/ro", ""), (shared, "/rw", "w")],
        tmpfs=[("/tmp", 1 << 20, 0o700)],
    )
    assert said.count("no /") == 5
    assert said.count("yes") == 3
    assert [path.name for path in (tmp_path / "shared").iterdir()] == ["x"]


def test_tmpfs_is_of_the_size_that_was_asked_for(launcher: Launcher) -> None:
    said = launcher.say(
        "dd if=/dev/zero of=/tmp/x bs=64k count=100 2>&1; ls -l /tmp/x",
        tmpfs=[("/tmp", 1 << 20, 0o700)],
    )
    assert "No space left" in said
    assert f" {1 << 20} " in said


def test_a_view_of_the_host_has_its_files_only(launcher: Launcher) -> None:
    said = launcher.say(
        "cat /view/etc/hostname >/dev/null && echo read; cat /view/etc/shadow; echo x > /view/x;"
        "echo x > /view/var/tmp/x; echo x > /view/tmp/x;"
        "for d in proc sys dev run tmp; do echo $d: $(ls -A /view/$d 2>/dev/null); done",
        view=("/", "/view"),
    )
    assert "read" in said
    assert "/view/etc/shadow: Permission denied" in said
    assert said.count("Read-only file system") + said.count("can't create /view") >= 3
    for name in ("proc", "sys", "dev", "run", "tmp"):
        if not Path("/", name).is_symlink():
            assert re.search(rf"^{name}:$", said.replace(": \n", ":\n"), re.MULTILINE), said


def test_a_view_of_a_directory(launcher: Launcher, tmp_path: Path) -> None:
    (tmp_path / "top").mkdir()
    (tmp_path / "top" / "file").write_text("content")
    said = launcher.say("cat /view/file; echo x > /view/y", view=(str(tmp_path / "top"), "/view"))
    assert said.startswith("content")
    assert [path.name for path in (tmp_path / "top").iterdir()] == ["file"]


def test_descriptors(launcher: Launcher) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, open("/etc/hostname", "rb") as extra:
        os.set_inheritable(extra.fileno(), True)
        said = launcher.say("ls -l /proc/self/fd", fds=[theirs.fileno()])
        seen = dict(re.findall(r" (\d+) -> (\S+)", said))
        assert seen.pop(str(theirs.fileno())) == link(f"/proc/self/fd/{theirs.fileno()}")
        assert seen.pop("0") == "/dev/null"
        assert seen.pop("1") == seen.pop("2") == "/memfd:test-launch"
        assert [path.partition("/fd")[0] for path in seen.values()] == ["/proc/3"], "what ls reads"


@pytest.mark.skipif(not Path("/dev/kvm").exists(), reason="there is no /dev/kvm here")
def test_a_private_device_leaves_the_hosts_as_it_is(launcher: Launcher) -> None:
    before = os.stat("/dev/kvm")
    said = launcher.say("ls -ln /dev/kvm; exec 3<>/dev/kvm && echo open", private_devices=["kvm"])
    assert f"{UID} {UID} 10, 232" in " ".join(said.split())
    after = os.stat("/dev/kvm")
    assert (before.st_mode, before.st_uid, before.st_gid) == (
        after.st_mode,
        after.st_uid,
        after.st_gid,
    )


def test_limits(launcher: Launcher) -> None:
    said = launcher.say("ulimit -c; ulimit -n", rlimits={"NOFILE": 77})
    assert said.split() == ["0", "77"]


def test_how_it_ended_is_in_the_log(launcher: Launcher) -> None:
    assert "sh ended with status 3" in launcher.say("exit 3")
    assert "sh was ended by signal 6 (Aborted)" in launcher.say("kill -ABRT $$")


def test_errors_say_what_is_wrong(launcher: Launcher) -> None:
    with pytest.raises(NodeError, match="No such file or directory: /nowhere"):
        launcher.start("", argv=["/nowhere"])
    with pytest.raises(NodeError, match=r"cannot mount /not/there on .*/x: No such file"):
        launcher.start("", more_binds=[("/not/there", "/x", "")])
    assert [running.alive() for running in launcher.running] == [False]


def test_whoever_holds_it_can_refuse(launcher: Launcher) -> None:
    held: list[Running] = []

    def refuse(running: Running) -> None:
        held.append(running)
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        launch(launcher.spec("sleep 60"), launcher.log, refuse)
    until("it has ended", lambda: not held[0].alive())


@pytest.mark.parametrize("step", STEPS)
def test_a_fault_after_any_step_ends_it(launcher: Launcher, step: str) -> None:
    def fail(name: str) -> None:
        if name == step:
            raise RuntimeError(name)

    with pytest.raises(RuntimeError, match=step):
        launch(launcher.spec("sleep 60"), launcher.log, launcher.running.append, fail)
    assert not any(running.alive() for running in launcher.running)
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
    until(
        "no script is left",
        lambda: (
            not [
                pid
                for pid in children.read_text().split()
                if "_launch.py" in Path(f"/proc/{pid}/cmdline").read_text()
            ]
        ),
    )


def test_libraries(tmp_path: Path) -> None:
    shell = shutil.which("sh", path="/bin") or "/bin/sh"
    binds = library_binds(shell)
    assert binds[0] == (shell, shell, "x")
    assert any("libc.so" in target for _, target, _ in binds)
    assert all(Path(source).is_file() for source, _, _ in binds)
