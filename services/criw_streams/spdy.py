"""Exec and attach over SPDY: a stream for each of stdin, stdout, stderr, error and resize, which the client opens."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

from criw.spdy.connection import Closed, Connection, Stream
from criw_proto.criw.streams.v1 import Ends
from criw_streams.client import Channel, Gone, Size, Sizes
from criw_streams.status import Status

log = logging.getLogger(__name__)
_STREAMS_LIMIT_S: Final = 30.0


@dataclass(frozen=True)
class Version:
    """What a version of the protocol can do."""

    resize: bool = True
    json_status: bool = True
    tells_errors: bool = True


VERSIONS: Final = {
    "v5.channel.k8s.io": Version(),
    "v4.channel.k8s.io": Version(),
    "v3.channel.k8s.io": Version(json_status=False),
    "v2.channel.k8s.io": Version(resize=False, json_status=False),
    "channel.k8s.io": Version(resize=False, json_status=False, tells_errors=False),
}


class SpdyClient:
    """The client of a session (`client.Client`)."""

    def __init__(self, connection: Connection, ends: Ends, version: Version, streams: dict[str, Stream]) -> None:
        self.ends = ends
        self.gone = asyncio.Event()
        self._connection = connection
        self._version = version
        self._streams = streams
        self._sizes = Sizes()
        self._outputs = {
            channel: streams[name]
            for channel, name in ((Channel.STDOUT, "stdout"), (Channel.STDERR, "stderr"))
            if name in streams
        }

    async def watch(self) -> None:
        """For as long as the session lasts: read what need not be waited for, and tell when the client has gone."""
        reading = [asyncio.create_task(self._read_sizes()), asyncio.create_task(_ignore_others(self._connection))]
        try:
            await self._connection.closed()
            self.gone.set()
        finally:
            for task in reading:
                task.cancel()
            await asyncio.gather(*reading, return_exceptions=True)

    async def _read_sizes(self) -> None:
        if (stream := self._streams.get("resize")) is not None:
            while data := await stream.read():
                self._sizes.feed(data)
        self._sizes.end()

    async def read(self) -> bytes:
        stream = self._streams.get("stdin")
        return b"" if stream is None else await stream.read()

    async def write(self, channel: Channel, data: bytes) -> None:
        try:
            await self._outputs[channel].write(data)
        except Closed as err:
            raise Gone from err

    async def size(self) -> Size | None:
        return await self._sizes.next()

    async def end(self, status: Status) -> None:
        for stream in self._outputs.values():
            stream.close_write()
        try:
            await self._tell(status)
        except Closed:  # there is nobody to be told
            self.gone.set()
        self._connection.close()

    async def _tell(self, status: Status) -> None:
        if self._version.tells_errors:
            told = status.json() if self._version.json_status else status.text()
            if told:
                await self._streams["error"].write(told)
            self._streams["error"].close_write()


@contextlib.asynccontextmanager
async def client_of(connection: Connection, ends: Ends, version: Version) -> AsyncIterator[SpdyClient | None]:
    """The client, once it has opened all streams that it was promised; None if it does not."""
    wanted = {"error"}
    wanted |= {name for name in ("stdin", "stdout", "stderr") if getattr(ends, name)}
    if ends.terminal and version.resize:
        wanted.add("resize")
    streams = await _opened(connection, wanted)
    if streams is None:
        yield None
        return
    for name in ("error", "stdout", "stderr"):
        if name in streams:
            streams[name].discard()
    if not version.tells_errors:
        if "stdin" in streams:
            streams["stdin"].close_write()
        streams["error"].reset()
    client = SpdyClient(connection, ends, version, streams)
    watching = asyncio.create_task(client.watch(), name="client")
    try:
        yield client
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


async def _opened(connection: Connection, wanted: set[str]) -> dict[str, Stream] | None:
    """The streams the client opens, at least those wanted; None if it does not."""
    streams: dict[str, Stream] = {}
    try:
        async with asyncio.timeout(_STREAMS_LIMIT_S):
            while wanted - streams.keys():
                if (stream := await connection.accept()) is None:
                    return None
                _take(stream, streams, wanted)
    except TimeoutError:
        log.info("a client has not opened all streams", extra={"missing": sorted(wanted - streams.keys())})
        return None
    return streams


def _take(stream: Stream, streams: dict[str, Stream], wanted: set[str]) -> None:
    kind = stream.headers.get("streamtype", "")
    if kind in streams:
        stream.refuse()
        return
    stream.accept()
    if kind in wanted:
        streams[kind] = stream
    else:
        stream.discard()


async def _ignore_others(connection: Connection) -> None:
    while (stream := await connection.accept()) is not None:
        stream.accept()
        stream.discard()
