"""Pod sandboxes."""

import asyncio
import ipaddress
from pathlib import Path

import pytest
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from criw_proto.runtime import v1 as cri
from support.client import Client

READY = cri.PodSandboxState.SANDBOX_READY
NOTREADY = cri.PodSandboxState.SANDBOX_NOTREADY


async def listed(client: Client, **wanted: object) -> list[cri.PodSandbox]:
    request = cri.ListPodSandboxRequest(filter=cri.PodSandboxFilter(**wanted))  # type: ignore[arg-type]
    return (await client.runtime.list_pod_sandbox(request)).items


async def test_a_pod_is_ready_then_stopped_then_gone(client: Client) -> None:
    pod_id = await client.run_pod()
    assert len(pod_id) == 64
    status = await client.pod_status(pod_id)
    assert status.state == READY
    assert status.created_at > 0
    assert status.network is not None
    ipaddress.ip_address(status.network.ip)
    await client.stop_pod(pod_id)
    assert (await client.pod_status(pod_id)).state == NOTREADY
    await client.remove_pod(pod_id)
    assert await listed(client, id=pod_id) == []
    with pytest.raises(GRPCError) as refused:
        await client.pod_status(pod_id)
    assert refused.value.status is Status.NOT_FOUND


async def test_what_the_request_said_comes_back(client: Client) -> None:
    config = client.pod_config(labels={"app": "a", "x": ""}, annotations={"note": "ä", "y/z": "1"})
    pod_id = await client.run_pod(config)
    status, (item,) = await client.pod_status(pod_id), await listed(client, id=pod_id)
    for told in (status, item):
        assert told.metadata == config.metadata
        assert told.labels == config.labels
        assert told.annotations == config.annotations
    assert item.created_at == status.created_at
    assert status.linux is not None
    assert status.linux.namespaces is not None
    assert status.linux.namespaces.options is not None
    assert status.linux.namespaces.options.pid == cri.NamespaceMode.CONTAINER
    assert status.linux.namespaces.options.network == cri.NamespaceMode.POD


async def test_filters_are_combined(client: Client) -> None:
    one = await client.run_pod(client.pod_config(labels={"group": "g", "which": "one"}))
    two = await client.run_pod(client.pod_config(labels={"group": "g", "which": "two"}))
    await client.stop_pod(two)
    state = cri.PodSandboxStateValue(state=READY)
    assert {pod.id for pod in await listed(client, label_selector={"group": "g"})} == {one, two}
    assert [pod.id for pod in await listed(client, label_selector={"group": "g", "which": "two"})] == [two]
    assert [pod.id for pod in await listed(client, label_selector={"group": "g"}, state=state)] == [one]
    assert [pod.id for pod in await listed(client, id=one[:13], label_selector={"group": "g"})] == [one]
    assert await listed(client, id=one, label_selector={"which": "two"}) == []


async def test_stop_and_remove_are_idempotent(client: Client) -> None:
    pod_id = await client.run_pod()
    for _ in range(2):
        await client.stop_pod(pod_id)
    for _ in range(2):
        await client.remove_pod(pod_id)
    await client.stop_pod("0" * 64)
    await client.remove_pod("0" * 64)


async def test_a_running_pod_is_removed_with_its_containers(client: Client, busybox: str) -> None:
    pod_id = await client.run_pod()
    container_id = await client.run(pod_id, busybox)
    await client.stop_pod(pod_id)
    assert (await client.status(container_id)).state == cri.ContainerState.CONTAINER_EXITED
    await client.remove_pod(pod_id)
    with pytest.raises(GRPCError) as refused:
        await client.status(container_id)
    assert refused.value.status is Status.NOT_FOUND


async def test_pods_at_once_have_addresses_of_their_own(client: Client) -> None:
    pods = await asyncio.gather(*(client.run_pod() for _ in range(4)))
    statuses = [await client.pod_status(pod_id) for pod_id in pods]
    assert len({status.network.ip for status in statuses if status.network}) == 4


@pytest.mark.parametrize("missing", ["metadata", "name", "uid", "namespace"])
async def test_metadata_must_be_complete(client: Client, missing: str) -> None:
    config = client.pod_config()
    if missing == "metadata":
        config.metadata = None
    else:
        setattr(config.metadata, missing, "")
    with pytest.raises(GRPCError) as refused:
        await client.run_pod(config)
    assert refused.value.status is Status.INVALID_ARGUMENT
    assert missing in str(refused.value.message)


async def test_a_pod_on_the_hosts_network_has_no_address(client: Client, busybox: str) -> None:
    options = cri.NamespaceOption(network=cri.NamespaceMode.NODE, pid=cri.NamespaceMode.CONTAINER)
    security = cri.LinuxSandboxSecurityContext(namespace_options=options)
    config = client.pod_config(hostname="", linux=cri.LinuxPodSandboxConfig(security_context=security))
    pod_id = await client.run_pod(config)
    status = await client.pod_status(pod_id)
    assert status.network is None or status.network.ip == ""
    container_id = await client.run(pod_id, busybox)
    inside = await client.output(container_id, "readlink", "/proc/self/ns/net")
    assert inside.strip() == str(Path("/proc/self/ns/net").readlink())


async def test_dns_hostname_and_sysctls(client: Client, busybox: str) -> None:
    config = client.pod_config(
        hostname="some-name",
        dns_config=cri.DnsConfig(servers=["10.10.10.10"], searches=["a.example", "b.example"], options=["ndots:8"]),
    )
    assert config.linux is not None
    config.linux.sysctls = {"kernel.shm_rmid_forced": "1", "net.ipv4.ip_local_port_range": "1024 65000"}
    pod_id = await client.run_pod(config)
    container_id = await client.run(pod_id, busybox)
    assert (await client.output(container_id, "hostname")).strip() == "some-name"
    resolv = (await client.output(container_id, "cat", "/etc/resolv.conf")).splitlines()
    assert resolv == ["nameserver 10.10.10.10", "search a.example b.example", "options ndots:8"]
    assert (await client.output(container_id, "cat", "/proc/sys/kernel/shm_rmid_forced")).strip() == "1"
    ports = await client.output(container_id, "cat", "/proc/sys/net/ipv4/ip_local_port_range")
    assert ports.split() == ["1024", "65000"]
