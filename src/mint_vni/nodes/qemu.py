# SPDX-License-Identifier: Apache-2.0
"""Nodes of kind ``qemu``: a Linux of its own in a virtual machine.

By KVM where a probe boot has shown that it works, else by TCG, QEMU's translator, which needs no
hardware support. The root is a directory of the host (all of it, unless the lab says otherwise),
read-only by virtiofs, with a writable layer in the guest's memory above; or a disk image, see
`mint_vni.nodes.guest.image`.

virtiofsd shows the guest the host's files. It is confined as QEMU is, in namespaces of its own, and
has the host's root, which QEMU has not; they meet at a socket in a directory that they alone see.

Both devices that another process serves (vhost-user) are without MSI-X under TCG: QEMU 7.2 crashes
there when a driver sets it up.

A guest that reboots is reset by QEMU and goes on with the same devices; one that panics, too. The
agent ends a guest that is reset before it gets ready, see `mint_vni.nodes.guest.qmp`.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any, ClassVar, Final

from mint_vni import kernels
from mint_vni.errors import NodeError
from mint_vni.nodes.guest.agent_client import IO_DIRECTORY, VHOST_SOCKET, listen_in
from mint_vni.nodes.guest.boot import choose_kernel, modules_of
from mint_vni.nodes.guest.launch import MANY_FILES, Bind, Confinement, library_binds
from mint_vni.nodes.guest.node import GuestNode, Streams
from mint_vni.nodes.guest.script import EXEC_PORT, GuestBoot, GuestRoot
from mint_vni.nodes.programs import find_program

__all__ = ["QemuNode"]

_QEMU: Final = ("qemu-system-x86_64", "qemu-system-x86")
_MODULES: Final = ("virtio_pci", "virtio_console", "virtiofs", "overlay", "virtio_net")
_KERNEL: Final = "/boot/vmlinuz"
_INITRAMFS: Final = "/boot/initramfs"
_FS_DIRECTORY: Final = "fs"
_FS_SOCKET: Final = "virtiofs.sock"
_FS_TAG: Final = "root"
_VIEW: Final = "/host"

# Where QEMU looks for firmware; and for parts of itself that it loads when they are asked for.
_DATA: Final = ("/usr/share/qemu", "/usr/share/seabios")
_PARTS: Final = ("accel-tcg-i386.so", "accel-tcg-x86_64.so")
_PART_PLACES: Final = ("/usr/lib/x86_64-linux-gnu/qemu", "/usr/lib/qemu", "/usr/lib64/qemu")

# The longest queues that QEMU can make: 64 KiB of segments take some 45 of the default 256 buffers,
# and a guest that does not get to run for a while loses what finds no buffer.
_QUEUES: Final = ",rx_queue_size=1024,tx_queue_size=1024"

# Translated code that QEMU keeps, MiB. It would take up to 1 GiB if it was let.
_TRANSLATED: Final = 64
# "Enhanced rep movs" means fast to programs, and is slow when translated byte by byte: without it
# a guest takes a third less to get ready.
_CPU: Final = {"tcg": "max,-erms", "kvm": "host"}


class QemuNode(GuestNode):
    """A node of kind ``qemu``; see the module."""

    kind: ClassVar[str] = "qemu"
    overhead: ClassVar[int] = 192 << 20
    monitored: ClassVar[bool] = True

    _kernel: kernels.Kernel
    _virtiofsd: kernels.Program

    def _find(self) -> None:
        self._qemu = find_program(*_QEMU)
        self._kernel = choose_kernel(self.plan, "qemu")
        self._accelerator = "kvm" if kernels.kvm_works(self._kernel) else "tcg"
        self._virtiofsd = kernels.virtiofsd()
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
            GuestRoot("virtiofs", _FS_TAG),
            f"port:{EXEC_PORT}",
            modules_of(self._kernel, _MODULES),
        )
        self._write_private("initramfs", boot.initramfs())

    # ------------------------------------------------------------------ virtiofsd

    def _start_helpers(self) -> None:
        context = self.context
        directory = context.state_dir / _FS_DIRECTORY
        directory.mkdir(mode=0o755, exist_ok=True)
        os.chmod(directory, 0o755)
        listener = listen_in(directory, _FS_SOCKET, socket.SOCK_STREAM, context.guest_uid)
        with listener:
            self._launch_helper(self._file_server(listener.fileno()))

    def _file_server(self, listener: int) -> Confinement:
        program = self._virtiofsd
        own = program.directory
        return Confinement(
            name=self.plan.name,
            uid=self.context.guest_uid,
            mount_point=self._mount_point("fs-root"),
            argv=[
                program.argv0,
                f"--fd={listener}",
                f"--shared-dir={_VIEW}",
                "--sandbox=none",
                "--readonly",
                # What lies below an overlay must not change anyway.
                "--cache=always",
                # Else overlayfs refuses other file systems of the host inside this one.
                "--no-announce-submounts",
                "--inode-file-handles=never",
                "--log-level=error",
            ],
            binds=[(str(own), "/virtiofsd", "x")] if own else library_binds(str(program.path)),
            view=(str(self._root), _VIEW),
            fds=[listener],
            cgroups=self._cgroup.node_procs,
            affinity=self._cgroup.affinity,
            cwd="/virtiofsd" if own else "/",
            rlimits={"NOFILE": MANY_FILES},
        )

    # ------------------------------------------------------------------ QEMU

    def _confinement(self, streams: Streams) -> Confinement:
        context = self.context
        state = context.state_dir
        return Confinement(
            name=self.plan.name,
            uid=context.guest_uid,
            mount_point=self._mount_point("root"),
            argv=[self._qemu, *self._arguments(streams)],
            binds=[
                *self._program_binds(),
                (str(self._kernel.image), _KERNEL, ""),
                (str(state / "initramfs"), _INITRAMFS, ""),
                (str(state / IO_DIRECTORY), "/run/mint", ""),
                (str(state / _FS_DIRECTORY), "/run/fs", ""),
            ],
            tmpfs=[("/tmp", 1 << 20, 0o700)],  # noqa: S108  # its own
            private_devices=["kvm"] if self._accelerator == "kvm" else [],
            fds=streams.fds,
            cgroups=self._cgroup.node_procs,
            affinity=self._cgroup.affinity,
            env={"HOME": "/tmp", "TMPDIR": "/tmp", "PATH": ""},  # noqa: S108  # the same
        )

    def _program_binds(self) -> list[Bind]:
        """QEMU, its libraries, its parts and its firmware."""
        parts = [f"{place}/{part}" for place in _PART_PLACES for part in _PARTS]
        return [
            *library_binds(self._qemu),
            *((path, path, "x") for path in parts if os.path.exists(path)),
            *((path, path, "") for path in _DATA if os.path.isdir(path)),
        ]

    def _arguments(self, streams: Streams) -> list[str]:
        return [
            *self._machine(),
            *("-kernel", _KERNEL, "-initrd", _INITRAMFS),
            *("-append", "console=ttyS0 panic=-1"),
            *self._channels(streams),
            *self._network(),
            *("-chardev", f"socket,id=fs,path=/run/fs/{_FS_SOCKET}"),
            *("-device", f"vhost-user-fs-pci,chardev=fs,tag={_FS_TAG}{self._vectors()}"),
        ]

    def _machine(self) -> list[str]:
        memory = (self.plan.memory or 0) >> 20
        accelerator = self._accelerator
        options = f",tb-size={_TRANSLATED}" if accelerator == "tcg" else ""
        return [
            *("-nodefaults", "-no-user-config", "-display", "none"),
            *("-machine", "q35,usb=off,vmport=off,memory-backend=memory"),
            # vhost-user is about memory that others can map.
            *("-object", f"memory-backend-memfd,id=memory,size={memory}M,share=on"),
            *("-m", f"{memory}M", "-smp", str(len(self.plan.cpus) or 1)),
            *("-accel", f"{accelerator}{options}", "-cpu", _CPU[accelerator]),
            *(
                "-sandbox",
                "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
            ),
        ]

    def _channels(self, streams: Streams) -> list[str]:
        """Console, exec channel, monitor."""
        return [
            *("-chardev", f"socket,id=console,fd={streams.console}", "-serial", "chardev:console"),
            *("-chardev", f"socket,id=exec,fd={streams.exec}"),
            *("-device", "virtio-serial-pci"),
            *("-device", f"virtserialport,chardev=exec,name={EXEC_PORT}"),
            *("-chardev", f"socket,id=monitor,fd={streams.monitor}"),
            *("-mon", "chardev=monitor,mode=control"),
        ]

    def _network(self) -> list[str]:
        return [
            *("-chardev", f"socket,id=vhost,path=/run/mint/{VHOST_SOCKET},reconnect=1"),
            *("-netdev", "vhost-user,id=vni,chardev=vhost"),
            "-device",
            f"virtio-net-pci,netdev=vni,mac={self.plan.mac},romfile={_QUEUES}{self._vectors()}",
        ]

    def _vectors(self) -> str:
        return ",vectors=0" if self._accelerator == "tcg" else ""

    def _details(self) -> dict[str, Any]:
        return {"kernel_version": self._kernel.version, "accelerator": self._accelerator}
