"""The supervisor is killed or restarted: containers go on, and what happened meanwhile is known."""

import asyncio
import contextlib
import os
import secrets
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from grpclib.exceptions import GRPCError

from criw import kernel
from criw.mountinfo import mounts_below
from criw_proto.runtime import v1 as cri
from criw_supervisor.cgroups import hierarchies
from support import host
from support.crew import python_environment
from support.own import free_port
from support.supervised import Supervised

State = cri.ContainerState
TICKER = ("sh", "-c", "i=0; while :; do i=$((i+1)); echo $i; sleep 0.01; done")


async def soon(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


@asynccontextmanager
async def without_supervisor(own: Supervised) -> AsyncIterator[None]:
    await own.kill_supervisor()
    yield
    await own.start_supervisor()


def shared_pid(own: Supervised) -> cri.PodSandboxConfig:
    options = cri.NamespaceOption(pid=cri.NamespaceMode.POD)
    security = cri.LinuxSandboxSecurityContext(namespace_options=options)
    return own.client.pod_config(linux=cri.LinuxPodSandboxConfig(security_context=security))


def exit_file(own: Supervised, container_id: str) -> Path:
    return own.run / "containers" / container_id / "exit" / container_id


async def conmon_of(own: Supervised, container_id: str) -> int:
    return int((own.run / "containers" / container_id / "conmon.pid").read_text())


# --- what was acknowledged stays


async def test_containers_go_on_and_everything_about_them_is_known(own: Supervised) -> None:
    client = own.client
    pods = [await client.run_pod(), await client.run_pod(shared_pid(own))]
    made = [await client.run(pod_id, own.image, TICKER) for pod_id in pods]
    statuses = [await client.status(container_id) for container_id in made]
    pod_statuses = [await client.pod_status(pod_id) for pod_id in pods]
    async with without_supervisor(own):
        count = len(client.log(pods[0]))
        await soon(lambda: len(client.log(pods[0])) > count + 5)
    assert [await client.status(container_id) for container_id in made] == statuses
    assert [await client.pod_status(pod_id) for pod_id in pods] == pod_statuses
    for container_id in made:
        assert (await client.exec(container_id, "true")).exit_code == 0
        await client.stop(container_id)
        assert (await client.status(container_id)).exit_code == 137
    numbers = [int(line.split()[-1]) for line in client.log(pods[0])]
    assert numbers == list(range(1, len(numbers) + 1))  # no line is lost


async def test_containers_outlive_all_that_is_in_the_supervisors_cgroup(own: Supervised) -> None:
    unit, cgroups = f"/criw-unit-{secrets.token_hex(3)}", hierarchies.of_host()
    cgroups.enter(unit, own.crew.processes["supervisor"].pid)
    try:
        container_id = await own.client.run(await own.client.run_pod(), own.image, TICKER)
        before = await own.client.status(container_id)
        await cgroups.kill(unit)  # as systemd does with a unit that is restarted
        await own.kill_supervisor()
        await own.start_supervisor()
        assert await own.client.status(container_id) == before
        assert (await own.client.exec(container_id, "true")).exit_code == 0
    finally:
        await cgroups.remove(unit)


async def test_an_exit_in_between_is_known_with_its_code_and_time(own: Supervised) -> None:
    client = own.client
    pod_id = await client.run_pod()
    script = "trap 'exit 9' TERM; while :; do sleep 0.01; done"
    container_id = await client.run(pod_id, own.image, ("sh", "-c", script))
    pid = (await own.info(container_id))["pid"]
    async with without_supervisor(own):
        before = time.time_ns()
        os.kill(pid, signal.SIGTERM)
        await soon(exit_file(own, container_id).exists)
        after = time.time_ns()
    status = await client.status(container_id)
    assert (status.state, status.exit_code, status.reason) == (State.CONTAINER_EXITED, 9, "Error")
    assert before - 20_000_000 <= status.finished_at <= after  # files have the coarser clock


async def test_an_oom_in_between_is_known(own: Supervised) -> None:
    client = own.client
    limits = cri.LinuxContainerResources(memory_limit_in_bytes=24 * 1024 * 1024)
    pod_id = await client.run_pod()
    script = "trap 'exec tail /dev/zero' TERM; while :; do sleep 0.01; done"
    container_id = await client.create(pod_id, own.image, ("sh", "-c", script), resources=limits)
    await client.start(container_id)
    pid = (await own.info(container_id))["pid"]
    async with without_supervisor(own):
        os.kill(pid, signal.SIGTERM)
        await soon(exit_file(own, container_id).exists)
    assert (await client.status(container_id)).reason == "OOMKilled"


async def test_a_created_container_can_still_be_started(own: Supervised) -> None:
    client = own.client
    container_id = await client.create(await client.run_pod(), own.image, ("sh", "-c", "exit 4"))
    async with without_supervisor(own):
        pass
    assert (await client.status(container_id)).state is State.CONTAINER_CREATED
    await client.start(container_id)
    assert (await client.exited(container_id)).exit_code == 4


async def test_a_start_that_was_never_acknowledged_is_known(own: Supervised) -> None:
    client = own.client
    container_id = await client.create(await client.run_pod(), own.image)
    with own.runtime.holding("start"):
        starting = asyncio.create_task(client.start(container_id))
        await soon(lambda: any(" start " in line for line in host.processes(own.crew)))
        await own.kill_supervisor()
    await soon(lambda: not any(" start " in line for line in host.processes(own.crew)))  # it is carried out
    await own.start_supervisor()
    with pytest.raises(GRPCError):
        await starting
    status = await client.status(container_id)
    assert status.state is State.CONTAINER_RUNNING
    assert status.started_at > 0


async def test_a_start_that_is_still_under_way_is_waited_for(own: Supervised) -> None:
    client = own.client
    container_id = await client.create(await client.run_pod(), own.image)
    with own.runtime.holding("start"):
        starting = asyncio.create_task(client.start(container_id))
        await soon(lambda: any(" start " in line for line in host.processes(own.crew)))
        await own.kill_supervisor()
        restarting = asyncio.create_task(own.start_supervisor())
        await asyncio.wait({restarting}, timeout=2)
        assert not restarting.done()
    await restarting
    with pytest.raises(GRPCError, match="went away in it"):
        await starting
    assert (await client.status(container_id)).state is State.CONTAINER_RUNNING
    assert (await client.exec(container_id, "true")).exit_code == 0


async def test_another_crews_supervisor_does_not_touch_our_containers(own: Supervised, tmp_path: Path) -> None:
    client = own.client
    container_id = await client.run(await client.run_pod(), own.image)
    config = tmp_path / "other.toml"
    config.write_text(
        f'root = "{tmp_path}/lib"\nrun = "{tmp_path}/run"\nsupervisor.http = "127.0.0.1:{free_port()}"\n'
        f'supervisor.cgroup_parent = "{own.crew.cgroup_parent}"\n'
    )

    async def refusal() -> str:
        other = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "criw_supervisor", "--config", str(config)),
            stderr=asyncio.subprocess.PIPE,
            env=python_environment(),
        )
        _, said = await asyncio.wait_for(other.communicate(), 20)
        assert other.returncode == 78
        return said.decode()

    assert "another supervisor, which runs, has its pods in it; set cgroup_parent in [supervisor]" in await refusal()
    async with without_supervisor(own):
        assert f"it has pods of the supervisor with the state directory {own.crew.config.root}" in await refusal()
    assert (await client.status(container_id)).state is State.CONTAINER_RUNNING


async def test_a_graceful_restart_does_not_wait_for_the_grace_of_a_stop(own: Supervised) -> None:
    client = own.client
    script = "trap '' TERM; echo up; while :; do sleep 0.05; done"
    pod_id = await client.run_pod()
    container_id = await client.run(pod_id, own.image, ("sh", "-c", script))
    await soon(lambda: len(client.log(pod_id)) == 1)
    stopping = asyncio.create_task(client.stop(container_id, timeout_s=3600))
    await asyncio.wait({stopping}, timeout=0.3)
    async with asyncio.timeout(10):
        await own.crew.stop("supervisor")
    await own.start_supervisor()
    assert (await client.status(container_id)).state is State.CONTAINER_RUNNING
    await client.stop(container_id)  # also ends the first one, which the door has repeated
    await stopping


# --- what was not finished is undone


async def test_a_container_that_was_being_made_is_gone(own: Supervised) -> None:
    client = own.client
    pod_id = await client.run_pod()
    before = [line for line in host.contents(own.crew) if not line.startswith("process ")]
    with own.runtime.holding("create"):
        making = asyncio.create_task(client.create(pod_id, own.image))
        await soon(lambda: any(" create " in line for line in host.processes(own.crew)))
        await own.kill_supervisor()
        await own.start_supervisor()
        with pytest.raises(GRPCError):
            await making
        await soon(lambda: [line for line in host.contents(own.crew) if not line.startswith("process ")] == before)
        assert not any(" create " in line for line in host.processes(own.crew))
    await client.run(pod_id, own.image)


async def test_a_pod_that_was_being_made_is_gone(own: Supervised) -> None:
    client = own.client
    await client.run_pod()
    before = [line for line in host.contents(own.crew) if not line.startswith("process ")]
    config = shared_pid(own)
    with own.runtime.holding("create"):
        making = asyncio.create_task(client.run_pod(config))
        await soon(lambda: any(" create " in line for line in host.processes(own.crew)))
        await own.kill_supervisor()
        await own.start_supervisor()
        with pytest.raises(GRPCError):
            await making
        await soon(lambda: [line for line in host.contents(own.crew) if not line.startswith("process ")] == before)
    await client.run_pod(config)


async def test_a_removal_that_was_interrupted_can_be_repeated(own: Supervised) -> None:
    client = own.client
    pod_id = await client.run_pod(shared_pid(own))
    await client.run(pod_id, own.image)
    for pause in (0.0, 0.02, 0.05, 0.1, 0.2):
        removing = asyncio.create_task(client.remove_pod(pod_id))
        await asyncio.wait({removing}, timeout=pause)
        await own.kill_supervisor()
        await own.start_supervisor()
        await removing  # the door has repeated it
        pod_id = await client.run_pod(shared_pid(own))
        await client.run(pod_id, own.image)


async def test_a_command_whose_caller_went_away_with_the_supervisor_is_ended(own: Supervised) -> None:
    client = own.client
    container_id = await client.run(await client.run_pod(), own.image)
    cgroup = (await own.info(container_id))["runtimeSpec"]["linux"]["cgroupsPath"]
    alone = hierarchies.of_host().processes(cgroup)
    call = asyncio.create_task(client.exec(container_id, "sh", "-c", "sleep 8001 & sleep 8002; true", timeout_s=0))
    await soon(lambda: len(hierarchies.of_host().processes(cgroup)) == len(alone) + 3)
    async with without_supervisor(own):
        assert len(hierarchies.of_host().processes(cgroup)) == len(alone) + 3
    with pytest.raises(GRPCError):
        await call
    assert hierarchies.of_host().processes(cgroup) == alone
    assert list((own.run / "containers" / container_id).glob("exec-*")) == []
    assert (await client.status(container_id)).state is State.CONTAINER_RUNNING


async def test_what_carries_our_marks_but_has_no_record_is_removed_and_nothing_else(own: Supervised) -> None:
    client, cgroups = own.client, hierarchies.of_host()
    pod_id = await client.run_pod()
    parent = own.crew.cgroup_parent
    stray, foreign = secrets.token_hex(32), "not-ours"
    async with without_supervisor(own):
        cgroups.create(f"{parent}/{stray}/container")
        cgroups.create(f"{parent}/probe-runc-77")
        cgroups.create(f"{parent}/{foreign}")
        sleeper = await asyncio.create_subprocess_exec("sleep", "9001")
        for root in cgroups._hierarchies:
            (root / f"{parent}/{stray}/container".lstrip("/") / "cgroup.procs").write_text(str(sleeper.pid))
        exit_file(own, stray).parent.mkdir(parents=True)
        exit_file(own, stray).write_text("0")
        (own.run / "runtime" / "probe-x1y2").mkdir()
        (own.run / "runtime" / "brittle" / "probe-brittle-77").mkdir()
        directory = own.run / "pods" / stray / "shm"
        directory.mkdir(parents=True)
        kernel.mount("tmpfs", directory, fstype="tmpfs")
    assert await sleeper.wait() == -signal.SIGKILL
    assert cgroups.children(parent) == {pod_id, foreign, "conmon"}
    assert [path.name for path in (own.run / "pods").iterdir()] == [pod_id]
    assert list((own.run / "containers").iterdir()) == []
    assert list((own.run / "runtime").rglob("probe-*")) == []
    await cgroups.remove(f"{parent}/{foreign}")


# --- monitors


async def test_a_container_whose_monitor_is_killed_ends_as_unknown(own: Supervised) -> None:
    client = own.client
    pod_id = await client.run_pod()
    container_id = await client.run(pod_id, own.image)
    pid = (await own.info(container_id))["pid"]
    os.kill(await conmon_of(own, container_id), signal.SIGKILL)
    status = await client.exited(container_id)
    assert (status.exit_code, status.reason) == (255, "Unknown")
    assert "conmon" in status.message
    assert not Path(f"/proc/{pid}/cmdline").exists() or not Path(f"/proc/{pid}/cmdline").read_bytes()
    await client.remove(container_id)


async def test_a_monitor_that_is_killed_while_nobody_looks_is_noticed(own: Supervised) -> None:
    client = own.client
    container_id = await client.run(await client.run_pod(), own.image)
    conmon = await conmon_of(own, container_id)
    async with without_supervisor(own):
        os.kill(conmon, signal.SIGKILL)
    status = await client.status(container_id)
    assert (status.state, status.reason) == (State.CONTAINER_EXITED, "Unknown")


async def test_an_exit_is_believed_even_if_its_monitor_is_gone(own: Supervised) -> None:
    client = own.client
    container_id = await client.run(await client.run_pod(), own.image)
    conmon = await conmon_of(own, container_id)
    pid = (await own.info(container_id))["pid"]
    os.kill(conmon, signal.SIGSTOP)
    await own.kill_supervisor()
    os.kill(pid, signal.SIGKILL)
    os.kill(conmon, signal.SIGCONT)
    await soon(exit_file(own, container_id).exists)
    await own.start_supervisor()
    assert (await client.status(container_id)).exit_code == 137


async def test_an_unreadable_exit_file_does_not_stop_the_supervisor(own: Supervised) -> None:
    client = own.client
    pod_id = await client.run_pod()
    ended = await client.run(pod_id, own.image, name="ended")
    stays = await client.run(pod_id, own.image, name="stays")
    conmon = await conmon_of(own, ended)
    async with without_supervisor(own):
        os.kill(conmon, signal.SIGKILL)
        exit_file(own, ended).write_text("")  # as a full disk leaves it
    assert (await client.status(ended)).reason == "Unknown"
    exit_file(own, stays).write_text("nonsense")
    await client.stop(stays)
    assert (await client.status(stays)).state is State.CONTAINER_EXITED


# --- more than the supervisor is gone


async def test_after_a_reboot_pods_are_not_ready_and_containers_have_ended(own: Supervised) -> None:
    client, crew = own.client, own.crew
    pods = [await client.run_pod(), await client.run_pod(shared_pid(own))]
    made = [await client.run(pod_id, own.image) for pod_id in pods]
    created = await client.create(pods[0], own.image, name="created")
    await own.kill_supervisor()
    # What a reboot takes: processes, mounts and cgroups of pods, and the directory in /run.
    for pod_id in pods:
        for container_id in hierarchies.of_host().children(f"{crew.cgroup_parent}/{pod_id}"):
            if (own.run / "containers" / container_id / "conmon.pid").exists():
                os.kill(await conmon_of(own, container_id), signal.SIGKILL)
            await hierarchies.of_host().kill(f"{crew.cgroup_parent}/{pod_id}/{container_id}")
            await hierarchies.of_host().remove(f"{crew.cgroup_parent}/{pod_id}/{container_id}")
        await hierarchies.of_host().remove(f"{crew.cgroup_parent}/{pod_id}")
    for point in mounts_below(own.run):
        kernel.umount2(point, flags=kernel.MNT_DETACH)
    shutil.rmtree(own.run)
    await own.start_supervisor()
    for pod_id in pods:
        assert (await client.pod_status(pod_id)).state is cri.PodSandboxState.SANDBOX_NOTREADY
    for container_id in (*made, created):
        status = await client.status(container_id)
        assert (status.state, status.reason) == (State.CONTAINER_EXITED, "Unknown")
        assert status.finished_at > 0
    await client.run(await client.run_pod(), own.image)


@contextlib.contextmanager
def without_the_runtime(own: Supervised) -> Iterator[None]:
    """The handler of the crew's containers is not configured any more."""
    drop_in = own.crew.directory / "conf.d" / "test.toml"
    text = drop_in.read_text()
    drop_in.write_text(text.replace("[supervisor.runtimes.brittle]", "[supervisor.runtimes.another]"))
    yield
    drop_in.write_text(text)


async def test_a_runtime_that_is_no_longer_configured_does_not_stop_the_supervisor(own: Supervised) -> None:
    client = own.client
    container_id = await client.create(await client.run_pod(), own.image)
    await own.kill_supervisor()
    with without_the_runtime(own):
        await own.start_supervisor()
        status = await client.status(container_id)
        assert status.state is State.CONTAINER_CREATED
        with pytest.raises(GRPCError, match="brittle: it is not configured"):
            await client.start(container_id)
        await own.kill_supervisor()
    await own.start_supervisor()
    await client.start(container_id)


async def test_containers_of_a_runtime_that_is_no_longer_configured_are_measured_ended_and_removed(
    own: Supervised,
) -> None:
    client = own.client
    pod_id = await client.run_pod()
    stopped = await client.run(pod_id, own.image, name="stopped")
    ends = await client.run(pod_id, own.image, name="ends")
    pid = (await own.info(ends))["pid"]
    await own.kill_supervisor()
    with without_the_runtime(own):
        await own.start_supervisor()
        stats = (await client.runtime.list_container_stats(cri.ListContainerStatsRequest())).stats
        assert {one.attributes.id for one in stats if one.attributes and one.memory} == {stopped, ends}
        os.kill(pid, signal.SIGKILL)
        assert (await client.exited(ends)).exit_code == 137
        await client.stop(stopped)
        assert (await client.status(stopped)).state is State.CONTAINER_EXITED
        for container_id in (stopped, ends):
            await client.remove(container_id)
        await client.remove_pod(pod_id)
        await own.kill_supervisor()
    await own.start_supervisor()
