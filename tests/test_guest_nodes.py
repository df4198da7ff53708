# SPDX-License-Identifier: Apache-2.0
"""What nodes of kinds uml and qemu are, and how they are confined: real guests that are left as they are."""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from guest_nodes import KINDS, MEMORY, READY_S, guest, need, processes, status_field
from mint_vni.errors import NodeError
from mint_vni.nodes import KINDS as NODE_KINDS
from mint_vni.nodes import Node
from mint_vni.nodes.guest.agent_client import AGENT_SOCKET, AgentClient, connect_in
from node_bench import NAMESPACES, Bench, link, out, run, soon, ssh, until

PROGRAMS = {"uml": ("linux",), "qemu": ("qemu-system-x86", "virtiofsd")}


@pytest.fixture(scope="module", params=KINDS)
def node(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Node]:
    """A guest that is ready."""
    need(request.param)
    bench = Bench(tmp_path_factory.mktemp(request.param), names=("a",))
    made = guest(bench, request.param)
    try:
        made.start()
        made.wait_ready(soon(READY_S))
        yield made
    finally:
        made.stop(soon())
    assert bench.leftovers() == []


def agent(node: Node) -> AgentClient:
    return AgentClient("a", node.context.state_dir)


def test_it_is_another_kernel(node: Node) -> None:
    assert out(node, "uname", "-r") != os.uname().release
    assert out(node, "uname", "-r") == node.status()["guest"]["kernel"]
    assert out(node, "hostname") == "a"
    assert "Linux version" in node.logs()["node"]
    assert "Server listening" in node.logs()["sshd"]


def test_ssh_answers(node: Node) -> None:
    done = ssh(node, "uname", "-n")
    assert (done.returncode, done.stdout) == (0, "a\n"), done


def test_interface(node: Node) -> None:
    found = json.loads(out(node, "ip", "-j", "address", "show", "vni0"))[0]
    assert (found["address"], found["mtu"]) == (node.plan.mac, 1500)
    assert {a["local"] for a in found["addr_info"]} >= {"10.99.0.1", "fd99::1"}
    driver = out(node, "readlink", "/sys/class/net/vni0/device/driver").rpartition("/")[2]
    assert driver == "virtio_net", "the kernel's own"


def test_memory_is_what_was_asked_for(node: Node) -> None:
    total = int(re.findall(r"MemTotal:\s*(\d+)", out(node, "cat", "/proc/meminfo"))[0]) << 10
    assert 0.8 * MEMORY[node.kind] < total <= MEMORY[node.kind]
    status = node.status()
    assert status["memory_limit"] == MEMORY[node.kind]
    if status["memory_enforced_by"] != "none":
        assert status["memory_used"] > 0


def test_status(node: Node) -> None:
    status = node.status()
    assert json.loads(json.dumps(status)) == status
    assert (status["state"], status["pid"], status["kind"]) == ("running", node.pid, node.kind)
    about = status["guest"]
    assert about["ready"] and about["connected"] and about["link_up"] and not about["panicked"]
    assert about["agent_pid"] == processes(node)["agent"]
    assert about["kernel_version"]
    assert about["userland"] == "ptrace" if node.kind == "uml" else about["accelerator"]


# ------------------------------------------------------------------ confinement


def test_processes_have_no_privileges(node: Node) -> None:
    context, found = node.context, processes(node)
    users = {"agent": context.agent_uid, "first": context.guest_uid}
    users |= dict.fromkeys(PROGRAMS[node.kind], context.guest_uid)
    assert context.agent_uid != context.guest_uid
    for name, uid in users.items():
        pid = found[name]
        for field in ("Uid", "Gid"):
            assert status_field(pid, field).split() == [str(uid)] * 4, name
        assert status_field(pid, "Groups") == "", name
        for field in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert int(status_field(pid, field), 16) == 0, (name, field)
        assert status_field(pid, "NoNewPrivs") == "1", name


def test_processes_are_in_namespaces_of_their_own(node: Node) -> None:
    found = processes(node)
    for name in NAMESPACES:
        host = link(f"/proc/self/ns/{name}")
        for program in ("first", *PROGRAMS[node.kind]):
            assert link(f"/proc/{found[program]}/ns/{name}") not in (None, host), (program, name)
    for name in ("net", "ipc"):
        assert link(f"/proc/{found['agent']}/ns/{name}") not in (
            None,
            link(f"/proc/self/ns/{name}"),
        )
    interfaces = Path(f"/proc/{node.pid}/net/dev").read_text().splitlines()[2:]
    assert [line.split(":")[0].strip() for line in interfaces] == ["lo"]


# What a guest's process may hold: its console and the like (sockets), its own memory and wake-ups,
# its log, and files of the view that it was given.
ALLOWED = re.compile(
    r"/dev/null|/dev/kvm|socket:.*|pipe:.*|anon_inode:\[(eventpoll|eventfd|signalfd|timerfd|kvm.*)\]"
    r"|/memfd:(mint-a|uml-userspace|memory-backend-memfd|memory).*|/tmp/.*|/proc(/.*)?|/"
    r"|/host(/.*)?|/uml|/virtiofsd"
)


def test_processes_hold_nothing_of_the_fabric(node: Node) -> None:
    for name, pid in processes(node).items():
        if name == "agent":
            continue
        held = [str(link(path)) for path in Path(f"/proc/{pid}/fd").iterdir()]
        assert [path for path in held if not ALLOWED.fullmatch(path)] == [], name
        if name == "first":
            assert set(held) == {"/dev/null", "/memfd:mint-a (deleted)"}


def test_nothing_of_the_host_can_be_written(node: Node) -> None:
    for name, pid in processes(node).items():
        if name == "agent":
            continue
        for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines():
            left, _, right = line.partition(" - ")
            point, options, kind = left.split()[4], left.split()[5].split(","), right.split()[0]
            assert (
                "ro" in options
                or (kind == "tmpfs" and point == "/tmp")
                or (point.startswith("/dev/") and "noexec" in options)
            ), line
            assert "nosuid" in options, line


def test_the_guests_root_gets_nowhere_on_the_host(node: Node) -> None:
    secret = Path("/etc/shadow").stat()
    assert not secret.st_mode & 0o004
    source = {"uml": ("hostfs", "none", "/mnt/host"), "qemu": ("virtiofs", "root", "/mnt")}
    kind, name, view = source[node.kind]
    out(node, "mount", "-t", kind, name, "/mnt")
    try:
        assert out(node, "cat", f"{view}/etc/hostname") == Path("/etc/hostname").read_text().strip()
        denied = run(node, "cat", f"{view}/etc/shadow")
        assert denied.returncode == 1 and "Permission denied" in denied.stderr
        written = run(node, "sh", "-c", f"echo x > {view}/etc/mint-test-{node.context.lab_id}")
        assert written.returncode != 0
        assert not Path(f"/etc/mint-test-{node.context.lab_id}").exists()
        assert out(node, "ls", "-A", f"{view}/proc", f"{view}/sys").split() == [
            f"{view}/proc:",
            f"{view}/sys:",
        ]
        if node.kind == "uml":
            seen = set(out(node, "ls", "-A", "/mnt").split())
            assert seen <= {"boot", "dev", "host", "lib", "mint-first", "proc", "run", "tmp", "uml"}
    finally:
        run(node, "umount", "/mnt")
    assert "$" not in out(node, "cat", "/etc/shadow"), "the guest's own has no hash"


def test_what_the_guest_writes_is_its_own(node: Node) -> None:
    name = f"/etc/mint-test-{node.context.lab_id}"
    out(node, "sh", "-c", f"echo mine > {name}; rm /etc/debian_version || true")
    assert out(node, "cat", name) == "mine"
    assert not Path(name).exists()
    assert Path("/etc/debian_version").exists()


# ------------------------------------------------------------------ agent


def test_an_external_client_is_refused(node: Node) -> None:
    path = node.context.state_dir / "io" / "vhost.sock"
    assert oct(path.stat().st_mode & 0o777) == "0o600"
    assert path.stat().st_uid == node.context.guest_uid
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(5)
        client.connect(str(path))
        assert client.recv(1) == b"", "one guest, one connection"
    assert node.status()["guest"]["connected"]
    assert out(node, "true") == ""


def test_the_agent_survives_nonsense(node: Node) -> None:
    for data in (
        b"x",
        b"[]",
        b"{}",
        b'{"op": "nope"}',
        b'{"op": "guest"}',
        b'{"op": "wait", "seconds": "x"}',
    ):
        with connect_in(node.context.state_dir, AGENT_SOCKET, socket.SOCK_SEQPACKET) as client:
            client.settimeout(5)
            client.send(data)
            assert "error" in json.loads(client.recv(65536)), data
    with pytest.raises(NodeError, match="a link is one descriptor"):
        agent(node).request("link")
    assert agent(node).request("status")["ready"]


def test_console(node: Node) -> None:
    """Several see it, latecomers get the last screenful, and what is typed arrives."""
    clients = []
    for _ in range(2):
        client = connect_in(node.context.state_dir, AGENT_SOCKET, socket.SOCK_SEQPACKET)
        client.settimeout(10)
        client.send(b'{"op": "console"}')
        assert json.loads(client.recv(4096)) == {"ok": True}
        clients.append(client)
    try:
        assert b"renamed from" in clients[0].recv(65536), "what was said before"
        out(node, "sh", "-c", "echo hello from the guest > /dev/console")
        for client in clients:
            seen = b""
            while b"hello from the guest" not in seen:
                seen += client.recv(65536)
        clients.pop(0).close()
        out(node, "sh", "-c", "echo again > /dev/console")
        until("the log has it", lambda: "again" in node.logs()["node"])
    finally:
        for client in clients:
            client.close()


def test_adoption(node: Node) -> None:
    """Another supervisor finds all that there is to know."""
    facts = json.loads(json.dumps(node.describe()))
    adopted = NODE_KINDS[node.kind].adopt(node.plan, node.context, facts, None)
    assert adopted.alive()
    assert out(adopted, "hostname") == "a"
    mine, theirs = node.status(), adopted.status()
    for volatile in ("memory_used",):
        mine.pop(volatile), theirs.pop(volatile)
    assert mine == theirs
    assert "Linux version" in adopted.logs()["node"]
    device = adopted.device()
    assert device.kind == "vhost-user"
    os.close(device.fd)
    adopted.wait_ready(soon())
    other = NODE_KINDS[node.kind].adopt(
        node.plan, node.context, facts | {"agent": [facts["agent"][0], 1]}, None
    )
    assert not other.alive()
    adopted._close_log()  # type: ignore[attr-defined]
