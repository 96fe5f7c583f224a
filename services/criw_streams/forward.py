"""Port-forward: connections to ports of a pod's own network namespace, copied both ways."""

import asyncio
import contextlib
import logging
import os
import socket
import struct
from functools import partial
from pathlib import Path
from typing import Final, Protocol

from criw import kernel
from criw.errors import Failed
from criw.spdy.connection import Closed
from criw_proto.criw.streams.v1 import Forwarding
from criw_streams.client import Gone

log = logging.getLogger(__name__)
_CONNECT_LIMIT_S: Final = 30.0
_PIECE: Final = 256 * 1024  # bytes
_NO_LINGER: Final = struct.pack("ii", 1, 0)  # closing is a reset
_LOOPBACKS: Final = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))


class Link(Protocol):
    """The client's end of one connection."""

    async def read(self) -> bytes:
        """b"" once it has sent all, or is gone."""

    async def write(self, data: bytes) -> None:
        """Waits while the client does not read. Raises Closed or Gone."""

    def close_write(self) -> None:
        """It has got all."""

    @property
    def gone(self) -> bool:
        """Whether the client has given the connection up, rather than sent all."""

    async def wait_gone(self) -> None:
        """Wait until it has, or both directions have ended."""


async def connect(forwarding: Forwarding, port: int) -> socket.socket:
    """A connection to the port at the pod's loopback, IPv4 first. Raises Failed."""
    reasons: list[str] = []
    for family, address in _LOOPBACKS:
        try:
            async with asyncio.timeout(_CONNECT_LIMIT_S):
                return await _connect(forwarding.netns, family, (address, port))
        except OSError as err:  # TimeoutError among them
            reasons.append(f"{address}: {os.strerror(err.errno) if err.errno else 'no answer'}")
    raise Failed(f"error forwarding port {port} to pod {forwarding.pod_id}, uid : cannot connect: {'; '.join(reasons)}")


async def _connect(netns: str, family: socket.AddressFamily, address: tuple[str, int]) -> socket.socket:
    make = partial(_socket_in, Path(netns) if netns else None, family)
    with contextlib.ExitStack() as undo:
        connection = undo.enter_context(await kernel.in_fresh_thread(make))
        await asyncio.get_running_loop().sock_connect(connection, address)
        undo.pop_all()
    return connection


def _socket_in(netns: Path | None, family: socket.AddressFamily) -> socket.socket:
    """A socket belongs to the namespace it is made in. Changes the thread's."""
    if netns is not None:
        with netns.open("rb") as file:
            kernel.setns(file.fileno(), kernel.CLONE_NEWNET)
    made = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    made.setblocking(False)
    return made


async def copy(connection: socket.socket, link: Link) -> None:
    """Copy both ways until both are at an end, or the client is gone. Takes the connection over.

    That the application resets its connection is an end like another.
    """
    reader, writer = await asyncio.open_connection(sock=connection, limit=_PIECE)
    down = asyncio.create_task(_down(reader, link), name="from the pod")
    up = asyncio.create_task(_up(writer, link), name="to the pod")
    leaving = asyncio.create_task(_abort_when_gone(connection, reader, writer, link), name="client")
    try:
        if await down:
            await up
    finally:
        every = (down, up, leaving)
        for task in every:
            task.cancel()
        await asyncio.gather(*every, return_exceptions=True)
        if reader.at_eof():
            writer.close()
        else:
            _abort(connection, reader, writer)


async def _abort_when_gone(
    connection: socket.socket, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, link: Link
) -> None:
    await link.wait_gone()
    if link.gone:
        _abort(connection, reader, writer)


def _abort(connection: socket.socket, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Close it without what is not sent yet; the application must not take that for all, unless it has ended itself."""
    if not (reader.at_eof() or writer.transport.is_closing()):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    writer.transport.abort()


async def _down(reader: asyncio.StreamReader, link: Link) -> bool:
    """False if the application has reset the connection, which ends the other direction, too."""
    orderly = True
    try:
        while data := await reader.read(_PIECE):
            await link.write(data)
    except OSError as err:
        log.debug("a forwarded connection was reset", extra={"error": str(err)})
        orderly = False
    except (Closed, Gone):
        return True
    link.close_write()
    return orderly


async def _up(writer: asyncio.StreamWriter, link: Link) -> None:
    try:
        while data := await link.read():
            writer.write(data)
            await writer.drain()
        if not link.gone:
            writer.write_eof()
    except (OSError, RuntimeError):  # the application has closed it (uvloop says RuntimeError): the rest is dropped
        while await link.read():
            pass
