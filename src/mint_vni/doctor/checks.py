# SPDX-License-Identifier: Apache-2.0
"""Judges a machine's facts: one check each, with a remedy where it is not ok.

`fail` is kept for what labs of namespace nodes cannot do without; the rest warns.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum

from mint_vni.doctor.facts import Facts
from mint_vni.kernels import catalog
from mint_vni.observe.units import size

KERNEL_MIN = (5, 11)  # epoll_pwait2; what else is needed is older
CPUS_WANTED = 2
MEMORY_WANTED = 512 << 20
DESCRIPTORS_WANTED = 16_384  # a supervisor of 64 nodes holds about 9,200
PACED = frozenset({"bbr"})  # by timers, unless the interface's queue is fq, which few kernels have
FOR_ROOT = frozenset({"namespaces", "tun device", "cgroup cpuset", "cgroup memory"})
NEEDED_NAMESPACES = ("net", "mount", "uts", "ipc", "pid")


class Status(StrEnum):
    """How a check came out."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: What it is, short and stable.
        status: How it came out.
        detail: What was found.
        remedy: What to do about it; empty when ok.
    """

    name: str
    status: Status
    detail: str
    remedy: str = ""

    def to_json(self) -> dict[str, str]:
        """The check as a dictionary for ``json.dumps``."""
        return asdict(self)


def examine(facts: Facts) -> list[Check]:
    """Judge a machine.

    Args:
        facts: From `facts.gather`, or made up by a test.

    Returns:
        The checks in the order in which to read them: first what labs need.
    """
    groups = (_base, _isolation, _fabric, _limits, _programs, _kernels)
    checks = [check for group in groups for check in group(facts)]
    return checks if facts.root else [_seen_without_root(check) for check in checks]


def _seen_without_root(check: Check) -> Check:
    """What was refused for want of root says nothing about the machine."""
    if check.name not in FOR_ROOT or check.status is Status.OK:
        return check
    return Check(check.name, Status.WARN, "refused to us; only root can tell", "sudo mint doctor")


def _check(ok: object, name: str, detail: str, remedy: str, otherwise: Status) -> Check:
    return Check(name, Status.OK, detail) if ok else Check(name, otherwise, detail, remedy)


def _need(ok: object, name: str, detail: str, remedy: str) -> Check:
    return _check(ok, name, detail, remedy, Status.FAIL)


def _want(ok: object, name: str, detail: str, remedy: str) -> Check:
    return _check(ok, name, detail, remedy, Status.WARN)


def _base(facts: Facts) -> Iterator[Check]:
    release = tuple(int(part) for part in re.findall(r"\d+", facts.kernel)[:2])
    least = ".".join(str(part) for part in KERNEL_MIN)
    yield _need(
        release >= KERNEL_MIN,
        "linux",
        f"{facts.kernel} on {facts.machine}",
        f"boot Linux {least} or later",
    )
    yield _need(
        facts.root,
        "privileges",
        "root" if facts.root else "not root",
        "run mint by sudo: it makes network namespaces and interfaces in them",
    )
    yield _want(
        facts.cpus >= CPUS_WANTED,
        "cpus",
        f"{facts.cpus} to be used",
        "give this machine two or more: nodes on one CPU wait for each other",
    )
    yield _want(
        facts.memory_available >= MEMORY_WANTED,
        "memory",
        f"{size(facts.memory_available)} available of {size(facts.memory)}",
        f"free some: a lab of two nodes wants about {size(MEMORY_WANTED)}",
    )
    yield _want(
        facts.numa_nodes <= 1,
        "numa",
        f"{facts.numa_nodes or 'one'} memory node{'s' if facts.numa_nodes > 1 else ''}",
        "give nodes that talk much CPUs of one memory node (lscpu shows them): frames between "
        "memory nodes cost more",
    )


def _isolation(facts: Facts) -> Iterator[Check]:
    refused = [
        f"{name} ({why})"
        for name in NEEDED_NAMESPACES
        if (why := facts.failure(f"{name} namespace"))
    ]
    yield _need(
        not refused,
        "namespaces",
        f"refused: {', '.join(refused)}" if refused else f"made: {', '.join(NEEDED_NAMESPACES)}",
        "run as root; in a container, give it the capability SYS_ADMIN and a seccomp profile that "
        "allows unshare",
    )
    why = facts.failure("user namespace without rights")
    yield _want(
        not why,
        "user namespaces",
        f"refused to users without rights ({why})" if why else "open to users without rights",
        "nothing depends on them yet; to allow them: sysctl kernel.unprivileged_userns_clone=1, "
        "user.max_user_namespaces above 0, and no AppArmor restriction on them",
    )
    for name, what in (("cpuset", "CPUs"), ("memory", "memory")):
        yield _cgroup(facts, name, what)


def _cgroup(facts: Facts, name: str, what: str) -> Check:
    controller = facts.cgroups.get(name)
    if controller is None:
        detail = "no such controller is mounted"
    else:
        detail = f"version {controller.version} at {controller.path}"
        detail += "" if controller.writable else ", read-only for us"
    return _want(
        controller is not None and controller.writable,
        f"cgroup {name}",
        detail,
        f"mount cgroup2 with the {name} controller, writable; without it the nodes' {what} "
        + ("are kept by affinity only" if name == "cpuset" else "is not limited"),
    )


def _fabric(facts: Facts) -> Iterator[Check]:
    why = facts.failure("tap")
    yield _need(
        not why,
        "tun device",
        f"no TAP could be made ({why})" if why else "a TAP was made in a namespace of its own",
        "modprobe tun, and have /dev/net/tun (mknod /dev/net/tun c 10 200); in a container, pass "
        "--device /dev/net/tun and the capability NET_ADMIN",
    )
    if not why:
        taken = facts.attempts["tap"]
        offloads = [str(name) for name in taken] if isinstance(taken, list) else []
        yield _want(
            "tso4" in offloads and "uso4" in offloads,
            "tap offloads",
            ", ".join(offloads) or "none",
            "boot Linux 6.2 or later for UDP segmentation; frames are cut in software until then",
        )
    why = facts.failure("sealed memory")
    yield _need(
        not why,
        "sealed memory",
        f"memfd with seals failed ({why})" if why else "memfd with seals works",
        "boot a kernel with memfd_create (CONFIG_MEMFD_CREATE), and allow it in the container",
    )
    why = facts.failure("pidfd")
    yield _need(
        not why,
        "pidfd",
        f"pidfd_open failed ({why})" if why else "processes can be held by descriptor",
        "boot Linux 5.3 or later, and allow pidfd_open in the container's seccomp profile",
    )
    yield _want(
        facts.ipv6,
        "ipv6",
        "the kernel has it" if facts.ipv6 else "the kernel has none",
        "boot without ipv6.disable=1, or leave ipv6 out of the lab file's network",
    )
    yield _want(
        facts.congestion not in PACED,
        "tcp",
        f"congestion control {facts.congestion or 'unknown'}"
        + (", which sets a timer for each segment" if facts.congestion in PACED else ""),
        "where TCP between nodes is to be fast, on a virtual machine above all: "
        "mint exec NODE -- sysctl -w net.ipv4.tcp_congestion_control=reno",
    )


def _limits(facts: Facts) -> Iterator[Check]:
    yield _want(
        facts.descriptors >= DESCRIPTORS_WANTED,
        "descriptors",
        f"{facts.descriptors:,} a process",
        f"raise the limit for large labs: ulimit -Hn {DESCRIPTORS_WANTED}",
    )


def _programs(facts: Facts) -> Iterator[Check]:
    for name, package in (
        ("sshd", "openssh-server"),
        ("ssh", "openssh-client"),
        ("ssh-keygen", "openssh-client"),
        *((name, "util-linux") for name in ("nsenter", "setpriv", "unshare", "taskset")),
    ):
        yield _program(facts, name, package, Status.FAIL)
    for name, package in (
        ("ip", "iproute2"),
        ("ping", "iputils-ping"),
        ("iperf3", "iperf3"),
        ("ethtool", "ethtool"),
    ):
        yield _program(facts, name, package, Status.WARN)


def _program(facts: Facts, name: str, package: str, otherwise: Status) -> Check:
    where = facts.programs.get(name)
    return _check(where, name, where or "not found", f"apt-get install {package}", otherwise)


def _kernels(facts: Facts) -> Iterator[Check]:
    """What only nodes with kernels of their own use."""
    if facts.machine != catalog.MACHINE:
        for name in ("uml kernel", "qemu kernel"):
            yield Check(
                name,
                Status.WARN,
                f"guests need an {catalog.MACHINE} host, this is {facts.machine}",
                "use nodes of kind netns here",
            )
        return
    yield _kernel(facts, "uml", "User-Mode Linux")
    yield _program(facts, catalog.QEMU, catalog.QEMU_PACKAGE, Status.WARN)
    yield _kernel(facts, "qemu", "QEMU guests")
    yield _kvm(facts)
    yield _want(
        facts.virtiofsd,
        "virtiofsd",
        facts.virtiofsd or "none that runs without root",
        "mint kernel install virtiofsd; without it QEMU guests cannot see the host's files",
    )


def _kernel(facts: Facts, kind: str, what: str) -> Check:
    """The kernel of a kind that a node gets: the newest that boots; and why others do not."""
    name = f"{kind} kernel"
    kernels = facts.kernels.get(kind, ())
    if not kernels:
        return Check(name, Status.WARN, f"none for {what}", f"mint kernel install {kind}")
    bad = [
        f"{kernel.name} does not boot here ({'; '.join(dict.fromkeys(kernel.refused.values()))})"
        for kernel in kernels
        if not kernel.boots
    ]
    good = next((kernel for kernel in kernels if kernel.boots), None)
    if good:
        # What its boots by another way showed is said elsewhere: for KVM, in a check of its own.
        ways = ", ".join(
            f"{seconds:.1f} s" + ("" if way == "uml" else f" by {way.upper()}")
            for way, seconds in good.boots.items()
        )
        return Check(name, Status.OK, "; ".join([f"{good.name} boots in {ways}", *bad]))
    fetched = any(not kernel.system for kernel in kernels)
    return Check(
        name,
        Status.WARN,
        "; ".join(bad),
        f"mint kernel install {kind}{' --upgrade' if fetched else ''}; "
        f"'mint kernel probe {kind}' boots it and shows its console",
    )


def _kvm(facts: Facts) -> Check:
    remedy = (
        "enable virtualisation in the firmware or the outer hypervisor, and join the group kvm; "
        "without it QEMU emulates, several times slower"
    )
    if facts.kvm != "present":
        denied = "present, not readable and writable by us"
        return Check("kvm", Status.WARN, denied if facts.kvm == "denied" else "no /dev/kvm", remedy)
    tried = [kernel for kernel in facts.kernels.get("qemu", ()) if "" not in kernel.refused]
    if not tried:
        return Check(
            "kvm",
            Status.WARN,
            "present, not proven: there is nothing to boot by it",
            f"mint kernel install qemu, and apt-get install {catalog.QEMU_PACKAGE}",
        )
    if seconds := tried[0].boots.get("kvm"):
        return Check("kvm", Status.OK, f"a guest booted by it in {seconds:.1f} s")
    why = tried[0].refused.get("kvm", "not tried")
    return Check("kvm", Status.WARN, f"present, but no guest boots by it: {why}", remedy)
