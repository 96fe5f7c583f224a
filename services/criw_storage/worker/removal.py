"""Deleting a directory tree that strangers made: however deep, wherever its links lead, whatever flags it has."""

from __future__ import annotations

import errno
import fcntl
import os
import struct

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
# ioctl_iflags(2)
_FS_IOC_GETFLAGS, _FS_IOC_SETFLAGS = 0x80086601, 0x40086602
_FS_IMMUTABLE_FL, _FS_APPEND_FL = 0x10, 0x20


def remove_tree(path: bytes | str | os.PathLike[str], *, dir_fd: int | None = None) -> None:
    """Delete a directory and all below it, however deep, following no link. Nothing there is no error.

    Directories are entered and left one step at a time, so that depth costs neither stack nor open files. What is
    immutable or may only be appended to is made like the rest first, as far as this process may do that. Raises
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
            _remove_directory(name, here)
    finally:
        os.close(here)
    _remove_directory(path, dir_fd)


def make_removable(file: int) -> None:
    """Take the flags from an open file or directory that forbid to remove it, or what is in it. Raises OSError."""
    try:
        (flags,) = struct.unpack("i", fcntl.ioctl(file, _FS_IOC_GETFLAGS, bytes(4)))
    except OSError as err:
        if err.errno in {errno.ENOTTY, errno.EOPNOTSUPP}:
            return  # the file system has no flags
        raise
    if flags & (_FS_IMMUTABLE_FL | _FS_APPEND_FL):
        fcntl.ioctl(file, _FS_IOC_SETFLAGS, struct.pack("i", flags & ~(_FS_IMMUTABLE_FL | _FS_APPEND_FL)))


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
                continue
            try:
                os.unlink(item.name, dir_fd=directory)
            except PermissionError:
                make_removable(directory)
                if item.is_file(follow_symlinks=False):
                    _make_removable(item.name, _FILE, directory)
                os.unlink(item.name, dir_fd=directory)
    return below


def _remove_directory(name: bytes | str | os.PathLike[str], parent: int | None) -> None:
    try:
        os.rmdir(name, dir_fd=parent)
    except PermissionError:
        if parent is not None:
            make_removable(parent)
        _make_removable(name, _DIRECTORY, parent)
        os.rmdir(name, dir_fd=parent)


def _make_removable(name: bytes | str | os.PathLike[str], how: int, parent: int | None) -> None:
    found = os.open(name, how, dir_fd=parent)
    try:
        make_removable(found)
    finally:
        os.close(found)
