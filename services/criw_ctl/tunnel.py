"""SPDY in a WebSocket, as port-forward is spoken today: binary messages are the bytes, their borders mean nothing."""

import asyncio
import contextlib
from collections import deque
from typing import TYPE_CHECKING, Final

import aiohttp

from criw.spdy.connection import Connection
from criw_ctl.descriptors import CHUNK

if TYPE_CHECKING:
    from aiohttp import web

_HIGH_BYTES: Final = 256 * 1024  # that wait to be sent: writers wait, too
_LOW_BYTES: Final = 64 * 1024


class Tunnel:
    """Runs a `Connection`, and is its sink."""

    def __init__(self, websocket: "aiohttp.ClientWebSocketResponse | web.WebSocketResponse", *, server: bool) -> None:
        self.connection = Connection(self, server=server)
        self._websocket = websocket
        self._unsent: deque[bytes] = deque()
        self._unsent_bytes = 0
        self._full = False
        self._closing = False
        self._work = asyncio.Event()
        self._may_read = asyncio.Event()
        self._may_read.set()

    async def run(self) -> None:
        """Carry bytes until either side ends the connection."""
        tasks = {
            asyncio.create_task(self._receive(), name="bytes from the tunnel"),
            asyncio.create_task(self._send(), name="bytes into the tunnel"),
        }
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            self.connection.feed_eof()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _receive(self) -> None:
        while (message := await self._websocket.receive()).type is aiohttp.WSMsgType.BINARY:
            await self._may_read.wait()
            self.connection.feed(message.data)

    async def _send(self) -> None:
        with contextlib.suppress(ConnectionError):  # the peer has gone, which ends the connection
            while not (self._closing and not self._unsent):
                await self._work.wait()
                self._work.clear()
                while self._unsent:
                    await self._send_some()
            await self._websocket.close()

    async def _send_some(self) -> None:
        data = b"".join(self._unsent)
        self._unsent.clear()
        for start in range(0, len(data), CHUNK):
            await self._websocket.send_bytes(data[start : start + CHUNK])
        self._unsent_bytes -= len(data)
        if self._full and self._unsent_bytes <= _LOW_BYTES:
            self._full = False
            self.connection.resume_writing()

    def write(self, data: bytes) -> None:
        self._unsent.append(data)
        self._unsent_bytes += len(data)
        self._work.set()
        if not self._full and self._unsent_bytes > _HIGH_BYTES:
            self._full = True
            self.connection.pause_writing()

    def pause_reading(self) -> None:
        self._may_read.clear()

    def resume_reading(self) -> None:
        self._may_read.set()

    def close(self) -> None:
        self._closing = True
        self._work.set()
        self._may_read.set()
