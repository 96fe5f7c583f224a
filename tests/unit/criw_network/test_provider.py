"""The contract of `criw_network.provider.Provider`, kept by the fake and by each real one."""

import asyncio
import contextlib
import json
import secrets
import subprocess
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Protocol

import pytest
import pytest_asyncio
from prometheus_client import CollectorRegistry

from criw import kernel, namespaces
from criw.errors import AlreadyExists, FailedPrecondition
from criw.ids import new_id
from criw.mountinfo import mounts_below
from criw.store import open_store
from criw_network import netns
from criw_network.builtin.bridge import Bridge
from criw_network.builtin.provider import builtin
from criw_network.pod import HostPort, Pod
from criw_network.provider import Condition, Provider
from support.fake_provider import FakeHost, FakeProvider

PORT = HostPort(protocol="tcp", host_port=28501, container_port=80)


class World(Protocol):
    """A host for providers that come and go."""

    def provider(self, *, ready: bool = True) -> AbstractAsyncContextManager[Provider]:
        """One that was just started."""

    async def netns(self, pod: Pod) -> Path: ...

    async def contents(self) -> set[str]:
        """What there is of pods, each thing with a part of the pod's id in its name."""


class Fake:
    def __init__(self, tmp_path: Path) -> None:
        self._directory = tmp_path
        self._host = FakeHost()

    @contextlib.asynccontextmanager
    async def provider(self, *, ready: bool = True) -> AsyncIterator[Provider]:
        self._host.condition = Condition(ready=ready, message="" if ready else "cannot attach pods: not today")
        yield FakeProvider(self._host)

    async def netns(self, pod: Pod) -> Path:
        path = self._directory / pod.id
        path.touch()
        return path

    async def contents(self) -> set[str]:
        return {f"wire {pod_id}" for pod_id in self._host.wired}


class Real:
    """The builtin provider, with a bridge of its own and real namespaces."""

    def __init__(self, tmp_path: Path) -> None:
        self._directory = tmp_path
        self._bridge = Bridge(f"cp{secrets.token_hex(3)}", owner=str(tmp_path), mtu=1500)
        self._cidr = f"10.250.{secrets.randbelow(256)}.0/24"

    @contextlib.asynccontextmanager
    async def provider(self, *, ready: bool = True) -> AsyncIterator[Provider]:
        cidrs = [self._cidr] if ready else []
        async with (
            open_store(self._directory / "network.db") as store,
            builtin(self._bridge, cidrs, store, CollectorRegistry()) as provider,
        ):
            yield provider

    async def netns(self, pod: Pod) -> Path:
        path = self._directory / pod.id
        await kernel.in_fresh_thread(lambda: netns.create(path))
        return path

    async def contents(self) -> set[str]:
        listed = subprocess.run(["nft", "-j", "list", "ruleset"], capture_output=True, check=True).stdout
        tables = [entry["map"] for entry in json.loads(listed)["nftables"] if "map" in entry]
        return {link.name for link in await asyncio.to_thread(self._bridge.ports)} | {
            f"element {element}"
            for found in tables
            if found["table"] == f"criw_{self._bridge.name}"
            for element in found.get("elem", [])
        }

    async def end(self) -> None:
        """Nothing may be left of what a provider is not told of, nor of bridge and table."""
        async with self.provider() as last:
            await last.recover([])
        assert not self._bridge.exists()
        for pin in mounts_below(self._directory):
            namespaces.unpin(pin)


@pytest_asyncio.fixture(params=["fake", pytest.param("builtin", marks=pytest.mark.root)])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    if request.param == "fake":
        yield Fake(tmp_path)
    else:
        real = Real(tmp_path)
        yield real
        await real.end()


def pod(*ports: HostPort) -> Pod:
    return Pod(id=new_id(), ports=ports)


async def test_each_pod_gets_an_interface_and_addresses_of_its_own(world: World) -> None:
    async with world.provider() as provider:
        await provider.recover([])
        assert provider.condition == Condition(ready=True)
        pods = [pod() for _ in range(3)]
        got = [await provider.attach(one, await world.netns(one)) for one in pods]
        assert all(attached.interface and attached.addresses for attached in got)
        given = [address.ip for attached in got for address in attached.addresses]
        assert len(set(given)) == len(given)
        for one in pods:
            await provider.detach(one, await world.netns(pod()))


async def test_detach_takes_everything_and_may_be_repeated(world: World) -> None:
    async with world.provider() as provider:
        await provider.recover([])
        stays, goes = pod(), pod(PORT)
        await provider.attach(stays, await world.netns(stays))
        before = await world.contents()
        place = await world.netns(goes)
        await provider.attach(goes, place)
        assert len(await world.contents()) > len(before)
        for _ in range(2):
            await provider.detach(goes, place)
            assert await world.contents() == before
        await provider.attach(goes, place)
        await provider.detach(goes, place)
        assert await world.contents() == before


async def test_a_pod_that_was_never_attached_can_be_detached(world: World) -> None:
    async with world.provider() as provider:
        await provider.recover([])
        await provider.detach(pod(PORT), Path("/no/such/namespace"))


async def test_a_pod_can_be_detached_when_its_namespace_is_gone(world: World) -> None:
    async with world.provider() as provider:
        await provider.recover([])
        one = pod(PORT)
        place = await world.netns(one)
        await provider.attach(one, place)
        namespaces.unpin(place)
        await provider.detach(one, place)
        assert await world.contents() == set()


async def test_what_a_failed_attach_left_is_undone_by_detach(world: World) -> None:
    async with world.provider() as provider:
        await provider.recover([])
        one = pod(PORT)
        with pytest.raises(FileNotFoundError):
            await provider.attach(one, Path("/no/such/namespace"))
        await provider.detach(one, Path("/no/such/namespace"))
        assert await world.contents() == set()
        place = await world.netns(one)
        await provider.attach(one, place)
        assert await provider.counters({one.id: place})
        await provider.detach(one, place)


async def test_a_host_port_has_one_pod_until_that_is_detached(world: World) -> None:
    async with world.provider() as provider:
        await provider.recover([])
        owner, other = pod(PORT), pod(PORT)
        place = await world.netns(other)
        await provider.attach(owner, await world.netns(owner))
        before = await world.contents()
        with pytest.raises(AlreadyExists, match=owner.id):
            await provider.attach(other, place)
        await provider.detach(other, place)
        assert await world.contents() == before, "the refused pod takes nothing of the owner's with it"
        with pytest.raises(AlreadyExists, match=owner.id):
            await provider.attach(other, place)
        await provider.detach(owner, place)
        await provider.attach(other, place)
        await provider.detach(other, place)


async def test_counters_are_of_attached_pods_only(world: World) -> None:
    async with world.provider() as provider:
        await provider.recover([])
        one, gone = pod(), pod()
        places = {which.id: await world.netns(which) for which in (one, gone)}
        got = await provider.attach(one, places[one.id])
        await provider.attach(gone, places[gone.id])
        await provider.detach(gone, places[gone.id])
        counted = await provider.counters({**places, new_id(): Path("/no/such/namespace")})
        assert {pod_id: name for pod_id, (name, _) in counted.items()} == {one.id: got.interface}
        assert await provider.counters({}) == {}
        await provider.detach(one, places[one.id])


async def test_a_new_provider_takes_over_what_it_is_told_of_and_removes_the_rest(world: World) -> None:
    kept, lost = pod(PORT), pod(PORT.model_copy(update={"host_port": 28502}))
    async with world.provider() as first:
        await first.recover([])
        places = {one.id: await world.netns(one) for one in (kept, lost)}
        got = await first.attach(kept, places[kept.id])
        before = await world.contents()
        await first.attach(lost, places[lost.id])
    async with world.provider() as second:
        await second.recover([(kept, got)])
        assert await world.contents() == before
        assert set(await second.counters(places)) == {kept.id}
        other = pod(PORT)
        place = await world.netns(other)
        with pytest.raises(AlreadyExists, match=kept.id):
            await second.attach(other, place)
        await second.detach(other, place)
        again = await second.attach(lost, place)
        assert not set(again.addresses) & set(got.addresses)
        for one in (kept, lost):
            await second.detach(one, place)
        assert await world.contents() == set()


async def test_a_provider_that_is_not_ready_says_why_and_attaches_nothing(world: World) -> None:
    async with world.provider(ready=False) as provider:
        await provider.recover([])
        condition = provider.condition
        assert not condition.ready
        assert condition.message.startswith("cannot")
        one = pod()
        place = await world.netns(one)
        with pytest.raises(FailedPrecondition, match=condition.message):
            await provider.attach(one, place)
        await provider.detach(one, place)
        assert await world.contents() == set()
