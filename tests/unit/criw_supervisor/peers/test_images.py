"""What the supervisor relies on in the image agent: the real one keeps it, and so does the fake."""

import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import pytest
import pytest_asyncio

from criw.errors import NotFound
from criw_proto.criw.image.v1 import ImagesStub
from criw_supervisor.peers.images import Images
from support.fake_agents import IMAGE, NAME, running_fakes
from support.image_agent import running_images
from support.images import small
from support.registry import running_registry


class Case(NamedTuple):
    images: Images
    name: str  # of an image it has
    image_id: str


@contextlib.asynccontextmanager
async def real() -> AsyncIterator[Case]:
    async with running_registry() as registry:
        name = await registry.push("test/image:1", small("contract"))
        toml = f'[image.registries."{registry.address}"]\nplain_http = true\n'
        async with running_images(toml) as agent:
            yield Case(Images(ImagesStub(agent.channel)), name, await agent.pull(name))


@pytest_asyncio.fixture(params=["fake", pytest.param("real", marks=pytest.mark.root)])
async def case(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Case]:
    if request.param == "real":
        async with real() as made:
            yield made
        return
    async with running_fakes(tmp_path) as agents:
        yield Case(agents.ask_images, NAME, IMAGE)


async def test_an_image_is_found_by_name_id_and_digest_reference(case: Case) -> None:
    by_name = await case.images.inspect(case.name)
    assert by_name.id == case.image_id
    assert by_name.reference.startswith(f"{case.name.rpartition(':')[0]}@sha256:")
    assert await case.images.inspect(case.image_id) == by_name
    assert await case.images.inspect(by_name.reference) == by_name
    assert isinstance(json.loads(by_name.config), dict)


async def test_an_image_it_does_not_have_is_not_found(case: Case) -> None:
    with pytest.raises(NotFound, match="image"):
        await case.images.inspect("registry.test/no/such:image")
