# SPDX-License-Identifier: Apache-2.0
"""Unpack DPDK's testpmd, with the libraries it needs, from the host's Debian archive.

usage: fetch_testpmd.py [DIRECTORY]    (default: build/dpdk)

Installed as packages, it would bring 225 of them and a newer systemd; the tests need one program
and some sixty libraries, 8 MB, unpacked here. `apt-get download` checks the archive's signatures.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile

ROOTS = ["dpdk-dev", "librte-net-vhost23", "librte-net-virtio23", "librte-mempool-ring23"]
PROGRAM = "usr/bin/dpdk-testpmd"
_WITHOUT = [f"--no-{kind}" for kind in ("recommends", "suggests", "conflicts", "breaks")]
_WITHOUT += ["--no-replaces", "--no-enhances"]


def output(*argv: str) -> str:
    """What a program prints."""
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


def missing_packages() -> list[str]:
    """The program's package and the libraries behind it that this machine has not installed."""
    installed = {
        line.split(":")[0] for line in output("dpkg-query", "-f", "${Package}\n", "-W").split()
    }
    seen: set[str] = set()
    todo = set(ROOTS)
    while todo := todo - seen - installed:
        seen |= todo
        depends = output("apt-cache", "depends", *_WITHOUT, *sorted(todo))
        found = re.findall(r"Depends: ((?:lib|ibverbs)[^\s<]+)$", depends, re.MULTILINE)
        todo = {name for name in found if not name.endswith("-dev")}
    return sorted(seen)


def main() -> int:
    """Fetch and unpack, unless it is there."""
    if shutil.which("dpdk-testpmd"):
        return 0
    target = os.path.abspath(sys.argv[1] if len(sys.argv) > 1 else "build/dpdk")
    if os.path.exists(os.path.join(target, PROGRAM)):
        return 0
    try:
        packages = missing_packages()
        os.makedirs(target, exist_ok=True)
        with tempfile.TemporaryDirectory() as scratch:
            subprocess.run(
                ["apt-get", "download", "-qq", "-o", "APT::Sandbox::User=root", *packages],
                check=True, cwd=scratch, stderr=subprocess.PIPE, text=True,
            )  # fmt: skip
            for name in sorted(os.listdir(scratch)):
                subprocess.run(["dpkg", "-x", os.path.join(scratch, name), target], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        why = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[-1]
        print(f"testpmd can not be fetched ({why}); tests against DPDK will be skipped")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
