# SPDX-License-Identifier: Apache-2.0
"""Model checking of what processes do to each other's shared words: see docs/model.md.

Each model of tests/model is explored wholly by spin, under C11's memory model (weak.pml), and must
hold. Then each of its mutants (a fence, an ordering or a re-check taken out) is explored, and must
not. So what passes is known to look at what it is about.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from cbuild import NATIVE, ROOT

MODELS = ROOT / "tests" / "model"
DEADLINE = 120.0


@dataclass(frozen=True)
class Case:
    """A model with its parameters.

    Attributes:
        name: of the file.
        defines: its parameters.
        mutants: what can be taken out of it, and then fails.
    """

    name: str
    defines: tuple[str, ...]
    mutants: dict[int, str]

    def __str__(self) -> str:
        return "-".join([self.name, *self.defines])


_FENCES = {
    1: "the sender's fence between publishing and looking who sleeps",
    2: "the sender's fence between asking for room and looking for it",
    3: "the receiver's fence between giving room and looking who waits",
    4: "the receiver's fence between announcing its sleep and the last look",
    5: "the sender's re-check after asking for room",
    6: "the receiver's re-check after announcing its sleep",
}
_RESTART = {7: "the ring of a process that takes a port over"}
_ORDERS = {
    1: "release of the head in publish",
    2: "acquire of the head in rx_refresh",
    3: "release of the tail in recycle",
    4: "acquire of the tail in tx_refresh and tx_settle",
    5: "release of tx_end in join",
    6: "acquire of tx_end in rx_refresh",
    7: "release of rx_end in demand",
    8: "acquire of rx_end in join",
    9: "release of the tail in demand",
}
_POOLED = {
    1: "release of the head in publish",
    2: "acquire of the head in rx_refresh",
    3: "release of the tail in recycle",
    4: "acquire of the tail in settle",
    5: "release of rx_end in demand",
    6: "acquire of rx_end in join",
    7: "release of the tail in demand",
    8: "the references: a buffer is free with the first of them",
    9: "the tail: a buffer more is taken back than was read",
}
_CLAIM = {10: "the claim of what the predecessor has published and nobody has read"}
_VIRTQUEUE = {
    1: "the device's fence between the used index and the look whether to interrupt",
    2: "the device's fence between asking for a kick and the last look",
    3: "the device's re-check after asking for a kick",
}

CASES = [
    Case("doorbell", ("CRASH=0",), _FENCES),
    Case("doorbell", ("CRASH=1",), _RESTART),
    Case("doorbell", ("CRASH=2",), _RESTART),
    Case("ring", ("RESETS=1",), _ORDERS),
    Case("pooled", ("CRASH=0", "RESETS=1"), _POOLED),
    Case("pooled", ("CRASH=1", "RESETS=1", "FRAMES=2"), _CLAIM),
    Case("pooled", ("CRASH=2", "RESETS=1", "FRAMES=2"), {m: _POOLED[m] for m in (3, 7)}),
    Case("virtqueue", ("EVENT_IDX=0",), _VIRTQUEUE),
    Case("virtqueue", ("EVENT_IDX=1",), _VIRTQUEUE),
]

#: Every full fence of the core by the function that it stands in, and the mutant that is without it.
FENCES = {
    ("port_tx.c", "mint_port_flush"): ("doorbell", 1),
    ("port_tx.c", "mint_port_ask_room"): ("doorbell", 2),
    ("port_rx.c", "mint_port_recycle"): ("doorbell", 3),
    ("port_wait.c", "mint_port_arm"): ("doorbell", 4),
    ("vring.c", "mint_vring_publish"): ("virtqueue", 1),
    ("vring.c", "mint_vring_want_kick"): ("virtqueue", 2),
}


def verifier(case: Case, directory: Path) -> Path:
    """Compile a model's verifier."""
    spin, gcc = shutil.which("spin"), shutil.which("gcc")
    assert spin and gcc, "there is no spin or no gcc: run make setup"
    defines = [f"-D{define}" for define in case.defines]
    made = _output([spin, *defines, "-a", str(MODELS / f"{case.name}.pml")], directory)
    assert (directory / "pan.c").exists(), made
    flags = ["-O2", "-w", "-DSAFETY", "-DVECTORSZ=1024", "-o", "pan", "pan.c"]
    _output([gcc, *flags], directory)
    return directory / "pan"


def _output(argv: list[str], directory: Path, mutant: int = 0) -> str:
    done = subprocess.run(
        argv,
        cwd=directory,
        env={"PATH": "/usr/bin:/bin", "MUTANT": str(mutant)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    return done.stdout


def errors(pan: Path, mutant: int) -> tuple[int, int]:
    """Explore; how many errors were found (the first ends the search), and in how many states."""
    said = _output([str(pan), "-m100000"], pan.parent, mutant)
    found = re.search(r"errors: (\d+)", said)
    states = re.search(r"(\d+) states, stored", said)
    assert found and states, said
    if int(found[1]) == 0:
        assert "max search depth too small" not in said, "not all was explored"
        assert "Search not completed" not in said, said
    return int(found[1]), int(states[1])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_model_holds_and_no_mutant_does(case: Case, tmp_path: Path) -> None:
    pan = verifier(case, tmp_path)
    with ThreadPoolExecutor(2) as pool:
        outcomes = dict(
            zip(case.mutants, pool.map(lambda m: _mutant(pan, m), case.mutants), strict=True)
        )
    found, states = errors(pan, 0)
    print(f"{case}: {states} states")
    assert found == 0, "the model fails"
    survivors = [case.mutants[m] for m, failed in outcomes.items() if not failed]
    assert survivors == [], "nothing notices when these are taken out"


def _mutant(pan: Path, mutant: int) -> bool:
    return errors(pan, mutant)[0] > 0


def test_each_fence_of_the_core_is_in_a_model() -> None:
    """A fence that is added, or moved to another function, has to be modelled, too."""
    found = set()
    for source in sorted(NATIVE.glob("*.c")):
        function = ""
        for line in source.read_text().splitlines():
            if name := re.match(r"[A-Za-z].*?\b(\w+)\(", line):
                function = name[1]
            if re.search(r"\bfull_fence\(\)", line):
                found.add((source.name, function))
    assert found == set(FENCES)
    mutants = {(case.name, m) for case in CASES for m in case.mutants}
    assert set(FENCES.values()) <= mutants
