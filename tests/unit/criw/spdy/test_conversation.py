"""Two connections back to back, over a pipe that cuts at random and pauses both sides."""

import asyncio
import random

import pytest

from criw.spdy.connection import STREAM_UNREAD_LIMIT, Closed, Connection, Stream
from support.spdy import connected

SEEDS = range(6)


async def all_of(stream: Stream) -> bytes:
    chunks = []
    while chunk := await stream.read():
        chunks.append(chunk)
    return b"".join(chunks)


async def echo(connection: Connection) -> None:
    """Accept all streams and send back what comes, until the connection ends."""

    async def one(stream: Stream) -> None:
        while chunk := await stream.read():
            await stream.write(chunk)
        stream.close_write()

    async with asyncio.TaskGroup() as tasks:
        while stream := await connection.accept():
            stream.accept()
            tasks.create_task(one(stream))


async def opened(client: Connection, server: Connection) -> tuple[Stream, Stream]:
    """Both ends of a new stream."""
    opening = asyncio.create_task(client.open({"streamtype": "data"}))
    there = await server.accept()
    assert there is not None
    there.accept()
    return await opening, there


@pytest.mark.parametrize("seed", SEEDS)
async def test_streams_side_by_side_carry_their_bytes(seed: int) -> None:
    async def talk(client: Connection, number: int) -> None:
        dice = random.Random(seed * 100 + number)
        data = dice.randbytes(dice.choice((0, 1, 1000, 300_000, 700_000)))
        stream = await client.open({"streamtype": "data", "requestid": str(number)})
        reading = asyncio.create_task(all_of(stream))
        at = 0
        while at < len(data):
            size = dice.choice((1, 50, 32_768, 200_000))
            await stream.write(data[at : at + size])
            at += size
        stream.close_write()
        assert await reading == data
        await stream.wait_gone()

    async with asyncio.timeout(60), connected(seed) as (client, server):
        echoing = asyncio.create_task(echo(server))
        async with asyncio.TaskGroup() as tasks:
            for number in range(8):
                tasks.create_task(talk(client, number))
        client.close()
        await server.closed()
        await echoing


@pytest.mark.parametrize("seed", SEEDS)
async def test_each_side_half_closes_and_still_hears_the_other(seed: int) -> None:
    async with asyncio.timeout(30), connected(seed) as (client, server):
        here, there = await opened(client, server)
        here.close_write()
        assert await there.read() == b""
        await there.write(b"answer")
        assert not here.gone
        there.close_write()
        assert await all_of(here) == b"answer"
        await asyncio.gather(here.wait_gone(), there.wait_gone())
        here, there = await opened(client, server)
        there.close_write()
        assert await here.read() == b""
        await here.write(b"question")
        here.close_write()
        assert await all_of(there) == b"question"


@pytest.mark.parametrize("seed", SEEDS)
async def test_a_reset_comes_behind_what_was_written(seed: int) -> None:
    async with asyncio.timeout(30), connected(seed) as (client, server):
        here, there = await opened(client, server)
        neighbour, its_end = await opened(client, server)
        data = random.Random(seed).randbytes(150_000)
        await there.write(data)
        there.reset()
        assert await all_of(here) == data
        assert here.peer_reset
        with pytest.raises(Closed):
            await here.write(b"x")
        await neighbour.write(b"lives")
        assert await its_end.read()


@pytest.mark.parametrize("seed", SEEDS)
async def test_a_stuck_stream_stops_a_busy_one_only_at_its_bound(seed: int) -> None:
    async with asyncio.timeout(60), connected(seed) as (client, server):
        stuck, stuck_end = await opened(client, server)
        busy, busy_end = await opened(client, server)
        await stuck.write(bytes(STREAM_UNREAD_LIMIT * 3 // 4))
        sending = asyncio.create_task(busy.write(bytes(3_000_000)))
        total = 0
        while total < 3_000_000:
            total += len(await busy_end.read())
        await sending
        flood = asyncio.create_task(stuck.write(bytes(2_000_000)))
        while not server._reading_paused:
            await asyncio.sleep(0)
        assert not flood.done()
        sending = asyncio.create_task(busy.write(b"behind the bound"))
        stuck_end.discard()
        await asyncio.gather(flood, sending)
        received = b""
        while len(received) < len(b"behind the bound"):
            received += await busy_end.read()
        assert received == b"behind the bound"


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("who", ["client", "server"])
async def test_what_was_written_before_a_close_arrives(seed: int, who: str) -> None:
    async with asyncio.timeout(30), connected(seed) as (client, server):
        ends = await opened(client, server)
        ending, other = (client, server) if who == "client" else (server, client)
        writer, reader = ends if who == "client" else ends[::-1]
        await writer.write(b"z" * 90_000)
        ending.close()
        assert await all_of(reader) == b"z" * 90_000
        await other.closed()
        assert reader.gone
        assert await server.accept() is None
        with pytest.raises(Closed):
            await client.open({})


async def test_many_streams_come_and_go_on_one_connection() -> None:
    async with asyncio.timeout(60), connected(1, max_streams=4) as (client, server):
        echoing = asyncio.create_task(echo(server))
        for number in range(1000):
            stream = await client.open({"requestid": str(number)})
            await stream.write(b"%d" % number)
            stream.close_write()
            assert await all_of(stream) == b"%d" % number
        client.close()
        await echoing
        assert not client._streams
        assert not server._streams
