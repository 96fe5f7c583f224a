"""StopContainer."""

import asyncio
import contextlib
import signal
from typing import Final

from criw.errors import Unavailable
from criw_supervisor.containers.end import record_end
from criw_supervisor.ledger.container import Container, Stopping
from criw_supervisor.ledger.ledger import Ledger
from criw_supervisor.runtimes.handler import task_of
from criw_supervisor.runtimes.handlers import Handlers

KILL_LIMIT_S: Final = 10.0
KILLS_AT_ONCE: Final = 4  # the ends of hundreds at once would keep every other call waiting
_TURN_S: Final = 0.2  # for one that ends as it should; no longer, as one in the kernel may not


def request_stop(container: Container, grace_s: float) -> Stopping:
    """The stop in progress or a new one, with SIGKILL at the earliest time anybody asked for."""
    deadline = asyncio.get_running_loop().time() + max(grace_s, 0)
    if container.stopping is None:
        container.stopping = Stopping(deadline)
    elif deadline < container.stopping.deadline:
        container.stopping.deadline = deadline
        container.stopping.moved.set()
    return container.stopping


async def stop(
    container: Container, stopping: Stopping, *, ledger: Ledger, handlers: Handlers, turns: asyncio.Semaphore
) -> None:
    """Send the stop signal, wait until the deadline, then kill, in turn with others; return once the exit is recorded.

    Raises Unavailable if the container is still alive some seconds after SIGKILL.
    """
    try:
        if container.exited.is_set():  # not to wait for the runtime, which still tidies up under the lock
            return
        async with ledger.container_locks.hold(container.id):  # a start in progress comes first
            record = container.record
        if container.running and stopping.deadline > asyncio.get_running_loop().time():
            await handlers.of_record(record.runtime).kill(task_of(record), record.stop_signal)
            await _wait_for_exit(container, stopping)
        if not container.exited.is_set():
            await _kill(container, ledger=ledger, handlers=handlers, turns=turns)
    finally:
        container.stopping = None


async def _kill(container: Container, *, ledger: Ledger, handlers: Handlers, turns: asyncio.Semaphore) -> None:
    handler, task = handlers.of_record(container.record.runtime), task_of(container.record)
    async with turns:
        await handler.kill(task, signal.SIGKILL)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(container.exited.wait(), _TURN_S)
    try:
        await asyncio.wait_for(container.exited.wait(), KILL_LIMIT_S)
    except TimeoutError:
        if await handler.kill(task, signal.SIGKILL):
            raise Unavailable(
                f"cannot stop container {container.id}: process {task.pid} survives SIGKILL; is it stuck in I/O?"
            ) from None
        await record_end(container, ledger=ledger, handlers=handlers, surely=True)


async def _wait_for_exit(container: Container, stopping: Stopping) -> None:
    loop = asyncio.get_running_loop()
    exited = asyncio.create_task(container.exited.wait())
    try:
        while not exited.done() and (left := stopping.deadline - loop.time()) > 0:
            moved = asyncio.create_task(stopping.moved.wait())
            await asyncio.wait({exited, moved}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            moved.cancel()
            stopping.moved.clear()
    finally:
        exited.cancel()
