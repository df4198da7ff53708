# SPDX-License-Identifier: Apache-2.0
"""Packages from the Debian archive by apt itself, which touches nothing of this system's.

apt runs as the calling user with directories and a sources file of its own, all below one directory.
The system's settings (proxies, certificates, mirrors' passwords) hold; its hooks do not. Signatures
are checked by apt against the keyring that the system's own sources name, and whatever might have
switched that off in the system's settings is switched on again. The bytes of each package are
compared with the signed index once more, since apt trusts a file of the right size that it finds.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mint_vni.errors import PlatformError
from mint_vni.kernels import host
from mint_vni.kernels.sources import Source

ARCHITECTURE = "amd64"
RETRIES = 3  # apt waits one, two and four seconds before it repeats a request
#: Called with what is going on and, while something is fetched, how much of it is there: 0 to 1.
Report = Callable[[str, float | None], None]

# Read last, so that it overrides; a "#clear" also removes what a list has already.
_CONFIGURATION = """\
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
Dir::State "{base}/state";
Dir::State::status "{base}/status";
Dir::Cache "{base}/cache";
Dir::Etc::sourcelist "{base}/mint.sources";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
APT::Architecture "{architecture}";
APT::Sandbox::User "";
APT::Update::Error-Mode "any";
APT::Get::AllowUnauthenticated "false";
Acquire::AllowInsecureRepositories "false";
Acquire::AllowWeakRepositories "false";
Acquire::AllowDowngradeToInsecureRepositories "false";
Acquire::Languages "none";
Acquire::Retries "{retries}";
Acquire::http::Timeout "30";
Acquire::https::Timeout "30";
"""
_SIGNATURE = re.compile(
    r"NO_PUBKEY|signature|not signed|[A-Z]+SIG\b|OpenPGP|GPG error", re.IGNORECASE
)
_NETWORK = re.compile(
    r"Could not (?:connect|resolve|wait)|Temporary failure|Connection (?:failed|timed|reset|refused)"
    r"|Unable to connect|Cannot initiate|unreachable|timed out",
    re.IGNORECASE,
)
_MISMATCH = re.compile(r"Hash Sum mismatch|unexpected size|weak hash", re.IGNORECASE)
_FULL = re.compile(r"No space left|enough free space|Disk quota", re.IGNORECASE)


class Unreachable(PlatformError):
    """The archive did not answer; what is there already can be gone on from."""


@dataclass(frozen=True)
class Package:
    """A package as the archive's signed index describes it.

    Attributes:
        name: Its name.
        version: Its version.
        depends: What it needs: of alternatives the first one, without versions.
        size: Bytes of the file.
        unpacked: Bytes of its content, about.
        sha256: Of the file, hexadecimal.
    """

    name: str
    version: str
    depends: tuple[str, ...]
    size: int
    unpacked: int
    sha256: str


class Archive:
    """A set of suites, looked at through a private apt."""

    def __init__(
        self,
        base: Path,
        sources: Sequence[tuple[Source, tuple[str, ...]]],
        report: Report,
        inherit: tuple[int, ...] = (),
    ) -> None:
        """Prepare the private directories; `update` must follow.

        Args:
            base: A directory of its own; made. Everything is below it.
            sources: Archives, each with the suites to look into.
            report: Told about progress.
            inherit: Descriptors that apt's processes keep open.

        Raises:
            OSError: The directories cannot be made.
        """
        self._base = base
        self._sources = sources
        self._report = report
        self._inherit = inherit
        for name in ("state/lists/partial", "cache/archives/partial", "packages"):
            (base / name).mkdir(parents=True, exist_ok=True)
        (base / "status").touch()
        stanzas = "".join(source.stanza(suites, ARCHITECTURE) for source, suites in sources)
        (base / "mint.sources").write_text(stanzas, encoding="utf-8")
        configuration = _CONFIGURATION.format(base=base, architecture=ARCHITECTURE, retries=RETRIES)
        (base / "apt.conf").write_text(configuration, encoding="utf-8")

    @property
    def origin(self) -> str:
        """Where it is, for people: ``http://deb.debian.org/debian testing``."""
        source, suites = self._sources[0]
        return f"{source.uris.split()[0].rstrip('/')} {suites[0]}"

    def update(self) -> None:
        """Fetch the indexes and have apt check their signatures.

        Raises:
            Unreachable: The archive does not answer.
            PlatformError: It is not signed as it should be, or something else went wrong.
        """
        self._apt("apt-get", ["update"], f"reading the index of {self.origin}")

    def package(self, name: str) -> Package | None:
        """The newest version of a package; None if there is none.

        Raises:
            PlatformError: The index is not there.
        """
        text = self._apt("apt-cache", ["show", "--no-all-versions", "--", name], "", fails=True)
        fields = dict(re.findall(r"^([\w-]+): *(.*)$", text.partition("\n\n")[0], re.MULTILINE))
        if fields.get("Package") != name:
            return None
        depends = ",".join(fields.get(f, "") for f in ("Pre-Depends", "Depends")).split(",")
        names = (re.match(r"\s*([a-z0-9][a-z0-9+.-]+)", word) for word in depends)
        return Package(
            name=name,
            version=fields["Version"],
            depends=tuple(dict.fromkeys(match[1] for match in names if match)),
            size=int(fields["Size"]),
            unpacked=int(fields.get("Installed-Size", "0")) * 1024,
            sha256=fields["SHA256"],
        )

    def download(self, packages: Sequence[Package]) -> list[Path]:
        """Fetch packages; what is there from a former attempt is not fetched again.

        Args:
            packages: From `package`.

        Returns:
            Their files, in the same order.

        Raises:
            Unreachable: The archive stopped answering.
            PlatformError: A file is not what the signed index says, or something else went wrong.
        """
        where = self._base / "packages"
        missing = [package for package in packages if not self._whole(package)]
        if missing:
            size = sum(package.size for package in missing) / 1e6
            names = [f"{package.name}={package.version}" for package in missing]
            what = f"fetching {missing[0].name} {missing[0].version} ({size:.0f} MB)"
            self._apt("apt-get", ["download", "--", *names], what, cwd=where)
        for package in missing:
            if not self._whole(package):
                raise self._mismatch(f"{package.name} {package.version}")
        return [self._file(package) for package in packages]

    def _file(self, package: Package) -> Path:
        # As apt names it: a colon before which an epoch stands is escaped.
        version = package.version.replace(":", "%3a")
        found = sorted((self._base / "packages").glob(f"{package.name}_{version}_*.deb"))
        return found[0] if found else self._base / "packages" / f"{package.name}.deb"

    def _whole(self, package: Package) -> bool:
        """Whether a package's file is there and has the right bytes; a wrong one is removed."""
        path = self._file(package)
        try:
            if path.stat().st_size < package.size:
                return False  # apt goes on from there
            with open(path, "rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() == package.sha256:
                    return True
            path.unlink()
        except FileNotFoundError:
            pass
        return False

    def _apt(
        self,
        program: str,
        words: list[str],
        what: str,
        *,
        cwd: Path | None = None,
        fails: bool = False,
    ) -> str:
        """Run one of apt's programs; its standard output."""
        if what:
            self._report(what, None)
        read, write = os.pipe()
        argv = [host.need(program, "apt"), "-c", str(self._base / "apt.conf"), "-q"]
        argv += ["-o", f"APT::Status-Fd={write}", *words]
        watcher = threading.Thread(target=self._watch, args=(read, what), daemon=True)
        watcher.start()
        try:
            with tempfile.TemporaryFile() as errors:
                done = subprocess.run(
                    argv,
                    cwd=cwd or self._base,
                    env={**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"},
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    pass_fds=(write, *self._inherit),
                    check=False,
                )
                errors.seek(0)
                said = errors.read().decode(errors="replace")
        finally:
            os.close(write)
            watcher.join()
        if done.returncode and not fails:
            raise self._error(program, words[0], said, done.returncode)
        return done.stdout.decode(errors="replace")

    def _watch(self, descriptor: int, what: str) -> None:
        """Report what apt says on its status descriptor: ``dlstatus:2:46.7:Retrieving file …``."""
        with open(descriptor, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                words = line.split(":")
                if what and words[0] == "dlstatus":
                    try:
                        self._report(what, float(words[2]) / 100)
                    except (ValueError, IndexError):
                        continue

    def _error(self, program: str, verb: str, said: str, status: int) -> PlatformError:
        lines = [line for line in said.splitlines() if line.startswith("E: ")]
        first = (lines or [f"E: exit status {status}"])[0][3:].strip()
        if _FULL.search(said):
            return PlatformError(f"the disk with {self._base} is full ({first}); make room there")
        if _MISMATCH.search(said):
            return self._mismatch(first)
        if _SIGNATURE.search(said):
            keyring = self._sources[0][0].signed_by.partition("\n")[0] or "apt's trusted keys"
            return PlatformError(
                f"{self.origin} is refused: its signature is not one of {keyring} ({first}); "
                "a newer keyring comes by 'apt-get install debian-archive-keyring'"
            )
        if _NETWORK.search(said):
            return Unreachable(
                f"{self.origin} does not answer ({first}); repeat when this machine is connected: "
                "what was fetched is kept"
            )
        return PlatformError(
            f"{program} {verb} failed for {self.origin} ({first}); see that 'apt-get update' works "
            "here, then repeat"
        )

    def _mismatch(self, what: str) -> PlatformError:
        return PlatformError(
            f"something from {self.origin} is refused: it is not what the archive's signed index says "
            f"({what}); repeat, and if it stays so, choose another mirror in apt's sources"
        )
