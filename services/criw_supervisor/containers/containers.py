"""The operations on containers: each runs once at a time, outlives its caller, and is joined by a second one."""

import asyncio

from criw.ids import new_id
from criw.operations import Operations
from criw_proto.runtime.v1 import LinuxContainerResources
from criw_supervisor.containers import end, start, stop, update
from criw_supervisor.containers.create import CreateContainer
from criw_supervisor.containers.remove import remove
from criw_supervisor.containers.request import ContainerPlan
from criw_supervisor.ledger.container import Container
from criw_supervisor.ledger.ledger import Ledger
from criw_supervisor.ledger.pod import Pod
from criw_supervisor.oci.document import Host
from criw_supervisor.peers.storage import Storage
from criw_supervisor.runtimes.handlers import Handlers


class Containers:
    def __init__(
        self, ledger: Ledger, handlers: Handlers, storage: Storage, create: CreateContainer, host: Host
    ) -> None:
        self._ledger = ledger
        self._handlers = handlers
        self._storage = storage
        self._create = create
        self._host = host
        self._operations = Operations()
        self._stops = Operations()
        self._kills = asyncio.Semaphore(stop.KILLS_AT_ONCE)

    async def drain(self) -> None:
        """Wait until every operation in progress has ended. Stops are given up: their grace may be hours.

        The container's next stop, after a restart, does all of it again.
        """
        await self._stops.cancel()
        await self._operations.drain()

    async def create(self, pod: Pod, plan: ContainerPlan) -> str:
        """CreateContainer: its id. The same request again, also while the first is in progress, gives the same id."""
        key = f"create {pod.id} {plan.name} {plan.digest}"
        return await self._operations.run(key, lambda: self._create.create(pod, plan))

    async def start(self, container: Container) -> None:
        """StartContainer."""
        await self._operations.run(
            f"start {container.id}", lambda: start.start(container, ledger=self._ledger, handlers=self._handlers)
        )

    async def note_started(self, container: Container) -> None:
        """Record that a container runs whose start was carried out but never acknowledged."""
        await start.note_started(container, ledger=self._ledger)

    async def handle_end(self, container: Container) -> None:
        """Record the end of a container, if it has ended."""
        await end.record_end(container, ledger=self._ledger, handlers=self._handlers)

    async def stop(self, container: Container, *, grace_s: float) -> None:
        """StopContainer: SIGKILL comes after `grace_s` seconds.

        A call with a shorter grace while another waits shortens the wait.
        """
        stopping = stop.request_stop(container, grace_s)
        await self._stops.run(
            f"stop {container.id}",
            lambda: stop.stop(container, stopping, ledger=self._ledger, handlers=self._handlers, turns=self._kills),
        )

    async def remove(self, container: Container) -> None:
        """Kill the container if it runs and remove everything of it but its log."""
        await self._operations.run(f"remove {container.id}", lambda: self._stop_and_remove(container))

    async def _stop_and_remove(self, container: Container) -> None:
        await self.stop(container, grace_s=0)
        await remove(container, ledger=self._ledger, handlers=self._handlers, storage=self._storage)

    async def update(self, container: Container, change: LinuxContainerResources) -> None:
        """UpdateContainerResources. Calls for one container come one after the other."""
        key = f"update {container.id} {new_id()}"  # not joined: what another asked for may have come between
        await self._operations.run(
            key,
            lambda: update.update(container, change, ledger=self._ledger, handlers=self._handlers, host=self._host),
        )
