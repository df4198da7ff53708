# SPDX-License-Identifier: Apache-2.0
"""The public handles: a lab and its nodes."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mint_vni.errors import LabStateError, NodeError
from mint_vni.lab import paths
from mint_vni.lab.attach import attach
from mint_vni.lab.client import Client, Progress, start, the_only_lab
from mint_vni.lab.plan import MachineFacts, check_machine, read_plan
from mint_vni.nodes import console_argv, exec_argv, ssh_argv

if TYPE_CHECKING:
    from types import TracebackType

    from mint_vni.fabric.port import Port

_EXIT_S = 5.0  # for the supervisor's process to end, once all else is gone


class Node:
    """One Linux of a running lab.

    Attributes:
        name: its name.
        lab: the lab it belongs to.
    """

    def __init__(self, lab: Lab, name: str, facts: Mapping[str, Any]) -> None:
        """Use ``lab[name]``."""
        self.lab = lab
        self.name = name
        self._facts = dict(facts)

    def __repr__(self) -> str:
        return f"<Node {self.lab.name}/{self.name}>"

    def exec_argv(self, args: Sequence[str], *, tty: bool = False) -> list[str]:
        """A command line that runs ``args`` inside the node, when root executes it on the host.

        Not over the node's network: it works when that is broken.
        """
        return self._with_facts(lambda facts: exec_argv(facts, args, tty=tty))

    def ssh_argv(self, args: Sequence[str] = ()) -> list[str]:
        """A command line that logs in through the node's own sshd, with unmodified ssh."""
        return self._with_facts(lambda facts: ssh_argv(facts, args))

    def _with_facts(self, make: Callable[[Mapping[str, Any]], list[str]]) -> list[str]:
        """Make a command line, from newer facts if the node has been started again since."""
        try:
            return make(self._facts)
        except NodeError:
            facts = self.lab.facts(self.name)
            if facts == self._facts:
                raise
            self._facts = facts
            return make(facts)

    def console_argv(self) -> list[str]:
        """A command line that joins the caller's terminal to the node's console, for guests."""
        return console_argv(self._facts)

    def run(
        self,
        args: Sequence[str],
        *,
        input: str | bytes | None = None,  # noqa: A002 - the name that subprocess.run() has
        timeout: float | None = None,
        check: bool = True,
        text: bool = True,
    ) -> subprocess.CompletedProcess[Any]:
        """Run a program inside the node and wait for it.

        Args:
            args: the program and its arguments.
            input: what it reads on its standard input.
            timeout: seconds after which it is killed.
            check: raise when its exit status is not 0.
            text: streams are text (UTF-8), not bytes.

        Returns:
            What ``subprocess.run`` returns, with ``stdout`` and ``stderr``.

        Raises:
            NodeError: it failed (with ``check``), or the node has ended.
            subprocess.TimeoutExpired: it took too long.
        """
        done = subprocess.run(
            self.exec_argv(args),
            input=input,
            stdin=subprocess.DEVNULL if input is None else None,
            capture_output=True,
            timeout=timeout,
            text=text,
            check=False,
        )
        if check and done.returncode != 0:
            said = done.stderr if text else done.stderr.decode(errors="replace")
            last = said.strip().splitlines()[-1:] or ["(it said nothing)"]
            raise NodeError(f"node {self.name}: {args[0]} ended with {done.returncode}: {last[0]}")
        return done

    def popen(self, args: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Start a program inside the node; ``options`` as for ``subprocess.Popen``."""
        return subprocess.Popen(self.exec_argv(args), **options)

    def logs(self) -> dict[str, str]:
        """What the node, its sshd and its worker said, by source (``node``, ``sshd``, ``worker``)."""
        with Client(self.lab.name) as client:
            result: dict[str, str] = client.request("logs", node=self.name)
            return result


class Lab:
    """A running lab.

    ``with Lab.up("pair.yaml") as lab:`` takes it down at the end, whatever happens. All state is
    the supervisor's: every call asks it, nothing is cached but what can't change.

    Attributes:
        name: the lab's name.
    """

    def __init__(self, name: str) -> None:
        """Use :meth:`up` or :meth:`connect`."""
        self.name = name
        with Client(name) as client:
            self._facts: dict[str, dict[str, Any]] = client.request("facts")

    @classmethod
    def up(
        cls,
        source: str | Path | Mapping[str, Any],
        progress: Progress | None = None,
        ready: Callable[[Lab], None] | None = None,
    ) -> Lab:
        """Bring a lab up; returns when every node is ready.

        Args:
            source: path of a lab file, the text of one (more than one line), or a dictionary.
            progress: called with a sentence at each step.
            ready: called with the lab when every node is ready; it stays up if this returns. What
                comes later, an interrupt say, no longer undoes it.

        Raises:
            LabFileError: the file says something that cannot be.
            LabStateError: a lab of this name is up.
            PlatformError, NodeError, FabricError: it cannot be brought up; all was undone.
        """
        plan = read_plan(source)
        check_machine(plan, MachineFacts.here())
        with start(plan, progress) as keep:
            lab = cls(plan.name)
            if ready:
                ready(lab)
            keep()
        return lab

    @classmethod
    def connect(cls, name: str | None = None) -> Lab:
        """A lab that is up; without a name, the only one.

        Raises:
            LabStateError: there is no such lab, or none, or several.
        """
        return cls(name or the_only_lab())

    @staticmethod
    def names() -> list[str]:
        """Names of all labs recorded on this machine."""
        return paths.lab_names()

    def __enter__(self) -> Lab:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.down()

    def __repr__(self) -> str:
        return f"<Lab {self.name}>"

    def __getitem__(self, name: str) -> Node:
        try:
            return Node(self, name, self._facts[name])
        except KeyError:
            names = ", ".join(self._facts)
            raise LabStateError(f"lab {self.name} has no node {name}; it has {names}") from None

    def facts(self, name: str) -> dict[str, Any]:
        """What a node is at this moment, for `mint_vni.nodes`; asked for anew."""
        with Client(self.name) as client:
            self._facts = client.request("facts")
        return dict(self._facts[name])

    @property
    def nodes(self) -> list[Node]:
        """All nodes, in the order of the lab file."""
        return [self[name] for name in self._facts]

    def status(self) -> dict[str, Any]:
        """The lab's status, live; docs/cli.md has its shape."""
        with Client(self.name) as client:
            result: dict[str, Any] = client.request("status")
            return result

    def attach(self, name: str, mac: str | None = None) -> Port:
        """Become one more port of the lab, a Linux's equal on the fabric.

        Args:
            name: the port's name; must be free.
            mac: its MAC address; None: one is assigned.

        Returns:
            The port; close it (or use it as a context manager) to leave.

        Raises:
            LabStateError: the name or the MAC is taken, or the fabric has no slot left.
        """
        return attach(self.name, name, mac)

    def down(self) -> None:
        """Take the lab down, wholly; safe to repeat.

        Raises:
            NodeError: something could not be removed; it says what.
        """
        if self.name not in paths.lab_names():
            return
        try:
            client = Client(self.name)
        except LabStateError:
            if self.name not in paths.lab_names():
                return  # somebody else took it down meanwhile
            raise
        with client:
            problems = client.request("down")["problems"]
            client.await_end(_EXIT_S)
        if problems:
            raise NodeError(f"lab {self.name}: {'; '.join(problems)}; try: mint gc")
