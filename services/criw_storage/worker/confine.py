"""How the worker gives up everything but the directory it unpacks into.

`criw.kernel` has some of these calls, but importing it, asyncio and all, would take longer than a small layer.
"""

from __future__ import annotations

import ctypes
import os
import resource

_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_NOATIME = 0x2, 0x4, 0x8, 0x400
_MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 0x20, 0x1000, 0x4000, 1 << 18
_MNT_DETACH = 2
_CLONE_NEWNS, _CLONE_NEWIPC, _CLONE_NEWPID, _CLONE_NEWNET = 0x20000, 0x8000000, 0x20000000, 0x40000000
_PR_SET_PDEATHSIG = 1
_SIGKILL = 9  # importing `signal` takes 4 ms
_PR_SET_NO_NEW_PRIVS = 38
_CAPABILITY_VERSION_3 = 0x20080522
_CAP_CHOWN, _CAP_DAC_OVERRIDE, _CAP_FOWNER, _CAP_FSETID, _CAP_MKNOD, _CAP_SETFCAP = 0, 1, 3, 4, 27, 31
_KEPT = sum(1 << cap for cap in (_CAP_CHOWN, _CAP_DAC_OVERRIDE, _CAP_FOWNER, _CAP_FSETID, _CAP_MKNOD, _CAP_SETFCAP))

_MEMORY_BYTES = 768 * 1024 * 1024  # address space: the largest zstd window, and the names of a few million directories
_OPEN_FILES = 128
_CPU_S = 3600

_libc = ctypes.CDLL(None, use_errno=True)


def confine(target: str, *, max_file_bytes: int) -> None:
    """Return in a child process whose whole world is `target`, mounted as its root and current directory.

    It has namespaces of its own (mount, PID, network, IPC), bounded resources, no privileges but those over files,
    and cannot regain any. The process that called waits for it and ends as it ends; neither outlives the other or
    the agent. Raises OSError if the kernel refuses a step.
    """
    _die_with_parent()
    with open("/proc/self/oom_score_adj", "r+") as score:  # noqa: PTH123 — importing `pathlib` takes long
        if int(score.read()) < 0:  # the agent's, for the agent alone
            score.write("0")
    _check(_libc.unshare(_CLONE_NEWNS | _CLONE_NEWPID | _CLONE_NEWNET | _CLONE_NEWIPC), "unshare")
    child = os.fork()  # without a PID namespace, root may signal any process of root
    if child:
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        os._exit(128 - code if code < 0 else code)
    _die_with_parent()
    _enter(target)
    for limit, value in (
        (resource.RLIMIT_AS, _MEMORY_BYTES),
        (resource.RLIMIT_FSIZE, max_file_bytes),
        (resource.RLIMIT_NOFILE, _OPEN_FILES),
        (resource.RLIMIT_CPU, _CPU_S),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(limit)[1]
        bounded = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (bounded, bounded))
    # With this no execve gives back what capset takes away, so the bounding set need not be emptied.
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl no_new_privs")
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    data = (ctypes.c_uint32 * 6)(_KEPT, _KEPT, 0, 0, 0, 0)  # effective, permitted, inheritable; the low words first
    _check(_libc.capset(header, data), "capset")


def _enter(target: str) -> None:
    """Make `target` the root, with nothing else mounted anywhere."""
    path = os.fsencode(target)
    _check(_libc.mount(None, b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None), "mount private")
    _check(_libc.mount(path, path, None, ctypes.c_ulong(_MS_BIND), None), "mount", target)
    flags = _MS_REMOUNT | _MS_BIND | _MS_NOSUID | _MS_NODEV | _MS_NOEXEC | _MS_NOATIME
    _check(_libc.mount(None, path, None, ctypes.c_ulong(flags), None), "remount", target)
    os.chdir(target)
    # Puts the old root over the new one; then the old one is taken away: pivot_root(2), "pivot_root(".", ".")".
    _check(_libc.pivot_root(b".", b"."), "pivot_root", target)
    _check(_libc.umount2(b".", _MNT_DETACH), "umount the old root")
    os.chdir("/")


def _die_with_parent() -> None:
    _check(_libc.prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0), "prctl pdeathsig")


def _check(result: int, call: str, path: str | None = None) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}", path)
