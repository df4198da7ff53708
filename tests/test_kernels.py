# SPDX-License-Identifier: Apache-2.0
"""Finding kernels, their modules, and what probe boots show: with made-up kernels, and the real."""

from __future__ import annotations

import gzip
import json
import lzma
import os
import pwd
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mint_vni import cli, kernels
from mint_vni.errors import PlatformError
from mint_vni.kernels import Kernel, boot, cache, catalog, host, probe

REAL_CACHE = cache.directory()
DEADLINE = 30.0
GOOD = "#!/bin/sh\necho booting\necho mint-probe-ok 9.1.2\nsleep 60\n"
BAD = "#!/bin/sh\necho io scheduler registered\necho 'Kernel panic - not syncing: AMX'\nexit 7\n"


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache on a machine without kernels of its own."""
    monkeypatch.setenv("MINT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(catalog, "_UML_NAMES", ())
    monkeypatch.setattr(catalog, "_VIRTIOFSD_PLACES", ())
    return tmp_path / "cache" / "kernels"


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def uml(base: Path, text: str = GOOD, version: str = "9.1um1", release: str = "9.1.2") -> Path:
    """Put a "kernel" into the cache by hand: a shell script."""
    (base / "uml" / version / "lib" / "modules" / release).mkdir(parents=True)
    return program(base / "uml" / version / "linux", text)


def counting(tmp_path: Path, text: str) -> tuple[str, Callable[[], int]]:
    """A script that leaves a mark for each time that it is run, and their count."""
    marks = tmp_path / "marks"
    marks.touch()
    marks.chmod(0o666)
    tmp_path.chmod(0o777)
    for above in tmp_path.parents[:3]:
        if above.owner() == tmp_path.owner() and above != Path("/tmp"):
            above.chmod(0o755)  # the boot is made as nobody
    return text.replace("\n", f"\necho >>{marks}\n", 1), lambda: marks.read_text().count("\n")


# ------------------------------------------------------------------------------- catalog


def test_kernels_are_found_newest_first(base: Path) -> None:
    uml(base, version="9.1um1", release="9.1.2")
    uml(base, version="10.0um2", release="10.0.1")
    uml(base, version=".new-11", release="11.0.0")
    (base / "uml" / "empty").mkdir()
    found = kernels.installed("uml")
    assert [(k.version, k.release) for k in found] == [("10.0um2", "10.0.1"), ("9.1um1", "9.1.2")]
    assert found[0].directory == base / "uml" / "10.0um2"
    assert found[0].argv0 == "./linux"
    assert found[0].origin == "put there by hand"
    assert kernels.installed("qemu") == []


def test_the_distributions_own_is_found(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = program(base / "bin" / "linux.uml", "#!/bin/sh\necho 8.0.3\n")
    monkeypatch.setenv("PATH", str(path.parent), prepend=os.pathsep)
    monkeypatch.setattr(catalog, "_UML_NAMES", ("linux.uml",))
    uml(base)
    newer, own = kernels.installed("uml")
    assert newer.release == "9.1.2"
    assert (own.release, own.image, own.directory) == ("8.0.3", path, None)
    assert own.argv0 == str(path)
    assert own.modules == Path("/usr/lib/uml/modules/8.0.3")


def test_something_else_called_linux_is_none(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = program(base / "bin" / "linux.uml", "#!/bin/sh\necho not a kernel\n")
    monkeypatch.setenv("PATH", str(path.parent), prepend=os.pathsep)
    monkeypatch.setattr(catalog, "_UML_NAMES", ("linux.uml",))
    assert kernels.installed("uml") == []


def test_the_cache_is_where_it_should_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MINT_CACHE_DIR", raising=False)
    monkeypatch.delenv("SUDO_UID", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache.directory() == tmp_path / ".cache" / "mint-vni" / "kernels"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.directory() == tmp_path / "xdg" / "mint-vni" / "kernels"
    monkeypatch.setenv("MINT_CACHE_DIR", str(tmp_path / "mint"))
    assert cache.directories() == [tmp_path / "mint" / "kernels"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root is called by sudo")
def test_under_sudo_the_callers_kernels_are_found_and_its_home_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MINT_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    os.chown(tmp_path, 1, 1)
    monkeypatch.setenv("HOME", str(tmp_path))  # as sudo -E leaves it
    monkeypatch.setenv("SUDO_UID", "1")
    assert not cache.directory().is_relative_to(tmp_path)
    callers = Path(pwd.getpwuid(1).pw_dir, ".cache", "mint-vni", "kernels")
    assert cache.directories() == [cache.directory(), callers]


def test_only_the_virtiofsd_in_rust_counts(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system = base / "libexec"
    monkeypatch.setattr(catalog, "_VIRTIOFSD_PLACES", (str(system),))
    program(system / "virtiofsd", "#!/bin/sh\necho 'virtiofsd version 7.2.22 (Debian 1:7.2)'\n")
    with pytest.raises(PlatformError, match="mint kernel install virtiofsd"):
        kernels.virtiofsd()
    for version in ("1.9.0-1", "1.14.0-4"):
        program(base / "virtiofsd" / version / "virtiofsd", "#!/bin/sh\n")
    found = kernels.virtiofsd()
    assert (found.version, found.argv0) == ("1.14.0-4", "./virtiofsd")
    assert found.directory == found.path.parent
    program(system / "virtiofsd", "#!/bin/sh\necho virtiofsd 1.10.0\n")
    assert kernels.virtiofsd().path == system / "virtiofsd"
    assert kernels.virtiofsd().directory is None


# ------------------------------------------------------------------------------- modules


def module(*needs: str) -> bytes:
    """An ELF file with nothing but the sections ``.modinfo`` and names."""
    information = b"license=GPL\0depends=" + ",".join(needs).encode() + b"\0name=x\0"
    names = b"\0.modinfo\0.shstrtab\0"
    header = struct.pack(
        *("<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 1, 62, 1, 0, 0),
        *(64 + len(information) + len(names), 0, 64, 0, 0, 64, 3, 2),
    )
    sections = [
        struct.pack("<IIQQQQIIQQ", name, 1, 0, 0, offset, size, 0, 0, 1, 0)
        for name, offset, size in (
            (0, 0, 0),
            (1, 64, len(information)),
            (10, 64 + len(information), len(names)),
        )
    ]
    return header + information + names + b"".join(sections)


@pytest.fixture
def modular(base: Path) -> Kernel:
    """A kernel with a few modules, packed in different ways."""
    uml(base)
    (kernel,) = kernels.installed("uml")
    drivers = kernel.modules / "kernel" / "drivers"
    drivers.mkdir(parents=True)
    (drivers / "virtio_net.ko.xz").write_bytes(lzma.compress(module("net_failover", "virtio-ring")))
    (drivers / "net_failover.ko.gz").write_bytes(gzip.compress(module("failover")))
    (drivers / "failover.ko").write_bytes(module())
    (drivers / "virtio-ring.ko").write_bytes(module())
    (drivers / "strange.ko.zst").write_bytes(b"(")
    (drivers / "broken.ko").write_bytes(b"\x7fELF\x02\x01")
    (drivers / "truncated.ko.xz").write_bytes(lzma.compress(module())[:-9])
    (kernel.modules / "modules.builtin").write_text("kernel/fs/fuse/fuse.ko\n")
    return kernel


def test_modules_come_after_what_they_need(modular: Kernel) -> None:
    order = kernels.load_order(modular, ["virtio-net", "fuse", "failover"])
    names = [path.name.partition(".")[0] for path in order]
    assert sorted(names) == ["failover", "net_failover", "virtio-ring", "virtio_net"]
    assert names.index("failover") < names.index("net_failover") < names.index("virtio_net")
    assert names[-1] == "virtio_net"
    assert all(kernels.module_bytes(path).startswith(b"\x7fELF") for path in order)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("nosuch", "has no module nosuch .*--upgrade"),
        ("strange", "compressed in an unknown way"),
        ("broken", "is no kernel module"),
        ("truncated", "cannot be read"),
    ],
)
def test_a_module_that_cannot_be_had(modular: Kernel, name: str, why: str) -> None:
    with pytest.raises(PlatformError, match=why):
        kernels.load_order(modular, [name])


def test_modules_that_need_each_other_end(modular: Kernel) -> None:
    drivers = modular.modules / "kernel"
    (drivers / "hen.ko").write_bytes(module("egg"))
    (drivers / "egg.ko").write_bytes(module("hen"))
    assert len(kernels.load_order(modular, ["hen"])) == 2


# --------------------------------------------------------------------------- probe boots


def test_a_kernel_that_reaches_its_init(base: Path) -> None:
    uml(base)
    start = time.monotonic()
    kernel = kernels.find("uml")
    assert kernel.version == "9.1um1"
    assert time.monotonic() - start < DEADLINE  # it is not waited for once it has said so
    (result,) = kernels.results(kernel)
    assert (result.ok, result.reason) == (True, "")
    assert result.console[0] == "booting"


def test_a_panic_is_the_reason(base: Path) -> None:
    uml(base, BAD)
    with pytest.raises(PlatformError) as caught:
        kernels.find("uml")
    assert "9.1um1 of put there by hand" in str(caught.value)
    assert "(exit status 7): Kernel panic - not syncing: AMX" in str(caught.value)
    assert "mint kernel install uml --upgrade" in str(caught.value)


def test_the_newest_that_boots_is_taken(base: Path) -> None:
    uml(base, BAD, version="10.0um1", release="10.0.0")
    uml(base)
    assert kernels.find("uml").version == "9.1um1"


def test_a_kernel_that_hangs_is_ended_with_all_its_processes(base: Path) -> None:
    uml(base, "#!/bin/sh\necho $$\nsleep 61 & wait\n")
    (kernel,) = kernels.installed("uml")
    start = time.monotonic()
    result = probe.probe(kernel, "uml", 0.5)
    assert time.monotonic() - start < DEADLINE
    assert not result.ok
    assert result.reason.startswith("it did not get to its init within 0.5 s")
    assert not [line for line in commands() if line == "sleep\x0061\x00"]


def commands() -> list[str]:
    found = []
    for name in filter(str.isdecimal, os.listdir("/proc")):
        try:
            found.append(Path("/proc", name, "cmdline").read_text())
        except OSError:
            continue
    return found


def test_another_kernel_than_it_should_be(base: Path) -> None:
    uml(base, release="9.9.9")
    (kernel,) = kernels.installed("uml")
    reason = "it is 9.1.2, but its modules are those of 9.9.9"
    assert probe.probe(kernel, "uml").reason == reason


def test_a_kernel_without_modules_may_have_any_release(base: Path) -> None:
    program(base / "uml" / "mine" / "linux", GOOD)
    assert kernels.find("uml").version == "mine"


def test_a_file_that_is_no_program(base: Path) -> None:
    uml(base, "\x7fELF no program")
    (kernel,) = kernels.installed("uml")
    assert not probe.probe(kernel, "uml").ok


def test_a_result_is_remembered_until_something_changes(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, boots = counting(tmp_path, GOOD)
    path = uml(base, text)
    (kernel,) = kernels.installed("uml")
    assert probe.remembered(kernel, "uml") is None
    for _ in range(3):
        assert kernels.find("uml") == kernel
    assert boots() == 1
    replaced = path.with_name("linux.new")
    program(replaced, text + "# a new binary\n").rename(path)
    assert kernels.find("uml") == kernel
    assert boots() == 2
    monkeypatch.setattr(host, "cpu", lambda: "another CPU, with AMX")
    kernels.find("uml")
    kernels.find("uml")
    assert boots() == 3


def test_what_ran_into_its_deadline_is_tried_again_after_a_reboot(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uml(base, "#!/bin/sh\nsleep 60\n")
    (kernel,) = kernels.installed("uml")
    probe.probe(kernel, "uml", 0.2)
    assert probe.remembered(kernel, "uml") is not None
    monkeypatch.setattr(host, "boot_id", lambda: "the next one")
    assert probe.remembered(kernel, "uml") is None


@pytest.mark.parametrize("content", ["", "[]", "{", '{"x": 1}', "\xff"])
def test_a_spoilt_memory_is_no_memory(base: Path, content: str) -> None:
    uml(base)
    kernel = kernels.find("uml")
    known = json.loads((base / "probes.json").read_text())
    (base / "probes.json").write_text(content, encoding="latin-1")
    assert probe.remembered(kernel, "uml") is None
    for key in known:
        (base / "probes.json").write_text(json.dumps({key: {"ok": True, "boot_id": ""}}))
    assert probe.remembered(kernel, "uml") is None
    assert kernels.find("uml") == kernel
    assert probe.remembered(kernel, "uml") is not None


def test_nothing_installed(base: Path) -> None:
    with pytest.raises(PlatformError, match="run 'mint kernel install uml'"):
        kernels.find("uml")
    assert not kernels.kvm_works()


# ---------------------------------------------------------------------------------- QEMU


def qemu(base: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> Kernel:
    """A kernel and a "QEMU": a shell script."""
    where = base / "qemu" / "9.1-1"
    (where / "lib" / "modules" / "9.1.2").mkdir(parents=True)
    (where / "vmlinuz").write_bytes(b"kernel")
    path = program(base.parent.parent / "bin" / catalog.QEMU, text)
    monkeypatch.setenv("PATH", str(path.parent), prepend=os.pathsep)
    for above in path.parents[:4]:
        if above.owner() == path.owner() and above not in {Path("/tmp"), Path("/")}:
            above.chmod(0o755)  # the boot is made as nobody
    (kernel,) = kernels.installed("qemu")
    return kernel


ONLY_TCG = """#!/bin/sh
case "$*" in
*--version*) echo QEMU emulator version 9.9 ;;
*accel=kvm*) echo 'error: failed to set MSR 0x10a'; kill -ABRT $$ ;;
*accel=tcg*) echo mint-probe-ok 9.1.2 ;;
esac
"""


def test_kvm_that_opens_and_does_not_work(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "kvm").touch()
    monkeypatch.setattr(probe, "KVM", str(tmp_path / "kvm"))
    kernel = qemu(base, monkeypatch, ONLY_TCG)
    assert not kernels.kvm_works()
    assert kernels.find("qemu") == kernel
    by_kvm, by_tcg = kernels.results(kernel)
    assert (by_kvm.method, by_kvm.ok) == ("kvm", False)
    assert "failed to set MSR 0x10a" in by_kvm.reason
    assert (by_tcg.method, by_tcg.ok) == ("tcg", True)


def test_kvm_that_works_for_this_boot_of_the_host(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "kvm").touch()
    monkeypatch.setattr(probe, "KVM", str(tmp_path / "kvm"))
    kernel = qemu(
        base, monkeypatch, ONLY_TCG.replace("kvm*) echo", "kvm*) echo mint-probe-ok 9.1.2;")
    )
    assert kernels.kvm_works(kernel)
    assert probe.remembered(kernel, "kvm") is not None
    monkeypatch.setattr(host, "boot_id", lambda: "the next one")
    assert probe.remembered(kernel, "kvm") is None


def test_no_kvm_is_no_boot(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "KVM", str(tmp_path / "kvm"))
    kernel = qemu(base, monkeypatch, ONLY_TCG)
    result = probe.result(kernel, "kvm")
    assert (result.ok, result.reason) == (False, f"there is no {tmp_path}/kvm")
    assert not (base / "probes.json").exists()


def test_no_qemu(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    qemu(base, monkeypatch, ONLY_TCG)
    monkeypatch.setattr(host, "which", lambda _name: None)
    with pytest.raises(PlatformError, match="apt-get install qemu-system-x86"):
        kernels.find("qemu")
    assert not kernels.kvm_works()


# -------------------------------------------------------------------------- command line


def test_the_list(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    uml(base, BAD, version="10.0um1", release="10.0.0")
    uml(base)
    kernels.find("uml")
    assert cli.main(["kernel", "list", "--json"]) == 0
    newer, older = json.loads(capsys.readouterr().out)["kernels"]
    assert (newer["version"], newer["probes"][0]["ok"]) == ("10.0um1", False)
    assert (older["version"], older["probes"][0]["ok"]) == ("9.1um1", True)
    assert older["bytes"] == len(GOOD)
    assert cli.main(["kernel", "list"]) == 0
    out, err = capsys.readouterr()
    assert "Kernel panic" in " ".join(out.split())
    assert "run 'mint kernel install qemu'" in err


def test_probing_shows_the_console_and_fails_if_none_boots(
    base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uml(base, BAD)
    assert cli.main(["kernel", "probe", "uml"]) == PlatformError.exit_code
    out, err = capsys.readouterr()
    assert out.splitlines()[1:] == [
        "    io scheduler registered",
        "    Kernel panic - not syncing: AMX",
    ]
    assert "no kernel for nodes of kind uml boots here" in err
    uml(base, version="9.2um1")
    assert cli.main(["kernel", "probe", "uml", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["kernels"]) == 2


def test_the_package_is_light() -> None:
    heavy = "{'rich', 'pydantic', 'mint_vni.nodes', 'mint_vni.kernels.install'}"
    script = f"import sys, mint_vni.kernels; sys.exit(bool({heavy} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


# -------------------------------------------------------------------------- the real ones


@pytest.mark.parametrize("kind", kernels.KINDS)
def test_the_real_kernels_boot(kind: kernels.Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINT_CACHE_DIR", str(REAL_CACHE.parent))
    if not kernels.installed(kind) or (kind == "qemu" and not catalog.qemu()):
        pytest.skip(f"no kernel to try: run 'mint kernel install {kind}'")
    kernel = kernels.find(kind)
    method: kernels.Method = "uml" if kind == "uml" else "tcg"
    result = boot.boot(kernel, method)
    assert result.ok, result.reason
    names = ["virtio_net", "overlay"]
    order = [path.name.partition(".")[0] for path in kernels.load_order(kernel, names)]
    assert {"failover", "net_failover", "virtio_net", "overlay"} <= set(order)


def test_the_real_virtiofsd_runs() -> None:
    try:
        found = kernels.virtiofsd()
    except PlatformError as error:
        pytest.skip(str(error))
    argv = [found.argv0, "--version"]
    done = subprocess.run(argv, cwd=found.directory, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("virtiofsd 1.")
