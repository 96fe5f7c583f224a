"""Host ports: from wherever one may try to reach them, and who may have which."""

import json

import pytest

from criw.errors import AlreadyExists, InvalidArgument
from criw_proto.criw.network.v1 import PortMapping
from support.crew import Crew, running_crew
from support.network import (
    HOST,
    NetworkClient,
    answers,
    ask_tcp,
    ask_udp,
    elements,
    left_by_pods,
    outside_world,
    tcp_server,
    udp_server,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")


def port(host_port: int, container_port: int = 80, *, protocol: str = "tcp", host_ip: str = "") -> PortMapping:
    return PortMapping(protocol=protocol, host_port=host_port, container_port=container_port, host_ip=host_ip)


def both(host_port: int, container_port: int = 80) -> list[PortMapping]:
    return [port(host_port, container_port), port(host_port, container_port, protocol="udp")]


async def test_a_host_port_leads_to_its_pod_from_everywhere(network: NetworkClient) -> None:
    pod = await network.attach(ports=both(28001))
    other = await network.attach()
    async with (
        outside_world() as (world, host),
        tcp_server(pod, 80),
        udp_server(pod, 80),
    ):
        for place, address in (
            (HOST, "127.0.0.1"),
            (HOST, "127.0.0.5"),
            (HOST, host[4]),
            (world, host[4]),
            (other, host[4]),
            (pod, host[4]),
        ):
            for attempt in range(3):
                assert (await ask_tcp(place, address, 28001))[0] == pod.name, f"{place.name} {address} {attempt}"
                assert (await ask_udp(place, address, 28001))[0] == pod.name, f"{place.name} {address} {attempt}"
        assert (await ask_tcp(world, host[4], 28001))[1] == world.ips[0], "strangers are seen as themselves"


async def test_a_host_port_works_by_ipv6_too(network: NetworkClient) -> None:
    pod = await network.attach(ports=both(28002))
    other = await network.attach()
    async with (
        outside_world() as (world, host),
        tcp_server(pod, 80, pod.ips[1]),
        udp_server(pod, 80, pod.ips[1]),
    ):
        for place in (HOST, world, other, pod):
            assert (await ask_tcp(place, host[6], 28002))[0] == pod.name, place.name
            assert (await ask_udp(place, host[6], 28002))[0] == pod.name, place.name
        assert (await ask_tcp(world, host[6], 28002))[1] == world.ips[1]
        with pytest.raises(ConnectionRefusedError):  # and not silence: who says localhost then goes on to 127.0.0.1
            await ask_tcp(HOST, "::1", 28002)


async def test_a_host_port_of_one_address_is_open_there_only(network: NetworkClient) -> None:
    async with outside_world() as (world, host):
        pod = await network.attach(ports=[port(28003, host_ip="127.0.0.1"), port(28004, host_ip=host[4])])
        async with tcp_server(pod, 80):
            assert (await ask_tcp(HOST, "127.0.0.1", 28003))[0] == pod.name
            assert (await ask_tcp(world, host[4], 28004))[0] == pod.name
            assert (await ask_tcp(HOST, host[4], 28004))[0] == pod.name
            assert not await answers(ask_tcp(world, host[4], 28003))
            assert not await answers(ask_tcp(HOST, "127.0.0.1", 28004))


async def test_a_host_port_on_a_foreign_address_leads_no_traffic_astray(network: NetworkClient) -> None:
    """Anybody may ask for hostIP: the address of a cluster's DNS, or of another machine."""
    async with outside_world() as (world, _):
        ports = [port(28015, 80, host_ip=ip, protocol=kind) for ip in world.ips for kind in ("tcp", "udp")]
        thief = await network.attach(ports=ports)
        victim = await network.attach()
        for ip, own in zip(world.ips, thief.ips, strict=True):
            async with (
                tcp_server(world, 28015, ip),
                udp_server(world, 28015, ip),
                tcp_server(thief, 80, own),
                udp_server(thief, 80, own),
            ):
                for place in (HOST, victim, thief):
                    assert (await ask_tcp(place, ip, 28015))[0] == "outside", f"{place.name} {ip}"
                    assert (await ask_udp(place, ip, 28015))[0] == "outside", f"{place.name} {ip}"


async def test_a_host_port_waits_for_its_address(network: NetworkClient) -> None:
    """A floating address comes to the host after the pod."""
    async with outside_world() as (world, host):
        floating = host[4].removesuffix(".1") + ".9"
        pod = await network.attach(ports=[port(28016, host_ip=floating)])
        listed = json.loads(HOST.run("ip", "-j", "-4", "addr", "show", "to", host[4]).stdout)
        link = next(one["ifname"] for one in listed if one)
        async with tcp_server(pod, 80):
            assert not await answers(ask_tcp(world, floating, 28016))
            assert HOST.run("ip", "addr", "add", f"{floating}/24", "dev", link).returncode == 0
            assert (await ask_tcp(world, floating, 28016))[0] == pod.name


async def test_other_traffic_to_that_port_passes(network: NetworkClient) -> None:
    """Only the host's own addresses are meant: a pod that talks to port 28005 elsewhere must get there."""
    pod = await network.attach(ports=[port(28005)])
    async with outside_world() as (world, _), tcp_server(world, 28005), tcp_server(pod, 80):
        assert (await ask_tcp(pod, world.ips[0], 28005))[0] == "outside"
        assert (await ask_tcp(HOST, world.ips[0], 28005))[0] == "outside"


async def test_a_closed_host_port_is_closed(crew: Crew, network: NetworkClient) -> None:
    pod = await network.attach(ports=both(28006))
    async with tcp_server(pod, 80):
        assert await answers(ask_tcp(HOST, "127.0.0.1", 28006))
    await network.detach(pod)
    assert elements(crew) == []
    assert not await answers(ask_tcp(HOST, "127.0.0.1", 28006))


async def test_a_udp_client_that_never_stops_finds_the_next_pod(network: NetworkClient) -> None:
    """The kernel remembers where a flow went; one that keeps its source port must not be led to the dead for ever."""
    pod = await network.attach(ports=both(28007))
    async with outside_world() as (world, host):
        for place, address in ((HOST, "127.0.0.1"), (world, host[4])):
            async with udp_server(pod, 80):
                assert (await ask_udp(place, address, 28007, source_port=28990))[0] == pod.name
            await network.detach(pod)
            assert not await answers(ask_udp(place, address, 28007, source_port=28990))
            pod = await network.attach(ports=both(28007))
            async with udp_server(pod, 80):
                assert (await ask_udp(place, address, 28007, source_port=28990))[0] == pod.name


async def test_a_host_port_has_one_pod(crew: Crew, network: NetworkClient) -> None:
    owner = await network.attach(ports=[port(28008), port(28009, host_ip="127.0.0.1")])
    before = left_by_pods(crew)
    for wanted in (
        port(28008),
        port(28008, 8080, host_ip="127.0.0.1"),
        port(28008, host_ip="2001:db8::1"),
        port(28009),
        port(28009, host_ip="127.0.0.1"),
        port(28009, host_ip="0.0.0.0"),
    ):
        with pytest.raises(AlreadyExists, match=f"{wanted.host_port}.*{owner.name}"):
            await network.attach(ports=[port(28010), wanted])
    assert left_by_pods(crew) == before
    others = [port(28008, protocol="udp"), port(28009, host_ip="127.0.0.2"), port(28009, host_ip="::"), port(28010)]
    other = await network.attach(ports=others)
    await network.detach(owner)
    await network.attach(ports=[port(28008), port(28009, host_ip="127.0.0.1")])
    await network.detach(other)


async def test_another_crew_may_claim_the_same_port(network: NetworkClient) -> None:
    """As any process of the host may: who was first is asked first, and nothing fails."""
    pod = await network.attach(ports=[port(28011)])
    async with running_crew(["network"]) as other:
        neighbours = NetworkClient(other)
        neighbour = await neighbours.attach(ports=[port(28011), port(28012)])
        async with tcp_server(pod, 80), tcp_server(neighbour, 80):
            assert (await ask_tcp(pod, neighbour.ips[0], 80))[0] == neighbour.name
            assert (await ask_tcp(HOST, "127.0.0.1", 28012))[0] == neighbour.name
            assert (await ask_tcp(HOST, "127.0.0.1", 28011))[0] in {pod.name, neighbour.name}
        await neighbours.detach(neighbour)
    async with tcp_server(pod, 80):
        assert (await ask_tcp(HOST, "127.0.0.1", 28011))[0] == pod.name


async def test_container_ports_without_a_host_port_map_nothing(crew: Crew, network: NetworkClient) -> None:
    await network.attach(ports=[port(0), port(0, 443)])
    assert elements(crew) == []


async def test_sctp_ports_are_mapped(crew: Crew, network: NetworkClient) -> None:
    await network.attach(ports=[port(28013, protocol="sctp")])
    assert [element for element in elements(crew) if '"sctp", 28013' in element]


@pytest.mark.parametrize(
    "wrong",
    [
        port(80, protocol="icmp"),
        port(80, protocol=""),
        port(65536),
        port(80, 0),
        port(80, 65536),
        port(80, host_ip="localhost"),
        port(80, host_ip="10.0.0.256"),
        port(80, host_ip="::1"),
    ],
    ids=str,
)
async def test_a_bad_mapping_is_refused(crew: Crew, network: NetworkClient, wrong: PortMapping) -> None:
    with pytest.raises(InvalidArgument, match="cannot map port"):
        await network.attach(ports=[wrong])
    assert left_by_pods(crew) == []


async def test_one_pod_cannot_map_a_port_twice(network: NetworkClient) -> None:
    with pytest.raises(InvalidArgument, match="twice"):
        await network.attach(ports=[port(28014, 80), port(28014, 81)])
