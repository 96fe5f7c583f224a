"""gRPC services on a unix socket of this process, for tests of what lies between a client and a service."""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from grpclib.const import Cardinality

from criw.metrics import Metrics
from criw.rpc.client import Channel
from criw.rpc.peers import Callers
from criw.rpc.server import Servable, Server
from criw_proto.criw.network.v1 import (
    AttachRequest,
    AttachResponse,
    DetachRequest,
    DetachResponse,
    NetworkBase,
)


class Scripted(NetworkBase):
    """A service whose methods do what the test says: `detach` at once, `attach` with a pod id to do it for."""

    def __init__(self, work: Callable[[str], Awaitable[None]]) -> None:
        self._work = work
        self.calls: list[str] = []

    async def attach(self, message: AttachRequest) -> AttachResponse:
        self.calls.append(message.pod_id)
        await self._work(message.pod_id)
        return AttachResponse(netns_path=f"/netns/{message.pod_id}")

    async def detach(self, message: DetachRequest) -> DetachResponse:
        self.calls.append(message.pod_id)
        return DetachResponse()


def raising(err: Exception) -> Scripted:
    async def work(_: str) -> None:
        raise err

    return Scripted(work)


class Gate:
    """Work that begins and goes on until the test opens the gate."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.open = asyncio.Event()
        self.cancelled = asyncio.Event()

    async def __call__(self, _: str) -> None:
        self.begun.set()
        try:
            await self.open.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise


@contextlib.asynccontextmanager
async def serving(
    path: Path, *services: Servable, metrics: Metrics | None = None, callers: Callers | None = None
) -> AsyncIterator[Server]:
    """Serve at `path` until the block is left or the test has drained the server itself."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(path))
        listener.listen()
        listener.setblocking(False)
        server = Server(services, metrics or Metrics("test"), callers or Callers())
        await server.start(sock=listener)
        try:
            yield server
        finally:
            await server.drain(0.1)
            path.unlink()


async def raw_call(channel: Channel, method: str, request: bytes) -> bytes:
    """Call `method` with bytes, which need not be a message."""
    async with channel.request(method, Cardinality.UNARY_UNARY, bytes, bytes) as stream:
        await stream.send_message(request, end=True)
        reply = await stream.recv_message()
        assert reply is not None
        return reply
