# SPDX-License-Identifier: Apache-2.0
"""What a guest does from its kernel's first program to a running sshd: the policy.

``mint-guest`` (native/guest/script.c) has the mechanism: it runs the operations written here, one
after the other, as its kernel's first process. What comes of it looks like a namespace node
(`mint_vni.nodes._netns_init`): the host's file system, or a directory's, as a copy-on-write view, with
/proc, /sys, /dev, /run, /tmp, /dev/shm, /var/log and /etc/ssh of its own, /etc/hosts and the like
replaced, no password of anybody's, no SSH keys of anybody's.

The guest's root cannot read what the user cannot whose process shows it the files: private
directories of the host's root, for one. Where the guest needs such a directory (root's home) it gets
an empty one.

Each step costs a slow guest some hundred microseconds, so there is no more than is needed.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from mint_vni.errors import InternalError
from mint_vni.nodes.etc import etc_files
from mint_vni.nodes.guest.initramfs import Initramfs

if TYPE_CHECKING:
    from mint_vni.lab.plan import NodePlan
    from mint_vni.nodes.base import NodeContext

__all__ = ["EXEC_PORT", "GuestBoot", "GuestRoot", "Module", "guest_program"]

#: The virtio-serial port with the exec channel, as QEMU's ``virtserialport,name=`` names it.
EXEC_PORT: Final = "mint.exec"

#: Where a guest finds mint-guest, and the modules that it has loaded.
GUEST_BIN: Final = "/run/mint-guest"

_PROGRAM: Final = "mint-guest"
_SHARED: Final = "/mint/run"  # in the initramfs; what GUEST_BIN shows of it
_EMPTY: Final = "/mint/empty"
_SEED_BYTES: Final = 64
_TX_QUEUE: Final = 1000

# linux/mount.h
_RDONLY: Final = 0x1
_NOSUID: Final = 0x2
_NODEV: Final = 0x4
_NOEXEC: Final = 0x8
_BIND: Final = 0x1000
_SYSTEM: Final = _NOSUID | _NODEV | _NOEXEC

# Loaded when the settings are made that a new interface takes over.
_NETWORK: Final = ("failover", "net_failover", "virtio_net")

_POWER_COMMANDS: Final = ("halt", "poweroff", "reboot", "shutdown")


def guest_program() -> Path:
    """Path of the program mint-guest that belongs to this package.

    Raises:
        InternalError: It is missing.
    """
    path = Path(str(resources.files("mint_vni") / "_bin" / _PROGRAM))
    if not os.access(path, os.X_OK):
        raise InternalError(f"{path} is missing; install mint-vni again")
    return path


@dataclass(frozen=True)
class Module:
    """A kernel module to load.

    Attributes:
        name: Shown when it can't be loaded.
        content: The bytes of the ``.ko`` file, not compressed.
    """

    name: str
    content: bytes = field(repr=False)


@dataclass(frozen=True)
class GuestRoot:
    """Where a guest's root file system comes from; it is never written to.

    Attributes:
        kind: ``hostfs`` (UML) or ``virtiofs``.
        source: The directory on the host, as the UML process sees it; or the virtiofs tag.
    """

    kind: Literal["hostfs", "virtiofs"]
    source: str


@dataclass(frozen=True)
class GuestBoot:
    """What one guest is to become.

    Attributes:
        name: Its hostname.
        files: What replaces files of the root: absolute path to permissions and text.
        root: The root file system.
        channel: Where mint-guest finds the exec channel: a device, or ``port:NAME``.
        modules: Kernel modules, each after those that it needs.
        mac: By which it knows its interface.
        interface: What to call that.
        mtu: In bytes.
        addresses: With prefix lengths.
        sshd: Path of sshd in the root.
        inodes: As many the guest's kernel may remember, since each keeps a file of the host's open
            (native/guest/trim.c); 0: no limit.
    """

    name: str
    files: Mapping[str, tuple[int, str]]
    root: GuestRoot
    channel: str
    modules: Sequence[Module]
    mac: str
    interface: str
    mtu: int
    addresses: tuple[str, ...]
    sshd: str = "/usr/sbin/sshd"
    inodes: int = 0

    @classmethod
    def plan(
        cls,
        plan: NodePlan,
        context: NodeContext,
        root: GuestRoot,
        channel: str,
        modules: Sequence[Module],
        *,
        inodes: int = 0,
    ) -> GuestBoot:
        """Make it from what a lab gives a node."""
        return cls(
            name=plan.name,
            files=etc_files(plan.name, context.hosts) | context.ssh.node_files(plan.name),
            root=root,
            channel=channel,
            modules=modules,
            mac=plan.mac,
            interface=plan.interface,
            mtu=plan.mtu,
            addresses=tuple(a for a in (plan.ipv4, plan.ipv6) if a is not None),
            inodes=inodes,
        )

    def initramfs(self) -> bytes:
        """Return the archive to boot from.

        Raises:
            InternalError: mint-guest is missing.
        """
        archive = Initramfs()
        archive.device("/dev/console", 0o600, 5, 1)
        archive.directory("/mint", 0o700)
        archive.file(f"{_SHARED}/{_PROGRAM}", guest_program().read_bytes(), 0o755)
        archive.symlink("/init", f"{_SHARED}/{_PROGRAM}")
        for directory in ("/lower", "/upper", "/new"):
            archive.directory(directory)
        for number, module in enumerate(self.modules):
            archive.file(_module_path(number, module), module.content)
        for number, (_, text) in enumerate(self.files.values()):
            archive.file(_file_path(number), text.encode(), 0o600)
        archive.file(_EMPTY, b"")
        archive.file("/mint/script", self.script().encode(), 0o600)
        return archive.archive()

    def script(self) -> str:
        """Return the script, see native/guest/script.c."""
        steps = _Steps()
        self._load(steps, late=False)
        self._mount_root(steps)
        _mount_own(steps)
        steps.add("switch-root", "/new")
        self._make_files(steps)
        self._make_settings(steps)
        steps.add("console", may_fail=True)
        steps.add("sshd", self.sshd, "-D", "-e")
        self._load(steps, late=True)
        steps.add(
            "interface", self.mac, self.interface, str(self.mtu), str(_TX_QUEUE), *self.addresses
        )
        return steps.text()

    def _load(self, steps: _Steps, *, late: bool) -> None:
        for number, module in enumerate(self.modules):
            if (module.name.replace("-", "_") in _NETWORK) is late:
                steps.add("module", _module_path(number, module), "")

    def _mount_root(self, steps: _Steps) -> None:
        if self.root.kind == "hostfs":
            steps.mount("none", "/lower", "hostfs", _RDONLY, self.root.source)
        else:
            steps.mount(self.root.source, "/lower", "virtiofs", _RDONLY)
        steps.mount("tmpfs", "/upper", "tmpfs", 0, "mode=755,size=50%")
        steps.add("mkdir", "/upper/up", "755")
        steps.add("mkdir", "/upper/work", "755")
        layers = "lowerdir=/lower,upperdir=/upper/up,workdir=/upper/work"
        steps.mount("overlay", "/new", "overlay", 0, layers)

    def _make_files(self, steps: _Steps) -> None:
        for path in ("/", "/etc"):
            steps.add("own", path)
        steps.add("mkdir", "/etc/ssh", "755")
        steps.mount("tmpfs", "/etc/ssh", "tmpfs", _NOSUID | _NODEV, "mode=755,size=1m")
        for number, (path, (mode, _)) in enumerate(self.files.items()):
            steps.add("file", _file_path(number), path, f"{mode:o}")
        # sshd complains at each login when there is none
        steps.add("file", _EMPTY, "/var/log/lastlog", "644")
        steps.add("shadow")
        steps.add("hide-ssh")
        steps.add("cover-closed", "/root", "mode=700,size=50%")
        for command in _POWER_COMMANDS:
            steps.add("link", f"{GUEST_BIN}/{_PROGRAM}", f"/usr/sbin/{command}", may_fail=True)

    def _make_settings(self, steps: _Steps) -> None:
        steps.add("hostname", self.name)
        steps.add("env", "LANG", "C.UTF-8")
        steps.add("entropy", secrets.token_hex(_SEED_BYTES))
        six = any(":" in address for address in self.addresses)
        for scope in ("all", "default"):
            where = f"/proc/sys/net/ipv6/conf/{scope}"
            # Link-local addresses are usable at once, too: all who could have the same are ours.
            steps.add("write", f"{where}/accept_dad", "0", may_fail=not six)
            if six:
                steps.add("write", f"{where}/disable_ipv6", "0")
        if self.inodes:
            steps.add("inodes", str(self.inodes))
        steps.add("loopback")
        steps.add("channel", self.channel)


class _Steps:
    """A script that grows."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def add(self, operation: str, *args: str, may_fail: bool = False) -> None:
        words = [("?" if may_fail else "") + operation, *map(_escape, args)]
        self._lines.append("\t".join(words) + "\n")

    def mount(
        self,
        source: str,
        target: str,
        kind: str,
        flags: int,
        options: str = "",
        *,
        may_fail: bool = False,
    ) -> None:
        self.add("mount", source, target, kind, str(flags), options, may_fail=may_fail)

    def text(self) -> str:
        return "".join(self._lines)


def _mount_own(steps: _Steps) -> None:
    """Mount what is the guest's own on what will be its root."""
    for directory, mode in (("/new/run", "755"), ("/new/tmp", "1777")):
        steps.add("mkdir", directory, mode)
        steps.mount("tmpfs", directory, "tmpfs", _NOSUID | _NODEV, f"mode={mode},size=50%")
    for directory in ("/new/proc", "/new/sys", "/new/dev"):
        steps.add("mkdir", directory, "755")
    steps.mount("proc", "/new/proc", "proc", _SYSTEM)
    steps.mount("sysfs", "/new/sys", "sysfs", _SYSTEM)
    steps.mount("cgroup2", "/new/sys/fs/cgroup", "cgroup2", _SYSTEM, may_fail=True)
    steps.mount("devtmpfs", "/new/dev", "devtmpfs", _NOSUID, "mode=755")
    steps.add("mkdir", "/new/dev/pts", "755")
    terminals = "gid=5,mode=620,ptmxmode=666"
    steps.mount("devpts", "/new/dev/pts", "devpts", _NOSUID | _NOEXEC, terminals)
    steps.add("mkdir", "/new/dev/shm", "1777")
    steps.mount("tmpfs", "/new/dev/shm", "tmpfs", _NOSUID | _NODEV, "mode=1777,size=50%")
    steps.add("mkdir", "/new/dev/mqueue", "755")
    steps.mount("mqueue", "/new/dev/mqueue", "mqueue", _SYSTEM, may_fail=True)
    for name, target in (("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")):
        steps.add("link", f"/proc/self/fd{target}", f"/new/dev/{name}")
    logs = "mode=755,size=25%"
    steps.mount("tmpfs", "/new/var/log", "tmpfs", _NOSUID | _NODEV, logs, may_fail=True)
    for directory, mode in (("sshd", "755"), ("lock", "1777")):
        steps.add("mkdir", f"/new/run/{directory}", mode)
    steps.add("mkdir", "/new" + GUEST_BIN, "755")
    steps.mount(_SHARED, "/new" + GUEST_BIN, "", _BIND)


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n")


def _module_path(number: int, module: Module) -> str:
    return f"{_SHARED}/modules/{number:02}-{module.name}.ko"


def _file_path(number: int) -> str:
    return f"/mint/files/{number}"
