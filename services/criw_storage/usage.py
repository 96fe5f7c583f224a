"""Disk usage: how much a directory tree takes, and the background measurement of what containers wrote."""

import asyncio
import errno
import logging
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from criw import kernel

log = logging.getLogger(__name__)
_BLOCK: Final = 512  # the unit of st_blocks: stat(2)


class Measured(NamedTuple):
    """What a tree took at `timestamp_ns` (Unix time)."""

    timestamp_ns: int
    size_bytes: int
    inodes: int


def measure(directory: Path, *, files: bool = True) -> Measured:
    """Disk space and inodes of a tree, hard links counted once; without `files`, of its directories only.

    A container may be changing it meanwhile. So directories are opened from the top each time, through no symbolic
    link; what vanishes is not counted, and neither is what lies deeper than a path can be long. Raises OSError if the
    tree itself is not there.
    """
    timestamp_ns = time.time_ns()
    root = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        blocks, inodes = os.fstat(root).st_blocks, 1
        linked: set[int] = set()
        todo = [b""]
        while todo:
            for path, found in _items(root, todo.pop()):
                if stat.S_ISDIR(found.st_mode):
                    todo.append(path)
                elif not files:
                    continue
                elif found.st_nlink > 1:
                    if found.st_ino in linked:
                        continue
                    linked.add(found.st_ino)
                blocks += found.st_blocks
                inodes += 1
    finally:
        os.close(root)
    return Measured(timestamp_ns, blocks * _BLOCK, inodes)


def _items(root: int, path: bytes) -> Iterator[tuple[bytes, os.stat_result]]:
    """What is in the directory `path` below `root`, by path. Nothing if it vanished or cannot be reached."""
    with kernel.suppress_errno(errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EXDEV):
        directory = kernel.open_beneath(root, path or b".")
        try:
            with os.scandir(directory) as items:
                for item in items:
                    name = os.fsencode(item.name)
                    with kernel.suppress_errno(errno.ENOENT):
                        yield path + b"/" + name if path else name, item.stat(follow_symlinks=False)
        finally:
            os.close(directory)


class Usage:
    """What each root filesystem's writable layer took when it was last looked at, by id."""

    def __init__(self) -> None:
        self.rootfs: dict[str, Measured] = {}
        self._directories: dict[str, Path] = {}

    def watch(self, rootfs_id: str, directory: Path, measured: Measured | None = None) -> None:
        """Measure a writable layer from now on. `measured` stands until that has been done for the first time."""
        self._directories[rootfs_id] = directory
        if measured is not None:
            self.rootfs[rootfs_id] = measured

    def forget(self, rootfs_id: str) -> None:
        """Measure it no more; it need not be known."""
        self._directories.pop(rootfs_id, None)
        self.rootfs.pop(rootfs_id, None)

    async def keep_measuring(self, interval_s: float) -> None:
        """Measure all writable layers, one after the other, every `interval_s` until cancelled."""
        while True:
            for rootfs_id, directory in tuple(self._directories.items()):
                try:
                    measured = await asyncio.to_thread(measure, directory)
                except OSError as err:
                    if rootfs_id in self._directories:  # else it was removed meanwhile
                        log.warning("cannot measure a writable layer", extra={"rootfs": rootfs_id, "error": str(err)})
                    continue
                if rootfs_id in self._directories:
                    self.rootfs[rootfs_id] = measured
            await asyncio.sleep(interval_s)
