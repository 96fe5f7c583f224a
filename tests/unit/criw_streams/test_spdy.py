"""The streams of a session over SPDY, between two connections back to back."""

import asyncio
import json

import pytest

from criw.spdy.connection import Closed, Connection, Stream
from criw_proto.criw.streams.v1 import Ends
from criw_streams import spdy
from criw_streams.client import Channel
from criw_streams.spdy import VERSIONS, SpdyClient
from criw_streams.status import Status, of_exit
from support.sessions import back_to_back

ALL = Ends(stdin=True, stdout=True, stderr=True)
NAMES = ("error", "stdin", "stdout", "stderr")


async def all_of(stream: Stream) -> bytes:
    pieces = []
    while piece := await stream.read():
        pieces.append(piece)
    return b"".join(pieces)


async def write_and_end(server: Connection, opened: asyncio.Event, version: str, status: Status) -> None:
    async with spdy.client_of(server, ALL, VERSIONS[version]) as client:
        assert client is not None
        await opened.wait()
        await client.write(Channel.STDOUT, b"output")
        await client.end(status)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("code", [0, 7])
async def test_the_end_is_told_as_the_version_says(version: str, code: int) -> None:
    (client, server), opened = back_to_back(), asyncio.Event()
    serving = asyncio.create_task(write_and_end(server, opened, version, of_exit(code)))
    streams = {name: await client.open({"streamtype": name}) for name in NAMES}
    opened.set()
    told = await all_of(streams["error"])
    assert await all_of(streams["stdout"]) == b"output"
    await serving
    await client.closed()
    if version in {"v5.channel.k8s.io", "v4.channel.k8s.io"}:
        assert json.loads(told)["status"] == ("Failure" if code else "Success")
    elif version == "channel.k8s.io":
        assert told == b""
    else:
        assert told == of_exit(code).text()


async def test_version_1_half_closes_stdin_and_resets_the_error_stream_at_once() -> None:
    client, server = back_to_back()
    async with asyncio.TaskGroup() as tasks:
        opening = tasks.create_task(client.open({"streamtype": "error"}))
        session = spdy.client_of(server, Ends(stdin=True), VERSIONS["channel.k8s.io"])
        entering = tasks.create_task(session.__aenter__())
        error = await opening
        stdin = await client.open({"streamtype": "stdin"})
        remote = await entering
    assert remote is not None
    assert await stdin.read() == b""
    assert not stdin.gone
    assert await error.read() == b""
    assert error.peer_reset
    await stdin.write(b"input")
    assert await remote.read() == b"input"
    await session.__aexit__(None, None, None)
    client.close()


async def test_a_client_that_does_not_open_all_streams_is_no_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spdy, "_STREAMS_LIMIT_S", 0.05)
    client, server = back_to_back()

    async def serve() -> SpdyClient | None:
        async with spdy.client_of(server, ALL, VERSIONS["v4.channel.k8s.io"]) as found:
            return found

    serving = asyncio.create_task(serve())
    for name in NAMES[:-1]:
        await client.open({"streamtype": name})
    assert await serving is None
    client.close()


async def test_other_streams_are_taken_and_a_second_of_a_kind_is_not() -> None:
    (client, server), opened = back_to_back(), asyncio.Event()
    serving = asyncio.create_task(write_and_end(server, opened, "v4.channel.k8s.io", Status()))
    await client.open({"streamtype": "future"})
    await client.open({})
    await client.open({"streamtype": "resize"})  # without a terminal
    await client.open({"streamtype": "error"})
    with pytest.raises(Closed):
        await client.open({"streamtype": "error"})
    for name in NAMES[1:]:
        await client.open({"streamtype": name})
    opened.set()
    await serving


async def test_a_client_that_reads_late_is_told_the_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pager stops reading for as long as somebody looks at a page."""
    client, server = back_to_back()
    loop, leap = asyncio.get_running_loop(), 0.0
    clock = loop.time
    monkeypatch.setattr(loop, "time", lambda: clock() + leap)

    async def serve() -> None:
        async with spdy.client_of(server, ALL, VERSIONS["v4.channel.k8s.io"]) as remote:
            assert remote is not None
            server.pause_writing()
            await remote.end(of_exit(7))

    serving = asyncio.create_task(serve())
    streams = {name: await client.open({"streamtype": name}) for name in NAMES}
    leap = 3600.0
    await asyncio.wait({serving}, timeout=0.05)
    server.resume_writing()
    assert json.loads(await all_of(streams["error"]))["details"]["causes"][0]["message"] == "7"
    await serving
