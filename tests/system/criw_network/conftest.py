"""A network agent of one's own, dual stack, on directories, a bridge and addresses nobody else uses."""

import secrets
from collections.abc import AsyncIterator

import pytest_asyncio

from support.crew import Crew, running_crew
from support.network import NetworkClient, left_by_pods


def ranges() -> str:
    """A configuration with an IPv4 and an IPv6 range."""
    second, third = 100 + secrets.randbelow(100), secrets.randbelow(256)
    return f'network.pod_cidrs = ["10.{second}.{third}.0/24", "fd{secrets.token_hex(1)}:{secrets.token_hex(2)}::/64"]\n'


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def crew() -> AsyncIterator[Crew]:
    """One for a module; it ends with the proof that the host is as it was."""
    async with running_crew(["network"], extra_toml=ranges()) as crew:
        yield crew


@pytest_asyncio.fixture(loop_scope="module")
async def network(crew: Crew) -> AsyncIterator[NetworkClient]:
    """The crew's agent, without a pod; a test's pods are detached, and nothing of them may be left."""
    client = NetworkClient(crew)
    yield client
    await client.detach_all()
    assert left_by_pods(crew) == []
