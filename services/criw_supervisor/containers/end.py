"""What is done when a container has ended, by itself or because it was stopped."""

import asyncio
import logging
import time
from functools import partial
from pathlib import Path

from criw.errors import Fault
from criw.kernel import in_fresh_thread
from criw_supervisor.containers.log_end import complete
from criw_supervisor.ledger.container import Container
from criw_supervisor.ledger.ledger import Ledger
from criw_supervisor.ledger.records import ContainerRecord
from criw_supervisor.ledger.states import ContainerState, Reason
from criw_supervisor.runtimes.handler import LOST_CODE, End, task_of
from criw_supervisor.runtimes.handlers import Handlers

log = logging.getLogger(__name__)
_LOG_LIMIT_S = 5.0


async def record_end(container: Container, *, ledger: Ledger, handlers: Handlers, surely: bool = False) -> None:
    """Record the end of a container, if it has ended. Repeated news change nothing.

    `surely` is for one whose process is known to be gone, whatever its handler still waits for.
    """
    async with ledger.container_locks.hold(container.id):
        record = container.record
        if record.state is ContainerState.EXITED:
            return
        end = await handlers.of_record(record.runtime).end_of(task_of(record))
        if end is None:
            if not surely:
                return
            end = End(LOST_CODE, time.time_ns(), lost=True)
        if end.lost:
            await ended(
                container, ledger=ledger, handlers=handlers, code=end.code, at_ns=end.at_ns,
                reason=Reason.UNKNOWN,
                message="the exit code is lost: the container's monitor (conmon) was killed, or the host restarted",
            )  # fmt: skip
        else:
            await _complete_log(record)
            await ended(
                container, ledger=ledger, handlers=handlers, code=end.code, at_ns=end.at_ns, reason=_reason(end)
            )


async def _complete_log(record: ContainerRecord) -> None:
    if not record.log_path:
        return
    try:
        async with asyncio.timeout(_LOG_LIMIT_S):
            await in_fresh_thread(partial(complete, Path(record.log_path)), may_hang=True)
    except OSError as err:  # TimeoutError, too: the log is as its writer left it
        log.warning("cannot complete the log of a container", extra={"container": record.id, "error": str(err)})


def _reason(end: End) -> Reason:
    if end.code == 0:
        return Reason.COMPLETED
    return Reason.OOM_KILLED if end.out_of_memory else Reason.ERROR


async def ended(
    container: Container, *, ledger: Ledger, handlers: Handlers, code: int, at_ns: int, reason: Reason,
    message: str = "",
) -> None:  # fmt: skip
    """Record how a container ended, once what it left behind in shared PID namespaces is dead, too.

    Its lock is held by the caller.
    """
    record, task = container.record, task_of(container.record)
    handler = handlers.of_record(record.runtime)
    try:
        await handler.kill_all(task)
    except Fault as err:  # RemoveContainer does it again, and tells its caller if it still fails
        log.warning("cannot kill what a container left", extra={"container": container.id, "error": str(err)})
    finished = max(at_ns, record.started_at_ns)  # files have the coarser clock
    changes = {"finished_at_ns": finished, "exit_code": code, "reason": reason, "message": message}
    await ledger.save(container, record.moved(ContainerState.EXITED, **changes))
    try:
        await handler.release(task)
    except Fault as err:  # as above
        log.warning("cannot tidy up after a container", extra={"container": container.id, "error": str(err)})
