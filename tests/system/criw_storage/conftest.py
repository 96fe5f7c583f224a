import shutil
from collections.abc import AsyncIterator

import pytest_asyncio

from support.crew import Crew, running_crew
from support.storage import Storage


@pytest_asyncio.fixture(scope="module")
async def crew() -> AsyncIterator[Crew]:
    """One for a module; it ends with the proof that the host is as it was."""
    async with running_crew(["storage"]) as crew:
        yield crew


@pytest_asyncio.fixture
async def storage(crew: Crew) -> AsyncIterator[Storage]:
    """The module's agent, which may be restarted. A test removes what it made; the fixture proves that it did."""
    await crew.start_missing()
    storage = Storage(crew)
    try:
        yield storage
    finally:
        shutil.rmtree(storage.blobs)
    assert storage.directories() == []
