"""Kernel calls Python does not have: one thin typed function each, raising OSError with errno and path.

Namespaces are changed only through `in_fresh_thread`, in a thread that then ends: `asyncio.to_thread` reuses its
threads, and one left inside a pod's namespace would serve the next caller there.
"""

import asyncio
import contextlib
import ctypes
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Final, TypeVar

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

CLONE_FS: Final = 0x200
CLONE_NEWNS: Final = 0x20000
CLONE_NEWUTS: Final = 0x4000000
CLONE_NEWIPC: Final = 0x8000000
CLONE_NEWPID: Final = 0x20000000
CLONE_NEWNET: Final = 0x40000000

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


@contextlib.contextmanager
def suppress_errno(*numbers: int) -> Iterator[None]:
    """Swallow an OSError with one of these errno values: the teardown that finds its work done."""
    try:
        yield
    except OSError as err:
        if err.errno not in numbers:
            raise


async def in_fresh_thread(work: Callable[[], T]) -> T:
    """Run `work` in a thread of its own that ends with it, so that it may change its namespaces or directory.

    Cancelling the caller does not stop the thread; its result is dropped then.
    """
    outcome: Future[T] = Future()

    def body() -> None:
        try:
            outcome.set_result(work())
        except BaseException as err:  # noqa: BLE001 — handed to the caller, whatever it is
            outcome.set_exception(err)

    threading.Thread(target=body, name="fresh", daemon=True).start()
    return await asyncio.shield(asyncio.wrap_future(outcome))


def mounts_below(directory: Path) -> list[Path]:
    """Mount points at or below `directory` in this mount namespace, deepest first."""
    prefix = f"{directory}/"
    found = []
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        point = line.split(" ", 5)[4].encode("utf-8", "surrogateescape").decode("unicode_escape")
        if point == str(directory) or point.startswith(prefix):
            found.append(Path(point))
    found.reverse()  # mountinfo lists a mount after the one it sits on
    return found
