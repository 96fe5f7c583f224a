"""Pulls that several callers want: each runs once, for as long as anybody waits for it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from prometheus_client import Counter

from criw.errors import Fault
from criw.rpc.faults import status_of
from criw_image.reference import Reference
from criw_proto.criw.image.v1 import LayerProgress
from criw_proto.runtime.v1 import AuthConfig

Pull: TypeAlias = Callable[[Reference, AuthConfig | None, list[LayerProgress]], Awaitable[str]]


@dataclass
class Running:
    """A pull on its way. The result of `task` is the image's id."""

    task: asyncio.Task[str]
    layers: list[LayerProgress]
    callers: int = field(default=0)


class JoinedPulls:
    """Use as a context manager: what still runs when it is left is cancelled and awaited."""

    def __init__(self, pull: Pull, outcomes: Counter) -> None:
        self._pull: Final = pull
        self._outcomes = outcomes
        self._running: dict[tuple[str, bytes], Running] = {}
        self._tasks: set[asyncio.Task[str]] = set()

    async def __aenter__(self) -> "JoinedPulls":
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    @contextlib.asynccontextmanager
    async def join(self, reference: Reference, auth: AuthConfig | None) -> AsyncIterator[Running]:
        """Start the pull, or join the one that runs for the same image with the same credentials.

        The last caller to leave before it has ended cancels it, and waits until it is undone.
        """
        key = (str(reference), bytes(auth or AuthConfig()))
        running = self._running.get(key) or self._start(key, reference, auth)
        running.callers += 1
        try:
            yield running
        finally:
            running.callers -= 1
            if not running.callers and not running.task.done():
                del self._running[key]  # a pull that is being undone is not to be joined
                running.task.cancel()
                await asyncio.wait({running.task})

    def _start(self, key: tuple[str, bytes], reference: Reference, auth: AuthConfig | None) -> Running:
        layers: list[LayerProgress] = []
        task = asyncio.create_task(self._counted(reference, auth, layers), name=f"pull {reference}")
        running = Running(task, layers)
        self._running[key] = running
        self._tasks.add(task)

        def ended(_: asyncio.Task[str]) -> None:
            self._tasks.discard(task)
            if self._running.get(key) is running:
                del self._running[key]
            if not task.cancelled():
                task.exception()  # retrieved, should all callers have left by now

        task.add_done_callback(ended)
        return running

    async def _counted(self, reference: Reference, auth: AuthConfig | None, layers: list[LayerProgress]) -> str:
        outcome = "INTERNAL"
        try:
            image_id = await self._pull(reference, auth, layers)
            outcome = "OK"
        except asyncio.CancelledError:
            outcome = "CANCELLED"
            raise
        except Fault as err:
            outcome = status_of(err).name
            raise
        else:
            return image_id
        finally:
            self._outcomes.labels(outcome).inc()
