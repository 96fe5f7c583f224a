"""Deleting a directory tree that strangers made: however deep, wherever its links lead."""

from __future__ import annotations

import errno
import os

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def remove_tree(path: bytes | str | os.PathLike[str], *, dir_fd: int | None = None) -> None:
    """Delete a directory and all below it, however deep, following no link. Nothing there is no error.

    Directories are entered and left one step at a time, so that depth costs neither stack nor open files. Raises
    OSError (EXDEV) at another file system mounted in it.
    """
    try:
        here = os.open(path, _DIRECTORY, dir_fd=dir_fd)
    except FileNotFoundError:
        return
    levels = [(b"", _identity(here), _without_files(here))]
    try:
        while True:
            if below := levels[-1][2]:
                name = below.pop()
                child = os.open(name, _DIRECTORY, dir_fd=here)
                os.close(here)
                here = child
                identity = _identity(here)
                if identity[0] != levels[0][1][0]:
                    raise OSError(errno.EXDEV, "something is mounted in it", path)
                levels.append((name, identity, _without_files(here)))
                continue
            name = levels.pop()[0]
            if not levels:
                break
            above = os.open(b"..", _DIRECTORY, dir_fd=here)
            os.close(here)
            here = above
            if _identity(here) != levels[-1][1]:
                raise OSError(errno.EBUSY, "somebody moves directories in it", path)
            os.rmdir(name, dir_fd=here)
    finally:
        os.close(here)
    os.rmdir(path, dir_fd=dir_fd)


def _identity(directory: int) -> tuple[int, int]:
    found = os.fstat(directory)
    return found.st_dev, found.st_ino


def _without_files(directory: int) -> list[bytes]:
    """Unlink all that is not a directory; return the names of what is."""
    below = []
    with os.scandir(directory) as found:
        for item in found:
            if item.is_dir(follow_symlinks=False):
                below.append(os.fsencode(item.name))
            else:
                os.unlink(item.name, dir_fd=directory)
    return below
