"""What the supervisor relies on in the storage agent: the real one keeps it, and so does the fake."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import pytest
import pytest_asyncio

from criw.errors import NotFound
from criw.ids import new_id
from criw_proto.criw.storage.v1 import DiskStub, RootfsStub
from criw_supervisor.peers.storage import Storage
from support.fake_agents import IMAGE, running_fakes
from support.images import file, layer
from support.storage import running_storage


class Case(NamedTuple):
    storage: Storage
    image: str  # one it has


@contextlib.asynccontextmanager
async def real() -> AsyncIterator[Case]:
    async with running_storage("storage.usage_interval_s = 0.05") as agent:
        image = await agent.add(layer(file("hello", b"x")))
        channel = agent.crew.channel("storage")
        yield Case(Storage(RootfsStub(channel), DiskStub(channel)), image)
        await agent.remove_all()


@pytest_asyncio.fixture(params=["fake", pytest.param("real", marks=pytest.mark.root)])
async def case(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Case]:
    if request.param == "real":
        async with real() as made:
            yield made
        return
    async with running_fakes(tmp_path) as agents:
        yield Case(agents.ask_storage, IMAGE)


async def test_a_root_filesystem_is_made_once_and_listed_until_it_is_removed(case: Case) -> None:
    container = new_id()
    path = await case.storage.create_rootfs(container, case.image)
    assert path.is_dir()
    assert path.name == container
    assert await case.storage.create_rootfs(container, case.image) == path
    assert await case.storage.rootfs_ids() == [container]
    for _ in range(2):
        await case.storage.remove_rootfs(container)
    assert await case.storage.rootfs_ids() == []
    assert not path.exists()


async def test_an_image_it_does_not_have_is_not_found(case: Case) -> None:
    with pytest.raises(NotFound, match="image"):
        await case.storage.create_rootfs(new_id(), f"sha256:{'e' * 64}")
    assert await case.storage.rootfs_ids() == []


async def test_what_a_container_takes_is_told_by_its_id(case: Case) -> None:
    container = new_id()
    await case.storage.create_rootfs(container, case.image)
    async with asyncio.timeout(20):
        while container not in (disks := await case.storage.usage()).writable:
            pass  # it is measured in the background
    assert disks.writable[container].timestamp_ns > 0
    assert Path(disks.mountpoint).is_dir()
    await case.storage.remove_rootfs(container)
