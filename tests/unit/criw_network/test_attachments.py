"""The agent's part of attaching, with a provider that fails when told to; the namespaces are real."""

import errno
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from criw.ids import new_id
from criw.mountinfo import mounts_below
from criw.store import Store, open_store
from criw_network.attachments import Attachment, Attachments
from criw_network.pod import HostPort, Pod
from support.fake_provider import FakeHost, FakeProvider

pytestmark = pytest.mark.root

INJECTED = OSError(errno.EIO, "injected")


class Node:
    """A host on which the agent can be started again."""

    def __init__(self, directory: Path) -> None:
        self.host = FakeHost()
        self.pins = directory / "netns"
        self._database = directory / "network.db"

    def store(self) -> AbstractAsyncContextManager[Store]:
        return open_store(self._database)

    @asynccontextmanager
    async def agent(self) -> AsyncIterator[Attachments]:
        registry = CollectorRegistry()
        async with self.store() as store:
            attachments = Attachments(store, FakeProvider(self.host), self.pins, registry)
            await attachments.recover()
            yield attachments
            await attachments.drain()
            assert registry.get_sample_value("criw_network_attached_pods") == len(attachments.ids())

    async def contents(self) -> set[str]:
        """Every pod of which there is something: a wire, a namespace, a file, a record."""
        async with self.store() as store:
            records = await store.all(Attachment)
        mounts = mounts_below(self.pins)
        return (
            set(self.host.wired)
            | {mount.name for mount in mounts}
            | {pin.name for pin in self.pins.iterdir()}
            | {record.id for record in records}
        )


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def pod() -> Pod:
    port = HostPort(protocol="tcp", host_port=1, container_port=2, host_ip="fd00::1")
    return Pod(id=new_id(), name="web-0", annotations={"a": "b"}, ports=(port,))


async def test_what_a_pod_got_is_known_after_a_restart(node: Node) -> None:
    one = pod()
    async with node.agent() as agent:
        got = await agent.attach(one)
    async with node.agent() as agent:
        assert await agent.attach(one) == got
        assert set(await agent.counters([])) == set(await agent.counters([one.id, new_id()])) == {one.id}
        await agent.detach(one.id)
    assert await node.contents() == set()


async def test_a_failed_attach_leaves_nothing_and_can_be_repeated(node: Node) -> None:
    one = pod()
    async with node.agent() as agent:
        node.host.failing["attach"] = INJECTED
        with pytest.raises(OSError, match="injected"):
            await agent.attach(one)
        assert await node.contents() == set()
        await agent.attach(one)
        await agent.detach(one.id)
    assert await node.contents() == set()


@pytest.mark.parametrize("again", ["attach", "detach", "restart"])
async def test_an_undoing_that_failed_is_done_by_whatever_comes_next(node: Node, again: str) -> None:
    one = pod()
    async with node.agent() as agent:
        node.host.failing |= {"attach": INJECTED, "detach": OSError(errno.EBUSY, "busy")}
        with pytest.raises(OSError, match="busy"):
            await agent.attach(one)
        assert not agent.ids()
        assert await node.contents() == {one.id}, "the intent stays as long as anything else of it"
        if again == "attach":
            await agent.attach(one)
        if again != "restart":
            await agent.detach(one.id)
    async with node.agent() as agent:
        assert not agent.ids()
    assert await node.contents() == set()


async def test_a_detach_that_failed_keeps_the_intent(node: Node) -> None:
    one = pod()
    async with node.agent() as agent:
        await agent.attach(one)
        node.host.failing["detach"] = INJECTED
        with pytest.raises(OSError, match="injected"):
            await agent.detach(one.id)
        assert not agent.ids(), "half a pod is not attached"
    async with node.agent() as agent:
        assert not agent.ids()
    assert await node.contents() == set()
