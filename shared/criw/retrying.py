"""Trying again what could not be done, each thing at times of its own."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeAlias

Step: TypeAlias = Callable[[], Awaitable[None]]


class Retrying:
    """What fails again is tried after a pause twice as long; nothing else that is left, new or old, waits for it."""

    def __init__(self, left: Callable[[], Mapping[str, Step]], *, first_pause_s: float, longest_pause_s: float) -> None:
        """`left` says what is left to do, by names. Its steps are not to raise: what is left afterwards has failed."""
        self._left = left
        self._first_pause_s = first_pause_s
        self._longest_pause_s = longest_pause_s
        self._times: dict[str, tuple[float, float]] = {}  # when it is next tried, and the pause before that
        self._trying: set[str] = set()
        self._wanted = asyncio.Event()

    def wake(self) -> None:
        """Something is left now."""
        self._wanted.set()

    async def run(self) -> None:
        """Try what is left, for ever."""
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as tasks:
            while True:
                self._wanted.clear()
                left, now = self._left(), loop.time()
                self._times = {
                    name: self._times.get(name, (now + self._first_pause_s, self._first_pause_s)) for name in left
                }
                for name, step in left.items():
                    if name not in self._trying and self._times[name][0] <= now:
                        self._trying.add(name)
                        tasks.create_task(self._try(name, step), name=f"again: {name}")
                await self._wait()

    async def _wait(self) -> None:
        """Until something is due, or left."""
        times = (at for name, (at, _) in self._times.items() if name not in self._trying)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(min(times, default=None)):
                await self._wanted.wait()

    async def _try(self, name: str, step: Step) -> None:
        await step()
        if name in self._times:
            pause_s = min(2 * self._times[name][1], self._longest_pause_s)
            self._times[name] = asyncio.get_running_loop().time() + pause_s, pause_s
        self._trying.discard(name)
        self._wanted.set()
