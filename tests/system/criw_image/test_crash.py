"""Pulls that are interrupted: by SIGKILL of either agent, by clients that go away; and instances that share a state."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable, Coroutine

import pytest
from aiohttp import web
from grpclib.exceptions import GRPCError, StreamTerminatedError

from criw.rpc.client import Channel
from criw_proto.criw.image import v1 as own
from criw_proto.runtime.v1 import AuthConfig
from support import images
from support.image_agent import Images, running_images, second_instance
from support.scripted_registry import ScriptedRegistry, scripted_registry

ANY_PORT = '[image]\nhttp = "127.0.0.1:0"\n'
GONE = (GRPCError, StreamTerminatedError, ConnectionError)
ROUNDS = 8


class Gate:
    """Holds back the answer to requests for one blob."""

    def __init__(self, registry: ScriptedRegistry, blob: bytes) -> None:
        self.reached = asyncio.Event()
        self.open = asyncio.Event()
        self._registry = registry
        self._digest = images.digest_of(blob)
        registry.take_over = self._handle

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        if request.path.endswith(self._digest):
            self.reached.set()
            await self.open.wait()
        return await self._registry.serve(request)


@contextlib.asynccontextmanager
async def agent_with(
    *added: images.Image, more_toml: str = ""
) -> AsyncIterator[tuple[Images, ScriptedRegistry, list[str]]]:
    async with scripted_registry() as registry:
        for number, image in enumerate(added):
            registry.add(f"a/{number}:1", image)
        toml = f'{more_toml}[image.registries."{registry.host}"]\nplain_http = true\n'
        async with running_images(toml) as agent:
            yield agent, registry, [f"{registry.host}/a/{number}:1" for number in range(len(added))]


async def test_a_killed_pull_is_undone_and_can_be_repeated() -> None:
    image = images.small("killed")
    async with agent_with(image) as (agent, registry, (reference,)):
        gate = Gate(registry, image.layers[1].blob)
        pulling = asyncio.create_task(agent.pull(reference))
        await gate.reached.wait()
        assert await agent.left() != []
        await agent.crew.kill("image")
        with pytest.raises(GONE):
            await pulling
        gate.open.set()
        await agent.crew.start("image")
        assert await agent.left() == []
        assert await agent.all() == []
        assert await agent.pull(reference) == image.id


async def test_pulls_killed_at_any_moment() -> None:
    several = [images.small(f"{'killed at random ' * 5000}{number}") for number in range(3)]
    async with agent_with(*several) as (agent, _, references):
        random.seed(1)
        acknowledged: set[str] = set()
        for _ in range(ROUNDS):
            pulls = [asyncio.create_task(agent.pull(reference)) for reference in references]
            removal = asyncio.create_task(agent.remove(references[0]))
            await asyncio.sleep(random.uniform(0, 0.12))
            await agent.crew.kill("image")
            _, *kept = await asyncio.gather(*pulls, return_exceptions=True)  # the first is also removed
            (removed,) = await asyncio.gather(removal, return_exceptions=True)
            assert all(isinstance(result, (str, *GONE)) for result in (*kept, removed or ""))
            acknowledged |= {image_id for image_id in kept if isinstance(image_id, str)}
            await agent.crew.start("image")
            listed = {image.id for image in await agent.all()}
            assert acknowledged <= listed
            assert await agent.left() == []
            assert all(image.repo_tags != [] for image in await agent.all())
            await asyncio.gather(*(agent.pull(reference) for reference in references))
            for image in several:
                await agent.remove(image.id)
            acknowledged.clear()


async def test_storage_killed_in_the_middle_of_a_pull() -> None:
    image = images.small("storage is killed")
    async with agent_with(image) as (agent, registry, (reference,)):
        gate = Gate(registry, image.layers[1].blob)
        pulling = asyncio.create_task(agent.pull(reference))
        await gate.reached.wait()
        await agent.crew.kill("storage")
        await agent.crew.start("storage")
        gate.open.set()
        assert await pulling == image.id
        assert await agent.left() == []


async def watch_pull(agent: Images, reference: str) -> None:
    async for _ in own.ImagesStub(agent.channel).pull(own.PullRequest(image=reference)):
        pass


@pytest.mark.parametrize("pull", [Images.pull, watch_pull])
async def test_a_client_that_goes_away_ends_a_pull_nobody_else_wants(
    pull: Callable[[Images, str], Coroutine[object, object, object]],
) -> None:
    image = images.small("client goes away")
    async with agent_with(image) as (agent, registry, (reference,)):
        gate = Gate(registry, image.layers[1].blob)
        channel = Channel(agent.crew.config.socket("image"))
        pulling = asyncio.create_task(pull(Images(agent.crew, channel), reference))
        await gate.reached.wait()
        channel.close()  # all at once, as a client that is killed
        with pytest.raises(GONE):
            await pulling
        # Another pull of the image waits until the first is undone, and then has to fetch everything itself. With
        # other credentials, so that it cannot join the first should that not have noticed yet.
        again = asyncio.create_task(agent.pull(reference, AuthConfig(username="other")))
        await registry.request_for(image.id, number=2)
        gate.open.set()
        assert await again == image.id


async def test_a_client_that_goes_away_leaves_the_pull_to_the_others() -> None:
    image = images.small("one client stays")
    async with agent_with(image) as (agent, registry, (reference,)):
        gate = Gate(registry, image.layers[1].blob)
        channel = Channel(agent.crew.config.socket("image"))
        leaves = asyncio.create_task(Images(agent.crew, channel).pull(reference))
        await gate.reached.wait()
        stays = own.ImagesStub(agent.channel).pull(own.PullRequest(image=reference))
        await anext(stays)  # its first progress: it has joined
        channel.close()
        with pytest.raises(GONE):
            await leaves
        gate.open.set()
        *_, last = [message async for message in stays]
        assert last.image_id == image.id
        assert len([one for one in registry.requests("blobs") if one.path.endswith(image.id)]) == 1


async def test_a_stop_in_the_middle_of_a_pull_undoes_it() -> None:
    image = images.small("stopped")
    async with agent_with(image, more_toml="drain_timeout_s = 0.2\n") as (agent, registry, (reference,)):
        gate = Gate(registry, image.layers[1].blob)
        pulling = asyncio.create_task(agent.pull(reference))
        await gate.reached.wait()
        await agent.crew.stop("image")
        with pytest.raises(GONE):
            await pulling
        state = agent.crew.config.state_dir("image")
        assert list((state / "blobs").iterdir()) == []
        gate.open.set()
        await agent.crew.start("image")
        assert await agent.left() == []


async def test_two_instances_are_one_agent() -> None:
    one, two = images.small("first instance"), images.small("second instance")
    async with (
        agent_with(one, two, more_toml=ANY_PORT) as (first, registry, (reference, other)),
        second_instance(first.crew) as (process, second),
    ):
        assert await first.pull(reference) == one.id
        assert [image.id for image in await second.all()] == [one.id]
        pulled = await asyncio.gather(first.pull(other), second.pull(other), second.pull(reference))
        assert list(pulled) == [two.id, two.id, one.id]
        assert len([seen for seen in registry.requests("blobs") if seen.path.endswith(two.id)]) == 1
        await second.remove(one.id)
        assert await first.find(reference) is None
        # One is killed in the middle of a pull: the other takes over, and a start leaves its work alone.
        gate = Gate(registry, one.layers[1].blob)
        killed = asyncio.create_task(second.pull(reference))
        await gate.reached.wait()
        process.kill()
        await process.wait()
        with pytest.raises(GONE):
            await killed
        gate.reached.clear()
        pulling = asyncio.create_task(first.pull(reference))
        await gate.reached.wait()
        async with second_instance(first.crew) as (_, third):
            assert [image.id for image in await third.all()] == [two.id]
            gate.open.set()
            assert await pulling == one.id
            assert {image.id for image in await third.all()} == {one.id, two.id}
