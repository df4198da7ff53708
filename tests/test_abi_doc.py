# SPDX-License-Identifier: Apache-2.0
"""Holds docs/abi.md to the headers: every offset, size, number and counter name in its tables.

A comment above a table says what it is about::

    <!-- abi: constants -->                               | constant | value | …
    <!-- abi: struct NAME -->                             | offset | size | field | …
    <!-- abi: counters KIND, struct NAME.FIELD -->        | index | offset | constant | name | …
    <!-- abi: pool geometry -->                           | ports | blocks | ports_at | …
    <!-- abi: stock geometry -->                          | slots | capacity | rings_at | …

From these the test writes a C program that prints what the compiler makes of the same names, and
compares. A table of a struct has to cover it from the first byte to the last, and each counter that
has a name has to stand in a table, so that nothing can be added to a header and forgotten here.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NATIVE = ROOT / "native"
PAGE = ROOT / "docs" / "abi.md"

#: Structs that the page has to have a table of.
STRUCTS = (
    "mint_ctl",
    "mint_slot",
    "mint_rec",
    "mint_vnet",
    "mint_pool",
    "mint_pool_port",
    "mint_block",
    "mint_lane_ring",
    "mint_msg",
    "mint_port_config",
    "mint_msg_open",
    "mint_msg_tap",
    "mint_peer_config",
)
COUNTERS = {"port": "MINT_PORT_COUNTERS", "tx": "MINT_TX_COUNTERS", "rx": "MINT_RX_COUNTERS"}

MARK = re.compile(r"<!-- abi: (.+?) -->")


@dataclass(frozen=True)
class Table:
    """One table of the page: what it is about, and its rows without the heading."""

    about: str
    rows: tuple[tuple[str, ...], ...]

    def column(self, number: int) -> list[str]:
        return [row[number] for row in self.rows]


def tables(page: str) -> list[Table]:
    """The marked tables of the page."""
    found = []
    lines = page.splitlines()
    for at, line in enumerate(lines):
        mark = MARK.fullmatch(line.strip())
        if not mark:
            continue
        rows = []
        for row in lines[at + 3 :]:  # behind the mark, the heading and the rule
            if not row.startswith("|"):
                break
            rows.append(tuple(cell.strip().strip("`") for cell in row.strip("|").split("|")))
        assert rows, f"no table below {line}"
        found.append(Table(mark.group(1), tuple(rows)))
    return found


def struct_claims(table: Table) -> Iterator[tuple[str, int]]:
    """What a struct's table says, as C expressions and their values."""
    name = table.about
    end = 0
    for offset, size, field, *_ in table.rows:
        assert int(offset) == end, f"{name}: {field} at {offset} leaves a gap behind {end}"
        end += int(size)
        yield f"offsetof({name}, {field})", int(offset)
        if int(size):  # else a flexible array member, which has none
            yield f"sizeof((({name} *)0)->{field})", int(size)
    yield f"sizeof({name})", end


def counter_claims(table: Table) -> Iterator[tuple[str, int]]:
    """What a table of counters says about places."""
    match = re.fullmatch(r"counters (\w+), (struct \w+)\.(\w+)", table.about)
    assert match, table.about
    for index, offset, constant, *_ in table.rows:
        yield constant, int(index)
        yield f"offsetof({match[2]}, {match[3]}[{index}])", int(offset)


def constant_claims(table: Table) -> Iterator[tuple[str, int]]:
    """What a table of constants says."""
    for name, value, *_ in table.rows:
        yield name, int(value, 0)


def claims_of(page: str) -> dict[str, int]:
    """Everything that the page says, as C expressions and their values."""
    kinds = {"constants": constant_claims, "counters": counter_claims, "struct": struct_claims}
    claims: dict[str, int] = {}
    for table in tables(page):
        kind = kinds.get(table.about.split()[0])
        for expression, value in kind(table) if kind else ():
            assert expression not in claims, f"{table.about}: {expression} is said twice"
            claims[expression] = value
    return claims


def compiled(tmp_path: Path, body: str, *core: str) -> list[str]:
    """Compile a program with the core's headers and some of its files; the lines it prints."""
    gcc = shutil.which("gcc")
    if gcc is None:
        pytest.fail("there is no gcc: run make setup")
    source, program = tmp_path / "abi.c", tmp_path / "abi"
    source.write_text(
        "#include <stdio.h>\n"
        + "".join(
            f'#include "{name}.h"\n' for name in ("control", "names", "pool_state", "pooled_abi")
        )
        + f"int main(void)\n{{\n{body}\n    return 0;\n}}\n"
    )
    flags = ["-std=gnu11", "-D_GNU_SOURCE", "-w", f"-I{NATIVE}"]
    done = subprocess.run(
        [gcc, *flags, "-o", str(program), str(source), *(str(NATIVE / c) for c in core)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, f"docs/abi.md names something that is not there:\n{done.stderr}"
    printed = subprocess.run([program], capture_output=True, text=True, timeout=60, check=True)
    return printed.stdout.splitlines()


def drift(page: str, tmp_path: Path) -> list[str]:
    """Where the page and the compiler differ, one sentence each."""
    claims = claims_of(page)
    body = "\n".join(
        f'    printf("%llu\\n", (unsigned long long)({expression}));' for expression in claims
    )
    values = [int(line) for line in compiled(tmp_path, body)]
    return [
        f"{expression} is {value}, the page says {said}"
        for (expression, said), value in zip(claims.items(), values, strict=True)
        if value != said
    ]


def test_every_struct_has_a_table() -> None:
    about = {table.about for table in tables(PAGE.read_text())}
    assert {f"struct {name}" for name in STRUCTS} <= about


def test_numbers_are_the_compilers(tmp_path: Path) -> None:
    assert drift(PAGE.read_text(), tmp_path) == []


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("| 64 | 8 | `tail` |", "| 64 | 8 | `head` |"),
        ("| 11 | 344 | `MINT_PORT_FLOODED`", "| 11 | 344 | `MINT_PORT_SLEEPS`"),
        ("| `MINT_FRAME_MAX` | 65584 |", "| `MINT_FRAME_MAX` | 65585 |"),
        ("| 128 | 4 | `tx_end` |", "| 128 | 4 | `rx_end` |"),
    ],
)
def test_a_wrong_page_is_noticed(right: str, wrong: str, tmp_path: Path) -> None:
    page = PAGE.read_text()
    assert page.count(right) == 1
    try:
        found = drift(page.replace(right, wrong), tmp_path)
    except AssertionError:
        return  # it says something twice: noticed as well
    assert found


def test_a_gap_is_noticed() -> None:
    page = PAGE.read_text()
    row = next(line for line in page.splitlines() if line.startswith("| 196 | 60 | `pad1`"))
    with pytest.raises(AssertionError, match="gap"):
        claims_of(page.replace(row + "\n", ""))


@pytest.mark.parametrize("kind", COUNTERS)
def test_counters_are_all_there_by_name(kind: str, tmp_path: Path) -> None:
    table = next(t for t in tables(PAGE.read_text()) if t.about.startswith(f"counters {kind},"))
    said = dict(zip(table.column(0), table.column(3), strict=True))
    body = (
        f"    for (unsigned i = 0; i < {COUNTERS[kind]}; i++)\n"
        f"        if (mint_{kind}_counter_name(i))\n"
        f'            printf("%u %s\\n", i, mint_{kind}_counter_name(i));'
    )
    named = dict(line.split() for line in compiled(tmp_path, body, "names.c"))
    assert said == named


def test_pool_geometry_is_the_cores(tmp_path: Path) -> None:
    table = next(t for t in tables(PAGE.read_text()) if t.about == "pool geometry")
    assert len(table.rows) > 1
    fields = ("ports_at", "table_at", "bitmap_at", "data_at", "bytes")
    body = "    struct mint_pool g;\n" + "\n".join(
        f"    if (!mint_pool_geometry({ports}u, {blocks}u, &g))\n        return 1;\n"
        + "\n".join(f'    printf("%llu ", (unsigned long long)g.{name});' for name in fields)
        + '\n    printf("\\n");'
        for ports, blocks, *_ in table.rows
    )
    said = [row[2:] for row in table.rows]
    printed = compiled(tmp_path, body, "pool_state.c")
    assert [tuple(line.split()) for line in printed] == said


def test_stock_geometry_is_the_cores(tmp_path: Path) -> None:
    table = next(t for t in tables(PAGE.read_text()) if t.about == "stock geometry")
    assert len(table.rows) > 1
    body = "\n".join(
        f'    printf("%zu %zu %zu\\n", MINT_STOCK_RINGS_AT({slots}u), MINT_STOCK_DATA_AT({slots}u),'
        f" MINT_STOCK_BYTES({slots}u, {capacity}u));"
        for slots, capacity, *_ in table.rows
    )
    assert [tuple(line.split()) for line in compiled(tmp_path, body)] == [
        row[2:] for row in table.rows
    ]
