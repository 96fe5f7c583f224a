"""News of ends, from all handlers: each is recorded in a task of its own."""

import asyncio
import logging
from typing import Final

from criw.errors import Fault
from criw_supervisor.containers.containers import Containers
from criw_supervisor.ledger.container import Container
from criw_supervisor.ledger.ledger import Ledger
from criw_supervisor.pods.pods import Pods
from criw_supervisor.runtimes.handler import Handler, task_of

log = logging.getLogger(__name__)
_RETRY_S: Final = 5.0


class Ends:
    def __init__(self, ledger: Ledger, pods: Pods, containers: Containers, tasks: asyncio.TaskGroup) -> None:
        self._ledger = ledger
        self._pods = pods
        self._containers = containers
        self._tasks = tasks

    async def watch(self, handler: Handler) -> None:
        """Have every end that `handler` tells recorded, for ever."""
        async for container_id in handler.ends():
            if (container := self._ledger.container(container_id)) is not None:
                self._tasks.create_task(self._ended(container, handler), name=f"end of {container_id}")

    async def _ended(self, container: Container, handler: Handler) -> None:
        try:
            await self._containers.handle_end(container)
            if container.record.infra and (pod := self._ledger.pods.get(container.record.pod_id)) is not None:
                await self._pods.lose(pod)
        except Exception as err:  # one container's trouble must not end the watch over the others
            unforeseen = not isinstance(err, Fault | OSError)
            log.warning("cannot record an end yet", extra={"id": container.id, "error": str(err)}, exc_info=unforeseen)
            # It must not be taken for running until somebody stops it.
            asyncio.get_running_loop().call_later(_RETRY_S, handler.watch, task_of(container.record))
