"""The life of containers."""

import asyncio
import re
from pathlib import Path

import pytest
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from criw_proto.runtime import v1 as cri
from support.client import Client

CREATED = cri.ContainerState.CONTAINER_CREATED
RUNNING = cri.ContainerState.CONTAINER_RUNNING
EXITED = cri.ContainerState.CONTAINER_EXITED


async def listed(client: Client, **wanted: object) -> list[cri.Container]:
    request = cri.ListContainersRequest(filter=cri.ContainerFilter(**wanted))  # type: ignore[arg-type]
    return (await client.runtime.list_containers(request)).containers


async def test_created_running_exited_removed(client: Client, busybox: str) -> None:
    pod_id = await client.run_pod()
    container_id = await client.create(pod_id, busybox)
    assert len(container_id) == 64
    assert (await client.status(container_id)).state == CREATED
    await client.start(container_id)
    running = await client.status(container_id)
    assert running.state == RUNNING
    assert running.started_at >= running.created_at > 0
    await client.stop(container_id)
    ended = await client.status(container_id)
    assert ended.state == EXITED
    assert ended.exit_code == 137
    assert ended.finished_at >= ended.started_at
    await client.remove(container_id)
    assert await listed(client, id=container_id) == []


@pytest.mark.parametrize(
    ("command", "code", "reason"), [("exit 0", 0, "Completed"), ("exit 7", 7, "Error"), ("kill -TERM $$", 143, "Error")]
)
async def test_exit_code_and_reason(client: Client, busybox: str, command: str, code: int, reason: str) -> None:
    if "kill" in command:  # a PID namespace's init ignores signals it has no handler for: let a child be its shell
        command = "sh -c 'kill -TERM $$'; exit $?"
    pod_id = await client.run_pod()
    status = await client.exited(await client.run(pod_id, busybox, ["sh", "-c", command]))
    assert (status.exit_code, status.reason) == (code, reason)


async def test_what_the_request_said_comes_back(client: Client, busybox: str) -> None:
    pod_id = await client.run_pod()
    labels, annotations = {"io.kubernetes.container.name": "main"}, {"io.kubernetes.container.hash": "abc"}

    def change(config: cri.ContainerConfig) -> None:
        config.labels, config.annotations = labels, annotations

    container_id = await client.create(pod_id, busybox, change=change)
    status, (item,) = await client.status(container_id), await listed(client, id=container_id)
    for told in (status, item):
        assert told.labels == labels
        assert told.annotations == annotations
        assert told.metadata == cri.ContainerMetadata(name="main")
        assert told.image is not None
        assert told.image_id == busybox
    assert item.pod_sandbox_id == pod_id
    assert status.log_path.endswith("/main.log")


async def test_filters_are_combined(client: Client, busybox: str) -> None:
    one, two = await client.run_pod(), await client.run_pod()
    first, second = await client.create(one, busybox), await client.run(two, busybox)
    running = cri.ContainerStateValue(state=RUNNING)
    assert [c.id for c in await listed(client, pod_sandbox_id=one)] == [first]
    assert second in [c.id for c in await listed(client, state=running)]
    assert await listed(client, pod_sandbox_id=one, state=running) == []
    assert [c.id for c in await listed(client, id=second[:13])] == [second]


async def test_stop_and_remove_are_idempotent(client: Client, busybox: str) -> None:
    container_id = await client.run(await client.run_pod(), busybox)
    for _ in range(2):
        await client.stop(container_id)
    for _ in range(2):
        await client.remove(container_id)
    await client.stop("0" * 64)
    await client.remove("0" * 64)


async def test_the_stop_signal_comes_before_the_kill(client: Client, busybox: str) -> None:
    pod_id = await client.run_pod()
    script = "trap 'echo got TERM; exit 5' TERM; echo up; while :; do sleep 0.1; done"
    container_id = await client.run(pod_id, busybox, ["sh", "-c", script])
    while not client.log(pod_id):
        await asyncio.sleep(0.02)
    await client.stop(container_id, timeout_s=20)
    assert (await client.status(container_id)).exit_code == 5
    assert client.log(pod_id)[-1].endswith("got TERM")


async def test_a_running_container_can_be_removed(client: Client, busybox: str) -> None:
    container_id = await client.run(await client.run_pod(), busybox)
    await client.remove(container_id)
    assert await listed(client, id=container_id) == []


async def test_log_lines_have_the_cri_format(client: Client, busybox: str) -> None:
    pod_id = await client.run_pod()
    script = "echo one; echo two >&2; printf three"
    await client.exited(await client.run(pod_id, busybox, ["sh", "-c", script]))
    line = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}(Z|[+-]\d\d:\d\d) (stdout|stderr) ([FP]) (.*)")
    parsed = sorted(match.groups()[1:] for text in client.log(pod_id) if (match := line.fullmatch(text)))
    whole = [("stderr", "F", "two"), ("stdout", "F", "one")]
    assert parsed in (
        [*whole, ("stdout", "F", "three")],
        [("stderr", "F", "two"), ("stdout", "F", ""), ("stdout", "F", "one"), ("stdout", "P", "three")],
    )  # a part that nothing ends is a line nobody sees


async def test_a_reopened_log_goes_on_in_a_new_file(client: Client, busybox: str) -> None:
    pod_id = await client.run_pod()
    script = "i=0; while :; do i=$((i+1)); echo line $i; sleep 0.01; done"
    container_id = await client.run(pod_id, busybox, ["sh", "-c", script])
    path = Path((await client.status(container_id)).log_path)
    while len(path.read_text().splitlines()) < 3:
        await asyncio.sleep(0.02)
    rotated = path.rename(path.with_suffix(".1"))
    await client.runtime.reopen_container_log(cri.ReopenContainerLogRequest(container_id=container_id))
    while len(path.read_text().splitlines()) < 3:
        await asyncio.sleep(0.02)
    await client.stop(container_id)
    numbers = [int(text.rpartition(" ")[2]) for text in (rotated.read_text() + path.read_text()).splitlines()]
    assert numbers == list(range(1, len(numbers) + 1))


async def test_environment_arguments_and_mounts(client: Client, busybox: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("from the host")
    mount = cri.Mount(container_path="/data", host_path=str(tmp_path), readonly=True)
    pod_id = await client.run_pod()
    container_id = await client.create(pod_id, busybox, env={"A": "1", "B": "x y"}, mounts=[mount])
    await client.start(container_id)
    assert await client.output(container_id, "sh", "-c", 'echo "$A-$B"') == "1-x y\n"
    assert await client.output(container_id, "cat", "/data/file") == "from the host"
    assert (await client.exec(container_id, "touch", "/data/new")).exit_code != 0
    told = (await client.status(container_id)).mounts
    assert [(m.container_path, m.host_path, m.readonly) for m in told] == [("/data", str(tmp_path), True)]


async def test_exec_sync(client: Client, busybox: str) -> None:
    container_id = await client.run(await client.run_pod(), busybox)
    reply = await client.exec(container_id, "sh", "-c", "echo out; echo err >&2; exit 3")
    assert (reply.stdout, reply.stderr, reply.exit_code) == (b"out\n", b"err\n", 3)


async def test_exec_sync_ends_with_its_timeout(client: Client, busybox: str) -> None:
    container_id = await client.run(await client.run_pod(), busybox)
    with pytest.raises(GRPCError) as refused:
        await client.exec(container_id, "sleep", "4321", timeout_s=1)
    assert refused.value.status is Status.DEADLINE_EXCEEDED
    assert "4321" not in await client.output(container_id, "ps")


async def test_exec_needs_a_running_container(client: Client, busybox: str) -> None:
    container_id = await client.create(await client.run_pod(), busybox)
    with pytest.raises(GRPCError):
        await client.exec(container_id, "true")


async def test_a_container_out_of_memory_is_told_so(client: Client, busybox: str) -> None:
    pod_id = await client.run_pod()
    limit = cri.LinuxContainerResources(memory_limit_in_bytes=16 * 1024 * 1024)
    script = "dd if=/dev/zero of=/dev/null bs=64M count=1"
    container_id = await client.create(pod_id, busybox, ["sh", "-c", script], resources=limit)
    await client.start(container_id)
    status = await client.exited(container_id)
    assert (status.exit_code, status.reason) == (137, "OOMKilled")


async def test_stats_of_a_running_container(client: Client, busybox: str) -> None:
    pod_id = await client.run_pod()
    container_id = await client.run(pod_id, busybox, ["sh", "-c", "while :; do :; done"])
    request = cri.ListContainerStatsRequest(filter=cri.ContainerStatsFilter(id=container_id))
    (first,) = (await client.runtime.list_container_stats(request)).stats
    (second,) = (await client.runtime.list_container_stats(request)).stats
    assert first.attributes is not None
    assert first.attributes.id == container_id
    assert first.cpu is not None
    assert second.cpu is not None
    assert first.cpu.usage_core_nano_seconds is not None
    assert second.cpu.usage_core_nano_seconds is not None
    assert second.cpu.usage_core_nano_seconds.value >= first.cpu.usage_core_nano_seconds.value > 0
    assert second.cpu.timestamp > first.cpu.timestamp
    assert first.memory is not None
    assert first.memory.working_set_bytes is not None
    assert first.memory.working_set_bytes.value > 0


async def test_limits_can_be_changed(client: Client, busybox: str) -> None:
    pod_id = await client.run_pod()
    resources = cri.LinuxContainerResources(cpu_shares=512, memory_limit_in_bytes=64 * 1024 * 1024)
    container_id = await client.create(pod_id, busybox, resources=resources)
    await client.start(container_id)
    change = cri.LinuxContainerResources(cpu_shares=1024)
    request = cri.UpdateContainerResourcesRequest(container_id=container_id, linux=change)
    await client.runtime.update_container_resources(request)
    told = (await client.status(container_id)).resources
    assert told is not None
    assert told.linux is not None
    assert (told.linux.cpu_shares, told.linux.memory_limit_in_bytes) == (1024, 64 * 1024 * 1024)


async def test_unknown_ids_are_not_found(client: Client) -> None:
    for refused in (client.status("0" * 64), client.start("0" * 64), client.exec("0" * 64, "true")):
        with pytest.raises(GRPCError) as err:
            await refused
        assert err.value.status is Status.NOT_FOUND


async def test_a_container_needs_a_name_an_image_and_a_pod(client: Client, busybox: str) -> None:
    pod_id = await client.run_pod()
    with pytest.raises(GRPCError) as refused:
        await client.create(pod_id, busybox, name="")
    assert refused.value.status is Status.INVALID_ARGUMENT
    with pytest.raises(GRPCError) as refused:
        await client.create(pod_id, "localhost/no/such:image")
    assert refused.value.status is Status.NOT_FOUND
    with pytest.raises(GRPCError):
        await client.create(pod_id, busybox, ["/no/such/command"])
    assert await listed(client, pod_sandbox_id=pod_id) == []
