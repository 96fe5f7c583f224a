"""RemoveContainer."""

from criw.operations import together
from criw_supervisor.ledger.container import Container
from criw_supervisor.ledger.ledger import Ledger
from criw_supervisor.peers.storage import Storage
from criw_supervisor.runtimes.handler import task_of
from criw_supervisor.runtimes.handlers import Handlers


async def remove(container: Container, *, ledger: Ledger, handlers: Handlers, storage: Storage) -> None:
    """Remove everything of a stopped container but its log. One that is gone already is a success."""
    async with ledger.container_locks.hold(container.id):
        if ledger.container(container.id) is not container:
            return
        record = container.record
        await together(
            handlers.of_record(record.runtime).delete(task_of(record), ended=True),
            *(() if record.infra else (storage.remove_rootfs(record.id),)),
        )
        await ledger.forget(container)
