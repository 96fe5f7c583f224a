"""The supervisor process."""

import asyncio
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing
from functools import partial
from pathlib import Path

from prometheus_client import CollectorRegistry, Gauge

from criw import orphans
from criw.config.supervisor import SupervisorSettings
from criw.rpc.client import Channel
from criw.rpc.server import Servable
from criw.service import Context, run_service
from criw.store import open_store
from criw_proto.criw.image.v1 import ImagesStub
from criw_proto.criw.network.v1 import NetworkStub
from criw_proto.criw.storage.v1 import DiskStub, RootfsStub
from criw_proto.criw.streams.v1 import StreamsStub
from criw_supervisor.cgroups import hierarchies
from criw_supervisor.cgroups.claim import claimed
from criw_supervisor.cgroups.hierarchies import Cgroups
from criw_supervisor.containers.containers import Containers
from criw_supervisor.containers.create import CreateContainer
from criw_supervisor.containers.rpc import ContainersFace
from criw_supervisor.ends import Ends
from criw_supervisor.exec.rpc import ExecFace
from criw_supervisor.exec.sessions import Sessions
from criw_supervisor.exec.sync import Execs
from criw_supervisor.ledger.container import Container
from criw_supervisor.ledger.index import Index
from criw_supervisor.ledger.ledger import Ledger
from criw_supervisor.ledger.places import Places
from criw_supervisor.ledger.pod import Pod
from criw_supervisor.ledger.states import ContainerState, PodState
from criw_supervisor.oci import capabilities
from criw_supervisor.oci.document import Host
from criw_supervisor.oci.resources import OomScore
from criw_supervisor.peers.images import Images
from criw_supervisor.peers.network import Network
from criw_supervisor.peers.storage import Storage
from criw_supervisor.peers.streams import Streams
from criw_supervisor.pods.pods import Pods
from criw_supervisor.pods.rpc import PodsFace
from criw_supervisor.pods.run import RunPod
from criw_supervisor.recovery.reconcile import Reconcile
from criw_supervisor.recovery.start import Recovery
from criw_supervisor.recovery.unfinished import Unfinished
from criw_supervisor.rpc import RuntimeRpc
from criw_supervisor.runtimes.handlers import probe_handlers
from criw_supervisor.stats.of_containers import ContainerStats
from criw_supervisor.stats.of_pods import PodStats
from criw_supervisor.stats.rpc import StatsFace

_APPARMOR = Path("/sys/module/apparmor/parameters/enabled")
_SELINUX = Path("/sys/fs/selinux/enforce")


def main(argv: Sequence[str] | None = None) -> None:
    run_service("supervisor", SupervisorSettings, build, argv)


@asynccontextmanager
async def build(context: Context[SupervisorSettings]) -> AsyncIterator[Collection[Servable]]:
    config, section = context.config, context.config.supervisor
    orphans.become_subreaper()
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(open_store(config.state_dir("supervisor") / "supervisor.db"))
        disk = stack.enter_context(closing(Channel(config.socket("storage"))))
        storage = Storage(RootfsStub(disk), DiskStub(disk))
        network = Network(NetworkStub(stack.enter_context(closing(Channel(config.socket("network"))))))
        streams = Streams(StreamsStub(stack.enter_context(closing(Channel(config.socket("streams"))))))
        images = Images(ImagesStub(stack.enter_context(closing(Channel(config.socket("image"))))))
        ledger = Ledger(store, Places(config.run_dir("supervisor")))
        cgroups, parent = hierarchies.of_host(), section.cgroup_parent
        stack.enter_context(claimed(cgroups, parent, owner=config.state_dir("supervisor")))
        handlers = stack.enter_context(closing(await probe_handlers(section, ledger.places, cgroups)))
        host = _host(cgroups, section.pids_limit)
        create = CreateContainer(ledger, handlers, images, storage, host)
        containers = Containers(ledger, handlers, storage, create, host)
        run = RunPod(ledger, handlers, cgroups, network)
        pods = Pods(ledger, cgroups, containers, network, run)
        unfinished = Unfinished(ledger, {"pod": run.undo, "container": create.undo})
        _measure(context.metrics.registry, ledger, unfinished)
        await Recovery(ledger, handlers, cgroups, pods, containers, cgroup_parent=parent).run(unfinished)
        reconcile = Reconcile(ledger, storage, network, pods)
        of_containers = ContainerStats(handlers, storage)
        faces = [
            PodsFace(ledger, pods, cgroup_parent=parent),
            ContainersFace(ledger, handlers, containers),
            ExecFace(
                ledger,
                Execs(handlers, ledger.places, output_limit=section.exec_output_limit_bytes),
                Sessions(handlers, ledger.places, streams, config.run_dir("streams")),
            ),
            StatsFace(ledger, of_containers, PodStats(ledger, cgroups, network, of_containers)),
        ]
        async with asyncio.TaskGroup() as tasks:
            ends = Ends(ledger, pods, containers, tasks)
            background = [
                *(tasks.create_task(ends.watch(one), name=f"ends {one.name}") for one in handlers.all),
                tasks.create_task(unfinished.run(), name="unfinished"),
                tasks.create_task(reconcile.run(), name="reconcile"),
                tasks.create_task(orphans.reap_strays(), name="reap"),
            ]
            yield [RuntimeRpc(section, ledger.places, handlers, network, faces, unfinished.failed)]
            await pods.drain()
            await containers.drain()
            for task in background:
                task.cancel()


def _measure(registry: CollectorRegistry, ledger: Ledger, waiting: Unfinished) -> None:
    pods = Gauge("criw_supervisor_pods", "Pod sandboxes, by state.", ["state"], registry=registry)
    containers = Gauge("criw_supervisor_containers", "Containers, by state.", ["state"], registry=registry)
    unfinished = Gauge(
        "criw_supervisor_unfinished", "What is being made, or undone after a failure.", registry=registry
    )
    failed = Gauge("criw_supervisor_failed", "What failed and is tried again: see Status.", registry=registry)
    failures = Gauge("criw_supervisor_failures", "Attempts to undo or recover that failed.", registry=registry)
    failed.set_function(lambda: len(waiting.failed))
    failures.set_function(lambda: waiting.failures)
    for pod_state in PodState:
        pods.labels(pod_state).set_function(partial(_count, ledger.pods, pod_state))
    for container_state in ContainerState:
        containers.labels(container_state).set_function(partial(_count, ledger.containers, container_state))
    unfinished.set_function(lambda: len(ledger.unfinished))


def _count(index: Index[Pod] | Index[Container], wanted: PodState | ContainerState) -> float:
    return sum(item.record.state == wanted for item in index)


def _host(cgroups: Cgroups, pids_limit: int) -> Host:
    held = capabilities.bounding_set(Path("/proc/self/status").read_text())
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
        apparmor=_APPARMOR.exists() and _APPARMOR.read_text().startswith("Y"),
        selinux=_SELINUX.exists(),
    )


if __name__ == "__main__":
    main()
