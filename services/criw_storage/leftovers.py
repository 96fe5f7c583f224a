"""What could not be removed at once is tried again in the background: it holds up nobody, a start least of all."""

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import Final, TypeVar

from criw.errors import Fault
from criw.operations import to_end
from criw.retrying import Retrying, Step

log = logging.getLogger(__name__)
T = TypeVar("T")
_FIRST_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 300.0


class Leftovers:
    """`steps` are what is left to do, by a name for the log."""

    def __init__(self, first_pause_s: float = _FIRST_PAUSE_S) -> None:
        self.steps: dict[str, Step] = {}
        self._retrying = Retrying(self._again, first_pause_s=first_pause_s, longest_pause_s=_LONGEST_PAUSE_S)

    async def attempt(self, what: str, step: Step) -> None:
        """Do it now or, if that fails for a Fault or an OSError, again and again until it is done."""
        try:
            await step()
        except (Fault, OSError) as err:
            log.warning("cannot remove a leftover, it is tried again", extra={"what": what, "error": str(err)})
            self.steps[what] = step
            self._retrying.wake()
        else:
            self.steps.pop(what, None)

    async def remove(self, what: str, work: Callable[[], None]) -> None:
        """As `attempt`, for work that blocks."""
        await self.attempt(what, lambda: in_thread(work))

    async def keep_trying(self) -> None:
        """Try again what is left, each with growing pauses of its own, until cancelled."""
        await self._retrying.run()

    def _again(self) -> dict[str, Step]:
        return {what: partial(self.attempt, what, step) for what, step in self.steps.items()}


async def in_thread(work: Callable[[], T]) -> T:
    """As `asyncio.to_thread`, but a cancelled caller goes on only when the thread has ended: no undo overtakes it."""
    return await to_end(asyncio.ensure_future(asyncio.to_thread(work)))
