"""Work and how it is waited for: joined by a second caller, again and again until nothing is left, to its end whatever
its caller does, or side by side.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from typing import Any, Final, TypeVar, cast

log = logging.getLogger(__name__)
T = TypeVar("T")

_FIRST_LOOK_PAUSE_S: Final = 0.002
_LONGEST_LOOK_PAUSE_S: Final = 0.05

Work = Callable[[], Coroutine[Any, Any, T]]


class Operations:
    """Work that outlives its caller, and that a second caller with the same key joins instead of repeating.

    The kubelet gives up after its deadline and asks again with the same metadata while the first request is still
    running: the retry gets the first one's answer. A caller that goes away cancels nothing.
    """

    def __init__(self) -> None:
        self._running: Final[dict[str, asyncio.Task[Any]]] = {}

    async def run(self, key: str, work: Work[T]) -> T:
        """Start `work` under `key`, or join the one that runs under it, and await its result."""
        task = self._running.get(key)
        if task is None:
            task = asyncio.create_task(self._work(key, work), name=key)
            self._running[key] = task
            task.add_done_callback(self._ended)
        return cast("T", await asyncio.shield(task))

    async def _work(self, key: str, work: Work[T]) -> T:
        try:
            return await work()
        finally:
            del self._running[key]  # not in a callback, which comes later: what has ended is not to be joined

    def _ended(self, task: asyncio.Task[Any]) -> None:
        if self._running.get(task.get_name()) is task:  # it was cancelled before it began
            del self._running[task.get_name()]
        if not task.cancelled() and (err := task.exception()) is not None:
            # Retrieved here, so that an error whose caller left is told once instead of as "never retrieved".
            log.debug("operation failed", extra={"operation": task.get_name(), "error": str(err)})

    def give_up(self, key: str) -> None:
        """Cancel what runs under `key`, if anything does. It goes on until it has undone itself."""
        if (task := self._running.get(key)) is not None:
            task.cancel()

    async def cancel(self) -> None:
        """Cancel what runs and wait until it has undone itself: for a process that stops."""
        for task in self._running.values():
            task.cancel()
        await self.drain()

    async def drain(self) -> None:
        """Wait until nothing runs any more."""
        while self._running:
            await asyncio.wait(self._running.values())


async def until_gone(limit_s: float, look: Callable[[], T], *, threads: Executor | None = None) -> T:
    """Call `look`, which sends away what is there and returns it, until nothing is or `limit_s` seconds have passed.

    Each look is made in a thread (of `threads`, or of those all share), and none is held between two. Returns what was
    there at the last look: empty when all is gone. One look is made in any case.
    """
    loop = asyncio.get_running_loop()
    until, pause_s = loop.time() + limit_s, _FIRST_LOOK_PAUSE_S
    while (left := await loop.run_in_executor(threads, look)) and loop.time() < until:
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 2, _LONGEST_LOOK_PAUSE_S)
    return left


async def run_to_end(work: Coroutine[object, object, None], *, limit_s: float) -> None:
    """Await `work` even while the caller is being cancelled; then the cancellation goes on.

    Raises TimeoutError after `limit_s` seconds.
    """
    await to_end(asyncio.create_task(asyncio.wait_for(work, limit_s), name="cleanup"))


async def to_end(work: asyncio.Future[T]) -> T:
    """Await something, a thread say, even while the caller is being cancelled; then the cancellation goes on.

    Whoever undoes what it does comes after it.
    """
    cancelled: asyncio.CancelledError | None = None
    while not work.done():
        try:
            await asyncio.wait({work})
        except asyncio.CancelledError as err:
            cancelled = err
    if cancelled is not None:
        raise cancelled from work.exception()
    return work.result()


async def together(*work: Coroutine[object, object, T]) -> list[T]:
    """Run side by side to the end of each, also when one fails; then raise the first error, or return all results."""
    results: list[T] = []
    for outcome in await asyncio.gather(*work, return_exceptions=True):
        if isinstance(outcome, BaseException):
            raise outcome
        results.append(outcome)
    return results
