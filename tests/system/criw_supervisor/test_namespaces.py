"""A container's namespaces are the ones that were asked for."""

import asyncio
import os
from pathlib import Path

import pytest

from criw_proto.runtime import v1 as cri
from support.client import Client
from support.supervised import Traces, info

Mode = cri.NamespaceMode
KINDS = ("net", "ipc", "uts", "pid", "mnt")


def namespaces(pid: int | str) -> dict[str, int]:
    return {kind: Path(f"/proc/{pid}/ns/{kind}").stat().st_ino for kind in KINDS}


async def of_container(client: Client, container_id: str) -> dict[str, int]:
    return namespaces((await info(client, container_id))["pid"])


def pod_config(client: Client, **modes: cri.NamespaceMode) -> cri.PodSandboxConfig:
    options = cri.NamespaceOption(pid=Mode.CONTAINER)
    for name, mode in modes.items():
        setattr(options, name, mode)
    security = cri.LinuxSandboxSecurityContext(namespace_options=options)
    return client.pod_config(linux=cri.LinuxPodSandboxConfig(security_context=security))


async def run(client: Client, image: str, **modes: cri.NamespaceMode) -> str:
    return await client.run(await client.run_pod(pod_config(client, **modes)), image)


async def test_a_pods_containers_share_its_namespaces_but_not_their_processes(client: Client, busybox: str) -> None:
    pod_id = await client.run_pod()
    one = await of_container(client, await client.run(pod_id, busybox, name="one"))
    two = await of_container(client, await client.run(pod_id, busybox, name="two"))
    ours = namespaces("self")
    assert {kind for kind in KINDS if one[kind] == ours[kind]} == set()
    assert {kind for kind in KINDS if one[kind] == two[kind]} == {"net", "ipc", "uts"}


async def test_pods_share_nothing(client: Client, busybox: str) -> None:
    one = await of_container(client, await run(client, busybox))
    two = await of_container(client, await run(client, busybox))
    assert {kind for kind in KINDS if one[kind] == two[kind]} == set()


@pytest.mark.parametrize(
    ("modes", "shared"),
    [({"network": Mode.NODE}, {"net", "uts"}), ({"ipc": Mode.NODE}, {"ipc"}), ({"pid": Mode.NODE}, {"pid"})],
)
async def test_the_hosts_namespaces_are_given_as_asked(
    client: Client, busybox: str, modes: dict[str, cri.NamespaceMode], shared: set[str]
) -> None:
    found = await of_container(client, await run(client, busybox, **modes))
    ours = namespaces("self")
    assert {kind for kind in KINDS if found[kind] == ours[kind]} == shared


async def test_the_supervisors_own_threads_stay_where_they_are(client: Client, busybox: str, traces: Traces) -> None:
    await run(client, busybox)
    supervisor = (traces.config.state_dir("supervisor") / "0.lock").read_text().strip()
    for thread in Path(f"/proc/{supervisor}/task").iterdir():
        assert {kind: (thread / "ns" / kind).stat().st_ino for kind in KINDS} == namespaces("self")


async def test_shared_memory_is_the_pods(client: Client, busybox: str) -> None:
    pod_id = await client.run_pod()
    one = await client.run(pod_id, busybox, name="one")
    two = await client.run(pod_id, busybox, name="two")
    await client.output(one, "sh", "-c", "echo shared > /dev/shm/word")
    assert await client.output(two, "cat", "/dev/shm/word") == "shared\n"
    assert not Path("/dev/shm/word").exists()
    assert "64.0M" in await client.output(one, "df", "-h", "/dev/shm")
    host = await run(client, busybox, ipc=Mode.NODE)
    listed = await client.output(host, "ls", "/dev/shm")
    assert sorted(listed.split()) == sorted(os.listdir("/dev/shm"))  # noqa: PTH208 — names


async def test_with_a_shared_pid_namespace_containers_see_each_other_and_init_reaps(
    client: Client, busybox: str
) -> None:
    pod_id = await client.run_pod(pod_config(client, pid=Mode.POD))
    one = await client.run(pod_id, busybox, ("sleep", "1111"), name="one")
    two = await client.run(pod_id, busybox, ("sleep", "2222"), name="two")
    seen = await client.output(two, "ps", "-o", "pid,args")
    assert {"sleep 1111", "sleep 2222", "/catatonit -P"} <= {" ".join(line.split()[1:]) for line in seen.splitlines()}
    assert any(line.split() == ["1", "/catatonit", "-P"] for line in seen.splitlines())
    listed = await client.runtime.list_containers(
        cri.ListContainersRequest(filter=cri.ContainerFilter(pod_sandbox_id=pod_id))
    )
    assert {container.id for container in listed.containers} == {one, two}  # the pod's own process is not one
    await client.output(one, "sh", "-c", "(sh -c 'exit 0' &) ; exit 0")
    async with asyncio.timeout(10):
        while await client.output(two, "sh", "-c", "grep -l '^State:.Z' /proc/[0-9]*/status || true"):
            pass


async def test_what_a_container_leaves_in_a_shared_pid_namespace_ends_with_it(client: Client, busybox: str) -> None:
    pod_id = await client.run_pod(pod_config(client, pid=Mode.POD))
    leaver = await client.run(pod_id, busybox, ("sh", "-c", "setsid sleep 3333 & exec sleep 4444"), name="leaver")
    stays = await client.run(pod_id, busybox, name="stays")
    assert "sleep 3333" in await client.output(stays, "ps", "-o", "args")
    await client.stop(leaver)
    seen = await client.output(stays, "ps", "-o", "args")
    assert ("sleep 3333" in seen, "sleep 4444" in seen, "sleep 3600" in seen) == (False, False, True)


async def test_a_pod_whose_own_process_dies_is_not_ready_and_can_be_removed(
    client: Client, busybox: str, traces: Traces
) -> None:
    pod_id = await client.run_pod(pod_config(client, pid=Mode.POD))
    container_id = await client.run(pod_id, busybox)
    reply = await client.runtime.pod_sandbox_status(cri.PodSandboxStatusRequest(pod_sandbox_id=pod_id, verbose=True))
    infra = int((traces.config.run_dir("supervisor") / "containers" / pod_id / "pid").read_text())
    assert f'"pid": {infra}' in reply.info["info"]
    os.kill(infra, 9)
    status = await client.exited(container_id)  # the kernel ends a PID namespace with its init
    assert status.exit_code == 137
    async with asyncio.timeout(10):
        while (await client.pod_status(pod_id)).state != cri.PodSandboxState.SANDBOX_NOTREADY:
            pass


async def test_a_debug_container_joins_the_processes_of_its_target(client: Client, busybox: str) -> None:
    pod_id = await client.run_pod()
    target = await client.run(pod_id, busybox, ("sleep", "5555"))
    options = cri.NamespaceOption(pid=Mode.TARGET, target_id=target)
    debugger = await client.create(
        pod_id, busybox, name="debugger", security=cri.LinuxContainerSecurityContext(namespace_options=options)
    )
    await client.start(debugger)
    assert "sleep 5555" in await client.output(debugger, "ps", "-o", "args")
    await client.stop(debugger)
    assert (await client.status(target)).state == cri.ContainerState.CONTAINER_RUNNING
