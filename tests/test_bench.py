# SPDX-License-Identifier: Apache-2.0
"""The frame of ``mint bench``: turns, rows, tables, comparisons; with made-up parts and figures."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import jsonschema
import pytest
from rich.console import Console

from mint_vni.bench import compare, noise, report, show
from mint_vni.bench.memory import fit
from mint_vni.bench.part import Case, Group, Part, run, settings_of, usable_cpus
from mint_vni.bench.result import Key, Metric, Result, Row, varying
from mint_vni.errors import NodeError, PlatformError

SCHEMA = json.loads(
    (Path(__file__).resolve().parent.parent / "docs" / "bench.schema.json").read_text()
)


class Made(Part):
    """Two cases, of which the second is twice the first."""

    name: ClassVar[str] = "frames"
    title: ClassVar[str] = "Made up"
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("gbps", "Gbps", "Gbps", "higher", 1, "spread", ratio=True),
    )
    log: ClassVar[list[str]] = []
    broken: ClassVar[Exception | None] = None

    def method(self) -> list[str]:
        return ["By making it up."]

    def groups(self) -> Iterator[Group]:
        yield Group("made", self._open)
        yield Group("impossible", self._impossible)

    def each_turn(self) -> dict[str, float]:
        return {"memcpy_gbps": 100.0}

    @contextmanager
    def _open(self) -> Iterator[list[Case]]:
        self.log.clear()
        yield [self._case("one", 1.0), self._case("two", 2.0)]
        self.log.append("closed")

    @staticmethod
    def _impossible() -> AbstractContextManager[list[Case]]:
        raise PlatformError("no such machine; buy one")

    def _case(self, path: str, value: float) -> Case:
        def measure() -> dict[str, float]:
            self.log.append(path)
            if self.broken and path == "two":
                raise self.broken
            return {"gbps": value * len(self.log)}

        return Case({"path": path}, measure, against=lambda key: key["path"] == "one")


def made(**asked: Any) -> Result:
    return run(Made(settings_of(Made, **({"repetitions": 3} | asked))))


def test_cases_warm_up_once_and_take_turns_every_second_in_reverse() -> None:
    made()
    warm_up, turns = ["one", "two"], ["one", "two", "two", "one", "one", "two"]
    assert Made.log == [*warm_up, *turns, "closed"]


def test_quick_warms_nothing_up() -> None:
    made(quick=True, repetitions=1)
    assert Made.log == ["one", "two", "closed"]


def test_ratios_are_of_the_same_turn() -> None:
    one, two = made().rows
    assert one.against is None
    assert not one.ratios
    assert two.against == {"path": "one"}
    pairs = zip(two.values["gbps"], one.values["gbps"], strict=True)
    assert two.ratios["gbps"] == [a / b for a, b in pairs]


def test_what_cannot_be_opened_is_skipped_with_its_reason() -> None:
    assert [vars(s) for s in made().skipped] == [
        {"what": "impossible", "why": "no such machine; buy one"}
    ]


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (NodeError("it fell over; lift it"), "it fell over; lift it"),
        (OSError(28, "No space left on device", "/x"), "No space left on device: /x"),
        (subprocess.TimeoutExpired(["dog", "-v"], 3), "dog took too long"),
    ],
)
def test_a_case_that_fails_says_so_and_the_rest_goes_on(
    monkeypatch: pytest.MonkeyPatch, error: Exception, why: str
) -> None:
    monkeypatch.setattr(Made, "broken", error)
    one, two = made().rows
    assert (one.failed, len(one.values["gbps"])) == ("", 3)
    assert (two.failed, two.values, two.ratios) == (why, {}, {})


def test_a_mistake_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Made, "broken", ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        made()


def test_progress_only_goes_forward() -> None:
    seen: list[float] = []
    run(Made(settings_of(Made)), lambda _text, done: seen.append(done))
    assert seen == sorted(seen)
    assert seen[0] >= 0.0 and seen[-1] < 1.0


def test_a_result_is_as_the_schema_says() -> None:
    result = made()
    jsonschema.validate(result.to_json(), SCHEMA)
    jsonschema.validate(report.to_json([result]), SCHEMA)
    again = [Row.from_json(row) for row in result.to_json()["rows"]]
    assert again == result.rows


def test_a_cpu_that_may_not_be_used_is_named() -> None:
    with pytest.raises(PlatformError, match="CPU 9999 is not to be used here; choose from"):
        usable_cpus([9999])


def test_what_varies_stands_in_columns() -> None:
    keys: list[Key] = [{"a": 1, "b": "x"}, {"a": 2, "b": "x"}, {"a": 2, "b": "x", "c": 3}]
    assert varying([Row(key=key) for key in keys]) == (["a", "c"], {"b": "x"})


def test_the_table_shows_rows_ratios_failures_and_what_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Made, "broken", NodeError("it fell over; lift it"))
    failed = made()
    monkeypatch.setattr(Made, "broken", None)
    out = Console(width=100, highlight=False)
    with out.capture() as captured:
        show.show(made(), out)
        show.show(failed, out)
    text = captured.get()
    for part in ("x one", "By making it up.", "failed: two: it fell over", "buy one", "memcpy 100"):
        assert part in text


def test_the_table_says_once_what_its_rows_share_and_keeps_large_numbers_short() -> None:
    result = made()
    result.rows = [
        Row(key={"test": "TCP", "path": path}, values={"gbps": [value]}, group="nodes")
        for path, value in (("one", 12345.6), ("two", 12.3))
    ] + [Row(key={"test": "UDP", "path": "one"}, values={"gbps": [1.0]}, group="nodes")]
    result.rows[1].compare_with(replace(result.rows[0], key={"test": "TCP", "path": "a long name"}))
    out = Console(width=100, highlight=False)
    with out.capture() as captured:
        show.show(result, out)
    lines = captured.get().splitlines()
    assert len([line for line in lines if "TCP" in line]) == 1
    assert any("12,346" in line for line in lines)
    heading = next(i for i, line in enumerate(lines) if "x a long" in line)
    assert "name" in lines[heading + 1]


def test_steal_and_machine_are_found() -> None:
    assert 0.0 <= noise.Steal().percent() <= 100.0
    facts = noise.machine()
    assert facts["cpus"] >= 1 and facts["kernel"]
    assert noise.memcpy_gbps(None, 1 << 20, 1) > 0


# ------------------------------------------------------------------------------- comparing


def result_of(**values: list[float]) -> dict[str, dict[str, Any]]:
    result = Result("frames", "Made up", Made.metrics)
    result.rows = [Row(key={"path": name}, values={"gbps": v}) for name, v in values.items()]
    result.settings = {"repetitions": 5, "seconds": 1, "cpus": [0], "quick": False}
    result.about = {"machine": {"cpu": "x", "cpus": 2, "kernel": "6"}}
    result.noise = {"memcpy_gbps": [100.0, 101.0, 102.0]}
    return {"frames": json.loads(json.dumps(result.to_json()))}


@pytest.mark.parametrize(
    ("before", "after", "better", "verdict"),
    [
        ([1, 2, 3], [4, 5, 6], "higher", "better"),
        ([1, 2, 3], [4, 5, 6], "lower", "worse"),
        ([4, 5, 6], [1, 2, 3], "higher", "worse"),
        ([4, 5, 6], [1, 2, 3], "", "moved"),
        ([1, 2, 4], [4, 5, 6], "higher", "same"),
        ([1, 2, 3], [2, 3, 4], "higher", "same"),
        ([1, 2], [4, 5, 6], "higher", "unknown"),
        ([], [4, 5, 6], "higher", "unknown"),
    ],
)
def test_only_ranges_apart_are_beyond_the_noise(
    before: list[float], after: list[float], better: str, verdict: str
) -> None:
    assert compare.judge(before, after, better) == verdict


def test_chance_is_what_counting_says() -> None:
    assert compare.by_chance(3, 3) == pytest.approx(0.1)
    assert compare.by_chance(5, 5) == pytest.approx(2 / 252)


def test_comparing_says_what_moved_by_how_much() -> None:
    found = compare.compare(
        result_of(a=[10, 11, 12], b=[5, 6, 7], gone=[1, 1, 1]),
        result_of(a=[20, 22, 24], b=[6, 7, 8], new=[1, 1, 1]),
    )
    assert [(c.key["path"], c.verdict) for c in found.changes] == [("a", "better"), ("b", "same")]
    assert found.changes[0].percent == pytest.approx(100.0)
    assert found.by_chance == pytest.approx(0.2)
    assert (found.only_before, found.only_after) == (["frames: gone"], ["frames: new"])
    assert found.warnings == []


def test_comparing_warns_of_another_machine() -> None:
    other = result_of(a=[1, 2, 3])
    other["frames"]["machine"]["kernel"] = "7"
    other["frames"]["noise"]["memcpy_gbps"]["all"] = [10.0, 11.0, 12.0]
    warnings = compare.compare(result_of(a=[1, 2, 3]), other).warnings
    assert warnings[0] == "kernel was 6 and is 7"
    assert "memcpy 101 and 11 Gbps" in warnings[1]


def test_a_row_that_failed_is_not_compared() -> None:
    broken = result_of(a=[1, 2, 3])
    broken["frames"]["rows"][0]["failed"] = "why"
    assert compare.compare(broken, result_of(a=[1, 2, 3])).changes == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "is not JSON"),
        ("[]", "is no result of mint bench"),
        ('{"bench": "frames", "version": 1}', "has version 1 and this mint knows 2"),
    ],
)
def test_what_is_no_result_is_refused(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(compare.BadResult, match=says):
        compare.load(str(path))


def test_comparing_prints_a_table_and_writes_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [tmp_path / name for name in ("a.json", "b.json", "out.json")]
    paths[0].write_text(json.dumps(result_of(a=[1, 2, 3], b=[1, 2, 3])["frames"]))
    paths[1].write_text(
        json.dumps({"version": 2, "bench": "report", "parts": result_of(a=[5, 6, 7], b=[1, 2, 3])})
    )
    compare.run_cli(str(paths[0]), str(paths[1]), everything=False, json_path=str(paths[2]))
    text = capsys.readouterr().out
    assert "+200.0 %" in text and "better" in text and "same" not in text
    assert "1 of 2 figures moved beyond the noise" in text
    assert json.loads(paths[2].read_text())["changes"][0]["verdict"] == "better"
    compare.run_cli(str(paths[0]), str(paths[1]), everything=True, json_path=None)
    assert "same" in capsys.readouterr().out


# -------------------------------------------------------------------------------- reporting


def test_the_formula_goes_through_its_points() -> None:
    formula = fit([(2, 2.0), (4, 12.0), (8, 56.0)])
    assert [formula(n) for n in (2, 16, 64)] == pytest.approx([2.0, 240.0, 4032.0])


def test_a_report_is_written_whole(tmp_path: Path) -> None:
    result = made()
    result.rows[0].key = {"pattern": "one to one", "layout": "a", "waiting": "w", "frame_bytes": 64}
    result.rows[1].key = result.rows[0].key | {"layout": "<b>"}
    missing = report.write(tmp_path, [result])
    page = (tmp_path / "report.html").read_text()
    text = (tmp_path / "report.md").read_text()
    assert "&lt;b&gt;" in page and "<b>b" not in page
    assert "By making it up." in page and "By making it up." in text
    assert "mint bench frames --repetitions 3" in text
    jsonschema.validate(json.loads((tmp_path / "results.json").read_text()), SCHEMA)
    assert compare.load(str(tmp_path / "results.json"))["frames"]["title"] == "Made up"
    if missing:
        pytest.skip(missing[0])
    assert "<svg" in page and "src=" not in page and "http://" not in page.split("<svg")[0]
    assert "![frames-sizes](frames-sizes.svg)" in text
    assert (tmp_path / "frames-sizes.png").stat().st_size > 1000
