# SPDX-License-Identifier: Apache-2.0
"""The command ``mint`` as its users run it: a process of its own over a real lab."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import labs
import machine as machine_module
from labs import Child, mint, mint_argv, one_sentence
from mint_vni.lab import Lab

# ------------------------------------------------------- the shapes that docs/cli.md promises

COUNT = {"type": "integer", "minimum": 0}
TEXT = {"type": "string", "minLength": 1}
MAC = {"type": "string", "pattern": "^([0-9a-f]{2}:){5}[0-9a-f]{2}$"}
COUNTERS = {"type": "object", "additionalProperties": COUNT}


def shape(**fields: Any) -> dict[str, Any]:
    """An object with exactly these fields."""
    return {
        "type": "object",
        "properties": fields,
        "required": list(fields),
        "additionalProperties": False,
    }


def either(*values: Any) -> dict[str, Any]:
    return {"enum": list(values)}


def or_null(schema: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}]}


NODE = shape(
    name=TEXT,
    kind=either("netns"),
    state=either("running", "starting", "stopped", "failed"),
    pid=COUNT,
    cpus={"type": "array", "items": COUNT},
    cpus_enforced_by=either("cgroup-v1", "cgroup-v2", "affinity", "none"),
    memory_limit=or_null(COUNT),
    memory_used=or_null(COUNT),
    memory_enforced_by=either("cgroup-v1", "cgroup-v2", "none"),
    interface=TEXT,
    mac=MAC,
    ipv4=or_null(TEXT),
    ipv6=or_null(TEXT),
    mtu=COUNT,
)
WORKER = shape(
    pid=COUNT, uid=COUNT, restarts=COUNT, cpu_seconds={"type": "number"}, private_bytes=COUNT
)
PORT = shape(
    name=TEXT,
    index=COUNT,
    attachment=either("tap", "vhost-user", "raw"),
    node=or_null(TEXT),
    mac=MAC,
    bridge={"type": "boolean"},
    state=either("up", "restarting", "down"),
    worker=or_null(WORKER),
    in_frames=COUNT,
    in_bytes=COUNT,
    out_frames=COUNT,
    out_bytes=COUNT,
    drops=COUNTERS,
    counters=COUNTERS,
)
CHANNEL = shape(
    **{"from": TEXT, "to": TEXT},
    state=either("open", "reset", "closed", "stalled"),
    frames=COUNT,
    bytes=COUNT,
    queued_bytes=COUNT,
    drops=COUNTERS,
    tx=COUNTERS,
    rx=COUNTERS,
)
STATUS = shape(
    version={"const": 1},
    lab=TEXT,
    id={"type": "string", "pattern": "^[0-9a-f]{8}$"},
    file=TEXT,
    state=either("ready", "starting", "stopping", "degraded"),
    since={"type": "string", "format": "date-time"},
    layout=either("per-channel", "shared", "pooled"),
    channel_bytes=COUNT,
    ssh=either("mesh", "host-only"),
    supervisor=shape(pid=COUNT, adoptions=COUNT),
    nodes={"type": "array", "items": NODE},
    ports={"type": "array", "items": PORT},
    channels={"type": "array", "items": CHANNEL},
    memory=shape(reserved_bytes=COUNT, committed_bytes=COUNT, control_bytes=COUNT, reclaims=COUNT),
    trust=shape(workers=either("separate-users", "same-user"), note={"type": "string"}),
)


def check_status(data: Any) -> None:
    """Check the shape, and that what is said twice agrees."""
    jsonschema.validate(data, STATUS)
    names = [port["name"] for port in data["ports"]]
    assert len(data["channels"]) == len(names) * (len(names) - 1)
    assert {c["from"] for c in data["channels"]} <= set(names)
    for port in data["ports"]:
        counted = {
            k.removeprefix("drop_") for k, v in port["counters"].items() if "drop_" in k and v
        }
        assert set(port["drops"]) == counted


# ---------------------------------------------------------------------------------- the lab


@pytest.fixture(scope="module")
def file(lab_host: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    nodes = {"a": {"cpus": [0], "memory": "256M"}, "b": {"cpus": [0]}, "c": {"memory": "64M"}}
    return labs.write(tmp_path_factory.mktemp("cli"), labs.source("cli", nodes, ssh="mesh"))


@pytest.fixture(scope="module", autouse=True)
def up(file: str) -> Iterator[subprocess.CompletedProcess[str]]:
    """The lab, brought up and down by mint itself."""
    with machine_module.unchanged():
        done = mint("up", "--json", file)
        assert done.returncode == 0, done.stderr
        yield done
        done = mint("down")
        assert (done.returncode, done.stdout) == (0, ""), done.stderr
        assert done.stderr.endswith("is down\n")


@pytest.fixture
def name(file: str) -> str:
    return Path(file).stem


def test_up_prints_progress_and_status(up: subprocess.CompletedProcess[str], file: str) -> None:
    status = json.loads(up.stdout)
    check_status(status)
    assert (status["state"], status["file"]) == ("ready", file)
    lines = up.stderr.splitlines()
    assert all(line.startswith("mint: ") for line in lines)
    assert "is ready: 3 nodes" in lines[-1]


def test_status_is_live_and_of_the_documented_shape(name: str) -> None:
    before: dict[str, Any] = {}
    after: dict[str, Any] = {}
    for target in (before, after):
        done = mint("status", "--json")
        assert (done.returncode, done.stderr) == (0, "")
        target.update(json.loads(done.stdout))
        check_status(target)
        assert mint("exec", "a", "--", "ping", "-qc", "5", "-i", "0.01", "b").returncode == 0
    assert labs.Moved(before, after).frames("a", "b") >= 5
    node = labs.by_name(after["nodes"], "a")
    assert (node["cpus"], node["memory_limit"]) == ([0], 256 << 20)
    assert 0 < node["memory_used"] < 256 << 20


def test_status_for_people_names_everything(name: str) -> None:
    done = mint("status", name, env=os.environ | {"COLUMNS": "120"})
    assert done.returncode == 0
    for word in (name, "ready", "10.77.0.1", "fd77::3", "a → b", "limits"):
        assert word in done.stdout, word
    everything = json.loads(mint("status", "--all", "--json").stdout)
    assert [lab["lab"] for lab in everything["labs"]] == [name]


def test_status_watch_goes_on(name: str) -> None:
    with Child(mint_argv("status", "--watch", "--json", "--interval", "0.1")) as child:
        for _ in range(3):
            check_status(json.loads(child.expect("{")))
        child.process.send_signal(signal.SIGINT)
        assert child.wait() == 130


# -------------------------------------------------------------------------------- exec, ssh


@pytest.mark.parametrize("verb", ["exec", "ssh"])
def test_streams_and_exit_status_are_the_commands(verb: str) -> None:
    script = "cat; echo oops >&2; exit 42"
    done = subprocess.run(
        mint_argv(verb, "b", "--", "sh", "-c", script),
        input="hello\n",
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (42, "hello\n", "oops\n")


@pytest.mark.parametrize("verb", ["exec", "ssh"])
def test_arguments_arrive_as_they_are(verb: str) -> None:
    words = ["a b", "$HOME", "'", '"', "*", "", "ü", "-n", "back\\slash", "new\nline"]
    done = mint(verb, "b", "--", "printf", "<%s>", *words)
    assert done.stdout == "".join(f"<{word}>" for word in words), done.stderr


def test_exec_runs_inside_the_node(name: str) -> None:
    assert mint("exec", "c", "--", "hostname").stdout == "c\n"
    assert mint("exec", f"{name}/c", "--", "hostname").stdout == "c\n"
    assert mint("exec", "--lab", name, "c", "--", "cat", "/etc/hostname").stdout == "c\n"
    assert mint("exec", "a", "--", "sh", "-c", "nproc").stdout == "1\n"
    assert mint("ssh", "b", "--", "nproc").stdout == "1\n"
    shown = mint("exec", "a", "--", "ps", "-e", "-o", "comm").stdout.split()
    assert {"sleep", "sshd", "ps"} >= set(shown[1:]), shown


def test_what_cannot_be_run_says_why() -> None:
    assert mint("exec", "a", "--", "no-such-program").returncode == 127
    assert mint("exec", "a", "--", "/etc/hosts").returncode == 126
    one_sentence(mint("exec", "nobody", "--", "true"), 3, "nobody", "a, b, c")
    one_sentence(mint("ssh", "nobody"), 3, "nobody")
    one_sentence(mint("exec", "elsewhere/a", "--", "true"), 3, "elsewhere")


def test_a_signal_to_mint_ends_the_command() -> None:
    script = "trap 'echo ended; exit 0' TERM; echo begun; while :; do sleep 0.05; done"
    with Child(mint_argv("exec", "a", "--", "sh", "-c", script)) as child:
        child.expect("begun")
        child.process.terminate()
        child.expect("ended")


def test_a_terminal_is_one_inside_and_ctrl_c_is_the_programs_own() -> None:
    """Under a terminal, an interrupt ends what runs in the node only if that wants it to."""
    code = (
        "import os, signal, sys, time\n"
        "def interrupted(*_):\n"
        "    os.write(1, b'got it')\n"
        "    sys.stdin.readline()\n"  # its end hangs the terminal up, with what is in it
        "    sys.exit(7)\n"
        "signal.signal(signal.SIGINT, interrupted)\n"
        "print('tty' if os.isatty(0) and os.isatty(1) else 'none', flush=True)\n"
        "time.sleep(30)"
    )
    argv = mint_argv("exec", "a", "--", "/usr/bin/python3", "-I", "-S", "-c", code)
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(argv[0], argv)
    try:
        assert "tty" in _read_until(terminal, "tty")
        os.write(terminal, b"\x03")
        assert "got it" in _read_until(terminal, "got it")
        os.write(terminal, b"\n")
        assert os.waitstatus_to_exitcode(_reap(pid)) == 7
    finally:
        os.close(terminal)


def _read_until(terminal: int, word: str) -> str:
    text, end = "", time.monotonic() + labs.DEADLINE
    while word not in text:
        assert select.select([terminal], [], [], max(0.0, end - time.monotonic()))[0], text
        text += os.read(terminal, 4096).decode()
    return text


def _reap(pid: int) -> int:
    def look() -> tuple[int, int] | None:
        done, status = os.waitpid(pid, os.WNOHANG)
        return (done, status) if done else None

    found = labs.wait_for("its end", look)
    assert found is not None
    return found[1]


# ------------------------------------------------------------------------- logs, gc, doctor


def test_logs_tell_who_said_what(name: str) -> None:
    done = mint("logs", "b", "--json")
    logs = json.loads(done.stdout)
    assert (logs["lab"], logs["node"]) == (name, "b")
    assert set(logs["logs"]) == {"node", "sshd", "worker"}
    assert "listening on" in logs["logs"]["sshd"]
    assert "==> sshd <==" in mint("logs", "b").stdout
    alone = mint("logs", "b", "--source", "sshd").stdout
    assert alone.splitlines() == logs["logs"]["sshd"].splitlines()
    assert mint("ssh", "b", "--", "true").returncode == 0
    assert "Accepted publickey for root" in mint("logs", "b", "--source", "sshd").stdout


def test_gc_leaves_a_running_lab_alone(name: str) -> None:
    before = Lab.connect(name).status()
    for options in (["--dry-run"], ["--json"], []):
        done = mint("gc", *options)
        assert done.returncode == 0, done.stderr
    after = Lab.connect(name).status()
    assert (after["id"], after["supervisor"], after["state"]) == (
        before["id"],
        before["supervisor"],
        "ready",
    )


def test_doctor_finds_that_this_machine_will_do() -> None:
    done = mint("doctor", "--json")
    assert done.returncode == 0, done.stdout
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    for what in ("tun device", "sshd", "privileges"):
        assert checks[what]["status"] == "ok", checks[what]


def test_a_dry_run_does_nothing(file: str, name: str, tmp_path: Path) -> None:
    other = labs.write(tmp_path, labs.source("dry", "ab"))
    plan = json.loads(mint("up", "--dry-run", "--json", other).stdout)["plan"]
    assert [node["name"] for node in plan["nodes"]] == ["a", "b"]
    assert Lab.names() == [name]


def test_errors_are_one_sentence_with_the_place_and_the_remedy(file: str, tmp_path: Path) -> None:
    one_sentence(mint("up", file), 3, "already up", "mint down")
    one_sentence(mint("up", str(tmp_path / "none.yaml")), 2, "none.yaml")
    bad = tmp_path / "bad.yaml"
    bad.write_text("lab: bad\nnodes:\n  a: {cpus: [99]}\n  b: {}\n")
    one_sentence(mint("up", str(bad)), 2, f"{bad}:3:", "CPU 99")
    one_sentence(mint("status", "nosuchlab"), 3, "nosuchlab")
    assert mint("down", "nosuchlab").returncode == 0


def test_several_labs_have_to_be_named(name: str, tmp_path: Path) -> None:
    other = labs.source("other", "ab")
    assert mint("up", labs.write(tmp_path, other)).returncode == 0
    try:
        for argv in (["status"], ["down"], ["exec", "a", "--", "true"]):
            one_sentence(mint(*argv), 3, name, other["lab"])
        assert mint("exec", f"{other['lab']}/b", "--", "hostname").stdout == "b\n"
    finally:
        assert mint("down", other["lab"]).returncode == 0
    assert Lab.names() == [name]
