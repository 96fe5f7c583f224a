"""Container logs in the CRI's format: `time stream tag content`, tag F for a full line and P for a part of one."""

import asyncio
import contextlib
import mmap
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final, NamedTuple, Self

import aiofiles
from aiofiles.threadpool.binary import AsyncBufferedReader

from criw.errors import DataLoss, DeadlineExceeded, FailedPrecondition, NotFound, Unavailable
from criw.rpc.client import ask
from criw_ctl.door import Door
from criw_proto.runtime.v1 import ContainerState, ContainerStatus, ContainerStatusRequest

POLL_S: Final = 0.1
_CHUNK: Final = 1 << 20
_STREAMS: Final = frozenset({b"stdout", b"stderr"})


class Entry(NamedTuple):
    """What a container wrote: `content` ends with a newline where a line did."""

    stream: bytes
    content: bytes


def parse(line: bytes) -> Entry:
    """Parse one line of a log file, without its newline. Raises DataLoss if it has another format."""
    parts = line.split(b" ", 3)
    if len(parts) != 4 or parts[1] not in _STREAMS or parts[2][:1] not in {b"F", b"P"}:
        raise DataLoss(f"cannot read a log line that is not in the CRI's format: {line[:80].decode(errors='replace')}")
    return Entry(parts[1], parts[3] + (b"\n" if parts[2].startswith(b"F") else b""))


def tail_offset(data: bytes | mmap.mmap, lines: int) -> int:
    """Where the last `lines` lines of a log begin; the parts of a line count as one."""
    position = data.rfind(b"\n") + 1
    found = 0
    inside = False  # a line whose end lies after `position`
    while position > 0:
        start = data.rfind(b"\n", 0, position - 1) + 1
        if not inside or parse(data[start : position - 1]).content.endswith(b"\n"):
            if found == lines:
                return position
            found += 1
            inside = True
        position = start
    return 0


class LogReader:
    """Reads a log as it grows, through its rotation (renamed, and begun anew at the same path)."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: AsyncBufferedReader | None = None
        self._rest = b""  # of a line that is being written

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._file:
            await self._file.close()

    async def skip_to_tail(self, lines: int) -> None:
        """Begin with the last `lines` lines of what is there now."""
        if file := await self._open():
            await file.seek(await asyncio.to_thread(_tail_of, file.fileno(), lines))

    async def read(self) -> AsyncIterator[Entry]:
        """What was written since the last call."""
        while file := await self._open():
            rotated = self._rotated(file)  # asked first: what is written between the two questions is read below
            while chunk := await file.read(_CHUNK):
                *lines, self._rest = (self._rest + chunk).split(b"\n")
                for line in lines:
                    yield parse(line)
            if not rotated:
                return
            await file.close()
            self._file = None
            self._rest = b""

    async def _open(self) -> AsyncBufferedReader | None:
        if self._file is None:
            with contextlib.suppress(FileNotFoundError):  # between the renaming and the new beginning
                self._file = await aiofiles.open(self._path, "rb")
        return self._file

    def _rotated(self, file: AsyncBufferedReader) -> bool:
        try:
            return self._path.stat().st_ino != os.fstat(file.fileno()).st_ino
        except FileNotFoundError:
            return False  # it is read on until there is a new one


def _tail_of(fd: int, lines: int) -> int:
    if not os.fstat(fd).st_size:
        return 0
    with mmap.mmap(fd, 0, access=mmap.ACCESS_READ) as data:
        return tail_offset(data, lines)


async def show(reader: LogReader) -> None:
    """Write what is new to our own stdout and stderr, each to its own."""
    outputs = {b"stdout": sys.stdout.buffer, b"stderr": sys.stderr.buffer}
    async for entry in reader.read():
        outputs[entry.stream].write(entry.content)
    for output in outputs.values():
        output.flush()


async def status_of(door: Door, container_id: str) -> ContainerStatus:
    """The container's status. Raises NotFound."""
    reply = await ask(door.runtime.container_status, ContainerStatusRequest(container_id=container_id))
    assert reply.status is not None
    return reply.status


async def ended(door: Door, container_id: str) -> ContainerStatus:
    """Wait for the container to end. Raises NotFound if it is removed."""
    while True:
        with contextlib.suppress(Unavailable, DeadlineExceeded):  # the supervisor is restarting; the container goes on
            status = await status_of(door, container_id)
            if status.state is ContainerState.CONTAINER_EXITED:
                return status
        await asyncio.sleep(POLL_S)


async def follow(door: Door, container_id: str, reader: LogReader) -> ContainerStatus:
    """Show the log until the container has ended; its last status. Raises NotFound if it is removed meanwhile."""
    end = asyncio.create_task(ended(door, container_id), name=f"end of {container_id}")
    try:
        while not end.done():
            await show(reader)
            await asyncio.wait({end}, timeout=POLL_S)
        await show(reader)
        return end.result()
    finally:
        end.cancel()


async def show_log(door: Door, container_id: str, *, following: bool, tail: int | None) -> None:
    """Show a container's log, its last `tail` lines if given, and what is added until it ends if `following`."""
    status = await status_of(door, container_id)
    if not status.log_path:
        raise FailedPrecondition(f"cannot show the log of {container_id[:13]}: it was created without a log path")
    if not Path(status.log_path).exists():
        raise NotFound(f"cannot show the log of {container_id[:13]}: there is no {status.log_path}; was it removed?")
    async with LogReader(Path(status.log_path)) as reader:
        if tail is not None:
            await reader.skip_to_tail(tail)
        if following:
            await follow(door, container_id, reader)
        else:
            await show(reader)
