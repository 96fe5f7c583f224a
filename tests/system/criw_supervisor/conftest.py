"""A node for the tests of a module, and crews of their own for tests that break one."""

import contextlib
import itertools
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from criw.rpc.client import Channel
from support.client import Client
from support.node import Node, running_node
from support.supervised import Supervised, Traces, complaints, lent, running_supervised

_numbers = itertools.count()


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    if os.geteuid() != 0:
        pytest.skip("needs root: it runs containers")
    with running_node() as running:
        yield running
        assert complaints(Path(running.config).parent) == []


@pytest_asyncio.fixture
async def client(node: Node) -> AsyncIterator[Client]:
    """A client whose pods and images are removed after the test."""
    with contextlib.closing(Channel(Path(node.socket))) as channel:
        client = Client(channel, Path(node.logs), name=f"supervisor-{next(_numbers)}")
        try:
            yield client
        finally:
            await client.remove_all()
            await client.remove_image(node.busybox)


@pytest.fixture
def traces(node: Node) -> Traces:
    """Where to look for what the node's crew has on the host."""
    return Traces(Path(node.config))


@pytest_asyncio.fixture
async def busybox(client: Client, node: Node) -> str:
    """The id of the busybox image, pulled."""
    return await client.pull(node.busybox)


@pytest_asyncio.fixture(scope="module")
async def supervised(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Supervised]:
    async with running_supervised(tmp_path_factory.mktemp("supervised")) as supervised:
        yield supervised


@pytest_asyncio.fixture
async def own(supervised: Supervised) -> AsyncIterator[Supervised]:
    """A crew to be killed at will, with busybox pulled; the host must be as it was when the test has ended."""
    async with lent(supervised) as own:
        yield own
