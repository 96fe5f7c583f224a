"""Namespaces without a process in them: each is kept by a bind mount of it on a file, its pin. The functions block."""

import errno
from pathlib import Path

from criw import kernel


def pin(kind: str, handle: Path) -> None:
    """Keep the calling thread's namespace of this kind ("net", "uts", … as in /proc/self/ns) at `handle`."""
    handle.touch(mode=0o444)
    kernel.mount(f"/proc/thread-self/ns/{kind}", handle, flags=kernel.MS_BIND)


def is_pinned(handle: Path) -> bool:
    """Whether a namespace is mounted at `handle`: after a reboot only the file may be left, or nothing."""
    try:
        return handle.stat().st_dev == Path("/proc/self/ns/net").stat().st_dev  # all of them are on one file system
    except FileNotFoundError:
        return False


def unpin(handle: Path) -> None:
    """Take the pin away, if it is there; the namespace ends with the last process in it."""
    # EINVAL: the file is there and nothing is mounted on it.
    with kernel.suppress_errno(errno.ENOENT, errno.EINVAL):
        kernel.umount2(handle, flags=kernel.MNT_DETACH)
    handle.unlink(missing_ok=True)
