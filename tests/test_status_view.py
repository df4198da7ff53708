# SPDX-License-Identifier: Apache-2.0
"""What ``mint status`` shows: all there, readable, no wider than 100 columns."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from rich.console import Console, RenderableType

import status_sample
from mint_vni.fabric.counters import Ends
from mint_vni.lab.member import _queued
from mint_vni.observe import units
from mint_vni.observe.status import BUSIEST, Since, labs_table, render

NOW = datetime(2026, 11, 23, 3, 10, 0, tzinfo=UTC)
WIDTH = 100


def show(what: RenderableType, *, colour: bool = False) -> str:
    console = Console(
        width=WIDTH,
        highlight=False,
        force_terminal=colour,
        color_system="standard" if colour else None,
    )
    with console.capture() as capture:
        console.print(what)
    return capture.get()


def lines(status: dict[str, Any], since: Since | None = None) -> list[str]:
    return [line.rstrip() for line in show(render(status, since, NOW)).splitlines()]


def row(shown: list[str], *starts: str) -> list[str]:
    """The words of the first line that starts with these words."""
    wanted = list(starts)
    return next(words for words in map(str.split, shown) if words[: len(wanted)] == wanted)


@pytest.mark.parametrize("layout", ["per-channel", "pooled"])
@pytest.mark.parametrize(
    ("head", "tail", "queued"),
    [(2048, 1024, 1024), (1024, 1024, 0), (0, 64, 0), (1 << 63, 64, 0), (4096, 1 << 40, 0)],
)
def test_what_hostile_ends_claim_is_not_queued(
    layout: str, head: int, tail: int, queued: int
) -> None:
    """Each end is its writer's: both together may say what can't be."""
    words: dict[str, Any] = {"tx_state": "open", "rx_state": "open", "stalled": False, "rx": {}}
    ends = [
        Ends(head=h, tail=t, tx={"frames": 4, "bytes": 256}, **words)
        for h, t in ((head, 0), (0, tail))
    ]
    assert _queued(ends[0], ends[1], layout, 135_168) == queued


@pytest.mark.parametrize("nodes", [1, 2, 3, 4, 8, 40])
def test_it_fits_and_loses_nothing(nodes: int) -> None:
    status = status_sample.status(nodes)
    shown = lines(status)
    assert max(map(len, shown)) <= WIDTH
    assert "…" not in "".join(shown) or nodes > 8  # no cell was cut
    for node in status["nodes"]:
        assert {str(node["pid"]), node["mac"], node["ipv4"]} <= set(row(shown, node["name"]))
        assert any(node["ipv6"] in line for line in shown)


def test_long_names_fold_instead_of_being_cut() -> None:
    status = status_sample.status(8)
    for i, part in enumerate(("nodes", "ports")):
        status[part][i]["name"] = "a-node-of-15-ch"
    status["nodes"][0]["ipv6"] = "fd77:1111:2222:3333:4444:5555:6666:7777/64"
    shown = lines(status)
    assert max(map(len, shown)) <= WIDTH
    assert "".join(shown).count("…") == 0


def test_the_heading_says_what_the_lab_is() -> None:
    shown = lines(status_sample.status())
    assert shown[0] == (
        "pair  ready  up for 2 h 10 min  layout per-channel, 2M a buffer  "
        "ssh mesh  supervisor 4000000"
    )
    assert shown[1] == "/srv/labs/pair.yaml  id 3fa9c1d2"


def test_a_re_adopted_lab_says_so() -> None:
    status = status_sample.status()
    status["supervisor"]["adoptions"] = 2
    assert "re-adopted 2 ×" in " ".join(lines(status))


def test_two_nodes_have_their_channels_listed() -> None:
    words = row(lines(status_sample.status()), "a", "→", "b")
    assert words == ["a", "→", "b", "open", "12.3", "k", "17.8", "MiB", "0", "B", "0"]


def test_eight_nodes_have_a_matrix_of_bytes() -> None:
    status = status_sample.status(8)
    moved = next(c for c in status["channels"] if (c["from"], c["to"]) == ("c", "g"))
    moved["bytes"] = 5 << 30
    shown = lines(status)
    assert row(shown, "FROM") == ["FROM", *"abcdefgh"]
    matrix = shown[shown.index(next(s for s in shown if s.startswith("FROM"))) :]
    cells = row(matrix, "c")
    assert cells[1:] == [
        *("17.8", "MiB", "17.8", "MiB", "·", "17.8", "MiB", "17.8", "MiB", "17.8", "MiB"),
        *("5.00", "GiB", "17.8", "MiB"),
    ]


def test_forty_nodes_show_the_busiest_and_sum_up_the_rest() -> None:
    status = status_sample.status(40)
    status["channels"][777]["bytes"] = 1 << 40
    shown = lines(status)
    listed = [line for line in shown if " → " in line]
    assert len(listed) == BUSIEST
    assert "1.00 TiB" in listed[0]
    rest = 40 * 39 - BUSIEST
    assert f"… and {rest} more channels with {rest * 12_345:,} frames" in shown


def test_rates_are_of_what_moved_between_two_looks() -> None:
    before, after = status_sample.status(), status_sample.status()
    after["channels"][0]["bytes"] += 125_000_000
    # The other channel was begun anew meanwhile: what it has now is what moved.
    after["channels"][1]["bytes"] = 250
    shown = lines(after, Since(before, 0.5))
    assert "2.00 Gbit/s" in " ".join(row(shown, "a", "→", "b"))
    assert " 0 " in f" {' '.join(row(shown, 'b', '→', 'a'))} "


def test_rates_of_a_matrix_keep_their_unit_in_the_heading() -> None:
    before, after = status_sample.status(4), status_sample.status(4)
    after["channels"][0]["bytes"] += 1_250_000
    shown = lines(after, Since(before, 1.0))
    assert "traffic in bit/s, from the row's port to the column's" in shown
    matrix = shown[shown.index("traffic in bit/s, from the row's port to the column's") :]
    assert row(matrix, "a") == ["a", "·", "10.0", "M", "0", "0"]


def test_trouble_is_named_in_words() -> None:
    status = status_sample.status(8)
    status["channels"][3].update(state="stalled", queued_bytes=393_216)
    status["channels"][3]["drops"] = {"stalled": 33_333}
    status["ports"][1]["drops"] = {"unknown": 7, "from-the-future": 1}
    status["ports"][2]["state"] = "restarting"
    status["nodes"][2]["state"] = "failed"
    shown = lines(status)
    assert row(shown, "a", "→", "e")[3:] == ["stalled", "384", "KiB", "33.3", "k"]
    assert any("stalled: the receiver stopped draining its channel" in line for line in shown)
    assert any(line.split()[:2] == ["b", "7"] and "destination MAC" in line for line in shown)
    assert any(line.endswith("from-the-future") for line in shown)


def test_nothing_is_said_of_what_is_well() -> None:
    text = "\n".join(lines(status_sample.status(8)))
    assert "DROPPED" not in text
    assert "STATE    QUEUED" not in text


def test_limits_are_told_apart_where_they_differ() -> None:
    status = status_sample.status(3)
    assert "limits  CPUs: cgroup-v1   memory: cgroup-v1" in lines(status)
    status["nodes"][1]["memory_enforced_by"] = "none"
    assert "limits  CPUs: cgroup-v1   memory: cgroup-v1 (a, c), none (b)" in lines(status)


def test_a_raw_port_has_no_worker_and_no_node() -> None:
    status = status_sample.status()
    status["ports"].append(
        status_sample.port(2, "probe") | {"attachment": "raw", "node": None, "worker": None}
    )
    status["ports"][0]["bridge"] = True
    shown = lines(status)
    assert row(shown, "probe", "raw")[2:7] == ["up", "–", "–", "–", "–"]
    assert row(shown, "a", "tap")[2:4] == ["bridge", "up"]
    assert row(shown, "b", "tap")[2] == "up"


def test_a_node_without_addresses_and_limits() -> None:
    status = status_sample.status()
    status["nodes"][0].update(
        ipv4=None, ipv6=None, cpus=[], memory_limit=None, memory_used=None, pid=None
    )
    words = row(lines(status), "a", "netns")
    assert words == [
        *("a", "netns", "running", "–", "all", "–", "vni0", "1500", "–", "02:4d:56:12:34:00")
    ]


def test_a_lab_without_nodes() -> None:
    assert lines(status_sample.status(0))[0].startswith("pair  ready")


def test_mutual_trust_stands_out() -> None:
    status = status_sample.status()
    assert "workers: separate users; each worker runs as a user of its own" in lines(status)[-1]
    status["trust"] = {"workers": "same-user", "note": "peers can reach each other"}
    assert "\x1b[33mworkers: same user; peers" in show(render(status, None, NOW), colour=True)
    status["trust"] = {"workers": "separate-users", "note": ""}
    assert lines(status)[-1].endswith("workers: separate users")


def test_colours_are_for_terminals_only() -> None:
    status = status_sample.status()
    assert "\x1b" not in show(render(status, None, NOW))
    assert "\x1b[32mready" in show(render(status, None, NOW), colour=True)


def test_names_are_no_markup() -> None:
    status = status_sample.status()
    status["file"] = "/srv/[red]labs[/red]/pair.yaml"
    assert "/srv/[red]labs[/red]/pair.yaml" in "\n".join(lines(status))
    assert "[red]labs[/red]" in show(labs_table([status]))


def test_a_since_that_is_no_time_does_no_harm() -> None:
    status = status_sample.status() | {"since": "yesterday"}
    assert "up for ?" in lines(status)[0]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (9_999, "9,999"),
        (10_000, "10.0 k"),
        (99_949, "99.9 k"),
        (99_950, "100 k"),
        (999_499, "999 k"),
        (999_500, "1.00 M"),
        (12_345_678, "12.3 M"),
        (2**64 - 1, "18.4 E"),
    ],
)
def test_counts(value: int, shown: str) -> None:
    assert units.count(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (393_216, "384 KiB"),
        (1_048_575, "1.00 MiB"),
        (2 << 20, "2.00 MiB"),
        (2**64 - 1, "16.0 EiB"),
    ],
)
def test_sizes(value: int, shown: str) -> None:
    assert units.size(value) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (-1, "0 s"),
        (0.9, "0 s"),
        (59, "59 s"),
        (60, "1 min 0 s"),
        (3_599, "59 min 59 s"),
        (7_800, "2 h 10 min"),
        (90_000, "1 d 1 h"),
    ],
)
def test_durations(seconds: float, shown: str) -> None:
    assert units.duration(timedelta(seconds=seconds)) == shown


def test_rates() -> None:
    assert units.rate(0) == "0"
    assert units.rate(12_345_678_901) == "12.3 Gbit/s"
    assert units.rate(500) == "500 bit/s"


def test_eight_busy_ports_take_one_line_each() -> None:
    status = status_sample.status(8)
    status["ports"][1]["bridge"] = True
    shown = lines(status)
    start = next(i for i, line in enumerate(shown) if line.startswith("PORT"))
    assert [line.split()[0] for line in shown[start + 1 : start + 9]] == list("abcdefgh")
