"""Directories of layers and of containers: made, put aside and deleted."""

import errno
import fcntl
import os
import secrets
import stat
import struct
from pathlib import Path
from typing import Final

from criw import kernel
from criw_storage.worker.removal import make_removable, remove_tree

# ioctl_iflags(2)
_FS_IOC_GETFLAGS: Final = 0x80086601
_FS_IOC_SETFLAGS: Final = 0x40086602
_FS_TOPDIR_FL: Final = 0x20000


def make_directory(path: Path) -> None:
    """An empty directory, open to all; what is in it does not inherit anything from the one above."""
    path.mkdir()
    path.chmod(0o755)  # a setgid bit of the directory above would be inherited by all in it
    os.chown(path, 0, 0)


def spread(directory: Path) -> None:
    """Let ext4 put what is made in this directory far from each other; others may not know how. See decision 0010."""
    opened = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with kernel.suppress_errno(errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM):
            (flags,) = struct.unpack("i", fcntl.ioctl(opened, _FS_IOC_GETFLAGS, bytes(4)))
            fcntl.ioctl(opened, _FS_IOC_SETFLAGS, struct.pack("i", flags | _FS_TOPDIR_FL))
    finally:
        os.close(opened)


def set_aside(directory: Path) -> Path:
    """Take a directory out of its place in one step, so that it is whole or not there; where it is then.

    This, not a row, is the first step of every removal, and the row goes last: on a full disk, which removing something
    is to cure, no row can be written. It stays in the directory above, which may be another file system than all the
    rest; the next start removes what is there by such a name, and takes a record without its directory for removed.
    """
    aside = directory.with_name(f"{directory.name}.{secrets.token_hex(4)}")
    with kernel.suppress_errno(errno.ENOENT):
        try:
            directory.rename(aside)
        except PermissionError:  # it is immutable
            found = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                make_removable(found)
            finally:
                os.close(found)
            directory.rename(aside)
    return aside


def remove_any(path: Path) -> None:
    """Delete whatever is there: a tree, or something that has no business here. Nothing there is no error."""
    try:
        remove_tree(path)
    except OSError as err:
        if err.errno not in {errno.ENOTDIR, errno.ELOOP}:
            raise
        path.unlink(missing_ok=True)


def is_gone(directory: Path) -> bool:
    """Whether there is none; one that the disk fails to show is there."""
    try:
        return not stat.S_ISDIR(directory.lstat().st_mode)
    except OSError as err:
        return err.errno in {errno.ENOENT, errno.ENOTDIR}
