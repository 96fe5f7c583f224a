"""StartContainer."""

import logging
import time
from typing import Final

from criw.errors import FailedPrecondition, Fault
from criw_supervisor.containers.end import ended
from criw_supervisor.ledger.container import Container
from criw_supervisor.ledger.ledger import Ledger
from criw_supervisor.ledger.states import ContainerState, Reason
from criw_supervisor.runtimes.handler import Handler, Task, task_of
from criw_supervisor.runtimes.handlers import Handlers

log = logging.getLogger(__name__)
START_FAILED_CODE: Final = 128


async def start(container: Container, *, ledger: Ledger, handlers: Handlers) -> None:
    """Run the container's command. One that cannot be run is EXITED with reason StartError afterwards."""
    async with ledger.container_locks.hold(container.id):
        pod = ledger.pods.get(container.record.pod_id)
        if pod is None or not pod.ready:
            raise FailedPrecondition(f"cannot start container {container.id}: its pod sandbox is not ready")
        if container.record.state is not ContainerState.CREATED:
            raise FailedPrecondition(
                f"cannot start container {container.id}: it is {container.record.state}; it starts only once"
            )
        handler, task = handlers.of_record(container.record.runtime), task_of(container.record)
        now = time.time_ns()  # before the start: nothing ends before it began
        try:
            await handler.start(task)
        except FailedPrecondition:  # the runtime was not asked
            raise
        except Fault as err:
            if not await _runs(handler, task):
                await ended(
                    container, ledger=ledger, handlers=handlers, code=START_FAILED_CODE, at_ns=time.time_ns(),
                    reason=Reason.START_ERROR, message=str(err),
                )  # fmt: skip
                raise
            log.warning("a container runs that failed to start", extra={"id": container.id, "error": str(err)})
        await ledger.save(container, container.record.moved(ContainerState.RUNNING, started_at_ns=now))


async def _runs(handler: Handler, task: Task) -> bool:
    """Whether a container runs although its start failed: it was started before, say, and nobody learned of it."""
    try:
        return await handler.recover(task)
    except Fault:
        return False


async def note_started(container: Container, *, ledger: Ledger) -> None:
    """Record that a container runs whose start was carried out but never acknowledged."""
    async with ledger.container_locks.hold(container.id):
        await ledger.save(container, container.record.moved(ContainerState.RUNNING, started_at_ns=time.time_ns()))
