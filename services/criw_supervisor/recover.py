"""What the supervisor does before its first call: read its state, learn what happened meanwhile, undo what never ended.

Containers went on while no supervisor ran. Exits are in conmon's files; everything that was being made when the last
supervisor died has an intent; whatever else carries our marks belongs to nobody and is removed.
"""

import asyncio
import logging
import os
import shutil
from pathlib import Path

from criw.errors import Fault
from criw.ids import is_id
from criw.namespaces import is_pinned
from criw_proto.runtime.v1 import NamespaceMode
from criw_supervisor import processes, sandbox
from criw_supervisor.cgroups import Cgroups
from criw_supervisor.containers import Containers
from criw_supervisor.exec import end_leftovers
from criw_supervisor.exits import read_exit
from criw_supervisor.launch import take_away
from criw_supervisor.pod import Container, Pod
from criw_supervisor.pods import Pods
from criw_supervisor.records import ContainerRecord, ContainerState, IntentRecord, PodRecord
from criw_supervisor.runtime import PROBE, Handlers
from criw_supervisor.state import State

log = logging.getLogger(__name__)


class Recovery:
    def __init__(
        self,
        state: State,
        handlers: Handlers,
        cgroups: Cgroups,
        pods: Pods,
        containers: Containers,
        *,
        cgroup_parent: str,
    ) -> None:
        self._state = state
        self._handlers = handlers
        self._cgroups = cgroups
        self._pods = pods
        self._containers = containers
        self._cgroup_parent = cgroup_parent

    async def run(self) -> None:
        places, store = self._state.places, self._state.store
        for directory in (places.exits, places.run / "pods", places.run / "containers"):
            directory.mkdir(parents=True, exist_ok=True)
        for intent in await store.all(IntentRecord):
            try:
                await self._undo(intent)
            except Fault as err:
                log.warning("cannot undo what was not finished", extra={"id": intent.id, "error": str(err)})
        for pod_record in sorted(await store.all(PodRecord), key=lambda one: one.created_at_ns):
            self._state.pods.add(Pod(pod_record, places.pod(pod_record.id)))
        for record in sorted(await store.all(ContainerRecord), key=lambda one: one.created_at_ns):
            self._state.add_container(Container(record, places.bundle(record.id)))
        await asyncio.to_thread(self._sweep)
        for container in [*self._state.containers, *self._state.infra.values()]:
            try:
                await self._catch_up(container)
            except Fault as err:
                log.warning("cannot tell how it is with a container", extra={"id": container.id, "error": str(err)})
        running = [one for one in self._state.containers if one.record.state is ContainerState.RUNNING]
        await asyncio.to_thread(end_leftovers, running, self._cgroups)
        for pod in self._state.pods:
            if pod.ready and not self._is_whole(pod):
                await self._pods.lose(pod)

    async def _undo(self, intent: IntentRecord) -> None:
        log.info("undoing what was not finished", extra={"what": intent.what, "id": intent.id})
        places = self._state.places
        handler = self._handlers.of_record(intent.runtime)
        if intent.what == "pod":
            inner = f"{intent.cgroup}/{intent.id}"
            await take_away(handler, self._cgroups, places, intent.id, inner, ended=False)
            await asyncio.to_thread(sandbox.remove, places.pod(intent.id))
            if intent.owns_cgroup:
                await asyncio.to_thread(self._cgroups.remove_empty, intent.cgroup, upto=self._cgroup_parent)
        else:
            await take_away(handler, self._cgroups, places, intent.id, intent.cgroup, ended=False)
        await self._state.store.delete(intent)

    async def _catch_up(self, container: Container) -> None:
        """Bring a container's record to what is true now."""
        record = container.record
        if record.state is ContainerState.EXITED:
            return
        if read_exit(self._state.places.exits, record.id) is not None or not self._is_watched(container):
            await self._containers.handle_end(container)
        elif record.state is ContainerState.CREATED:
            handler = self._handlers.of_record(record.runtime)
            if await handler.status(record.id) == "running":  # started, but the answer was never given
                await self._containers.note_started(container)

    def _is_watched(self, container: Container) -> bool:
        """Whether conmon is there to tell of the container's end."""
        try:
            conmon = int((container.bundle / "conmon.pid").read_text())
        except (FileNotFoundError, ValueError):
            return False
        return os.fspath(container.bundle) in processes.command_line(conmon)

    def _is_whole(self, pod: Pod) -> bool:
        """Whether the pod still has its namespaces and its infra process (a reboot takes them)."""
        if not pod.files.directory.is_dir():
            return False
        pins = []
        if pod.options.network != NamespaceMode.NODE:
            pins += [Path(pod.record.netns), pod.files.uts]
        if pod.options.ipc != NamespaceMode.NODE:
            pins.append(pod.files.ipc)
        infra = self._state.infra.get(pod.id)
        alive = infra is None or infra.record.state is ContainerState.RUNNING
        return alive and all(is_pinned(pin) for pin in pins)

    def _sweep(self) -> None:
        """Remove what has our marks and no record: directories with their mounts, exit files, cgroups."""
        places = self._state.places
        pods = {pod.id for pod in self._state.pods}
        containers = {one.id for one in self._state.containers} | {one.id for one in self._state.infra.values()}
        for directory in (places.run / "pods").iterdir():
            if directory.name not in pods:
                log.info("removing a pod directory without a record", extra={"pod": directory.name})
                sandbox.remove(places.pod(directory.name))
        for directory in (places.run / "containers").iterdir():
            if directory.name not in containers:
                log.info("removing a bundle without a record", extra={"container": directory.name})
                shutil.rmtree(directory)
        for path in places.exits.iterdir():
            if path.name not in containers:
                path.unlink()
        for left in (places.run / "runtime").rglob(f"{PROBE}*"):
            shutil.rmtree(left, ignore_errors=True)
        for cgroup in self._cgroups.children(self._cgroup_parent):
            # Names only we give: an administrator may have chosen a parent that others use, too.
            if (is_id(cgroup) or cgroup.startswith(PROBE)) and cgroup not in pods:
                self._sweep_cgroup(f"{self._cgroup_parent}/{cgroup}")

    def _sweep_cgroup(self, cgroup: str) -> None:
        log.info("removing a cgroup without a pod", extra={"cgroup": cgroup})
        try:
            self._cgroups.kill(cgroup)
            self._cgroups.remove(cgroup)
            self._cgroups.remove_empty(self._cgroup_parent, upto=self._cgroup_parent)
        except Fault as err:
            log.warning("cannot remove a cgroup without a pod", extra={"cgroup": cgroup, "error": str(err)})
