"""One stream of a SPDY connection: two directions of bytes that end each on its own, or together by a reset."""

import asyncio
from collections import deque
from collections.abc import Mapping
from typing import Final, Protocol

from criw.spdy.frames import Data, Frame, Reset, ResetStatus, SynReply

FRAME_BYTES: Final = 64 * 1024  # of a data frame we send: other streams get their turn after each
CHUNK_OVERHEAD: Final = 64  # bytes of memory that a chunk waiting to be read takes beside its data


class Closed(Exception):  # noqa: N818 — named by what has become of the stream
    """A stream cannot be written or opened any more: the peer has reset it, or its connection has ended."""


class Wire(Protocol):
    """What a stream needs of its connection."""

    def send(self, frame: Frame) -> None: ...
    async def send_data(self, stream: "Stream", data: bytes) -> bool: ...  # False: the stream was lost meanwhile
    def account(self, stream: "Stream", change: int) -> None: ...
    def forget(self, stream: "Stream") -> None: ...


class Stream:
    """Made by a `Connection`; a server's owner calls `accept()` or `refuse()` before anything else.

    Who will read no more of it calls `discard()` or `reset()`, also when the peer has reset it: until then what waits
    to be read counts against the connection's bounds.
    """

    def __init__(self, wire: Wire, number: int, headers: Mapping[str, str]) -> None:
        self.id: Final = number
        self.headers: Final = headers
        self.unread = 0  # bytes of memory that wait for `read()`
        self.lost: str | None = None  # why both directions ended at once
        self._wire = wire
        self._accepted = False
        self._chunks: deque[bytes] = deque()
        self._readable = asyncio.Event()  # there are chunks, or there will be none any more
        self._input_ended = False
        self._discarding = False
        self._writers = 0  # calls of write() under way
        self._closing = False  # FIN is sent, or will be after the writers
        self._output_ended = False
        self._peer_reset = False
        self._gone = asyncio.Event()

    @property
    def peer_reset(self) -> bool:
        """Whether the peer has reset the stream."""
        return self._peer_reset

    @property
    def peer_half_closed(self) -> bool:
        """Whether no more will come: FIN, a reset of either side, the connection's end. Bytes may wait to be read."""
        return self._input_ended

    @property
    def gone(self) -> bool:
        """Whether both directions have ended."""
        return self._gone.is_set()

    async def wait_gone(self) -> None:
        await self._gone.wait()

    def accept(self) -> None:
        """Answer the peer that it may use the stream. Harmless when repeated, and when the stream is lost by now."""
        if not self._accepted and self.lost is None:
            self._accepted = True
            self._wire.send(SynReply(self.id, {}, self._closing))
            self._output_ended = self._closing
            self._settle()

    def accepted_by_peer(self) -> None:
        """The peer's answer; the connection calls it."""
        self._accepted = True

    def refuse(self) -> None:
        """Answer the peer that it may not."""
        self.reset()

    async def read(self) -> bytes:
        """The next bytes, as they came; b"" when there will be none any more."""
        while not self._chunks:
            if self._input_ended or self._discarding:
                return b""
            self._readable.clear()
            await self._readable.wait()
        chunk = self._chunks.popleft()
        self._account(-len(chunk) - CHUNK_OVERHEAD)
        return chunk

    async def write(self, data: bytes) -> None:
        """Send all of `data`, waiting while the connection takes no more. Raises Closed, perhaps with a part sent."""
        assert self._accepted or self.lost is not None, "accept() comes before write()"
        if self._closing and self.lost is None:
            raise Closed(f"cannot write on SPDY stream {self.id}: this side has sent its end")
        self._writers += 1
        try:
            sent = self.lost is None
            for start in range(0, len(data), FRAME_BYTES):
                sent = sent and await self._wire.send_data(self, data[start : start + FRAME_BYTES])
            if not sent:
                raise Closed(f"cannot write on SPDY stream {self.id}: {self.lost}")
        finally:
            self._writers -= 1
            self._finish_output()

    def close_write(self) -> None:
        """Send FIN, after all that calls of `write()` under way send. Harmless when repeated."""
        self._closing = True
        self._finish_output()

    def reset(self, status: int = ResetStatus.CANCEL) -> None:
        """End both directions at once and drop what is unread. Harmless when repeated or late."""
        if not self.gone:
            self._wire.send(Reset(self.id, status))
            self.lose("it was reset")
        self.discard()

    def discard(self) -> None:
        """From now on drop what the peer sends: nobody will read it."""
        self._discarding = True
        self._chunks.clear()
        self._account(-self.unread)
        self._readable.set()

    def take(self, data: bytes, fin: bool) -> None:
        """What the peer has sent; the connection calls it."""
        if self._input_ended:
            return
        if data and not self._discarding:
            self._chunks.append(data)
            self._account(len(data) + CHUNK_OVERHEAD)
            self._readable.set()
        if fin:
            self._input_ended = True
            self._readable.set()
            self._settle()

    def lose(self, why: str, *, peer_reset: bool = False) -> None:
        """Both directions have ended; the connection calls it. What has come can still be read."""
        if not self.gone:
            self.lost, self._peer_reset = why, peer_reset
            self._input_ended = self._output_ended = True
            self._readable.set()
            self._settle()

    def _finish_output(self) -> None:
        if self._closing and self._accepted and not self._writers and not self._output_ended:
            self._output_ended = True
            self._wire.send(Data(self.id, b"", True))
            self._settle()

    def _account(self, change: int) -> None:
        self.unread += change
        self._wire.account(self, change)

    def _settle(self) -> None:
        if self._input_ended and self._output_ended and not self.gone:
            self._gone.set()
            self._wire.forget(self)
