# SPDX-License-Identifier: Apache-2.0
"""A small Debian archive on 127.0.0.1 for tests: real packages, signed by a key made for it.

apt, gpgv and dpkg-deb are the real ones, so what is refused here is refused by them.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import subprocess
import threading
import time
from contextlib import suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

TOOLS = ("apt-get", "apt-cache", "dpkg-deb", "gpgv", "gpg", "gpg-agent", "gpgconf")
LIBRARIES = ("libc.so.6", "ld-linux-x86-64.so.2")


def missing_tools() -> list[str]:
    return [name for name in TOOLS if shutil.which(name) is None]


class Key:
    """An OpenPGP key with a home of its own below a directory."""

    def __init__(self, base: Path, name: str) -> None:
        self.home = base / f"key-{name}"
        self.home.mkdir(mode=0o700)
        self.public = base / f"{name}-debian-archive.gpg"
        self._gpg("--quick-gen-key", "--passphrase", "", f"{name}@localhost", "ed25519", "sign")
        self.public.write_bytes(self._gpg("--export"))

    def sign(self, source: Path, target: Path) -> None:
        target.unlink(missing_ok=True)
        self._gpg("--output", str(target), "--clearsign", str(source))

    def close(self) -> None:
        """End the agents that keep the key, and wait for them.

        They take away their sockets before they end: a test that looks at the machine in between
        would find a process that goes by itself.
        """
        subprocess.run(["gpgconf", "--homedir", str(self.home), "--kill", "all"], check=False)
        until = time.monotonic() + 10
        while self._agents() and time.monotonic() < until:
            time.sleep(0.01)

    def _agents(self) -> list[int]:
        mine, found = os.fsencode(self.home), []
        for entry in filter(str.isdecimal, os.listdir("/proc")):
            with suppress(OSError):
                words = Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0")
                if mine in words:  # a zombie has no words
                    found.append(int(entry))
        return found

    def _gpg(self, *words: str) -> bytes:
        argv = ["gpg", "--homedir", str(self.home), "--batch", "--quiet", "--no-tty", *words]
        return subprocess.run(argv, check=True, capture_output=True, timeout=30).stdout


def make_package(
    pool: Path, name: str, version: str, files: dict[str, bytes | Path], depends: str = ""
) -> Path:
    """Build a package; a file's content is bytes, or those of another file."""
    root = pool / f"{name}.root"
    shutil.rmtree(root, ignore_errors=True)
    for inside, content in files.items():
        path = root / inside
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.read_bytes())
        path.chmod(0o755)
    control = root / "DEBIAN" / "control"
    control.parent.mkdir(parents=True)
    lines = [f"Package: {name}", f"Version: {version}", "Architecture: amd64"]
    lines += ["Maintainer: Nobody <nobody@localhost>", "Description: for a test"]
    lines += [f"Depends: {depends}"] if depends else []
    control.write_text("\n".join(lines) + "\n")
    target = pool / f"{name}_{version}_amd64.deb"
    argv = ["dpkg-deb", "-Znone", "--root-owner-group", "--build", str(root), str(target)]
    subprocess.run(argv, check=True, capture_output=True, timeout=30)
    shutil.rmtree(root)
    return target


def host_library(name: str) -> Path:
    """A library of this machine's C library."""
    places = (Path("/lib/x86_64-linux-gnu", name), Path("/lib64", name))
    return next(path for path in places if path.exists())


class DebianArchive:
    """The archive, its server and the configuration of an apt that knows it."""

    def __init__(self, base: Path, key: Key) -> None:
        self.base = base
        self.key = key
        self.root = base / "debian"
        self.pool = self.root / "pool"
        self.pool.mkdir(parents=True)
        #: Paths that were asked for, in order.
        self.asked: list[str] = []
        #: Requests whose path contains one of these hang until `release` is set …
        self.hang: set[str] = set()
        #: … or are cut off.
        self.cut: set[str] = set()
        self.release = threading.Event()
        self.hanging = threading.Event()
        handler = partial(_Handler, self, directory=str(base))
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        serve = partial(self._server.serve_forever, poll_interval=0.02)
        threading.Thread(target=serve, daemon=True).start()
        self.etc = base / "etc"
        self.configure()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/debian"

    def configure(self, *, url: str | None = None, signed_by: Path | None = None) -> None:
        """Write what a host's apt would have: suite trixie, main."""
        parts = self.etc / "apt" / "sources.list.d"
        parts.mkdir(parents=True, exist_ok=True)
        (self.etc / "os-release").write_text(
            'ID=debian\nVERSION_CODENAME=trixie\nPRETTY_NAME="A Debian"\n'
        )
        (parts / "debian.sources").write_text(
            f"Types: deb\nURIs: {url or self.url}\nSuites: trixie\nComponents: main\n"
            f"Signed-By: {signed_by or self.key.public}\n"
        )

    def publish(self, suite: str, *packages: Path, sign: Key | None = None) -> None:
        """Make a suite of some packages of the pool."""
        dist = self.root / "dists" / suite
        index = dist / "main" / "binary-amd64" / "Packages"
        index.parent.mkdir(parents=True, exist_ok=True)
        text = "".join(self._entry(package) for package in packages).encode()
        index.write_bytes(text)
        index.with_suffix(".gz").write_bytes(gzip.compress(text))
        release = [f"Origin: Debian\nSuite: {suite}\nCodename: {suite}\nArchitectures: amd64"]
        release += ["Components: main\nDate: Mon, 01 Jan 2024 00:00:00 UTC\nSHA256:"]
        for file in (index, index.with_suffix(".gz")):
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
            release.append(f" {digest} {file.stat().st_size} {file.relative_to(dist)}")
        (dist / "Release").write_text("\n".join(release) + "\n")
        (sign or self.key).sign(dist / "Release", dist / "InRelease")

    def _entry(self, package: Path) -> str:
        argv = ["dpkg-deb", "--field", str(package)]
        fields = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
        data = package.read_bytes()
        return (
            f"{fields.strip()}\nFilename: pool/{package.name}\nSize: {len(data)}\n"
            f"SHA256: {hashlib.sha256(data).hexdigest()}\n\n"
        )

    def add_uml(self, suite: str = "testing", version: str = "9.1um1") -> list[Path]:
        """User-Mode Linux: ``cat`` in its place, with this machine's C library beside it."""
        uml = make_package(
            self.pool,
            "user-mode-linux",
            version,
            {
                "usr/bin/linux.uml": Path("/bin/cat"),
                "usr/lib/uml/modules/9.1.2/kernel/overlay.ko": b"no module",
            },
            depends="libc6 (>= 2.30), debconf | other",
        )
        place = "usr/lib/x86_64-linux-gnu"
        files: dict[str, bytes | Path] = {f"{place}/{n}": host_library(n) for n in LIBRARIES}
        library = make_package(self.pool, "libc6", "2.99-1", files, depends="libnever1")
        self.publish(suite, uml, library)
        return [uml, library]

    def close(self) -> None:
        self.release.set()
        self._server.shutdown()
        self._server.server_close()


class _Handler(SimpleHTTPRequestHandler):
    def __init__(self, archive: DebianArchive, *args: Any, **options: Any) -> None:
        self._archive = archive
        super().__init__(*args, **options)

    def do_GET(self) -> None:
        archive = self._archive
        archive.asked.append(os.path.basename(self.path))
        if any(part in self.path for part in archive.cut):
            self.close_connection = True
            return
        if any(part in self.path for part in archive.hang):
            archive.hanging.set()
            archive.release.wait(60)
            self.close_connection = True
            return
        try:
            super().do_GET()
        except ConnectionError:
            self.close_connection = True  # the client has gone

    def log_message(self, *_: Any) -> None:
        """Say nothing."""
