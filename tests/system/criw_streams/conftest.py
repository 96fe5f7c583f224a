"""A node for the tests of a module, and what most of them begin with: a container that runs."""

import contextlib
import itertools
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from criw.config.crew import Config
from criw.config.load import load
from criw.rpc.client import Channel
from support.client import Client
from support.node import Node, running_node
from support.streaming import TRANSPORTS, Opener
from support.supervised import Supervised, complaints, lent, running_supervised

_numbers = itertools.count()


@pytest.fixture(params=TRANSPORTS)
def opened(request: pytest.FixtureRequest) -> Opener:
    """Opens the client's side of a URL; every test is done with each transport."""
    return TRANSPORTS[request.param]


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    if os.geteuid() != 0:
        pytest.skip("needs root: it runs containers")
    with running_node() as running:
        yield running
        directory = Path(running.config).parent
        assert complaints(directory) == []
        assert [line for line in (directory / "streams.log").read_text().splitlines() if " ERROR " in line] == []


@pytest.fixture
def config(node: Node) -> Config:
    """The crew's."""
    return load(Config, Path(node.config), environ={})


@pytest_asyncio.fixture
async def client(node: Node) -> AsyncIterator[Client]:
    """A client whose pods are removed after the test."""
    with contextlib.closing(Channel(Path(node.socket))) as channel:
        client = Client(channel, Path(node.logs), name=f"streams-{next(_numbers)}")
        try:
            yield client
        finally:
            await client.remove_all()
            await client.remove_image(node.busybox)


@pytest_asyncio.fixture
async def busybox(client: Client, node: Node) -> str:
    """The id of the busybox image, pulled."""
    return await client.pull(node.busybox)


@pytest_asyncio.fixture
async def container(client: Client, busybox: str) -> str:
    """One that runs."""
    return await client.run(await client.run_pod(), busybox, ("sleep", "7777"))


@pytest_asyncio.fixture(scope="module")
async def supervised(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Supervised]:
    async with running_supervised(tmp_path_factory.mktemp("supervised")) as supervised:
        yield supervised


@pytest_asyncio.fixture
async def own(supervised: Supervised) -> AsyncIterator[Supervised]:
    """A crew to be killed at will; the host must be as it was when the test has ended."""
    async with lent(supervised) as own:
        yield own
