# SPDX-License-Identifier: Apache-2.0
"""Runs a program in a node, on the caller's terminal: ``python -I -S _enter_tty.py JSON``.

A script of its own, with the standard library alone, made into a command line by
`mint_vni.nodes.enter.exec_argv`; see there for what is in JSON.

A terminal sends what is typed as signals (interrupt, quit, stop) to its foreground process group,
and lets no other group read. Seen from inside the node, a group led by a process outside has no id
(it is 0), and a shell could not hand the terminal back to it. So the program gets a process group
of its own, inside, which is put into the foreground; this process does what a shell does for a job:
it waits, is stopped when the program is stopped, continues it, takes the terminal back at the end,
and ends in the same way as the program: with its status, or by its signal.

Only the program is in the node's control groups; this interpreter is not charged to the node.
"""

import contextlib
import ctypes
import json
import os
import signal
import sys
from pathlib import Path

# linux/sched.h; setns(2) takes any number of them with a pidfd, since Linux 5.8
NAMESPACES = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x20000000 | 0x40000000
PR_SET_PDEATHSIG = 1
TERMINAL = 0

CANNOT_ENTER = 125
CANNOT_RUN = 126
NOT_FOUND = 127

libc = ctypes.CDLL(None, use_errno=True)


def main() -> int:
    """Enter the node, run the program and see it through.

    Returns:
        The exit status.
    """
    request = json.loads(sys.argv[1])
    try:
        groups = [os.open(path, os.O_WRONLY | os.O_CLOEXEC) for path in request["cgroups"]]
        enter(request["pid"], request["start_time"])
    except OSError as error:
        return complain(f"node {request['name']} cannot be entered: {error}", CANNOT_ENTER)
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU):
        signal.signal(number, signal.SIG_IGN)
    foreground = os.tcgetpgrp(TERMINAL) == os.getpgrp()
    child = os.fork()
    if child == 0:
        os._exit(become(request, groups, foreground))
    return see_through(child)


def complain(text: str, status: int) -> int:
    """Say what went wrong.

    Returns:
        `status`.
    """
    sys.stderr.write(text + "\n")
    return status


def enter(pid: int, start_time: int) -> None:
    """Enter all namespaces of exactly this process; the PID namespace with the next fork."""
    pidfd = os.pidfd_open(pid)
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    if int(fields[19]) != start_time:
        raise ProcessLookupError(3, "it has ended")
    if libc.setns(pidfd, NAMESPACES) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    os.close(pidfd)


def become(request: dict, groups: "list[int]", foreground: bool) -> int:  # type: ignore[type-arg]
    """Turn into the program.

    Returns:
        The exit status, if it can't be run.
    """
    try:
        # The terminal has gone, as far as the program can tell, when this process's parent has.
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGHUP, 0, 0, 0)
        for group in groups:
            os.write(group, b"0")
        if request["affinity"]:
            os.sched_setaffinity(0, request["affinity"])
        os.setpgid(0, 0)
        if foreground:
            os.tcsetpgrp(TERMINAL, os.getpgrp())
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            with contextlib.suppress(OSError):
                signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        os.chdir(request["cwd"])
    except OSError as error:
        return complain(f"node {request['name']} cannot be entered: {error}", CANNOT_ENTER)
    program = request["args"][0]
    try:
        os.execvpe(program, request["args"], request["env"])
    except FileNotFoundError:
        return complain(f"{program}: not found in node {request['name']}", NOT_FOUND)
    except OSError as error:
        return complain(f"{program}: {error.strerror}", CANNOT_RUN)


def see_through(child: int) -> int:
    """Do for the program what a shell does for a job, until it ends.

    Returns:
        Its exit status, unless a signal ended it: then the same one ends this process.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _frame: pass_on(child, number))
    while True:
        _, status = os.waitpid(child, os.WUNTRACED)
        give_terminal(child, os.getpgrp())
        if not os.WIFSTOPPED(status):
            break
        os.kill(os.getpid(), signal.SIGSTOP)
        # Somebody continued this process; in the foreground, maybe.
        give_terminal(os.getpgrp(), child)
        pass_on(child, signal.SIGCONT)
    if os.WIFSIGNALED(status):
        ended_by = os.WTERMSIG(status)
        with contextlib.suppress(OSError):  # SIGKILL has only one disposition
            signal.signal(ended_by, signal.SIG_DFL)
        os.kill(os.getpid(), ended_by)
    return os.waitstatus_to_exitcode(status)


def pass_on(child: int, number: int) -> None:
    """Signal the program's process group."""
    with contextlib.suppress(OSError):
        os.killpg(child, number)


def give_terminal(old: int, new: int) -> None:
    """Have `new` in the foreground of the terminal, if `old` is there.

    SIGTTOU is ignored: that allows it to a process in the background.
    """
    with contextlib.suppress(OSError):
        if os.tcgetpgrp(TERMINAL) == old:
            os.tcsetpgrp(TERMINAL, new)


if __name__ == "__main__":
    sys.exit(main())
