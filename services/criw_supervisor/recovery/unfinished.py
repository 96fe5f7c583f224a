"""What could not be done at once: undoing, sweeping, catching up. Each is tried again and again, and keeps no other."""

import asyncio
import logging
from collections.abc import Mapping
from functools import partial
from typing import Final

from criw.errors import Fault
from criw.retrying import Retrying, Step
from criw_supervisor.ledger.ledger import Ledger, Undo

log = logging.getLogger(__name__)
_FIRST_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 300.0
_WRITING: Final = "write what the disk did not take"
_AT_ONCE: Final = 8  # one that waits for its time limit does not keep the others


class Unfinished:
    """`undo` by what is to be undone: "pod" or "container". `failed` says why, by what is not done yet."""

    def __init__(self, ledger: Ledger, undo: Mapping[str, Undo]) -> None:
        self.failed: dict[str, str] = {}
        self.failures = 0  # attempts that failed, since the start
        self._ledger = ledger
        self._undo = undo
        self._steps: dict[str, Step] = {}
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._retrying = Retrying(self._again, first_pause_s=_FIRST_PAUSE_S, longest_pause_s=_LONGEST_PAUSE_S)
        ledger.listen(self._retrying.wake)

    async def attempt(self, what: str, step: Step) -> None:
        """Do something that may be repeated. If it fails that is logged, and `run` does it again until it succeeds."""
        try:
            async with self._slots:
                await step()
        except (Fault, OSError) as err:  # TimeoutError is an OSError
            log.warning("cannot finish yet, and try again later", extra={"what": what, "error": str(err)})
            self._note(what, step, str(err) or type(err).__name__)
        except Exception as err:  # a mistake of ours in one thing must not keep the supervisor from all others
            log.exception("cannot finish yet, and try again later", extra={"what": what})
            self._note(what, step, repr(err))
        else:
            self._steps.pop(what, None)
            self.failed.pop(what, None)

    def _note(self, what: str, step: Step, why: str) -> None:
        self._steps[what] = step
        self.failed[what] = why
        self.failures += 1
        self._retrying.wake()

    async def undo_all(self) -> None:
        """Undo all that nobody works on."""
        await asyncio.gather(*(self.attempt(what, step) for what, step in self._undoing().items()))

    def _undoing(self) -> dict[str, Step]:
        return {
            f"undo {intent.what} {intent.id}": partial(self._ledger.undone, intent, self._undo[intent.what])
            for intent in self._ledger.abandoned()
        }

    async def run(self) -> None:
        """Try again what failed, each with growing pauses of its own, for ever."""
        await self._retrying.run()

    def _again(self) -> dict[str, Step]:
        again = {**self._steps, **self._undoing()}
        if self._ledger.unwritten:
            again[_WRITING] = self._ledger.write_rest
        return {what: partial(self.attempt, what, step) for what, step in again.items()}
