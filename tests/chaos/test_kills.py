"""Each agent is killed at ten random moments while pods come and go: what was acknowledged stays, nothing else."""

import asyncio
import contextlib
import os
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from grpclib.const import Status
from grpclib.exceptions import GRPCError, StreamTerminatedError

from criw.config.common import AGENTS, AgentName
from criw.mountinfo import mounts_below
from criw.rpc.client import Channel
from criw_proto.criw.network.v1 import ListRequest, NetworkStub
from criw_proto.criw.storage.v1 import ListRootfsRequest, RootfsStub
from criw_proto.runtime import v1 as cri
from criw_supervisor.cgroups import hierarchies
from support import images
from support.client import Client
from support.crew import Crew, running_crew
from support.registry import running_registry

KILLS = int(os.environ.get("CHAOS_KILLS", "10"))
LONGEST_PAUSE_S = 0.4  # between an agent's being ready and its death
WORKERS = 3
KEEP_EVERY = 4  # pods: every fourth one stays, to be found again at the end
SETTLE_LIMIT_S = 30.0
TICKER = ("sh", "-c", "i=0; while :; do i=$((i+1)); echo $i; sleep 0.1; done")


class Kubelet(Client):
    """A client that asks again, with the same request, when an agent went away in the middle: as the kubelet does."""

    async def until_answered(self, what: str, *arguments: object) -> str:
        while True:
            with contextlib.suppress(StreamTerminatedError, ConnectionError):  # the door itself was killed
                try:
                    return str(await getattr(self, what)(*arguments))
                except GRPCError as err:
                    if err.status is not Status.UNAVAILABLE:
                        raise
            await asyncio.sleep(0.02)


class Acknowledged:
    """What the crew has promised is there: containers by pod."""

    def __init__(self) -> None:
        self.pods: dict[str, str] = {}
        self.rounds = 0


async def come_and_go(kubelet: Kubelet, image: str, promised: Acknowledged, stop: asyncio.Event) -> None:
    while not stop.is_set():
        promised.rounds += 1
        keep = promised.rounds % KEEP_EVERY == 0 and len(promised.pods) < 8
        config = kubelet.pod_config()
        pod_id = await kubelet.until_answered("run_pod", config)
        container_id = await kubelet.until_answered("create", pod_id, image, TICKER)
        await started(kubelet, container_id)
        if keep:
            promised.pods[pod_id] = container_id
            continue
        await kubelet.until_answered("stop", container_id)
        await kubelet.until_answered("stop_pod", pod_id)
        await kubelet.until_answered("remove_pod", pod_id)


async def started(kubelet: Kubelet, container_id: str) -> None:
    """StartContainer is not idempotent: a call whose answer was lost may have been carried out."""
    try:
        await kubelet.until_answered("start", container_id)
    except GRPCError as err:
        if err.status is not Status.FAILED_PRECONDITION:
            raise
        assert "CONTAINER_RUNNING" in await kubelet.until_answered("status", container_id)


async def pull_and_remove(kubelet: Kubelet, reference: str, stop: asyncio.Event) -> None:
    while not stop.is_set():
        await kubelet.until_answered("pull", reference)
        await kubelet.until_answered("remove_image", reference)


async def kill_and_restart(crew: Crew, agent: AgentName, dice: random.Random) -> None:
    for _ in range(KILLS):
        await asyncio.sleep(dice.uniform(0, LONGEST_PAUSE_S))  # the random moment: chance, not waiting
        await crew.kill(agent)
        await crew.start(agent)


def names(directory: Path) -> set[str]:
    return {entry.name for entry in directory.iterdir()}


async def state_of(crew: Crew) -> dict[str, set[str]]:
    """Ids of everything that exists, by where it exists."""
    run, root = crew.config.run, crew.config.root
    rootfs = await RootfsStub(crew.channel("storage")).list_rootfs(ListRootfsRequest(), timeout=30)
    attached = await NetworkStub(crew.channel("network")).list(ListRequest(), timeout=30)
    pod_mounts = [point.relative_to(run / "supervisor" / "pods") for point in mounts_below(run / "supervisor" / "pods")]
    return {
        "pods attached": set(attached.pod_ids),
        "pods with a directory": names(run / "supervisor" / "pods"),
        "pods with a netns pin": names(run / "network" / "netns"),
        "pods with a cgroup": hierarchies.of_host().children(crew.cgroup_parent) - {"conmon"},
        "pods with mounts": {point.parts[0] for point in pod_mounts},
        "containers with a rootfs": set(rootfs.rootfs_ids),
        "containers mounted": {point.name for point in mounts_below(run / "storage" / "rootfs")},
        "containers with files": names(root / "storage" / "rootfs"),
        "containers with a bundle": names(run / "supervisor" / "containers"),
        "containers of the runtime": names(run / "supervisor" / "runtime" / "runc"),
    }


async def difference(crew: Crew, promised: Acknowledged) -> dict[str, set[str]]:
    """What is there and was not promised, or the other way round."""
    pods, containers = set(promised.pods), set(promised.pods.values())
    state = await state_of(crew)
    wrong = {name: ids ^ (pods if name.startswith("pods") else containers) for name, ids in state.items()}
    return {name: ids for name, ids in wrong.items() if ids}


async def assert_settled(crew: Crew, promised: Acknowledged) -> None:
    """Soon, when the agents have compared notes, the host has what was promised and nothing else."""
    loop = asyncio.get_running_loop()
    until = loop.time() + SETTLE_LIMIT_S
    while wrong := await difference(crew, promised):
        assert loop.time() < until, wrong
        await asyncio.sleep(0.1)


@pytest.fixture
def dice() -> random.Random:
    seed = int(os.environ.get("CHAOS_SEED", random.SystemRandom().randrange(1 << 32)))
    print(f"CHAOS_SEED={seed}")
    return random.Random(seed)


@contextlib.asynccontextmanager
async def crew_with_images() -> AsyncIterator[tuple[Crew, str, str]]:
    """A crew, an image it has, and one it may pull and remove."""
    async with running_registry() as registry:
        await registry.push("test/busybox:1", images.busybox())
        await registry.push("test/other:1", images.small("other"))
        toml = f'[image.registries."{registry.address}"]\nplain_http = true\n'
        async with running_crew(extra_toml=toml) as crew:
            yield crew, f"{registry.address}/test/busybox:1", f"{registry.address}/test/other:1"


async def disturb(crew: Crew, kubelet: Kubelet, image: str, other: str, dice: random.Random) -> Acknowledged:
    """Kill every agent again and again while pods and an image come and go; what was promised meanwhile."""
    promised, stop = Acknowledged(), asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(WORKERS):
            tasks.create_task(come_and_go(kubelet, image, promised, stop))
        tasks.create_task(pull_and_remove(kubelet, other, stop))
        for agent in AGENTS:
            await kill_and_restart(crew, agent, dice)
        stop.set()
    return promised


async def assert_kept(kubelet: Kubelet, promised: Acknowledged) -> None:
    """The promised pods are listed, and their containers run and log on as if nothing had happened."""
    listed = await kubelet.runtime.list_pod_sandbox(cri.ListPodSandboxRequest())
    assert {pod.id for pod in listed.items} == set(promised.pods)
    for pod_id, container_id in promised.pods.items():
        status = await kubelet.status(container_id)
        assert status.state == cri.ContainerState.CONTAINER_RUNNING, status
        numbers = [int(line.rpartition(" ")[2]) for line in kubelet.log(pod_id)]
        assert numbers == list(range(1, len(numbers) + 1))


async def test_ten_kills_of_each_agent_lose_and_leave_nothing(dice: random.Random, tmp_path: Path) -> None:
    async with crew_with_images() as (crew, busybox, other):
        with contextlib.closing(Channel(crew.config.socket("cri"))) as channel:
            kubelet = Kubelet(channel, tmp_path, name="chaos")
            try:
                promised = await disturb(crew, kubelet, await kubelet.pull(busybox), other, dice)
                assert promised.rounds > KILLS
                assert promised.pods
                await assert_settled(crew, promised)
                await assert_kept(kubelet, promised)
            finally:
                await kubelet.remove_all()
                for reference in (busybox, other):
                    await kubelet.remove_image(reference)
