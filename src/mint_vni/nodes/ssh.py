# SPDX-License-Identifier: Apache-2.0
"""Keys and settings made for one lab, so that OpenSSH works in it unmodified and unasked.

Three kinds of keys, all Ed25519, all made by ssh-keygen into one directory that only root reads::

    host_key          the host's: every node accepts it
    mesh_key          the nodes': with ``ssh: mesh`` all hold and accept it, otherwise there is none
    node-NAME         the host key of one node's sshd; the nodes and the host know them all

Nothing here is the host's own: neither its host keys, nor a user's keys, agent, known hosts or
settings are read or changed, and a lab's keys are of no use outside the lab.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from mint_vni.errors import NodeError
from mint_vni.nodes.programs import find_program

__all__ = ["SshMaterial", "SshMode"]

SshMode = Literal["mesh", "host-only"]

#: Where a node has its keys and settings.
ETC_SSH: Final = "/etc/ssh"

# ssh-keygen processes at a time: each takes a few milliseconds, most of them waiting.
_AT_ONCE: Final = 16

_SSHD_CONFIG: Final = """\
# Made by Mint VNI for this node.
HostKey /etc/ssh/ssh_host_ed25519_key
AuthorizedKeysFile /etc/ssh/authorized_keys
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
UseDNS no
PrintMotd no
PrintLastLog no
PidFile none
LoginGraceTime 30
MaxStartups 100:30:200
MaxSessions 100
Subsystem sftp internal-sftp
LogLevel INFO
"""


@dataclass(frozen=True)
class SshMaterial:
    """A lab's keys; `generate` makes them, another process finds them by the same arguments.

    Attributes:
        directory: Where the keys lie (mode 0700, root).
        lab: The lab's name, for the comment in the keys.
        nodes: Names of the nodes that have an sshd.
        hosts: ``/etc/hosts`` entries of the lab: an address, and its names.
        mode: Whether nodes may log in to each other.
    """

    directory: Path
    lab: str
    nodes: tuple[str, ...]
    hosts: tuple[tuple[str, tuple[str, ...]], ...]
    mode: SshMode

    @property
    def host_key(self) -> Path:
        """The private key with which the host logs in."""
        return self.directory / "host_key"

    @property
    def mesh_key(self) -> Path:
        """The private key that all nodes hold; only with mode ``mesh``."""
        return self.directory / "mesh_key"

    @property
    def known_hosts(self) -> Path:
        """The public host keys of all nodes."""
        return self.directory / "known_hosts"

    def node_key(self, node: str) -> Path:
        """The private host key of a node's sshd."""
        return self.directory / f"node-{node}"

    def generate(self) -> None:
        """Make all keys. The directory is created unless it exists.

        Raises:
            PlatformError: ssh-keygen is not installed.
            NodeError: ssh-keygen failed.
        """
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        keys = {self.host_key: "host", **{self.node_key(name): name for name in self.nodes}}
        if self.mode == "mesh":
            keys[self.mesh_key] = "mesh"
        _make_keys({path: f"mint:{self.lab}/{comment}" for path, comment in keys.items()})
        self.known_hosts.write_text("".join(self._known_hosts()))

    def _known_hosts(self) -> Iterator[str]:
        for node in self.nodes:
            yield f"{','.join(self._names(node))} {_public(self.node_key(node))}\n"

    def _names(self, node: str) -> list[str]:
        """All names and addresses of a node."""
        names = [node]
        for address, aliases in self.hosts:
            if node in aliases:
                names += [address, *aliases]
        return list(dict.fromkeys(names))

    def node_files(self, node: str) -> dict[str, tuple[int, str]]:
        """Say what is in a node's ``/etc/ssh``.

        Args:
            node: Its name.

        Returns:
            Absolute path in the node to permissions and text.
        """
        key = self.node_key(node)
        own = f"localhost,127.0.0.1,::1 {_public(key)}\n"
        clients = [self.host_key] + ([self.mesh_key] if self.mode == "mesh" else [])
        files = {
            "sshd_config": (0o644, _SSHD_CONFIG + _penalties(_openssh_version())),
            "ssh_host_ed25519_key": (0o600, key.read_text()),
            "ssh_host_ed25519_key.pub": (0o644, _public(key) + "\n"),
            "authorized_keys": (0o644, "".join(_public(path) + "\n" for path in clients)),
            "ssh_known_hosts": (0o644, self.known_hosts.read_text() + own),
            "ssh_config": (0o644, self._ssh_config()),
        }
        if self.mode == "mesh":
            files["mesh_key"] = (0o600, self.mesh_key.read_text())
        return {f"{ETC_SSH}/{name}": content for name, content in files.items()}

    def _ssh_config(self) -> str:
        """What ssh, scp and sftp in a node are to know of the lab's nodes."""
        names = [name for node in self.nodes for name in self._names(node)]
        lines = [f"Host {' '.join(dict.fromkeys([*names, 'localhost', '127.0.0.1', '::1']))}"]
        if self.mode == "mesh":
            lines += [f"    IdentityFile {ETC_SSH}/mesh_key", "    IdentitiesOnly yes"]
        lines += ["    StrictHostKeyChecking yes", "    UpdateHostKeys no"]
        lines += ["    UserKnownHostsFile none", "    GSSAPIAuthentication no"]
        return "# Made by Mint VNI for this node.\n" + "".join(line + "\n" for line in lines)

    def client_options(self, node: str) -> list[str]:
        """Return the options with which the host's ssh logs in to a node.

        They keep out everything of the user's: configuration, keys, agent and known hosts.

        Args:
            node: Its name.
        """
        return client_options(self.directory, node)


def client_options(directory: Path, node: str) -> list[str]:
    """As `SshMaterial.client_options`, from the directory alone."""
    options = {
        "IdentityFile": f'"{directory / "host_key"}"',
        "IdentitiesOnly": "yes",
        "IdentityAgent": "none",
        "UserKnownHostsFile": f'"{directory / "known_hosts"}"',
        "GlobalKnownHostsFile": "/dev/null",
        "HostKeyAlias": node,
        "StrictHostKeyChecking": "yes",
        "UpdateHostKeys": "no",
        "BatchMode": "yes",
        "ConnectTimeout": "10",
        "LogLevel": "ERROR",
    }
    return ["-F", "none", *(word for k, v in options.items() for word in ("-o", f"{k}={v}"))]


def _make_keys(comments: dict[Path, str]) -> None:
    """Run ssh-keygen for each path, several at a time."""
    program = find_program("ssh-keygen", "openssh-client")
    paths = list(comments)
    for start in range(0, len(paths), _AT_ONCE):
        batch = paths[start : start + _AT_ONCE]
        running = [_start_keygen(program, path, comments[path]) for path in batch]
        said = [process.communicate()[0].strip() for process in running]
        for path, process, text in zip(batch, running, said, strict=True):
            if process.returncode != 0:
                raise NodeError(f"ssh-keygen could not make the key {path}: {text}")


def _start_keygen(program: str, path: Path, comment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [program, "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(path)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _public(key: Path) -> str:
    """Return the public half of a key: its type, its value and its comment."""
    return key.with_name(key.name + ".pub").read_text().strip()


def _penalties(version: tuple[int, int]) -> str:
    """Switch off what would shut nodes out after a few connections that only look for a banner."""
    return "PerSourcePenalties no\n" if version >= (9, 8) else ""


_version: list[tuple[int, int]] = []


def _openssh_version() -> tuple[int, int]:
    """Return the version of the host's OpenSSH; asked once, as it can't change under a lab."""
    if not _version:
        ssh = find_program("ssh", "openssh-client")
        said = subprocess.run([ssh, "-V"], capture_output=True, text=True, check=False).stderr
        match = re.search(r"OpenSSH_(\d+)\.(\d+)", said)
        _version.append((int(match[1]), int(match[2])) if match else (0, 0))
    return _version[0]


def shell_command(args: Sequence[str]) -> list[str]:
    """Return what to append to an ssh command line to run `args`.

    One word is a line for the remote shell, as with ssh itself; several are run as they are, which
    takes quoting, because ssh joins its arguments with blanks.

    Args:
        args: The command; empty for a login shell.
    """
    if len(args) <= 1:
        return list(args)
    return [shlex.join(args)]
