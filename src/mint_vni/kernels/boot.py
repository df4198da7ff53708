# SPDX-License-Identifier: Apache-2.0
"""One probe boot: a kernel, an initramfs of one program, and a deadline.

The program, ``_bin/mint-probe-init``, prints a token with the kernel's release and switches the
machine off. The initramfs is a sealed-off memory file, handed over as ``/proc/self/fd/N``: nothing
is written to disk, and no directory need be searchable for whoever boots it.

As root, the boot is confined: no network, process and mount namespaces of its own that end with it,
no privileges; KVM is opened by root without capabilities, since /dev/kvm is often root's alone.
"""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from mint_vni.errors import InternalError, PlatformError
from mint_vni.kernels import catalog, host
from mint_vni.kernels.model import Kernel, Method, Probe

#: Seconds; each is many times what it takes where it works.
DEADLINES: dict[Method, float] = {"uml": 20.0, "kvm": 20.0, "tcg": 90.0}
#: QEMU's -cpu for each way of running; what a probe shows holds for these.
CPU_MODELS: dict[Method, str] = {"kvm": "host", "tcg": "max"}
CONSOLE_LINES = 20
GAVE_UP = "it did not get to its init within"

_INIT = Path(__file__).resolve().parent.parent / "_bin" / "mint-probe-init"
_TOKEN = re.compile(rb"mint-probe-ok (\S+)\s")  # the line's end: not a part of it
_CONSOLE_MAX = 256 << 10
_POWER_OFF = 5.0  # seconds from the token to the end of the process
_NOBODY = 65534
# What says more than the last line: a panic is followed by a stack.
_TELLING = re.compile(r"panic|BUG:|[Aa]ssert|[Ee]rror|[Ff]ail|[Cc]annot|[Cc]ould not")
_ESCAPES = re.compile(r"\x1b(?:\[[0-9;?]*[A-Za-z]|[a-z])")


def boot(kernel: Kernel, method: Method, deadline: float | None = None) -> Probe:
    """Boot a kernel to its init.

    Args:
        kernel: The kernel.
        method: How.
        deadline: Seconds after which it is given up; `DEADLINES` if left out.

    Returns:
        What happened; a kernel that does not boot is a result, not an error.

    Raises:
        PlatformError: QEMU is not installed.
        InternalError: Mint VNI's own part is missing.
    """
    limit = DEADLINES[method] if deadline is None else deadline
    with _initramfs() as initrd, open(kernel.image, "rb") as image, _scratch() as scratch:
        if method == "uml":
            argv = _uml(kernel, initrd, scratch)
        else:
            argv = _qemu(method, image.fileno(), initrd)
        return _run(
            _confined(argv, method), kernel, method, limit, (initrd, image.fileno()), scratch
        )


@contextlib.contextmanager
def _scratch() -> Iterator[str]:
    """A directory for what User-Mode Linux leaves lying about."""
    path = tempfile.mkdtemp(prefix="mint-probe-")
    try:
        if os.geteuid() == 0:
            os.chown(path, _NOBODY, _NOBODY)
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _uml(kernel: Kernel, initrd: int, scratch: str) -> list[str]:
    return [
        *(kernel.argv0, "mem=64M", f"initrd=/proc/self/fd/{initrd}", f"uml_dir={scratch}"),
        *("con=null", "con0=null,fd:1", "ssl=null", "panic=-1"),
    ]


def _qemu(method: Method, image: int, initrd: int) -> list[str]:
    path = catalog.qemu()
    if path is None:
        raise PlatformError(
            f"{catalog.QEMU} is not installed; run 'apt-get install {catalog.QEMU_PACKAGE}'"
        )
    return [
        *(path, "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
        *("-machine", f"q35,accel={method}", "-cpu", CPU_MODELS[method], "-m", "256"),
        *("-serial", "stdio", "-append", "console=ttyS0 panic=-1"),
        *("-kernel", f"/proc/self/fd/{image}", "-initrd", f"/proc/self/fd/{initrd}"),
        *("-sandbox", "on,obsolete=deny,spawn=deny"),
    ]


def _confined(argv: list[str], method: Method) -> list[str]:
    """The command line behind what takes its privileges away, where there are any."""
    # What fails on purpose leaves no core file.
    argv = [host.need("prlimit", "util-linux"), "--core=0:0", *argv]
    if os.geteuid() != 0:
        return argv
    user = 0 if method == "kvm" else _NOBODY
    return [
        *(host.need("unshare", "util-linux"), "--net", "--ipc", "--mount", "--pid"),
        *("--fork", "--kill-child", "--mount-proc"),
        *(host.need("setpriv", "util-linux"), f"--reuid={user}", f"--regid={user}"),
        *("--clear-groups", "--no-new-privs", "--inh-caps=-all", "--bounding-set=-all", "--"),
        *argv,
    ]


def _run(
    argv: list[str],
    kernel: Kernel,
    method: Method,
    limit: float,
    descriptors: tuple[int, ...],
    scratch: str,
) -> Probe:
    start = time.monotonic()
    try:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=kernel.directory or "/",
            env={"PATH": os.environ.get("PATH", os.defpath), "HOME": scratch, "LC_ALL": "C"},
            pass_fds=descriptors,
            start_new_session=True,
        )
    except OSError as error:
        return _result(method, start, b"", f"it could not be started: {error.strerror}")
    try:
        output = _listen(process, start + limit)
        alive = process.poll() is None
    finally:
        _end(process)
    if match := _TOKEN.search(output):
        return _result(method, start, output, _mismatch(kernel, match[1].decode(errors="replace")))
    if alive:
        return _result(method, start, output, f"{GAVE_UP} {limit:g} s")
    return _result(
        method, start, output, f"it ended before its init ({_status(process.returncode)})"
    )


def _mismatch(kernel: Kernel, release: str) -> str:
    """What is wrong with a kernel whose release is another than its modules'; empty if nothing is."""
    if release == kernel.release or not kernel.modules.is_dir():
        return ""
    return f"it is {release}, but its modules are those of {kernel.release}"


def _listen(process: subprocess.Popen[bytes], until: float) -> bytes:
    """What a process prints until it has printed the token, has ended, or time is up."""
    assert process.stdout is not None
    output = bytearray()
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while (left := until - time.monotonic()) > 0 and not _TOKEN.search(output):
            if not selector.select(left):
                break
            if not (data := os.read(process.stdout.fileno(), 65536)):
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(left)
                break
            output += data
            del output[:-_CONSOLE_MAX]
    return bytes(output)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and all it started; User-Mode Linux heeds no polite signal."""
    # As root, its death takes the whole process namespace along.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdout:
        process.stdout.close()


def _status(code: int) -> str:
    number = -code if code < 0 else code - 128
    with contextlib.suppress(ValueError):
        if number > 0:
            return signal.Signals(number).name
    return f"exit status {code}"


def _result(method: Method, start: float, output: bytes, wrong: str) -> Probe:
    text = _ESCAPES.sub("", output.decode(errors="replace")).replace("\r", "\n")
    lines = [line for raw in text.splitlines() if (line := _printable(raw))][-CONSOLE_LINES:]
    telling = ""
    if wrong and not _TOKEN.search(output):
        telling = next((line for line in lines if _TELLING.search(line)), (lines or [""])[-1])
    return Probe(
        ok=not wrong,
        method=method,
        seconds=round(time.monotonic() - start, 2),
        reason=f"{wrong}: {telling}" if telling else wrong,
        console=tuple(lines),
        when=datetime.now().astimezone().isoformat(timespec="seconds"),
    )


def failed(method: Method, wrong: str) -> Probe:
    """The result of a boot that was not even begun.

    Args:
        method: How it would have been booted.
        wrong: Why not.
    """
    return _result(method, time.monotonic(), b"", wrong)


def _printable(line: str) -> str:
    return "".join(c if c.isprintable() else " " for c in line).strip()


@contextlib.contextmanager
def _initramfs() -> Iterator[int]:
    """A memory file with the program as /init, as a descriptor."""
    try:
        init = _INIT.read_bytes()
    except OSError as error:
        raise InternalError(
            f"{_INIT} is missing ({error.strerror}); install Mint VNI again"
        ) from None
    archive = _cpio(
        [
            ("dev", 0o040755, (0, 0), b""),
            ("dev/console", 0o020600, (5, 1), b""),  # where the kernel lets /init write
            ("init", 0o100755, (0, 0), init),
        ]
    )
    descriptor = os.memfd_create("mint-probe-initramfs")
    try:
        os.write(descriptor, archive)
        yield descriptor
    finally:
        os.close(descriptor)


def _cpio(entries: list[tuple[str, int, tuple[int, int], bytes]]) -> bytes:
    """An archive in the "newc" format that the kernel unpacks (its buffer-format.rst).

    Args:
        entries: Name, mode, device numbers and content of each.
    """
    archive = b""
    for number, (name, mode, device, data) in enumerate(
        [*entries, ("TRAILER!!!", 0, (0, 0), b"")], 1
    ):
        encoded = name.encode() + b"\0"
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(encoded), 0)
        archive += b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
        archive += b"\0" * (-len(archive) % 4) + data
        archive += b"\0" * (-len(archive) % 4)
    return archive
