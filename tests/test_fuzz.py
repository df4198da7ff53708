# SPDX-License-Identifier: Apache-2.0
"""Fuzzing of every C parser of untrusted bytes: a few seconds each, from the corpora in tests/fuzz.

Each tests/fuzz/fuzz_*.c is one target of libFuzzer, compiled with the core under the address and
undefined-behaviour sanitizers. What a target plays, and what must hold, stands at its top. In
tests/fuzz/corpus/TARGET lie inputs that together reach what a long run had reached; inputs that
once crashed lie in tests/fuzz/crashes/TARGET, and are tried first of all.

The long form is ``make fuzz`` (this file as a program)::

    python tests/test_fuzz.py SECONDS [TARGET...]

It keeps its corpora in build/fuzz, so that the next run goes on where this one stopped.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

import cbuild
from cbuild import FUZZ, ROOT, Build

WORK = ROOT / "build" / "fuzz"
TARGETS = sorted(source.stem.removeprefix("fuzz_") for source in FUZZ.glob("fuzz_*.c"))
SHORT_S = int(os.environ.get("MINT_FUZZ_SECONDS", "3"))
BUILD = Build(
    "fuzz", ("-fsanitize=address,undefined,fuzzer-no-link",), "clang", ("-fsanitize=fuzzer",)
)


@dataclass(frozen=True)
class Run:
    """What became of a run.

    Attributes:
        status: 0 if nothing was found.
        inputs: how many were tried.
        coverage: edges of the program that were reached.
        output: what it printed.
    """

    status: int
    inputs: int
    coverage: int
    output: str


def run(target: str, seconds: int, corpora: Sequence[Path], crashes: Path) -> Run:
    """Fuzz for so long; 0: only try what the corpora hold.

    Args:
        target: which.
        seconds: of fuzzing; trying the corpora comes on top.
        corpora: directories; new inputs that reach more go to the first.
        crashes: a directory for inputs that fail.
    """
    crashes.mkdir(parents=True, exist_ok=True)
    argv = [
        *cbuild.fixed_addresses(),
        str(cbuild.program(FUZZ / f"fuzz_{target}.c", BUILD)),
        *("-max_len=1024", "-len_control=10", "-timeout=10", "-rss_limit_mb=2000"),
        *("-use_value_profile=1", "-print_final_stats=1", "-reload=0"),
        f"-artifact_prefix={crashes}/",
        f"-max_total_time={seconds}" if seconds else "-runs=0",
        *map(str, corpora),
    ]
    options = os.environ | {"ASAN_OPTIONS": "detect_leaks=1:allocator_may_return_null=1"}
    done = subprocess.run(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=seconds + 120,
        check=False,
        env=options,
    )
    output = done.stdout.decode(errors="replace")
    tried = re.search(r"number_of_executed_units: (\d+)", output)
    reached = re.findall(r"cov: (\d+)", output)
    return Run(
        done.returncode, int(tried[1]) if tried else 0, int(reached[-1]) if reached else 0, output
    )


def test_every_parser_has_a_target() -> None:
    assert TARGETS == ["control", "offload", "pool", "pooled", "port", "ring", "vhost"]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("target", TARGETS)
def test_no_input_does_harm(target: str, tmp_path: Path) -> None:
    fresh, seeds = tmp_path / "corpus", FUZZ / "corpus" / target
    fresh.mkdir()
    assert any(seeds.iterdir()), f"no seeds in {seeds}"
    once_crashed = [path for path in [FUZZ / "crashes" / target] if path.is_dir()]
    done = run(target, SHORT_S, [fresh, seeds, *once_crashed], tmp_path / "crashes")
    print(f"{target}: {done.inputs} inputs, {done.coverage} edges")
    assert done.status == 0, done.output[-6000:]
    assert done.inputs > len(list(seeds.iterdir()))


def main(argv: Sequence[str]) -> int:
    """The long form; the exit status is 1 if any input did harm."""
    seconds, targets = int(argv[0]), list(argv[1:]) or TARGETS
    failed = 0
    for target in targets:
        corpus = WORK / "corpus" / target
        corpus.mkdir(parents=True, exist_ok=True)
        places = [corpus, FUZZ / "corpus" / target, FUZZ / "crashes" / target]
        done = run(target, seconds, [p for p in places if p.is_dir()], WORK / "crashes" / target)
        verdict = "ok" if done.status == 0 else f"FAILED, see {WORK / 'crashes' / target}"
        print(f"fuzz: {target:8} {done.inputs:>12,} inputs {done.coverage:>6,} edges  {verdict}")
        if done.status != 0:
            failed = 1
            print(done.output[-4000:])
    return failed


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
