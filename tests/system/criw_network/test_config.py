"""Pod ranges: from the configuration, from the kubelet, and what is refused; and whose bridge it is."""

import contextlib
import json
import sqlite3
from ipaddress import ip_address, ip_network

import pytest

from criw.errors import FailedPrecondition, InvalidArgument
from criw_proto.criw.network.v1 import PortMapping
from support.crew import Crew, running_crew
from support.network import HOST, NetworkClient, Place, ask_tcp, outside_world, tcp_server

EX_CONFIG = 78


async def refused_start(crew: Crew) -> str:
    """Start the agent, which must end for what it cannot use; what it said."""
    with pytest.raises(AssertionError):
        await crew.start("network")
    assert await crew.processes.pop("network").wait() == EX_CONFIG
    return crew.log_path("network").read_text().splitlines()[-1]


async def test_the_kubelets_range_overrides_the_configuration_and_is_kept() -> None:
    async with running_crew(["network"]) as crew:
        network = NetworkClient(crew)
        for _ in range(2):
            await network.update_config("10.248.4.0/24", "fd48:4::/64")
            assert (await network.status()).ready
        await crew.kill("network")
        await crew.start("network")
        pod = await network.attach()
        assert pod.ips == ("10.248.4.2", "fd48:4::2")
        async with outside_world() as (world, host), tcp_server(world, 80):
            assert await ask_tcp(pod, world.ips[0], 80) == ("outside", host[4]), "masquerade follows"
        await network.detach(pod)


async def test_a_range_may_change_between_pods() -> None:
    async with running_crew(["network"]) as crew:
        network = NetworkClient(crew)
        await network.detach(await network.attach())
        await network.update_config("10.248.5.0/24")
        listed = HOST.run("ip", "-4", "-o", "addr", "show", "dev", crew.config.network.bridge).stdout
        assert listed.count("inet ") == 1
        assert "10.248.5.1/24" in listed
        pod = await network.attach()
        assert pod.pings("10.248.5.1")
        await network.detach(pod)


@pytest.mark.parametrize(
    ("before", "now"),
    [
        (["10.248.7.0/24"], ["10.248.6.0/24"]),
        (["10.248.6.0/29"], ["10.248.6.0/24"]),
        (["10.248.6.0/24"], ["10.248.6.0/29"]),
        (["10.248.6.0/28"], ["10.248.0.0/16"]),
        (["fd48:6::/112"], ["fd48:6::/64"]),
        (["10.248.6.0/24", "fd48:6::/64"], ["10.248.7.0/24", "fd48:7::/64"]),
    ],
    ids=str,
)
async def test_pods_of_an_earlier_range_work_on_beside_those_of_the_new_one(before: list[str], now: list[str]) -> None:
    """The default range is in use when the kubelet comes with its own, and DaemonSets' pods never go by themselves."""
    async with running_crew(["network"], extra_toml=f"network.pod_cidrs = {before}") as crew:
        network = NetworkClient(crew)
        old = await network.attach(ports=[PortMapping("tcp", 80, 28401)])
        await network.update_config(*now)
        assert (await network.status()).ready
        new = await network.attach(ports=[PortMapping("tcp", 80, 28402)])
        assert not set(old.ips) & set(new.ips)
        assert all(any(ip_address(ip) in ip_network(cidr) for cidr in now) for ip in new.ips)
        for attempt in range(2):
            await work_together(old, new, before, now)
            if not attempt:
                await crew.kill("network")
                await crew.start("network")
        await network.detach(old)
        third = await network.attach()
        listed = HOST.run("ip", "-o", "addr", "show", "dev", crew.config.network.bridge).stdout
        gateways = {str(ip_network(cidr)[1]) for cidr in now}
        present = {line.split()[3].split("/")[0] for line in listed.splitlines() if " link " not in line}
        assert present == gateways, "with its last pod a range goes"
        assert third.pings(new.ips[0])
        for pod in (new, third):
            await network.detach(pod)


async def work_together(old: Place, new: Place, before: list[str], now: list[str]) -> None:
    """Both reach their gateways, each other, the host and the world, and are reached by their host ports."""
    for pod, ranges in ((old, before), (new, now)):
        for cidr in ranges:
            assert pod.pings(str(ip_network(cidr)[1]))
        for ip in pod.ips:
            assert HOST.pings(ip)
    for one, other in ((old, new), (new, old)):
        for ip in other.ips:
            assert one.pings(ip)
    async with outside_world() as (world, host):
        for pod, port in ((old, 28401), (new, 28402)):
            for ip in pod.ips:
                version = ip_address(ip).version
                theirs = next(one for one in world.ips if ip_address(one).version == version)
                async with tcp_server(world, 80, theirs), tcp_server(pod, 80, ip):
                    assert await ask_tcp(pod, theirs, 80) == ("outside", host[version]), "masquerade is for both"
                    assert (await ask_tcp(world, host[version], port))[0] == pod.name


async def test_a_range_whose_gateway_is_a_pods_address_is_refused() -> None:
    async with running_crew(["network"], extra_toml='network.pod_cidrs = ["10.248.4.0/22"]') as crew:
        network = NetworkClient(crew)
        with contextlib.closing(sqlite3.connect(crew.config.state_dir("network") / "network.db")) as database:
            row = json.dumps({"id": "10.248.4.0/22", "last": "10.248.5.0"})
            await crew.stop("network")
            database.execute("INSERT OR REPLACE INTO record VALUES ('rotation', '10.248.4.0/22', ?)", (row,))
            database.commit()
        await crew.start("network")
        pod = await network.attach()
        assert pod.ips == ("10.248.5.1",)
        with pytest.raises(FailedPrecondition, match=pod.name):
            await network.update_config("10.248.5.0/24")
        assert (await network.attach()).ips == ("10.248.5.2",), "the range before stays"
        await network.detach_all()


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    "cidrs",
    [
        ["10.1.0.0"],
        ["ten"],
        [""],
        ["10.1.0.1/24"],
        ["10.1.0.0/31"],
        ["fd00::/127"],
        ["10.1.0.0/24", "10.2.0.0/24"],
        ["fd01::/64", "fd02::/64"],
        ["224.0.0.0/24"],
        ["127.1.0.0/24"],
    ],
)
async def test_a_bad_range_is_refused(network: NetworkClient, cidrs: list[str]) -> None:
    with pytest.raises(InvalidArgument, match="cannot use pod range"):
        await network.update_config(*cidrs)


async def test_no_range_at_all_changes_nothing() -> None:
    async with running_crew(["network"], extra_toml='network.pod_cidrs = ["10.248.8.0/24"]') as crew:
        network = NetworkClient(crew)
        await network.update_config()
        pod = await network.attach()
        assert pod.ips == ("10.248.8.2",)
        await network.detach(pod)


async def test_a_range_makes_an_agent_without_one_ready() -> None:
    async with running_crew(["network"], extra_toml="network.pod_cidrs = []") as crew:
        network = NetworkClient(crew)
        assert not (await network.status()).ready
        await network.update_config("fd48:9::/64")
        assert (await network.status()).ready
        pod = await network.attach()
        assert pod.ips == ("fd48:9::2",)
        assert pod.pings("fd48:9::1")
        await network.detach(pod)


async def test_an_agent_starts_with_a_range_its_pods_are_not_of() -> None:
    async with running_crew(["network"], extra_toml='network.pod_cidrs = ["10.248.10.0/24"]') as crew:
        network = NetworkClient(crew)
        pod = await network.attach()
        await crew.stop("network")
        (crew.directory / "conf.d" / "test.toml").write_text('network.pod_cidrs = ["10.248.11.0/24"]')
        await crew.start("network")
        other = await network.attach()
        assert other.ips == ("10.248.11.2",)
        assert pod.pings("10.248.10.1")
        assert pod.pings(other.ips[0])
        await network.detach(pod)
        await network.detach(other)


async def test_a_range_that_another_link_has_is_refused() -> None:
    async with running_crew(["network"], extra_toml='network.pod_cidrs = ["10.248.12.0/24"]') as crew:
        network = NetworkClient(crew)
        async with running_crew(["network"], extra_toml='network.pod_cidrs = ["10.248.12.0/24"]') as other:
            neighbours = NetworkClient(other)
            neighbour = await neighbours.attach()
            with pytest.raises(FailedPrecondition, match=other.config.network.bridge):
                await network.attach()
            assert not HOST.run("ip", "link", "show", "dev", crew.config.network.bridge).stdout
            await neighbours.detach(neighbour)
        pod = await network.attach()
        await network.detach(pod)


async def test_a_bridge_of_somebody_else_is_left_alone() -> None:
    async with running_crew([]) as crew:
        bridge = crew.config.network.bridge
        assert HOST.run("ip", "link", "add", bridge, "type", "bridge").returncode == 0
        assert f"cannot use bridge {bridge}: it is not Criw's" in await refused_start(crew)
        assert HOST.run("ip", "link", "del", bridge).returncode == 0, "it is still there"


async def test_a_bridge_of_another_crew_is_left_alone() -> None:
    async with running_crew(["network"]) as crew:
        network = NetworkClient(crew)
        pod = await network.attach()
        async with running_crew([], extra_toml=f'network.bridge = "{crew.config.network.bridge}"') as thief:
            assert f"it belongs to {crew.config.root}/network" in await refused_start(thief)
            assert pod.pings(str(ip_network(crew.config.network.pod_cidrs[0])[1]))
            await network.detach(pod)
            await crew.stop("network")


async def test_missing_nftables_are_told() -> None:
    """A host without the library, played by a search path on which every library of that name is broken."""
    async with running_crew([]) as crew:
        broken = crew.directory / "broken"
        broken.mkdir()
        (broken / "libnftables.so.1").write_bytes(b"not a library")
        await crew.start("network", env={"LD_LIBRARY_PATH": str(broken)})
        network = NetworkClient(crew)
        status = await network.status()
        assert (status.ready, status.reason) == (False, "NftablesMissing")
        assert "install nftables" in status.message
        with pytest.raises(FailedPrecondition, match="install nftables"):
            await network.attach()
