"""Limits, their change, and what is told of the use."""

import asyncio
from pathlib import Path

import pytest
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from criw_proto.runtime import v1 as cri
from criw_supervisor.cgroups import hierarchies
from support.client import Client
from support.supervised import Traces, info

MIB = 1024 * 1024
SPINNER = ("sh", "-c", "while :; do :; done")


async def cgroup_of(client: Client, container_id: str) -> str:
    return str((await info(client, container_id))["runtimeSpec"]["linux"]["cgroupsPath"])


def read(cgroup: str, v1: tuple[str, str], v2: str) -> str:
    """A file of a cgroup, by its controller and name in version 1, or its name in version 2."""
    host = hierarchies.of_host()
    controller, name = ("", v2) if host.v2 else v1
    directory = host.directory(controller, cgroup)
    assert directory is not None
    return (directory / name).read_text().strip()


async def update(client: Client, container_id: str, **limits: int | str) -> None:
    change = cri.LinuxContainerResources()
    for name, value in limits.items():
        setattr(change, name, value)
    request = cri.UpdateContainerResourcesRequest(container_id=container_id, linux=change)
    await client.runtime.update_container_resources(request)


async def reported(client: Client, container_id: str) -> cri.LinuxContainerResources:
    resources = (await client.status(container_id)).resources
    assert resources is not None
    assert resources.linux is not None
    return resources.linux


async def stats(client: Client, container_id: str) -> cri.ContainerStats:
    reply = await client.runtime.container_stats(cri.ContainerStatsRequest(container_id=container_id))
    assert reply.stats is not None
    return reply.stats


async def test_an_update_changes_what_it_names_in_the_cgroup_and_in_the_status(client: Client, busybox: str) -> None:
    pod_id = await client.run_pod()
    limits = cri.LinuxContainerResources(memory_limit_in_bytes=64 * MIB, cpu_shares=512, cpu_period=100_000)
    container_id = await client.create(pod_id, busybox, resources=limits)
    await client.start(container_id)
    cgroup = await cgroup_of(client, container_id)
    memory = (("memory", "memory.limit_in_bytes"), "memory.max")
    assert read(cgroup, *memory) == str(64 * MIB)
    await update(client, container_id, cpuset_cpus="0")  # as the kubelet's CPU manager does
    assert read(cgroup, ("cpuset", "cpuset.cpus"), "cpuset.cpus") == "0"
    assert read(cgroup, *memory) == str(64 * MIB)
    await update(client, container_id, memory_limit_in_bytes=128 * MIB)
    await update(client, container_id, memory_limit_in_bytes=32 * MIB)
    assert read(cgroup, *memory) == str(32 * MIB)
    await update(client, container_id, cpu_quota=50_000)
    assert read(cgroup, ("cpu", "cpu.cfs_quota_us"), "cpu.max").startswith("50000")
    await update(client, container_id, cpu_quota=-1)
    assert read(cgroup, ("cpu", "cpu.cfs_quota_us"), "cpu.max").startswith(("-1", "max"))
    found = await reported(client, container_id)
    assert (found.memory_limit_in_bytes, found.cpu_shares, found.cpu_quota, found.cpuset_cpus) == (
        32 * MIB, 512, -1, "0",
    )  # fmt: skip
    await update(client, container_id)
    assert await reported(client, container_id) == found


async def test_an_updated_oom_score_is_that_of_all_that_runs_and_of_later_commands(
    client: Client, busybox: str
) -> None:
    container_id = await client.run(await client.run_pod(), busybox)
    pid = (await info(client, container_id))["pid"]
    await update(client, container_id, oom_score_adj=321)
    assert Path(f"/proc/{pid}/oom_score_adj").read_text() == "321\n"
    until = "until read score < /proc/self/oom_score_adj && [ $score = 321 ]; do :; done"
    assert (await client.exec(container_id, "sh", "-c", until, timeout_s=20)).exit_code == 0
    assert (await reported(client, container_id)).oom_score_adj == 321


async def test_an_update_the_kernel_refuses_is_told_and_not_reported(client: Client, busybox: str) -> None:
    pod_id = await client.run_pod()
    container_id = await client.create(pod_id, busybox, resources=cri.LinuxContainerResources(cpu_shares=512))
    await client.start(container_id)
    before = await reported(client, container_id)
    with pytest.raises(GRPCError, match="cannot update the resources") as caught:
        await update(client, container_id, cpuset_cpus="9999")
    assert caught.value.status is Status.UNKNOWN
    with pytest.raises(GRPCError) as caught:
        await update(client, container_id, memory_limit_in_bytes=5)
    assert caught.value.status is Status.INVALID_ARGUMENT
    assert await reported(client, container_id) == before


async def test_a_container_that_has_ended_has_no_limits_to_change(client: Client, busybox: str) -> None:
    container_id = await client.run(await client.run_pod(), busybox, ("true",))
    await client.exited(container_id)
    with pytest.raises(GRPCError, match="it has ended") as caught:
        await update(client, container_id, cpu_shares=5)
    assert caught.value.status is Status.FAILED_PRECONDITION


async def test_use_grows_and_time_with_it(client: Client, busybox: str) -> None:
    container_id = await client.run(await client.run_pod(), busybox, SPINNER)
    first = await stats(client, container_id)
    async with asyncio.timeout(20):
        while True:
            second = await stats(client, container_id)
            assert first.cpu is not None
            assert second.cpu is not None
            assert first.cpu.usage_core_nano_seconds is not None
            assert second.cpu.usage_core_nano_seconds is not None
            if second.cpu.usage_core_nano_seconds.value > first.cpu.usage_core_nano_seconds.value + 10_000_000:
                break
    assert second.cpu.timestamp > first.cpu.timestamp
    assert second.memory is not None
    assert second.memory.working_set_bytes is not None
    assert 0 < second.memory.working_set_bytes.value < 16 * MIB
    assert second.attributes is not None
    assert second.attributes.metadata == cri.ContainerMetadata(name="main")


async def test_the_limit_bounds_what_is_available(client: Client, busybox: str) -> None:
    limits = cri.LinuxContainerResources(memory_limit_in_bytes=64 * MIB)
    container_id = await client.create(await client.run_pod(), busybox, resources=limits)
    await client.start(container_id)
    memory = (await stats(client, container_id)).memory
    assert memory is not None
    assert memory.available_bytes is not None
    assert memory.working_set_bytes is not None
    assert memory.available_bytes.value == 64 * MIB - memory.working_set_bytes.value


async def test_every_container_is_in_the_list_with_its_attributes(client: Client, busybox: str) -> None:
    pods = [await client.run_pod(), await client.run_pod()]
    running = await client.run(pods[0], busybox)
    created = await client.create(pods[0], busybox, name="created")
    ended = await client.run(pods[1], busybox, ("true",))
    await client.exited(ended)
    reply = await client.runtime.list_container_stats(cri.ListContainerStatsRequest())
    by_id = {one.attributes.id: one for one in reply.stats if one.attributes and one.attributes.metadata}
    assert set(by_id) == {running, created, ended}  # without attributes the kubelet crashes
    assert by_id[running].cpu is not None
    assert (by_id[ended].cpu, by_id[ended].memory) == (None, None)
    wanted = cri.ContainerStatsFilter(pod_sandbox_id=pods[1][:13])
    reply = await client.runtime.list_container_stats(cri.ListContainerStatsRequest(filter=wanted))
    assert [one.attributes.id for one in reply.stats if one.attributes] == [ended]


async def test_stats_while_containers_come_and_go(client: Client, busybox: str) -> None:
    pod_id = await client.run_pod()
    going = asyncio.gather(*(client.run(pod_id, busybox, ("true",), name=f"c{n}") for n in range(8)))
    while not going.done():
        await client.runtime.list_container_stats(cri.ListContainerStatsRequest())
        await client.runtime.list_pod_sandbox_stats(cri.ListPodSandboxStatsRequest())
    await going


async def test_a_pods_stats_hold_its_containers_and_its_network(client: Client, busybox: str) -> None:
    pod_id = await client.run_pod()
    container_id = await client.run(pod_id, busybox)
    reply = await client.runtime.pod_sandbox_stats(cri.PodSandboxStatsRequest(pod_sandbox_id=pod_id))
    assert reply.stats is not None
    assert reply.stats.attributes is not None
    assert reply.stats.attributes.id == pod_id
    linux = reply.stats.linux
    assert linux is not None
    assert [one.attributes.id for one in linux.containers if one.attributes] == [container_id]
    assert linux.network is not None
    assert linux.network.default_interface is not None
    assert linux.process is not None
    assert linux.process.process_count is not None
    assert linux.process.process_count.value == 1
    assert linux.memory is not None


async def test_a_cgroup_that_two_pods_name_goes_with_the_last(client: Client, busybox: str, traces: Traces) -> None:
    shared = f"{traces.cgroup_parent}/shared"

    def config() -> cri.PodSandboxConfig:
        made = client.pod_config()
        assert made.linux is not None
        made.linux.cgroup_parent = shared
        return made

    first, second = await client.run_pod(config()), await client.run_pod(config())
    container_id = await client.run(second, busybox)
    assert (await cgroup_of(client, container_id)) == f"{shared}/{container_id}"
    await client.remove_pod(first)
    assert (await client.status(container_id)).state is cri.ContainerState.CONTAINER_RUNNING
    await client.remove_pod(second)
    assert not any(one.exists() for one in hierarchies.of_host().directories(shared))


async def test_a_cgroup_of_somebody_else_stays(client: Client, busybox: str, traces: Traces) -> None:
    host, theirs = hierarchies.of_host(), f"{traces.cgroup_parent}-kubepods"
    host.create(theirs)
    try:
        made = client.pod_config()
        assert made.linux is not None
        made.linux.cgroup_parent = theirs
        pod_id = await client.run_pod(made)
        pid = (await info(client, await client.run(pod_id, busybox)))["pid"]
        assert theirs in Path(f"/proc/{pid}/cgroup").read_text()
        await client.remove_pod(pod_id)
        assert all(one.exists() for one in host.directories(theirs))
        assert host.children(theirs) == set()
    finally:
        await host.remove(theirs)
