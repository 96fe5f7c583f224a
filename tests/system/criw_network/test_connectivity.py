"""Pods reach each other, the host and the world, by IPv4 and IPv6, from the first moment."""

import ipaddress

import pytest

from support.crew import Crew, running_crew
from support.network import (
    HOST,
    NetworkClient,
    answers,
    ask_tcp,
    ask_udp,
    outside_world,
    send_router_advertisement,
    tcp_server,
    udp_server,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")


def gateways(crew: Crew) -> list[str]:
    return [str(ipaddress.ip_network(cidr)[1]) for cidr in crew.config.network.pod_cidrs]


async def test_a_pod_can_talk_the_moment_it_is_attached(crew: Crew, network: NetworkClient) -> None:
    pod = await network.attach()
    async with tcp_server(HOST, 8080), tcp_server(HOST, 8081, "::"):
        for gateway, port in zip(gateways(crew), (8080, 8081), strict=True):
            who, seen = await ask_tcp(pod, gateway, port)
            assert (who, seen) == ("host", next(ip for ip in pod.ips if (":" in ip) == (":" in gateway)))


async def test_two_pods_and_the_host_reach_each_other(crew: Crew, network: NetworkClient) -> None:
    one, two = await network.attach(), await network.attach()
    for source, target in ((one, two), (two, one), (HOST, one), (HOST, two)):
        for address in target.ips:
            assert source.pings(address), f"{source.name} to {address}"
    for gateway in gateways(crew):
        assert one.pings(gateway)
    for address, own in zip(two.ips, one.ips, strict=True):
        async with tcp_server(two, 80, address), udp_server(two, 53, address):
            assert await ask_tcp(one, address, 80) == (two.name, own), "a pod is seen as itself, not translated"
            assert await ask_udp(one, address, 53) == (two.name, own)
            assert (await ask_tcp(HOST, address, 80))[0] == two.name


async def test_loopback_is_up_in_a_pod(network: NetworkClient) -> None:
    pod = await network.attach()
    for address in ("127.0.0.1", "::1"):
        async with tcp_server(pod, 80, address):
            assert await ask_tcp(pod, address, 80) == (pod.name, address)


async def test_the_world_sees_the_host_where_a_pod_speaks(network: NetworkClient) -> None:
    pod = await network.attach()
    async with outside_world() as (world, host):
        for address in world.ips:
            version = 6 if ":" in address else 4
            async with tcp_server(world, 80, address), udp_server(world, 53, address):
                assert await ask_tcp(pod, address, 80) == ("outside", host[version])
                assert await ask_udp(pod, address, 53) == ("outside", host[version])
            assert pod.pings(address)


async def test_a_pod_cannot_reach_the_hosts_loopback(crew: Crew, network: NetworkClient) -> None:
    """127.0.0.1 leads to host ports, for which the kernel must route it; a pod must not profit from that."""
    pod = await network.attach()
    assert pod.run("ip", "addr", "del", "127.0.0.1/8", "dev", "lo").returncode == 0
    assert pod.run("ip", "route", "add", "127.0.0.0/8", "via", gateways(crew)[0]).returncode == 0
    assert pod.run("sh", "-c", "echo 1 >/proc/sys/net/ipv4/conf/all/route_localnet").returncode == 0
    async with udp_server(HOST, 8082, "127.0.0.1"), tcp_server(HOST, 8082, "127.0.0.1"):
        assert (await ask_tcp(HOST, "127.0.0.1", 8082))[0] == "host"
        assert not await answers(ask_udp(pod, "127.0.0.1", 8082))


async def listens_to_no_router(crew: Crew, network: NetworkClient) -> None:
    rogue, victim = await network.attach(), await network.attach()
    for _ in range(3):
        await rogue.inside(lambda: send_router_advertisement("2001:db8:bad::"))
        assert rogue.pings(victim.ips[0]), "what it sent before has arrived, too"
    for place, link in ((victim, "eth0"), (HOST, crew.config.network.bridge)):
        assert "2001:db8:bad" not in place.run("ip", "-6", "addr", "show", "dev", link).stdout, place.name
        assert "fe80::bad" not in place.run("ip", "-6", "route", "show", "dev", link).stdout, place.name


async def test_no_pod_can_pose_as_a_router(crew: Crew, network: NetworkClient) -> None:
    """CVE-2020-10749: neither to another pod nor to the host."""
    await listens_to_no_router(crew, network)


async def test_no_pod_can_pose_as_a_router_where_there_is_only_ipv4() -> None:
    async with running_crew(["network"]) as crew:
        network = NetworkClient(crew)
        await listens_to_no_router(crew, network)
        await network.detach_all()


async def test_a_pod_without_an_ipv6_address_has_ipv6_on_its_loopback_only() -> None:
    async with running_crew(["network"]) as crew:
        network = NetworkClient(crew)
        pod = await network.attach()
        assert pod.run("ip", "-6", "addr", "show", "dev", "eth0").stdout == ""
        async with tcp_server(pod, 80, "::1"):
            assert await ask_tcp(pod, "::1", 80) == (pod.name, "::1")
        await network.detach(pod)


async def test_two_crews_do_not_disturb_each_other(crew: Crew, network: NetworkClient) -> None:
    pod = await network.attach()
    async with running_crew(["network"]) as other:
        neighbours = NetworkClient(other)
        neighbour = await neighbours.attach()
        async with tcp_server(pod, 80):
            # Between crews lies the host, as between two machines.
            who, seen = await ask_tcp(neighbour, pod.ips[0], 80)
            assert who == pod.name
            assert seen == gateways(crew)[0]
        await neighbours.detach(neighbour)
    assert pod.pings(gateways(crew)[0])
