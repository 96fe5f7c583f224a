"""What happens to containers when several things happen to them at once, or in an odd order."""

import asyncio
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from criw import kernel
from criw.mountinfo import mounts_below
from criw_proto.runtime import v1 as cri
from support import host
from support.client import Client
from support.supervised import Traces, info

State = cri.ContainerState
IGNORES_TERM = ("sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.05; done")
SECURITY = cri.LinuxContainerSecurityContext


async def until_said(client: Client, pod_id: str, word: str, *, name: str = "main") -> None:
    """Wait until a container has logged a line that ends with `word`."""
    async with asyncio.timeout(10):
        while not any(line.endswith(word) for line in client.log(pod_id, name)):
            await asyncio.sleep(0.01)


# --- ends


@pytest.mark.parametrize(
    ("script", "code", "reason"),
    [("exit 0", 0, "Completed"), ("exit 3", 3, "Error"), ("kill -9 $$", 137, "Error"), ("kill -USR1 $$", 138, "Error")],
)
async def test_how_a_container_ends(client: Client, busybox: str, script: str, code: int, reason: str) -> None:
    # In a shell below init: init itself is spared by the kernel from signals of its own namespace.
    before = time.time_ns()
    container_id = await client.run(await client.run_pod(), busybox, ("sh", "-c", f"sh -c '{script}'; exit $?"))
    status = await client.exited(container_id)
    assert (status.exit_code, status.reason, status.message) == (code, reason, "")
    assert before <= status.created_at <= status.started_at <= status.finished_at <= time.time_ns()


async def test_memory_hogs_are_told_from_those_that_are_killed(client: Client, busybox: str) -> None:
    pod_id = await client.run_pod()
    limits = cri.LinuxContainerResources(memory_limit_in_bytes=24 * 1024 * 1024)
    hog = await client.create(pod_id, busybox, ("sh", "-c", "tail /dev/zero"), name="hog", resources=limits)
    killed = await client.create(pod_id, busybox, name="killed", resources=limits)
    await client.start(hog)
    await client.start(killed)
    assert (await client.exited(hog)).reason == "OOMKilled"
    await client.stop(killed)
    status = await client.exited(killed)
    assert (status.exit_code, status.reason) == (137, "Error")


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (("no-such-program",), ["no-such-program", "not found"]),
        (("/etc/passwd",), ["/etc/passwd", "permission denied"]),
        (("/bin",), ["/bin"]),
    ],
)
async def test_a_command_that_cannot_be_run_is_told_and_leaves_nothing(
    client: Client, busybox: str, traces: Traces, command: tuple[str, ...], words: list[str]
) -> None:
    pod_id = await client.run_pod()
    before = host.contents(traces)
    with pytest.raises(GRPCError) as caught:
        await client.create(pod_id, busybox, command)
    message = (caught.value.message or "").lower()
    assert caught.value.status is Status.UNKNOWN
    assert message.startswith("cannot create container main: ")
    assert all(word in message for word in words)
    assert host.contents(traces) == before


async def test_a_container_that_ended_before_its_start_is_told_so(client: Client, busybox: str) -> None:
    pod_id = await client.run_pod()
    container_id = await client.create(pod_id, busybox)
    pid = (await info(client, container_id))["pid"]
    os.kill(pid, 9)
    status = await client.exited(container_id)
    assert (status.exit_code, status.started_at) == (137, 0)
    with pytest.raises(GRPCError, match="it is exited") as caught:
        await client.start(container_id)
    assert caught.value.status is Status.FAILED_PRECONDITION


# --- start, stop and remove, repeated and at once


async def test_a_container_starts_once(client: Client, busybox: str) -> None:
    pod_id = await client.run_pod()
    container_id = await client.create(pod_id, busybox)
    await asyncio.gather(client.start(container_id), client.start(container_id))  # the second joins the first
    with pytest.raises(GRPCError, match="it starts only once"):
        await client.start(container_id)


async def test_a_second_stop_shortens_the_grace_of_the_first(client: Client, busybox: str) -> None:
    pod_id = await client.run_pod()
    container_id = await client.run(pod_id, busybox, IGNORES_TERM)
    await until_said(client, pod_id, "up")
    first = asyncio.create_task(client.stop(container_id, timeout_s=3600))
    await asyncio.wait({first}, timeout=0.3)
    longer = asyncio.create_task(client.stop(container_id, timeout_s=7200))
    await asyncio.wait({first, longer}, timeout=0.2)
    assert not first.done()
    assert not longer.done()
    started = time.monotonic()
    await client.stop(container_id, timeout_s=1)
    assert 0.8 < time.monotonic() - started < 5
    await asyncio.gather(first, longer)
    assert (await client.status(container_id)).exit_code == 137


async def test_stops_that_come_in_the_same_moment_have_the_shortest_grace(client: Client, busybox: str) -> None:
    pod_id = await client.run_pod()
    container_id = await client.run(pod_id, busybox, IGNORES_TERM)
    await until_said(client, pod_id, "up")
    async with asyncio.timeout(10):
        await asyncio.gather(*(client.stop(container_id, timeout_s=grace) for grace in (3600, 0, 1800)))


async def test_removing_a_container_ends_its_stop(client: Client, busybox: str) -> None:
    pod_id = await client.run_pod()
    container_id = await client.run(pod_id, busybox, IGNORES_TERM)
    await until_said(client, pod_id, "up")
    stopping = asyncio.create_task(client.stop(container_id, timeout_s=3600))
    await asyncio.wait({stopping}, timeout=0.2)
    async with asyncio.timeout(10):
        await client.remove(container_id)
        await stopping


async def test_stopping_a_pod_ends_the_stop_of_its_containers(client: Client, busybox: str) -> None:
    pod_id = await client.run_pod()
    container_id = await client.run(pod_id, busybox, IGNORES_TERM)
    await until_said(client, pod_id, "up")
    stopping = asyncio.create_task(client.stop(container_id, timeout_s=3600))
    await asyncio.wait({stopping}, timeout=0.2)
    async with asyncio.timeout(10):
        await client.stop_pod(pod_id)
        await stopping
    assert (await client.status(container_id)).state is State.CONTAINER_EXITED


async def test_the_images_or_the_requests_stop_signal_is_sent(client: Client, busybox: str) -> None:
    def use_int(config: cri.ContainerConfig) -> None:
        config.stop_signal = cri.Signal.SIGINT

    pod_id = await client.run_pod()
    script = "trap 'exit 5' INT; echo up; while :; do sleep 0.05; done"
    container_id = await client.create(pod_id, busybox, ("sh", "-c", script), change=use_int)
    await client.start(container_id)
    await until_said(client, pod_id, "up")
    await client.stop(container_id, timeout_s=30)
    status = await client.status(container_id)
    assert (status.exit_code, status.stop_signal) == (5, cri.Signal.SIGINT)


async def test_a_created_container_is_stopped_without_having_run(client: Client, busybox: str) -> None:
    pod_id = await client.run_pod()
    container_id = await client.create(pod_id, busybox, ("sh", "-c", "echo ran"))
    await client.stop(container_id, timeout_s=30)
    status = await client.status(container_id)
    assert (status.state, status.exit_code) == (State.CONTAINER_EXITED, 137)
    assert status.finished_at > 0
    assert client.log(pod_id) == []


async def test_start_stop_and_remove_at_once_end_with_nothing(client: Client, busybox: str, traces: Traces) -> None:
    pod_id = await client.run_pod()
    before = host.contents(traces)
    for _ in range(5):
        container_id = await client.create(pod_id, busybox)
        outcomes = await asyncio.gather(
            client.start(container_id),
            client.stop(container_id, timeout_s=1),
            client.remove(container_id),
            client.stop(container_id),
            client.remove(container_id),
            return_exceptions=True,
        )
        assert all(outcome is None for outcome in outcomes[1:]), outcomes
        assert host.contents(traces) == before
        with pytest.raises(GRPCError) as caught:
            await client.status(container_id)
        assert caught.value.status is Status.NOT_FOUND


async def test_a_pod_that_is_removed_while_its_container_is_made_leaves_nothing(
    client: Client, busybox: str, traces: Traces
) -> None:
    before = host.contents(traces)
    for pause in (0, 0.01, 0.03, 0.05):
        pod_id = await client.run_pod()
        creating = asyncio.create_task(client.create(pod_id, busybox))
        await asyncio.sleep(pause)
        await client.remove_pod(pod_id)
        (outcome,) = await asyncio.gather(creating, return_exceptions=True)
        if isinstance(outcome, GRPCError):
            assert outcome.status in {Status.FAILED_PRECONDITION, Status.NOT_FOUND}
        assert [line for line in host.contents(traces) if line not in before and "/logs/" not in line] == []


# --- create


async def test_the_same_request_again_gives_the_same_container(client: Client, busybox: str) -> None:
    pod_id = await client.run_pod()

    def one(config: cri.ContainerConfig) -> None:
        config.labels = {"a": "1", "b": "2"}

    def other_order(config: cri.ContainerConfig) -> None:
        config.labels = {"b": "2", "a": "1"}  # as Go writes maps

    first = await client.create(pod_id, busybox, change=one)
    assert await client.create(pod_id, busybox, change=other_order) == first
    joined = await asyncio.gather(*(client.create(pod_id, busybox, name="joined") for _ in range(3)))
    assert len(set(joined)) == 1
    with pytest.raises(GRPCError, match=r"raise metadata\.attempt") as caught:
        await client.create(pod_id, busybox, ("true",), change=one)
    assert caught.value.status is Status.ALREADY_EXISTS
    await client.start(first)
    with pytest.raises(GRPCError, match="is running; remove it or raise"):
        await client.create(pod_id, busybox, change=one)
    assert await client.create(pod_id, busybox, change=one, attempt=1) != first


async def test_the_same_pod_again_gives_the_same_pod(client: Client) -> None:
    config = client.pod_config(labels={"a": "1", "b": "2"})
    first, joined = await asyncio.gather(client.run_pod(config), client.run_pod(config))
    again = cri.PodSandboxConfig.parse(bytes(config))
    again.labels = {"b": "2", "a": "1"}
    assert first == joined == await client.run_pod(again)
    again.hostname = "another"
    with pytest.raises(GRPCError, match=r"raise metadata\.attempt") as caught:
        await client.run_pod(again)
    assert caught.value.status is Status.ALREADY_EXISTS
    await client.stop_pod(first)
    with pytest.raises(GRPCError):
        await client.run_pod(config)


async def test_many_pods_and_containers_at_once(client: Client, busybox: str) -> None:
    pods = await asyncio.gather(*(client.run_pod() for _ in range(6)))
    made = await asyncio.gather(
        *(client.run(pod_id, busybox, name=name) for pod_id in pods for name in ("one", "two", "three"))
    )
    assert len(set(made)) == 18
    states = {(await client.status(container_id)).state for container_id in made}
    assert states == {State.CONTAINER_RUNNING}
    await asyncio.gather(*(client.stop_pod(pod_id) for pod_id in pods))
    states = {(await client.status(container_id)).state for container_id in made}
    assert states == {State.CONTAINER_EXITED}


async def test_a_stopped_pod_takes_no_containers_and_starts_none(client: Client, busybox: str) -> None:
    pod_id = await client.run_pod()
    container_id = await client.create(pod_id, busybox)
    await client.stop_pod(pod_id)
    for attempt in (client.create(pod_id, busybox, name="late"), client.start(container_id)):
        with pytest.raises(GRPCError, match="not ready") as caught:
            await attempt
        assert caught.value.status is Status.FAILED_PRECONDITION


async def test_ids_may_be_shortened_but_not_to_nothing_and_not_to_several(client: Client, busybox: str) -> None:
    pod_id = await client.run_pod()
    container_id = await client.run(pod_id, busybox)
    assert (await client.status(container_id[:13])).id == container_id
    assert (await client.pod_status(pod_id[:13])).id == pod_id
    with pytest.raises(GRPCError) as caught:
        await client.stop("")
    assert caught.value.status is Status.INVALID_ARGUMENT


async def test_what_was_asked_for_is_what_the_process_has(client: Client, busybox: str) -> None:
    security = SECURITY(
        run_as_username="app",
        supplemental_groups=[5000],
        no_new_privs=True,
        readonly_rootfs=True,
        capabilities=cri.Capability(drop_capabilities=["ALL"], add_capabilities=["NET_BIND_SERVICE"]),
        masked_paths=["/proc/kcore", "/proc/no-such"],
        readonly_paths=["/proc/sys"],
        seccomp=cri.SecurityProfile(profile_type=cri.SecurityProfileProfileType.RuntimeDefault),
    )
    pod_id = await client.run_pod()
    container_id = await client.create(pod_id, busybox, security=security)
    await client.start(container_id)
    proc = dict(
        line.split(":\t", 1) for line in (await client.output(container_id, "cat", "/proc/1/status")).splitlines()
    )
    assert proc["Uid"].split() == ["1000"] * 4
    assert proc["Gid"].split() == ["1000"] * 4
    assert set(proc["Groups"].split()) == {"1000", "2000", "5000"}
    assert (proc["NoNewPrivs"], proc["Seccomp"]) == ("1", "2")
    assert int(proc["CapBnd"], 16) == 1 << 10
    status = await client.status(container_id)
    assert status.user is not None
    assert status.user.linux == cri.LinuxContainerUser(uid=1000, gid=1000, supplemental_groups=[1000, 2000, 5000])
    for script in ("touch /x", "echo 1 > /proc/sys/kernel/panic", "test -s /proc/kcore", "unshare -m true"):
        assert (await client.exec(container_id, "sh", "-c", script)).exit_code != 0, script


async def test_a_volume_on_etc_does_not_hide_the_pods_files(client: Client, busybox: str, traces: Traces) -> None:
    volume = traces.directory / "volume"
    volume.mkdir()
    (volume / "mine").write_text("yes\n")
    try:
        pod_id = await client.run_pod()
        mount = cri.Mount(container_path="/etc", host_path=str(volume))
        container_id = await client.create(pod_id, busybox, mounts=[mount])
        await client.start(container_id)
        assert await client.output(container_id, "cat", "/etc/mine") == "yes\n"
        assert (await client.output(container_id, "cat", "/etc/hosts")).startswith("127.0.0.1\tlocalhost")
        assert await client.output(container_id, "cat", "/etc/hostname") == await client.output(
            container_id, "hostname"
        )
    finally:
        await client.remove_all()
        shutil.rmtree(volume)


async def test_a_terminal_and_an_open_input(client: Client, busybox: str) -> None:
    def having(**fields: bool) -> Callable[[cri.ContainerConfig], None]:
        def change(config: cri.ContainerConfig) -> None:
            for name, value in fields.items():
                setattr(config, name, value)

        return change

    pod_id = await client.run_pod()
    script = "test -t 0 && test -t 1 && echo a terminal; exit 0"
    terminal = await client.create(pod_id, busybox, ("sh", "-c", script), name="terminal", change=having(tty=True))
    await client.start(terminal)
    await client.exited(terminal)
    assert [line.split(" ", 3)[1:] for line in client.log(pod_id, "terminal")] == [["stdout", "F", "a terminal"]]
    closed = await client.run(pod_id, busybox, ("cat",), name="closed")
    assert (await client.exited(closed)).exit_code == 0
    still = await client.create(pod_id, busybox, ("cat",), name="open", change=having(stdin=True))
    await client.start(still)
    assert (await client.exec(still, "true")).exit_code == 0
    assert (await client.status(still)).state is State.CONTAINER_RUNNING


async def test_a_privileged_container_may_do_what_others_may_not(client: Client, busybox: str) -> None:
    pod_id = await client.run_pod(client.privileged_pod_config())
    plain = await client.run(pod_id, busybox, name="plain")
    privileged = await client.create(pod_id, busybox, name="privileged", security=SECURITY(privileged=True))
    await client.start(privileged)
    for script in (
        "mkdir -p /m && mount -t tmpfs none /m",
        "mkdir -p /c && mknod /c/mem c 1 1 && dd if=/c/mem of=/dev/null bs=1 count=1",
        "test -w /sys/fs/cgroup && test -e /dev/loop-control",
    ):
        assert (await client.exec(plain, "sh", "-c", script)).exit_code != 0, script
    assert (await client.exec(privileged, "sh", "-c", "mkdir -p /m && mount -t tmpfs none /m")).exit_code == 0
    assert (await client.exec(privileged, "test", "-e", "/dev/null")).exit_code == 0


@pytest.mark.parametrize(
    ("propagation", "inwards", "outwards"),
    [
        (cri.MountPropagation.PROPAGATION_PRIVATE, False, False),
        (cri.MountPropagation.PROPAGATION_HOST_TO_CONTAINER, True, False),
        (cri.MountPropagation.PROPAGATION_BIDIRECTIONAL, True, True),
    ],
)
async def test_mounts_propagate_as_asked(
    client: Client, busybox: str, tmp_path: Path, propagation: cri.MountPropagation, inwards: bool, outwards: bool
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    kernel.mount("tmpfs", shared, fstype="tmpfs")
    try:
        kernel.mount("none", shared, flags=kernel.MS_SHARED)
        for name in ("host", "container"):
            (shared / name).mkdir()
        mount = cri.Mount(container_path="/shared", host_path=str(shared), propagation=propagation)
        pod_id = await client.run_pod(client.privileged_pod_config())
        container_id = await client.create(pod_id, busybox, mounts=[mount], security=SECURITY(privileged=True))
        await client.start(container_id)
        kernel.mount("tmpfs", shared / "host", fstype="tmpfs")
        (shared / "host" / "word").touch()
        script = "mount -t tmpfs none /shared/container && touch /shared/container/word; ls /shared/host"
        assert ("word" in await client.output(container_id, "sh", "-c", script)) is inwards
        assert (shared / "container" / "word").exists() is outwards
        await client.remove_pod(pod_id)
    finally:
        for point in mounts_below(shared):
            kernel.umount2(point, flags=kernel.MNT_DETACH)
