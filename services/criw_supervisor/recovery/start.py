"""What the supervisor does before its first call: read its state, learn what happened meanwhile, undo what never ended.

Containers went on while no supervisor ran. Their ends are with their handlers; everything that was being made when the
last supervisor died has an intent; whatever else carries our marks belongs to nobody and is removed. Only the store and
our own directories may keep it from starting: whatever else fails is told, and done later (`recovery.unfinished`).
"""

import asyncio
from functools import partial

from criw_supervisor.cgroups.hierarchies import Cgroups
from criw_supervisor.containers.containers import Containers
from criw_supervisor.ledger.container import Container
from criw_supervisor.ledger.ledger import Ledger
from criw_supervisor.ledger.states import ContainerState
from criw_supervisor.pods.pods import Pods
from criw_supervisor.recovery.leftovers import await_runtimes, end_commands
from criw_supervisor.recovery.sweep import sweep
from criw_supervisor.recovery.unfinished import Unfinished
from criw_supervisor.runtimes.bundle import Bundle
from criw_supervisor.runtimes.handler import task_of
from criw_supervisor.runtimes.handlers import Handlers


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
        places, ledger = self._ledger.places, self._ledger
        for directory in (places.pods, places.bundles):
            directory.mkdir(parents=True, exist_ok=True)
        await ledger.load()
        await unfinished.undo_all()
        await sweep(ledger, self._cgroups, cgroup_parent=self._cgroup_parent, unfinished=unfinished)
        await unfinished.attempt("wait for runtimes", self._await_runtimes)
        there = [one for one in ledger.all_containers() if one.record.state is not ContainerState.EXITED]
        await asyncio.gather(
            *(unfinished.attempt(f"catch up with container {one.id}", partial(self._catch_up, one)) for one in there)
        )
        await unfinished.attempt("look for broken pods", self._pods.lose_broken)

    async def _await_runtimes(self) -> None:
        containers, bundle = self._ledger.all_containers(), self._ledger.places.bundle
        created = [one.id for one in containers if one.record.state is ContainerState.CREATED]
        running = [Bundle(bundle(one.id)) for one in containers if one.running]
        await await_runtimes(created, running, known=[one.id for one in containers])

    async def _catch_up(self, container: Container) -> None:
        """Bring a container's record to what is true now, end the commands left in it, and have its end told."""
        record, task = container.record, task_of(container.record)
        if record.state is ContainerState.EXITED:
            return
        handler = self._handlers.of_record(record.runtime)
        if await handler.end_of(task) is not None:
            await self._containers.handle_end(container)
            return
        handler.watch(task)  # first: what follows may fail, and be tried again much later
        if record.state is ContainerState.CREATED and await handler.recover(task):
            await self._containers.note_started(container)  # started, but the answer was never given
        if container.running:
            bundle = Bundle(self._ledger.places.bundle(container.id))
            await end_commands(bundle, record.cgroup, self._cgroups)
