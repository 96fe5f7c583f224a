"""Kernel calls Python does not have: one thin typed function each, raising OSError with errno and path.

Namespaces are changed only through `in_fresh_thread`, in a thread that then ends: `asyncio.to_thread` reuses its
threads, and one left inside a pod's namespace would serve the next caller there.
"""

import asyncio
import contextlib
import ctypes
import os
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Final, TypeVar

from criw.operations import to_end

T = TypeVar("T")

MS_RDONLY: Final = 0x1
MS_NOSUID: Final = 0x2
MS_NODEV: Final = 0x4
MS_NOEXEC: Final = 0x8
MS_REMOUNT: Final = 0x20
MS_BIND: Final = 0x1000
MS_REC: Final = 0x4000
MS_PRIVATE: Final = 1 << 18
MS_SLAVE: Final = 1 << 19
MS_SHARED: Final = 1 << 20
MNT_DETACH: Final = 2
UMOUNT_NOFOLLOW: Final = 8

PR_SET_PDEATHSIG: Final = 1
PR_SET_KEEPCAPS: Final = 8
PR_CAPBSET_DROP: Final = 24
PR_SET_CHILD_SUBREAPER: Final = 36
PR_SET_NO_NEW_PRIVS: Final = 38
PR_CAP_AMBIENT: Final = 47
PR_CAP_AMBIENT_RAISE: Final = 2

CLONE_FS: Final = 0x200
CLONE_NEWNS: Final = 0x20000
CLONE_NEWUTS: Final = 0x4000000
CLONE_NEWIPC: Final = 0x8000000
CLONE_NEWPID: Final = 0x20000000
CLONE_NEWNET: Final = 0x40000000

# The same numbers on every architecture.
_SYS_MOVE_MOUNT: Final = 429
_SYS_FSOPEN: Final = 430
_SYS_FSCONFIG: Final = 431
_SYS_FSMOUNT: Final = 432
_SYS_OPENAT2: Final = 437

_RESOLVE_NO_XDEV: Final = 0x1
_RESOLVE_NO_SYMLINKS: Final = 0x4
_RESOLVE_BENEATH: Final = 0x8
_RESOLVE_IN_ROOT: Final = 0x10
_FSOPEN_CLOEXEC: Final = 1
_FSCONFIG_SET_STRING: Final = 1
_FSCONFIG_CMD_CREATE: Final = 6
_FSMOUNT_CLOEXEC: Final = 1
_MOVE_MOUNT_F_EMPTY_PATH: Final = 4
_AT_FDCWD: Final = -100
_PR_GET_PDEATHSIG: Final = 2
_CAPABILITY_VERSION_3: Final = 0x20080522

_libc: Final = ctypes.CDLL(None, use_errno=True)


def _check(result: int, *paths: str | os.PathLike[str]) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), " on ".join(os.fspath(path) for path in paths) or None)
    return result


def mount(
    source: str | os.PathLike[str], target: str | os.PathLike[str], *, fstype: str = "", flags: int = 0, data: str = ""
) -> None:
    """mount(2). `data` is the file system's own option string."""
    result = _libc.mount(
        os.fsencode(source),
        os.fsencode(target),
        fstype.encode() or None,
        ctypes.c_ulong(flags),
        data.encode() or None,
    )
    _check(result, source, target)


def umount2(target: str | os.PathLike[str], *, flags: int = 0) -> None:
    """umount2(2)."""
    _check(_libc.umount2(os.fsencode(target), flags), target)


def fsopen(fstype: str) -> int:
    """fsopen(2): a file system about to be configured; its descriptor. ENOSYS before Linux 5.2."""
    return _check(int(_libc.syscall(_SYS_FSOPEN, fstype.encode(), _FSOPEN_CLOEXEC)))


def fsconfig_string(context: int, key: str, value: str | os.PathLike[str]) -> None:
    """fsconfig(2), FSCONFIG_SET_STRING: at most 255 bytes. EINVAL for an option the kernel does not know."""
    raw = os.fsencode(value)
    _check(int(_libc.syscall(_SYS_FSCONFIG, context, _FSCONFIG_SET_STRING, key.encode(), raw, 0)), value)


def fsconfig_create(context: int) -> None:
    """fsconfig(2), FSCONFIG_CMD_CREATE: make the file system as configured."""
    _check(int(_libc.syscall(_SYS_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0)))


def fsmount(context: int) -> int:
    """fsmount(2): the file system as a mount that is nowhere yet; its descriptor."""
    return _check(int(_libc.syscall(_SYS_FSMOUNT, context, _FSMOUNT_CLOEXEC, 0)))


def move_mount(mount_fd: int, target: str | os.PathLike[str]) -> None:
    """move_mount(2): put the mount `mount_fd` at `target`."""
    raw = os.fsencode(target)
    result = _libc.syscall(_SYS_MOVE_MOUNT, mount_fd, b"", _AT_FDCWD, raw, _MOVE_MOUNT_F_EMPTY_PATH)
    _check(int(result), target)


def syncfs(directory: str | os.PathLike[str]) -> None:
    """syncfs(2): write what is in memory of the file system that `directory` is on. Fails if some of it was lost."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _check(_libc.syncfs(fd), directory)
    finally:
        os.close(fd)


def unshare(flags: int) -> None:
    """unshare(2): for the calling thread only; see `in_fresh_thread`."""
    _check(_libc.unshare(flags))


def setns(fd: int, kind: int) -> None:
    """setns(2): for the calling thread only; see `in_fresh_thread`."""
    _check(_libc.setns(fd, kind))


def sethostname(name: str) -> None:
    """sethostname(2), in the calling thread's UTS namespace."""
    raw = name.encode()
    _check(_libc.sethostname(raw, ctypes.c_size_t(len(raw))))


def prctl(option: int, value: int, second: int = 0) -> None:
    """prctl(2), for the options that take one or two numbers."""
    _check(_libc.prctl(option, ctypes.c_ulong(value), ctypes.c_ulong(second), 0, 0))


def death_signal() -> int:
    """The signal that the death of our parent sends us; 0 if none: prctl(2), PR_GET_PDEATHSIG."""
    number = ctypes.c_int()
    _check(_libc.prctl(_PR_GET_PDEATHSIG, ctypes.byref(number), 0, 0, 0))
    return number.value


def permitted_capabilities() -> int:
    """The capabilities this thread may use, one bit for each: capget(2)."""
    header, data = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0), (ctypes.c_uint32 * 6)()
    _check(_libc.capget(header, data))
    return int(data[1]) | int(data[4]) << 32


def set_capabilities(mask: int) -> None:
    """Make these the thread's effective, permitted and inheritable capabilities: capset(2)."""
    low, high = mask & 0xFFFFFFFF, mask >> 32
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    _check(_libc.capset(header, (ctypes.c_uint32 * 6)(low, low, low, high, high, high)))


def _check_whole(path: bytes) -> None:
    """The kernel would take what comes before a NUL for the whole path."""
    if b"\0" in path:
        raise ValueError(f"cannot open {path!r}: there is a NUL in it")


def open_in_root(root: Path, name: str) -> int:
    """Open a file for reading as if `root` were the root directory (openat2(2), RESOLVE_IN_ROOT); the descriptor.

    No symbolic link, absolute or with `..`, leads out of it. FIFOs and devices do not block. Raises OSError, and
    ValueError for a NUL in the name.
    """
    _check_whole(os.fsencode(name))
    how = struct.pack("QQQ", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY, 0, _RESOLVE_IN_ROOT)
    directory = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return _check(int(_libc.syscall(_SYS_OPENAT2, directory, os.fsencode(name), how, len(how))), root / name)
    finally:
        os.close(directory)


def open_beneath(directory: int, path: bytes, flags: int = os.O_RDONLY | os.O_DIRECTORY) -> int:
    """Open something below an open directory (openat2(2)), following no link and entering no mount on the way.

    ELOOP tells of a link, EXDEV of a mount or a way out. Raises ValueError for a NUL in the path.
    """
    _check_whole(path)
    resolve = _RESOLVE_BENEATH | _RESOLVE_NO_SYMLINKS | _RESOLVE_NO_XDEV  # magic links are symbolic ones, too
    how = struct.pack("QQQ", flags | os.O_CLOEXEC, 0, resolve)
    return _check(int(_libc.syscall(_SYS_OPENAT2, directory, path, how, len(how))), os.fsdecode(path))


@contextlib.contextmanager
def suppress_errno(*numbers: int) -> Iterator[None]:
    """Swallow an OSError with one of these errno values: the teardown that finds its work done."""
    try:
        yield
    except OSError as err:
        if err.errno not in numbers:
            raise


async def in_fresh_thread(work: Callable[[], T], *, may_hang: bool = False) -> T:
    """Run `work` in a thread of its own that ends with it, so that it may change its namespaces or directory.

    Cancelling the caller drops the result, but not before the thread has ended: whoever undoes what it does comes after
    it. Not so where it `may_hang`, on a file server say: it is left behind then, and does not keep the process.
    """
    outcome: Future[T] = Future()

    def body() -> None:
        try:
            outcome.set_result(work())
        except BaseException as err:  # noqa: BLE001 — handed to the caller, whatever it is
            outcome.set_exception(err)

    threading.Thread(target=body, name="fresh", daemon=True).start()
    ending = asyncio.wrap_future(outcome)
    return await (asyncio.shield(ending) if may_hang else to_end(ending))
