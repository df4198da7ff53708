# SPDX-License-Identifier: Apache-2.0
"""The look at the machine, on which every other test of labs relies, sees what is left behind."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

import labs
import machine as machine_module
from machine import Machine

pytestmark = pytest.mark.usefixtures("lab_host")


@contextmanager
def process() -> Iterator[None]:
    """One whose parent is dead already."""
    script = "sleep 60 >/dev/null 2>&1 & echo $!"
    done = subprocess.run(
        ["sh", "-c", script], capture_output=True, text=True, timeout=10, check=True
    )
    yield
    labs.kill(int(done.stdout))
    with contextlib.suppress(ChildProcessError):
        os.waitpid(int(done.stdout), 0)


@contextmanager
def namespace() -> Iterator[None]:
    with labs.Child(["unshare", "-n", "sh", "-c", "echo ready; exec sleep 60"]) as child:
        child.expect("ready")
        yield


@contextmanager
def interface() -> Iterator[None]:
    subprocess.run(["ip", "link", "add", "mt0", "type", "bridge"], check=True, timeout=10)
    yield
    subprocess.run(["ip", "link", "del", "mt0"], check=True, timeout=10)


@contextmanager
def file() -> Iterator[None]:
    path = Path(os.environ["MINT_RUN_DIR"]).parent / "left"
    path.touch()
    yield
    path.unlink()


@contextmanager
def cgroup() -> Iterator[None]:
    roots = [Path("/sys/fs/cgroup", name) for name in ("memory", "unified", "")]
    group = next(root for root in roots if (root / "cgroup.procs").exists()) / "mint-0-test"
    group.mkdir()
    yield
    group.rmdir()


@contextmanager
def mount() -> Iterator[None]:
    target = Path(os.environ["MINT_RUN_DIR"]).parent / "mount"
    target.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", target], check=True, timeout=10)
    yield
    subprocess.run(["umount", target], check=True, timeout=10)
    target.rmdir()


@contextmanager
def sysctl() -> Iterator[None]:
    path = Path("/proc/sys/net/core/netdev_budget")
    value = path.read_text()
    path.write_text(str(int(value) + 1))
    yield
    path.write_text(value)


@contextmanager
def memfd() -> Iterator[None]:
    fd = os.memfd_create("mint-control-0")
    yield
    os.close(fd)


Left = Callable[[], AbstractContextManager[None]]


@pytest.mark.parametrize(
    ("what", "left"),
    [
        ("processes", process),
        ("namespaces", namespace),
        ("interfaces", interface),
        ("files", file),
        ("cgroups", cgroup),
        ("mounts", mount),
        ("sysctls", sysctl),
        ("memfds", memfd),
    ],
)
def test_what_is_left_is_seen(what: str, left: Left, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_module, "DEADLINE", 0.0)
    before = Machine.now()
    with left():
        assert [line for line in before.differences(Machine.now()) if line.startswith(what)]
    labs.wait_for("it is gone", lambda: not _seen(before, what))
    stack = contextlib.ExitStack()
    with stack, pytest.raises(AssertionError, match="left behind"), machine_module.unchanged():
        stack.enter_context(left())


def _seen(before: Machine, what: str) -> list[str]:
    return [line for line in before.differences(Machine.now()) if line.startswith(what)]
