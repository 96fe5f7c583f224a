"""The signals that end a program, as something that work can be raced against."""

import asyncio
import contextlib
import signal
from collections.abc import Coroutine, Iterator
from typing import Final, TypeVar

T = TypeVar("T")
_NUMBERS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(Exception):  # noqa: N818 — nothing went wrong
    """The user gave up. `exit_code` is what a shell tells of a program that the signal ended."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.strsignal(number))
        self.exit_code = 128 + number


class Interruption(asyncio.Event):
    """Set by the first of the signals, whose number it keeps."""

    number = int(signal.SIGINT)

    def come(self, number: int) -> None:
        if not self.is_set():
            self.number = number
            self.set()


@contextlib.contextmanager
def interruptions() -> Iterator[Interruption]:
    """Set by the signals that end a program. Calls that make something are not cut off by them: their end is awaited,
    so that what they made is known and can be removed."""
    interrupted = Interruption()
    loop = asyncio.get_running_loop()
    for number in _NUMBERS:
        loop.add_signal_handler(number, interrupted.come, number)
    try:
        yield interrupted
    finally:
        for number in _NUMBERS:
            loop.remove_signal_handler(number)


async def either(task: asyncio.Task[T], event: asyncio.Event) -> None:
    """Wait until the task is done or the event is set."""
    waiting = asyncio.create_task(event.wait(), name="interruption")
    try:
        await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()


async def unless(interrupted: Interruption, work: Coroutine[object, object, T]) -> T:
    """The result of `work`, which an interruption cancels. Raises Interrupted once `work` has ended then."""
    task = asyncio.create_task(work, name="work")
    try:
        await either(task, interrupted)
        if not task.done():
            raise Interrupted(interrupted.number)
        return task.result()
    finally:
        task.cancel()
        await asyncio.wait({task})
