"""Waiting for files: inotify(7) on the event loop."""

import asyncio
import ctypes
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple, Self

IN_MODIFY: Final = 0x2
IN_CLOSE_WRITE: Final = 0x8
IN_MOVED_TO: Final = 0x80
IN_CREATE: Final = 0x100
IN_Q_OVERFLOW: Final = 0x4000

_HEAD: Final = struct.Struct("iIII")
_libc: Final = ctypes.CDLL(None, use_errno=True)


class Event(NamedTuple):
    """What happened in a watched directory; `name` is empty for the watched file itself and for IN_Q_OVERFLOW."""

    mask: int
    name: str


class Inotify:
    """Watches of one inotify instance. Use as a context manager inside a running loop."""

    def __init__(self) -> None:
        self._fd = -1
        self._queue: asyncio.Queue[Event] = asyncio.Queue()

    def __enter__(self) -> Self:
        self._fd = int(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "cannot watch files: fs.inotify.max_user_instances reached")
        asyncio.get_running_loop().add_reader(self._fd, self._read)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.get_running_loop().remove_reader(self._fd)
        os.close(self._fd)

    def watch(self, path: Path, mask: int) -> None:
        """Watch a file or directory. Raises OSError."""
        if _libc.inotify_add_watch(self._fd, os.fsencode(path), mask) < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), os.fspath(path))

    async def next(self) -> Event:
        """The next event."""
        return await self._queue.get()

    def _read(self) -> None:
        for event in _events(os.read(self._fd, 65536)):
            self._queue.put_nowait(event)


def _events(data: bytes) -> Iterator[Event]:
    offset = 0
    while offset < len(data):
        _watch, mask, _cookie, length = _HEAD.unpack_from(data, offset)
        offset += _HEAD.size
        yield Event(mask, os.fsdecode(data[offset : offset + length].rstrip(b"\0")))
        offset += length
