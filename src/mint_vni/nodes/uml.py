# SPDX-License-Identifier: Apache-2.0
"""Nodes of kind ``uml``: a Linux of its own on a kernel of its own, as a process of the host.

User-Mode Linux needs no hardware support: its kernel is a program, each program of the guest a
process of the host that the kernel holds by ptrace. Its root is a directory of the host (all of it,
unless the lab says otherwise), read-only by hostfs, with a writable layer in the guest's memory above.

The guest's physical memory is a file in a tmpfs of the process's own mount namespace, of the size of
that memory; what the guest has touched of it is charged to the node.

A guest that reboots executes itself again: process, namespaces and descriptors stay, and the agent
gets a new vhost-user connection. One that panics ends (SIGABRT).

``seccomp=on`` makes system calls of the guest's programs quicker, and lets those programs reach the
guest kernel's memory: the lab has to say so (``trusted_userland: true``).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar, Final

from mint_vni import kernels
from mint_vni.errors import NodeError
from mint_vni.nodes.guest.agent_client import IO_DIRECTORY, VHOST_SOCKET
from mint_vni.nodes.guest.boot import choose_kernel, inodes_limit, modules_of
from mint_vni.nodes.guest.launch import MANY_FILES, Bind, Confinement, library_binds
from mint_vni.nodes.guest.node import GuestNode, Streams
from mint_vni.nodes.guest.script import GuestBoot, GuestRoot

__all__ = ["UmlNode"]

_MODULES: Final = ("overlay", "virtio_net")
_KERNEL: Final = "/uml"
_VIEW: Final = "/host"
_INITRAMFS: Final = "/boot/initramfs"
_EXEC_DEVICE: Final = "/dev/ttyS0"

# A page of guest memory is a page of the file; the rest is for the tmpfs itself.
_SPARE_BYTES: Final = 4 << 20


class UmlNode(GuestNode):
    """A node of kind ``uml``; see the module."""

    kind: ClassVar[str] = "uml"
    overhead: ClassVar[int] = 96 << 20

    _kernel: kernels.Kernel

    def _find(self) -> None:
        self._kernel = choose_kernel(self.plan, "uml")
        self._root = Path(self.plan.root if self.plan.root != "host" else "/")
        if not self._root.is_dir():
            raise NodeError(
                f"node {self.plan.name}: its root {self._root} is no directory; create it, "
                "or write 'root: host'"
            )

    def _write_files(self) -> None:
        boot = GuestBoot.plan(
            self.plan,
            self.context,
            GuestRoot("hostfs", _VIEW),
            _EXEC_DEVICE,
            modules_of(self._kernel, _MODULES),
            inodes=inodes_limit(),
        )
        self._write_private("initramfs", boot.initramfs())

    def _confinement(self, streams: Streams) -> Confinement:
        plan, context = self.plan, self.context
        assert plan.memory is not None
        directory = self._kernel.directory
        if directory is not None:  # it brings its own libraries
            binds = [(str(directory), _KERNEL, "x"), *_unwinder()]
            program = self._kernel.argv0
        else:
            binds = library_binds(str(self._kernel.image))
            program = str(self._kernel.image)
        return Confinement(
            name=plan.name,
            uid=context.guest_uid,
            mount_point=self._mount_point("root"),
            argv=[program, *self._arguments(streams)],
            binds=[
                *binds,
                (str(context.state_dir / "initramfs"), _INITRAMFS, ""),
                (str(context.state_dir / IO_DIRECTORY), "/run/mint", ""),
            ],
            tmpfs=[("/tmp", plan.memory + _SPARE_BYTES, 0o700)],  # noqa: S108  # its own
            view=(str(self._root), _VIEW),
            fds=streams.fds,
            cgroups=self._cgroup.node_procs,
            affinity=self._cgroup.affinity,
            env={"HOME": "/tmp", "TMPDIR": "/tmp", "PATH": ""},  # noqa: S108  # the same
            cwd="/" if directory is None else _KERNEL,
            rlimits={"NOFILE": MANY_FILES},
        )

    def _arguments(self, streams: Streams) -> list[str]:
        memory = self.plan.memory or 0
        seccomp = "on" if self.plan.trusted_userland else "off"
        return [
            f"mem={memory >> 10}K",
            f"initrd={_INITRAMFS}",
            f"seccomp={seccomp}",
            "uml_dir=/tmp/",
            "umid=mint",
            "con=null",
            f"con0=fd:{streams.console},fd:{streams.console}",
            "ssl=null",
            f"ssl0=fd:{streams.exec},fd:{streams.exec}",
            "console=tty0",
            "panic=-1",
            *self._interface(),
        ]

    def _interface(self) -> list[str]:
        """The network device."""
        return [f"virtio_uml.device=/run/mint/{VHOST_SOCKET}:1"]

    def _details(self) -> dict[str, Any]:
        userland = "seccomp" if self.plan.trusted_userland else "ptrace"
        return {"kernel_version": self._kernel.version, "userland": userland}


def _unwinder() -> list[Bind]:
    """The library that the C library loads when UML ends its own threads, for a reboot or for good.

    Without it that ends in SIGABRT.
    """
    place = f"/lib/{os.uname().machine}-linux-gnu/libgcc_s.so.1"
    return [(place, place, "x")] if os.path.exists(place) else []
