"""ReopenContainerLog."""

from pathlib import Path

from criw.errors import FailedPrecondition
from criw_supervisor.containers.lookups import Lookups
from criw_supervisor.ledger.container import Container
from criw_supervisor.ledger.ledger import Ledger
from criw_supervisor.runtimes.handler import task_of
from criw_supervisor.runtimes.handlers import Handlers


async def reopen(container: Container, *, ledger: Ledger, handlers: Handlers, lookups: Lookups) -> None:
    """Have the log written to a new file at its path. Raises FailedPrecondition if the container writes none."""
    async with ledger.container_locks.hold(container.id):  # a second one would replace a file just begun
        record = container.record
        if not container.running:
            raise FailedPrecondition(
                f"cannot reopen the log of container {container.id}: it is {record.state}, not running"
            )
        if not record.log_path:
            raise FailedPrecondition(f"cannot reopen the log of container {container.id}: it was created without one")
        await lookups.log_directory(record.log_path)
        await handlers.of_record(record.runtime).reopen_log(task_of(record), Path(record.log_path))
