# SPDX-License-Identifier: Apache-2.0
"""virtiofsd: shows a QEMU guest a directory of the host's, read-only.

It is confined as QEMU is, in namespaces of its own, and has the view of the host, which QEMU has
not; the two meet at a socket in a directory that they alone see.
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mint_vni.nodes.guest.agent_client import listen_in, make_shared
from mint_vni.nodes.guest.launch import MANY_FILES, Confinement, library_binds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mint_vni.kernels import Program

__all__ = ["FS_DIRECTORY", "FS_SOCKET", "FS_TAG", "file_server", "listen"]

#: The directory with the socket, in the node's.
FS_DIRECTORY: Final = "fs"
FS_SOCKET: Final = "virtiofs.sock"
#: By which the guest asks for the file system.
FS_TAG: Final = "root"

_VIEW: Final = "/host"
_PLACE: Final = "/virtiofsd"


def listen(state_dir: Path, uid: int) -> socket.socket:
    """Make the socket, for QEMU's user alone; virtiofsd gets it listening."""
    directory = state_dir / FS_DIRECTORY
    make_shared(directory)
    return listen_in(directory, FS_SOCKET, socket.SOCK_STREAM, uid)


def file_server(
    program: Program,
    root: Path,
    listener: int,
    *,
    name: str,
    uid: int,
    mount_point: str,
    cgroups: Sequence[str],
    affinity: Sequence[int],
) -> Confinement:
    """Return the process.

    Args:
        program: virtiofsd.
        root: What to show.
        listener: The socket's descriptor.
        name: The node's.
        uid: The user to run as.
        mount_point: See `Confinement`; so are the others.
        cgroups: The node's.
        affinity: The node's.
    """
    own = program.directory
    return Confinement(
        name=name,
        uid=uid,
        mount_point=mount_point,
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
        binds=[(str(own), _PLACE, "x")] if own else library_binds(str(program.path)),
        view=(str(root), _VIEW),
        fds=[listener],
        cgroups=cgroups,
        affinity=affinity,
        cwd=_PLACE if own else "/",
        rlimits={"NOFILE": MANY_FILES},
    )
