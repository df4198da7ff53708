# SPDX-License-Identifier: Apache-2.0
"""Lab files that are bad: each is one sentence with file, line, thing, problem and remedy."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mint_vni.errors import LabFileError, PlatformError
from mint_vni.lab.loader import TEXT_MAX, lab_from_dict, load_lab, parse_lab
from mint_vni.lab.plan import MachineFacts, check_machine, read_plan, resolve

TWO = MachineFacts(cpus=frozenset({0, 1}), memory=4 << 30, descriptors=1024)


def error_of(text: str, machine: MachineFacts = TWO) -> LabFileError:
    """The error that a lab file of this text ends in, at whichever stage."""
    with pytest.raises(LabFileError) as caught:
        load(text, machine)
    return caught.value


def load(text: str, machine: MachineFacts) -> None:
    """All stages that a lab file goes through before anything is created."""
    model, lines = parse_lab(text, "x.yaml")
    check_machine(resolve(model, "x.yaml", lines), machine)


def lab(body: str, nodes: str = "  a: {}\n  b: {}\n") -> str:
    """A lab file with `body` from line 2 on, then the nodes."""
    return f"lab: x\n{body}nodes:\n{nodes}"


def node(keys: str) -> str:
    """A lab file whose node b, on line 4, has these keys."""
    return lab("", f"  a: {{}}\n  b: {{{keys}}}\n")


def several(count: int) -> str:
    return "".join(f"  n{i}: {{}}\n" for i in range(count))


# Each case: what it is, the text, the line, then the words that the sentence must have.
STRUCTURE = [
    ("empty", "", None, ["nothing in it", "nodes: {a: {}, b: {}}"]),
    ("comments only", "# lab: x\n", None, ["nothing in it"]),
    ("null", "~\n", None, ["nothing in it"]),
    ("a list", "- lab: x\n", 1, ["a list stands where", "mapping"]),
    ("a word", "lab\n", 1, ["'lab' stands where", "mapping"]),
    ("no lab", "nodes: {a: {}}\n", 1, ["the key lab is missing", "lab: NAME"]),
    ("no nodes", "lab: x\n", 1, ["the key nodes is missing"]),
    ("empty nodes", "lab: x\nnodes:\n", 2, ["nodes: the lab has no nodes"]),
    ("nodes as list", "lab: x\nnodes: [a, b]\n", 2, ["nodes: a list", "{a: {}, b: {}}"]),
    ("section as word", lab("fabric: shared\n"), 2, ["fabric: 'shared' stands where", "layout"]),
    ("node as number", "lab: x\nnodes:\n  a: {}\n  b: 2\n", 4, ["node b: 2 stands where"]),
    ("unknown key", lab("fabrik: {}\n"), 2, ["'fabrik' is not known", "did you mean fabric?"]),
    (
        "unknown fabric key",
        lab("fabric:\n  layout: shared\n  channelbytes: 2M\n"),
        4,
        ["fabric: the key 'channelbytes' is not known", "did you mean channel_bytes?"],
    ),
    ("unknown node key", node("memroy: 1G"), 4, ["node b: the key 'memroy'", "mean memory?"]),
    ("unlike any key", node("zzz: 1"), 4, ["node b: the key 'zzz'", "the keys here are kind"]),
    ("key of a section", lab("mtu: 9000\n"), 2, ["'mtu' is not known", "below 'network:'"]),
    ("key of another section", node("mtu: 9000"), 4, ["move it below 'network:'"]),
    ("key of the top", lab("fabric: {ssh: mesh}\n"), 2, ["move it to the top of the file"]),
    ("mac for all", lab("defaults: {mac: 02:00:00:00:00:01}\n"), 2, ["move it to the node"]),
    ("first of two", lab("fabric: {slots: 0}\nssh: none\n"), 2, ["slots"]),
    ("first in file", "lab: x\nnodes:\n  a: {bridge: 1}\nfabric: {slots: 0}\n", 3, ["bridge"]),
]

YAML_ERRORS = [
    ("twice a node", lab("", "  a: {}\n  b: {}\n  a: {}\n"), 5, ["node a is there", "line 3"]),
    ("twice a key", "lab: x\nnodes: {a: }\nlab: y\n", 3, ["the key lab is there", "line 1"]),
    ("twice in flow", node("cpus: 0, cpus: 1"), 4, ["node b: the key cpus is there", "line 4"]),
    ("tab as indent", "lab: x\nnodes:\n\ta: {}\n", 3, ["a tab stands", "replace"]),
    ("tab after colon", "lab:\tx\n", 1, ["a tab stands"]),
    ("open bracket", "lab: x\nnodes: {a: {}\n", 3, ["not valid YAML", "brackets"]),
    ("bad indent", "lab: x\n  nodes: {}\n", 2, ["not valid YAML", "indentation"]),
    ("bad escape", 'lab: "\\q"\n', 1, ["not valid YAML"]),
    ("no such anchor", node("<<: *base"), 4, ["not valid YAML", "base"]),
    ("alias of itself", "lab: x\nnodes: &n\n  a: *n\n", 2, ["alias contains itself"]),
    (
        "merge of itself",
        "lab: x\nnodes:\n  a: &n\n    <<: *n\n",
        3,
        ["<< merges a mapping with itself"],
    ),
    ("merge of a word", lab("", "  a: &n\n    <<: word\n"), 4, ["<< merges mappings only"]),
    ("a second document", "lab: x\n---\nlab: y\n", 2, ["second YAML document"]),
    ("a list as key", "lab: x\nnodes:\n  [a, b]: {}\n", 3, ["can't be a key"]),
    ("tag of Python", "lab: !!python/name:os.system x\n", 1, ["YAML tag", "remove"]),
    ("tag that lies", node("cpus: !!int many"), 4, ["node b: cpus: 'many' does not fit"]),
    ("binary", "\x00\x01\x02", 1, ["control characters"]),
    ("nesting", "[" * 5000, None, ["nested too deeply"]),
    ("too long", "#" * (TEXT_MAX + 1), None, ["longer than"]),
]

NAMES = [
    ("capital", lab("", "  Web: {}\n"), 3, ["node Web: 'Web' is no name", "write web"]),
    ("underscore", "lab: my_lab\nnodes: {a: }\n", 1, ["lab: 'my_lab' is no name", "write my-lab"]),
    ("digit", lab("", "  a: {}\n  1: {}\n"), 4, ["node 1: '1' is no name", "with a letter"]),
    ("octal-like", lab("", "  010: {}\n"), 3, ["node 010: '010' is no name"]),
    ("dot", lab("", "  a.b: {}\n"), 3, ["'a.b' is no name"]),
    ("slash", "lab: ../x\nnodes: {a: }\n", 1, ["'../x' is no name"]),
    ("hyphen at the end", lab("", "  a-: {}\n"), 3, ["not ending with a hyphen"]),
    ("empty", lab("", "  '': {}\n"), 3, ["'' is no name"]),
    ("newline", 'lab: "x\\n"\nnodes: {a: }\n', 1, ["is no name"]),
    (
        "newline in a node",
        'lab: x\nnodes: {"a\\nb": {}}\n',
        2,
        ["node 'a\\nb': 'a\\nb' is no name"],
    ),
    ("newline twice", 'lab: x\n"a\\nb": 1\n"a\\nb": 1\n', 3, ["the key 'a\\nb' is there"]),
    ("localhost", lab("", "  localhost: {}\n"), 3, ["node localhost", "another name"]),
    ("16 characters", lab("", f"  {'n' * 16}: {{}}\n"), 3, ["16 characters long", "at most 15"]),
    ("long lab", f"lab: {'l' * 33}\nnodes: {{a: }}\n", 1, ["lab:", "33 characters", "at most 32"]),
    ("number", "lab: 1\nnodes: {a: }\n", 1, ["lab: 1 is not text", "and quotes"]),
    ("empty lab", "lab:\nnodes: {a: }\n", 1, ["lab: an empty value is not text"]),
    ("interface", node("interface: interface0123456"), 4, ["node b: interface", "at most 15"]),
    ("interface with slash", node("interface: a/b"), 4, ["'a/b' is no name for an interface"]),
    ("interface with percent", node("interface: vni%d"), 4, ["is no name for an interface"]),
    ("lo", node("interface: lo"), 4, ["node b: interface: 'lo'", "another name"]),
    ("interface as number", node("interface: 5"), 4, ["5 is not text"]),
]

VALUES = [
    ("layout", lab("fabric: {layout: per_chanel}\n"), 2, ["no layout", "mean per-channel?"]),
    ("other layout", lab("fabric: {layout: xyz}\n"), 2, ["choose per-channel, shared or pooled"]),
    ("layout as list", lab("fabric: {layout: [shared]}\n"), 2, ["a list is no layout"]),
    ("kind", node("kind: vm"), 4, ["node b: kind: 'vm' is no kind of node", "choose netns"]),
    ("kind in defaults", lab("defaults: {kind: netn}\n"), 2, ["defaults: kind", "mean netns?"]),
    ("ssh", lab("ssh: all\n"), 2, ["ssh: 'all' is no ssh mode", "mesh or host-only"]),
    ("ssh as bool", lab("ssh: true\n"), 2, ["ssh: true is no ssh mode"]),
    ("trust", lab("fabric: {trust: peer}\n"), 2, ["did you mean peers?"]),
    ("small channel", lab("fabric: {channel_bytes: 128K}\n"), 2, ["too small", "131200", "two of"]),
    ("one byte short", lab("fabric: {channel_bytes: 131199}\n"), 2, ["131199 is too small"]),
    ("huge channel", lab("fabric: {channel_bytes: 2G}\n"), 2, ["too large", "at most 1G"]),
    ("channel of MB", lab("fabric: {channel_bytes: 2MB}\n"), 2, ["'2MB' is not a size", "512M"]),
    ("no channel", lab("fabric: {channel_bytes: null}\n"), 2, ["an empty value is not a size"]),
    ("slots", lab("fabric: {slots: 1025}\n"), 2, ["fabric: slots: 1025", "from 2 to 1024"]),
    ("slots too few", lab("fabric: {slots: 2}\n", several(3)), 2, ["2 is too few for 3 nodes"]),
    ("polling", lab("fabric: {poll_us: -1}\n"), 2, ["poll_us: -1 is out of range", "microsec"]),
    ("idle", lab("fabric: {idle_reclaim: -1}\n"), 2, ["idle_reclaim: -1 is out of range"]),
    ("stalling", lab("fabric: {stall_us: 0}\n"), 2, ["stall_us: 0 is out of range"]),
    ("number as text", lab("fabric: {slots: many}\n"), 2, ["'many' is not a whole number"]),
    ("fraction", lab("fabric: {slots: 2.5}\n"), 2, ["2.5 is not a whole number"]),
    ("bool as number", lab("fabric: {slots: true}\n"), 2, ["true is not a whole number"]),
    ("enormous number", lab(f"fabric: {{slots: {'9' * 4000}}}\n"), 2, ["a number that large"]),
    ("mtu too small", lab("network: {mtu: 575, ipv6: null}\n"), 2, ["from 576 to 65521"]),
    ("mtu too large", lab("network: {mtu: 65522}\n"), 2, ["network: mtu: 65522 is out of range"]),
    ("mtu and IPv6", lab("network: {mtu: 1279}\n"), 2, ["too small for IPv6", "1280"]),
    ("bridge", node("bridge: yes"), 4, ["node b: bridge: 'yes' is neither", "true or false"]),
    ("offload", node("offload: 1"), 4, ["node b: offload: 1 is neither true nor false"]),
    ("memory as list", node("memory: [1G]"), 4, ["node b: memory: a list is not a size"]),
    ("memory as fraction", node("memory: 1.5G"), 4, ["'1.5G' is not a size"]),
    ("negative memory", node("memory: -1"), 4, ["node b: memory: -1 is too small"]),
    ("little memory", node("memory: 8M"), 4, ["8M is too little", "kind netns", "at least 32M"]),
    ("little by default", lab("defaults: {memory: 8M}\n"), 2, ["defaults: memory: 8M is too l"]),
    ("cpus as word", node("cpus: all"), 4, ["'all' is no list of CPUs", "leave cpus out"]),
    ("cpus empty", node("cpus: []"), 4, ["node b: cpus: the list is empty"]),
    ("cpu twice", node("cpus: [1, 1]"), 4, ["CPU 1 is there twice"]),
    ("cpu as text", node("cpus: [one]"), 4, ["'one' is not the number of a CPU"]),
    ("cpu as bool", node("cpus: [true]"), 4, ["true is not the number of a CPU"]),
    ("negative cpu", node("cpus: [-1]"), 4, ["no CPU -1"]),
    ("backward range", node("cpus: 3-1"), 4, ["'3-1' is no list of CPUs"]),
    ("endless range", node("cpus: 0-99999999999"), 4, ["no list of CPUs"]),
]

ADDRESSES = [
    ("mac", node("mac: 52:54:00:12:34"), 4, ["node b: mac", "no MAC address", "six pairs"]),
    ("mac of letters", node("mac: gg:54:00:12:34:56"), 4, ["no MAC address"]),
    ("multicast mac", node("mac: 01:00:5e:00:00:01"), 4, ["multicast", "even"]),
    ("broadcast mac", node("mac: FF:FF:FF:FF:FF:FF"), 4, ["ff:ff:ff:ff:ff:ff is a multicast"]),
    ("zero mac", node("mac: 00:00:00:00:00:00"), 4, ["all-zero"]),
    (
        "mac clash",
        lab("", "  a: {mac: 02:00:00:00:00:0A}\n  b: {mac: 02-00-00-00-00-0a}\n"),
        4,
        ["node b: mac: 02:00:00:00:00:0a belongs to node a already, on line 3"],
    ),
    (
        "address clash",
        lab("", "  a: {ipv4: 10.77.0.9}\n  b: {ipv4: 10.77.0.9/24}\n"),
        4,
        ["node b: ipv4: 10.77.0.9 belongs to node a already, on line 3"],
    ),
    (
        "address clash in IPv6",
        lab("", "  a: {ipv6: 'fd77::9'}\n  b: {ipv6: 'fd77:0::0009'}\n"),
        4,
        ["node b: ipv6: fd77::9 belongs to node a"],
    ),
    ("address", node("ipv4: 10.77.0.256"), 4, ["'10.77.0.256' is no IPv4 address"]),
    ("address of other family", node("ipv4: 'fd77::1'"), 4, ["is no IPv4 address"]),
    ("scoped address", node("ipv6: fe80::1%eth0"), 4, ["is no IPv6 address"]),
    ("address as number", node("ipv4: 10"), 4, ["10 is no IPv4 address"]),
    ("outside", node("ipv4: 10.78.0.1"), 4, ["10.78.0.1 is not in the subnet 10.77.0.0/24"]),
    ("outside in IPv6", node("ipv6: 'fd78::1'"), 4, ["fd78::1 is not in the subnet fd77::/64"]),
    ("the subnet", node("ipv4: 10.77.0.0"), 4, ["the address of the subnet itself"]),
    ("the anycast", node("ipv6: 'fd77::'"), 4, ["the address of the subnet itself"]),
    ("broadcast", node("ipv4: 10.77.0.255"), 4, ["the broadcast address"]),
    ("other prefix", node("ipv4: 10.77.0.5/16"), 4, ["another prefix length", "write 10.77.0.5"]),
    (
        "no such family",
        lab("network: {ipv6: null}\n", "  a: {ipv6: 'fd77::1'}\n"),
        4,
        ["node a: ipv6", "has no subnet", "leave the address out"],
    ),
    ("subnet", lab("network: {ipv4: 10.77.0.0}\n"), 2, ["is no IPv4 subnet", "10.77.0.0/24"]),
    ("subnet of other family", lab("network: {ipv4: 'fd77::/64'}\n"), 2, ["no IPv4 subnet"]),
    ("subnet with mask", lab("network: {ipv4: 10.0.0.0/255.0.0.0}\n"), 2, ["no IPv4 subnet"]),
    ("prefix too long", lab("network: {ipv6: 'fd77::/129'}\n"), 2, ["no IPv6 subnet"]),
    ("host bits", lab("network: {ipv4: 10.77.0.1/24}\n"), 2, ["within a subnet", "10.77.0.0/24"]),
    ("loopback", lab("network: {ipv4: 127.0.0.0/8}\n"), 2, ["no subnet for nodes", "private"]),
    ("multicast", lab("network: {ipv6: 'ff02::/64'}\n"), 2, ["no subnet for nodes"]),
    ("everything", lab("network: {ipv4: 0.0.0.0/0}\n"), 2, ["no subnet for nodes"]),
    ("reserved", lab("network: {ipv4: 240.0.0.0/8}\n"), 2, ["no subnet for nodes"]),
    ("link-local", lab("network: {ipv6: 'fe80::/64'}\n"), 2, ["link-local", "fd77::/64"]),
    (
        "small subnet",
        lab("network: {ipv4: 10.77.0.0/30}\n", several(3)),
        2,
        ["10.77.0.0/30 has 2 addresses for 3 nodes", "prefix length 29 or less"],
    ),
    (
        "small subnet in IPv6",
        lab("network: {ipv6: 'fd77::/127'}\n", several(3)),
        2,
        ["fd77::/127 has 2 addresses for 3 nodes", "length 126 or less"],
    ),
    ("default subnet too small", lab("", several(255)), 1, ["10.77.0.0/24 has 254", "255 nodes"]),
    (
        "mesh without addresses",
        lab("network: {ipv4: null, ipv6: null}\nssh: mesh\n"),
        3,
        ["ssh: nodes can't log in to each other", "host-only"],
    ),
]

MACHINE = [
    ("cpu", node("cpus: [0, 2]"), 4, ["node b: cpus: this machine has no CPU 2", "from 0-1"]),
    ("cpus", node("cpus: 1-3"), 4, ["has no CPUs 2-3"]),
    ("cpu by default", lab("defaults:\n  cpus: [5]\n"), 3, ["no CPU 5"]),
    ("memory", node("memory: 5G"), 4, ["node b: memory: 5G is too much", "machine has 4096M"]),
    (
        "memory in all",
        lab("", "  a: {memory: 3G}\n  b: {memory: 1G}\n  c: {memory: 64M}\n"),
        5,
        ["node c: memory", "the nodes' memory comes to 4160M", "4096M"],
    ),
    ("memory by default", lab("defaults: {memory: 3G}\n"), 2, ["memory comes to 6144M"]),
    (
        "packet buffers",
        lab("fabric: {channel_bytes: 1G}\n", several(3)),
        2,
        ["fabric: channel_bytes: the packet buffers may come to 6144M"],
    ),
]

GUESTS = [
    ("root of netns", node("root: ./r"), 4, ["kind netns has no root", "kind: uml or qemu'"]),
    ("image of uml", node("kind: uml, image: x"), 4, ["node b: image: a node of kind uml has no"]),
    (
        "trust of qemu",
        node("kind: qemu, trusted_userland: true"),
        4,
        ["kind qemu has no trusted_userland", "write 'kind: uml'"],
    ),
    (
        "image and root",
        node("kind: qemu, image: /dev/null, root: /tmp"),
        4,
        ["node b: root: a node that boots the image /dev/null has no root besides it"],
    ),
    (
        "image and kernel",
        node("kind: qemu, image: /dev/null, kernel: '6.1'"),
        4,
        ["node b: kernel: a node that boots", "leave kernel out, or image"],
    ),
    ("image missing", node("kind: qemu, image: ./no.qcow2"), 4, ["node b: image: there is no /"]),
    ("image a directory", node("kind: qemu, image: /usr"), 4, ["/usr is no file; name a file"]),
    ("root missing", node("kind: uml, root: /no/where"), 4, ["root: there is no /no/where"]),
    ("root a file", node("kind: uml, root: /etc/passwd"), 4, ["is no directory; name a directory"]),
    ("root a list", node("kind: uml, root: [a]"), 4, ["a list is no directory", "./rootfs"]),
    ("empty image", node("kind: qemu, image: ''"), 4, ["'' is no path of a disk image"]),
    ("kernel as number", node("kind: uml, kernel: 7.2"), 4, ["7.2 is no version", "in quotes"]),
    (
        "owner beyond all users",
        node("kind: external, owner: '99999999999'"),
        4,
        ["node b: owner: '99999999999' is no user's number", "4294967294"],
    ),
    (
        "owner that is none",
        node("kind: external, owner: '4294967295'"),
        4,
        ["'4294967295' is no user's number"],
    ),
    ("owner as number", node("kind: external, owner: 5"), 4, ["5 is no user", "in quotes"]),
    ("little for uml", node("kind: uml, memory: 32M"), 4, ["kind uml", "at least 64M"]),
    ("little for qemu", node("kind: qemu, memory: 64M"), 4, ["kind qemu", "at least 128M"]),
]

CASES = GUESTS + STRUCTURE + YAML_ERRORS + NAMES + VALUES + ADDRESSES + MACHINE


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [case[1:] for case in CASES],
    ids=[case[0].replace(" ", "-") for case in CASES],
)
def test_bad_lab_file(text: str, line: int | None, words: list[str]) -> None:
    error = error_of(text)
    sentence = str(error)
    for word in words:
        assert word in sentence
    assert error.line == line, sentence
    place = "x.yaml: " if line is None else f"x.yaml:{line}: "
    assert sentence == f"{place}{error.problem}; {error.remedy}"
    assert "\n" not in sentence
    assert error.exit_code == 2


def test_aliases_cannot_multiply_without_bound() -> None:
    bomb = "a: &a0 [x, x]\n" + "".join(
        f"k{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
    )
    assert "values" in str(error_of(bomb))
    merges = "n: &m0 {x: 1}\n" + "".join(
        f"k{i}: &m{i} {{<<: [{', '.join([f'*m{i - 1}'] * 9)}]}}\n" for i in range(1, 12)
    )
    assert "values" in str(error_of(merges))


def test_too_few_descriptors() -> None:
    plan = read_plan({"lab": "x", "nodes": dict.fromkeys(f"n{i}" for i in range(64))})
    enough = MachineFacts(frozenset({0}), 64 << 30, plan.descriptors)
    check_machine(plan, enough)
    few = MachineFacts(frozenset({0}), 64 << 30, plan.descriptors - 1)
    with pytest.raises(PlatformError) as caught:
        check_machine(plan, few)
    assert "64 nodes need about 9152 file descriptors" in str(caught.value)
    assert "ulimit" in str(caught.value)


def test_errors_of_a_dictionary_have_no_line() -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"lab": "x"}, "the lab: the key nodes is missing"),
        ({"lab": "x", "nodes": {"a": {"memry": 1}}}, "node a: the key 'memry' is not known"),
        ({"lab": "x", "nodes": {"a": {"cpus": {0}}}}, "node a: cpus: a list is not the number"),
        ({"lab": "x", "nodes": {1: {}}}, "1 is not text"),
        ({"lab": "x", "nodes": {"a": {2: 3}}}, "node a"),
        ({"lab": "x", "nodes": {"a": {}}, "fabric": object()}, "fabric"),
        ({"lab": "x", "nodes": {"a": {"ipv4": "1.2.3.4"}}}, "not in the subnet"),
    ]
    for data, words in cases:
        with pytest.raises(LabFileError) as caught:
            read_plan(data)
        assert str(caught.value).startswith("<memory>: ")
        assert words in str(caught.value)
        assert caught.value.line is None


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    junk = tmp_path / "junk.yaml"
    junk.write_bytes(b"lab: x\n" + bytes(range(128, 256)))
    long = tmp_path / "long.yaml"
    long.write_bytes(b"#" * (TEXT_MAX + 2))
    for path, line, words in [
        (tmp_path / "absent.yaml", None, "no such file"),
        (tmp_path, None, "a directory"),
        (tmp_path / "junk.yaml" / "below", None, "can't be read"),
        (junk, 2, "not text in UTF-8"),
        (long, None, "longer than"),
        (Path("/dev/zero"), None, "longer than"),
        (tmp_path / "zero\0byte", None, "can't be read"),
    ]:
        with pytest.raises(LabFileError, match=words) as caught:
            load_lab(path)
        assert (caught.value.file, caught.value.line) == (str(path), line)


def test_no_permission_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object, **_kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(LabFileError, match="no permission to read it; run 'chmod"):
        load_lab(tmp_path / "x.yaml")


KEYS = st.sampled_from(
    [
        "lab",
        "fabric",
        "network",
        "nodes",
        "defaults",
        "a",
        "b",
        "mac",
        "ipv4",
        "ipv6",
        "cpus",
        "memory",
        "mtu",
        "channel_bytes",
        "slots",
        "kind",
        "interface",
        "<<",
        "no",
        "1",
    ]
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from(["10.77.0.5", "fd77::/64", "02:00:00:00:00:01", "2M", "0-1", "netns", "x"])
)
VALUE_TREES: st.SearchStrategy[Any] = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=5)
)


@settings(deadline=None, max_examples=300)
@given(
    st.text(max_size=80) | st.text(alphabet="abclnodes: {}[]&*!<>|-?%@\"'#,~\n\t0129", max_size=120)
)
@example("a: &x\n  <<: *x\n")
@example("%YAML 1.1\n---\nlab: no\nnodes: {a: {mac: 52:54:00:12:34:56}}\n")
@example("? \n")
@example("!!binary x")
@example("a: !!float x")
@example("lab: x\nnodes: !!set {a, b}\n")
def test_no_text_causes_another_error(text: str) -> None:
    with contextlib.suppress(LabFileError):
        load(text, TWO)


@settings(deadline=None, max_examples=300)
@given(st.dictionaries(KEYS, VALUE_TREES, max_size=6))
def test_no_dictionary_causes_another_error(data: dict[str, Any]) -> None:
    with contextlib.suppress(LabFileError):
        read_plan({"lab": "x", "nodes": {"a": {}}} | data)
    with contextlib.suppress(LabFileError):
        lab_from_dict(data)
