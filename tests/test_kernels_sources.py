# SPDX-License-Identifier: Apache-2.0
"""Which archive apt is configured for: both forms of its files, and what is not Debian's."""

from __future__ import annotations

from pathlib import Path

import pytest

from mint_vni.errors import PlatformError
from mint_vni.kernels.sources import Host, Source, read_host, read_sources

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


def host(tmp_path: Path, codename: str = "trixie", **files: str) -> Host:
    """Read a configuration; ``_`` in a file's name stands for a dot."""
    parts = tmp_path / "apt" / "sources.list.d"
    parts.mkdir(parents=True)
    (tmp_path / "os-release").write_text(f"ID=debian\nVERSION_CODENAME={codename}\n")
    for name, text in files.items():
        place = tmp_path / "apt" if name == "sources_list" else parts
        (place / name.replace("_", ".")).write_text(text)
    return read_host(tmp_path)


def test_stanzas(tmp_path: Path) -> None:
    text = f"""# what the installer wrote
Types: deb deb-src
URIs: http://deb.debian.org/debian
# a comment amid
Suites: trixie trixie-updates trixie-backports
Components: main contrib
Signed-By: {KEYRING}

Types: deb
URIs: http://security.debian.org/debian-security/
Suites: trixie-security
Components: main
Signed-By: {KEYRING}

Enabled: no
Types: deb
URIs: http://other.invalid/debian
Suites: trixie
Components: main

Types: deb-src
URIs: http://source.invalid/debian
Suites: trixie
Components: main
"""
    found = host(tmp_path, debian_sources=text)
    assert found.base.uris == "http://deb.debian.org/debian"
    assert found.base.signed_by == KEYRING
    assert [(source.uris, source.suites) for source in found.own] == [
        ("http://deb.debian.org/debian", ("trixie", "trixie-updates")),
        ("http://security.debian.org/debian-security/", ("trixie-security",)),
    ]


def test_lines(tmp_path: Path) -> None:
    text = f"""
# deb http://old.invalid/debian trixie main
deb [arch=amd64 signed-by={KEYRING}] http://ftp.debian.org/debian trixie main contrib # near
deb-src http://ftp.debian.org/debian trixie main
deb http://security.debian.org/debian-security bullseye/updates main
deb http://security.debian.org/debian-security trixie-security main
"""
    found = host(tmp_path, sources_list=text)
    assert found.base == Source(
        "http://ftp.debian.org/debian", ("trixie",), ("main", "contrib"), KEYRING
    )
    assert [source.suites for source in found.own] == [("trixie",), ("trixie-security",)]


def test_without_keys_the_path_tells(tmp_path: Path) -> None:
    text = """
deb https://apt.example.com/tools trixie main
deb mirror+file:/etc/apt/mirrors/debian.list trixie main
deb http://mirror.example.com/debian/ trixie main
deb http://mirror.example.com/debian-security trixie-security main
"""
    found = host(tmp_path, sources_list=text)
    assert found.base.uris == "http://mirror.example.com/debian/"
    assert [source.suites for source in found.own] == [("trixie",), ("trixie-security",)]
    assert found.base.signed_by == ""


def test_a_mirror_list_alone(tmp_path: Path) -> None:
    found = host(tmp_path, a_list="deb mirror+file:/etc/apt/mirrors/d.list sid main\n")
    assert found.base.uris == "mirror+file:/etc/apt/mirrors/d.list"


@pytest.mark.parametrize("suite", ["stable", "testing", "unstable", "sid"])
def test_suites_by_their_other_names(tmp_path: Path, suite: str) -> None:
    text = f"deb http://deb.debian.org/debian {suite} main\n"
    assert host(tmp_path, a_list=text).base.suites == (suite,)


def test_anothers_archive_with_debians_names_is_not_debians(tmp_path: Path) -> None:
    other = "deb [signed-by=/usr/share/keyrings/other.gpg] https://apt.example.com trixie main\n"
    ours = f"deb [signed-by={KEYRING}] http://deb.debian.org/debian trixie main\n"
    runner = other.replace("example.com", "example.com/runner/debian")
    found = host(tmp_path, a_list=other, b_list=runner, c_list=ours)
    assert [source.signed_by for source in found.own] == [KEYRING]


def test_a_mirror_with_a_key_of_its_own(tmp_path: Path) -> None:
    mirror = "deb [signed-by=/etc/apt/house.gpg] http://mirror.example.com/debian trixie main\n"
    found = host(tmp_path, a_list="deb https://apt.example.com trixie main\n", b_list=mirror)
    assert [source.signed_by for source in found.own] == ["/etc/apt/house.gpg"]


def test_a_key_in_place_is_kept(tmp_path: Path) -> None:
    key = "-----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n mQINBF\n -----END PGP PUBLIC KEY BLOCK-----"
    text = "Types: deb\nURIs: http://m/debian\nSuites: trixie\nComponents: main\nSigned-By:\n"
    source = host(tmp_path, debian_sources=f"{text} {key}\n").base
    assert source.signed_by == key
    stanza = source.stanza(("testing",), "amd64")
    assert f"Signed-By:\n {key}\n" in stanza
    assert "Suites: testing\n" in stanza


def test_what_would_weaken_the_check_is_not_taken_over(tmp_path: Path) -> None:
    text = "deb [trusted=yes allow-insecure=yes] http://m/debian trixie main\n"
    stanza = host(tmp_path, a_list=text).base.stanza(("testing",), "amd64")
    assert "rusted" not in stanza
    assert "nsecure" not in stanza


@pytest.mark.parametrize(
    "text",
    ["", "deb http://deb.debian.org/debian trixie contrib\n", "deb http://m/debian x main\n"],
)
def test_no_archive(tmp_path: Path, text: str) -> None:
    with pytest.raises(PlatformError, match=r"name no Debian archive .*sources\.list.*by hand"):
        host(tmp_path, a_list=text)


def test_files_of_other_kinds_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list.d" / "old.list.save").write_text("deb http://m/debian trixie main\n")
    assert read_sources(tmp_path) == []
