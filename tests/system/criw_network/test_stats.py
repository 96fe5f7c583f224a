"""Counters of pods, as the pod sees them."""

import json
import socket
import time

import aiohttp
import pytest

from criw.ids import new_id
from criw.rpc.client import call
from criw_proto.criw.network.v1 import StatsRequest
from support.crew import Crew
from support.network import NetworkClient, Place, ask_udp, udp_server

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_counters_are_those_the_pod_itself_sees(crew: Crew, network: NetworkClient) -> None:
    one, two = await network.attach(), await network.attach()
    async with udp_server(two, 53):
        for _ in range(20):
            await ask_udp(one, two.ips[0], 53)
    for pod in (one, two):
        # Neighbour and multicast traffic may come between two readings: ours lies between two of the pod's.
        before, read, after = seen(pod), await stats(network, pod), seen(pod)
        for field, value in read.items():
            assert before[field] <= value <= after[field], field
        assert read["rx_packets"] >= 20
        assert read["tx_packets"] >= 20
        assert read["rx_bytes"] > 20 * 42


async def test_what_a_pod_drops_is_counted_as_dropped(network: NetworkClient) -> None:
    """The host's end of the pair knows nothing of that: it has sent the frames."""
    one, two = await network.attach(), await network.attach()

    def send_what_nobody_understands() -> None:
        local_experimental = 0x88B5
        with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM) as sending:
            for _ in range(5):
                sending.sendto(bytes(60), ("eth0", local_experimental, 0, 0, b"\xff" * 6))

    await one.inside(send_what_nobody_understands)
    assert (await stats(network, two))["rx_dropped"] >= 5
    assert (await stats(network, one))["tx_packets"] >= 5


async def test_all_pods_are_counted_when_none_is_named(network: NetworkClient) -> None:
    pods = [await network.attach() for _ in range(3)]
    started = time.time_ns()
    reply = await call(network.stub.stats, StatsRequest())
    assert {pod.pod_id for pod in reply.pods} == {pod.name for pod in pods}
    assert all(started <= pod.timestamp_ns <= time.time_ns() for pod in reply.pods)
    assert [interface.name for pod in reply.pods for interface in pod.interfaces] == ["eth0"] * 3


async def test_unknown_pods_are_left_out(network: NetworkClient) -> None:
    pod, gone = await network.attach(), await network.attach()
    await network.detach(gone)
    reply = await call(network.stub.stats, StatsRequest(pod_ids=[gone.name, pod.name, new_id()]))
    assert [pod.pod_id for pod in reply.pods] == [pod.name]


async def test_metrics_tell_pods_and_room(crew: Crew, network: NetworkClient) -> None:
    async def metrics() -> dict[str, float]:
        host, port = crew.config.network.address()
        async with aiohttp.ClientSession() as session, session.get(f"http://{host}:{port}/metrics") as reply:
            lines = [line.rpartition(" ") for line in (await reply.text()).splitlines() if not line.startswith("#")]
        return {name: float(value) for name, _, value in lines if name.startswith("criw_network_")}

    before = await metrics()
    pods = [await network.attach() for _ in range(2)]
    during = await metrics()
    assert during["criw_network_attached_pods"] == before["criw_network_attached_pods"] + 2
    assert during['criw_network_free_addresses{ip_version="4"}'] == 253 - 2
    assert during['criw_network_free_addresses{ip_version="6"}'] == float(2**64 - 2 - 2)
    assert during["criw_network_attach_seconds_count"] == before["criw_network_attach_seconds_count"] + 2
    for pod in pods:
        await network.detach(pod)
    after = await metrics()
    assert after["criw_network_attached_pods"] == before["criw_network_attached_pods"]
    assert after['criw_network_free_addresses{ip_version="4"}'] == 253


def seen(pod: Place) -> dict[str, int]:
    (eth0,) = json.loads(pod.run("ip", "-j", "-s", "link", "show", "dev", "eth0").stdout)
    return {
        f"{way}_{what}": eth0["stats64"][way][what]
        for way in ("rx", "tx")
        for what in ("bytes", "packets", "errors", "dropped")
    }


async def stats(network: NetworkClient, pod: Place) -> dict[str, int]:
    reply = await call(network.stub.stats, StatsRequest(pod_ids=[pod.name]))
    (interface,) = reply.pods[0].interfaces
    return {name: getattr(interface, name) for name in seen(pod)}
