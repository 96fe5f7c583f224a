"""Clients of the URLs that Exec, Attach and PortForward give: over SPDY, as the kubelet is one, and over WebSocket."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

import aiohttp

from criw.spdy.connection import Connection, Stream
from criw.spdy.tcp import TcpConnection
from criw_proto.runtime import v1 as cri
from support.client import Client

LIMIT_S: Final = 60.0
V4: Final = "v4.channel.k8s.io"
V5: Final = "v5.channel.k8s.io"
FORWARD: Final = "portforward.k8s.io"
TUNNEL: Final = f"SPDY/3.1+{FORWARD}"
STDIN, STDOUT, STDERR, ERROR, RESIZE = range(5)
UPGRADE: Final = ("Connection: Upgrade", "Upgrade: SPDY/3.1")
NAMES: Final = ("stdin", "stdout", "stderr", "error", "resize")


class Answered(Exception):  # noqa: N818 — the server's answer, which is no upgrade
    def __init__(self, head: str, body: bytes) -> None:
        super().__init__(head)
        self.head = head
        self.body = body
        self.status = int(head.split()[1])


class _Head(asyncio.Protocol):
    """Reads the head of an answer, or all of one that is no upgrade."""

    def __init__(self) -> None:
        self.answer = asyncio.get_running_loop().create_future()
        self._text = b""

    def data_received(self, data: bytes) -> None:
        self._text += data
        if self._text.startswith(b"HTTP/1.1 101 ") and self._text.endswith(b"\r\n\r\n") and not self.answer.done():
            self.answer.set_result(self._text)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.answer.done():
            self.answer.set_result(self._text)


async def upgrade(
    url: str, versions: Sequence[str], *, headers: Sequence[str] = UPGRADE, method: str = "POST", behind: bytes = b""
) -> tuple[TcpConnection, str]:
    """The SPDY connection and the head of the answer. `behind` is sent with the request. Raises Answered."""
    where = urlsplit(url)
    assert where.hostname is not None and where.port is not None
    transport, protocol = await asyncio.get_running_loop().create_connection(_Head, where.hostname, where.port)
    lines = [f"{method} {where.path} HTTP/1.1", f"Host: {where.netloc}"]
    lines += [*headers, *(f"X-Stream-Protocol-Version: {version}" for version in versions), "", ""]
    transport.write("\r\n".join(lines).encode() + behind)
    head, _, body = (await protocol.answer).partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 101 "):
        transport.close()
        raise Answered(head.decode(), body)
    spdy = TcpConnection(server=False)  # the server sends nothing before it is asked
    transport.set_protocol(spdy)
    spdy.connection_made(transport)
    return spdy, head.decode()


class Remote(Protocol):
    """A session of exec or attach, from its client's side."""

    async def send(self, data: bytes) -> None: ...
    async def end_input(self) -> None: ...
    async def resize(self, width: int, height: int) -> None: ...
    async def read(self, channel: int) -> bytes:
        """The next piece of a channel; b"" at its end."""

    async def drop(self) -> None:
        """Go without a word."""


async def read_all(remote: Remote, channel: int) -> bytes:
    pieces = []
    while piece := await remote.read(channel):
        pieces.append(piece)
    return b"".join(pieces)


async def read_until(remote: Remote, channel: int, end: bytes) -> bytes:
    found = b""
    while end not in found:
        piece = await remote.read(channel)
        assert piece, found
        found += piece
    return found


async def status(remote: Remote) -> Mapping[str, Any]:
    told: Mapping[str, Any] = json.loads(await read_all(remote, ERROR))
    return told


class OverSpdy:
    def __init__(self, spdy: TcpConnection, streams: Mapping[str, Stream], head: str) -> None:
        self.connection: Connection = spdy.connection
        self.spdy = spdy
        self.streams = streams
        self.head = head

    async def send(self, data: bytes) -> None:
        await self.streams["stdin"].write(data)

    async def end_input(self) -> None:
        self.streams["stdin"].close_write()

    async def resize(self, width: int, height: int) -> None:
        await self.streams["resize"].write(json.dumps({"Width": width, "Height": height}).encode() + b"\n")

    async def read(self, channel: int) -> bytes:
        return await self.streams[NAMES[channel]].read()

    async def drop(self) -> None:
        self.spdy.abort()


@contextlib.asynccontextmanager
async def over_spdy(
    url: str, channels: Sequence[int] = (STDOUT, STDERR), *, versions: Sequence[str] = (V4,), tty: bool = False
) -> AsyncIterator[OverSpdy]:
    spdy, head = await upgrade(url, versions)
    names = ["error", *(NAMES[channel] for channel in channels), *(["resize"] if tty else [])]
    streams = {name: await spdy.connection.open({"streamtype": name}) for name in names}
    remote = OverSpdy(spdy, streams, head)
    try:
        async with asyncio.timeout(LIMIT_S):
            yield remote
    finally:
        spdy.abort()


class OverWebSocket:
    """Needs its messages received by somebody: `over_websocket()` does."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, connector: aiohttp.BaseConnector) -> None:
        self.socket = socket
        self._connector = connector
        self._queues: dict[int, asyncio.Queue[bytes]] = {channel: asyncio.Queue() for channel in range(1, 4)}

    async def receive(self) -> None:
        try:
            async for message in self.socket:
                assert isinstance(message.data, bytes)
                if message.data[1:]:
                    await self._queues[message.data[0]].put(message.data[1:])
        finally:
            for queue in self._queues.values():
                queue.put_nowait(b"")

    async def send(self, data: bytes) -> None:
        for at in range(0, len(data), 32768):
            await self.socket.send_bytes(b"\0" + data[at : at + 32768])

    async def end_input(self) -> None:
        await self.socket.send_bytes(b"\xff\0")

    async def resize(self, width: int, height: int) -> None:
        await self.socket.send_bytes(bytes((RESIZE,)) + json.dumps({"Width": width, "Height": height}).encode())

    async def read(self, channel: int) -> bytes:
        return await self._queues[channel].get()

    async def drop(self) -> None:
        await self._connector.close()


@contextlib.asynccontextmanager
async def over_websocket(
    url: str, channels: Sequence[int] = (), *, versions: Sequence[str] = (V5,), tty: bool = False
) -> AsyncIterator[OverWebSocket]:
    connector = aiohttp.TCPConnector()
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        session.ws_connect(url, protocols=versions, max_msg_size=0) as socket,
    ):
        remote = OverWebSocket(socket, connector)
        receiving = asyncio.create_task(remote.receive())
        try:
            async with asyncio.timeout(LIMIT_S):
                yield remote
        finally:
            receiving.cancel()
            await asyncio.gather(receiving, return_exceptions=True)


class Opener(Protocol):
    """How a session's URL is used."""

    def __call__(
        self, url: str, channels: Sequence[int], *, tty: bool = False
    ) -> AbstractAsyncContextManager[Remote]: ...


TRANSPORTS: Final[Mapping[str, Opener]] = {"spdy": over_spdy, "websocket": over_websocket}


async def exec_url(client: Client, container: str, *command: str, stdin: bool = False, tty: bool = False) -> str:
    request = cri.ExecRequest(
        container_id=container, cmd=list(command), stdin=stdin, stdout=True, stderr=not tty, tty=tty
    )
    return (await client.runtime.exec(request)).url
