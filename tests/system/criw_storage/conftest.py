from collections.abc import AsyncIterator

import pytest_asyncio

from support.storage import Storage, running_storage


@pytest_asyncio.fixture
async def storage() -> AsyncIterator[Storage]:
    """A storage agent of the test's own. The test removes what it made; the fixture proves that it did."""
    async with running_storage() as running:
        yield running
        assert running.directories() == []
