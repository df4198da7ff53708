# SPDX-License-Identifier: Apache-2.0
"""Boots real guests in the simplest way, without launcher and agent, for the tests of their inside."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from guest_bench import Host
from mint_vni import kernels
from mint_vni.nodes import SshMaterial
from mint_vni.nodes.etc import etc_files
from mint_vni.nodes.guest import argv
from mint_vni.nodes.guest.script import EXEC_PORT, GuestBoot, GuestRoot, Module
from mint_vni.nodes.proc import process_start_time

NOBODY = 65534
UML_MODULES = ("overlay", "virtio_net")
QEMU_MODULES = ("virtio_pci", "virtiofs", "overlay", "virtio_console", "virtio_net")
MAC = "02:4d:56:00:00:02"


def modules(kernel: kernels.Kernel, names: Sequence[str]) -> list[Module]:
    files = kernels.load_order(kernel, names)
    return [Module(path.name.partition(".")[0], kernels.module_bytes(path)) for path in files]


class Guest:
    """A guest that has been started; `host` is its agent."""

    def __init__(self, name: str = "b") -> None:
        self.host = Host(name)
        self.directory = self.host.directory
        self.directory.chmod(0o755)
        hosts = (("10.78.0.2", (name,)),)
        self.ssh = SshMaterial(self.directory / "ssh", "test", (name,), hosts, "mesh")
        self.ssh.generate()
        self.files = etc_files(name, hosts) | self.ssh.node_files(name)
        self.console = b""
        self._console: socket.socket | None = None
        self.started = time.monotonic()
        self.processes: list[subprocess.Popen[bytes]] = []

    def boot(self, root: GuestRoot, channel: str, loaded: list[Module]) -> Path:
        """Write the initramfs."""
        made = GuestBoot(
            name=self.host.name,
            files=self.files,
            root=root,
            channel=channel,
            modules=loaded,
            mac=MAC,
            interface="vni0",
            mtu=1500,
            addresses=("10.78.0.2/24", "fd78::2/64"),
        )
        path = self.directory / "initrd"
        path.write_bytes(made.initramfs())
        path.chmod(0o644)
        return path

    def type(self, data: bytes) -> None:
        """Type on the console."""
        assert self._console is not None
        self._console.sendall(data)

    def watch_console(self, stream: socket.socket) -> None:
        self._console = stream

        def read() -> None:
            with stream:
                while data := stream.recv(65536):
                    self.console += data

        threading.Thread(target=read, name="console", daemon=True).start()

    def spawn(self, args: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(args, stdin=subprocess.DEVNULL, **options)
        self.processes.append(process)
        return process

    def facts(self) -> dict[str, Any]:
        pid = self.processes[-1].pid
        return {
            "name": self.host.name,
            "state_dir": str(self.directory),
            "ssh_dir": str(self.ssh.directory),
            "pid": pid,
            "start_time": process_start_time(pid),
        }

    def run(self, *args: str, **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            argv.exec_argv(self.facts(), args),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            **options,
        )

    def close(self) -> None:
        for process in reversed(self.processes):
            process.kill()
            process.wait()
        self.host.close()
        shutil.rmtree(self.directory, ignore_errors=True)


def start_uml(*words: str, device: str | None = None, user: int = NOBODY) -> Guest:
    """Boot UML as an unprivileged user, on the host's own root.

    Args:
        words: More of its command line.
        device: A vhost-user socket for its interface.
        user: Its user.
    """
    kernel = kernels.find("uml")
    guest = Guest()
    loaded = modules(kernel, UML_MODULES)
    initrd = guest.boot(GuestRoot("hostfs", "/"), "/dev/ttyS0", loaded)
    home = Path(tempfile.mkdtemp(dir=guest.directory))
    os.chown(home, user, user)
    exec_ours, exec_theirs = socket.socketpair()
    console_ours, console_theirs = socket.socketpair()
    x, c = exec_theirs.fileno(), console_theirs.fileno()
    command = [kernel.argv0, "mem=256M", f"initrd={initrd}", "con=null", f"con0=fd:{c},fd:{c}"]
    command += ["ssl=null", f"ssl0=fd:{x},fd:{x}", "console=tty0", "panic=-1", "noreboot", "quiet"]
    command += [f"uml_dir={home}", "umid=x"]
    if device:
        command.append(f"virtio_uml.device={device}:1")
    guest.watch_console(console_ours)
    guest.host.connect(exec_ours)
    guest.started = time.monotonic()
    guest.spawn(
        [*command, *words],
        cwd=kernel.directory or "/",
        pass_fds=(x, c),
        user=user,
        group=user,
        extra_groups=[],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    exec_theirs.close()
    console_theirs.close()
    return guest


def start_qemu(
    *words: str, memory: str = "512M", mac: str = MAC, pass_fds: Sequence[int] = ()
) -> Guest:
    """Boot QEMU under TCG, on the host's own root by virtiofs."""
    kernel, daemon = kernels.find("qemu"), kernels.virtiofsd()
    guest = Guest()
    loaded = modules(kernel, QEMU_MODULES)
    initrd = guest.boot(GuestRoot("virtiofs", "root"), f"port:{EXEC_PORT}", loaded)
    home = Path(tempfile.mkdtemp(dir=guest.directory))
    os.chown(home, NOBODY, NOBODY)
    share = home / "fs.sock"
    options = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
    guest.spawn(
        [
            *(daemon.argv0, "--shared-dir", "/", "--sandbox", "none", "--readonly"),
            *("--cache", "always", "--no-announce-submounts", "--socket-path", str(share)),
        ],
        cwd=daemon.directory or "/",
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        **options,
    )
    while not share.exists():
        time.sleep(0.01)
    exec_ours, exec_theirs = socket.socketpair()
    console_ours, console_theirs = socket.socketpair()
    x, c = exec_theirs.fileno(), console_theirs.fileno()
    image = guest.directory / "vmlinuz"
    shutil.copy(kernel.image, image)
    image.chmod(0o644)
    command = ["qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-m", memory, "-nodefaults"]
    command += ["-no-reboot", "-display", "none", "-kernel", str(image), "-initrd", str(initrd)]
    command += ["-append", "console=ttyS0 panic=-1 quiet", "-M", "q35"]
    command += ["-object", f"memory-backend-memfd,id=m,size={memory},share=on"]
    command += ["-numa", "node,memdev=m", "-chardev", f"socket,id=fs,path={share}"]
    command += ["-device", "vhost-user-fs-pci,chardev=fs,tag=root"]
    command += ["-chardev", f"socket,id=con,fd={c}", "-serial", "chardev:con"]
    command += ["-chardev", f"socket,id=exec,fd={x}", "-device", "virtio-serial-pci"]
    command += ["-device", f"virtserialport,name={EXEC_PORT},chardev=exec"]
    command += ["-netdev", "user,id=n,restrict=on"]
    command += ["-device", f"virtio-net-pci,netdev=n,mac={mac}"]
    guest.watch_console(console_ours)
    guest.host.connect(exec_ours)
    guest.started = time.monotonic()
    guest.spawn([*command, *words], cwd="/", pass_fds=(x, c, *pass_fds), **options)
    exec_theirs.close()
    console_theirs.close()
    return guest
