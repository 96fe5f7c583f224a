"""The server of sessions in the test's own process, and pairs of connections back to back."""

import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import TypeAlias

import pytest
import pytest_asyncio
from prometheus_client import CollectorRegistry

from criw.config.streams import StreamsSection
from criw_streams.front import listening
from criw_streams.sessions import Sessions
from criw_streams.tokens import Session, Tokens
from support.streaming import TRANSPORTS, Opener

Serving: TypeAlias = Callable[..., AbstractAsyncContextManager["Server"]]


class Server:
    def __init__(self, base: str, tokens: Tokens) -> None:
        self.base = base
        self.tokens = tokens

    def url(self, session: Session) -> str:
        return f"{self.base}/{self.tokens.issue(session)}"


@contextlib.asynccontextmanager
async def _serving(section: StreamsSection | None = None, *, idle_timeout_s: float = 3600) -> AsyncIterator[Server]:
    tokens = Tokens()
    sessions = Sessions(tokens, CollectorRegistry(), idle_timeout_s=idle_timeout_s)
    async with listening(section or StreamsSection(), sessions) as base:
        yield Server(base, tokens)


@pytest.fixture
def serving() -> Serving:
    """Starts a server of the test's own."""
    return _serving


@pytest_asyncio.fixture
async def server() -> AsyncIterator[Server]:
    async with _serving() as server:
        yield server


@pytest.fixture(params=TRANSPORTS)
def opened(request: pytest.FixtureRequest) -> Opener:
    """Opens the client's side of a URL; every test is done with each transport."""
    return TRANSPORTS[request.param]
