from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from criw.rpc.client import Channel


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a test's server listens."""
    return tmp_path / "agent.sock"


@pytest_asyncio.fixture
async def channel(path: Path) -> AsyncIterator[Channel]:
    """A client of whatever listens, or will listen, at `path`."""
    channel = Channel(path)
    yield channel
    channel.close()
