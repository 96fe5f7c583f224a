"""A SPDY connection over any pipe of bytes: many streams, bounded memory, one answer to whatever a peer sends."""

import asyncio
from collections import deque
from collections.abc import Mapping
from typing import Final, Protocol

from criw.spdy.frames import (
    MAX_STREAM,
    Data,
    Frame,
    GoAway,
    GoAwayStatus,
    Headers,
    Ping,
    ProtocolError,
    Reader,
    Reset,
    ResetStatus,
    SynReply,
    SynStream,
    Writer,
)
from criw.spdy.stream import Closed as Closed  # with Stream, what users of a connection name
from criw.spdy.stream import Stream as Stream

STREAM_UNREAD_LIMIT: Final = 1024 * 1024  # bytes that wait for one stream's reader before the pipe is paused
UNREAD_LIMIT: Final = 32 * 1024 * 1024  # and for all readers of a connection
HEADERS_LIMIT: Final = 16 * 1024  # bytes of memory for a stream's headers; each string counts _STRING_BYTES more
WAITING_PINGS: Final = 100  # control frames that wait for a peer that does not read: no more answers to its pings
WAITING_FRAMES: Final = 10_000  # and here the connection is given up
JOINED_BYTES: Final = 4096  # of payload: less is copied behind its head, to be one write
_STRING_BYTES: Final = 64


class Sink(Protocol):
    """The pipe to the peer. It may call `pause_writing()` and `resume_writing()` of the connection at any time."""

    def write(self, data: bytes) -> None: ...
    def pause_reading(self) -> None:
        """Feed the connection no more, for back-pressure; what is on its way may still be fed."""

    def resume_reading(self) -> None: ...
    def close(self) -> None:
        """Flush, then close. It is called once."""


class Connection:
    """One connection, either side. Its owner feeds it and may call everything from the event loop's thread only."""

    def __init__(self, sink: Sink, *, server: bool, max_streams: int = 2048, max_waiting: int = 1024) -> None:
        """`max_streams` may be open at once, and `max_waiting` may wait for `accept()`; more are refused."""
        self._loop = asyncio.get_running_loop()
        self.last_activity = self._loop.time()  # seconds of the loop's clock, of the last bytes either way
        self._sink = sink
        self._server = server
        self._max_streams, self._max_waiting = max_streams, max_waiting
        self._reader, self._writer = Reader(), Writer()
        self._streams: dict[int, Stream] = {}
        self._opening: dict[Stream, asyncio.Future[None]] = {}
        self._incoming: deque[Stream] = deque()
        self._arrived = asyncio.Event()  # there are incoming streams, or there will be none any more
        self._last_id = 0  # the highest of the peer's, if a server; ours, if a client
        self._last_good = 0
        self._ended = asyncio.Event()
        self._unread = 0
        self._full: set[Stream] = set()  # with more than STREAM_UNREAD_LIMIT, and not yet half of it read
        self._reading_paused = False
        self._writing_paused = False
        self._waiting_frames = 0
        self._waiting_data: dict[asyncio.Future[bool], tuple[Stream, bytes]] = {}  # first come, first served

    async def accept(self) -> Stream | None:
        """The next stream the peer opens: to be accepted or refused. None when the connection has ended."""
        while not self._ended.is_set():
            if self._incoming:
                return self._incoming.popleft()
            self._arrived.clear()
            await self._arrived.wait()
        return None

    async def open(self, headers: Mapping[str, str]) -> Stream:
        """Open a stream and wait for the peer's answer. Names are lower case.

        Raises Closed if the peer refuses it or the connection has ended.
        """
        assert not self._server, "only clients open streams"
        number = self._last_id + 2 if self._last_id else 1
        if self._ended.is_set() or number > MAX_STREAM:
            raise Closed(f"cannot open SPDY stream {number}: the connection has ended; make another")
        self._last_id = number
        stream = self._streams[number] = Stream(self, number, headers)
        answer = self._opening[stream] = self._loop.create_future()
        self.send(SynStream(number, dict(headers)))
        try:
            await answer
        except asyncio.CancelledError:
            stream.reset()
            raise
        if stream.lost is not None:
            raise Closed(f"cannot open SPDY stream {number}: {stream.lost}")
        return stream

    def feed(self, data: bytes) -> None:
        """Bytes from the peer."""
        if self._ended.is_set():
            return
        self.last_activity = self._loop.time()
        try:
            frames = self._reader.feed(data)
        except ProtocolError as err:
            self._end(f"the peer broke the protocol: {err}", GoAwayStatus.PROTOCOL_ERROR)
            return
        for frame in frames:
            self._handle(frame)
            if self._ended.is_set():  # Go sends nothing behind GOAWAY, and reads nothing there
                break

    def feed_eof(self) -> None:
        """The peer sends no more, or the pipe has broken. It ends all streams; harmless when repeated."""
        self._end("the peer has closed the connection", None)

    def pause_writing(self) -> None:
        """The sink has enough for now; writers wait."""
        self._writing_paused = True

    def resume_writing(self) -> None:
        self._writing_paused = False
        self._waiting_frames = 0
        while self._waiting_data and not self._writing_paused:
            sent = next(iter(self._waiting_data))
            stream, data = self._waiting_data.pop(sent)
            if not sent.done():  # its writer was not cancelled
                self._write_data(stream, data)
                sent.set_result(True)

    def close(self) -> None:
        """End the connection as peers expect it: reset what is open, say good-bye, close the pipe."""
        if not self._ended.is_set():
            for stream in list(self._streams.values()):
                stream.reset()
            self._end("the connection was closed", GoAwayStatus.OK)

    def abort(self) -> None:
        """End the connection without a word."""
        self._end("the connection was aborted", None)

    async def closed(self) -> None:
        """Wait until the connection has ended, for whatever reason. The pipe may still flush."""
        await self._ended.wait()

    def _handle(self, frame: Frame) -> None:
        match frame:
            case Data(number, data, fin):
                if stream := self._streams.get(number):
                    stream.take(data, fin)
            case SynStream():
                self._incoming_stream(frame)
            case SynReply(number, _, fin):
                if not self._server and (stream := self._streams.get(number)):
                    stream.accepted_by_peer()
                    self._answered(stream)
                    stream.take(b"", fin)
            case Reset(number, status):
                if stream := self._streams.get(number):
                    stream.lose(f"the peer has reset it ({_named(status)})", peer_reset=True)
            case Headers(number, _, fin):
                if stream := self._streams.get(number):
                    stream.take(b"", fin)
            case Ping(number):
                if number % 2 == self._server and self._waiting_frames < WAITING_PINGS:
                    self.send(frame)
            case GoAway():
                self._end("the peer has ended the connection", GoAwayStatus.OK)

    def _incoming_stream(self, frame: SynStream) -> None:
        number = frame.stream
        if self._server and self._last_id < number <= MAX_STREAM and number % 2:
            self._last_id = number
            size = sum(len(name) + len(value) + 2 * _STRING_BYTES for name, value in frame.headers.items())
            if (
                len(self._streams) >= self._max_streams
                or len(self._incoming) >= self._max_waiting
                or size > HEADERS_LIMIT
            ):
                self.send(Reset(number, ResetStatus.REFUSED_STREAM))
                return
            stream = self._streams[number] = Stream(self, number, frame.headers)
            self._incoming.append(stream)
            self._arrived.set()
            if frame.unidirectional:
                stream.close_write()
            stream.take(b"", frame.fin)
        elif self._server and (open_one := self._streams.get(number)):
            open_one.reset(ResetStatus.PROTOCOL_ERROR)  # its opener takes the answer for the end of it
        else:
            self.send(Reset(number, ResetStatus.PROTOCOL_ERROR))

    def _end(self, why: str, goodbye: GoAwayStatus | None) -> None:
        if self._ended.is_set():
            return
        if goodbye is not None:
            self._write(self._writer.encode(GoAway(self._last_good, goodbye)))
        self._ended.set()
        for stream in list(self._streams.values()):
            stream.lose(why)
        self._incoming.clear()
        self._arrived.set()
        self._sink.close()

    def _answered(self, stream: Stream) -> None:
        if (answer := self._opening.pop(stream, None)) and not answer.done():
            answer.set_result(None)

    def send(self, frame: Frame) -> None:
        """Send a frame of a few bytes at once: writers of data wait, these do not. For streams, and for itself."""
        if self._ended.is_set():
            return
        if self._writing_paused:
            self._waiting_frames += 1
            if self._waiting_frames > WAITING_FRAMES:
                self._end("the peer does not read what it is sent", None)
                return
        if isinstance(frame, SynReply):
            self._last_good = max(self._last_good, frame.stream)
        self._write(self._writer.encode(frame))

    async def send_data(self, stream: Stream, data: bytes) -> bool:
        """Send one data frame when its turn comes. False if the stream was lost before."""
        if not self._writing_paused:
            if stream.lost is None:
                self._write_data(stream, data)
            return stream.lost is None
        sent: asyncio.Future[bool] = self._loop.create_future()
        self._waiting_data[sent] = (stream, data)
        try:
            return await sent
        finally:
            self._waiting_data.pop(sent, None)

    def account(self, stream: Stream, change: int) -> None:
        """Count what waits to be read, and pause or resume the pipe by it."""
        self._unread += change
        if stream.unread >= STREAM_UNREAD_LIMIT:
            self._full.add(stream)
        elif stream.unread <= STREAM_UNREAD_LIMIT // 2:
            self._full.discard(stream)
        limit = UNREAD_LIMIT // 2 if self._reading_paused else UNREAD_LIMIT
        pause = bool(self._full) or self._unread >= limit
        if pause != self._reading_paused and not self._ended.is_set():
            self._reading_paused = pause
            if pause:
                self._sink.pause_reading()
            else:
                self._sink.resume_reading()

    def forget(self, stream: Stream) -> None:
        """Both directions of the stream have ended."""
        self._streams.pop(stream.id, None)
        self._answered(stream)
        if stream.lost is not None:
            for sent, (waiting, _) in self._waiting_data.items():
                if waiting is stream and not sent.done():
                    sent.set_result(False)

    def _write_data(self, stream: Stream, data: bytes) -> None:
        head = self._writer.data_head(stream.id, len(data), False)
        if len(data) <= JOINED_BYTES:
            self._write(head + data)
        else:
            self._write(head)
            self._write(data)

    def _write(self, data: bytes) -> None:
        self.last_activity = self._loop.time()
        self._sink.write(data)


def _named(status: int) -> str:
    return next((known.name for known in ResetStatus if known == status), str(status))
