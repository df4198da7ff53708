# SPDX-License-Identifier: Apache-2.0
"""Nodes that boot a disk image: the disk, the seed; and, where there is an image, the whole.

Such an image takes hundreds of megabytes to make and a minute or two to boot without KVM, so the last
test is for whoever names one: any that has cloud-init, systemd and sshd, such as Debian's
``debian-12-genericcloud-amd64.qcow2``, in ``MINT_TEST_IMAGE``.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pycdlib
import pytest

from guest_nodes import guest, need
from mint_vni.errors import NodeError
from mint_vni.nodes.guest.image import Image, inspect_image, make_overlay
from mint_vni.nodes.guest.script import guest_program
from mint_vni.nodes.guest.seed import make_seed
from node_bench import MISSING, Bench, make_bench, out, run, soon, ssh, until

pytestmark = [
    pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed"),
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
]
bench = pytest.fixture(make_bench)


def create(*args: str) -> None:
    subprocess.run(["qemu-img", "create", "-q", *args], check=True)


# ------------------------------------------------------------------ the disk


def test_a_chain_of_images(tmp_path: Path) -> None:
    base, middle, top = (str(tmp_path / name) for name in ("base.raw", "middle.qcow2", "top.qcow2"))
    create("-f", "raw", base, "3M")
    create("-f", "qcow2", "-F", "raw", "-b", base, middle)
    create("-f", "qcow2", "-F", "qcow2", "-b", "middle.qcow2", top, "5M")
    image = inspect_image("a", top)
    assert image == Image(5 << 20, ((top, "qcow2"), (middle, "qcow2"), (base, "raw")))
    device = json.loads(image.block_device("disk"))
    files = []
    layer: dict[str, Any] | None = device
    while layer is not None:
        files.append((layer["driver"], layer["file"]["filename"], layer["file"]["read-only"]))
        layer = layer.get("backing")
    assert files == [
        ("qcow2", "/dev/fdset/1", False),
        ("qcow2", "/dev/fdset/2", True),
        ("qcow2", "/dev/fdset/3", True),
        ("raw", "/dev/fdset/4", True),
    ]
    fds = image.open()
    for fd in fds:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.write(fd, b"x")
        os.close(fd)


def test_an_overlay_has_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    fd = make_overlay(7 << 30)
    try:
        assert list(tmp_path.iterdir()) == []
        said = subprocess.run(
            ["qemu-img", "info", "--output=json", f"/proc/self/fd/{fd}"],
            capture_output=True,
            check=True,
            pass_fds=[fd],
        )
        about = json.loads(said.stdout)
        assert (about["format"], about["virtual-size"]) == ("qcow2", 7 << 30)
        assert os.fstat(fd).st_blocks * 512 < 1 << 20, "it takes room when it is written to"
        assert os.fstat(fd).st_mode & 0o777 == 0o600
    finally:
        os.close(fd)
    monkeypatch.setenv("TMPDIR", "/proc")
    with pytest.raises((OSError, NodeError)):
        make_overlay(1 << 20)


def test_bad_images(tmp_path: Path) -> None:
    with pytest.raises(NodeError, match=r"node a: there is no image /no/where; check the path"):
        inspect_image("a", "/no/where")
    create("-f", "vmdk", str(tmp_path / "x.vmdk"), "1M")
    with pytest.raises(NodeError, match=r"x\.vmdk is an image of format vmdk; run 'qemu-img conv"):
        inspect_image("a", str(tmp_path / "x.vmdk"))
    create("-f", "raw", str(tmp_path / "base"), "1M")
    create("-f", "qcow2", "-F", "raw", "-b", str(tmp_path / "base"), str(tmp_path / "top"))
    (tmp_path / "base").unlink()
    with pytest.raises(NodeError, match="is no image that QEMU can use .*No such file"):
        inspect_image("a", str(tmp_path / "top"))


# ------------------------------------------------------------------ the seed


def seed_files(data: bytes) -> dict[str, str]:
    disc = pycdlib.PyCdlib()
    disc.open_fp(io.BytesIO(data))
    assert disc.pvd.volume_identifier.strip() == b"cidata"
    found = {}
    for child in disc.list_children(joliet_path="/"):
        name = child.file_identifier().decode("utf-16-be")
        if child.is_file():
            content = io.BytesIO()
            disc.get_file_from_iso_fp(content, joliet_path=f"/{name}")
            found[name] = content.getvalue().decode()
    disc.close()
    return found


def test_seed(bench: Bench) -> None:
    files = seed_files(make_seed(bench.plan("a"), bench.context("a")))
    assert set(files) == {"meta-data", "network-config", "user-data"}
    about = json.loads(files["meta-data"])
    assert about == {"instance-id": f"mint-{bench.lab_id}-a", "local-hostname": "a"}
    interface = json.loads(files["network-config"])["ethernets"]["vni0"]
    assert interface["match"] == {"macaddress": "02:4d:56:99:00:01"}
    assert interface["addresses"] == ["10.99.0.1/24", "fd99::1/64"]
    assert (interface["set-name"], interface["mtu"]) == ("vni0", 1500)
    head, _, body = files["user-data"].partition("\n")
    assert head == "#cloud-config"
    config = json.loads(body)
    written = {entry["path"]: entry for entry in config["write_files"]}
    program = gzip.decompress(base64.b64decode(written["/usr/local/sbin/mint-guest"]["content"]))
    assert program == guest_program().read_bytes()
    assert "10.99.0.2 b b.bench" in written["/etc/hosts"]["content"]
    assert written["/etc/ssh/mesh_key"]["permissions"] == "0600"
    assert "/etc/ssh/sshd_config" not in written, "the image's own stays"
    assert "PRIVATE KEY" in config["ssh_keys"]["ed25519_private"]
    assert len(config["ssh_authorized_keys"]) == 2, "the host's and the nodes'"


# ------------------------------------------------------------------ the whole


def test_image_missing(bench: Bench, tmp_path: Path) -> None:
    need("qemu")
    with pytest.raises(NodeError, match="node a: there is no image"):
        guest(bench, "qemu", image=str(tmp_path / "none")).start()
    assert bench.journal == []


def test_an_image_without_a_system(bench: Bench, tmp_path: Path) -> None:
    """It neither boots nor ends; what it has on the host goes with it."""
    need("qemu")
    create("-f", "qcow2", str(tmp_path / "empty.qcow2"), "10M")
    before = (tmp_path / "empty.qcow2").read_bytes()
    node = guest(bench, "qemu", image=str(tmp_path / "empty.qcow2"))
    node.start()
    try:
        with pytest.raises(NodeError, match="node a is not ready in time: its kernel did not boot"):
            node.wait_ready(soon(2))
        assert node.alive()
    finally:
        node.stop(soon())
    assert (tmp_path / "empty.qcow2").read_bytes() == before
    assert not list(node.context.state_dir.iterdir())


@pytest.mark.timeout(900)
def test_a_real_image(bench: Bench) -> None:
    need("qemu")
    path = os.environ.get("MINT_TEST_IMAGE")
    if not path:
        pytest.skip("set MINT_TEST_IMAGE to a disk image with cloud-init, systemd and sshd")
    before = hashlib.sha256(Path(path).read_bytes()).digest()
    node = guest(bench, "qemu", image=path, memory=1 << 30)
    node.start()
    try:
        node.wait_ready(soon(600))
        assert out(node, "hostname") == "a"
        assert ssh(node, "hostname").stdout == "a\n"
        found = json.loads(out(node, "ip", "-j", "address", "show", "vni0"))[0]
        assert {"10.99.0.1", "fd99::1"} <= {a["local"] for a in found["addr_info"]}
        assert out(node, "getent", "hosts", "b.bench").split()[0] in ("10.99.0.2", "fd99::2")
        out(node, "sh", "-c", "echo mine > /var/tmp/mark; sync")
        run(node, "systemctl", "reboot")
        until("it goes down", lambda: not node.status()["guest"]["ready"], 240)
        node.wait_ready(soon(600))
        assert out(node, "cat", "/var/tmp/mark") == "mine", "the disk is kept"
    finally:
        node.stop(soon(20))
    assert hashlib.sha256(Path(path).read_bytes()).digest() == before, "never written to"
