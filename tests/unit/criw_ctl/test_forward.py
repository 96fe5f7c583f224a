"""criwctl port-forward as a process, against a runtime's end of the tunnel that connects to real TCP servers."""

import asyncio
import contextlib
import os
import re
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import pytest_asyncio
from aiohttp import web

from criw.errors import InvalidArgument
from criw.spdy.connection import Closed, Stream
from criw_ctl.forward import Forward, parse_forward
from criw_ctl.tunnel import Tunnel
from criw_proto.runtime import v1 as cri
from support.fake_streaming import CRON_POD, LIMIT_S, WEB_POD, criwctl, end, start, streaming
from support.fake_streaming import Streaming as Server
from support.own import free_port

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.mark.parametrize(
    ("text", "wish"),
    [
        ("80", Forward("127.0.0.1", 80, 80)),
        (":80", Forward("127.0.0.1", 0, 80)),
        ("8080:80", Forward("127.0.0.1", 8080, 80)),
        ("0.0.0.0:8080:80", Forward("0.0.0.0", 8080, 80)),
        ("localhost:8080:80", Forward("127.0.0.1", 8080, 80)),
        ("[::1]:8080:80", Forward("::1", 8080, 80)),
        ("127.0.0.2::80", Forward("127.0.0.2", 0, 80)),
    ],
)
def test_ports(text: str, wish: Forward) -> None:
    assert parse_forward(text) == wish


@pytest.mark.parametrize("text", ["", ":", "x", "80:", "0", "0:80", "65536", "a:1:2", "1:2:3", "-1", "٣", "1:2:80"])
def test_no_ports(text: str) -> None:
    with pytest.raises(InvalidArgument, match="cannot forward"):
        parse_forward(text)


async def serve_tunnel(websocket: web.WebSocketResponse) -> None:
    """The runtime's side: pairs of streams to ports of this host."""
    tunnel = Tunnel(websocket, server=True)
    waiting: dict[str, Stream] = {}

    async def accept() -> None:
        async with asyncio.TaskGroup() as pairs:
            while (stream := await tunnel.connection.accept()) is not None:
                stream.accept()
                if stream.headers["streamtype"] == "error":
                    waiting[stream.headers["requestid"]] = stream
                else:
                    pairs.create_task(connect(waiting.pop(stream.headers["requestid"]), stream))

    accepting = asyncio.create_task(accept())
    await tunnel.run()
    await accepting


async def connect(error: Stream, data: Stream) -> None:
    assert await error.read() == b""  # half-closed at once
    assert error.headers["port"] == data.headers["port"]
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(data.headers["port"]))
    except OSError:
        await error.write(b"error forwarding port: connection refused")
        error.close_write()
        data.reset()
        return

    async def inward() -> None:
        while chunk := await data.read():
            writer.write(chunk)
            await writer.drain()
        if data.lost is None:
            writer.write_eof()
        else:
            writer.transport.abort()

    async def outward() -> None:
        with contextlib.suppress(Closed, ConnectionError):
            while chunk := await reader.read(65536):
                await data.write(chunk)
        data.close_write()
        error.close_write()

    await asyncio.gather(inward(), outward())
    writer.close()


@contextlib.asynccontextmanager
async def answering(answer: Answer) -> AsyncIterator[int]:
    """A TCP server in "the pod"; its port."""
    tasks: set[asyncio.Task[None]] = set()

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await answer(reader, writer)
        finally:
            writer.close()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.create_task(one(reader, writer)))

    server = await asyncio.start_server(accept, "127.0.0.1", free_port())
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def echo_at_the_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers only when the client has half-closed."""
    writer.write(await reader.read())
    await writer.drain()


@pytest_asyncio.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    async with streaming(tmp_path) as server:
        server.forwarded = serve_tunnel
        yield server


@contextlib.asynccontextmanager
async def forwarding(server: Server, *argv: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, list[int]]]:
    """criwctl port-forward of :REMOTE..., and the local ports."""
    process = await start(server, "port-forward", "web", *argv)
    try:
        assert process.stdout is not None
        ports = []
        for _ in argv:
            line = await asyncio.wait_for(process.stdout.readline(), LIMIT_S)
            found = re.match(rb"127\.0\.0\.1:(\d+) leads to port \d+ of web\n", line)
            assert found, line
            ports.append(int(found[1]))
        yield process, ports
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGINT)
        assert (await end(process)).code == 0


async def exchange(port: int, text: bytes) -> bytes:
    """Send all, half-close, and read to the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)

    async def send() -> None:
        writer.write(text)
        await writer.drain()
        writer.write_eof()

    try:
        async with asyncio.timeout(LIMIT_S):
            answer, _ = await asyncio.gather(reader.read(), send())
        return answer
    finally:
        writer.close()


async def test_bytes_and_half_closes_go_both_ways_in_many_connections(server: Server) -> None:
    async with answering(echo_at_the_end) as remote, forwarding(server, f":{remote}") as (_, (port,)):
        texts = [os.urandom(size) for size in (0, 1, 300_000, 2_000_000, 5)]
        assert await asyncio.gather(*(exchange(port, text) for text in texts)) == texts
    assert server.runtime.asked == [cri.PortForwardRequest(pod_sandbox_id=WEB_POD, port=[remote])]


async def test_a_refused_port_is_told_and_ends_only_that_connection(server: Server) -> None:
    async with answering(echo_at_the_end) as remote:
        nobody = free_port()
        async with forwarding(server, f":{remote}", f":{nobody}") as (process, (port, dead)):
            open_reader, open_writer = await asyncio.open_connection("127.0.0.1", port)
            open_writer.write(b"still ")
            with contextlib.suppress(ConnectionError):
                assert await exchange(dead, b"x") == b""
            assert process.stderr is not None
            line = await asyncio.wait_for(process.stderr.readline(), LIMIT_S)
            assert line.decode() == (
                f"criwctl: cannot forward a connection to port {nobody}: error forwarding port: connection refused\n"
            )
            open_writer.write(b"here")
            open_writer.write_eof()
            assert await asyncio.wait_for(open_reader.read(), LIMIT_S) == b"still here"
            open_writer.close()


async def test_a_client_that_breaks_off_frees_the_connection_in_the_pod(server: Server) -> None:
    ended = asyncio.Event()

    async def until_the_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(b"x" * 65536)
                await writer.drain()
        ended.set()

    async with answering(until_the_end) as remote, forwarding(server, f":{remote}") as (_, (port,)):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.wait_for(reader.readexactly(1_000_000), LIMIT_S)
        writer.transport.abort()
        await asyncio.wait_for(ended.wait(), LIMIT_S)
        assert not [task for task in asyncio.all_tasks() if "pair" in task.get_name()]


async def test_a_taken_port_is_told_before_anything_is_asked(server: Server) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = await criwctl(server, "port-forward", "web", f"{taken.getsockname()[1]}:80")
    assert done.code == 1
    (line,) = done.err.splitlines()
    assert line.startswith("criwctl: cannot listen on 127.0.0.1:")
    assert server.runtime.asked == []


async def test_a_server_that_goes_away_ends_it(server: Server) -> None:
    async def script(websocket: web.WebSocketResponse) -> None:
        await websocket.close()

    server.forwarded = script
    done = await criwctl(server, "port-forward", "cron", f"{free_port()}:80")
    assert done.code == 1
    assert "the streaming server went away" in done.err
    assert server.runtime.asked == [cri.PortForwardRequest(pod_sandbox_id=CRON_POD, port=[80])]


async def test_ctrl_c_ends_it_with_connections_open(server: Server) -> None:
    async with answering(echo_at_the_end) as remote, forwarding(server, f":{remote}") as (process, (port,)):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"x")
        process.send_signal(signal.SIGINT)
        assert await asyncio.wait_for(reader.read(), LIMIT_S) == b""
        writer.close()
        assert await asyncio.wait_for(process.wait(), LIMIT_S) == 0
