"""Attach: the streams of a container's first process, from now on.

conmon serves them at a socket: what it sends are packets of a stream's number and bytes, what it is sent goes to the
container's stdin. It waits for whoever does not read, and with it the container and its log: so the socket is always
read, and a client that falls too far behind is ended.
"""

import asyncio
import errno
import logging
import os
import socket
from collections import deque
from pathlib import Path
from typing import Final

from criw.errors import FailedPrecondition, Fault
from criw.kernel import suppress_errno
from criw_proto.criw.streams.v1 import Attachment
from criw_streams.client import Channel, Client, Gone
from criw_streams.status import Status

log = logging.getLogger(__name__)
BEHIND_LIMIT: Final = 16 * 1024 * 1024  # bytes a client may have to read yet
_PACKET: Final = 64 * 1024  # more than conmon ever sends at once
_INPUT: Final = 8 * 1024  # bytes it certainly takes at once
_CHANNELS: Final = {2: Channel.STDOUT, 3: Channel.STDERR}


async def run(attachment: Attachment, client: Client) -> None:
    """Serve the client until the container has ended or the client has gone; the container goes on then."""
    try:
        status = await _serve(attachment, client)
    except (Fault, OSError) as err:
        log.info("cannot attach", extra={"container": attachment.container_id, "error": str(err)})
        status = Status(f"error attaching to container: {err}")
    await client.end(status)


async def _serve(attachment: Attachment, client: Client) -> Status:
    with _connect(Path(attachment.socket)) as connection:
        output = _Output(client)
        reading = asyncio.create_task(_read(connection, output), name="output")
        sending = asyncio.create_task(output.send(), name="client")
        leaving = asyncio.create_task(client.gone.wait(), name="gone")
        behind = asyncio.create_task(output.behind.wait(), name="behind")
        others = [
            asyncio.create_task(_feed(client, connection), name="stdin"),
            asyncio.create_task(_resize(client, Path(attachment.control)), name="resize"),
        ]
        try:
            await asyncio.wait({sending, leaving, behind}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            every = (reading, sending, leaving, behind, *others)
            for task in every:
                task.cancel()
            outcomes = await asyncio.gather(*every, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, Exception) and not isinstance(outcome, Gone):
                raise outcome
    return output.verdict


class _Output:
    """What the container has written and the client has not got yet."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._wanted = {Channel.STDOUT: client.ends.stdout, Channel.STDERR: client.ends.stderr}
        self._pieces: deque[tuple[Channel, bytes]] = deque()
        self._bytes = 0
        self._news = asyncio.Event()
        self._ended = False
        self.verdict = Status()
        self.behind = asyncio.Event()

    def put(self, channel: Channel, data: bytes) -> None:
        if self._wanted[channel]:
            self._pieces.append((channel, data))
            self._bytes += len(data)
            self._news.set()
        if self._bytes > BEHIND_LIMIT:
            self.verdict = Status(f"error attaching to container: the client is {self._bytes} bytes behind it")
            self.behind.set()

    def end(self) -> None:
        self._ended = True
        self._news.set()

    async def send(self) -> None:
        """Send all there is until the end."""
        while True:
            while self._pieces:
                channel, data = self._pieces.popleft()
                await self._client.write(channel, data)
                self._bytes -= len(data)
            if self._ended:
                return
            await self._news.wait()
            self._news.clear()


async def _read(connection: socket.socket, output: _Output) -> None:
    loop = asyncio.get_running_loop()
    while packet := await loop.sock_recv(connection, _PACKET):
        channel = _CHANNELS.get(packet[0])
        if channel is not None:
            output.put(channel, packet[1:])
            if output.behind.is_set():
                return
    output.end()


async def _feed(client: Client, connection: socket.socket) -> None:
    """Give the container its input. The end of it closes the container's, if it was made so (`stdin_once`)."""
    loop = asyncio.get_running_loop()
    try:
        while data := await client.read():
            for at in range(0, len(data), _INPUT):
                await loop.sock_sendall(connection, data[at : at + _INPUT])
        if client.ends.stdin and not client.gone.is_set():
            connection.shutdown(socket.SHUT_WR)
    except OSError:  # the container has ended
        while await client.read():
            pass


async def _resize(client: Client, control: Path) -> None:
    while (size := await client.size()) is not None:
        await asyncio.to_thread(_order, control, f"1 {size.height} {size.width}\n".encode())


def _order(control: Path, message: bytes) -> None:
    with suppress_errno(errno.ENXIO, errno.ENOENT, errno.EPIPE):  # the container has ended
        fd = os.open(control, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            os.write(fd, message)
        finally:
            os.close(fd)


def _connect(path: Path) -> socket.socket:
    """Raises FailedPrecondition if nobody serves the streams any more."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            connection.connect(f"/proc/self/fd/{directory}/{path.name}")  # its path is longer than a socket's may be
        finally:
            os.close(directory)
    except (FileNotFoundError, ConnectionRefusedError) as err:
        connection.close()
        raise FailedPrecondition("the container has ended") from err
    return connection
