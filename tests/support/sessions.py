"""The server of sessions in the test's own process, and SPDY connections back to back."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from prometheus_client import CollectorRegistry

from criw.config.streams import StreamsSection
from criw.spdy.connection import Connection
from criw_streams.front import listening
from criw_streams.sessions import Sessions
from criw_streams.tokens import Session, Tokens


class Server:
    def __init__(self, base: str, tokens: Tokens) -> None:
        self.base = base
        self.tokens = tokens

    def url(self, session: Session) -> str:
        """A URL for one session."""
        return f"{self.base}/{self.tokens.issue(session)}"


@contextlib.asynccontextmanager
async def running_server(*, idle_timeout_s: float = 3600) -> AsyncIterator[Server]:
    tokens = Tokens()
    sessions = Sessions(tokens, CollectorRegistry(), idle_timeout_s=idle_timeout_s)
    async with listening(StreamsSection(), sessions) as base:
        yield Server(base, tokens)


class _Wire:
    """Brings what one connection sends to the other (`criw.spdy.connection.Sink`), without back-pressure."""

    def __init__(self) -> None:
        self.far: Connection

    def write(self, data: bytes) -> None:
        asyncio.get_running_loop().call_soon(self.far.feed, bytes(data))

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def close(self) -> None:
        asyncio.get_running_loop().call_soon(self.far.feed_eof)


def back_to_back() -> tuple[Connection, Connection]:
    """A client's connection and its server's."""
    ours, theirs = _Wire(), _Wire()
    client, server = Connection(ours, server=False), Connection(theirs, server=True)
    ours.far, theirs.far = server, client
    return client, server
