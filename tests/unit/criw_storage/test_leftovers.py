import asyncio
import contextlib
import threading

import pytest

from criw.errors import Failed
from criw_storage.leftovers import Leftovers, in_thread


class Stubborn:
    """Fails until `left` is 0."""

    def __init__(self, left: int, error: Exception) -> None:
        self.left = left
        self.error = error
        self.done = asyncio.Event()

    async def step(self) -> None:
        if self.left:
            self.left -= 1
            raise self.error
        self.done.set()


async def test_what_fails_is_counted_and_tried_until_it_is_done() -> None:
    leftovers = Leftovers(first_pause_s=0.001)
    at_once, stuck, failed = Stubborn(0, OSError()), Stubborn(3, OSError(5, "disk")), Stubborn(2, Failed("cannot"))
    trying = asyncio.create_task(leftovers.keep_trying())
    for name, stubborn in {"at once": at_once, "stuck": stuck, "failed": failed}.items():
        await leftovers.attempt(name, stubborn.step)
    assert leftovers.steps.keys() == {"stuck", "failed"}
    await stuck.done.wait()
    await failed.done.wait()
    while leftovers.steps:
        await asyncio.sleep(0)
    later = Stubborn(1, OSError())
    await leftovers.attempt("later", later.step)  # after all was done once
    await later.done.wait()
    trying.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await trying


async def test_a_mistake_of_ours_is_told_and_not_tried_again() -> None:
    leftovers = Leftovers()
    with pytest.raises(ValueError, match="ours"):
        await leftovers.attempt("mistake", Stubborn(1, ValueError("ours")).step)
    assert leftovers.steps == {}


async def test_who_is_cancelled_waits_for_his_thread_so_that_his_undo_comes_after_it() -> None:
    began, may_end, order = threading.Event(), threading.Event(), list[str]()

    def work() -> None:
        began.set()
        may_end.wait()
        order.append("work")

    async def caller() -> None:
        try:
            await in_thread(work)
        finally:
            order.append("undo")

    task = asyncio.create_task(caller())
    await asyncio.to_thread(began.wait)
    task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert order == ["work", "undo"]
