# SPDX-License-Identifier: Apache-2.0
"""The archive that guests boot from, and the script in it."""

from __future__ import annotations

import re
import shutil
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mint_vni.errors import InternalError
from mint_vni.nodes.guest import script
from mint_vni.nodes.guest.initramfs import Initramfs
from mint_vni.nodes.guest.script import GuestBoot, GuestRoot, Module

SCRIPT_C = Path(__file__).parent.parent / "native" / "guest" / "script.c"


@dataclass
class Member:
    mode: int
    content: bytes
    device: tuple[int, int]


def unpack(data: bytes) -> dict[str, Member]:
    """Read an archive by the format's description."""
    found: dict[str, Member] = {}
    at = 0
    while True:
        assert data[at : at + 6] == b"070701"
        numbers = [int(data[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        _, mode, uid, gid, _, _, size, _, _, major, minor, name_size, check = numbers
        name = data[at + 110 : at + 110 + name_size]
        assert name.endswith(b"\0")
        begin = (at + 110 + name_size + 3) & ~3
        if name == b"TRAILER!!!\0":
            return found
        assert (uid, gid, check) == (0, 0, 0)
        found[name[:-1].decode()] = Member(mode, data[begin : begin + size], (major, minor))
        at = (begin + size + 3) & ~3


def boot(**changes: object) -> GuestBoot:
    values: dict[str, object] = {
        "name": "b",
        "files": {"/etc/hosts": (0o644, "127.0.0.1 localhost\n"), "/etc/ssh/x": (0o600, "k\tey")},
        "root": GuestRoot("hostfs", "/"),
        "channel": "/dev/ttyS0",
        "modules": [Module("overlay", b"ELF1"), Module("virtio_net", b"ELF2")],
        "mac": "02:4d:56:00:00:02",
        "interface": "vni0",
        "mtu": 1500,
        "addresses": ("10.78.0.2/24", "fd78::2/64"),
    }
    return GuestBoot(**(values | changes))  # type: ignore[arg-type]


@given(st.dictionaries(st.from_regex(r"/[a-z]{1,9}/[a-z]{1,9}", fullmatch=True), st.binary()))
def test_what_goes_in_comes_out(files: dict[str, bytes]) -> None:
    archive = Initramfs()
    for path, content in files.items():
        archive.file(path, content, 0o640)
    found = unpack(archive.archive())
    for path, content in files.items():
        assert found[path[1:]] == Member(stat.S_IFREG | 0o640, content, (0, 0))
        parent = path[1:].split("/")[0]
        assert list(found).index(parent) < list(found).index(path[1:])
        assert found[parent].mode == stat.S_IFDIR | 0o755


def test_other_members() -> None:
    archive = Initramfs()
    archive.symlink("/init", "/mint/run/x")
    archive.device("/dev/console", 0o600, 5, 1)
    archive.directory("/dev", 0o700)  # it is there already
    found = unpack(archive.archive())
    assert found["init"] == Member(stat.S_IFLNK | 0o777, b"/mint/run/x", (0, 0))
    assert found["dev/console"] == Member(stat.S_IFCHR | 0o600, b"", (5, 1))
    for path in ("relative", "/", "/a/../b", "/init"):
        with pytest.raises(ValueError, match="path of a member|there already"):
            archive.file(path, b"")


@pytest.mark.skipif(shutil.which("cpio") is None, reason="cpio is not installed")
def test_cpio_reads_it() -> None:
    archive = Initramfs()
    archive.file("/a/b", b"content")
    listed = subprocess.run(
        ["cpio", "-t"], input=archive.archive(), capture_output=True, check=True
    ).stdout
    assert listed.decode().split() == ["a", "a/b"]


def known_operations() -> dict[str, int]:
    """Operations of mint-guest, with their least number of arguments."""
    table = SCRIPT_C.read_text().partition("ops[] = {")[2].partition("};")[0]
    return {name: int(least) for name, least in re.findall(r'\{"([\w-]+)", (\d+), op_\w+\}', table)}


def lines(made: GuestBoot) -> list[list[str]]:
    return [line.split("\t") for line in made.script().splitlines()]


@pytest.mark.parametrize("root", [GuestRoot("hostfs", "/"), GuestRoot("virtiofs", "root")])
def test_the_script_has_operations_that_the_guest_knows(root: GuestRoot) -> None:
    known = known_operations()
    assert {"mount", "sshd", "console"} <= set(known)
    for operation, *args in lines(boot(root=root)):
        assert operation.lstrip("?") in known, operation
        assert known[operation.lstrip("?")] <= len(args) <= 32, operation


def test_all_that_the_script_names_is_in_the_archive() -> None:
    made = boot()
    try:
        found = unpack(made.initramfs())
    except InternalError:
        pytest.fail("mint-guest is not installed")
    assert found["init"].content.decode().lstrip("/") in found
    for operation, *args in lines(made):
        if operation in {"module", "file"}:
            assert args[0].lstrip("/") in found
        if operation == "mount" and args[1].startswith("/new/"):
            assert args[1].lstrip("/") not in found, "it is below the new root"
    assert found["mint"].mode == stat.S_IFDIR | 0o700
    assert found["mint/script"].mode == stat.S_IFREG | 0o600


def test_network_drivers_come_after_the_settings_that_interfaces_take_over() -> None:
    words = [" ".join(line) for line in lines(boot())]
    at = {
        what: next(i for i, line in enumerate(words) if what in line)
        for what in ("overlay.ko", "mount overlay", "default/accept_dad 0", "virtio_net.ko", "sshd")
    }
    assert at["overlay.ko"] < at["mount overlay"] < at["default/accept_dad 0"]
    assert at["default/accept_dad 0"] < at["virtio_net.ko"]


def test_without_ipv6_a_kernel_need_not_have_it() -> None:
    for six, addresses in ((True, ("fd78::2/64",)), (False, ("10.78.0.2/24",))):
        settings = [
            line[0] for line in lines(boot(addresses=addresses)) if "accept_dad" in " ".join(line)
        ]
        assert settings == ["write" if six else "?write"] * 2


def test_arguments_are_escaped() -> None:
    assert script._escape("a\tb\\t\n") == "a\\tb\\\\t\\n"
    line = next(line for line in lines(boot(name="a\nb")) if line[0] == "hostname")
    assert line == ["hostname", "a\\nb"]
