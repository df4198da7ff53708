# SPDX-License-Identifier: Apache-2.0
"""A process of the lab's: which one it is, whether it runs, what it costs."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass

from mint_vni.nodes.proc import kill_process, open_process, process_start_time, wait_ended


@dataclass(frozen=True)
class Process:
    """A process by pid and start time.

    Attributes:
        pid: its pid on the host.
        start: when it started, see :func:`mint_vni.nodes.proc.process_start_time`.
    """

    pid: int
    start: int

    def alive(self) -> bool:
        """Whether it still runs (a zombie does not)."""
        return process_start_time(self.pid) == self.start

    def pidfd(self) -> int | None:
        """A descriptor that is readable once it has ended; None: it has ended."""
        return open_process(self.pid, self.start)

    def kill(self, deadline: float) -> bool:
        """SIGKILL it and wait until ``deadline`` (``time.monotonic()``); whether it has ended."""
        return kill_process(self.pid, self.start, deadline)

    def wait(self, deadline: float) -> bool:
        """Wait until ``deadline`` for its end, and reap it; whether it has ended."""
        fd = self.pidfd()
        ended = True
        if fd is not None:
            try:
                ended = wait_ended(fd, deadline)
            finally:
                os.close(fd)
        self.reap()
        return ended

    def reap(self) -> None:
        """If it is our child and has ended, take its exit status."""
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, os.WNOHANG)

    def cpu_seconds(self) -> float:
        """CPU time it has used, seconds; 0 when it is gone."""
        try:
            with open(f"/proc/{self.pid}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def private_bytes(self) -> int:
        """Memory that belongs to it alone, bytes; 0 when it is gone."""
        total = 0
        try:
            with open(f"/proc/{self.pid}/smaps_rollup", "rb") as file:
                for line in file:
                    if line.startswith((b"Private_Clean:", b"Private_Dirty:")):
                        total += int(line.split()[1]) * 1024
        except OSError:
            return 0
        return total
