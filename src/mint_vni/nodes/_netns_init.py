# SPDX-License-Identifier: Apache-2.0
"""Becomes a namespace node: run as ``python -I -S _netns_init.py FD`` by `mint_vni.nodes.netns`.

A script of its own, with the standard library alone, because namespaces of a whole process are
made here and a supervisor with threads can neither do that to itself nor fork. It imports nothing
of the package. FD is a SOCK_SEQPACKET socket to the supervisor; each message is one JSON object::

    supervisor -> {"name": …, …}      what to become, see `mint_vni.nodes.netns`
    script     -> {"pid": N}          the node's first process, by the host's count; then it ends
    node       -> {"ready": true}     its namespaces and mounts are as they should be
    supervisor -> {"go": true}        the interface is up, the journal written: go on
    node       -> {"sshd": true}      with a pidfd of sshd attached
    node       -> end of file         it has become the init, below
    either     -> {"error": "…"}      instead of any of these; it has ended

Until "go" the node ends when the supervisor does (it reads the end of file), so a supervisor killed
half-way leaves nothing behind. After "go" it depends on nobody.

The first process of a PID namespace inherits orphans and has to reap them. Here it ignores SIGCHLD,
so that the kernel does so, and becomes ``sleep infinity``: that survives an exec, nothing runs,
and it costs 110 KiB of private memory. ``catatonit -P`` would cost 50 KiB, one more package, and
ends the node at a SIGTERM from inside, where sleep, which has no handler, is unkillable; this
interpreter would cost 4.5 MiB.
"""

# ruff: noqa: T201
# The log is standard error. There is no pathlib here: it takes as long to import as all the rest.

import contextlib
import ctypes
import fcntl
import json
import os
import signal
import socket
import sys

# linux/sched.h
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
NAMESPACES = (
    CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID | CLONE_NEWNET
)

# linux/mount.h
MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_REMOUNT = 0x20
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x40000
MNT_DETACH = 0x2
NO_PROGRAMS = MS_NOSUID | MS_NODEV | MS_NOEXEC

#: The node's own files, in its own /run: bound over those of the host from here.
PRIVATE = "/run/mint-node"

#: Where the two logs stay open in the init, so that a later supervisor finds them.
SSHD_LOG_FD = 3

libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Talk with the supervisor, make the namespaces, fork the node's first process."""
    # Out of the way of the descriptors that the init keeps.
    fd = fcntl.fcntl(int(sys.argv[1]), fcntl.F_DUPFD_CLOEXEC, 20)
    channel = socket.socket(fileno=fd)
    os.close(int(sys.argv[1]))
    try:
        request = json.loads(channel.recv(1 << 23) or b"null")
        if request is None:
            os._exit(1)
        reset_process(request)
        check("unshare its namespaces", libc.unshare(NAMESPACES))
        for path, value in request["sysctls"].items():
            write(path, value)
        told, tell = os.pipe()
        pid = os.fork()
        if pid:
            say(channel, {"pid": pid})
            os._exit(0)
        # Whatever happens from here on, the supervisor knows this process already.
        os.close(tell)
        os.read(told, 1)
        os.close(told)
        os.setsid()
        become_node(request)
        say(channel, {"ready": True})
        if not channel.recv(1 << 16):
            os._exit(1)
        pidfd = start_sshd(request)
        socket.send_fds(channel, [json.dumps({"sshd": True}).encode()], [pidfd])
        become_init(request)
    except Exception as error:  # noqa: BLE001  # whatever it is, the supervisor is to hear of it
        say(channel, {"error": reason(error)})
        os._exit(1)


def say(channel: socket.socket, message: dict[str, object]) -> None:
    """Send one message; a supervisor that has gone is no error of its own."""
    with contextlib.suppress(OSError):
        channel.send(json.dumps(message).encode())


def reason(error: Exception) -> str:
    """Describe an error in words for a user."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror + (f": {error.filename}" if error.filename else "")
    return f"{type(error).__name__}: {error}"


def check(what: str, result: int) -> None:
    """Raise OSError if a C function failed."""
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"cannot {what}: {os.strerror(code)}")


def write(path: str, text: str) -> None:
    """Write a kernel setting, naming it when the kernel refuses."""
    try:
        with open(path, "w") as file:
            file.write(text)
    except OSError as error:
        raise OSError(error.errno, f"cannot write {text} to {path}: {error.strerror}") from error


def reset_process(request: dict) -> None:  # type: ignore[type-arg]
    """Forget what the supervisor had set for itself; join the node's cgroups."""
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        with contextlib.suppress(OSError):  # of those that the C library keeps for itself
            signal.signal(number, signal.SIG_DFL)
    os.umask(0o022)
    os.chdir("/")
    for path in request["cgroups"]:
        write(path, "0")
    if request["affinity"]:
        os.sched_setaffinity(0, request["affinity"])


def become_node(request: dict) -> None:  # type: ignore[type-arg]
    """Give the node its name and its view of the file system.

    Nothing of this reaches the host: the mounts are made private before the first of them changes,
    and files of the host are covered, never written.
    """
    socket.sethostname(request["name"])
    mount(None, "/", None, MS_REC | MS_PRIVATE)
    replace("proc", "/proc", NO_PROGRAMS)
    mount_sys(request["cgroup_mounts"])
    size = request["tmpfs_bytes"]
    mount_tmpfs("/run", 0o755, size)
    mount_tmpfs("/tmp", 0o1777, size)  # noqa: S108  # the place, not a file in it
    shm = "/dev/shm"  # noqa: S108  # the same
    if os.path.isdir(shm):
        mount_tmpfs(shm, 0o1777, size)
    if os.path.ismount("/dev/mqueue"):
        replace("mqueue", "/dev/mqueue", NO_PROGRAMS)
    # sshd records logins in wtmp and lastlog: the host's are none of the node's business.
    if os.path.isdir("/var/log"):
        mount_tmpfs("/var/log", 0o755, size)
        with open("/var/log/lastlog", "wb"):
            pass  # sshd complains at each login when there is none
    for path, mode in (("/run/sshd", 0o755), ("/run/lock", 0o1777), (PRIVATE, 0o755)):
        make_directory(path, mode)
    cover_files(request)
    cover_shadow()
    cover_homes()


def mount(
    source: "str | None", target: str, kind: "str | None", flags: int, options: "str | None" = None
) -> None:
    """Attach a file system to the tree; an error names the place."""
    arguments = [None if a is None else a.encode() for a in (source, target, kind, options)]
    result = libc.mount(*arguments[:3], ctypes.c_ulong(flags), arguments[3])
    check(f"mount {kind or source} on {target}", result)


def mount_tmpfs(target: str, mode: int, size: int) -> None:
    """Mount an empty file system of bounded size, charged to the node's memory."""
    replace("tmpfs", os.path.realpath(target), MS_NOSUID | MS_NODEV, f"mode={mode:o},size={size}")


def replace(kind: str, target: str, flags: int, options: "str | None" = None) -> None:
    """Mount a new file system in place of what the host has mounted there, and below.

    Taking the host's away, instead of only covering it, keeps the node's table of mounts readable,
    for programs too, and lets the host unmount what is its own.
    """
    while os.path.ismount(target) and libc.umount2(target.encode(), MNT_DETACH) == 0:
        pass
    mount(kind, target, kind, flags, options)


def make_directory(path: str, mode: int) -> None:
    """Create a directory with exactly these permissions."""
    os.mkdir(path)
    os.chmod(path, mode)


def cover(path: str, by: str) -> None:
    """Have the node see `by` where the host has `path`, if it has it."""
    if os.path.exists(path):
        mount(by, os.path.realpath(path), None, MS_BIND)


def mount_sys(cgroup_mounts: "list[list[str]]") -> None:
    """Mount a sysfs that shows the node's interfaces, and the node's own cgroups in it.

    The cgroup namespace makes the node's cgroup the root of what is mounted here. It is read-only:
    limits are the lab's.
    """
    replace("sysfs", "/sys", NO_PROGRAMS)
    root = "/sys/fs/cgroup"
    if any(name for name, _, _ in cgroup_mounts):
        mount("tmpfs", root, "tmpfs", NO_PROGRAMS, "mode=755,size=64k")
    for name, kind, options in cgroup_mounts:
        target = os.path.join(root, name) if name else root
        os.makedirs(target, exist_ok=True)
        try:
            mount("cgroup", target, kind, NO_PROGRAMS, options or None)
            # The flag of this mount, not of the hierarchy: others have that mounted too.
            mount(None, target, None, MS_BIND | MS_REMOUNT | MS_RDONLY | NO_PROGRAMS)
        except OSError as error:  # the node can do without seeing its limits
            print(reason(error), file=sys.stderr, flush=True)


def cover_files(request: dict) -> None:  # type: ignore[type-arg]
    """Put the files that the lab made for the node where programs look for them."""
    files = f"{PRIVATE}/files"
    for path, (mode, text) in request["files"].items():
        target = files + path
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with open(target, "w") as file:
            os.fchmod(file.fileno(), mode)
            file.write(text)
    for path in request["cover"]:
        if not os.path.exists(path) and path in request["required"]:
            raise FileNotFoundError(
                2, f"the host has no {path} that the node's could cover; create it"
            )
        cover(path, files + path)


def cover_shadow() -> None:
    """Hide the host's password hashes, and leave all accounts open for keys alone.

    ``*`` means: no password fits. sshd would take ``!`` for a locked account, without PAM.
    """
    if not os.path.exists("/etc/shadow"):
        return
    status = os.stat("/etc/shadow")
    path = f"{PRIVATE}/shadow"
    with open("/etc/passwd", errors="surrogateescape") as accounts:
        names = [line.split(":")[0] for line in accounts if ":" in line]
    with open(path, "w", errors="surrogateescape") as shadow:
        os.fchmod(shadow.fileno(), status.st_mode & 0o777)
        os.fchown(shadow.fileno(), status.st_uid, status.st_gid)
        shadow.writelines(f"{name}:*:19000:0:99999:7:::\n" for name in names)
    cover("/etc/shadow", path)


def cover_homes() -> None:
    """Hide the SSH keys and settings of all users of the host behind empty directories."""
    make_directory(f"{PRIVATE}/homes", 0o755)
    with open("/etc/passwd", errors="surrogateescape") as accounts:
        entries = [line.rstrip("\n").split(":") for line in accounts]
    homes = {entry[5] for entry in entries if len(entry) == 7 and entry[5].startswith("/")}
    for number, home in enumerate(sorted(homes)):
        path = os.path.join(home, ".ssh")
        if not os.path.isdir(path):
            continue
        status = os.stat(path)
        empty = f"{PRIVATE}/homes/{number}"
        make_directory(empty, 0o700)
        os.chown(empty, status.st_uid, status.st_gid)
        cover(path, empty)


def start_sshd(request: dict) -> int:  # type: ignore[type-arg]
    """Start the node's sshd.

    Returns:
        A pidfd of it.
    """
    log = request["sshd_log"]
    pid = os.posix_spawn(
        request["sshd"][0],
        request["sshd"],
        {"PATH": request["path"], "LANG": "C.UTF-8"},
        file_actions=[(os.POSIX_SPAWN_DUP2, log, 2), (os.POSIX_SPAWN_CLOSE, log)],
        setsid=True,
    )
    return os.pidfd_open(pid)


def become_init(request: dict) -> None:  # type: ignore[type-arg]
    """Turn into the process that reaps the node's orphans and is its life; never returns."""
    log = request["sshd_log"]
    if log != SSHD_LOG_FD:
        os.dup2(log, SSHD_LOG_FD)
        os.close(log)
    os.set_inheritable(SSHD_LOG_FD, True)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    # The last one that the kernel should choose when the node's memory runs out. That takes
    # CAP_SYS_RESOURCE; without it, it still is the smallest, and so hardly ever chosen.
    with contextlib.suppress(OSError):
        write("/proc/self/oom_score_adj", "-999")
    os.execv(request["sleep"], ["sleep", "infinity"])


if __name__ == "__main__":
    main()
