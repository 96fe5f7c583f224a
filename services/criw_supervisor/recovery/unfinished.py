"""Undoing what was not finished: at start, and again and again where it could not be done at once."""

import asyncio
import logging
from collections.abc import Mapping
from typing import Final

from criw.errors import Fault
from criw_supervisor.ledger.ledger import Ledger, Undo
from criw_supervisor.ledger.records import IntentRecord

log = logging.getLogger(__name__)
_FIRST_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 300.0


class Unfinished:
    """`undo` by what is to be undone: "pod" or "container"."""

    def __init__(self, ledger: Ledger, undo: Mapping[str, Undo]) -> None:
        self._ledger = ledger
        self._undo = undo
        self._wanted = asyncio.Event()
        ledger.listen(self._wanted.set)

    async def undo_all(self) -> bool:
        """Undo all that nobody works on; whether nothing is left. One that fails does not keep the others."""
        for intent in self._ledger.abandoned():
            await self._undo_one(intent)
        return not self._ledger.abandoned()

    async def _undo_one(self, intent: IntentRecord) -> None:
        log.info("undoing what was not finished", extra={"what": intent.what, "id": intent.id})
        try:
            await self._ledger.undone(intent, self._undo[intent.what])
        except (Fault, OSError) as err:
            log.warning("cannot undo what was not finished", extra={"id": intent.id, "error": str(err)})

    async def run(self) -> None:
        """Try again what could not be undone, with growing pauses, for ever."""
        pause_s = _FIRST_PAUSE_S
        while True:
            if not self._ledger.abandoned():
                await self._wanted.wait()
                self._wanted.clear()
                pause_s = _FIRST_PAUSE_S
                continue
            await asyncio.sleep(pause_s)
            await self.undo_all()
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)
