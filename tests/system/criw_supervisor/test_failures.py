"""A pod or container that cannot be made leaves the host as it was, whichever step fails, and says why."""

import asyncio
import contextlib
import os
import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from criw import kernel
from criw.config.common import AgentName
from criw_proto.runtime import v1 as cri
from criw_supervisor.cgroups import hierarchies, killing
from support import host
from support.client import Client
from support.supervised import Supervised, Traces

PodChange = Callable[[cri.PodSandboxConfig], None]
ContainerChange = Callable[[cri.ContainerConfig], None]


def linux(config: cri.PodSandboxConfig | cri.ContainerConfig) -> object:
    assert config.linux is not None
    return config.linux


def set_pod(**fields: object) -> PodChange:
    def change(config: cri.PodSandboxConfig) -> None:
        for name, value in fields.items():
            setattr(config, name, value)

    return change


def set_pod_linux(**fields: object) -> PodChange:
    def change(config: cri.PodSandboxConfig) -> None:
        for name, value in fields.items():
            setattr(linux(config), name, value)

    return change


def pid_of_the_pod(mode: cri.NamespaceMode) -> PodChange:
    options = cri.NamespaceOption(pid=mode)
    return set_pod_linux(security_context=cri.LinuxSandboxSecurityContext(namespace_options=options))


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        (set_pod_linux(sysctls={"kernel.panic": "1"}), Status.INVALID_ARGUMENT, "kernel.panic"),
        (set_pod_linux(sysctls={"kernel.msgmax": "x"}), Status.INVALID_ARGUMENT, "kernel.msgmax"),
        (set_pod_linux(sysctls={"net.ipv4.no_such": "1"}), Status.INVALID_ARGUMENT, "net.ipv4.no_such"),
        (set_pod_linux(cgroup_parent="/a/../b"), Status.INVALID_ARGUMENT, "cgroup parent"),
        (set_pod_linux(cgroup_parent="/cgroup.procs"), Status.INVALID_ARGUMENT, "cgroup.procs"),
        (set_pod_linux(cgroup_parent="/a\nb"), Status.INVALID_ARGUMENT, "control characters"),
        (set_pod_linux(cgroup_parent="a.slice"), Status.INVALID_ARGUMENT, "cgroupfs"),
        (set_pod(hostname="not a name"), Status.INVALID_ARGUMENT, "hostname"),
        (set_pod(dns_config=cri.DnsConfig(servers=["nowhere"])), Status.INVALID_ARGUMENT, "nowhere"),
        (set_pod(dns_config=cri.DnsConfig(options=["a b"])), Status.INVALID_ARGUMENT, "a b"),
        (
            set_pod(port_mappings=[cri.PortMapping(host_port=70000, container_port=80)]),
            Status.INVALID_ARGUMENT,
            "70000",
        ),
        (set_pod(log_directory="relative/logs"), Status.INVALID_ARGUMENT, "relative/logs"),
        (pid_of_the_pod(cri.NamespaceMode.TARGET), Status.INVALID_ARGUMENT, "pid"),
    ],
)
async def test_a_pod_that_cannot_be(
    client: Client, traces: Traces, change: PodChange, status: Status, words: str
) -> None:
    other = await client.run_pod()  # the network has its bridge from now on
    before = host.contents(traces)
    config = client.pod_config()
    change(config)
    with pytest.raises(GRPCError) as caught:
        await client.run_pod(config)
    assert (caught.value.status, words in (caught.value.message or "")) == (status, True), caught.value
    assert (caught.value.message or "").startswith("cannot ")
    assert host.contents(traces) == before
    listed = await client.runtime.list_pod_sandbox(cri.ListPodSandboxRequest())
    assert [pod.id for pod in listed.items] == [other]


async def test_an_unknown_runtime_handler(client: Client, traces: Traces) -> None:
    before = host.contents(traces)
    request = cri.RunPodSandboxRequest(config=client.pod_config(), runtime_handler="nope")
    with pytest.raises(GRPCError, match=r"nope: it is not configured.*working handlers: ") as caught:
        await client.runtime.run_pod_sandbox(request)
    assert caught.value.status is Status.FAILED_PRECONDITION
    assert host.contents(traces) == before


async def test_a_host_port_that_is_taken(client: Client, traces: Traces) -> None:
    mapping = cri.PortMapping(host_port=28999, container_port=80, host_ip="127.0.0.1")
    await client.run_pod(client.pod_config(port_mappings=[mapping]))
    before = host.contents(traces)
    with pytest.raises(GRPCError, match="28999") as caught:
        await client.run_pod(client.pod_config(port_mappings=[mapping]))
    assert caught.value.status is Status.ALREADY_EXISTS
    assert host.contents(traces) == before


def set_container(**fields: object) -> ContainerChange:
    def change(config: cri.ContainerConfig) -> None:
        for name, value in fields.items():
            setattr(config, name, value)

    return change


def set_security(**fields: object) -> ContainerChange:
    def change(config: cri.ContainerConfig) -> None:
        assert config.linux is not None
        config.linux.security_context = cri.LinuxContainerSecurityContext(**fields)  # type: ignore[arg-type]

    return change


def set_resources(**fields: int) -> ContainerChange:
    def change(config: cri.ContainerConfig) -> None:
        assert config.linux is not None
        config.linux.resources = cri.LinuxContainerResources()
        for name, value in fields.items():
            setattr(config.linux.resources, name, value)

    return change


NOT_THERE = "sha256:" + "0" * 64


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        (set_container(image=cri.ImageSpec(image=NOT_THERE)), Status.NOT_FOUND, NOT_THERE),
        (set_container(command=["no-such-program"]), Status.UNKNOWN, "no-such-program"),
        (set_container(stop_signal=cri.Signal(999)), Status.INVALID_ARGUMENT, "999"),
        (set_container(envs=[cri.KeyValue(key="", value=b"x")]), Status.INVALID_ARGUMENT, "environment"),
        (
            set_container(mounts=[cri.Mount(container_path="/d", host_path="/etc/passwd/no")]),
            Status.INVALID_ARGUMENT,
            "/etc/passwd/no",
        ),
        (
            set_container(mounts=[cri.Mount(container_path="/etc/passwd/below", host_path="/tmp")]),
            Status.UNKNOWN,
            "/etc/passwd/below",
        ),
        (
            set_container(mounts=[cri.Mount(container_path="/d", image=cri.ImageSpec(image="x"))]),
            Status.UNKNOWN,
            "ImageVolumeMountFailed",
        ),
        (set_container(devices=[cri.Device(host_path="/dev/no-such")]), Status.INVALID_ARGUMENT, "/dev/no-such"),
        (set_security(run_as_username="stranger"), Status.INVALID_ARGUMENT, "stranger"),
        (set_security(run_as_group=cri.Int64Value(value=5)), Status.INVALID_ARGUMENT, "run_as_group"),
        (
            set_security(capabilities=cri.Capability(add_capabilities=["FLY"])),
            Status.INVALID_ARGUMENT,
            "FLY",
        ),
        (
            set_security(
                seccomp=cri.SecurityProfile(
                    profile_type=cri.SecurityProfileProfileType.Localhost, localhost_ref="/no/profile.json"
                )
            ),
            Status.INVALID_ARGUMENT,
            "/no/profile.json",
        ),
        (set_resources(cpu_shares=-1), Status.INVALID_ARGUMENT, "cpu_shares"),
        (set_resources(cpu_period=1, cpu_quota=1), Status.UNKNOWN, "cpu"),
        (
            set_security(namespace_options=cri.NamespaceOption(pid=cri.NamespaceMode.TARGET, target_id="0" * 64)),
            Status.NOT_FOUND,
            "0" * 64,
        ),
    ],
)
async def test_a_container_that_cannot_be(
    client: Client, busybox: str, traces: Traces, change: ContainerChange, status: Status, words: str
) -> None:
    pod_id = await client.run_pod()
    before = host.contents(traces)
    with pytest.raises(GRPCError) as caught:
        await client.create(pod_id, busybox, change=change)
    assert (caught.value.status, words in (caught.value.message or "")) == (status, True), caught.value
    assert (caught.value.message or "").startswith(("cannot ", "ImageVolumeMountFailed: "))
    assert host.contents(traces) == before
    listed = await client.runtime.list_containers(cri.ListContainersRequest())
    assert listed.containers == []
    await client.start(await client.create(pod_id, busybox))  # the kubelet comes back with the same name


async def test_a_log_directory_that_cannot_be_made(client: Client, busybox: str, traces: Traces) -> None:
    pod_id = await client.run_pod(client.pod_config(log_directory="/proc/no/such/logs"))
    before = host.contents(traces)
    with pytest.raises(GRPCError, match="cannot make the log directory /proc/no/such/logs") as caught:
        await client.create(pod_id, busybox)
    assert caught.value.status is Status.INVALID_ARGUMENT
    assert host.contents(traces) == before


# --- what fails besides the request


async def test_a_runtime_that_fails(own: Supervised) -> None:
    client = own.client
    shared = client.pod_config()
    pid_of_the_pod(cri.NamespaceMode.POD)(shared)
    pod_id = await client.run_pod()
    before = host.contents(own.crew)
    with own.runtime.failing("create"):
        with pytest.raises(GRPCError, match="injected failure of create"):
            await client.create(pod_id, own.image)
        with pytest.raises(GRPCError, match="injected failure of create"):
            await client.run_pod(shared)
    assert host.contents(own.crew) == before
    with own.runtime.failing("start"), pytest.raises(GRPCError, match="injected failure of start"):
        await client.run_pod(shared)
    assert host.contents(own.crew) == before
    await client.run_pod(shared)


async def test_a_start_that_fails_leaves_the_container_ended_with_the_reason(own: Supervised) -> None:
    client = own.client
    pod_id = await client.run_pod()
    before = host.contents(own.crew)
    container_id = await client.create(pod_id, own.image)
    with own.runtime.failing("start"), pytest.raises(GRPCError, match="injected failure of start"):
        await client.start(container_id)
    status = await client.status(container_id)
    assert (status.state, status.reason, status.exit_code) == (cri.ContainerState.CONTAINER_EXITED, "StartError", 128)
    assert "injected failure of start" in status.message
    assert status.finished_at > 0
    await client.remove(container_id)
    async with asyncio.timeout(10):  # conmon may come late to write of an end that nobody asks for any more
        while host.contents(own.crew) != before:
            await asyncio.sleep(0.02)


async def test_an_update_that_fails_changes_nothing(own: Supervised) -> None:
    client = own.client
    limits = cri.LinuxContainerResources(cpu_shares=512)
    pod_id = await client.run_pod()
    container_id = await client.create(pod_id, own.image, resources=limits)
    await client.start(container_id)
    request = cri.UpdateContainerResourcesRequest(
        container_id=container_id, linux=cri.LinuxContainerResources(cpu_shares=1024)
    )
    with own.runtime.failing("update"), pytest.raises(GRPCError, match="injected failure of update"):
        await client.runtime.update_container_resources(request)
    resources = (await client.status(container_id)).resources
    assert resources is not None
    assert resources.linux == limits


async def test_a_runtime_that_cannot_delete_does_not_lose_the_exit(own: Supervised) -> None:
    client = own.client
    pod_id = await client.run_pod()
    with own.runtime.failing("delete"):
        container_id = await client.run(pod_id, own.image, ("sh", "-c", "exit 9"))
        assert (await client.exited(container_id)).exit_code == 9
        with pytest.raises(GRPCError, match="injected failure of delete"):
            await client.remove(container_id)
        assert (await client.status(container_id)).exit_code == 9
    await client.remove(container_id)


async def test_a_process_nobody_knows_of_does_not_keep_a_container_alive(own: Supervised) -> None:
    client = own.client
    container_id = await client.run(await client.run_pod(), own.image)
    with own.runtime.denying("exec"), pytest.raises(GRPCError, match="cannot run a command"):
        await client.exec(container_id, "sleep", "6001")
    assert "sleep 6001" in await client.output(container_id, "ps", "-o", "args")
    async with asyncio.timeout(5):  # its zombie is the supervisor's, and init cannot end before it is reaped
        await client.stop(container_id)
    assert (await client.status(container_id)).exit_code == 137


@pytest.mark.parametrize("below", ["", "own"])
async def test_a_frozen_container_is_stopped_and_removed(own: Supervised, below: str) -> None:
    client, cgroups = own.client, hierarchies.of_host()
    container_id = await client.run(await client.run_pod(), own.image)
    info = await own.info(container_id)
    cgroup = f"{info['runtimeSpec']['linux']['cgroupsPath']}/{below}".rstrip("/")
    for directory in cgroups.directories(cgroup):
        if directory.parent.exists():
            directory.mkdir(exist_ok=True)
    if below:  # as a privileged container that froze a part of itself
        await client.exec(container_id, "sh", "-c", "sleep 6002 >/dev/null 2>&1 &")
        parent = cgroups.directory("freezer", cgroup)
        assert parent is not None
        for pid in cgroups.processes(cgroup.removesuffix("/own")) - {info["pid"]}:
            (parent / "cgroup.procs").write_text(str(pid))
    for directory in cgroups.directories(cgroup):
        killing.freeze(directory)
    async with asyncio.timeout(8):
        await client.stop(container_id)
    assert (await client.status(container_id)).exit_code == 137
    await client.remove(container_id)


async def test_a_cgroup_parent_that_was_made_for_a_pod_goes_with_it(own: Supervised) -> None:
    client, cgroups = own.client, hierarchies.of_host()
    top = f"left-{secrets.token_hex(4)}"
    for parent in (f"/{top}/x", f"{top}/y/z"):
        config = client.pod_config()
        config.linux = cri.LinuxPodSandboxConfig(cgroup_parent=parent)
        pod_id = await client.run_pod(config)
        await client.run(pod_id, own.image)
        assert any(directory.exists() for directory in cgroups.directories(top))
        await client.remove_pod(pod_id)
        assert not any(directory.exists() for directory in cgroups.directories(top))


async def test_a_pod_needs_catatonit_only_for_a_shared_pid_namespace(own: Supervised, tmp_path: Path) -> None:
    client, programs = own.client, tmp_path / "programs"
    programs.mkdir()
    for directory in os.environ["PATH"].split(":"):
        for program in Path(directory).glob("*"):
            link = programs / program.name
            if program.name != "catatonit" and not link.exists():
                link.symlink_to(program)
    await own.crew.stop("supervisor")
    await own.crew.start("supervisor", env={"PATH": str(programs)})
    await client.run_pod()
    before = host.contents(own.crew)
    shared = client.pod_config()
    pid_of_the_pod(cri.NamespaceMode.POD)(shared)
    with pytest.raises(GRPCError, match="catatonit is missing; install the package catatonit") as caught:
        await client.run_pod(shared)
    assert caught.value.status is Status.FAILED_PRECONDITION
    assert host.contents(own.crew) == before
    await own.crew.stop("supervisor")
    await own.crew.start("supervisor")


@pytest.mark.parametrize("agent", ["storage", "network", "image"])
async def test_an_agent_that_is_away(own: Supervised, agent: AgentName) -> None:
    """A call waits for it and goes on when it is back; what it then makes is one thing, and goes as a whole."""
    client = own.client
    pod_id = await client.run_pod()
    before = held(own)
    await own.crew.kill(agent)
    making = asyncio.create_task(client.run_pod() if agent == "network" else client.create(pod_id, own.image))
    await asyncio.wait({making}, timeout=0.3)
    assert not making.done()
    await own.crew.start(agent)
    made = await making
    assert held(own) > before
    await (client.remove_pod(made) if agent == "network" else client.remove(made))
    assert held(own) == before


def held(supervised: Supervised) -> set[str]:
    """What the agents hold for pods: all that is on the host but processes and the supervisor's own files."""
    found = set(host.contents(supervised.crew))
    return {line for line in found if not line.startswith("process ") and str(supervised.run) not in line}


@pytest.mark.parametrize("agent", ["storage", "network"])
async def test_what_an_agent_that_went_away_holds_is_given_back_when_it_is_back(
    own: Supervised, agent: AgentName
) -> None:
    client = own.client
    pod_id = await client.run_pod()
    shared = client.pod_config()
    pid_of_the_pod(cri.NamespaceMode.POD)(shared)
    before = held(own)
    with own.runtime.holding("create"):
        making = asyncio.create_task(client.run_pod(shared) if agent == "network" else client.create(pod_id, own.image))
        async with asyncio.timeout(20):  # the agent has done its part when the runtime is called
            while not any(" create " in line for line in host.processes(own.crew)):
                await asyncio.sleep(0.01)
        assert held(own) > before
        await own.crew.kill(agent)
        await own.kill_supervisor()
    making.cancel()
    await asyncio.wait({making})
    await own.start_supervisor()
    await own.crew.start(agent)
    async with asyncio.timeout(20):
        while held(own) != before:
            await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def small_state(own: Supervised) -> AsyncIterator[Path]:
    """The supervisor with its state on a small file system; the file that fills it."""
    state = own.crew.config.state_dir("supervisor")
    await own.crew.stop("supervisor")
    with contextlib.ExitStack() as undo:
        kept = undo.enter_context(tempfile.TemporaryDirectory())
        shutil.copytree(state, kept, dirs_exist_ok=True)
        kernel.mount("tmpfs", state, fstype="tmpfs", data="size=6m")
        undo.callback(kernel.umount2, state, flags=kernel.MNT_DETACH)
        shutil.copytree(kept, state, dirs_exist_ok=True)
        await own.start_supervisor()
        yield state / "filler.db"  # `support.host` takes it for state
        await own.client.remove_all()
        await own.crew.stop("supervisor")
    await own.start_supervisor()


def fill(path: Path) -> None:
    with pytest.raises(OSError, match="No space left"), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(65536))


async def test_a_full_disk_is_told_and_leaves_nothing(own: Supervised) -> None:
    client = own.client
    async with small_state(own) as filler:
        pod_id = await client.run_pod()
        container_id = await client.create(pod_id, own.image, ("sh", "-c", "exit 6"))
        before = held(own)
        fill(filler)
        full = []
        for attempt in (client.run_pod(), client.create(pod_id, own.image, name="other")):
            with pytest.raises(GRPCError, match="no space left") as caught:
                await attempt
            full.append(caught.value.status)
        assert full == [Status.RESOURCE_EXHAUSTED] * 2
        assert held(own) == before
        filler.unlink()
        await client.start(container_id)
        assert (await client.exited(container_id)).exit_code == 6


async def test_on_a_full_disk_exits_are_known_and_pods_are_stopped_and_removed(own: Supervised) -> None:
    client = own.client
    async with small_state(own) as filler:
        before = held(own)
        pod_id = await client.run_pod(shared_pid_pod(own))
        made = [await client.run(pod_id, own.image, name=name) for name in ("one", "two")]
        fill(filler)
        os.kill((await own.info(made[0]))["pid"], 9)
        status = await client.exited(made[0])
        assert (status.exit_code, status.reason) == (137, "Error")
        await client.stop(made[1])
        await client.remove(made[0])
        await client.remove_pod(pod_id)
        assert held(own) == before
        await own.kill_supervisor()
        await own.start_supervisor()  # on the full disk
        listed = await client.runtime.list_pod_sandbox(cri.ListPodSandboxRequest())
        assert listed.items == []  # there was room kept for saying so
        filler.unlink()


def shared_pid_pod(own: Supervised) -> cri.PodSandboxConfig:
    config = own.client.pod_config()
    pid_of_the_pod(cri.NamespaceMode.POD)(config)
    return config
