"""Attach to what serves a container's streams as conmon does; see the system's tests for conmon itself."""

import asyncio
import os
import socket
from pathlib import Path

from criw_proto.criw.streams.v1 import Attachment, Ends
from support.sessions import Server
from support.streaming import STDERR, STDIN, STDOUT, over_spdy, read_until


async def test_input_that_was_not_asked_for_does_not_reach_the_container(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "attach"
    loop = asyncio.get_running_loop()
    attachment = Attachment(ends=Ends(stdout=True, stderr=True), container_id="c", socket=os.fspath(path))
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(os.fspath(path))
        listening.listen()
        listening.setblocking(False)
        async with over_spdy(server.url(attachment), (STDIN, STDOUT, STDERR)) as remote:
            connection, _ = await loop.sock_accept(listening)
            with connection:
                connection.setblocking(False)
                await remote.send(b"not asked for")
                await remote.connection.open({"streamtype": "other"})  # answered after what came before was read
                await loop.sock_sendall(connection, b"\2output")
                await read_until(remote, STDOUT, b"output")
                connection.shutdown(socket.SHUT_WR)
                await remote.connection.closed()
                assert await loop.sock_recv(connection, 100) == b""
