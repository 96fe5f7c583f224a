"""UpdateContainerResources."""

from criw.errors import FailedPrecondition
from criw_proto.runtime.v1 import LinuxContainerResources
from criw_supervisor.ledger.container import Container
from criw_supervisor.ledger.ledger import Ledger
from criw_supervisor.ledger.states import ContainerState
from criw_supervisor.oci import resources
from criw_supervisor.oci.document import Host
from criw_supervisor.runtimes.handler import task_of
from criw_supervisor.runtimes.handlers import Handlers


async def update(
    container: Container, change: LinuxContainerResources, *, ledger: Ledger, handlers: Handlers, host: Host
) -> None:
    """Put the fields that are set into force; those that are 0 or empty stay as they are.

    Raises FailedPrecondition for a container that has ended, InvalidArgument for numbers that mean nothing,
    Failed with what the runtime said; nothing is recorded then.
    """
    resources.check(change)
    async with ledger.container_locks.hold(container.id):
        record = container.record
        if record.state is ContainerState.EXITED:
            raise FailedPrecondition(f"cannot update the resources of container {container.id}: it has ended")
        allowed = resources.supported(change, cgroup_v2=host.cgroup_v2, swap=host.swap)
        handler = handlers.of_record(record.runtime)
        # Only what changes goes to the runtime: it would set everything else again.
        if wanted := resources.oci(allowed):
            await handler.update(task_of(record), wanted)
        if change.oom_score_adj:
            await handler.set_oom_score(task_of(record), host.oom_score.clamped(change.oom_score_adj))
        now = resources.merged(LinuxContainerResources.parse(record.resources), allowed)
        await ledger.save(container, record.model_copy(update={"resources": bytes(now)}))
