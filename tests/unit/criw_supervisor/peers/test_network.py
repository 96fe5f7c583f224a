"""What the supervisor relies on in the network agent: the real one keeps it, and so does the fake."""

import contextlib
import ipaddress
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from criw.ids import new_id
from criw_proto.criw.network.v1 import NetworkStub
from criw_supervisor.peers.network import Network, NetworkPlan
from support.crew import running_crew
from support.fake_agents import running_fakes

PLAN = NetworkPlan(name="web", namespace="default", uid="u", cgroup="/criw/p")


@contextlib.asynccontextmanager
async def real() -> AsyncIterator[Network]:
    async with running_crew(["network"]) as crew:
        yield Network(NetworkStub(crew.channel("network")))


@pytest_asyncio.fixture(params=["fake", pytest.param("real", marks=pytest.mark.root)])
async def network(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Network]:
    if request.param == "real":
        async with real() as made:
            yield made
        return
    async with running_fakes(tmp_path) as agents:
        yield agents.ask_network


async def test_a_pod_is_attached_once_and_listed_until_it_is_detached(network: Network) -> None:
    pod = new_id()
    attached = await network.attach(pod, PLAN)
    assert Path(attached.netns).is_absolute()
    assert [ipaddress.ip_address(ip).version for ip in attached.ips] == [4]
    assert await network.attach(pod, PLAN) == attached
    assert await network.pod_ids() == [pod]
    for _ in range(2):
        await network.detach(pod)
    assert await network.pod_ids() == []


async def test_pods_have_addresses_of_their_own(network: Network) -> None:
    pods = [new_id(), new_id()]
    one, other = [await network.attach(pod, PLAN) for pod in pods]
    assert one.netns != other.netns
    assert set(one.ips).isdisjoint(other.ips)
    for pod in pods:
        await network.detach(pod)


async def test_counters_are_told_of_the_pods_that_are_there(network: Network) -> None:
    pod = new_id()
    assert await network.counters([]) == {}
    await network.attach(pod, PLAN)
    counters = await network.counters([pod, new_id()])
    assert list(counters) == [pod]
    assert counters[pod].interfaces[0].name == "eth0"
    await network.detach(pod)


async def test_ranges_are_taken(network: Network) -> None:
    await network.set_ranges(["10.213.7.0/24"])
    (ip,) = (await network.attach(pod := new_id(), PLAN)).ips
    assert ipaddress.ip_address(ip) in ipaddress.ip_network("10.213.7.0/24")
    await network.detach(pod)
