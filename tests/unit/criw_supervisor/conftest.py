"""The rooms of a supervisor, with everything around them faked."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from support.rooms import Rooms, running_rooms


@pytest_asyncio.fixture
async def rooms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rooms]:
    async with running_rooms(tmp_path, monkeypatch) as made:
        yield made
