"""What could not be removed at once is tried again in the background: it holds up nobody, a start least of all."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from criw.errors import Fault

log = logging.getLogger(__name__)
T = TypeVar("T")
_FIRST_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 300.0


class Leftovers:
    """`steps` are what is left to do, by a name for the log."""

    def __init__(self) -> None:
        self.steps: dict[str, Callable[[], Awaitable[None]]] = {}
        self._wanted = asyncio.Event()

    async def attempt(self, what: str, step: Callable[[], Awaitable[None]]) -> None:
        """Do it now or, if that fails for a Fault or an OSError, again and again until it is done."""
        try:
            await step()
        except (Fault, OSError) as err:
            log.warning("cannot remove a leftover, it is tried again", extra={"what": what, "error": str(err)})
            self.steps[what] = step
            self._wanted.set()
        else:
            self.steps.pop(what, None)

    async def remove(self, what: str, work: Callable[[], None]) -> None:
        """As `attempt`, for work that blocks."""
        await self.attempt(what, lambda: in_thread(work))

    async def keep_trying(self, first_pause_s: float = _FIRST_PAUSE_S) -> None:
        """Try again what is left, with growing pauses, until cancelled."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            pause_s = first_pause_s
            while self.steps:
                await asyncio.sleep(pause_s)
                for what, step in tuple(self.steps.items()):
                    await self.attempt(what, step)
                pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)


async def in_thread(work: Callable[[], T]) -> T:
    """As `asyncio.to_thread`, but a cancelled caller goes on only when the thread has ended: no undo overtakes it."""
    ending = asyncio.ensure_future(asyncio.to_thread(work))
    cancelled: asyncio.CancelledError | None = None
    while not ending.done():
        try:
            await asyncio.wait({ending})
        except asyncio.CancelledError as err:
            cancelled = err
    if cancelled is not None:
        raise cancelled from ending.exception()
    return ending.result()
