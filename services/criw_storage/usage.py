"""Disk usage: how much a directory tree takes, and the background measurement of what containers wrote."""

import asyncio
import errno
import logging
import os
import stat
import time
from collections import Counter
from pathlib import Path
from typing import Final, NamedTuple

from criw import kernel

log = logging.getLogger(__name__)
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_REST: Final = 3  # times as long as looking at a tree took: however large it is, that is not all the agent does
_BLOCK: Final = 512  # the unit of st_blocks: stat(2)


class Measured(NamedTuple):
    """What a tree took at `timestamp_ns` (Unix time)."""

    timestamp_ns: int
    size_bytes: int
    inodes: int


def measure(directory: Path, *, files: bool = True) -> Measured:
    """Disk space and inodes of a tree, however deep; without `files`, of its directories only.

    A container chooses what is in it, and may be changing it meanwhile. So directories are entered and left one step at
    a time, and of each only the names of those still to be entered are kept; of a file with several names every one
    counts its share, so that none needs to be remembered. What vanishes is not counted. Raises OSError if the tree
    itself is not there.
    """
    timestamp_ns = time.time_ns()
    here = os.open(directory, _DIRECTORY)
    count = _Count(files)
    levels = [(os.fstat(here), count.items(here))]
    count.add(levels[0][0])
    try:
        while True:
            found, below = levels[-1]
            if below:
                child = _enter(here, below.pop(), found.st_dev)
                if child >= 0:
                    os.close(here)
                    here = child
                    levels.append((os.fstat(here), count.items(here)))
                continue
            levels.pop()
            if not levels:
                return Measured(timestamp_ns, *count.total())
            above = os.open(b"..", _DIRECTORY, dir_fd=here)
            os.close(here)
            here = above
            if not os.path.samestat(os.fstat(here), levels[-1][0]):
                # Somebody moved a directory while we were in it: what is left of the tree is counted the next time.
                return Measured(timestamp_ns, *count.total())
    finally:
        os.close(here)


def _enter(here: int, name: bytes, device: int) -> int:
    """A directory in an open one, -1 if it vanished or is none of the tree any more."""
    with kernel.suppress_errno(errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
        child = os.open(name, _DIRECTORY, dir_fd=here)
        if os.fstat(child).st_dev == device:
            return child
        os.close(child)
    return -1


class _Count:
    """Blocks and inodes by the number of names that what has them has."""

    def __init__(self, files: bool) -> None:
        self._files = files
        self._blocks: Counter[int] = Counter()
        self._inodes: Counter[int] = Counter()

    def add(self, found: os.stat_result) -> None:
        names = 1 if stat.S_ISDIR(found.st_mode) else max(found.st_nlink, 1)
        self._blocks[names] += found.st_blocks
        self._inodes[names] += 1

    def items(self, directory: int) -> list[bytes]:
        """Count what is in an open directory; the names of the directories in it."""
        below = []
        with os.scandir(directory) as items:
            for item in items:
                with kernel.suppress_errno(errno.ENOENT):
                    found = item.stat(follow_symlinks=False)
                    if stat.S_ISDIR(found.st_mode):
                        below.append(os.fsencode(item.name))
                    elif not self._files:
                        continue
                    self.add(found)
        return below

    def total(self) -> tuple[int, int]:
        """Bytes and inodes."""
        size = sum(blocks * _BLOCK // names for names, blocks in self._blocks.items())
        return size, sum(inodes // names for names, inodes in self._inodes.items())


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
                started = time.monotonic()
                try:
                    measured = await asyncio.to_thread(measure, directory)
                except OSError as err:
                    if rootfs_id in self._directories:  # else it was removed meanwhile
                        log.warning("cannot measure a writable layer", extra={"rootfs": rootfs_id, "error": str(err)})
                    continue
                if rootfs_id in self._directories:
                    self.rootfs[rootfs_id] = measured
                await asyncio.sleep(_REST * (time.monotonic() - started))
            await asyncio.sleep(interval_s)
