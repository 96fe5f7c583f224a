"""The supervisor process."""

import asyncio
import logging
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing
from functools import partial
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry, Gauge

from criw.config.supervisor import SupervisorSettings
from criw.errors import Fault
from criw.rpc.client import Channel
from criw.rpc.server import Servable
from criw.service import Context, run_service
from criw.store import open_store
from criw_proto.criw.image.v1 import ImagesStub
from criw_proto.criw.network.v1 import NetworkStub
from criw_proto.criw.storage.v1 import DiskStub, RootfsStub
from criw_supervisor import processes
from criw_supervisor.cgroups import Cgroups
from criw_supervisor.containers import Agents, Containers
from criw_supervisor.exec import Execs
from criw_supervisor.exits import exits
from criw_supervisor.index import Index
from criw_supervisor.pod import Container, Pod
from criw_supervisor.pods import Pods
from criw_supervisor.reconcile import Reconcile
from criw_supervisor.records import ContainerState, PodState
from criw_supervisor.recover import Recovery
from criw_supervisor.rpc import RuntimeRpc
from criw_supervisor.runtime import probe_handlers
from criw_supervisor.spec import capabilities
from criw_supervisor.spec.container import Host
from criw_supervisor.spec.resources import OomScore
from criw_supervisor.state import Places, State
from criw_supervisor.stats import Stats
from criw_supervisor.update import Updates

log = logging.getLogger(__name__)
_RETRY_S: Final = 5.0


def main(argv: Sequence[str] | None = None) -> None:
    run_service("supervisor", SupervisorSettings, build, argv)


@asynccontextmanager
async def build(context: Context[SupervisorSettings]) -> AsyncIterator[Collection[Servable]]:
    config, section = context.config, context.config.supervisor
    processes.become_subreaper()
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(open_store(config.state_dir("supervisor") / "supervisor.db"))
        storage = stack.enter_context(closing(Channel(config.socket("storage"))))
        rootfs = RootfsStub(storage)
        network = NetworkStub(stack.enter_context(closing(Channel(config.socket("network")))))
        images = ImagesStub(stack.enter_context(closing(Channel(config.socket("image")))))
        state = State(store, Places(config.run_dir("supervisor")))
        stack.callback(state.monitors.close)
        _measure(context.metrics.registry, state)
        cgroups = Cgroups()
        handlers = await probe_handlers(section, state.places.run)
        parent = section.cgroup_parent
        await asyncio.to_thread(cgroups.remove_empty, parent, upto=parent)  # where the probes were
        host = _host(cgroups, section.pids_limit)
        reconcile = Reconcile(state, rootfs, network)
        containers = Containers(state, handlers, cgroups, host, Agents(images, rootfs), reconcile)
        pods = Pods(state, handlers, cgroups, containers, network, reconcile, cgroup_parent=parent)
        await Recovery(state, handlers, cgroups, pods, containers, cgroup_parent=parent).run()
        reconcile.request()
        execs = Execs(handlers, output_limit=section.exec_output_limit_bytes)
        updates = Updates(state, handlers, containers, host)
        stats = Stats(state, cgroups, DiskStub(storage), network)
        async with asyncio.TaskGroup() as tasks:
            ends = Ends(state, pods, containers, tasks)
            background = [
                tasks.create_task(ends.watch_exits(), name="exits"),
                tasks.create_task(ends.watch_monitors(), name="monitors"),
                tasks.create_task(reconcile.run(), name="reconcile"),
                tasks.create_task(processes.reap_strays(), name="reap"),
            ]
            yield [RuntimeRpc(section, state, handlers, pods, containers, execs, updates, stats, network)]
            await pods.drain()
            await containers.drain()
            for task in background:
                task.cancel()


class Ends:
    """Has the end of every container recorded, each in a task of its own."""

    def __init__(self, state: State, pods: Pods, containers: Containers, tasks: asyncio.TaskGroup) -> None:
        self._state = state
        self._pods = pods
        self._containers = containers
        self._tasks = tasks

    async def watch_exits(self) -> None:
        async for found in exits(self._state.places.exits):
            if (container := self._state.known_container(found.container_id)) is not None:
                self._tasks.create_task(self._ended(container), name=f"exit {container.id}")
            elif found.container_id not in self._state.pending:
                # It was removed before its conmon came to write.
                (self._state.places.exits / found.container_id).unlink(missing_ok=True)

    async def watch_monitors(self) -> None:
        while True:
            container = await self._state.monitors.ended.get()
            if self._state.known_container(container.id) is container:
                self._tasks.create_task(self._ended(container), name=f"conmon {container.id}")

    async def _ended(self, container: Container) -> None:
        try:
            await self._containers.handle_end(container)
            if container.record.infra and (pod := self._state.pods.get(container.record.pod_id)) is not None:
                await self._pods.lose(pod)
        except Fault as err:  # a full disk: it must not be taken for running until somebody stops it
            log.warning("cannot record the end of a container yet", extra={"id": container.id, "error": str(err)})
            asyncio.get_running_loop().call_later(_RETRY_S, self._state.monitors.ended.put_nowait, container)
        except Exception:  # one container's trouble must not end the watch over the others
            log.exception("cannot record the end of a container", extra={"container": container.id})


def _measure(registry: CollectorRegistry, state: State) -> None:
    pods = Gauge("criw_supervisor_pods", "Pod sandboxes, by state.", ["state"], registry=registry)
    containers = Gauge("criw_supervisor_containers", "Containers, by state.", ["state"], registry=registry)
    for pod_state in PodState:
        pods.labels(pod_state).set_function(partial(_count, state.pods, pod_state))
    for container_state in ContainerState:
        containers.labels(container_state).set_function(partial(_count, state.containers, container_state))


def _count(index: Index[Pod] | Index[Container], wanted: PodState | ContainerState) -> float:
    return sum(item.record.state == wanted for item in index)


def _host(cgroups: Cgroups, pids_limit: int) -> Host:
    held = capabilities.held_by_us()
    memory = cgroups.directory("memory", "")
    swap = Path("/proc/swaps").read_text().count("\n") > 1 if cgroups.v2 else False
    if memory is not None and not cgroups.v2:
        swap = (memory / "memory.memsw.limit_in_bytes").exists()
    return Host(
        cgroup_v2=cgroups.v2,
        swap=swap,
        held=held,
        oom_score=OomScore(may_lower="SYS_RESOURCE" in held),
        pids_limit=pids_limit,
    )


if __name__ == "__main__":
    main()
