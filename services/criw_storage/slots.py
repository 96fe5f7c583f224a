"""Who may unpack now: a few layers at once, shared fairly between images."""

import asyncio
import contextlib
from collections import Counter, deque
from collections.abc import AsyncIterator
from typing import Final

_SPARE: Final = 4


class Slots:
    """`workers` for all, and up to four times as many for images that have none: layers of strangers that take an hour
    keep nobody else waiting.
    """

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._most = workers * _SPARE
        self._running: Counter[str] = Counter()
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}  # images in the order of their turns

    @contextlib.asynccontextmanager
    async def hold(self, image_id: str) -> AsyncIterator[None]:
        """Wait for a slot. The image that has the fewest is the next, and of these the one that waited longest."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(image_id, deque()).append(turn)
        self._grant()
        try:
            await turn
            yield
        finally:
            if turn.done() and not turn.cancelled():
                self._running[image_id] -= 1
                self._running = +self._running
            elif turn in (turns := self._waiting.get(image_id, deque())):
                turns.remove(turn)
                if not turns:
                    del self._waiting[image_id]
            self._grant()

    def _grant(self) -> None:
        while self._waiting:
            image_id = min(self._waiting, key=self._running.__getitem__)  # the first of several
            limit = self._workers if self._running[image_id] else self._most
            if self._running.total() >= limit:
                return
            turns = self._waiting.pop(image_id)
            turn = turns.popleft()
            if not turn.done():  # else it was given up, and is about to say so
                self._running[image_id] += 1
                turn.set_result(None)
            if turns:
                self._waiting[image_id] = turns  # behind the others
