# SPDX-License-Identifier: Apache-2.0
"""The kernels that nodes of kinds ``uml`` and ``qemu`` boot: where they are, which of them work here.

A kernel lies in the user's cache, where `install` put it, or is the distribution's own. None is
trusted before a *probe boot* has shown that it reaches its init on this very machine (a file that is
there proves nothing: Debian 12's User-Mode Linux panics on some CPUs, and a /dev/kvm that opens may
belong to a hypervisor that cannot run a guest). Results are remembered, see `probe`.

Layout of the cache (``$XDG_CACHE_HOME/mint-vni/kernels``, ``~/.cache/mint-vni/kernels``, or
``$MINT_CACHE_DIR/kernels``); what a person puts there by hand in this form is found, too::

    uml/VERSION/linux                           User-Mode Linux; started with VERSION as its cwd
    uml/VERSION/lib/ld-linux-x86-64.so.2, …     the C library it was built for, if not the host's
    uml/VERSION/lib/modules/RELEASE/            its modules
    qemu/VERSION/vmlinuz                        a kernel for virtual machines
    qemu/VERSION/lib/modules/RELEASE/
    virtiofsd/VERSION/virtiofsd, lib/…          the file server for their view of the host
    */VERSION/kernel.json                       where it came from
    probes.json                                 what the probe boots showed
    lock, download/                             of an installation under way

* `model`: `Kernel`, `Program`, `Probe`; `cache`: the directory, its lock and its small files;
* `catalog`: what is there; `modules`: files and order of a kernel's modules;
* `boot`: one probe boot; `probe`: what was tried before, `find`, `kvm_works`;
* `archive`: packages from the Debian archive by apt, privately; `elf`: programs moved together with
  their C library; `install`: puts kernels into the cache.

What is exported here imports the standard library only.
"""

from mint_vni.kernels.catalog import installed, virtiofsd
from mint_vni.kernels.model import KINDS, Kernel, Kind, Method, Probe, Program
from mint_vni.kernels.modules import load_order, module_bytes
from mint_vni.kernels.probe import find, kvm_works, results

__all__ = [
    "KINDS",
    "Kernel",
    "Kind",
    "Method",
    "Probe",
    "Program",
    "find",
    "installed",
    "kvm_works",
    "load_order",
    "module_bytes",
    "results",
    "virtiofsd",
]
