"""A network agent of one's own, dual stack, on directories, a bridge and addresses nobody else uses."""

from collections.abc import AsyncIterator

import pytest_asyncio

from support.crew import Crew, running_crew
from support.network import NetworkClient, left_by_pods
from support.own import ranges


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def crew() -> AsyncIterator[Crew]:
    """One for a module; it ends with the proof that the host is as it was."""
    ipv4, ipv6 = ranges()
    async with running_crew(["network"], extra_toml=f'network.pod_cidrs = ["{ipv4}", "{ipv6}"]\n') as crew:
        yield crew


@pytest_asyncio.fixture(loop_scope="module")
async def network(crew: Crew) -> AsyncIterator[NetworkClient]:
    """The crew's agent, without a pod; a test's pods are detached, and nothing of them may be left."""
    client = NetworkClient(crew)
    yield client
    await client.detach_all()
    assert left_by_pods(crew) == []
