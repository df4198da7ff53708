# SPDX-License-Identifier: Apache-2.0
"""Lab files that are good: what they resolve to; and the schema and the docs that describe them."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from ruamel.yaml import YAML

from mint_vni import errors
from mint_vni.lab import model, units
from mint_vni.lab.assign import derive_mac
from mint_vni.lab.loader import lab_from_dict, load_lab, parse_lab
from mint_vni.lab.model import DefaultsModel, FabricModel, LabModel, NetworkModel, NodeModel
from mint_vni.lab.plan import LabPlan, MachineFacts, NodePlan, check_machine, read_plan
from mint_vni.lab.schema import lab_schema, schema_text

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))


def plan_of(text: str) -> LabPlan:
    return read_plan(text if "\n" in text else text + "\n")


def nodes_of(plan: LabPlan) -> dict[str, NodePlan]:
    return {node.name: node for node in plan.nodes}


def test_pair_example_is_the_one_that_the_docs_show() -> None:
    text = (ROOT / "examples/pair.yaml").read_text(encoding="utf-8")
    assert text.startswith("# SPDX")
    hint = "host-only (the default) lets only the host in"
    assert text.splitlines()[1:] == [
        "lab: pair",
        "fabric: {layout: per-channel, channel_bytes: 2M}",
        "network: {ipv4: 10.77.0.0/24, ipv6: fd77::/64, mtu: 1500}",
        f"ssh: mesh{' ' * 22}# nodes may log in to each other; {hint}",
        "defaults: {kind: netns}",
        "nodes:",
        "  a: {cpus: [0], memory: 512M}",
        "  b: {cpus: [1], memory: 512M}",
    ]


def test_pair_resolves() -> None:
    plan = read_plan(ROOT / "examples/pair.yaml")
    assert plan == LabPlan(
        name="pair",
        file=str(ROOT / "examples/pair.yaml"),
        layout="per-channel",
        channel_bytes=2 << 20,
        slots=32,
        mtu=1500,
        ipv4="10.77.0.0/24",
        ipv6="fd77::/64",
        ssh="mesh",
        poll_us=model.POLL_US,
        stall_us=model.STALL_US,
        idle_reclaim=model.IDLE_RECLAIM,
        trust_all=False,
        nodes=(
            NodePlan(
                name="a",
                kind="netns",
                index=0,
                mac="02:4d:56:2d:08:d8",
                ipv4="10.77.0.1/24",
                ipv6="fd77::1/64",
                cpus=(0,),
                memory=512 << 20,
                interface="vni0",
                bridge=False,
                mtu=1500,
                offload=True,
                poll_us=model.POLL_US,
            ),
            NodePlan(
                name="b",
                kind="netns",
                index=1,
                mac="02:4d:56:3c:ec:07",
                ipv4="10.77.0.2/24",
                ipv6="fd77::2/64",
                cpus=(1,),
                memory=512 << 20,
                interface="vni0",
                bridge=False,
                mtu=1500,
                offload=True,
                poll_us=model.POLL_US,
            ),
        ),
        hosts=(
            ("10.77.0.1", ("a",)),
            ("fd77::1", ("a",)),
            ("10.77.0.2", ("b",)),
            ("fd77::2", ("b",)),
        ),
    )


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_resolve_and_fit_the_schema(path: Path) -> None:
    plan = read_plan(path)
    assert plan.name == path.stem
    data = YAML(typ="safe", pure=True).load(path)
    jsonschema.Draft202012Validator(lab_schema()).validate(data)


def test_examples_show_what_they_are_for() -> None:
    plans = {path.stem: read_plan(path) for path in EXAMPLES}
    assert {"pair", "eight", "shared", "bridge"} <= set(plans)
    assert [node.name for node in plans["eight"].nodes] == [f"n{i}" for i in range(1, 9)]
    assert plans["shared"].layout == "shared"
    assert [node.bridge for node in plans["bridge"].nodes] == [False, False, True]


def test_shortest_lab_has_the_documented_defaults() -> None:
    plan = plan_of("{lab: tiny, nodes: {a: , b: {}}}")
    assert plan.file == "<memory>"
    assert (plan.layout, plan.channel_bytes, plan.slots) == ("per-channel", 2 << 20, 32)
    assert (plan.ipv4, plan.ipv6, plan.mtu) == ("10.77.0.0/24", "fd77::/64", 1500)
    assert (plan.poll_us, plan.stall_us) == (model.POLL_US, model.STALL_US)
    assert plan.idle_reclaim == model.IDLE_RECLAIM
    assert (plan.ssh, plan.trust_all) == ("host-only", False)
    node = plan.nodes[0]
    assert (node.kind, node.cpus, node.memory, node.interface) == ("netns", (), None, "vni0")
    assert (node.bridge, node.offload, node.poll_us) == (False, True, model.POLL_US)


def test_text_file_and_dictionary_give_the_same_plan(tmp_path: Path) -> None:
    text = "lab: x\nnetwork: {mtu: 9000}\nnodes:\n  a: {cpus: [1, 0]}\n  b: {memory: 1G}\n"
    data = {
        "lab": "x",
        "network": {"mtu": 9000},
        "nodes": {"a": {"cpus": (1, 0)}, "b": {"memory": 1 << 30}},
    }
    file = tmp_path / "x.yaml"
    file.write_text(text, encoding="utf-8")
    from_file, from_text, from_dict = read_plan(str(file)), read_plan(text), read_plan(data)
    assert from_text == from_dict
    assert from_file.nodes == from_text.nodes
    assert from_file.file == str(file)


def test_yaml_does_not_change_names_and_macs() -> None:
    plan = plan_of(
        "lab: on\nnodes:\n  no: {mac: 52:54:00:12:34:56}\n  yes: {mac: 02-AB-00-00-00-01}\n"
        "  null: {}\n  true: {interface: off}\n"
    )
    assert plan.name == "on"
    assert [node.name for node in plan.nodes] == ["no", "yes", "null", "true"]
    assert [node.mac for node in plan.nodes[:2]] == ["52:54:00:12:34:56", "02:ab:00:00:00:01"]
    assert plan.nodes[3].interface == "off"


def test_defaults_merge_and_null_overrides() -> None:
    plan = plan_of(
        "lab: x\nfabric: {poll_us: 7}\n"
        "defaults: {cpus: [0], memory: 64M, interface: eth0, offload: false, poll_us: 50}\n"
        "nodes:\n  a: {}\n  b: {cpus: null, memory: 128M, offload: true, poll_us: null}\n"
    )
    a, b = plan.nodes
    assert (a.cpus, a.memory, a.interface, a.offload, a.poll_us) == (
        (0,),
        64 << 20,
        "eth0",
        False,
        50,
    )
    assert (b.cpus, b.memory, b.interface, b.offload, b.poll_us) == (
        (),
        128 << 20,
        "eth0",
        True,
        7,
    )


def test_anchors_and_merge_keys() -> None:
    plan = plan_of(
        "lab: x\nnodes:\n  a: &base {cpus: [0], memory: 64M}\n  b: &more\n    <<: *base\n"
        "    memory: 96M\n  c: {<<: [*more, *base], bridge: true}\n  d: *base\n"
    )
    assert [node.memory for node in plan.nodes] == [size << 20 for size in (64, 96, 96, 64)]
    assert all(node.cpus == (0,) for node in plan.nodes)
    assert [node.bridge for node in plan.nodes] == [False, False, True, False]


def test_an_alias_means_the_latest_anchor_of_its_name() -> None:
    plan = plan_of("lab: x\nnodes:\n  a: &n {cpus: 0}\n  b: &n {cpus: 1}\n  c: *n\n")
    assert [node.cpus for node in plan.nodes] == [(0,), (1,), (1,)]


@pytest.mark.parametrize(
    ("written", "cpus"),
    [("[2, 0]", (0, 2)), ("3", (3,)), ("'0-2,5'", (0, 1, 2, 5)), ("'1'", (1,)), ("null", ())],
)
def test_cpus_as_list_number_or_text(written: str, cpus: tuple[int, ...]) -> None:
    assert plan_of(f"{{lab: x, nodes: {{a: {{cpus: {written}}}}}}}").nodes[0].cpus == cpus


def test_given_addresses_are_kept_and_move_only_whose_turn_it_was() -> None:
    nodes = nodes_of(
        plan_of(
            "lab: x\nnodes:\n  a: {}\n  b: {ipv6: 'fd77::9/64'}\n"
            "  c: {ipv4: 10.77.0.1}\n  d: {ipv6: null}\n  e: {ipv4: 10.77.0.200/24}\n"
        )
    )
    assert [node.ipv4 for node in nodes.values()] == [
        "10.77.0.3/24",
        "10.77.0.2/24",
        "10.77.0.1/24",
        "10.77.0.4/24",
        "10.77.0.200/24",
    ]
    assert [node.ipv6 for node in nodes.values()] == [
        "fd77::1/64",
        "fd77::9/64",
        "fd77::3/64",
        None,
        "fd77::5/64",
    ]


def test_hosts_lists_no_address_that_is_not_there() -> None:
    plan = plan_of("{lab: x, network: {ipv6: null}, nodes: {a: {}, b: {ipv4: null}}}")
    assert plan.ipv6 is None
    assert plan.hosts == (("10.77.0.1", ("a",)),)


@pytest.mark.parametrize(
    ("subnet", "last"),
    [("10.0.0.0/31", "10.0.0.1/31"), ("10.0.0.0/30", "10.0.0.2/30"), ("fd00::/127", "fd00::1/127")],
)
def test_smallest_subnets(subnet: str, last: str) -> None:
    family, other = ("ipv6", "ipv4") if ":" in subnet else ("ipv4", "ipv6")
    plan = plan_of(
        f"lab: x\nnetwork: {{{family}: '{subnet}', {other}: null}}\nnodes: {{a: {{}}, b: {{}}}}\n"
    )
    assert getattr(plan.nodes[1], family) == last


def test_macs_are_local_distinct_and_do_not_depend_on_the_order() -> None:
    names = [f"n{i}" for i in range(1000)]
    forward = nodes_of(read_plan({"lab": "x", "network": _WIDE, "nodes": dict.fromkeys(names)}))
    macs = {name: node.mac for name, node in forward.items()}
    assert len(set(macs.values())) == len(names)
    assert all(mac.startswith("02:4d:56:") for mac in macs.values())
    assert not any(mac.startswith("02:4d:56:ff:") for mac in macs.values())  # for raw ports
    backward = read_plan({"lab": "x", "network": _WIDE, "nodes": dict.fromkeys(names[::-1])})
    assert {node.name: node.mac for node in backward.nodes} == macs


_WIDE = {"ipv4": "10.0.0.0/16"}


def test_a_taken_mac_is_derived_anew() -> None:
    first = derive_mac("x", "a")
    assert derive_mac("x", "a", {first}) not in (first, derive_mac("x", "b"))
    nodes = nodes_of(plan_of(f"lab: x\nnodes:\n  a: {{}}\n  b: {{mac: {first}}}\n"))
    assert nodes["b"].mac == first
    assert nodes["a"].mac == derive_mac("x", "a", {first})


def test_channel_bytes_are_rounded_up_to_pages() -> None:
    sizes = {"131200": 135_168, "393216": 393_216, "1G": 1 << 30, "384 KiB": 393_216}
    for written, expected in sizes.items():
        plan = plan_of(f"{{lab: x, fabric: {{channel_bytes: {written}}}, nodes: {{a: }}}}")
        assert plan.channel_bytes == expected


def test_slots_follow_the_nodes() -> None:
    def slots(count: int, fabric: dict[str, Any] | None = None) -> int:
        nodes = dict.fromkeys(f"n{i}" for i in range(count))
        lab = {"lab": "x", "network": _WIDE, "nodes": nodes, "fabric": fabric}
        return read_plan(lab).slots

    assert [slots(count) for count in (1, 16, 17, 64, 1010, 1024)] == [32, 32, 33, 80, 1024, 1024]
    assert slots(2, {"slots": 2}) == 2


def test_plan_survives_json() -> None:
    for path in EXAMPLES:
        plan = read_plan(path)
        assert LabPlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_this_machine_tells_its_facts() -> None:
    facts = MachineFacts.here()
    assert facts.cpus
    assert facts.memory > 1 << 20
    check_machine(plan_of("{lab: x, nodes: {a: {}, b: {}}}"), facts)


def test_lines_point_at_keys_and_items() -> None:
    text = "# first\nlab: x\nnodes:\n  a:\n    cpus:\n      - 0\n      - 1\n  b: {}\n"
    _, lines = parse_lab(text, "x.yaml")
    places = {
        ("lab",): 2,
        ("nodes",): 3,
        ("nodes", "a"): 4,
        ("nodes", "a", "cpus"): 5,
        ("nodes", "a", "cpus", 1): 7,
        ("nodes", "b", "memory"): 8,
        ("fabric", "slots"): 2,
    }
    assert {path: lines.line(path) for path in places} == places


def test_a_pipe_will_do(tmp_path: Path) -> None:
    with Path("/dev/null").open("rb"), pytest.raises(errors.LabFileError, match="nothing in it"):
        load_lab("/dev/null")


def test_sizes() -> None:
    for text, size in {"0": 0, "512M": 512 << 20, "64k": 65_536, "2 GiB": 2 << 30}.items():
        assert units.parse_size(text) == size
    for text in ("", "M", "-1", "1.5G", "2MB", "2M\n", "1e3", "9" * 5000):
        with pytest.raises(ValueError, match="not a size"):
            units.parse_size(text)


@given(st.integers(min_value=0, max_value=1 << 45))
def test_sizes_round_trip(size: int) -> None:
    assert units.parse_size(units.format_size(size)) == size


@given(st.sets(st.integers(min_value=0, max_value=units.CPU_MAX), min_size=1, max_size=40))
def test_cpu_lists_round_trip(cpus: set[int]) -> None:
    assert units.parse_cpu_list(units.format_cpu_list(cpus)) == tuple(sorted(cpus))


@settings(deadline=None)
@given(
    st.lists(st.none() | st.integers(min_value=1, max_value=30), min_size=1, max_size=20),
)
def test_addresses_are_distinct_hosts_and_given_ones_kept(given_hosts: list[int | None]) -> None:
    wanted = [h if h not in given_hosts[:i] else None for i, h in enumerate(given_hosts)]
    nodes = {
        f"n{i}": {} if host is None else {"ipv4": f"10.1.1.{host}"} for i, host in enumerate(wanted)
    }
    plan = read_plan({"lab": "x", "network": {"ipv4": "10.1.1.0/27"}, "nodes": nodes})
    hosts = [int((node.ipv4 or "").split("/")[0].split(".")[3]) for node in plan.nodes]
    assert len(set(hosts)) == len(hosts)
    assert set(hosts) <= set(range(1, 31))
    for index, (host, want) in enumerate(zip(hosts, wanted, strict=True)):
        assert host == want if want is not None else True
        if want is None and index + 1 not in wanted:
            assert host == index + 1


def test_schema_file_is_up_to_date() -> None:
    published = (ROOT / "docs/lab.schema.json").read_text(encoding="utf-8")
    assert published == schema_text(), "run: python -m mint_vni.lab.schema > docs/lab.schema.json"
    jsonschema.Draft202012Validator.check_schema(lab_schema())


@pytest.mark.parametrize(
    "lab",
    [
        {"lab": "x", "nodes": {"a": None}, "fabric": None, "network": {"ipv6": None}},
        {"lab": "x", "nodes": {"a": {"cpus": "0-1", "memory": "1G", "mac": None}}},
        {"lab": "x", "nodes": {"a": {}, "B": {}}},
        {"lab": "x", "nodes": {}},
        {"lab": "x", "nodes": {"a": {"interface": "lo"}}},
        {"lab": "x", "nodes": {"a": {"mtu": 1500}}},
        {"lab": "x", "nodes": {"a": {"cpus": []}}},
        {"lab": "x", "nodes": {"a": {}}, "fabric": {"channel_bytes": 1}},
        {"lab": "x" * 33, "nodes": {"a": {}}},
        {"nodes": {"a": {}}},
        {"lab": "x", "nodes": {"a": {"kind": "vm"}}},
        {"lab": "x", "nodes": {"a": {"offload": "yes"}}},
    ],
)
def test_schema_and_loader_agree(lab: dict[str, Any]) -> None:
    try:
        lab_from_dict(lab)
        loads = True
    except errors.LabFileError:
        loads = False
    assert jsonschema.Draft202012Validator(lab_schema()).is_valid(lab) == loads


def default_of(info: FieldInfo) -> str:
    """A field's default as the docs write it."""
    value = info.default
    if info.is_required():
        return "*required*"
    if isinstance(value, BaseModel):
        return "{}"
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if value == model.CHANNEL_BYTES:
        return units.format_size(value)
    return str(value)


def test_docs_describe_every_key_and_default() -> None:
    text = (ROOT / "docs/lab-file.md").read_text(encoding="utf-8")
    tables = {part.splitlines()[0]: part for part in text.split("\n## ")[1:]}
    sections: dict[str, type[BaseModel]] = {
        "Top level": LabModel,
        "`fabric`": FabricModel,
        "`network`": NetworkModel,
        "`nodes` and `defaults`": NodeModel,
    }
    for title, section in sections.items():
        rows = [row for row in tables[title].splitlines() if row.startswith("| `")]
        cells = {row.split("`")[1]: row.split(" | ") for row in rows}
        assert set(cells) == set(section.model_fields), title
        for key, info in section.model_fields.items():
            if section is NodeModel and key in {"ipv4", "ipv6"}:
                continue  # left out, they are assigned
            assert cells[key][2].strip("` |") == default_of(info), key
    for key in NodeModel.model_fields:
        row = next(r for r in tables["`nodes` and `defaults`"].splitlines() if f"| `{key}`" in r)
        assert row.split(" | ")[3] == ("yes" if key in DefaultsModel.model_fields else "no")


def test_docs_examples_resolve() -> None:
    text = (ROOT / "docs/lab-file.md").read_text(encoding="utf-8")
    blocks = [block.split("```")[0] for block in text.split("```yaml\n")[1:]]
    assert len(blocks) == 5
    for block in blocks:
        whole = block if "lab:" in block else "lab: x\n" + block
        read_plan(whole if "nodes:" in whole else whole + "nodes: {a: {}}\n")


def test_errors_keep_the_promised_tree() -> None:
    codes = {
        errors.LabFileError: 2,
        errors.LabStateError: 3,
        errors.PlatformError: 4,
        errors.NodeError: 5,
        errors.FabricError: 6,
        errors.FrameError: 6,
        errors.ChannelFull: 6,
        errors.ReceiveTimeout: 6,
        errors.InternalError: 70,
    }
    for kind, code in codes.items():
        assert issubclass(kind, errors.MintError)
        assert kind.exit_code == code
    assert str(errors.FrameError("too short")) == "too short"
    assert isinstance(errors.FrameError("x"), ValueError)
    assert isinstance(errors.ChannelFull("x"), TimeoutError)
    error = pickle.loads(pickle.dumps(errors.LabFileError("f.yaml", 3, "lab: bad", "mend it")))
    assert str(error) == "f.yaml:3: lab: bad; mend it"


def test_guests(tmp_path: Path) -> None:
    """What only some kinds have: defaults are for those that have it, paths relative to the file."""
    (tmp_path / "x.qcow2").touch()
    (tmp_path / "lab.yaml").write_text(
        "lab: x\n"
        "defaults: {kind: uml, trusted_userland: true, root: ./tree, kernel: '7.2'}\n"
        "nodes:\n"
        "  a: {}\n"
        "  b: {kind: qemu, memory: 1G}\n"
        "  c: {kind: netns}\n"
        "  d: {kind: qemu, root: host, kernel: null, image: x.qcow2}\n"
    )
    a, b, c, d = read_plan(tmp_path / "lab.yaml").nodes
    tree = str(tmp_path / "tree")
    assert (a.root, a.image, a.kernel, a.trusted_userland) == (tree, None, "7.2", True)
    assert (b.root, b.image, b.kernel, b.trusted_userland) == (tree, None, "7.2", False)
    assert (c.root, c.image, c.kernel, c.trusted_userland) == ("host", None, None, False)
    assert (d.root, d.image, d.kernel) == ("host", str(tmp_path / "x.qcow2"), None)
    assert [n.memory for n in (a, b, c, d)] == [256 << 20, 1 << 30, None, 512 << 20]
