"""What a pod gets, that it gets it once, and that a refusal leaves nothing."""

import asyncio
import json
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from criw.errors import FailedPrecondition, InvalidArgument, ResourceExhausted
from criw.ids import new_id
from criw_proto.criw.network.v1 import PortMapping
from support.crew import Crew, running_crew
from support.network import HOST, NetworkClient, left_by_pods

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_a_pod_gets_addresses_routes_and_an_mtu(crew: Crew, network: NetworkClient) -> None:
    pod = await network.attach()
    assert pod.netns == crew.config.run_dir("network") / "netns" / pod.name
    first, second = crew.config.network.pod_cidrs
    assert [ip_address(ip) in ip_network(cidr) for ip, cidr in zip(pod.ips, (first, second), strict=True)] == [True] * 2
    (eth0,) = json.loads(pod.run("ip", "-j", "addr", "show", "dev", "eth0").stdout)
    assert eth0["mtu"] == 1500
    present = {(ip_address(a["local"]), a["prefixlen"]): a for a in eth0["addr_info"] if a["scope"] == "global"}
    assert set(present) == {(ip_address(pod.ips[0]), 24), (ip_address(pod.ips[1]), 64)}
    assert not any(address.get("tentative") for address in present.values())
    for family, gateway in (("-4", first.replace(".0/24", ".1")), ("-6", second.replace("::/64", "::1"))):
        (route,) = json.loads(pod.run("ip", "-j", family, "route", "show", "default").stdout)
        assert (ip_address(route["gateway"]), route["dev"]) == (ip_address(gateway), "eth0")


async def test_the_hosts_end_can_be_traced_to_its_pod(crew: Crew, network: NetworkClient) -> None:
    pod = await network.attach()
    links = json.loads(HOST.run("ip", "-j", "link", "show", "master", crew.config.network.bridge).stdout)
    assert [link["ifalias"] for link in links] == [pod.name]
    assert links[0]["ifname"].endswith(pod.name[:10])


async def test_the_mtu_is_the_one_configured() -> None:
    async with running_crew(["network"], extra_toml="network.mtu = 1340") as crew:
        network = NetworkClient(crew)
        pod = await network.attach()
        for place, link in ((pod, "eth0"), (HOST, crew.config.network.bridge)):
            assert json.loads(place.run("ip", "-j", "link", "show", "dev", link).stdout)[0]["mtu"] == 1340
        await network.detach(pod)


async def test_attaching_again_answers_the_same(crew: Crew, network: NetworkClient) -> None:
    pod = await network.attach(ports=[PortMapping("tcp", 80, 28101)])
    before = left_by_pods(crew)
    assert await network.attach(pod.name, ports=[PortMapping("tcp", 80, 28101)]) == pod
    assert left_by_pods(crew) == before


async def test_calls_at_the_same_time_join(crew: Crew, network: NetworkClient) -> None:
    pod_id = new_id()
    pods = await asyncio.gather(*(network.attach(pod_id) for _ in range(8)))
    assert set(pods) == {pods[0]}
    await asyncio.gather(*(network.detach(pod_id) for _ in range(8)))
    assert left_by_pods(crew) == []
    assert await network.attached() == set()


async def test_attach_and_detach_of_one_pod_take_turns(crew: Crew, network: NetworkClient) -> None:
    pod_id = new_id()
    for _ in range(10):
        await asyncio.gather(network.attach(pod_id), network.detach(pod_id), network.attach(pod_id))
    await network.detach(pod_id)
    assert left_by_pods(crew) == []


async def test_many_pods_at_once_have_each_their_own(network: NetworkClient) -> None:
    pods = await asyncio.gather(*(network.attach() for _ in range(30)))
    assert len({ip for pod in pods for ip in pod.ips}) == 60
    assert await network.attached() == {pod.name for pod in pods}
    await asyncio.gather(*(network.detach(pod) for pod in pods))
    assert await network.attached() == set()


async def test_detaching_what_is_not_there_is_a_success(network: NetworkClient) -> None:
    pod = await network.attach()
    for _ in range(3):
        await network.detach(pod)
    await network.detach(new_id())
    await network.detach("../../no such pod")


async def test_detach_takes_everything_though_a_process_stays_in_there(crew: Crew, network: NetworkClient) -> None:
    """A namespace lives as long as somebody is in it; the pod's link, address and pin must not."""
    pod = await network.attach(ports=[PortMapping("tcp", 80, 28102)])
    stays = await asyncio.create_subprocess_exec("nsenter", f"--net={pod.netns}", "busybox", "sleep", "600")
    try:
        while Path(f"/proc/{stays.pid}/comm").read_text().strip() != "busybox":
            await asyncio.sleep(0)
        await network.detach(pod)
        assert left_by_pods(crew) == []
    finally:
        stays.kill()
        await stays.wait()


async def test_an_address_just_freed_is_not_given_at_once() -> None:
    async with running_crew(["network"], extra_toml='network.pod_cidrs = ["10.247.63.0/29"]') as crew:
        network = NetworkClient(crew)
        given = []
        for _ in range(7):
            pod = await network.attach()
            await network.detach(pod)
            given.append(pod.ips[0])
        assert given == [f"10.247.63.{n}" for n in (2, 3, 4, 5, 6, 2, 3)]
        await crew.kill("network")
        await crew.start("network")
        pod = await network.attach()
        assert pod.ips == ("10.247.63.4",), "a restart does not begin anew"
        await network.detach(pod)


async def test_a_small_range_runs_out_and_recovers() -> None:
    async with running_crew(["network"], extra_toml='network.pod_cidrs = ["10.247.62.0/30"]') as crew:
        network = NetworkClient(crew)
        pod = await network.attach()
        assert pod.ips == ("10.247.62.2",)
        before = left_by_pods(crew)
        with pytest.raises(ResourceExhausted, match=r"10\.247\.62\.0/30"):
            await network.attach(ports=[PortMapping("tcp", 80, 28103)])
        assert left_by_pods(crew) == before
        await network.detach(pod)
        pod = await network.attach(ports=[PortMapping("tcp", 80, 28103)])
        assert pod.ips == ("10.247.62.2",)
        assert pod.pings("10.247.62.1"), "the neighbour caches know the new pod by its address"
        await network.detach(pod)


async def test_sysctls_are_the_pods_own(network: NetworkClient) -> None:
    here = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text()
    pod = await network.attach(
        sysctls={
            "net.ipv4.ip_unprivileged_port_start": "77",
            "net.ipv4.ping_group_range": "0 99",
            "net.ipv4.conf.eth0.arp_ignore": "1",
            "net.ipv6.conf.default.hop_limit": "33",
        }
    )
    settings = pod.run(
        "cat",
        *(f"/proc/sys/net/ipv4/{name}" for name in ("ip_unprivileged_port_start", "ping_group_range")),
        "/proc/sys/net/ipv4/conf/eth0/arp_ignore",
        "/proc/sys/net/ipv6/conf/default/hop_limit",
    ).stdout
    assert settings.split() == ["77", "0", "99", "1", "33"]
    assert Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text() == here


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("net.ipv4.no_such_setting", "1"),
        ("net.ipv4.ip_forward", "many"),
        ("net.ipv4.conf", "1"),
        ("net.core.bpf_jit_enable", "1"),
        ("kernel.shm_rmid_forced", "1"),
        ("net", "1"),
        ("net.", "1"),
        ("net..ipv4", "1"),
        ("net./../../kernel.panic", "1"),
        ("vm.swappiness\0net.x", "1"),
    ],
)
async def test_a_bad_sysctl_leaves_nothing(crew: Crew, network: NetworkClient, name: str, value: str) -> None:
    with pytest.raises(InvalidArgument, match="cannot set sysctl"):
        await network.attach(
            ports=[PortMapping("tcp", 80, 28104)], sysctls={"net.ipv4.ping_group_range": "0 1", name: value}
        )
    assert left_by_pods(crew) == []
    pod = await network.attach(ports=[PortMapping("tcp", 80, 28104)])
    assert await network.attached() == {pod.name}


@pytest.mark.parametrize("pod_id", ["", "abc", "../x", "g" * 64, "A" * 64])
async def test_a_bad_id_is_refused(network: NetworkClient, pod_id: str) -> None:
    with pytest.raises(InvalidArgument, match="cannot attach pod"):
        await network.attach(pod_id)


async def test_without_a_pod_range_nothing_is_attached() -> None:
    async with running_crew(["network"], extra_toml="network.pod_cidrs = []") as crew:
        network = NetworkClient(crew)
        status = await network.status()
        assert (status.ready, status.reason) == (False, "NoPodRange")
        with pytest.raises(FailedPrecondition, match="no pod CIDR is configured"):
            await network.attach()
