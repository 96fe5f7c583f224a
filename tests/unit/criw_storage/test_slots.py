import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from criw_storage.slots import Slots


class Crowd:
    """Unpackings of some images, which run until they are ended; `running` in the order they began."""

    def __init__(self, workers: int) -> None:
        self.running: list[str] = []
        self._slots = Slots(workers)
        self._ends: dict[str, asyncio.Event] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def add(self, *names: str) -> None:
        """Each is an image and a digit."""
        for name in names:
            self._ends[name] = asyncio.Event()
            self._tasks[name] = asyncio.create_task(self._run(name))
            await asyncio.sleep(0)

    async def _run(self, name: str) -> None:
        async with self._slots.hold(name[0]):
            self.running.append(name)
            await self._ends[name].wait()
            self.running.remove(name)

    async def end(self, name: str) -> None:
        self._ends[name].set()
        await self._tasks[name]
        await asyncio.sleep(0)

    async def close(self) -> None:
        for name in self._tasks:
            await self.cancel(name)

    async def cancel(self, name: str) -> None:
        self._tasks[name].cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._tasks[name]
        await asyncio.sleep(0)


@pytest_asyncio.fixture
async def crowd() -> AsyncIterator[Crowd]:
    """With one slot."""
    crowd = Crowd(1)
    yield crowd
    await crowd.close()


async def test_another_image_does_not_wait_for_one_that_takes_its_time() -> None:
    crowd = Crowd(2)
    await crowd.add("a1", "a2", "a3", "a4")
    assert crowd.running == ["a1", "a2"]
    await crowd.add("b1", "b2")
    assert crowd.running == ["a1", "a2", "b1"]
    await crowd.end("b1")
    assert crowd.running == ["a1", "a2", "b2"]  # b has none, and a has two
    await crowd.close()


async def test_slots_are_bounded_and_free_ones_go_to_who_has_the_fewest(crowd: Crowd) -> None:
    await crowd.add("a1", "b1", "c1", "d1", "a2", "e1", "f1")
    assert crowd.running == ["a1", "b1", "c1", "d1"]
    await crowd.end("a1")
    assert crowd.running == ["b1", "c1", "d1", "a2"]  # it waited longest, and a had none then
    for name, then in (("b1", "e1"), ("c1", "f1")):
        await crowd.end(name)
        assert crowd.running[-1] == then


@pytest.mark.parametrize("victim", ["a2", "a1"])
async def test_who_is_cancelled_gives_his_place_or_his_turn_back(crowd: Crowd, victim: str) -> None:
    await crowd.add("a1", "a2", "a3")
    await crowd.cancel(victim)
    if victim == "a2":
        await crowd.end("a1")
        assert crowd.running == ["a3"]
    else:
        # `_run` was cancelled while it ran, so its name stays in the list.
        assert crowd.running == ["a1", "a2"]


async def test_a_turn_that_is_given_up_as_a_slot_gets_free_is_the_next_ones(crowd: Crowd) -> None:
    await crowd.add("a1", "b1", "c1", "d1", "e1", "f1")
    crowd._ends["a1"].set()
    crowd._tasks["e1"].cancel()  # before a's slot is granted to it
    await crowd._tasks["a1"]
    await crowd.cancel("e1")
    assert crowd.running == ["b1", "c1", "d1", "f1"]
    await crowd.add("g1")
    await crowd.end("b1")
    assert crowd.running == ["c1", "d1", "f1", "g1"]
