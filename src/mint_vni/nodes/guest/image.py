# SPDX-License-Identifier: Apache-2.0
"""Nodes that boot a disk image of the user's: the disk.

The image is never written to. QEMU gets it as a descriptor opened for reading, and so it does with
the files that the image is itself an overlay of, and with a fresh overlay for all that the guest
writes. The overlay has no name: it lies in ``/var/tmp`` (`TMPDIR` says otherwise), is held by the
node's agent, survives reboots of the guest, and is gone with the node.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
from dataclasses import dataclass
from typing import Any, Final

from mint_vni.errors import NodeError
from mint_vni.nodes.programs import find_program

__all__ = ["Image", "inspect_image", "make_overlay"]

_QEMU_IMG: Final = ("qemu-img", "qemu-utils")
_PLACE: Final = "/var/tmp"  # noqa: S108  # on a disk, unlike /tmp
_INSPECT_SECONDS: Final = 60.0


@dataclass(frozen=True)
class Image:
    """A disk image.

    Attributes:
        size: Of the disk, bytes.
        chain: The image's path and format, then those of the file that it is an overlay of, and so
            on.
    """

    size: int
    chain: tuple[tuple[str, str], ...]

    def open(self) -> list[int]:
        """Open all files of the chain for reading; the descriptors are the caller's.

        Raises:
            OSError: One can't be opened.
        """
        fds: list[int] = []
        try:
            for path, _ in self.chain:
                fds.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        except BaseException:
            for fd in fds:
                os.close(fd)
            raise
        return fds

    def block_device(self, name: str) -> str:
        """Return QEMU's ``-blockdev`` for an overlay in descriptor set 1 above this image.

        The files of the chain are in the descriptor sets from 2 on.

        Args:
            name: Of the device.
        """
        below: dict[str, Any] | None = None
        for number, (_, kind) in reversed(list(enumerate(self.chain, 2))):
            layer = {"driver": kind, "read-only": True, "file": _in_set(number, writable=False)}
            if kind == "qcow2":
                layer["backing"] = below
            below = layer
        top = {"driver": "qcow2", "node-name": name, "backing": below}
        return json.dumps(top | {"file": _in_set(1, writable=True)})


def _in_set(number: int, *, writable: bool) -> dict[str, Any]:
    common = {"driver": "file", "filename": f"/dev/fdset/{number}", "read-only": not writable}
    # Nobody else has the overlay; and whoever uses the image, we only read it.
    return common | {"locking": "off"}


def inspect_image(node: str, path: str) -> Image:
    """Find out what a disk image is.

    Args:
        node: The node's name, for messages.
        path: The image's.

    Raises:
        NodeError: It is missing, or no disk image that QEMU knows.
        PlatformError: qemu-img is not installed.
    """
    if not os.path.isfile(path):
        raise NodeError(f"node {node}: there is no image {path}; check the path")
    argv = [find_program(*_QEMU_IMG), "info", "--force-share", "--output=json", "--backing-chain"]
    try:
        done = subprocess.run(
            [*argv, path],
            capture_output=True,
            text=True,
            check=False,
            timeout=_INSPECT_SECONDS,
            stdin=subprocess.DEVNULL,
        )
        layers = json.loads(done.stdout) if done.returncode == 0 else []
    except (subprocess.TimeoutExpired, ValueError):
        raise NodeError(f"node {node}: qemu-img can't read the image {path}; check it") from None
    if not layers:
        said = done.stderr.strip().splitlines()[-1:] or ["qemu-img says nothing"]
        raise NodeError(f"node {node}: {path} is no image that QEMU can use ({said[0]})")
    chain = tuple((_absolute(layer["filename"], path), str(layer["format"])) for layer in layers)
    known = {"raw", "qcow2"}
    for file, kind in chain:
        if kind not in known:
            raise NodeError(
                f"node {node}: {file} is an image of format {kind}; "
                f"run 'qemu-img convert -O qcow2 {file} NEW.qcow2'"
            )
    return Image(int(layers[0]["virtual-size"]), chain)


def _absolute(file: str, image: str) -> str:
    return os.path.join(os.path.dirname(os.path.abspath(image)), file)


def make_overlay(size: int) -> int:
    """Make an empty qcow2 file without a name.

    Args:
        size: Of the disk, bytes.

    Returns:
        A close-on-exec descriptor.

    Raises:
        NodeError: qemu-img failed.
        OSError: There is no room.
    """
    place = os.environ.get("TMPDIR") or _PLACE
    program = find_program(*_QEMU_IMG)
    fd = _nameless(place)
    try:
        done = subprocess.run(
            [program, "create", "-q", "-f", "qcow2", f"/proc/self/fd/{fd}", str(size)],
            capture_output=True,
            text=True,
            check=False,
            pass_fds=[fd],
            stdin=subprocess.DEVNULL,
        )
    except BaseException:
        os.close(fd)
        raise
    if done.returncode != 0:
        os.close(fd)
        raise NodeError(f"qemu-img could not make a disk in {place}: {done.stderr.strip()}")
    return fd


def _nameless(directory: str) -> int:
    """Create a file without a name."""
    with contextlib.suppress(OSError):  # not every file system can
        return os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    fd, path = tempfile.mkstemp(prefix="mint-disk-", dir=directory)
    os.unlink(path)
    return fd
