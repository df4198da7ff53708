# SPDX-License-Identifier: Apache-2.0
"""Nodes of kind ``qemu``: a Linux of its own in a virtual machine.

By KVM where a probe boot has shown that it works, else by TCG, QEMU's translator, which needs no
hardware support. Without an image, the root is a directory of the host (all of it, unless the lab
says otherwise), read-only by virtiofs (`mint_vni.nodes.guest.virtiofs`), with a writable layer in the
guest's memory above; kernel and initramfs are ours. With an image (`mint_vni.nodes.guest.image`) the
machine boots from that disk, and a cloud-init seed (`mint_vni.nodes.guest.seed`) sets it up.

vhost-user devices are without MSI-X under TCG: QEMU 7.2 crashes there when a driver sets it up.

A guest that reboots is reset by QEMU and goes on with the same devices; one that panics, too. The
agent ends a guest that is reset before it gets ready, see `mint_vni.nodes.guest.qmp`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

from mint_vni import kernels
from mint_vni.errors import NodeError
from mint_vni.nodes.guest.agent_client import IO_DIRECTORY, VHOST_SOCKET
from mint_vni.nodes.guest.boot import choose_kernel, inodes_limit, modules_of
from mint_vni.nodes.guest.image import Image, inspect_image, make_overlay
from mint_vni.nodes.guest.launch import Bind, Confinement, library_binds
from mint_vni.nodes.guest.node import GuestNode, Streams
from mint_vni.nodes.guest.script import EXEC_PORT, GuestBoot, GuestRoot
from mint_vni.nodes.guest.virtiofs import FS_DIRECTORY, FS_SOCKET, FS_TAG, file_server, listen
from mint_vni.nodes.programs import find_program

if TYPE_CHECKING:
    from mint_vni.lab.plan import NodePlan
    from mint_vni.nodes.base import NodeContext

__all__ = ["QemuNode"]

_QEMU: Final = ("qemu-system-x86_64", "qemu-system-x86")
_MODULES: Final = ("virtio_pci", "virtio_console", "virtiofs", "overlay", "virtio_net")
_KERNEL: Final = "/boot/vmlinuz"
_INITRAMFS: Final = "/boot/initramfs"
_SEED: Final = "/boot/seed.iso"

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
# a guest takes less to get ready.
_CPU: Final = {"tcg": "max,-erms", "kvm": "host"}

# An image boots as slowly as its makers like, and may reboot to grow its disk.
_IMAGE_READY_SECONDS: Final = 600.0
_IMAGE_RESETS: Final = 3


class QemuNode(GuestNode):
    """A node of kind ``qemu``; see the module."""

    kind: ClassVar[str] = "qemu"
    overhead: ClassVar[int] = 192 << 20
    monitored: ClassVar[bool] = True

    _kernel: kernels.Kernel
    _virtiofsd: kernels.Program
    _image: Image | None = None

    def __init__(self, plan: NodePlan, context: NodeContext) -> None:
        super().__init__(plan, context)
        if plan.image is not None:
            self.ready_seconds = _IMAGE_READY_SECONDS
            self.resets_max = _IMAGE_RESETS

    def _find(self) -> None:
        self._qemu = find_program(*_QEMU)
        if self.plan.image is not None:
            self._image = inspect_image(self.plan.name, self.plan.image)
            self._accelerator = "kvm" if kernels.kvm_works() else "tcg"
            return
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
        if self._image is not None:
            from mint_vni.nodes.guest.seed import make_seed

            self._write_private("seed.iso", make_seed(self.plan, self.context))
            return
        boot = GuestBoot.plan(
            self.plan,
            self.context,
            GuestRoot("virtiofs", FS_TAG),
            f"port:{EXEC_PORT}",
            modules_of(self._kernel, _MODULES),
            inodes=inodes_limit(),
        )
        self._write_private("initramfs", boot.initramfs())

    def _make_kept(self) -> tuple[int, ...]:
        return () if self._image is None else (make_overlay(self._image.size),)

    def _open_files(self) -> list[int]:
        return [] if self._image is None else self._image.open()

    def _start_helpers(self) -> None:
        if self._image is not None:
            return
        context = self.context
        with listen(context.state_dir, context.guest_uid) as listener:
            server = file_server(
                self._virtiofsd,
                self._root,
                listener.fileno(),
                name=self.plan.name,
                uid=context.guest_uid,
                mount_point=self._mount_point("fs-root"),
                cgroups=self._cgroup.node_procs,
                affinity=self._cgroup.affinity,
            )
            self._launch_helper(server)

    # ------------------------------------------------------------------ QEMU

    def _confinement(self, streams: Streams) -> Confinement:
        context = self.context
        return Confinement(
            name=self.plan.name,
            uid=context.guest_uid,
            mount_point=self._mount_point("root"),
            argv=[self._qemu, *self._machine(), *self._boots(streams), *self._devices(streams)],
            binds=[
                *self._program_binds(),
                *self._boot_binds(),
                (str(context.state_dir / IO_DIRECTORY), "/run/mint", ""),
            ],
            tmpfs=[("/tmp", 1 << 20, 0o700)],  # noqa: S108  # its own
            private_devices=["kvm"] if self._accelerator == "kvm" else [],
            fds=[*streams.fds, *self._keep],
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

    def _boot_binds(self) -> list[Bind]:
        state = self.context.state_dir
        if self._image is not None:
            return [(str(state / "seed.iso"), _SEED, "")]
        return [
            (str(self._kernel.image), _KERNEL, ""),
            (str(state / "initramfs"), _INITRAMFS, ""),
            (str(state / FS_DIRECTORY), "/run/fs", ""),
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

    def _boots(self, streams: Streams) -> list[str]:
        """What the machine boots from, and its root."""
        if self._image is None:
            return [
                *("-kernel", _KERNEL, "-initrd", _INITRAMFS),
                *("-append", "console=ttyS0 panic=-1"),
                *("-chardev", f"socket,id=fs,path=/run/fs/{FS_SOCKET}"),
                *("-device", f"vhost-user-fs-pci,chardev=fs,tag={FS_TAG}{self._vectors()}"),
            ]
        sets = list(enumerate([*self._keep, *streams.files], 1))
        seed = f"driver=raw,node-name=seed,read-only=on,file.driver=file,file.filename={_SEED}"
        return [
            *(word for number, fd in sets for word in ("-add-fd", f"fd={fd},set={number}")),
            *("-blockdev", self._image.block_device("disk")),
            *("-device", "virtio-blk-pci,drive=disk,bootindex=0"),
            *("-blockdev", f"{seed},file.read-only=on"),
            *("-device", "virtio-blk-pci,drive=seed"),
            *("-object", "rng-random,id=random,filename=/dev/urandom"),
            *("-device", "virtio-rng-pci,rng=random"),
        ]

    def _devices(self, streams: Streams) -> list[str]:
        """Console, exec channel, monitor, interface."""
        return [
            *("-chardev", f"socket,id=console,fd={streams.console}", "-serial", "chardev:console"),
            *("-chardev", f"socket,id=exec,fd={streams.exec}"),
            *("-device", "virtio-serial-pci"),
            *("-device", f"virtserialport,chardev=exec,name={EXEC_PORT}"),
            *("-chardev", f"socket,id=monitor,fd={streams.monitor}"),
            *("-mon", "chardev=monitor,mode=control"),
            *self._interface(),
        ]

    def _interface(self) -> list[str]:
        """The network device and what is behind it."""
        return [
            *("-chardev", f"socket,id=vhost,path=/run/mint/{VHOST_SOCKET},reconnect=1"),
            *("-netdev", "vhost-user,id=vni,chardev=vhost"),
            *("-device", self._card(_QUEUES + self._vectors())),
        ]

    def _card(self, options: str) -> str:
        """The network card that the guest sees."""
        return f"virtio-net-pci,netdev=vni,mac={self.plan.mac},romfile={options}"

    def _vectors(self) -> str:
        return ",vectors=0" if self._accelerator == "tcg" else ""

    def _details(self) -> dict[str, Any]:
        version = self._kernel.version if self._image is None else None
        return {"kernel_version": version, "accelerator": self._accelerator}
