"""Changing the limits of a container that exists (UpdateContainerResources)."""

from criw.errors import FailedPrecondition
from criw_proto.runtime.v1 import LinuxContainerResources
from criw_supervisor.containers import Containers
from criw_supervisor.pod import Container
from criw_supervisor.records import ContainerState
from criw_supervisor.runtime import Handlers
from criw_supervisor.spec import resources
from criw_supervisor.spec.container import Host
from criw_supervisor.state import State


class Updates:
    def __init__(self, state: State, handlers: Handlers, containers: Containers, host: Host) -> None:
        self._state = state
        self._handlers = handlers
        self._containers = containers
        self._host = host

    async def update(self, container: Container, change: LinuxContainerResources) -> None:
        """Put the fields that are set into force; those that are 0 or empty stay as they are.

        Raises FailedPrecondition for a container that has ended, InvalidArgument for numbers that mean nothing,
        Failed with what the runtime said; nothing is recorded then.
        """
        resources.check(change)
        async with self._state.container_locks.hold(container.id):
            if container.record.state is ContainerState.EXITED:
                raise FailedPrecondition(f"cannot update the resources of container {container.id}: it has ended")
            allowed = resources.supported(change, cgroup_v2=self._host.cgroup_v2, swap=self._host.swap)
            # Only what changes goes to the runtime: it would set everything else again.
            if wanted := resources.oci(allowed):
                await self._handlers.of_record(container.record.runtime).update(container.id, wanted)
            now = LinuxContainerResources.parse(container.record.resources)
            await self._containers.save_resources(container, resources.merged(now, allowed))
