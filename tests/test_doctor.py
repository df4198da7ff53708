# SPDX-License-Identifier: Apache-2.0
"""The doctor's judgement of made-up machines, and one look at the real one."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mint_vni.doctor import (
    CgroupController,
    Check,
    Facts,
    KernelFact,
    Status,
    examine,
    facts,
    gather,
    probes,
)

DEADLINE = 30.0
GOOD = Facts(
    kernel="6.12.0-1-amd64",
    machine="x86_64",
    root=True,
    cpus=8,
    numa_nodes=1,
    memory=16 << 30,
    memory_available=8 << 30,
    descriptors=1_048_576,
    ipv6=True,
    congestion="cubic",
    kvm="present",
    cgroups={
        "cpuset": CgroupController(2, "/sys/fs/cgroup", writable=True),
        "memory": CgroupController(2, "/sys/fs/cgroup", writable=True),
    },
    kernels={
        "uml": [KernelFact("7.2um1 of testing", boots={"uml": 0.9})],
        "qemu": [KernelFact("6.1-1 of bookworm", boots={"kvm": 0.5, "tcg": 2.1})],
    },
    virtiofsd="1.14.0 of testing",
    programs={name: f"/usr/bin/{name}" for name in facts.PROGRAMS},
    attempts=dict.fromkeys(probes.ATTEMPTS, True) | {"tap": list(probes.OFFLOADS)},
)


def judged(**changes: Any) -> dict[str, Check]:
    """The checks by name, of the good machine with some facts changed."""
    return {check.name: check for check in examine(dataclasses.replace(GOOD, **changes))}


def attempts(**failed: str) -> dict[str, Any]:
    """Attempts of which some failed; ``_`` in a name stands for a blank."""
    errors = {name.replace("_", " "): {"error": why} for name, why in failed.items()}
    assert errors.keys() <= GOOD.attempts.keys()
    return {"attempts": {**GOOD.attempts, **errors}}


SYSTEM_UML = KernelFact("6.1um4 of this system", system=True, refused={"uml": "panic: AMX"})
FETCHED_UML = KernelFact("7.1um1 of testing", refused={"uml": "panic: AMX"})
ONLY_TCG = KernelFact("6.1-1 of bookworm", boots={"tcg": 2.1}, refused={"kvm": "cannot set MSR"})
NO_QEMU = KernelFact("6.1-1 of bookworm", refused={"": "QEMU is not installed"})


def guests(kind: str, *kernels: KernelFact) -> dict[str, Any]:
    """Other kernels of one kind."""
    return {"kernels": {**GOOD.kernels, kind: kernels}}


def without(*programs: str) -> dict[str, Any]:
    return {"programs": {n: p for n, p in GOOD.programs.items() if n not in programs}}


def test_a_good_machine_is_ok_throughout() -> None:
    checks = examine(GOOD)
    assert {check.status for check in checks} == {Status.OK}
    assert not any(check.remedy for check in checks)
    assert len({check.name for check in checks}) == len(checks)


@pytest.mark.parametrize(
    ("changes", "name", "status", "remedy"),
    [
        ({"kernel": "5.4.0"}, "linux", "fail", "5.11"),
        ({"kernel": "4.19.0-26"}, "linux", "fail", "5.11"),
        ({"root": False}, "privileges", "fail", "sudo"),
        ({"cpus": 1}, "cpus", "warn", "two or more"),
        ({"memory_available": 100 << 20}, "memory", "warn", "free some"),
        ({"numa_nodes": 2}, "numa", "warn", "lscpu"),
        (attempts(net_namespace="EPERM"), "namespaces", "fail", "SYS_ADMIN"),
        (attempts(pid_namespace="ENOSPC"), "namespaces", "fail", "unshare"),
        (attempts(user_namespace_without_rights="EPERM"), "user namespaces", "warn", "sysctl"),
        ({"cgroups": {}}, "cgroup cpuset", "warn", "affinity only"),
        ({"cgroups": {}}, "cgroup memory", "warn", "not limited"),
        (attempts(tap="ENOENT"), "tun device", "fail", "modprobe tun"),
        (attempts(sealed_memory="ENOSYS"), "sealed memory", "fail", "memfd_create"),
        (attempts(pidfd="ENOSYS"), "pidfd", "fail", "5.3"),
        ({"ipv6": False}, "ipv6", "warn", "ipv6.disable"),
        ({"congestion": "bbr"}, "tcp", "warn", "tcp_congestion_control=reno"),
        ({"descriptors": 1024}, "descriptors", "warn", "ulimit -Hn"),
        (without("sshd"), "sshd", "fail", "apt-get install openssh-server"),
        (without("ssh"), "ssh", "fail", "apt-get install openssh-client"),
        (without("nsenter"), "nsenter", "fail", "apt-get install util-linux"),
        (without("iperf3"), "iperf3", "warn", "apt-get install iperf3"),
        (guests("uml"), "uml kernel", "warn", "mint kernel install uml"),
        (guests("uml", SYSTEM_UML), "uml kernel", "warn", "mint kernel install uml; "),
        (guests("uml", FETCHED_UML), "uml kernel", "warn", "mint kernel install uml --upgrade"),
        ({"virtiofsd": ""}, "virtiofsd", "warn", "mint kernel install virtiofsd"),
        (guests("qemu", ONLY_TCG), "kvm", "warn", "firmware"),
        (without("qemu-system-x86_64"), "qemu-system-x86_64", "warn", "qemu-system-x86"),
        ({"kvm": "absent"}, "kvm", "warn", "firmware"),
        ({"kvm": "denied"}, "kvm", "warn", "group kvm"),
    ],
)
def test_each_lack_is_found_and_nothing_else(
    changes: dict[str, Any], name: str, status: str, remedy: str
) -> None:
    checks = judged(**changes)
    assert checks[name].status == status
    assert remedy in checks[name].remedy
    bad = {check.name for check in checks.values() if check.status is not Status.OK}
    assert bad <= {name, "cgroup cpuset", "cgroup memory"}


def test_without_root_only_the_lack_of_root_fails() -> None:
    refused = attempts(net_namespace="EPERM", tap="EPERM")
    checks = judged(root=False, cgroups={}, **refused, **without("ssh"))
    failed = {check.name for check in checks.values() if check.status is Status.FAIL}
    assert failed == {"privileges", "ssh"}
    assert checks["tun device"].remedy == "sudo mint doctor"
    assert checks["cgroup memory"].detail == "refused to us; only root can tell"


def test_why_an_attempt_failed_is_said() -> None:
    assert "(EBUSY)" in judged(**attempts(tap="EBUSY"))["tun device"].detail
    refused = attempts(net_namespace="EPERM", ipc_namespace="ENOSYS")
    assert judged(**refused)["namespaces"].detail == "refused: net (EPERM), ipc (ENOSYS)"


def test_probes_that_could_not_run_are_failures_not_successes() -> None:
    checks = judged(attempts={})
    needed = {"namespaces", "tun device", "sealed memory", "pidfd"}
    assert {checks[name].status for name in needed} == {Status.FAIL}
    assert "not tried" in checks["tun device"].detail


def test_a_kernel_without_udp_segmentation_only_warns() -> None:
    old = judged(attempts={**GOOD.attempts, "tap": ["csum", "tso4", "tso6"]})["tap offloads"]
    assert (old.status, old.detail) == (Status.WARN, "csum, tso4, tso6")
    assert "6.2" in old.remedy


def test_a_cgroup_that_may_not_be_written_is_none() -> None:
    check = judged(
        cgroups={**GOOD.cgroups, "memory": CgroupController(1, "/sys/fs/cgroup/memory", False)}
    )["cgroup memory"]
    assert check.status is Status.WARN
    assert check.detail == "version 1 at /sys/fs/cgroup/memory, read-only for us"


def test_kvm_is_what_a_probe_boot_shows() -> None:
    assert judged()["kvm"].detail == "a guest booted by it in 0.5 s"
    failed = judged(**guests("qemu", ONLY_TCG))
    assert failed["kvm"].detail == "present, but no guest boots by it: cannot set MSR"
    assert failed["qemu kernel"].detail == "6.1-1 of bookworm boots in 2.1 s by TCG"


@pytest.mark.parametrize("kernels", [(), (NO_QEMU,)])
def test_kvm_is_not_called_proven_with_nothing_to_boot_by_it(kernels: Sequence[KernelFact]) -> None:
    checks = judged(**guests("qemu", *kernels))
    assert checks["kvm"].detail.startswith("present, not proven")
    assert "mint kernel install qemu" in checks["kvm"].remedy
    assert checks["qemu kernel"].status is Status.WARN


def test_why_the_distributions_kernel_is_not_used() -> None:
    check = judged(**guests("uml", GOOD.kernels["uml"][0], SYSTEM_UML))["uml kernel"]
    assert check.status is Status.OK
    assert check.detail == (
        "7.2um1 of testing boots in 0.9 s; 6.1um4 of this system does not boot here (panic: AMX)"
    )


def test_another_architecture_has_no_guests() -> None:
    checks = judged(machine="aarch64", kernels={})
    for kind in ("uml", "qemu"):
        assert "need an x86_64 host" in checks[f"{kind} kernel"].detail
        assert "netns" in checks[f"{kind} kernel"].remedy


def test_a_check_as_json() -> None:
    check = judged(root=False)["privileges"]
    assert json.loads(json.dumps(check.to_json())) == {
        "name": "privileges",
        "status": "fail",
        "detail": "not root",
        "remedy": check.remedy,
    }


def test_controllers_are_found_in_both_versions(tmp_path: Path) -> None:
    unified = tmp_path / "with a blank"
    unified.mkdir()
    (unified / "cgroup.controllers").write_text("cpu memory io\n")
    escaped = str(unified).replace(" ", "\\040")
    found = facts.find_controllers(
        [
            "21 20 0:20 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset",
            "22 20 0:21 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory",
            f"23 20 0:22 / {escaped} rw - cgroup2 cgroup2 rw,nsdelegate",
            "24 20 0:23 / /tmp rw shared:1 - tmpfs tmpfs rw,cpuset",
        ]
    )
    assert found["cpuset"].version == 1
    assert found["cpuset"].path == "/sys/fs/cgroup/cpuset"
    assert found["memory"] == CgroupController(2, str(unified), writable=True)


def test_this_machine() -> None:
    real = gather()
    checks = {check.name: check for check in examine(real)}
    assert real.attempts.keys() == probes.ATTEMPTS.keys()
    assert checks["linux"].status is Status.OK
    assert checks["sealed memory"].status is Status.OK
    if os.geteuid() == 0 and not real.failure("tap"):
        assert checks["tap offloads"].detail.startswith("csum")


def test_the_probes_leave_nothing_behind() -> None:
    links = Path("/sys/class/net")
    before = {link.name for link in links.iterdir()}
    probe = [sys.executable, "-S", "-E", probes.__file__]
    done = subprocess.run(probe, capture_output=True, check=True, timeout=DEADLINE)
    assert json.loads(done.stdout).keys() == probes.ATTEMPTS.keys()
    assert {link.name for link in links.iterdir()} == before


def test_a_probe_that_dies_is_a_failure() -> None:
    probe = (
        f"import os, sys; sys.path.insert(0, {str(Path(probes.__file__).parent)!r}); import probes;"
        "print(probes.in_child(lambda: os._exit(3)), probes.in_child(lambda: 1 / 0))"
    )
    done = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, check=True, timeout=DEADLINE
    )
    assert "the child died" in done.stdout
    assert "ZeroDivisionError" in done.stdout
