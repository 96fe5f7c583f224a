from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from support.sessions import Server, running_server
from support.streaming import TRANSPORTS, Opener


@pytest_asyncio.fixture
async def server() -> AsyncIterator[Server]:
    async with running_server() as server:
        yield server


@pytest.fixture(params=TRANSPORTS)
def opened(request: pytest.FixtureRequest) -> Opener:
    """Opens the client's side of a URL; every test is done with each transport."""
    return TRANSPORTS[request.param]
