"""A SPDY connection on an asyncio transport, new or taken over from another protocol."""

import asyncio
from typing import Final, cast

from criw.spdy.connection import Connection

WRITE_BUFFER_BYTES: Final = 256 * 1024
FLUSH_LIMIT_S: Final = 4 * 3600.0  # as long as a connection may be idle: the peer may be a pager somebody reads in
LINGER_LIMIT_S: Final = 5.0


class TcpConnection(asyncio.Protocol):
    """Runs a `Connection` on a transport, and is its sink.

    To take a transport over: `transport.set_protocol(tcp)`, `tcp.connection_made(transport)`, and
    `tcp.data_received(rest)` with what was read behind the HTTP head.

    Closing lingers: what is written goes out, then our end is told, and the peer's is waited for a little. A socket
    closed with bytes unread would be reset by the kernel, and the peer might lose the last it was sent.
    """

    _transport: asyncio.Transport
    _timer: asyncio.TimerHandle | None = None
    _closing = False
    _closed_at = 0.0  # by the loop's clock

    def __init__(self, *, server: bool) -> None:
        self.connection = Connection(self, server=server)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are like it, but no instances of it
        self._transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)

    def data_received(self, data: bytes) -> None:
        self.connection.feed(data)
        if self._closing and not self._transport.get_write_buffer_size():
            # It may not have read all yet: were it closed now, the next ping would be answered by a reset, which loses
            # the rest.
            self._give_up_in(min(LINGER_LIMIT_S, self._closed_at + FLUSH_LIMIT_S - asyncio.get_running_loop().time()))

    def eof_received(self) -> None:
        self.connection.feed_eof()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self.connection.feed_eof()

    def pause_writing(self) -> None:
        self.connection.pause_writing()

    def resume_writing(self) -> None:
        self.connection.resume_writing()
        if self._closing:  # the limits are such that all is written
            self._give_up_in(LINGER_LIMIT_S)

    def write(self, data: bytes) -> None:
        self._transport.write(data)

    def pause_reading(self) -> None:
        if not self._transport.is_closing():
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if not self._transport.is_closing():
            self._transport.resume_reading()

    def close(self) -> None:
        if self._transport.is_closing():
            return
        self._closing = True
        self._closed_at = asyncio.get_running_loop().time()
        self.resume_reading()  # what comes is dropped
        self._transport.set_write_buffer_limits(high=0)
        unwritten = self._transport.get_write_buffer_size()
        self._give_up_in(FLUSH_LIMIT_S if unwritten else LINGER_LIMIT_S)
        if self._transport.can_write_eof():
            self._transport.write_eof()
        else:  # TLS
            self._transport.close()

    def abort(self) -> None:
        """End it without waiting for anything."""
        self.connection.abort()
        self._transport.abort()

    def _give_up_in(self, limit_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(limit_s, self._transport.abort)
