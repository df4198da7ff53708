# SPDX-License-Identifier: Apache-2.0
"""Becomes a confined program: run as ``python -I -S _launch.py FD`` by `mint_vni.nodes.guest.launch`.

The program (User-Mode Linux, QEMU, virtiofsd) runs a guest that is hostile until proven otherwise.
So it gets namespaces of its own with nothing in them but what it needs, a user of its own without
any capability or group, and no descriptor but those that are handed to it.

A script of its own, with the standard library alone, for the reasons given in
`mint_vni.nodes._netns_init`. FD is a SOCK_SEQPACKET socket to the supervisor; each message is one
JSON object::

    supervisor -> {"name": …, …}      what to become, see `Confined`
    script     -> {"pid": N}          the first process, by the host's count; then it ends
    supervisor -> {"held": true}      it can end that process now: mount
    first      -> {"ready": true}     its namespaces and mounts are as they should be
    supervisor -> {"go": true}        the journal is written: go on
    both       -> end of file         the program runs
    either     -> {"error": "…"}      instead of any of these; it has ended

The first process of its PID namespace is ``mint-first`` (native/first.c), which ends when the program
does; with it all that the program started ends.

The mount tree is a small, read-only tmpfs that becomes the root; the host's is detached. In it are
files and directories of the host, each bound read-only at the place that was asked for, tmpfs of
bounded size, a few devices, and the /proc of the PID namespace. Of a view of the whole host the
pseudo file systems and what lies in /run and /tmp are taken away.
"""

# There is no pathlib here: it takes as long to import as all the rest.

import contextlib
import ctypes
import fcntl
import json
import os
import resource
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

# linux/prctl.h, linux/capability.h
PR_CAPBSET_DROP = 24
PR_SET_SECUREBITS = 28
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_CLEAR_ALL = 4
CAPABILITY_VERSION_3 = 0x20080522
# SECBIT_NOROOT, NO_SETUID_FIXUP, KEEP_CAPS (off), NO_CAP_AMBIENT_RAISE: all of them locked.
SECUREBITS_LOCKED = 0b11101111

#: Where the tree has mint-first.
FIRST = "/mint-first"

#: What of the host is no part of a view of its file system.
HIDDEN = (
    *("/proc", "/sys", "/dev", "/run", "/var/run", "/boot/efi"),
    *("/tmp", "/var/tmp"),  # noqa: S108  # the places, not files in them
)
PSEUDO = frozenset(
    (
        *("autofs", "binfmt_misc", "bpf", "cgroup", "cgroup2", "configfs", "debugfs", "devpts"),
        *("devtmpfs", "efivarfs", "fusectl", "hugetlbfs", "mqueue", "nfsd", "nsfs", "proc"),
        *("pstore", "ramfs", "rpc_pipefs", "securityfs", "selinuxfs", "sysfs", "tmpfs", "tracefs"),
    )
)

libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Talk with the supervisor, make the namespaces, fork the first process and the program's."""
    # Out of the way of the descriptors that the program is to have.
    fd = fcntl.fcntl(int(sys.argv[1]), fcntl.F_DUPFD_CLOEXEC, 200)
    os.close(int(sys.argv[1]))
    channel = socket.socket(fileno=fd)
    try:
        request = json.loads(channel.recv(1 << 20) or b"null")
        if request is None:
            os._exit(1)
        reset_process(request)
        leave_namespaces(request["netns"])
        told, tell = os.pipe()
        pid = os.fork()
        if pid:
            say(channel, {"pid": pid})
            os._exit(0)
        # Whatever happens from here on, the supervisor knows this process already.
        os.close(tell)
        os.read(told, 1)
        os.close(told)
        # An empty directory that is removed meanwhile must not come to be filled.
        if not channel.recv(1 << 16):
            os._exit(1)
        os.setsid()
        socket.sethostname(request["name"])
        make_tree(request)
        say(channel, {"ready": True})
        if not channel.recv(1 << 16):
            os._exit(1)
        program = os.fork()
        if program:
            become_first(request, fd, program)
        become_program(request, fd)
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


def reset_process(request: dict) -> None:  # type: ignore[type-arg]
    """Forget what the supervisor had set for itself; join the node's cgroups."""
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        with contextlib.suppress(OSError):  # of those that the C library keeps for itself
            signal.signal(number, signal.SIG_DFL)
    os.umask(0o022)
    os.chdir("/")
    for path in request["cgroups"]:
        with open(path, "w") as file:
            file.write("0")
    if request["affinity"]:
        os.sched_setaffinity(0, request["affinity"])


def leave_namespaces(netns: str) -> None:
    """Leave the host's namespaces for new ones; or that of the network for one that there is."""
    new = NAMESPACES
    if netns:
        with open(netns) as file:
            check("enter its network", libc.setns(file.fileno(), CLONE_NEWNET))
        new &= ~CLONE_NEWNET
    check("unshare its namespaces", libc.unshare(new))


# ---------------------------------------------------------------------------------- mounts


def mount(
    source: "str | None", target: str, kind: "str | None", flags: int, options: "str | None" = None
) -> None:
    """Attach a file system to the tree; an error names the place."""
    arguments = [None if a is None else os.fsencode(a) for a in (source, target, kind, options)]
    result = libc.mount(*arguments[:3], ctypes.c_ulong(flags), arguments[3])
    check(f"mount {kind or source} on {target}", result)


def make_tree(request: dict) -> None:  # type: ignore[type-arg]
    """Build the program's file system and make it the root."""
    mount(None, "/", None, MS_REC | MS_PRIVATE)
    top = request["mount_point"]
    mount("tmpfs", top, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=755,size=1m")
    for name in request["devices"]:
        bind(f"/dev/{name}", f"{top}/dev/{name}", MS_NOSUID | MS_NOEXEC)
    for entry in request["private_devices"]:
        private_device(f"{top}/dev/{entry}", entry, request["uid"])
    bind(request["first"], top + FIRST, flags_of("x"))
    for source, target, how in request["binds"]:
        bind(source, top + target, flags_of(how))
    if request["view"]:
        show_root(request["view"][0], top + request["view"][1])
    for target, size, mode in request["tmpfs"]:
        os.makedirs(top + target, exist_ok=True)
        options = f"mode={mode:o},size={size},uid={request['uid']},gid={request['uid']}"
        mount("tmpfs", top + target, "tmpfs", MS_NOSUID | MS_NODEV, options)
    os.makedirs(f"{top}/proc", exist_ok=True)
    mount("proc", f"{top}/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_RDONLY)
    for path, target in request["links"]:
        os.symlink(target, top + path)
    mount(None, top, None, MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV)
    pivot(top)


def flags_of(how: str) -> int:
    """Return the flags of a bind: what may be done with it, in letters (w: write, x: execute)."""
    flags = MS_NOSUID | MS_NODEV
    if "w" not in how:
        flags |= MS_RDONLY
    if "x" not in how:
        flags |= MS_NOEXEC
    return flags


def bind(source: str, target: str, flags: int) -> None:
    """Show a file or directory of the host at a place of the tree, with these flags."""
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with open(target, "a"):
            pass
    mount(source, target, None, MS_BIND)
    mount(None, target, None, MS_BIND | MS_REMOUNT | flags)


def private_device(target: str, name: str, uid: int) -> None:
    """Make a device that only the program's user may use; the host's permissions stay."""
    os.makedirs(os.path.dirname(target), exist_ok=True)
    place = f"{os.path.dirname(target)}/.{name}"
    os.mkdir(place)
    mount("tmpfs", place, "tmpfs", MS_NOSUID | MS_NOEXEC, "mode=755,size=4k")
    status = os.stat(f"/dev/{name}")
    os.mknod(f"{place}/{name}", 0o20600, status.st_rdev)
    os.chown(f"{place}/{name}", uid, uid)
    with open(target, "a"):
        pass
    mount(f"{place}/{name}", target, None, MS_BIND)


def show_root(source: str, target: str) -> None:
    """Show a whole file system of the host, all its mounts, but without what is no file of it."""
    os.makedirs(target, exist_ok=True)
    mount(source, target, None, MS_BIND | (MS_REC if source == "/" else 0))
    mount(None, target, None, MS_REC | MS_PRIVATE)
    if source == "/":
        hide_pseudo(target)
    for point, _ in sorted(mounts_below(target)):
        # Not MS_NOEXEC: hostfs asks with access(2) whether a file of the guest's may be executed.
        flags = MS_RDONLY | MS_NOSUID | MS_NODEV
        mount(None, point, None, MS_BIND | MS_REMOUNT | flags)


def hide_pseudo(target: str) -> None:
    """Take away what the kernel, services and other users have in the view."""
    points = sorted(mounts_below(target), key=lambda entry: len(entry[0]), reverse=True)
    for point, kind in points:
        inside = point[len(target) :]
        hidden = any(inside == path or inside.startswith(path + "/") for path in HIDDEN)
        if inside and (hidden or kind in PSEUDO) and os.path.ismount(point):
            libc.umount2(os.fsencode(point), MNT_DETACH)
    for path in HIDDEN:
        place = target + path
        if os.path.isdir(place) and not os.path.islink(place):
            mount("tmpfs", place, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=755,size=4k")


def mounts_below(top: str) -> "list[tuple[str, str]]":
    """Return mount point and type of all mounts at or below a place."""
    found = []
    with open("/proc/self/mountinfo", errors="surrogateescape") as table:
        for line in table:
            left, _, right = line.partition(" - ")
            point = unescape(left.split()[4])
            if point == top or point.startswith(top.rstrip("/") + "/"):
                found.append((point, right.split()[0]))
    return found


def unescape(word: str) -> str:
    """Undo the octal escapes of mountinfo."""
    first, *rest = word.split("\\")
    return first + "".join(chr(int(part[:3], 8)) + part[3:] for part in rest)


def pivot(top: str) -> None:
    """Make a mount the root of this namespace, and let go of the host's."""
    number = {"x86_64": 155}.get(os.uname().machine, 41)
    os.chdir(top)
    check("pivot to its root", libc.syscall(number, b".", b"."))
    check("detach the host's root", libc.umount2(b".", MNT_DETACH))
    os.chdir("/")


# ---------------------------------------------------------------------------------- privileges


def become_first(request: dict, channel: int, program: int) -> None:  # type: ignore[type-arg]
    """Turn into the process that waits for the program's end; never returns."""
    drop_privileges(request["uid"])
    close_all_but({0, 1, 2, channel})
    name = os.path.basename(request["argv"][0])
    os.execve(FIRST, [FIRST, str(program), name], {})


def become_program(request: dict, channel: int) -> None:  # type: ignore[type-arg]
    """Give all privileges up and run the program; never returns."""
    for name, value in request["rlimits"].items():
        limit_to(getattr(resource, f"RLIMIT_{name}"), value)
    drop_privileges(request["uid"])
    close_all_but({0, 1, 2, *request["fds"], channel})
    for fd in request["fds"]:
        os.set_inheritable(fd, True)
    os.setsid()
    os.chdir(request["cwd"])
    os.execve(request["argv"][0], request["argv"], request["env"])


def close_all_but(kept: "set[int]") -> None:
    """Close descriptors."""
    for entry in os.listdir("/proc/self/fd"):
        if int(entry) not in kept:
            with contextlib.suppress(OSError):  # the listing's own
                os.close(int(entry))


def limit_to(kind: int, value: int) -> None:
    """Limit a resource; where more than the present limit is not to be had, that stays."""
    try:
        resource.setrlimit(kind, (value, value))
    except (ValueError, OSError):
        hard = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, (min(value, hard), min(value, hard)))


def drop_privileges(uid: int) -> None:
    """Become a user without groups and capabilities, and with no way to get any."""
    set_no_new_privs()
    if os.geteuid() != 0:
        return
    capability = 0
    while libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) == 0:
        capability += 1
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    libc.prctl(PR_SET_SECUREBITS, SECUREBITS_LOCKED, 0, 0, 0)
    os.setresuid(uid, uid, uid)
    # With these secure bits a change of user leaves capabilities alone: take all three sets.
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    check("drop its capabilities", libc.capset(header, (ctypes.c_uint32 * 6)()))


def set_no_new_privs() -> None:
    """No program that is executed from here on gains anything by it."""
    check("set no_new_privs", libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))


if __name__ == "__main__":
    main()
