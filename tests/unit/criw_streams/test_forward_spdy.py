"""Which streams make a connection, between two SPDY connections back to back; the ports are this host's."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from criw.spdy.connection import Closed, Connection, Stream
from criw_proto.criw.streams.v1 import Forwarding
from criw_streams import forward_spdy
from support.own import free_port
from support.sessions import back_to_back


@pytest_asyncio.fixture
async def client() -> AsyncIterator[Connection]:
    client, server = back_to_back()
    running = asyncio.create_task(forward_spdy.run(server, Forwarding(pod_id="p")))
    try:
        async with asyncio.timeout(20):
            yield client
    finally:
        client.close()
        await running


@pytest_asyncio.fixture
async def port() -> AsyncIterator[int]:
    """Where all that is sent comes back."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()

    port = free_port()
    async with await asyncio.start_server(echo, "127.0.0.1", port):
        yield port


def headers(kind: str, port: int | str, request: str | None = "0") -> dict[str, str]:
    found = {"streamtype": kind, "port": str(port)}
    return found if request is None else found | {"requestid": request}


async def all_of(stream: Stream) -> bytes:
    pieces = []
    while piece := await stream.read():
        pieces.append(piece)
    return b"".join(pieces)


async def echoes(error: Stream, data: Stream, word: bytes) -> None:
    await data.write(word)
    data.close_write()
    assert await all_of(data) == word
    assert await all_of(error) == b""
    assert not data.peer_reset
    assert not error.peer_reset


@pytest.mark.parametrize("first", ["error", "data"])
async def test_two_streams_of_a_request_are_a_connection(client: Connection, port: int, first: str) -> None:
    second = "data" if first == "error" else "error"
    pair = {kind: await client.open(headers(kind, port)) for kind in (first, second)}
    await echoes(pair["error"], pair["data"], b"word")


async def test_an_identifier_can_be_used_again(client: Connection, port: int) -> None:
    for word in (b"first", b"second"):
        error = await client.open(headers("error", port))
        await echoes(error, await client.open(headers("data", port)), word)


async def test_without_an_identifier_neighbours_are_a_connection(client: Connection, port: int) -> None:
    first = [await client.open(headers(kind, port, None)) for kind in ("error", "data")]
    second = [await client.open(headers(kind, port, None)) for kind in ("error", "data")]
    await echoes(second[0], second[1], b"second")
    await echoes(first[0], first[1], b"first")


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"streamtype": "data"},
        {"streamtype": "data", "port": ""},
        {"streamtype": "data", "port": "0"},
        {"streamtype": "data", "port": "65536"},
        {"streamtype": "data", "port": "-1"},
        {"streamtype": "data", "port": "http"},
        {"streamtype": "data", "port": "80\0" + "81"},
        {"streamtype": "data", "port": "\xb2"},
        {"streamtype": "stdin", "port": "80"},
        {"port": "80"},
    ],
)
async def test_a_stream_that_says_something_wrong_is_refused(
    client: Connection, port: int, wrong: dict[str, str]
) -> None:
    with pytest.raises(Closed, match="reset"):
        await client.open(wrong | {"requestid": "0"})
    error = await client.open(headers("error", port))
    await echoes(error, await client.open(headers("data", port)), b"word")


async def test_a_second_error_stream_is_reset_and_the_first_tells_of_it(client: Connection, port: int) -> None:
    error = await client.open(headers("error", port))
    with pytest.raises(Closed, match="reset"):
        await client.open(headers("error", port))
    assert b"a second error stream" in await all_of(error)
    assert not error.peer_reset
    data = await client.open(headers("data", port))
    await data.write(b"word")
    data.close_write()
    assert await all_of(data) == b"word"


async def test_a_second_data_stream_is_reset_and_the_first_goes_on(client: Connection, port: int) -> None:
    data = await client.open(headers("data", port))
    with pytest.raises(Closed, match="reset"):
        await client.open(headers("data", port))
    await echoes(await client.open(headers("error", port)), data, b"word")


@pytest.mark.parametrize("kind", ["error", "data"])
async def test_a_stream_that_stays_alone_is_given_up(
    client: Connection, port: int, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forward_spdy, "_PAIR_LIMIT_S", 0.05)
    alone = await client.open(headers(kind, port))
    told = await all_of(alone)
    if kind == "error":
        assert b"no second stream" in told
        assert not alone.peer_reset
    else:
        assert alone.peer_reset
    error = await client.open(headers("error", port))
    await echoes(error, await client.open(headers("data", port)), b"word")


async def test_a_refused_port_is_told_of_on_its_error_stream(client: Connection, port: int) -> None:
    nobody = free_port()
    error = await client.open(headers("error", nobody, "1"))
    data = await client.open(headers("data", nobody, "1"))
    told = (await all_of(error)).decode()
    assert told.startswith(f"error forwarding port {nobody} to pod p, uid : ")
    assert "Connection refused" in told
    assert await data.read() == b""
    assert data.peer_reset
    error = await client.open(headers("error", port))
    await echoes(error, await client.open(headers("data", port)), b"word")
