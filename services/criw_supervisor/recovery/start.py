"""What the supervisor does before its first call: read its state, learn what happened meanwhile, undo what never ended.

Containers went on while no supervisor ran. Their ends are with their handlers; everything that was being made when the
last supervisor died has an intent; whatever else carries our marks belongs to nobody and is removed.
"""

import asyncio
import logging
import shutil
from pathlib import Path

from criw.errors import Fault
from criw.ids import is_id
from criw.namespaces import is_pinned
from criw_proto.runtime.v1 import NamespaceMode
from criw_supervisor.cgroups.hierarchies import Cgroups
from criw_supervisor.containers.containers import Containers
from criw_supervisor.ledger.container import Container
from criw_supervisor.ledger.ledger import Ledger
from criw_supervisor.ledger.pod import Pod
from criw_supervisor.ledger.states import ContainerState
from criw_supervisor.pods import namespaces
from criw_supervisor.pods.pods import Pods
from criw_supervisor.recovery.leftovers import end_leftovers
from criw_supervisor.recovery.unfinished import Unfinished
from criw_supervisor.runtimes.bundle import Bundle
from criw_supervisor.runtimes.handler import task_of
from criw_supervisor.runtimes.handlers import Handlers
from criw_supervisor.runtimes.oci import PROBE

log = logging.getLogger(__name__)


class Recovery:
    def __init__(
        self, ledger: Ledger, handlers: Handlers, cgroups: Cgroups, pods: Pods, containers: Containers, *,
        cgroup_parent: str,
    ) -> None:  # fmt: skip
        self._ledger = ledger
        self._handlers = handlers
        self._cgroups = cgroups
        self._pods = pods
        self._containers = containers
        self._cgroup_parent = cgroup_parent

    async def run(self, unfinished: Unfinished) -> None:
        places = self._ledger.places
        for directory in (places.pods, places.bundles):
            directory.mkdir(parents=True, exist_ok=True)
        await self._ledger.load()
        await unfinished.undo_all()
        await asyncio.to_thread(self._sweep)
        for container in self._ledger.all_containers():
            try:
                await self._catch_up(container)
            except Fault as err:
                log.warning("cannot tell how it is with a container", extra={"id": container.id, "error": str(err)})
        running = [(Bundle(places.bundle(one.id)), one.record.cgroup) for one in self._ledger.containers if one.running]
        await asyncio.to_thread(end_leftovers, running, self._cgroups)
        for pod in self._ledger.pods:
            if pod.ready and not self._is_whole(pod):
                await self._pods.lose(pod)

    async def _catch_up(self, container: Container) -> None:
        """Bring a container's record to what is true now, and have its end told."""
        record, task = container.record, task_of(container.record)
        if record.state is ContainerState.EXITED:
            return
        handler = self._handlers.of_record(record.runtime)
        if await handler.end_of(task) is not None:
            await self._containers.handle_end(container)
            return
        if record.state is ContainerState.CREATED and await handler.recover(task):
            await self._containers.note_started(container)  # started, but the answer was never given
        handler.watch(task)

    def _is_whole(self, pod: Pod) -> bool:
        """Whether the pod still has its namespaces and its infra process (a reboot takes them)."""
        infra = self._ledger.infra.get(pod.id)
        own_network = pod.options.network != NamespaceMode.NODE
        return (
            (infra is None or infra.running)
            and (not own_network or is_pinned(Path(pod.record.netns)))
            and namespaces.are_whole(pod.files, own_uts=own_network, own_ipc=pod.options.ipc != NamespaceMode.NODE)
        )

    def _sweep(self) -> None:
        """Remove what has our marks and no record: directories with their mounts, cgroups."""
        places, ledger = self._ledger.places, self._ledger
        for directory in places.pods.iterdir():
            if not ledger.knows(directory.name):
                log.info("removing a pod directory without a record", extra={"pod": directory.name})
                namespaces.remove(places.pod(directory.name))
        for directory in places.bundles.iterdir():
            if not ledger.knows(directory.name):
                log.info("removing a bundle without a record", extra={"container": directory.name})
                shutil.rmtree(directory)
        for left in (places.run / "runtime").rglob(f"{PROBE}*"):
            shutil.rmtree(left, ignore_errors=True)
        for cgroup in self._cgroups.children(self._cgroup_parent):
            # Names only we give: an administrator may have chosen a parent that others use, too.
            if (is_id(cgroup) or cgroup.startswith(PROBE)) and not ledger.knows(cgroup):
                self._sweep_cgroup(f"{self._cgroup_parent}/{cgroup}")

    def _sweep_cgroup(self, cgroup: str) -> None:
        log.info("removing a cgroup without a pod", extra={"cgroup": cgroup})
        try:
            self._cgroups.kill(cgroup)
            self._cgroups.remove(cgroup)
            self._cgroups.remove_empty(self._cgroup_parent, upto=self._cgroup_parent)
        except Fault as err:
            log.warning("cannot remove a cgroup without a pod", extra={"cgroup": cgroup, "error": str(err)})
