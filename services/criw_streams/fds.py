"""Descriptors of pipes and terminals, read and written without blocking the loop or keeping more than a piece."""

import asyncio
import contextlib
import errno
import fcntl
import os
import struct
import termios
import time
from typing import Final

PIECE: Final = 256 * 1024  # bytes read at once
_PIPE_ROOM: Final = 1024 * 1024  # fs.pipe-max-size is no smaller by default
_TERMINAL_ROOM: Final = 128 * 1024  # more than a terminal ever holds
_TERMINAL_SILENCE_S: Final = 0.1
_GATHERING_S: Final = 0.001


def pipe() -> tuple[int, int]:
    """Reading and writing end of a pipe with room for what comes between two turns of the loop."""
    ends = os.pipe()
    with contextlib.suppress(PermissionError):  # the user has as much in pipes as the kernel allows
        fcntl.fcntl(ends[1], fcntl.F_SETPIPE_SZ, _PIPE_ROOM)
    return ends


class Reader:
    """The end of a pipe or terminal that is read. Owns the descriptor."""

    def __init__(self, fd: int, *, terminal: bool = False) -> None:
        self._fd = fd
        self._terminal = terminal
        self._left: int | None = None  # bytes that are still to be read, once that is known
        self._waiting: asyncio.Future[None] | None = None
        self._last_read = 0.0
        os.set_blocking(fd, False)

    async def read(self) -> bytes:
        """The next piece; b"" at the end."""
        if time.monotonic() - self._last_read < _GATHERING_S:
            # Whoever writes much writes it in small pieces: read one by one they would cost more than they carry.
            await asyncio.sleep(_GATHERING_S)
        data = await self._read()
        self._last_read = time.monotonic()
        return data

    async def _read(self) -> bytes:
        while self._fd >= 0 and self._left != 0:
            try:
                data = os.read(self._fd, PIECE if self._left is None else min(PIECE, self._left))
            except BlockingIOError:
                if not await self._readable():
                    return b""
                continue
            except OSError as err:
                if self._terminal and err.errno == errno.EIO:  # nobody has its other end any more
                    return b""
                raise
            if self._left is not None:
                self._left -= len(data)
            return data
        return b""

    async def _readable(self) -> bool:
        """Wait until there is something to read; not if the last has come. False if nothing comes any more."""
        if self._left is not None and not self._terminal:
            return False
        loop, fd = asyncio.get_running_loop(), self._fd
        self._waiting = loop.create_future()
        loop.add_reader(fd, self._wake)
        try:
            # A terminal hands on what was written to it a little later.
            async with asyncio.timeout(_TERMINAL_SILENCE_S if self._left is not None else None):
                await self._waiting
        except TimeoutError:
            return False
        finally:
            self._waiting = None
            if self._fd == fd:
                loop.remove_reader(fd)
        return True

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def end_after_rest(self) -> None:
        """Whoever was to write has ended: what is there now is the last, though others may hold the other end."""
        if self._fd >= 0 and self._left is None:
            present = struct.unpack("i", fcntl.ioctl(self._fd, termios.FIONREAD, bytes(4)))[0]
            self._left = _TERMINAL_ROOM if self._terminal else present
            self._wake()

    def close(self) -> None:
        if self._fd >= 0:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
            self._wake()


class Writer:
    """The end of a pipe or terminal that is written. Owns the descriptor."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._waiting: asyncio.Future[None] | None = None
        os.set_blocking(fd, False)

    async def write(self, data: bytes) -> None:
        """Write all of it. Raises OSError once nobody can read it any more."""
        rest = memoryview(data)
        while rest:
            if self._fd < 0:
                raise BrokenPipeError(errno.EPIPE, "it was closed")
            try:
                rest = rest[os.write(self._fd, rest) :]
            except BlockingIOError:
                await self._writable()

    async def _writable(self) -> None:
        loop, fd = asyncio.get_running_loop(), self._fd
        self._waiting = loop.create_future()
        loop.add_writer(fd, self._wake)
        try:
            await self._waiting
        finally:
            self._waiting = None
            if self._fd == fd:
                loop.remove_writer(fd)

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def close(self) -> None:
        if self._fd >= 0:
            asyncio.get_running_loop().remove_writer(self._fd)
            os.close(self._fd)
            self._fd = -1
            self._wake()
