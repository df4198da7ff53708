# SPDX-License-Identifier: Apache-2.0
"""What is so on this machine: read from /proc and /sys, looked for in PATH, and tried."""

from __future__ import annotations

import json
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mint_vni.doctor import probes
from mint_vni.errors import PlatformError
from mint_vni.kernels import KINDS, Kernel, catalog, installed, results
from mint_vni.lab.units import parse_cpu_list
from mint_vni.nodes.programs import search_path

PROGRAMS = (
    *("sshd", "ssh", "ssh-keygen", "nsenter", "setpriv", "unshare", "taskset"),
    *("ip", "ping", "iperf3", "ethtool", "tcpdump"),
    catalog.QEMU,
)
CONTROLLERS = ("cpuset", "memory")
PROBES_DEADLINE = 20.0


@dataclass(frozen=True)
class CgroupController:
    """Where a cgroup controller is to be had.

    Attributes:
        version: 1 or 2.
        path: Root of its hierarchy.
        writable: Whether this process may make groups there.
    """

    version: int
    path: str
    writable: bool


@dataclass(frozen=True)
class KernelFact:
    """What probe boots show of one kernel; see `mint_vni.kernels`.

    Attributes:
        name: Version and origin, for people.
        system: Whether it is this system's own, not fetched by `mint kernel install`.
        boots: How it boots (``uml``, ``kvm``, ``tcg``), each with the seconds it takes.
        refused: How it does not, each with the reason.
    """

    name: str
    system: bool = False
    boots: Mapping[str, float] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Facts:
    """A machine as `checks.examine` sees it.

    Attributes:
        kernel: Release, as ``uname -r`` says.
        machine: Architecture, as ``uname -m`` says.
        root: Whether this process is root.
        cpus: CPUs that this process may use.
        numa_nodes: Groups of CPUs with memory of their own; 0 where the kernel does not say.
        memory: All memory, bytes.
        memory_available: What can be had of it without swapping, bytes.
        descriptors: Most file descriptors that a process here may come to have.
        ipv6: Whether the kernel has IPv6.
        congestion: The congestion control that TCP begins with, which namespaces inherit.
        kvm: ``absent``, ``denied`` or ``present``.
        cgroups: By controller, those that are mounted.
        programs: By name, the path of each that is installed.
        kernels: By kind of guest, its kernels, newest first.
        virtiofsd: Version and origin of the one for guests; empty if there is none.
        attempts: By name as in `probes.ATTEMPTS`, what was given, or the name of the error.
    """

    kernel: str
    machine: str
    root: bool
    cpus: int
    numa_nodes: int
    memory: int
    memory_available: int
    descriptors: int
    ipv6: bool
    congestion: str
    kvm: str
    cgroups: Mapping[str, CgroupController]
    programs: Mapping[str, str]
    kernels: Mapping[str, Sequence[KernelFact]]
    virtiofsd: str
    attempts: Mapping[str, object]

    def failure(self, attempt: str) -> str | None:
        """Why an attempt failed; None when it succeeded."""
        result = self.attempts.get(attempt, {"error": "not tried"})
        return str(result["error"]) if isinstance(result, Mapping) else None


def gather() -> Facts:
    """The facts of this machine.

    It takes about a tenth of a second, and a few seconds when kernels for guests have to be tried.

    Raises:
        PlatformError: This is no Linux with /proc.
    """
    try:
        memory = _meminfo(Path("/proc/meminfo").read_text(encoding="ascii"))
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    except (OSError, KeyError) as error:
        raise PlatformError(f"this machine has no usable /proc ({error}); mount it") from None
    root = os.geteuid() == 0
    return Facts(
        kernel=platform.release(),
        machine=platform.machine(),
        root=root,
        cpus=len(os.sched_getaffinity(0)),
        numa_nodes=_numa_nodes(),
        memory=memory["MemTotal"],
        memory_available=memory["MemAvailable"],
        descriptors=_descriptors(root=root),
        ipv6=Path("/proc/net/if_inet6").exists(),
        congestion=_line(Path("/proc/sys/net/ipv4/tcp_congestion_control")),
        kvm=_kvm(),
        cgroups=find_controllers(mounts),
        programs=_programs(),
        kernels={kind: [_kernel(kernel) for kernel in installed(kind)] for kind in KINDS},
        virtiofsd=_virtiofsd(),
        attempts=attempt_all(),
    )


def attempt_all() -> dict[str, object]:
    """Run `probes` as a program of its own.

    Returns:
        By name of the attempt, what it gave; nothing when the program itself failed.
    """
    # -S -E: no site packages, no environment; it needs the standard library alone.
    argv = [sys.executable, "-S", "-E", probes.__file__]
    try:
        done = subprocess.run(argv, capture_output=True, check=True, timeout=PROBES_DEADLINE)
        found = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return {}
    return dict(found)


def find_controllers(mounts: Iterable[str]) -> dict[str, CgroupController]:
    """Where the controllers that labs use are mounted, version 2 before version 1.

    Args:
        mounts: Lines of /proc/self/mountinfo.
    """
    found: dict[str, CgroupController] = {}
    for line in mounts:
        before, _, after = line.partition(" - ")
        kind, _, rest = after.partition(" ")
        path = _unescaped(before.split()[4])
        if kind == "cgroup2":
            names, version = _words(Path(path, "cgroup.controllers")), 2
        elif kind == "cgroup":
            names, version = set(rest.split()[-1].split(",")), 1
        else:
            continue
        for name in names.intersection(CONTROLLERS):
            if name not in found or found[name].version < version:
                found[name] = CgroupController(version, path, os.access(path, os.W_OK))
    return found


def _unescaped(path: str) -> str:
    """A path of mountinfo, where blanks and backslashes are octal."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match.group(1), 8)), path)


def _words(path: Path) -> set[str]:
    try:
        return set(path.read_text(encoding="ascii").split())
    except OSError:
        return set()


def _line(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _meminfo(text: str) -> dict[str, int]:
    """Bytes by name."""
    lines = (line.partition(":") for line in text.splitlines())
    return {name: int(value.split()[0]) * 1024 for name, _, value in lines}


def _numa_nodes() -> int:
    try:
        online = Path("/sys/devices/system/node/online").read_text(encoding="ascii")
        return len(parse_cpu_list(online.strip()))
    except (OSError, ValueError):
        return 0


def _descriptors(*, root: bool) -> int:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if root or limit == resource.RLIM_INFINITY:
        # Root may raise the hard limit up to what the kernel allows any process.
        try:
            return int(Path("/proc/sys/fs/nr_open").read_text(encoding="ascii"))
        except (OSError, ValueError):
            pass
    return limit


def _kvm() -> str:
    kvm = Path("/dev/kvm")
    if not kvm.exists():
        return "absent"
    return "present" if os.access(kvm, os.R_OK | os.W_OK) else "denied"


def _programs() -> dict[str, str]:
    # sshd and ethtool live where only root's PATH leads.
    found = ((name, shutil.which(name, path=search_path())) for name in PROGRAMS)
    return {name: where for name, where in found if where}


def _kernel(kernel: Kernel) -> KernelFact:
    name = f"{kernel.version} of {kernel.origin}"
    system = kernel.origin == catalog.SYSTEM
    try:
        probes = list(results(kernel))
    except PlatformError as error:  # no QEMU to boot it with
        return KernelFact(name, system, refused={"": str(error)})
    return KernelFact(
        name,
        system,
        {probe.method: probe.seconds for probe in probes if probe.ok},
        {probe.method: probe.reason for probe in probes if not probe.ok},
    )


def _virtiofsd() -> str:
    try:
        program = catalog.virtiofsd()
    except PlatformError:
        return ""
    return f"{program.version} of {program.origin}"
