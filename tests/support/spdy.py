"""SPDY frames as tests compare them, whatever the pieces they came in, and pipes for connections."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Final

from criw.spdy.connection import Connection
from criw.spdy.frames import Data, Frame, GoAway, Headers, Ping, Reader, Reset, SynReply, SynStream
from support import spdy_reference as reference


def pieces(wire: bytes, sizes: Iterable[int]) -> Iterable[bytes]:
    """`wire` in pieces of these sizes, the last of what is left."""
    at = 0
    for size in sizes:
        yield wire[at : at + size]
        at += size
    yield wire[at:]


def read(wire: Iterable[bytes]) -> list[Frame]:
    reader = Reader()
    return joined(frame for piece in wire for frame in reader.feed(piece))


def joined(frames: Iterable[Frame]) -> list[Frame]:
    """Data that goes on where the frame before it was of the same stream and not its last is one with it.

    Data frames that say nothing are left out.
    """
    whole: list[Frame] = []
    for frame in frames:
        last = whole[-1] if whole else None
        if isinstance(frame, Data) and isinstance(last, Data) and last.stream == frame.stream and not last.fin:
            whole[-1] = Data(frame.stream, last.data + frame.data, frame.fin)
        elif not isinstance(frame, Data) or frame.data or frame.fin:
            whole.append(frame)
    return whole


def told(frame: Frame) -> reference.Told:
    """A frame in the words of the reference."""
    match frame:
        case SynStream(stream, headers, fin, unidirectional):
            return ("syn_stream", stream, reference.texts(headers), fin, unidirectional)
        case SynReply(stream, headers, fin):
            return ("syn_reply", stream, reference.texts(headers), fin)
        case Headers(stream, headers, fin):
            return ("headers", stream, reference.texts(headers), fin)
        case Data(stream, data, fin):
            return ("data", stream, data, fin)
        case Reset(stream, status):
            return ("rst_stream", stream, status)
        case Ping(number):
            return ("ping", number)
        case GoAway(last_good, status):
            return ("goaway", last_good, status)


class Recorder:
    """A sink that keeps what it is given."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.reading = True
        self.closed = 0
        self.after_write: Callable[[bytes], None] | None = None
        self._reader = Reader()

    def frames(self) -> list[Frame]:
        """What was written since the last call."""
        wire = b"".join(self.written)
        self.written.clear()
        return joined(self._reader.feed(wire))

    def write(self, data: bytes) -> None:
        assert not self.closed
        self.written.append(data)
        if self.after_write:
            self.after_write(data)

    def pause_reading(self) -> None:
        assert self.reading
        self.reading = False

    def resume_reading(self) -> None:
        assert not self.reading
        self.reading = True

    def close(self) -> None:
        self.closed += 1


class Pipe:
    """A sink that hands what it is given to another connection: in random pieces, pausing both sides at its bounds."""

    HIGH: Final = 100_000

    def __init__(self, seed: int) -> None:
        self.here: Connection
        self.there: Connection
        self._dice = random.Random(seed)
        self._kept = bytearray()
        self._paused = self._closed = False
        self._work = asyncio.Event()
        self._may_read = asyncio.Event()
        self._may_read.set()
        self.other: Pipe

    def write(self, data: bytes) -> None:
        assert not self._closed
        self._kept += data
        self._work.set()
        if len(self._kept) > self.HIGH and not self._paused:
            self._paused = True
            self.here.pause_writing()

    def pause_reading(self) -> None:
        self._may_read.clear()

    def resume_reading(self) -> None:
        self._may_read.set()

    def close(self) -> None:
        self._closed = True
        self._may_read.set()
        self._work.set()

    async def run(self) -> None:
        """Deliver until the sink is closed."""
        while self._kept or not self._closed:
            self._work.clear()
            if not self._kept:
                await self._work.wait()
            await self.other._may_read.wait()
            for _ in range(self._dice.choice((0, 0, 1, 3))):
                await asyncio.sleep(0)
            size = self._dice.choice((1, 7, 8, 100, 3000, 32_776, 70_000))
            piece = bytes(self._kept[:size])
            del self._kept[:size]
            self.there.feed(piece)
            if self._paused and len(self._kept) < self.HIGH // 4:
                self._paused = False
                self.here.resume_writing()
        self.there.feed_eof()


@contextlib.asynccontextmanager
async def connected(seed: int, **bounds: int) -> AsyncIterator[tuple[Connection, Connection]]:
    """A client's and a server's connection to each other; `bounds` are the server's."""
    pipes = Pipe(seed), Pipe(seed + 1)
    client, server = Connection(pipes[0], server=False), Connection(pipes[1], server=True, **bounds)
    for here, there, (pipe, other) in ((client, server, pipes), (server, client, pipes[::-1])):
        pipe.here, pipe.there, pipe.other = here, there, other
    async with asyncio.TaskGroup() as tasks:
        for pipe in pipes:
            tasks.create_task(pipe.run())
        try:
            yield client, server
        finally:
            client.close()
            server.close()
