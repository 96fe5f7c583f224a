from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from support.door import Doorway, open_door


@pytest_asyncio.fixture
async def door(tmp_path: Path) -> AsyncIterator[Doorway]:
    async with open_door(tmp_path) as doorway:
        yield doorway
