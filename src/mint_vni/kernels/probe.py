# SPDX-License-Identifier: Apache-2.0
"""Which kernels work here: probe boots, remembered.

A result holds for as long as nothing that it depends on changes: the kernel's file and the CPU's
model and abilities; for User-Mode Linux the host's kernel; for QEMU its program; with KVM also the
host's boot, since modules, settings and outer hypervisors change with it. A kernel that was given up
at its deadline is tried again after the next boot of the host: perhaps the machine was just busy.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mint_vni.errors import PlatformError
from mint_vni.kernels import boot, cache, catalog, host
from mint_vni.kernels.model import METHODS, Kernel, Kind, Method, Probe

KVM = "/dev/kvm"
_KEPT = 64  # results


def find(kind: Kind) -> Kernel:
    """The kernel for a node: the newest one that a probe boot found good.

    What has not been tried yet is tried now: a second for User-Mode Linux, a few for QEMU.

    Args:
        kind: The node's kind.

    Raises:
        PlatformError: There is none, none boots, or QEMU is missing.
    """
    catalog.demand_machine(kind)
    if kind == "qemu":
        host.need(catalog.QEMU, catalog.QEMU_PACKAGE)
    kernels = catalog.installed(kind)
    if not kernels:
        raise PlatformError(
            f"there is no kernel for nodes of kind {kind}; run 'mint kernel install {kind}'"
        )
    refused = []
    for kernel in kernels:
        probes = []
        for result in results(kernel):
            if result.ok:
                return kernel
            probes.append(result)
        if probes:
            refused.append(f"{kernel.version} of {kernel.origin}: {probes[-1].reason}")
    fetched = any(kernel.origin != catalog.SYSTEM for kernel in kernels)
    raise PlatformError(
        f"no kernel for nodes of kind {kind} boots here ({'; '.join(refused)}); "
        f"run 'mint kernel install {kind}{' --upgrade' if fetched else ''}', "
        f"or see 'mint kernel probe {kind}'"
    )


def kvm_works(kernel: Kernel | None = None) -> bool:
    """Whether QEMU guests run by KVM here, as a probe boot shows.

    Args:
        kernel: With which kernel; the newest one if left out.

    Returns:
        False also where there is no kernel, no QEMU, or no /dev/kvm that we may use.
    """
    kernel = kernel or next(iter(catalog.installed("qemu")), None)
    return kernel is not None and catalog.qemu() is not None and result(kernel, "kvm").ok


def results(kernel: Kernel) -> Iterator[Probe]:
    """A kernel's probe boots, remembered or made now, the better method first.

    Raises:
        PlatformError: QEMU is not installed.
    """
    for method in METHODS[kernel.kind]:
        yield result(kernel, method)


def result(kernel: Kernel, method: Method) -> Probe:
    """What a probe boot shows: the remembered one, else one made now.

    Raises:
        PlatformError: QEMU is not installed.
    """
    return remembered(kernel, method) or probe(kernel, method)


def probe(kernel: Kernel, method: Method, deadline: float | None = None) -> Probe:
    """Boot a kernel now, and remember what happened.

    Args:
        kernel: The kernel.
        method: How.
        deadline: Seconds; see `boot.DEADLINES`.

    Raises:
        PlatformError: QEMU is not installed.
    """
    if method == "kvm" and (why := _kvm_refused()):
        return boot.failed(method, why)  # not remembered: a look is cheap, and others may open it
    key = _key(kernel, method)
    made = boot.boot(kernel, method, deadline)
    entry = made.to_json() | {
        "kernel": f"{kernel.kind} {kernel.version}",
        "boot_id": host.boot_id() if made.reason.startswith(boot.GAVE_UP) else "",
    }

    def add(content: Any) -> Any:
        known = content if isinstance(content, dict) else {}
        known.pop(key, None)
        return dict([*list(known.items())[1 - _KEPT :], (key, entry)])

    try:
        cache.update_json(cache.directory() / "probes.json", add)
    except OSError:
        pass  # a full or read-only disk; it will be tried again
    return made


def remembered(kernel: Kernel, method: Method) -> Probe | None:
    """What an earlier probe boot showed, if that still holds; None if nothing is known."""
    if method == "kvm" and (why := _kvm_refused()):
        return boot.failed(method, why)
    key = _key(kernel, method)
    for base in cache.directories():
        known = cache.read_json(base / "probes.json")
        entry = known.get(key) if isinstance(known, dict) else None
        try:
            if entry and entry["boot_id"] in {"", host.boot_id()}:
                return Probe.from_json(entry)
        except (KeyError, TypeError, ValueError, AttributeError):
            continue  # of another version of ours
    return None


def _kvm_refused() -> str:
    """Why KVM need not be tried; empty if it is to be."""
    if not Path(KVM).exists():
        return f"there is no {KVM}"
    return "" if os.access(KVM, os.R_OK | os.W_OK) else f"{KVM} is not ours to open"


def _key(kernel: Kernel, method: Method) -> str:
    """Changes with whatever may change the result."""
    facts: list[object] = [1, method, host.identity(kernel.image), kernel.release, host.cpu()]
    if method == "uml":
        facts += [os.uname().release, os.uname().version]
    else:
        # The file stands for its version: asking for that takes longer than all else here.
        facts += [host.identity(catalog.qemu() or ""), boot.CPU_MODELS[method]]
    if method == "kvm":
        facts += [host.boot_id(), os.uname().release]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]
