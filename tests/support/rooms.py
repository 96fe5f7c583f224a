"""The supervisor's rooms with everything around them faked: no process, no namespace, no other agent."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from criw import kernel
from criw.ids import new_id
from criw.store import Store, open_store
from criw_proto.runtime import v1 as cri
from criw_supervisor import processes
from criw_supervisor.cgroups.hierarchies import Cgroups
from criw_supervisor.containers.containers import Containers
from criw_supervisor.containers.create import CreateContainer
from criw_supervisor.containers.request import ContainerPlan
from criw_supervisor.containers.request import plan as container_plan
from criw_supervisor.ends import Ends
from criw_supervisor.ledger.ledger import Ledger
from criw_supervisor.ledger.places import Places
from criw_supervisor.ledger.pod import Pod
from criw_supervisor.oci.document import Host
from criw_supervisor.oci.resources import OomScore
from criw_supervisor.pods import namespaces, stop
from criw_supervisor.pods.pods import Pods
from criw_supervisor.pods.request import PodPlan
from criw_supervisor.pods.request import plan as pod_plan
from criw_supervisor.pods.run import RunPod
from criw_supervisor.recovery.reconcile import Reconcile
from criw_supervisor.recovery.start import Recovery
from criw_supervisor.recovery.unfinished import Unfinished
from criw_supervisor.runtimes.handlers import Handlers
from criw_supervisor.stats.of_containers import ContainerStats
from support.fake_agents import NAME, FakeAgents, running_fakes
from support.fake_handler import FakeHandler

PARENT = "/criw"


class FakeKernel:
    """Mounts as a set of paths; namespaces are made without a trace, and are there but for those `gone`.

    `fail[call]` is raised by its next call.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.mounts: set[str] = set()
        self.fail: dict[str, OSError] = {}
        self.gone: set[str] = set()
        for name in ("unshare", "sethostname", "mount", "umount2"):
            patch.setattr(kernel, name, getattr(self, name))
        for module in (stop, namespaces):
            patch.setattr(module, "is_pinned", lambda handle: os.fspath(handle) not in self.gone)

    def _may_fail(self, call: str) -> None:
        if (fault := self.fail.pop(call, None)) is not None:
            raise fault

    def unshare(self, flags: int) -> None:
        self._may_fail("unshare")

    def sethostname(self, name: str) -> None:
        self._may_fail("sethostname")

    def mount(self, source: str, target: Path, **_: object) -> None:
        self._may_fail("mount")
        self.mounts.add(os.fspath(target))

    def umount2(self, target: Path, *, flags: int = 0) -> None:
        self.mounts.discard(os.fspath(target))


@contextlib.contextmanager
def _pid_namespace(pid: int, started: int) -> Iterator[str]:
    """Of the processes the fake handler has not."""
    yield f"/fake/{pid}/{started}"


class Rooms:
    """Use `running_rooms()`."""

    def __init__(
        self, directory: Path, store: Store, agents: FakeAgents, patch: pytest.MonkeyPatch, tasks: asyncio.TaskGroup
    ) -> None:
        self._directory = directory
        self._tasks = tasks
        self.kernel = FakeKernel(patch)
        patch.setattr(processes, "pid_namespace", _pid_namespace)
        self.agents = agents
        hierarchy = directory / "cgroup"
        hierarchy.mkdir()
        self.cgroups = Cgroups(hierarchy, [hierarchy], {}, v2=True)
        places = Places(directory / "run")
        self.handler = FakeHandler(places)
        self._build(Ledger(store, places))

    def _build(self, ledger: Ledger) -> None:
        self.ledger, agents = ledger, self.agents
        handlers = Handlers({"fake": self.handler}, {}, "fake")
        host = Host(cgroup_v2=True, swap=False, held=frozenset(), oom_score=OomScore(may_lower=True), pids_limit=0)
        self.create = CreateContainer(self.ledger, handlers, agents.ask_images, agents.ask_storage, host)
        self.containers = Containers(self.ledger, handlers, agents.ask_storage, self.create, host)
        self.stats = ContainerStats(handlers, agents.ask_storage)
        self.run = RunPod(self.ledger, handlers, self.cgroups, agents.ask_network)
        self.pods = Pods(self.ledger, self.cgroups, self.containers, agents.ask_network, self.run)
        self.unfinished = Unfinished(self.ledger, {"pod": self.run.undo, "container": self.create.undo})
        self.recovery = Recovery(self.ledger, handlers, self.cgroups, self.pods, self.containers, cgroup_parent=PARENT)
        self.reconcile = Reconcile(self.ledger, agents.ask_storage, agents.ask_network, self.pods)
        ends = Ends(self.ledger, self.pods, self.containers, self._tasks)
        self._watching = self._tasks.create_task(ends.watch(self.handler))

    async def restart(self) -> None:
        """What a supervisor that is killed and started again does: all of its memory is gone."""
        self.stop()
        self._build(Ledger(self.ledger.store, self.ledger.places))
        await self.recovery.run(self.unfinished)

    def stop(self) -> None:
        self._watching.cancel()

    async def run_pod(self) -> Pod:
        return self.ledger.pods.find(await self.pods.run(pod_request()))

    async def contents(self) -> list[str]:
        """All there is of pods and containers, wherever it is."""
        roots = (self.ledger.places.run, self._directory / "cgroup", self._directory / "rootfs")
        rows = self.ledger.store._database.execute("SELECT kind, id FROM record")
        return sorted(
            [
                *(f"file {path}" for root in roots for path in root.rglob("*") if path not in self._furniture()),
                *(f"mount {path}" for path in self.kernel.mounts),
                *(f"network {pod_id}" for pod_id in self.agents.network.attached),
                *(f"task {task_id}" for task_id in self.handler.held),
                *(f"row {kind} {record_id}" for kind, record_id in await self.ledger.store._run(rows.fetchall)),
                *(f"memory {pod.id}" for pod in self.ledger.pods),
                *(f"memory {one.id}" for one in self.ledger.all_containers()),
                *(f"unfinished {one}" for one in self.ledger.unfinished),
            ]
        )

    def _furniture(self) -> set[Path]:
        """What stays when the last pod is gone."""
        return {self.ledger.places.pods, self.ledger.places.bundles, self._directory / "cgroup" / PARENT.lstrip("/")}


def pod_request(change: Callable[[cri.PodSandboxConfig], None] = lambda _: None) -> PodPlan:
    """A pod with everything of its own and a shared PID namespace, always of the same name."""
    config = cri.PodSandboxConfig(metadata=cri.PodSandboxMetadata(name="web", namespace="default", uid="u"))
    change(config)
    return pod_plan(new_id(), config, "", cgroup_parent=PARENT)


def container_request(pod: Pod) -> ContainerPlan:
    """A container of the fake image, always of the same name."""
    metadata = cri.ContainerMetadata(name="main")
    return container_plan(new_id(), cri.ContainerConfig(metadata=metadata, image=cri.ImageSpec(image=NAME)), pod)


@contextlib.asynccontextmanager
async def running_rooms(directory: Path, patch: pytest.MonkeyPatch) -> AsyncIterator[Rooms]:
    """The rooms, with what they need in `directory`."""
    async with (
        open_store(directory / "supervisor.db") as store,
        running_fakes(directory) as agents,
        asyncio.TaskGroup() as tasks,
    ):
        rooms = Rooms(directory, store, agents, patch, tasks)
        yield rooms
        await rooms.pods.drain()
        await rooms.containers.drain()
        rooms.stop()
