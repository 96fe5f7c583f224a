"""Connections on real sockets, in asyncio's loop and in uvloop's."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager

import pytest
import uvloop

from criw.spdy.connection import Closed, Stream
from criw.spdy.frames import Data, Frame, GoAway, Ping, Reader, Reset, SynReply, SynStream, Writer
from criw.spdy.tcp import WRITE_BUFFER_BYTES, TcpConnection
from support.spdy import joined

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
LIMIT_S = 30.0
Run = Callable[[Coroutine[None, None, None]], None]


@pytest.fixture(params=LOOPS)
def run(request: pytest.FixtureRequest) -> Run:
    """Runs a test's coroutine in a loop of its own."""

    def in_loop(work: Coroutine[None, None, None]) -> None:
        with asyncio.Runner(loop_factory=LOOPS[request.param]) as runner:
            runner.run(asyncio.wait_for(work, LIMIT_S))

    return in_loop


def sockets() -> tuple[socket.socket, socket.socket]:
    """Both ends of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        theirs = socket.create_connection(listening.getsockname())
        ours, _ = listening.accept()
    theirs.setblocking(False)
    return ours, theirs


@asynccontextmanager
async def served() -> AsyncIterator[tuple[TcpConnection, socket.socket]]:
    """A server's connection and the client's bare socket."""
    loop = asyncio.get_running_loop()
    ours, theirs = sockets()
    _, tcp = await loop.create_connection(lambda: TcpConnection(server=True), sock=ours)
    try:
        yield tcp, theirs
    finally:
        tcp.abort()
        theirs.close()


async def said(theirs: socket.socket) -> list[Frame]:
    """What the server says until it ends."""
    loop, reader, frames = asyncio.get_running_loop(), Reader(), list[Frame]()
    while data := await loop.sock_recv(theirs, 65536):
        frames += reader.feed(data)
    return joined(frames)


async def gone(tcp: TcpConnection) -> None:
    """Wait until the transport is closed, or about to be."""
    while not tcp._transport.is_closing():
        await asyncio.sleep(0)


async def opened(tcp: TcpConnection, theirs: socket.socket) -> Stream:
    await asyncio.get_running_loop().sock_sendall(theirs, Writer().encode(SynStream(1, {})))
    stream = await tcp.connection.accept()
    assert stream is not None
    stream.accept()
    return stream


async def echo(tcp: TcpConnection) -> None:
    while stream := await tcp.connection.accept():
        stream.accept()
        while chunk := await stream.read():
            await stream.write(chunk)
        stream.close_write()


def test_bytes_go_there_and_back(run: Run) -> None:
    async def work() -> None:
        loop = asyncio.get_running_loop()
        ours, theirs = sockets()
        _, server = await loop.create_connection(lambda: TcpConnection(server=True), sock=ours)
        _, client = await loop.create_connection(lambda: TcpConnection(server=False), sock=theirs)
        data = bytes(range(256)) * 40_000
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(echo(server))
            stream = await client.connection.open({"streamtype": "data"})
            writing = tasks.create_task(stream.write(data))
            received = b""
            while len(received) < len(data):
                received += await stream.read()
            await writing
            assert received == data
            client.connection.close()
            await server.connection.closed()

    run(work())


def test_a_transport_is_taken_over_with_what_was_read_of_it(run: Run) -> None:
    async def work() -> None:
        loop = asyncio.get_running_loop()
        ours, theirs = sockets()
        await loop.sock_sendall(
            theirs, b"POST / HTTP/1.1\r\n\r\n" + Writer().encode(SynStream(1, {"a": "b"})) + b"\0\0"
        )
        reader, writer = await asyncio.open_connection(sock=ours)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"POST")
        rest = await reader.read(100)
        tcp = TcpConnection(server=True)
        writer.transport.set_protocol(tcp)
        tcp.connection_made(writer.transport)
        tcp.data_received(rest)
        await loop.sock_sendall(theirs, b"\0\1\1\0\0\2hi")
        stream = await tcp.connection.accept()
        assert stream is not None
        assert [stream.headers, await stream.read(), await stream.read()] == [{"a": "b"}, b"hi", b""]
        tcp.abort()
        theirs.close()

    run(work())


def test_a_peer_that_still_sends_gets_all_that_was_written_before_the_end(run: Run) -> None:
    """Were the socket closed with its bytes unread, the kernel would take back what is on its way."""

    async def work() -> None:
        async with served() as (tcp, theirs):
            stream = await opened(tcp, theirs)
            flood = asyncio.create_task(flooded(theirs))
            while tcp.connection._unread < 1_000_000:
                await asyncio.sleep(0)
            await stream.write(b"z" * 200_000)
            tcp.connection.close()
            assert await said(theirs) == [SynReply(1, {}), Data(1, b"z" * 200_000), Reset(1, 5), GoAway(1, 0)]
            assert not flood.done() or flood.exception() is None
            flood.cancel()
            await asyncio.wait({flood})

    async def flooded(theirs: socket.socket) -> None:
        for _ in range(200):
            await asyncio.get_running_loop().sock_sendall(theirs, Writer().encode(Data(1, bytes(60_000))))

    run(work())


async def closed_with_bytes_unwritten(tcp: TcpConnection, theirs: socket.socket) -> None:
    tcp._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # small steps
    stream = await opened(tcp, theirs)
    writing = asyncio.create_task(stream.write(b"z" * 50_000_000))
    while not tcp.connection._writing_paused:
        await asyncio.sleep(0)
    assert tcp._transport.get_write_buffer_size() > 0
    tcp.connection.close()
    await asyncio.wait({writing})
    assert isinstance(writing.exception(), Closed)


def test_a_slow_peer_gets_the_end_however_late(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        async with served() as (tcp, theirs):
            monkeypatch.setattr("criw.spdy.tcp.LINGER_LIMIT_S", 0)
            await closed_with_bytes_unwritten(tcp, theirs)
            assert (await said(theirs))[-2:] == [Reset(1, 5), GoAway(1, 0)]

    run(work())


def test_a_closed_socket_hears_that_the_peer_has_closed_its_end(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        async with served() as (tcp, theirs):
            monkeypatch.setattr("criw.spdy.tcp.LINGER_LIMIT_S", 1000)
            await opened(tcp, theirs)
            await asyncio.get_running_loop().sock_sendall(theirs, Writer().encode(Data(1, bytes(1_100_000))))
            while not tcp.connection._reading_paused:
                await asyncio.sleep(0)
            tcp.connection.abort()
            await said(theirs)
            theirs.close()
            await gone(tcp)

    run(work())


def test_a_peer_that_never_closes_is_left_after_a_while(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        async with served() as (tcp, theirs):
            monkeypatch.setattr("criw.spdy.tcp.LINGER_LIMIT_S", 0.05)
            await closed_with_bytes_unwritten(tcp, theirs)
            await said(theirs)
            await gone(tcp)

    run(work())


def test_a_writer_waits_for_a_peer_that_does_not_read(run: Run) -> None:
    async def work() -> None:
        async with served() as (tcp, theirs):
            stream = await opened(tcp, theirs)
            writing = asyncio.create_task(stream.write(bytes(50_000_000)))
            while not tcp.connection._writing_paused:
                await asyncio.sleep(0)
            assert tcp._transport.get_write_buffer_size() < WRITE_BUFFER_BYTES + 100_000
            theirs.close()
            await asyncio.wait({writing})
            assert writing.exception() is not None
            await tcp.connection.closed()
            await gone(tcp)

    run(work())


def test_a_peer_that_ends_its_side_ends_the_connection(run: Run) -> None:
    async def work() -> None:
        async with served() as (tcp, theirs):
            stream = await opened(tcp, theirs)
            theirs.shutdown(socket.SHUT_WR)
            assert await stream.read() == b""
            await tcp.connection.closed()
            assert await said(theirs) == [SynReply(1, {})]
            await gone(tcp)

    run(work())


def test_a_peer_that_speaks_something_else_is_told_and_left(run: Run) -> None:
    async def work() -> None:
        async with served() as (tcp, theirs):
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(theirs, Writer().encode(Ping(1)))
            await loop.sock_sendall(theirs, b"\xffGET / HTTP/1.1\r\n\r\n")
            assert (await said(theirs))[-1] == GoAway(0, 1)
            await tcp.connection.closed()

    run(work())
