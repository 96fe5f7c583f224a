"""Exec and attach over WebSocket: messages of a channel's number and bytes (Kubernetes' `channel.k8s.io` protocols)."""

import asyncio
import base64
import binascii
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

from aiohttp import WSCloseCode, WSMsgType, web

from criw_proto.criw.streams.v1 import Ends
from criw_streams.client import Channel, Gone, Size, Sizes
from criw_streams.inbox import Inbox
from criw_streams.status import Status

MESSAGE_LIMIT: Final = 4 * 1024 * 1024  # bytes
_PIECE: Final = 32 * 1024  # bytes of output in a message
_STDIN: Final = 0
_ERROR: Final = 3
_RESIZE: Final = 4
_CLOSE: Final = 255


@dataclass(frozen=True)
class Subprotocol:
    """How messages are put, and what they can say."""

    name: str
    in_base64: bool = False
    json_status: bool = True
    half_close: bool = False


SUBPROTOCOLS: Final = {
    protocol.name: protocol
    for protocol in (
        Subprotocol("", json_status=False),
        Subprotocol("channel.k8s.io", json_status=False),
        Subprotocol("base64.channel.k8s.io", in_base64=True, json_status=False),
        Subprotocol("v4.channel.k8s.io"),
        Subprotocol("v4.base64.channel.k8s.io", in_base64=True),
        Subprotocol("v5.channel.k8s.io", half_close=True),
    )
}


class Messages:
    """A WebSocket whose messages begin with a channel's number."""

    def __init__(self, socket: web.WebSocketResponse, *, in_base64: bool) -> None:
        self._socket = socket
        self._in_base64 = in_base64
        self.last_activity = asyncio.get_running_loop().time()

    async def send(self, channel: int, data: bytes) -> None:
        """Waits while the client does not read. Raises Gone."""
        self._used()
        try:
            if self._in_base64:
                await self._socket.send_str(f"{channel}{base64.b64encode(data).decode()}")
            else:
                await self._socket.send_bytes(bytes((channel,)) + data)
        except (ConnectionError, RuntimeError) as err:  # the latter once a closing handshake has begun
            raise Gone from err
        self._used()

    def _used(self) -> None:
        self.last_activity = asyncio.get_running_loop().time()

    async def received(self) -> AsyncIterator[tuple[int, bytes]]:
        """Channel and bytes of each message, until the client has gone. Pings are answered meanwhile."""
        async for message in self._socket:
            self._used()
            if message.type is WSMsgType.TEXT and self._in_base64:
                if (decoded := _decoded(message.data)) is not None:
                    yield decoded
            elif message.type in {WSMsgType.BINARY, WSMsgType.TEXT}:
                raw: bytes = message.data if isinstance(message.data, bytes) else message.data.encode()
                if self._in_base64 and (decoded := _decoded(raw.decode(errors="replace"))) is not None:
                    yield decoded
                elif raw and not self._in_base64:
                    yield raw[0], raw[1:]
            elif message.type is WSMsgType.PING:
                await self._socket.pong(message.data)

    async def close(self, code: int = WSCloseCode.OK) -> None:
        await self._socket.close(code=code)


def _decoded(text: str) -> tuple[int, bytes] | None:
    """None for what is empty, or no channel and base64."""
    try:
        return int(text[:1]), base64.b64decode(text[1:], validate=True)
    except (ValueError, binascii.Error):
        return None


class WebSocketClient:
    """The client of a session (`client.Client`). Run `receive()` in a task beside it."""

    def __init__(self, messages: Messages, ends: Ends, protocol: Subprotocol) -> None:
        self.ends = ends
        self.gone = asyncio.Event()
        self._messages = messages
        self._protocol = protocol
        self._stdin = Inbox()
        if not ends.stdin:
            self._stdin.end()
        self._sizes = Sizes()
        if not ends.terminal:
            self._sizes.end()

    async def greet(self) -> None:
        """An empty message on the first channel of ours, which tells old clients that they are connected."""
        first = Channel.STDOUT if self.ends.stdout else Channel.STDERR if self.ends.stderr else _ERROR
        await self._messages.send(first, b"")

    async def receive(self) -> None:
        try:
            async for channel, data in self._messages.received():
                if channel == _CLOSE and self._protocol.half_close:
                    if len(data) != 1 or data[0] > _RESIZE:
                        await self._messages.close(WSCloseCode.PROTOCOL_ERROR)
                        return
                    if data[0] == _STDIN:
                        self._stdin.end()
                elif channel == _STDIN:
                    await self._stdin.put(data)
                elif channel == _RESIZE:
                    self._sizes.feed(data)
        finally:
            self._stdin.end()
            self._sizes.end()
            self.gone.set()

    async def read(self) -> bytes:
        return await self._stdin.get()

    async def write(self, channel: Channel, data: bytes) -> None:
        for at in range(0, len(data), _PIECE):
            await self._messages.send(channel, data[at : at + _PIECE])

    async def size(self) -> Size | None:
        return await self._sizes.next()

    async def end(self, status: Status) -> None:
        told = status.json() if self._protocol.json_status else status.text()
        try:
            if told:
                await self._messages.send(_ERROR, told)
            await self._messages.close()
        except Gone:  # there is nobody to be told
            self.gone.set()
