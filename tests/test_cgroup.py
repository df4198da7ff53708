# SPDX-License-Identifier: Apache-2.0
"""Control groups of both versions, against trees that behave as the kernel's do.

`FakeKernel` gives directories the files that the kernel would, refuses to remove a group with
processes or children in it, and knows the rules of cgroup.subtree_control.
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mint_vni.errors import NodeError
from mint_vni.nodes import cgroup
from mint_vni.nodes.cgroup import CgroupHost, Controller, NodeCgroup

FILES = {
    "v1": {
        "cpuset": {"cpuset.cpus": "", "cpuset.mems": ""},
        "memory": {
            "memory.limit_in_bytes": "9223372036854771712\n",
            "memory.memsw.limit_in_bytes": "9223372036854771712\n",
            "memory.usage_in_bytes": "4096\n",
        },
    },
    "v2": {
        "cpuset": {"cpuset.cpus": "\n", "cpuset.mems": "\n", "cpuset.cpus.partition": "member\n"},
        "memory": {
            "memory.max": "max\n",
            "memory.swap.max": "max\n",
            "memory.high": "max\n",
            "memory.low": "0\n",
            "memory.min": "0\n",
            "memory.current": "8192\n",
        },
    },
}

_real_mkdir = Path.mkdir
_real_rmdir = Path.rmdir
_real_write = Path.write_text


class FakeKernel:
    """Control groups below a directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.versions: dict[Path, tuple[str, tuple[str, ...]]] = {}
        self.refuse: dict[str, int] = {}

    def mount(self, name: str, version: str, *controllers: str) -> Path:
        path = self.root / name
        _real_mkdir(path, parents=True)
        self.versions[path] = (version, controllers)
        self._populate(path, version, controllers)
        if version == "v1" and "cpuset" in controllers:
            _real_write(path / "cpuset.mems", "0-1\n")
        return path

    def mountinfo(self, flags: str = "rw") -> Path:
        lines = ["20 1 0:5 / /proc rw - proc proc rw"]
        for number, (path, (version, controllers)) in enumerate(self.versions.items()):
            options = ",".join(("rw", *controllers)) if version == "v1" else "rw"
            kind = "cgroup" if version == "v1" else "cgroup2"
            escaped = str(path).replace(" ", "\\040")
            lines.append(
                f"{30 + number} 20 0:9 / {escaped} {flags} shared:7 - {kind} none {options}"
            )
        table = self.root / "mountinfo"
        _real_write(table, "\n".join(lines) + "\n")
        return table

    def _hierarchy(self, path: Path) -> tuple[Path, str, tuple[str, ...]] | None:
        for mount, (version, controllers) in self.versions.items():
            if path.is_relative_to(mount):
                return mount, version, controllers
        return None

    def _populate(self, path: Path, version: str, controllers: tuple[str, ...]) -> None:
        files = {"cgroup.procs": ""}
        if version == "v2":
            files |= {"cgroup.controllers": " ".join(controllers) + "\n"}
            files |= {"cgroup.subtree_control": "\n"}
        for controller in controllers:
            files |= FILES[version].get(controller, {})
        for name, text in files.items():
            _real_write(path / name, text)

    def mkdir(self, path: Path, *args: Any, **kwargs: Any) -> None:
        hierarchy = self._hierarchy(path)
        if hierarchy is None:
            _real_mkdir(path, *args, **kwargs)
            return
        self._check_refused("mkdir", path)
        _, version, controllers = hierarchy
        _real_mkdir(path)
        if version == "v2":
            controllers = tuple((path.parent / "cgroup.subtree_control").read_text().split())
        self._populate(path, version, controllers)

    def rmdir(self, path: Path) -> None:
        if self._hierarchy(path) is not None:
            entries = list(path.iterdir())
            if (path / "cgroup.procs").read_text().strip() or any(e.is_dir() for e in entries):
                raise OSError(errno.EBUSY, "Device or resource busy", str(path))
            for entry in entries:
                entry.unlink()
        _real_rmdir(path)

    def write(self, path: Path, text: str, *args: Any, **kwargs: Any) -> int:
        if self._hierarchy(path) is None:
            return _real_write(path, text, *args, **kwargs)
        self._check_refused(path.name, path)
        if not path.exists():
            raise OSError(errno.ENOENT, "No such file or directory", str(path))
        if path.name == "cgroup.subtree_control":
            return self._delegate(path, text)
        return _real_write(path, text + "\n")

    def _check_refused(self, what: str, path: Path) -> None:
        if what in self.refuse:
            raise OSError(self.refuse[what], os.strerror(self.refuse[what]), str(path))

    def _delegate(self, path: Path, text: str) -> int:
        present = set(path.read_text().split())
        offered = set((path.parent / "cgroup.controllers").read_text().split())
        children = [child for child in path.parent.iterdir() if child.is_dir()]
        for word in text.split():
            sign, name = word[0], word[1:]
            if name not in offered:
                raise OSError(errno.ENOENT, "No such file or directory")
            passed_on = [c for c in children if name in self._delegated(c)]
            if sign == "-" and passed_on:
                raise OSError(errno.EBUSY, "Device or resource busy")
            present = present | {name} if sign == "+" else present - {name}
        return _real_write(path, " ".join(sorted(present)) + "\n")

    @staticmethod
    def _delegated(child: Path) -> list[str]:
        return (child / "cgroup.subtree_control").read_text().split()


def as_method(method: Callable[..., Any]) -> Callable[..., Any]:
    def of_path(path: Path, *args: Any, **kwargs: Any) -> Any:
        return method(path, *args, **kwargs)

    return of_path


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeKernel:
    root = tmp_path / "a place"  # a blank, which mountinfo escapes
    _real_mkdir(root)
    fake = FakeKernel(root)
    for name, method in (("mkdir", fake.mkdir), ("rmdir", fake.rmdir), ("write_text", fake.write)):
        # A function, not a bound method: the path is to become its first argument.
        monkeypatch.setattr(Path, name, as_method(method))
    return fake


class Log:
    """A journal that checks that nothing exists before it is written down."""

    def __init__(self) -> None:
        self.entries: list[tuple[str, dict[str, Any]]] = []

    def __call__(self, kind: str, data: dict[str, Any]) -> None:
        if kind == "cgroup":
            assert not Path(data["path"]).exists()
        json.dumps(data)
        self.entries.append((kind, data))

    def undo(self, lab_id: str = "abc1") -> None:
        for wanted in ("cgroup", "cgroup-control"):
            for kind, data in self.entries:
                if kind == wanted:
                    cgroup.undo(kind, data, lab_id, soon())


def soon() -> float:
    return time.monotonic() + 0.3


def create(
    host: CgroupHost, journal: Log, cpus: tuple[int, ...] = (0, 2), memory: int | None = 1 << 29
) -> NodeCgroup:
    return NodeCgroup.create(host, "mint-abc1-a", cpus=cpus, memory=memory, journal=journal)


def text(*parts: str | Path) -> str:
    return Path(*parts).read_text().strip()


def test_version_1(kernel: FakeKernel) -> None:
    cpuset = kernel.mount("cpuset", "v1", "cpuset")
    memory = kernel.mount("memory", "v1", "memory")
    host = CgroupHost.detect(kernel.mountinfo())
    assert host.cpuset == Controller("cgroup-v1", cpuset)
    assert host.memory == Controller("cgroup-v1", memory)
    journal = Log()
    made = create(host, journal)
    assert (made.cpus_enforced_by, made.memory_enforced_by) == ("cgroup-v1", "cgroup-v1")
    assert text(cpuset, "mint-abc1-a", "cpuset.cpus") == "0,2"
    assert text(cpuset, "mint-abc1-a", "cpuset.mems") == "0-1"
    assert text(memory, "mint-abc1-a", "memory.limit_in_bytes") == str(1 << 29)
    assert text(memory, "mint-abc1-a", "memory.memsw.limit_in_bytes") == str(1 << 29)
    procs = [str(mount / "mint-abc1-a" / "cgroup.procs") for mount in (cpuset, memory)]
    assert list(made.node_procs) == procs
    assert list(made.worker_procs) == procs[:1], "the worker is not charged to the node's memory"
    assert made.memory_used() == 4096
    assert [kind for kind, _ in journal.entries] == ["cgroup", "cgroup"]
    assert NodeCgroup.from_json(json.loads(json.dumps(made.to_json()))) == made
    made.remove(soon())
    made.remove(soon())
    assert not list(kernel.root.glob("*/mint-*"))


def test_version_1_both_controllers_in_one_hierarchy(kernel: FakeKernel) -> None:
    mount = kernel.mount("cpuset,memory", "v1", "cpuset", "memory")
    made = create(CgroupHost.detect(kernel.mountinfo()), Log())
    assert (made.cpus_enforced_by, made.memory_enforced_by) == ("cgroup-v1", "cgroup-v1")
    assert made.directories == (str(mount / "mint-abc1-a"),)
    assert text(mount, "mint-abc1-a", "memory.limit_in_bytes") == str(1 << 29)


def test_version_2(kernel: FakeKernel) -> None:
    root = kernel.mount("cgroup", "v2", "cpuset", "cpu", "memory")
    host = CgroupHost.detect(kernel.mountinfo())
    assert host.cpuset == host.memory == Controller("cgroup-v2", root)
    journal = Log()
    made = create(host, journal)
    assert (made.cpus_enforced_by, made.memory_enforced_by) == ("cgroup-v2", "cgroup-v2")
    group = root / "mint-abc1-a"
    assert text(group, "cpuset.cpus") == "0,2", "the worker is on the node's CPUs"
    assert text(group, "work", "memory.max") == str(1 << 29)
    assert text(group, "work", "memory.swap.max") == "0"
    assert text(group, "worker", "memory.max") == "max", "and not charged to its memory"
    assert made.node_procs == (str(group / "work" / "cgroup.procs"),)
    assert made.worker_procs == (str(group / "worker" / "cgroup.procs"),)
    assert made.memory_used() == 8192
    assert journal.entries[0] == (
        "cgroup-control",
        {"path": str(root / "cgroup.subtree_control"), "added": ["cpuset", "memory"]},
    )
    assert text(root, "cgroup.subtree_control") == "cpuset memory"
    made.remove(soon())
    journal.undo()
    assert not group.exists()
    assert text(root, "cgroup.subtree_control") == ""


def test_version_2_leaves_what_was_delegated_before(kernel: FakeKernel) -> None:
    root = kernel.mount("cgroup", "v2", "cpuset", "memory")
    (root / "cgroup.subtree_control").write_text("+memory")
    journal = Log()
    create(CgroupHost.detect(kernel.mountinfo()), journal)
    assert journal.entries[0][1]["added"] == ["cpuset"]
    journal.undo()
    assert not (root / "mint-abc1-a").exists()
    assert text(root, "cgroup.subtree_control") == "memory"


@pytest.mark.parametrize("setting", ["memory.max", "memory.low"])
def test_version_2_keeps_what_somebody_else_came_to_use(kernel: FakeKernel, setting: str) -> None:
    root = kernel.mount("cgroup", "v2", "cpuset", "memory")
    journal = Log()
    create(CgroupHost.detect(kernel.mountinfo()), journal)
    (root / "system.slice").mkdir()
    (root / "system.slice" / setting).write_text("1073741824")
    journal.undo()
    assert text(root, "cgroup.subtree_control") == "memory", "its limit would silently be gone"
    assert (root / "system.slice").exists()


def test_version_2_keeps_what_another_lab_uses(kernel: FakeKernel) -> None:
    root = kernel.mount("cgroup", "v2", "cpuset", "memory")
    host = CgroupHost.detect(kernel.mountinfo())
    first, second = Log(), Log()
    create(host, first)
    NodeCgroup.create(host, "mint-ffff-a", cpus=(1,), memory=None, journal=second)
    first.undo()
    assert not (root / "mint-abc1-a").exists()
    assert (root / "mint-ffff-a" / "work").exists()
    assert text(root, "cgroup.subtree_control") == "cpuset memory"


def test_one_controller_of_each_version(kernel: FakeKernel) -> None:
    cpuset = kernel.mount("cpuset", "v1", "cpuset")
    root = kernel.mount("unified", "v2", "memory")
    made = create(CgroupHost.detect(kernel.mountinfo()), Log())
    assert (made.cpus_enforced_by, made.memory_enforced_by) == ("cgroup-v1", "cgroup-v2")
    assert made.node_procs == (
        str(cpuset / "mint-abc1-a" / "cgroup.procs"),
        str(root / "mint-abc1-a" / "work" / "cgroup.procs"),
    )


def test_no_controllers(kernel: FakeKernel) -> None:
    kernel.mount("cpu", "v1", "cpu")
    kernel.mount("unified", "v2", "hugetlb")
    host = CgroupHost.detect(kernel.mountinfo())
    assert host == CgroupHost(None, None)
    made = create(host, journal := Log())
    assert (made.cpus_enforced_by, made.memory_enforced_by) == ("affinity", "none")
    assert made.affinity == (0, 2)
    assert made.memory_used() is None
    assert not journal.entries


def test_read_only_mounts_are_no_use(kernel: FakeKernel) -> None:
    kernel.mount("cgroup", "v2", "cpuset", "memory")
    assert CgroupHost.detect(kernel.mountinfo("ro,nosuid")) == CgroupHost(None, None)


@pytest.mark.parametrize("what", ["mkdir", "cgroup.subtree_control"])
@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.EBUSY])
def test_falls_back_where_groups_cannot_be_made(kernel: FakeKernel, what: str, code: int) -> None:
    root = kernel.mount("cgroup", "v2", "cpuset", "memory")
    kernel.refuse = {what: code}
    made = create(CgroupHost.detect(kernel.mountinfo()), Log())
    assert (made.cpus_enforced_by, made.memory_enforced_by) == ("affinity", "none")
    assert made.directories == ()
    assert os.strerror(code) in made.notes[0]
    assert not (root / "mint-abc1-a").exists()


def test_a_refused_limit_is_an_error_and_leaves_nothing(kernel: FakeKernel) -> None:
    root = kernel.mount("cgroup", "v2", "cpuset", "memory")
    kernel.refuse = {"memory.max": errno.EINVAL}
    with pytest.raises(NodeError, match=r"mint-abc1-a: .*memory\.max: cannot set 536870912"):
        create(CgroupHost.detect(kernel.mountinfo()), Log())
    assert not (root / "mint-abc1-a").exists()


def test_a_failing_journal_stops_it(kernel: FakeKernel) -> None:
    kernel.mount("memory", "v1", "memory")

    def full(kind: str, data: dict[str, Any]) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    host = CgroupHost.detect(kernel.mountinfo())
    with pytest.raises(NodeError, match="No space left"):
        NodeCgroup.create(host, "mint-abc1-a", cpus=(), memory=None, journal=full)
    assert not list(kernel.root.glob("*/mint-*"))


def test_without_limits_memory_still_is_counted(kernel: FakeKernel) -> None:
    kernel.mount("cpuset", "v1", "cpuset")
    memory = kernel.mount("memory", "v1", "memory")
    made = create(CgroupHost.detect(kernel.mountinfo()), Log(), cpus=(), memory=None)
    assert (made.cpus_enforced_by, made.memory_enforced_by) == ("none", "none")
    assert made.directories == (str(memory / "mint-abc1-a"),)
    assert made.memory_used() == 4096
    assert made.worker_procs == ()
    assert text(memory, "mint-abc1-a", "memory.limit_in_bytes") == "9223372036854771712"


def test_removal_kills_what_is_left_and_goes_deep(kernel: FakeKernel) -> None:
    memory = kernel.mount("memory", "v1", "memory")
    made = create(CgroupHost.detect(kernel.mountinfo()), Log(), cpus=())
    inner = memory / "mint-abc1-a" / "made-by-the-node"
    inner.mkdir()
    with subprocess.Popen(["sleep", "60"]) as process:
        procs = inner / "cgroup.procs"
        procs.write_text(f"0\n{process.pid}")  # 0: a process that can't be seen from here
        with pytest.raises(NodeError, match="could not be removed"):
            made.remove(time.monotonic())
        assert process.wait(5) == -9
        procs.write_text("")
    made.remove(soon())
    assert not list(kernel.root.glob("*/mint-*"))


def test_undo_leaves_alone_what_is_not_the_labs(kernel: FakeKernel) -> None:
    memory = kernel.mount("memory", "v1", "memory")
    (memory / "mint-abc12-a").mkdir()
    for path in (memory / "mint-abc12-a", memory, memory / "mint-none-x"):
        cgroup.undo("cgroup", {"path": str(path)}, "abc1", soon())
    assert (memory / "mint-abc12-a").exists()
    cgroup.undo("something else", {}, "abc1", soon())


def test_views_show_the_node_its_own_groups() -> None:
    host = CgroupHost.detect()
    names = {controller.version for controller in (host.cpuset, host.memory) if controller}
    if not names:
        pytest.skip("this machine has neither the cpuset nor the memory controller")
    for name, kind, options in host.views:
        assert (Path("/sys/fs/cgroup") / name / "cgroup.procs").exists()
        assert (kind == "cgroup") == bool(options)


def test_delegation_on_this_machine() -> None:
    """The real kernel's rules, with a controller that nobody here depends on."""
    root = Path("/sys/fs/cgroup/unified")
    if os.geteuid() != 0 or not (root / "cgroup.controllers").exists():
        pytest.skip("takes root and a version 2 hierarchy beside version 1")
    if text(root, "cgroup.controllers") != "hugetlb" or text(root, "cgroup.subtree_control"):
        pytest.skip("takes a version 2 hierarchy that nobody uses, with hugetlb alone")
    journal = Log()
    try:
        cgroup.delegate(root, ["hugetlb"], journal)
        assert text(root, "cgroup.subtree_control") == "hugetlb"
    finally:
        journal.undo()
    assert text(root, "cgroup.subtree_control") == ""
