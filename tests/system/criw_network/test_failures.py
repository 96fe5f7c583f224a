"""Attaching fails, or is cancelled, at each of its steps: the host is as it was, and the next attempt works."""

import asyncio
import contextlib
import errno
import os
import secrets
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path

import pytest
import pytest_asyncio
from prometheus_client import CollectorRegistry

from criw import kernel, namespaces
from criw.errors import Failed
from criw.ids import new_id
from criw.mountinfo import mounts_below
from criw.store import Record, Store, open_store
from criw_network import netns
from criw_network.attachments import Attachment, Attachments
from criw_network.builtin import conntrack
from criw_network.builtin.bridge import Bridge
from criw_network.builtin.host import Host
from criw_network.builtin.nftables import Nftables
from criw_network.builtin.provider import builtin
from criw_network.pod import HostPort, Pod
from criw_network.provider import Attached

PORT = HostPort(protocol="udp", host_port=28301, container_port=53)
SYSCTLS = {"net.ipv4.ping_group_range": "0 1"}


class Agent:
    """The agent without its socket, and what of it can be seen from outside."""

    def __init__(self, attachments: Attachments, store: Store, bridge: Bridge, pins: Path) -> None:
        self.attachments = attachments
        self.store = store
        self.bridge = bridge
        self.pins = pins

    async def contents(self) -> tuple[list[str], list[str], list[Path], list[str]]:
        return (
            sorted(pin.name for pin in self.pins.iterdir()),
            sorted(link.name for link in await asyncio.to_thread(self.bridge.ports)),
            mounts_below(self.pins),
            [record.id for record in await self.store.all(Attachment)],
        )

    async def attach(self, pod_id: str) -> Attached:
        return await self.attachments.attach(Pod(id=pod_id, ports=(PORT,), sysctls=SYSCTLS))


@pytest_asyncio.fixture
async def agent(tmp_path: Path) -> AsyncIterator[Agent]:
    bridge = Bridge(f"ct{secrets.token_hex(3)}", owner=str(tmp_path), mtu=1500)
    cidrs = [f"10.249.{secrets.randbelow(256)}.0/30"]  # room for one pod: a lost address is noticed
    pins, registry = tmp_path / "netns", CollectorRegistry()
    async with (
        open_store(tmp_path / "network.db") as store,
        builtin(bridge, cidrs, store, registry) as provider,
    ):
        attachments = Attachments(store, provider, pins, registry)
        await attachments.recover()
        try:
            yield Agent(attachments, store, bridge, pins)
        finally:
            await attachments.drain()
    assert not bridge.exists()
    assert not list(pins.iterdir())


Step = Callable[[pytest.MonkeyPatch, Callable[[], None]], None]


def before(owner: object, name: str) -> Step:
    """The step that `owner.name` is, broken before it does anything."""

    def install(patch: pytest.MonkeyPatch, happen: Callable[[], None]) -> None:
        real = getattr(owner, name)

        def broken(*args: object, **kwargs: object) -> object:
            happen()
            return real(*args, **kwargs)

        patch.setattr(owner, name, broken)

    return install


def after(owner: object, name: str) -> Step:
    """The same, broken when it has done everything."""

    def install(patch: pytest.MonkeyPatch, happen: Callable[[], None]) -> None:
        real = getattr(owner, name)

        def broken(*args: object, **kwargs: object) -> object:
            done = real(*args, **kwargs)
            happen()
            return done

        patch.setattr(owner, name, broken)

    return install


STEPS: dict[str, Step] = {
    "before the namespace": before(netns, "create"),
    "between namespace and pin": before(kernel, "mount"),
    "after the namespace": after(netns, "create"),
    "before the bridge": before(Bridge, "ensure"),
    "after the bridge": after(Bridge, "ensure"),
    "before the link": before(Bridge, "connect"),
    "between link and addresses": after(kernel, "setns"),
    "after the link": after(Bridge, "connect"),
    "before the rules": before(Nftables, "run"),
    "after the rules": after(Nftables, "run"),
    "after the host ports": before(conntrack, "forget"),
    "before the sysctls": before(netns, "write_sysctls"),
    "after the sysctls": after(netns, "write_sysctls"),
}


@pytest.mark.parametrize("step", STEPS)
async def test_a_failed_step_leaves_the_host_as_it_was(agent: Agent, step: str) -> None:
    pod_id = new_id()
    untouched = await agent.contents()

    def fail() -> None:
        patch.undo()
        raise OSError(errno.EIO, "injected")

    with pytest.MonkeyPatch.context() as patch:
        STEPS[step](patch, fail)
        with pytest.raises(OSError, match="injected"):
            await agent.attach(pod_id)
    assert await agent.contents() == untouched
    assert not agent.attachments.ids()
    await works(agent, pod_id)


@pytest.mark.parametrize("step", STEPS)
async def test_a_cancelled_step_leaves_the_host_as_it_was(agent: Agent, step: str) -> None:
    """A caller that goes away cancels nothing; a process that stops cancels the work itself."""
    pod_id = new_id()
    untouched = await agent.contents()
    loop = asyncio.get_running_loop()

    def cancel() -> None:
        patch.undo()
        asyncio.run_coroutine_threadsafe(cancel_work(pod_id), loop).result(5)

    with pytest.MonkeyPatch.context() as patch:
        STEPS[step](patch, cancel)
        with pytest.raises(asyncio.CancelledError):
            await agent.attach(pod_id)
    assert await agent.contents() == untouched
    await works(agent, pod_id)


async def cancel_work(pod_id: str) -> None:
    (work,) = [task for task in asyncio.all_tasks() if task.get_name() == f"attach {pod_id}"]
    work.cancel()


async def works(agent: Agent, pod_id: str) -> None:
    await agent.attach(pod_id)
    assert list(agent.attachments.ids()) == [pod_id]
    await agent.attachments.detach(pod_id)
    assert not list(agent.pins.iterdir())


@pytest.mark.parametrize("which", [1, 2, 3])
async def test_a_full_disk_leaves_the_host_as_it_was(agent: Agent, which: int) -> None:
    """The intent cannot be written, or the address given last, or the record."""
    pod_id = new_id()
    untouched = await agent.contents()
    puts, commit = 0, Store.commit

    async def full(self: Store, *, put: Sequence[Record] = (), delete: Sequence[Record] = ()) -> None:
        nonlocal puts
        puts += bool(put)
        if puts == which and put:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        await commit(self, put=put, delete=delete)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "commit", full)
        with pytest.raises(OSError, match="No space left"):
            await agent.attach(pod_id)
    assert await agent.contents() == untouched
    await works(agent, pod_id)


@pytest.mark.parametrize("step", ["pin", "rules", "link"])
async def test_a_detach_that_failed_is_done_by_the_next_one(agent: Agent, step: str) -> None:
    pod_id = new_id()
    untouched = await agent.contents()
    owner, name = {
        "pin": (namespaces, "unpin"),
        "rules": (Host, "close_ports"),
        "link": (Bridge, "port"),
    }[step]
    await agent.attach(pod_id)

    def fail() -> None:
        patch.undo()
        raise Failed("injected")

    with pytest.MonkeyPatch.context() as patch:
        before(owner, name)(patch, fail)
        with pytest.raises(Failed, match="injected"):
            await agent.attachments.detach(pod_id)
    assert not agent.attachments.ids(), "half a pod is not attached"
    await agent.attachments.detach(pod_id)
    assert await agent.contents() == untouched
    await works(agent, pod_id)


async def test_a_caller_that_goes_away_cancels_nothing(agent: Agent) -> None:
    pod_id = new_id()
    caller = asyncio.create_task(agent.attach(pod_id))
    while not list(agent.pins.iterdir()):
        await asyncio.sleep(0)
    caller.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await caller
    await agent.attach(pod_id)
    assert list(agent.attachments.ids()) == [pod_id]
    await agent.attachments.detach(pod_id)


@pytest.fixture(autouse=True)
def no_thread_stays_in_a_pod() -> Iterator[None]:
    """Every test: whatever went into a pod's namespace has ended with its thread."""
    yield
    for thread in threading.enumerate():
        if thread.name == "fresh":
            thread.join(5)
    here = Path("/proc/self/ns/net").readlink()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError):  # one that ends just now
            assert (task / "ns/net").readlink() == here
