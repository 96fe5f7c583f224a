"""Port-forward: bytes, ends, refusals and gone clients, over SPDY, the WebSocket tunnel and the older WebSocket."""

import asyncio
import base64
import contextlib
import hashlib
import random
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TypeAlias

import aiohttp
import pytest

from criw.config.crew import Config
from criw.spdy.connection import Closed, Connection, Stream
from criw_proto.runtime import v1 as cri
from support.client import Client
from support.network import HOST, Place
from support.own import free_port
from support.streaming import FORWARD, LIMIT_S, TUNNEL, V4, upgrade

MIB = 1024 * 1024
PORT = 8080  # in the pods' own namespaces
Forwarded: TypeAlias = Callable[[str], AbstractAsyncContextManager[Connection]]
Answer: TypeAlias = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def over_spdy(url: str) -> AsyncIterator[Connection]:
    spdy, _ = await upgrade(url, [FORWARD])
    try:
        async with asyncio.timeout(LIMIT_S):
            yield spdy.connection
    finally:
        spdy.abort()


class _Sink:
    """Sends what the connection writes as messages of a WebSocket."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[bytes] = asyncio.Queue()
        self.connection: Connection
        self.read_on = asyncio.Event()
        self.read_on.set()

    def write(self, data: bytes) -> None:
        self.queue.put_nowait(bytes(data))
        if self.queue.qsize() > 8:
            self.connection.pause_writing()

    def pause_reading(self) -> None:
        self.read_on.clear()

    def resume_reading(self) -> None:
        self.read_on.set()

    def close(self) -> None:
        self.read_on.set()

    async def send(self, websocket: aiohttp.ClientWebSocketResponse) -> None:
        while True:
            await websocket.send_bytes(await self.queue.get())
            if self.queue.empty():
                self.connection.resume_writing()


@contextlib.asynccontextmanager
async def over_tunnel(url: str) -> AsyncIterator[Connection]:
    sink = _Sink()
    sink.connection = connection = Connection(sink, server=False)

    async def receive(websocket: aiohttp.ClientWebSocketResponse) -> None:
        async for message in websocket:
            assert message.type is aiohttp.WSMsgType.BINARY
            connection.feed(message.data)
            await sink.read_on.wait()
        connection.feed_eof()

    connector = aiohttp.TCPConnector()
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        session.ws_connect(url, protocols=[TUNNEL], max_msg_size=0) as websocket,
    ):
        assert websocket.protocol == TUNNEL
        tasks = [asyncio.create_task(receive(websocket)), asyncio.create_task(sink.send(websocket))]
        try:
            async with asyncio.timeout(LIMIT_S):
                yield connection
        finally:
            await connector.close()  # without a word, as the other
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture(params=[over_spdy, over_tunnel], ids=["spdy", "tunnel"])
def forwarded(request: pytest.FixtureRequest) -> Forwarded:
    """Opens a URL of PortForward."""
    found: Forwarded = request.param
    return found


@contextlib.asynccontextmanager
async def served(place: Place, answer: Answer, *, address: str = "127.0.0.1", port: int = PORT) -> AsyncIterator[None]:
    """A server in a pod, without a container; `answer` closes nothing."""
    connections: set[asyncio.Task[None]] = set()

    async def answered(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.add(asyncio.current_task() or pytest.fail("no task"))
        try:
            await answer(reader, writer)
        except asyncio.CancelledError:
            pass  # the test has ended
        finally:
            writer.close()

    listening = await place.socket(address, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind((address, port))
    async with await asyncio.start_server(answered, sock=listening, backlog=200):
        try:
            yield
        finally:
            for task in connections:
                task.cancel()
            await asyncio.gather(*connections, return_exceptions=True)


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(256 * 1024):
        writer.write(data)
        await writer.drain()


async def pod_of(client: Client, config: Config) -> tuple[str, Place]:
    pod = await client.run_pod()
    return pod, Place(pod, config.run_dir("network") / "netns" / pod)


async def url_of(client: Client, pod: str, *ports: int) -> str:
    request = cri.PortForwardRequest(pod_sandbox_id=pod, port=list(ports))
    return (await client.runtime.port_forward(request)).url


async def pair(connection: Connection, port: int = PORT, request: str = "0") -> tuple[Stream, Stream]:
    """An error and a data stream, opened as clients do."""
    error = await connection.open({"streamtype": "error", "port": str(port), "requestid": request})
    error.close_write()
    return error, await connection.open({"streamtype": "data", "port": str(port), "requestid": request})


async def all_of(stream: Stream) -> bytes:
    pieces = []
    while piece := await stream.read():
        pieces.append(piece)
    return b"".join(pieces)


async def ended_well(error: Stream, data: Stream) -> None:
    """Both directions of data are at an end by now, or will be; nothing is told."""
    assert await all_of(error) == b""
    await data.wait_gone()
    assert not data.peer_reset
    assert not error.peer_reset


def sockets_of(agent: int) -> set[str]:
    found = set()
    for fd in Path(f"/proc/{agent}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            if (target := fd.readlink().name).startswith("socket:"):
                found.add(target)
    return found


def agent_of(config: Config) -> int:
    return int((config.state_dir("streams") / "0.lock").read_text())


async def until(holds: Callable[[], bool]) -> None:
    """Ask the kernel again and again, as it tells nobody."""
    async with asyncio.timeout(LIMIT_S):
        while not holds():
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "0.0.0.0"])
async def test_a_server_is_reached_where_it_listens(
    forwarded: Forwarded, client: Client, config: Config, address: str
) -> None:
    pod, place = await pod_of(client, config)
    async with served(place, echo, address=address), forwarded(await url_of(client, pod)) as connection:
        error, data = await pair(connection)
        await data.write(b"hello")
        assert await data.read() == b"hello"
        data.close_write()
        assert await all_of(data) == b""
        await ended_well(error, data)


async def test_a_program_of_a_container_is_reached(forwarded: Forwarded, client: Client, busybox: str) -> None:
    script = "echo served > /index.html; exec httpd -f -p 127.0.0.1:8080 -h /"
    pod = await client.run_pod()
    container = await client.run(pod, busybox, ("sh", "-c", script))
    await client.output(container, "sh", "-c", "until wget -qO- 127.0.0.1:8080; do sleep 0.02; done")
    async with forwarded(await url_of(client, pod)) as connection:
        error, data = await pair(connection)
        await data.write(b"GET /index.html HTTP/1.0\r\n\r\n")
        answer = await all_of(data)
        assert answer.startswith(b"HTTP/1.1 200")
        assert answer.endswith(b"served\n")
        data.close_write()
        await ended_well(error, data)


@pytest.mark.parametrize("size", [0, 1, 65537, 32 * MIB + 3])
async def test_bytes_are_exact_both_ways(forwarded: Forwarded, client: Client, config: Config, size: int) -> None:
    dice = random.Random(size)
    sent, got = hashlib.sha256(), hashlib.sha256()
    pod, place = await pod_of(client, config)
    async with served(place, echo), forwarded(await url_of(client, pod)) as connection:
        error, data = await pair(connection)

        async def send() -> None:
            left = size
            while left:
                piece = dice.randbytes(min(left, dice.choice((1, 100, 4096, 100_000, MIB))))
                sent.update(piece)
                await data.write(piece)
                left -= len(piece)
            data.close_write()

        sending = asyncio.create_task(send())
        while piece := await data.read():
            got.update(piece)
        await sending
        await ended_well(error, data)
    assert got.digest() == sent.digest()


async def test_each_side_can_end_first(forwarded: Forwarded, client: Client, config: Config) -> None:
    async def sums_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(str(len(await reader.read())).encode())

    async def speaks_first(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"first")
        writer.write_eof()
        heard.set_result(await reader.read())

    heard: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
    pod, place = await pod_of(client, config)
    async with (
        served(place, sums_up),
        served(place, speaks_first, port=PORT + 1),
        forwarded(await url_of(client, pod)) as connection,
    ):
        error, data = await pair(connection)
        await data.write(bytes(3 * MIB))
        data.close_write()
        assert await all_of(data) == str(3 * MIB).encode()
        await ended_well(error, data)
        error, data = await pair(connection, PORT + 1)
        assert await all_of(data) == b"first"
        await data.write(b"second")
        data.close_write()
        assert await heard == b"second"
        await ended_well(error, data)


async def test_fifty_connections_at_once(forwarded: Forwarded, client: Client, config: Config) -> None:
    pod, place = await pod_of(client, config)
    async with served(place, echo), forwarded(await url_of(client, pod)) as connection:

        async def one(number: int) -> None:
            error, data = await pair(connection, request=str(number))
            for word in (b"%d " % number * 9999, b"again"):
                await data.write(word)
                got = b""
                while len(got) < len(word):
                    got += await data.read()
                assert got == word
            data.close_write()
            await ended_well(error, data)

        await asyncio.gather(*(one(number) for number in range(50)))


async def test_a_refused_port_ends_no_other_connection(forwarded: Forwarded, client: Client, config: Config) -> None:
    pod, place = await pod_of(client, config)
    async with served(place, echo), forwarded(await url_of(client, pod)) as connection:
        good_error, good = await pair(connection)
        error, data = await pair(connection, 81, "1")
        told = (await all_of(error)).decode()
        assert told.startswith(f"error forwarding port 81 to pod {pod}, uid : ")
        assert "Connection refused" in told
        assert await data.read() == b""
        for wrong in ({"port": "0"}, {"port": "http"}, {}, {"port": "80", "streamtype": "other"}):
            with pytest.raises(Closed):
                await connection.open({"streamtype": "data", **wrong})
        await good.write(b"still there")
        assert await good.read() == b"still there"
        good.close_write()
        await ended_well(good_error, good)


async def test_a_reset_ends_its_connection_and_tells_no_error(
    forwarded: Forwarded, client: Client, config: Config
) -> None:
    """kubectl gives up all connections on any word on an error stream."""

    async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    pod, place = await pod_of(client, config)
    async with (
        served(place, reset),
        served(place, echo, port=PORT + 1),
        forwarded(await url_of(client, pod)) as connection,
    ):
        other_error, other = await pair(connection, PORT + 1, "1")
        error, data = await pair(connection)
        await data.write(b"x")
        assert await all_of(data) == b""
        assert await all_of(error) == b""
        assert not data.peer_reset
        assert not error.peer_reset
        await data.write(bytes(4 * MIB))  # nobody wants it, and it holds up nobody
        await other.write(b"still there")
        assert await other.read() == b"still there"
        other.close_write()
        await ended_well(other_error, other)


async def test_beside_a_connection_nobody_reads_another_goes_on(
    forwarded: Forwarded, client: Client, config: Config
) -> None:
    """As far as there is room for what is not read; then the client must wait, and the agent's memory is bounded."""

    async def stuck(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reading.wait()
        left = size
        while left:
            left -= len(await reader.read(MIB))
        writer.write(b"all")

    reading, size = asyncio.Event(), 64 * MIB
    pod, place = await pod_of(client, config)
    statm = Path(f"/proc/{agent_of(config)}/statm")
    async with (
        served(place, stuck),
        served(place, echo, port=PORT + 1),
        forwarded(await url_of(client, pod)) as connection,
    ):
        _, full = await pair(connection)
        _, busy = await pair(connection, PORT + 1, "1")
        await full.write(bytes(MIB))
        for _ in range(20):
            await busy.write(bytes(MIB // 16))
            got = 0
            while got < MIB // 16:
                got += len(await busy.read())
        before = int(statm.read_text().split()[1])
        sending = asyncio.create_task(full.write(bytes(size - MIB)))
        done, _ = await asyncio.wait({sending}, timeout=1.0)
        assert not done
        assert (int(statm.read_text().split()[1]) - before) * 4096 < 16 * MIB
        reading.set()
        assert await full.read() == b"all"
        await sending
        await busy.write(b"last")
        assert await busy.read() == b"last"


async def test_a_client_that_vanishes_leaves_nothing(forwarded: Forwarded, client: Client, config: Config) -> None:
    """And the application is not told that a part was all."""

    async def hear(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.readexactly(100_000)
        heard.put_nowait("all so far")
        try:
            heard.put_nowait((await reader.read()).decode() or "end")
        except ConnectionResetError:
            heard.put_nowait("reset")

    heard: asyncio.Queue[str] = asyncio.Queue()
    pod, place = await pod_of(client, config)
    before = sockets_of(agent_of(config))
    async with served(place, hear):
        async with forwarded(await url_of(client, pod)) as connection:
            for request in range(5):
                _, data = await pair(connection, request=str(request))
                await data.write(bytes(100_000))
            await connection.open({"streamtype": "error", "port": str(PORT), "requestid": "incomplete"})
            assert [await heard.get() for _ in range(5)] == ["all so far"] * 5
        async with asyncio.timeout(LIMIT_S):
            assert [await heard.get() for _ in range(5)] == ["reset"] * 5
        await until(lambda: sockets_of(agent_of(config)) <= before)


async def test_a_pod_on_the_hosts_network(forwarded: Forwarded, client: Client) -> None:
    pod_config = client.pod_config()
    assert pod_config.linux is not None
    pod_config.linux.security_context = cri.LinuxSandboxSecurityContext(
        namespace_options=cri.NamespaceOption(network=cri.NamespaceMode.NODE)
    )
    pod, port = await client.run_pod(pod_config), free_port()
    async with served(HOST, echo, port=port), forwarded(await url_of(client, pod)) as connection:
        error, data = await pair(connection, port)
        await data.write(b"hello")
        data.close_write()
        assert await all_of(data) == b"hello"
        await ended_well(error, data)


async def test_without_identifiers_neighbours_are_a_connection(
    forwarded: Forwarded, client: Client, config: Config
) -> None:
    pod, place = await pod_of(client, config)
    async with served(place, echo), forwarded(await url_of(client, pod)) as connection:
        error = await connection.open({"streamtype": "error", "port": str(PORT)})
        data = await connection.open({"streamtype": "data", "port": str(PORT)})
        await data.write(b"hello")
        data.close_write()
        assert await all_of(data) == b"hello"
        error.close_write()
        await ended_well(error, data)


# --- the older WebSocket


@pytest.mark.parametrize("subprotocol", ["", V4, "v4.base64.channel.k8s.io"])
async def test_ports_of_the_request_have_two_channels_each(client: Client, config: Config, subprotocol: str) -> None:
    async def upper(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(MIB):
            writer.write(data.upper())
            if data.endswith(b"bye"):
                return

    in_base64 = "base64" in subprotocol
    pod, place = await pod_of(client, config)
    protocols = [subprotocol] if subprotocol else []
    async with (
        asyncio.timeout(LIMIT_S),
        served(place, upper),
        served(place, echo, port=PORT + 1),
        aiohttp.ClientSession() as session,
        session.ws_connect(await url_of(client, pod, PORT, 81, PORT + 1), protocols=protocols) as websocket,
    ):
        got = dict.fromkeys(range(6), b"")

        async def send(channel: int, data: bytes) -> None:
            if in_base64:
                await websocket.send_str(f"{channel}{base64.b64encode(data).decode()}")
            else:
                await websocket.send_bytes(bytes((channel,)) + data)

        async def has(channel: int, data: bytes) -> None:
            while data not in got[channel]:
                message = await websocket.receive()
                assert message.type is (aiohttp.WSMsgType.TEXT if in_base64 else aiohttp.WSMsgType.BINARY), message
                raw = message.data
                number, piece = (int(raw[0]), base64.b64decode(raw[1:])) if in_base64 else (raw[0], raw[1:])
                got[number] += piece

        for channel, port in enumerate((PORT, PORT, 81, 81, PORT + 1, PORT + 1)):
            await has(channel, port.to_bytes(2, "little"))
        await has(3, b"refused")
        assert got[3][2:].decode().startswith(f"error forwarding port 81 to pod {pod}, uid : ")
        for _ in range(40):  # to the port that was refused: it holds up nobody
            await send(2, bytes(100_000))
        await send(0, b"first")
        await has(0, b"FIRST")
        await send(4, b"second")
        await has(4, b"second")
        await send(9, b"nobody's")
        await send(0, b"bye")
        await has(0, b"BYE")  # its last word: this connection has ended
        await send(4, b"third")
        await has(4, b"third")
        assert got[1] == PORT.to_bytes(2, "little")


async def test_the_older_websocket_ends_with_its_connections(client: Client, config: Config) -> None:
    async def once(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"once")

    pod, place = await pod_of(client, config)
    async with (
        asyncio.timeout(LIMIT_S),
        served(place, once),
        aiohttp.ClientSession() as session,
        session.ws_connect(await url_of(client, pod, PORT), protocols=[V4]) as websocket,
    ):
        messages = [message.data async for message in websocket]
        assert b"".join(data[1:] for data in messages if data[0] == 0)[2:] == b"once"
        assert websocket.close_code == 1000
