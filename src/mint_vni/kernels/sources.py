# SPDX-License-Identifier: Apache-2.0
"""The Debian archive that this machine's apt is configured for: mirror, suites and keyring.

Both forms are read: stanzas (``*.sources``) and lines (``*.list``), see sources.list(5). Only what
names the archive is taken over; ``Trusted``, ``Allow-Insecure`` and the like are not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mint_vni.errors import PlatformError
from mint_vni.kernels import cache

ETC = Path("/etc")
_ALIASES = frozenset({"oldoldstable", "oldstable", "stable", "testing", "unstable", "sid"})
_COMPONENT = "main"


@dataclass(frozen=True)
class Source:
    """One archive as apt knows it.

    Attributes:
        uris: Where it is; several, divided by blanks, are mirrors of each other.
        suites: Which of its suites, such as ``bookworm``.
        components: Which of its parts.
        signed_by: The keyring file that must have signed it, or the key itself, its
            further lines indented; empty for
            all keys that apt trusts.
    """

    uris: str
    suites: tuple[str, ...]
    components: tuple[str, ...]
    signed_by: str

    def stanza(self, suites: tuple[str, ...], architecture: str) -> str:
        """The source as text for a private ``*.sources`` file.

        Args:
            suites: Which to name instead of its own.
            architecture: For which packages.
        """
        lines = [
            "Types: deb",
            f"URIs: {self.uris}",
            f"Suites: {' '.join(suites)}",
            f"Components: {_COMPONENT}",
            f"Architectures: {architecture}",
            "Targets: Packages",
            "PDiffs: no",
        ]
        if self.signed_by.startswith("-----BEGIN"):
            lines.append(f"Signed-By:\n {self.signed_by}")
        elif self.signed_by:
            lines.append(f"Signed-By: {self.signed_by}")
        return "\n".join(lines) + "\n\n"


@dataclass(frozen=True)
class Host:
    """What apt on this machine is configured for.

    Attributes:
        base: The archive itself.
        own: All sources of this machine's own release, updates and security included.
    """

    base: Source
    own: tuple[Source, ...]


def read_host(etc: Path = ETC) -> Host:
    """Look at this machine's configuration.

    Args:
        etc: The directory with ``os-release`` and ``apt``.

    Raises:
        PlatformError: This is no Debian, or its apt knows no Debian archive.
    """
    system = _os_release(etc / "os-release")
    if system.get("ID") != "debian":
        raise PlatformError(
            f"this is {system.get('PRETTY_NAME', 'no Debian')}, so there is no Debian archive to "
            f"fetch from; {by_hand()}"
        )
    known = _ALIASES | {system.get("VERSION_CODENAME", "sid")}
    found = [
        source
        for source in read_sources(etc / "apt")
        if _COMPONENT in source.components and any(_base(s) in known for s in source.suites)
    ]
    # Somebody else's archive may name its suites as Debian does; Debian's key tells them apart, or
    # else, where no key is named, the mirror's path.
    for is_debian in (_surely, _by_path, lambda _: True):
        chosen = sorted(filter(is_debian, found), key=_by_key, reverse=True)
        base = next((s for s in chosen if known.intersection(s.suites)), None)
        if base:
            return Host(base, tuple(_own(source, known) for source in chosen))
    raise PlatformError(
        f"apt's sources in {etc / 'apt'} name no Debian archive with {_COMPONENT}; add it, see "
        f"sources.list(5), or {by_hand()}"
    )


def by_hand() -> str:
    """How to do without a Debian archive."""
    where = cache.directory()
    return (
        f"put files there by hand: {where}/uml/NAME/linux or {where}/qemu/NAME/vmlinuz, its modules "
        "in lib/modules/RELEASE beside it, and virtiofsd as docs/kernels.md says"
    )


def read_sources(apt: Path) -> list[Source]:
    """All enabled sources of binary packages.

    Args:
        apt: The directory with ``sources.list`` and ``sources.list.d``.
    """
    files = [apt / "sources.list", *sorted((apt / "sources.list.d").glob("*"))]
    found: list[Source] = []
    for file in files:
        try:
            text = file.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        if file.suffix == ".sources":
            found += _stanzas(text)
        elif file.suffix == ".list":
            found += _lines(text)
    return found


def _stanzas(text: str) -> Iterator[Source]:
    text = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    for stanza in re.split(r"\n\s*\n", text):
        fields = {
            match[1].lower(): match[2].strip()
            for match in re.finditer(r"^([\w-]+):(.*(?:\n[ \t].*)*)", stanza, re.MULTILINE)
        }
        enabled = fields.get("enabled", "yes").lower() not in {"no", "false", "0", "off", "without"}
        if enabled and "deb" in fields.get("types", "").split():
            yield Source(
                " ".join(fields.get("uris", "").split()),
                tuple(fields.get("suites", "").split()),
                tuple(fields.get("components", "").split()),
                fields.get("signed-by", ""),
            )


def _lines(text: str) -> Iterator[Source]:
    for line in text.splitlines():
        match = re.fullmatch(r"\s*deb\s+(?:\[([^]]*)\]\s+)?(\S+)\s+(\S+)\s+([^#]+).*", line)
        if match:
            options = dict(word.split("=", 1) for word in (match[1] or "").split() if "=" in word)
            signed_by = options.get("signed-by", "").replace(",", " ")
            yield Source(match[2], (match[3],), tuple(match[4].split()), signed_by)


def _base(suite: str) -> str:
    """``bookworm`` of ``bookworm-security`` and ``bullseye/updates``; empty for what is no release.

    Backports and the like are left out: nothing here asks for them.
    """
    match = re.fullmatch(r"([a-z]+)(?:[-/](?:updates|security))?", suite)
    return match.group(1) if match else ""


def _own(source: Source, known: frozenset[str]) -> Source:
    suites = tuple(suite for suite in source.suites if _base(suite) in known)
    return Source(source.uris, suites, source.components, source.signed_by)


def _surely(source: Source) -> bool:
    return _by_key(source) or (_by_path(source) and not source.signed_by)


def _by_key(source: Source) -> bool:
    return "debian-archive" in source.signed_by


def _by_path(source: Source) -> bool:
    return bool(re.search(r"\bdebian(-security)?/?(\s|$)", source.uris))


def _os_release(path: Path) -> dict[str, str]:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    pairs = (line.split("=", 1) for line in lines if "=" in line)
    return {name: value.strip("\"'") for name, value in pairs}
