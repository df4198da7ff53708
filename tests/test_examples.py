# SPDX-License-Identifier: Apache-2.0
"""The programs in examples/ and the code in README.md and docs/python-api.md, run as they stand.

A block of code in a page is run when its first line is ```` ```python runnable ````, or
```` ```python runnable root ```` if it brings a lab up. What a line prints may stand behind it, as in
``print(n)  # -> 88``; that is checked too.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import labs
from mint_vni.lab import Lab

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
PAGES = (ROOT / "README.md", ROOT / "docs" / "python-api.md")

NOBODY = 65534

BLOCK = re.compile(r"^```python runnable( root)?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SAID = re.compile(r"  # -> (.+)$", re.MULTILINE)


def blocks() -> list[object]:
    """Each runnable block: its code and whether it needs root."""
    found: list[object] = []
    for page in PAGES:
        text = page.read_text()
        for match in BLOCK.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            root = match.group(1) is not None
            found.append(pytest.param(match.group(2), root, id=f"{page.name}:{line}"))
    return found


def run(*argv: str, timeout: float = 60.0, user: int | None = None) -> str:
    """Run a program from the top of the checkout; what it printed."""
    done = subprocess.run(
        [sys.executable, *argv],
        cwd=ROOT,
        user=user,
        group=user,
        extra_groups=None if user is None else [],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, f"{argv[0]} ended with {done.returncode}:\n{done.stderr}"
    return done.stdout


# ----------------------------------------------------------------------------- the pages


def test_both_pages_have_blocks() -> None:
    found = [BLOCK.search(page.read_text()) for page in PAGES]
    assert all(found), "the parametrised test below would pass by being empty"


@pytest.mark.parametrize(("code", "root"), blocks())
def test_block(code: str, root: bool, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if root:
        request.getfixturevalue("lab_host")
    if "pair.yaml" in code and len(os.sched_getaffinity(0)) < 2:
        pytest.skip("examples/pair.yaml wants two CPUs")
    program = tmp_path / "block.py"
    program.write_text(code)
    printed = run(str(program)).splitlines()
    at = 0
    for text in SAID.findall(code):
        # In this order; other lines may stand between.
        assert text in printed[at:], f"printed no {text!r} after line {at}: {printed}"
        at = printed.index(text, at) + 1
    if root:
        assert not Lab.names(), "it left a lab up"


# -------------------------------------------------------------------------- the programs


def test_fabric_only() -> None:
    printed = run(str(EXAMPLES / "fabric_only.py"))
    assert "100000 of 100000 frames arrived in order" in printed
    assert "dropped: none" in printed


def test_fabric_only_needs_no_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("this user is not root: the test above has shown it")
    probe = [sys.executable, "-c", "import mint_vni.fabric"]
    seen = subprocess.run(
        probe, cwd="/", user=NOBODY, group=NOBODY, extra_groups=[], capture_output=True, check=False
    )
    if seen.returncode != 0:
        pytest.skip("the user nobody cannot read this installation")
    printed = run(str(EXAMPLES / "fabric_only.py"), user=NOBODY)
    assert "100000 of 100000 frames arrived in order" in printed


def test_lab_from_python(lab_host: None) -> None:
    printed = run(str(EXAMPLES / "lab_from_python.py"), timeout=120)
    assert "left -> middle -> right: right" in printed
    assert "file arrived whole: True" in printed
    assert "interfaces of left: lo, vni0" in printed
    assert re.search(r"left -> right +\d+ frames", printed)
    assert "labs that are left: none" in printed


@pytest.fixture
def lab(lab_host: None) -> Iterator[Lab]:
    """Two nodes that only know each other's names."""
    with Lab.up(labs.source("scapy", ["a", "b"])) as lab:
        yield lab


def scapy_frames(lab: Lab, *arguments: str) -> list[str]:
    return [sys.executable, str(EXAMPLES / "scapy_frames.py"), "--lab", lab.name, *arguments]


def test_scapy_answers_arp_and_ping(lab: Lab) -> None:
    with labs.Child(scapy_frames(lab), stderr=True) as program:
        attached = program.expect("attached to lab")
        address, mac = re.match(r"(\S+) is (\S+),", attached).groups()  # type: ignore[union-attr]
        labs.ping(lab["a"], address, count=5)
        labs.ping(lab["b"], address, "-s", "1000", count=2)
        neighbours = lab["a"].run(["ip", "-4", "neigh", "show", address]).stdout
        assert mac in neighbours
        assert "probe" in [port["name"] for port in lab.status()["ports"]]
        program.process.send_signal(2)  # Ctrl-C
        program.expect("leaving")
        assert program.wait() == 0
    labs.wait_for(
        "the port is gone",
        lambda: "probe" not in [port["name"] for port in lab.status()["ports"]],
    )


def test_scapy_asks(lab: Lab) -> None:
    target = labs.address(lab, "b")
    done = subprocess.run(
        scapy_frames(lab, "--ping", target, "--name", "asker"),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"{target} answered in") == 3


def test_scapy_says_who_does_not_answer(lab: Lab) -> None:
    done = subprocess.run(
        scapy_frames(lab, "--ping", "10.77.0.99"),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.strip() == "scapy_frames.py: 10.77.0.99 does not answer ARP"
