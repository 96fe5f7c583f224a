"""The agent's part of attaching, with a provider that fails when told to; the namespaces are real."""

import asyncio
import errno
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from criw import namespaces
from criw.errors import Failed, ResourceExhausted
from criw.ids import new_id
from criw.mountinfo import mounts_below
from criw.store import Record, Store, open_store
from criw_network import attachments, netns
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
            agent = Attachments(store, FakeProvider(self.host), self.pins, registry)
            await agent.recover()
            yield agent
            await agent.drain()
            assert registry.get_sample_value("criw_network_attached_pods") == len(agent.ids())

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
        assert set(agent.known()) == {one.id}, "who compares must see it"
        assert one.id in agent.trouble
    async with node.agent() as agent:
        assert not agent.ids()
    assert await node.contents() == set()


async def test_what_an_undo_could_not_do_is_tried_again_without_being_asked(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attachments, "_FIRST_PAUSE_S", 0.01)
    pods = [pod(), pod()]
    async with node.agent() as agent:
        await agent.attach(pods[0])
        trying = asyncio.create_task(agent.keep_undoing())
        for failure in ({"detach": INJECTED}, {"detach": Failed("cannot change the nftables rules: no")}):
            node.host.failing |= failure
            with pytest.raises((OSError, Failed)):
                await agent.detach(pods[0].id)
            assert agent.trouble
            while agent.known():
                await asyncio.sleep(0)
            assert not agent.trouble
            await agent.attach(pods[0])
        await agent.detach(pods[0].id)
        trying.cancel()
    assert await node.contents() == set()


async def test_a_pod_that_was_attached_anew_is_not_undone_by_the_retry(node: Node) -> None:
    one = pod()
    async with node.agent() as agent:
        await agent.attach(one)
        node.host.failing["detach"] = INJECTED
        with pytest.raises(OSError, match="injected"):
            await agent.detach(one.id)
        await asyncio.gather(agent.attach(one), agent.undo_left())
        assert list(agent.ids()) == [one.id]
        await agent.detach(one.id)


async def test_a_pod_being_attached_is_listed(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asked for it may have died meanwhile: the one that comes after must find it."""
    one, going_on = pod(), threading.Event()
    create = netns.create

    def slowly(pin: Path) -> None:
        going_on.wait(5)
        create(pin)

    monkeypatch.setattr(netns, "create", slowly)
    async with node.agent() as agent:
        attaching = asyncio.create_task(agent.attach(one))
        while not agent.known():
            await asyncio.sleep(0)
        assert not agent.ids()
        detaching = asyncio.create_task(agent.detach(one.id))
        going_on.set()
        await asyncio.gather(attaching, detaching)
        assert not agent.known()
    assert await node.contents() == set()


async def test_an_undoing_waits_for_the_thread_that_is_late(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread cannot be stopped: what it makes after the limit would be nobody's."""
    one, going_on = pod(), threading.Event()
    create = netns.create

    def slowly(pin: Path) -> None:
        going_on.wait(5)
        create(pin)

    monkeypatch.setattr(netns, "create", slowly)
    monkeypatch.setattr(attachments, "_STEP_LIMIT_S", 0.05)
    async with node.agent() as agent:
        attaching = asyncio.create_task(agent.attach(one))
        done, _ = await asyncio.wait({attaching}, timeout=0.3)
        assert not done, "the limit is over, the thread is not"
        monkeypatch.setattr(attachments, "_STEP_LIMIT_S", 5)
        going_on.set()
        with pytest.raises(TimeoutError):
            await attaching
        assert not agent.known()
    assert await node.contents() == set()


async def test_one_pod_that_cannot_be_undone_keeps_neither_the_start_nor_the_others(node: Node) -> None:
    pods = [pod() for _ in range(3)]
    pods = [replace(one, ports=()) for one in pods]
    async with node.store() as store:
        await store.put(*(Attachment(id=one.id, pod=one) for one in pods))
    node.pins.mkdir()
    (node.pins / "not a pod").mkdir()
    (node.pins / pods[0].id).mkdir()  # which is not how a namespace is pinned
    stray = new_id()
    (node.pins / stray).touch()
    node.host.failing["detach"] = RuntimeError("not even an error we know")
    async with node.agent() as agent:
        assert pods[0].id in agent.known()
        assert len(agent.known()) <= 2, "one has the directory, whichever was first met the error"
        assert agent.trouble
        (node.pins / pods[0].id).rmdir()
        await agent.undo_left()
        assert not agent.known()
        await agent.attach(pods[0])
        await agent.detach(pods[0].id)
    assert await node.contents() == {"not a pod"}


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """While it is set, nothing can be saved."""
    full, commit = threading.Event(), Store.commit

    async def refusing(self: Store, *, put: Sequence[Record] = (), delete: Sequence[Record] = ()) -> None:
        if full.is_set():
            raise ResourceExhausted("cannot save state: no space left on the device")
        await commit(self, put=put, delete=delete)

    monkeypatch.setattr(Store, "commit", refusing)
    return full


async def test_a_full_disk_does_not_keep_a_pod_attached(node: Node, disk: threading.Event) -> None:
    one, other = pod(), pod()
    async with node.agent() as agent:
        await agent.attach(one)
        disk.set()
        await agent.detach(one.id)
        assert not agent.known()
        assert await node.contents() == {one.id}, "its row"
        assert mounts_below(node.pins) == list(node.pins.iterdir()) == []
        with pytest.raises(ResourceExhausted):
            await agent.attach(other)
        disk.clear()
        await agent.undo_left()
        assert await node.contents() == set()


async def test_the_row_of_a_detached_pod_is_gone_before_another_may_get_what_it_had(
    node: Node, disk: threading.Event
) -> None:
    one, other = pod(), pod()
    async with node.agent() as agent:
        await agent.attach(one)
        disk.set()
        await agent.detach(one.id)
        disk.clear()
        await agent.attach(other)
        assert await node.contents() == {other.id}
    async with node.agent() as agent:
        assert set(agent.known()) == set(agent.ids()) == {other.id}
        await agent.detach(other.id)


@pytest.mark.parametrize("restarted", [False, True])
async def test_a_pod_that_lost_its_namespace_is_told_and_keeps_its_address(node: Node, restarted: bool) -> None:
    one, fine = pod(), replace(pod(), ports=())
    async with node.agent() as agent:
        await agent.attach(one)
        await agent.attach(fine)
        assert not agent.lost()
        namespaces.unpin(agent.pin(one.id))
        assert agent.lost() == [one.id]
        if not restarted:
            await agent.detach(one.id)
            await agent.detach(fine.id)
    if restarted:
        async with node.agent() as agent:
            assert agent.lost() == [one.id]
            assert set(node.host.wired) == {one.id, fine.id}
            await agent.attach(one)
            assert not agent.lost()
            await agent.detach(one.id)
            await agent.detach(fine.id)
    assert await node.contents() == set()
