"""A CRI client for tests that any runtime should pass: `CRI_ENDPOINT=unix:///run/containerd/containerd.sock` and the
images of `support.node.running_node` run them against another one."""

import contextlib
import itertools
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from criw.rpc.client import Channel
from criw_proto.runtime import v1 as cri
from support.client import Client
from support.node import Node, running_node

_numbers = itertools.count()


@pytest.fixture(scope="session")
def node() -> Iterator[Node]:
    if os.geteuid() != 0:
        pytest.skip("needs root: it runs containers")
    with running_node() as running:
        yield running


@pytest_asyncio.fixture
async def client(node: Node) -> AsyncIterator[Client]:
    """A client whose pods are removed, and whose images stay, after the test."""
    with contextlib.closing(Channel(Path(node.socket))) as channel:
        client = Client(channel, Path(node.logs), name=f"conformance-{os.getpid()}-{next(_numbers)}")
        try:
            yield client
        finally:
            await client.remove_all()


@pytest_asyncio.fixture
async def busybox(client: Client, node: Node) -> str:
    """The id of the busybox image, pulled."""
    return await client.pull(node.busybox)


@pytest.fixture(scope="session", autouse=True)
def images_removed(node: Node) -> Iterator[None]:
    """No image stays on the node after the last test."""
    yield
    import asyncio

    async def remove() -> None:
        with contextlib.closing(Channel(Path(node.socket))) as channel:
            images = cri.ImageServiceStub(channel, timeout=60)
            for reference in (node.busybox, node.nginx, *node.tags):
                spec = cri.ImageSpec(image=reference)
                await images.remove_image(cri.RemoveImageRequest(image=spec))

    asyncio.run(remove())
