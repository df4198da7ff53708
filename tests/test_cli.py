# SPDX-License-Identifier: Apache-2.0
"""The command line over a fake Lab, from outside: streams, exit statuses, signals."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

import mint_vni
from fake_lab import FakeLab
from mint_vni import cli, errors
from mint_vni.cli.logs import _Printer
from mint_vni.lab import clean
from mint_vni.lab.clean import Cleared

DEADLINE = 30.0
PROGRAM = [sys.executable, str(Path(__file__).with_name("fake_lab.py"))]


@pytest.fixture(autouse=True)
def labs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of the labs that are up; here ``pair`` with nodes a and b."""
    directory = tmp_path / "labs"
    directory.mkdir()
    (directory / "pair").write_text("a b")
    monkeypatch.setenv("FAKE_LABS", str(directory))
    monkeypatch.delenv("MINT_DEBUG", raising=False)
    monkeypatch.delenv("COLUMNS", raising=False)
    # Not setattr: it would first look up, and so load, the real one.
    monkeypatch.setitem(vars(mint_vni), "Lab", FakeLab)
    return directory


class Ran:
    """What a run of mint left: exit status, standard output, standard error."""

    def __init__(self, status: int, out: str, err: str) -> None:
        self.status = status
        self.out = out
        self.err = err


def mint(capsys: pytest.CaptureFixture[str], *args: str) -> Ran:
    """Run in this process."""
    status = cli.main(args)
    out, err = capsys.readouterr()
    return Ran(status, out, err)


class Process:
    """A run of mint as a process of its own."""

    def __init__(self, args: tuple[str, ...], **options: Any) -> None:
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        # Whoever runs the tests may ignore SIGHUP (nohup) or SIGINT (a shell, for what it runs in the
        # background), and what is ignored is inherited.
        plain = ["env", "--default-signal=HUP,INT,TERM", *PROGRAM, *args]
        self.popen = subprocess.Popen(plain, text=True, **(pipes | options))
        assert self.popen.stdout is not None
        assert self.popen.stderr is not None
        self.stdout = self.popen.stdout
        self.stderr = self.popen.stderr

    def signal(self, number: int) -> None:
        self.popen.send_signal(number)

    def finish(self, send: str | None = None) -> Ran:
        out, err = self.popen.communicate(send, timeout=DEADLINE)
        return Ran(self.popen.returncode, out or "", err or "")


class Starter(Protocol):
    """The type of `start`."""

    def __call__(self, *args: str, **options: Any) -> Process: ...


@pytest.fixture
def start() -> Iterator[Starter]:
    """Start mint as a process; what still runs at the end of the test is ended."""
    started: list[Process] = []

    def run(*args: str, **options: Any) -> Process:
        started.append(Process(args, **options))
        return started[-1]

    yield run
    for process in started:
        process.popen.kill()
        with process.popen:
            pass


# ------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    "kind",
    [
        *(errors.LabStateError, errors.PlatformError, errors.NodeError, errors.FabricError),
        *(errors.FrameError, errors.InternalError, errors.MintError),
    ],
)
def test_an_error_is_one_line_and_its_exit_code(
    kind: type[errors.MintError],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(_name: str | None = None) -> FakeLab:
        raise kind("lab pair: the thing is wrong;\n do that")

    monkeypatch.setattr(FakeLab, "connect", refuse)
    ran = mint(capsys, "status")
    assert ran.status == kind.exit_code
    assert (ran.out, ran.err) == ("", "mint: lab pair: the thing is wrong; do that\n")


def test_a_mistake_in_a_lab_file_has_its_place(capsys: pytest.CaptureFixture[str]) -> None:
    ran = mint(capsys, "up", "bad.yaml")
    assert ran.status == 2
    assert ran.err == "mint: bad.yaml:7: node a: cpus: no CPU 9; choose from 0-1\n"


def test_a_mistake_of_mints_own_is_one_line(
    labs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (labs / "broken").write_text("a")
    ran = mint(capsys, "status", "broken")
    assert ran.status == 70
    assert ran.err.count("\n") == 1
    assert "KeyError: 'supervisor'" in ran.err
    assert "MINT_DEBUG=1" in ran.err
    monkeypatch.setenv("MINT_DEBUG", "1")
    assert "Traceback" in mint(capsys, "status", "broken").err


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["nonsense"], "mint: No such command 'nonsense'; try 'mint --help'\n"),
        (["up"], "mint: up: Missing argument 'LAB.yaml'; try 'mint up --help'\n"),
        (["exec", "a", "ls", "-l"], "put '--' before the command: mint exec NODE -- CMD\n"),
        (["exec"], "try 'mint exec --help'\n"),
        (["exec", "pair/a", "--lab", "other", "--", "ls"], "name two labs"),
        (["down", "pair", "--all"], "two answers"),
        (["logs", "a", "--source", "kernel"], "it has node, worker, sshd"),
        (["status", "--all", "--watch"], "neither a lab's name nor --watch"),
        (["bench", "frames", "--cpus", "one"], "not a list of CPUs"),
    ],
)
def test_wrong_usage_is_one_line(
    args: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = mint(capsys, *args)
    assert ran.status == 2
    assert ran.out == ""
    assert says in ran.err
    assert ran.err.startswith("mint: ")
    assert ran.err.count("\n") == 1


@pytest.mark.parametrize("args", [[], ["bench"]])
def test_without_a_verb_help_comes_on_stderr(
    args: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    ran = mint(capsys, *args)
    assert (ran.status, ran.out) == (2, "")
    assert "Usage: mint" in ran.err


def test_help_waits_for_nothing_heavy() -> None:
    code = "import sys; from mint_vni.cli import main; main(['--help']); print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=DEADLINE, check=True
    )
    help_text, _, modules = done.stdout.rstrip("\n").rpartition("\n")
    assert "Bring a lab up" in help_text
    heavy = {"cffi", "pyroute2", "ruamel.yaml", "rich.console", "mint_vni.lab.plan"}
    assert not heavy & set(modules.split())


# ---------------------------------------------------------------------------------- up, down


def test_up_keeps_data_and_messages_apart(labs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ran = mint(capsys, "up", "trio.yaml", "--json")
    assert ran.status == 0
    assert json.loads(ran.out)["lab"] == "trio"
    assert "mint: node a is ready\n" in ran.err
    assert "lab trio is ready: 2 nodes" in ran.err
    assert (labs / "trio").exists()


def test_up_without_json_prints_no_data(capsys: pytest.CaptureFixture[str]) -> None:
    assert mint(capsys, "up", "trio.yaml").out == ""


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_during_up_undoes_it(labs: Path, number: int, status: int, start: Starter) -> None:
    process = start("up", "slow.yaml")
    assert process.stderr.readline() == "mint: node a is ready\n"
    process.signal(number)
    ran = process.finish()
    assert ran.status == status
    assert "Traceback" not in ran.err
    assert not (labs / "slow").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_in_the_foreground_a_signal_takes_the_lab_down(
    labs: Path, number: int, start: Starter
) -> None:
    process = start("up", "trio.yaml", "--foreground", "--json")
    assert json.loads("".join(iter(process.stdout.readline, "}\n")) + "}")["lab"] == "trio"
    process.signal(number)
    ran = process.finish()
    assert ran.status == 0
    assert ran.err.endswith("mint: taking lab trio down\nmint: lab trio is down\n")
    assert not (labs / "trio").exists()


def test_in_the_foreground_it_ends_with_the_lab(labs: Path, start: Starter) -> None:
    process = start("up", "trio.yaml", "--foreground")
    assert "node a is ready" in process.stderr.readline()
    assert "Ctrl-C takes it down" in process.stderr.readline()
    (labs / "trio").unlink()
    ran = process.finish()
    assert (ran.status, ran.err) == (0, "mint: lab trio is down\n")


def test_dry_run_shows_the_plan_and_does_nothing(
    labs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "duo.yaml"
    file.write_text("lab: duo\nnetwork: {ipv4: 10.9.0.0/24}\nnodes:\n  a: {memory: 64M}\n  b: {}\n")
    table = mint(capsys, "up", str(file), "--dry-run")
    assert (table.status, table.err) == (0, "")
    assert "10.9.0.2/24" in table.out
    plan = json.loads(mint(capsys, "up", str(file), "--dry-run", "--json").out)
    assert plan["version"] == 1
    assert [node["memory"] for node in plan["plan"]["nodes"]] == [64 << 20, None]
    assert not (labs / "duo").exists()


def test_dry_run_finds_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "duo.yaml"
    file.write_text("lab: duo\nnodes:\n  a: {cpus: [8191]}\n  b: {}\n")
    ran = mint(capsys, "up", str(file), "--dry-run")
    assert ran.status == 2
    assert f"{file}:3: " in ran.err


def test_down_is_safe_to_repeat(labs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert mint(capsys, "down").err == "mint: lab pair is down\n"
    assert list(labs.iterdir()) == []
    assert mint(capsys, "down").err == "mint: no lab is up: nothing to do\n"
    again = mint(capsys, "down", "pair")
    assert (again.status, again.err) == (0, "mint: lab pair is not up: nothing to do\n")


def test_down_does_not_guess(labs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (labs / "other").write_text("a")
    ran = mint(capsys, "down")
    assert ran.status == 3
    assert "other, pair" in ran.err
    assert len(list(labs.iterdir())) == 2
    assert mint(capsys, "down", "--all").status == 0
    assert list(labs.iterdir()) == []


def test_down_all_goes_on_after_a_failure(labs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (labs / "a-broken-one").write_text("a")

    def refuse(self: FakeLab) -> None:
        if self.name != "pair":
            raise errors.NodeError(f"lab {self.name}: node a does not end; kill it")
        (labs / self.name).unlink()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FakeLab, "down", refuse)
        ran = mint(capsys, "down", "--all")
    assert ran.status == 5
    assert ran.err.endswith("mint: lab a-broken-one: node a does not end; kill it\n")
    assert [path.name for path in labs.iterdir()] == ["a-broken-one"]


# ------------------------------------------------------------------------------------ status


def test_status_json_is_the_dictionary(capsys: pytest.CaptureFixture[str]) -> None:
    ran = mint(capsys, "status", "--json")
    assert json.loads(ran.out) == FakeLab("pair", ["a", "b"]).status()
    assert ran.err == ""


def test_status_for_people_fits_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    out = mint(capsys, "status").out
    assert "a → b" in out
    assert "\x1b" not in out
    assert max(len(line) for line in out.splitlines()) <= 100


def test_status_of_several_labs(labs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (labs / "other").write_text("x y z")
    assert mint(capsys, "status").status == 3
    assert mint(capsys, "status", "other").status == 0
    found = json.loads(mint(capsys, "status", "--all", "--json").out)
    assert [(lab["lab"], len(lab["nodes"])) for lab in found["labs"]] == [("other", 3), ("pair", 2)]
    assert "/srv/labs/other.yaml" in mint(capsys, "status", "--all").out


def test_watching_prints_one_json_a_line_until_ctrl_c(start: Starter) -> None:
    process = start("status", "--watch", "--json", "--interval", "0.1")
    assert [json.loads(process.stdout.readline())["lab"] for _ in range(3)] == ["pair"] * 3
    process.signal(signal.SIGINT)
    ran = process.finish()
    assert (ran.status, ran.err) == (130, "")


def test_watching_for_people_shows_rates_after_the_first_look(start: Starter) -> None:
    process = start("status", "--watch", "--interval", "0.1")
    lines: list[str] = []
    while sum(line.startswith("trust") for line in lines) < 2:
        lines.append(process.stdout.readline())
        assert lines[-1], "it ended"
    process.signal(signal.SIGTERM)
    assert process.finish().status == 143
    traffic = [line.split()[6:8] for line in lines if line.startswith("a → b")]
    assert traffic[0] == ["17.8", "MiB"]
    assert traffic[1][0] == "0"  # the fake's counters do not move


def test_watching_ends_with_the_lab(labs: Path, start: Starter) -> None:
    process = start("status", "--watch", "--json", "--interval", "0.1")
    process.stdout.readline()
    (labs / "pair").unlink()
    ran = process.finish()
    assert (ran.status, ran.err) == (3, "mint: lab pair is not up\n")


@pytest.mark.parametrize("flags", [["--json"], []])
def test_a_broken_pipe_is_silent(flags: list[str], start: Starter) -> None:
    process = start("status", "--watch", "--interval", "0.1", *flags)
    process.stdout.readline()
    process.stdout.close()
    process.popen.stdout = None
    ran = process.finish()
    assert (ran.status, ran.err) == (141, "")


def test_a_closed_standard_output_is_no_traceback() -> None:
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", *PROGRAM, "status"],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


# --------------------------------------------------------------------------------- exec, ssh


def test_exec_is_the_command(start: Starter) -> None:
    shell = 'cat; echo "$FAKE_NODE $FAKE_WAY" >&2; exit 7'
    process = start("exec", "a", "--", "sh", "-c", shell, stdin=subprocess.PIPE)
    ran = process.finish("to the node\n")
    assert (ran.status, ran.out, ran.err) == (7, "to the node\n", "pair/a exec\n")


def test_exec_leaves_words_alone(start: Starter) -> None:
    ran = start(
        "exec", "b", "--lab", "pair", "--", "printf", "%s\n", "--", "-x", "", "a b"
    ).finish()
    assert (ran.status, ran.out) == (0, "--\n-x\n\na b\n")


def test_exec_ends_a_pipe_as_a_shell_would(start: Starter) -> None:
    # Python ignores SIGPIPE; a command that inherited that would complain, or never end.
    ran = start("exec", "a", "--", "sh", "-c", "(yes; echo $? >&2) | head -n 1").finish()
    assert (ran.status, ran.out, ran.err) == (0, "y\n", "141\n")


def test_exec_has_the_terminal(start: Starter) -> None:
    ours, theirs = pty.openpty()
    try:
        process = start("exec", "a", "--", "sh", "-c", "echo $FAKE_WAY; test -t 0", stdin=theirs)
        ran = process.finish()
    finally:
        os.close(ours)
        os.close(theirs)
    assert (ran.status, ran.out) == (0, "exec on a terminal\n")


def test_a_command_that_is_not_there(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fake_lab.FakeNode.exec_argv", lambda *_, **__: ["/no/such/nsenter"])
    ran = mint(capsys, "exec", "a", "--", "ls")
    assert ran.status == 4
    assert "/no/such/nsenter is not installed" in ran.err


@pytest.mark.parametrize(
    ("args", "node"),
    [(["a"], "pair/a"), (["pair/b"], "pair/b"), (["b", "--lab", "pair"], "pair/b")],
)
def test_ssh_finds_its_node(args: list[str], node: str, start: Starter) -> None:
    ran = start("ssh", *args).finish()
    assert {f"FAKE_NODE={node}", "FAKE_WAY=ssh"} <= set(ran.out.split("\n"))
    ran = start("ssh", *args, "--", "sh", "-c", "exit 3").finish()
    assert ran.status == 3


def test_console_finds_its_node(start: Starter) -> None:
    ran = start("console", "pair/b").finish()
    assert {"FAKE_NODE=pair/b", "FAKE_WAY=console"} <= set(ran.out.split("\n"))


def test_an_unknown_node_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    ran = mint(capsys, "ssh", "c")
    assert (ran.status, ran.err) == (3, "mint: lab pair has no node c\n")


# -------------------------------------------------------------------------------------- logs


def test_logs_stand_under_their_names(labs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (labs / "worker.log").write_text("up\n")
    ran = mint(capsys, "logs", "a")
    assert ran.out == "==> node <==\nbooted\n\n==> worker <==\nup\n\n==> sshd <==\nno newline\n"
    assert mint(capsys, "logs", "a", "--source", "sshd").out == "no newline"
    found = json.loads(mint(capsys, "logs", "a", "--json").out)
    assert (found["lab"], found["node"], found["logs"]["worker"]) == ("pair", "a", "up\n")


def test_logs_follow_what_is_said(labs: Path, start: Starter) -> None:
    said = labs / "worker.log"
    said.write_text("one\n")
    process = start("logs", "a", "--follow", "--source", "worker")
    assert process.stdout.readline() == "one\n"
    said.write_text("one\ntwo\n")
    assert process.stdout.readline() == "two\n"
    said.write_text("begun anew\n")
    assert process.stdout.readline() == "begun anew\n"
    process.signal(signal.SIGINT)
    assert process.finish().status == 130


LONG = "".join(f"[{n:6}] line {n}\n" for n in range(1000))

# What was there, what is there now, what of it is new.
CHANGES = {
    "appended": ("a\n", "a\nb\n", "b\n"),
    "within a line": ("a\nlogin: ", "a\nlogin: root\nb", "root\nb"),
    "nothing": (LONG, LONG, ""),
    "slid": (LONG, LONG[100:] + "more\n", "more\n"),
    "slid, within a line": (LONG + "login: ", LONG[100:] + "login: x\n", "x\n"),
    "slid far": (LONG, LONG[-2000:] + "more\n", "more\n"),
    "slid, and much the same": ("t\n" * 990 + "e\n", "t\n" * 900 + "e\nmore\n", "more\n"),
    "one log slid behind another": ("own\n" + LONG, "own\n" + LONG[40:] + "x\n", "x\n"),
    "inserted": ("own\n" + LONG, "own\nnew\n" + LONG, "new\n"),
    "inserted at the begin": (LONG, "new\n" + LONG, "new\n"),
    "inserted, and appended": ("own\n" + LONG, "own\nnew\n" + LONG + "x\n", "new\nx\n"),
    "inserted twice": ("a\nb\nc\n", "a\n1\nb\n2\nc\n3\n", "1\n2\n3\n"),
    "inserted before half a line": ("a\nlogin: ", "a\nb\nlogin: root", "b\nroot"),
    "begun anew": (LONG, "another\n", "another\n"),
    "begun anew, alike": ("boot\nbad\n", "boot\ngood\n", "boot\ngood\n"),
    "a part is missing": ("own\n" + LONG, "own\n", ""),
    "emptied": (LONG, "", ""),
    "a line's end cut in two": ("a\nb\r", "a\nb\nc", "\nc"),
    "a character cut in two": ("a \ufffd\ufffd", "a \u20ac b", "\u20ac b"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_logs_that_are_followed_are_said_once(
    change: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before, after, wanted = CHANGES[change]
    printer = _Printer(headings=False)
    printer.print({"node": before})
    assert capsys.readouterr().out == before.rstrip("\r\ufffd")
    for _ in range(2):
        printer.print({"node": after})
    assert capsys.readouterr().out == wanted


def test_logs_of_which_a_part_was_missing_are_not_said_again(
    capsys: pytest.CaptureFixture[str],
) -> None:
    printer = _Printer(headings=False)
    for text in ("own\n" + LONG, "own\n", "", "own\n" + LONG + "more\n"):
        printer.print({"node": text})
    assert capsys.readouterr().out == "own\n" + LONG + "more\n"


# ------------------------------------------------------------------------- gc, doctor, bench


def test_gc_says_what_it_did_and_could_not(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [Cleared("gone", "removed", ["cgroup /x"]), Cleared("pair", "running")]
    monkeypatch.setattr(clean, "collect", lambda *, dry_run: found[dry_run:])
    ran = mint(capsys, "gc", "--json")
    assert ran.status == 0
    assert json.loads(ran.out) == {
        "version": 1,
        "dry_run": False,
        "labs": [
            {"lab": "gone", "state": "removed", "entries": ["cgroup /x"], "problems": []},
            {"lab": "pair", "state": "running", "entries": [], "problems": []},
        ],
    }
    assert "cgroup /x" in mint(capsys, "gc").out
    assert mint(capsys, "gc", "--dry-run").err == "mint: no crashed lab left anything\n"
    found[0] = Cleared("gone", "failed", ["process sh pid 7"], ["process 7 does not end"])
    ran = mint(capsys, "gc")
    assert (ran.status, ran.err) == (5, "mint: lab gone: process 7 does not end\n")


def test_doctor_exits_as_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    ran = mint(capsys, "doctor", "--json")
    found = json.loads(ran.out)
    failed = [check["name"] for check in found["checks"] if check["status"] == "fail"]
    assert found["ok"] == (not failed)
    assert ran.status == (4 if failed else 0)
    table = mint(capsys, "doctor")
    assert table.status == ran.status
    assert all(check["name"] in table.out for check in found["checks"])


def test_bench_parts_get_their_options(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def run_cli(name: str, json_path: str | None, **options: Any) -> None:
        seen.update(options, name=name, json_path=json_path)

    fake = types.ModuleType("mint_vni.bench.parts")
    fake.run_cli = run_cli  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mint_vni.bench.parts", fake)
    words = "bench frames --size 64 --size 1500 --layout shared --cpus 0-1 --json out.json"
    assert mint(capsys, *words.split()).status == 0
    assert seen == {
        "name": "frames",
        "json_path": "out.json",
        "sizes": (64, 1500),
        "layouts": ("shared",),
        "repetitions": None,
        "seconds": None,
        "quick": False,
        "cpus": (0, 1),
    }
    for name in ("sockets", "latency", "isolation", "memory", "peers"):
        assert mint(capsys, "bench", name, "--quick", "--repetitions", "3").status == 0
        assert (seen["name"], seen["quick"], seen["repetitions"]) == (name, True, 3)


def test_bench_compare_refuses_what_is_no_result(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    ran = mint(capsys, "bench", "compare", str(tmp_path / "a"), str(tmp_path / "b"))
    assert (ran.status, ran.out) == (2, "")
    assert "No such file or directory" in ran.err


# -------------------------------------------------------------------------------- completion


def complete(start: Starter, *words: str) -> Ran:
    """What mint offers for the last of some words."""
    asked = {"COMP_WORDS": " ".join(["mint", *words]), "COMP_CWORD": str(len(words))}
    return start(env=os.environ | {"_MINT_COMPLETE": "complete_bash"} | asked).finish()


def test_completion_knows_verbs_labs_and_nodes(labs: Path, start: Starter) -> None:
    assert complete(start, "st").out.split() == ["status"]
    assert complete(start, "down", "").out.split() == ["pair"]
    assert complete(start, "exec", "").out.split() == ["a", "b"]
    (labs / "other").write_text("x")
    assert complete(start, "ssh", "").out.split() == ["other/x", "pair/a", "pair/b"]
    assert complete(start, "ssh", "pair/").out.split() == ["pair/a", "pair/b"]


def test_completion_says_nothing_when_it_fails(labs: Path, start: Starter) -> None:
    (labs / "broken").write_text("a")
    ran = complete(start, "exec", "")
    assert (ran.out.strip(), ran.err) == ("", "")
