"""SPDY in the messages of a WebSocket, whose borders mean nothing."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Final

from aiohttp import WSMsgType, web

from criw.spdy.connection import Connection

_ROOM: Final = 256 * 1024  # bytes waiting to be sent
_PIECE: Final = 64 * 1024  # bytes in a message


class _Sink:
    """Takes what the connection sends (`criw.spdy.connection.Sink`)."""

    def __init__(self, socket: web.WebSocketResponse) -> None:
        self._socket = socket
        self._waiting = bytearray()
        self._news = asyncio.Event()
        self._closed = False
        self._read_on = asyncio.Event()
        self._read_on.set()
        self.connection: Connection | None = None

    def write(self, data: bytes) -> None:
        self._waiting += data
        self._news.set()
        if len(self._waiting) > _ROOM and self.connection is not None:
            self.connection.pause_writing()

    def pause_reading(self) -> None:
        self._read_on.clear()

    def resume_reading(self) -> None:
        self._read_on.set()

    def close(self) -> None:
        self._closed = True
        self._news.set()

    async def send(self) -> None:
        """Send what is written, until it is closed; then close the WebSocket."""
        while True:
            while self._waiting:
                piece = bytes(self._waiting[:_PIECE])
                del self._waiting[:_PIECE]
                await self._socket.send_bytes(piece)
                if len(self._waiting) <= _ROOM // 2 and self.connection is not None:
                    self.connection.resume_writing()
            if self._closed:
                await self._socket.close()
                return
            await self._news.wait()
            self._news.clear()

    async def receive(self, connection: Connection) -> None:
        try:
            async for message in self._socket:
                if message.type is WSMsgType.BINARY:
                    connection.feed(message.data)
                elif message.type is WSMsgType.PING:
                    connection.feed(b"")  # it is not idle
                    await self._socket.pong(message.data)
                await self._read_on.wait()
        finally:
            connection.feed_eof()


@contextlib.asynccontextmanager
async def opened(socket: web.WebSocketResponse) -> AsyncIterator[Connection]:
    """The SPDY connection in a WebSocket; closed when the block is left."""
    sink = _Sink(socket)
    connection = Connection(sink, server=True)
    sink.connection = connection
    sending = asyncio.create_task(sink.send(), name="send")
    receiving = asyncio.create_task(sink.receive(connection), name="receive")
    sending.add_done_callback(lambda task: None if task.cancelled() or task.exception() is None else connection.abort())
    try:
        yield connection
    finally:
        connection.close()
        await asyncio.wait({sending}, timeout=10)
        for task in (sending, receiving):
            task.cancel()
        await asyncio.gather(sending, receiving, return_exceptions=True)
