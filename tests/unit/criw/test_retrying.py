"""What is left is tried again, each thing at times of its own."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise

from criw.retrying import Retrying, Step

FIRST_S = 0.01


@asynccontextmanager
async def trying(left: dict[str, Step]) -> AsyncIterator[Retrying]:
    retrying = Retrying(lambda: dict(left), first_pause_s=FIRST_S, longest_pause_s=600)
    task = asyncio.create_task(retrying.run())
    try:
        yield retrying
    finally:
        task.cancel()
        await asyncio.wait({task})


async def test_pauses_grow_and_what_is_new_does_not_wait_as_long_as_what_is_old() -> None:
    left: dict[str, Step] = {}
    times: list[float] = []
    done = asyncio.Event()

    async def fails() -> None:
        times.append(asyncio.get_running_loop().time())

    async def succeeds() -> None:
        del left["new"]
        done.set()

    async with trying(left) as retrying, asyncio.timeout(10):
        left["old"] = fails
        retrying.wake()
        while len(times) < 6:
            await asyncio.sleep(0.001)
        begun = asyncio.get_running_loop().time()
        left["new"] = succeeds
        retrying.wake()
        await done.wait()
        assert asyncio.get_running_loop().time() - begun < FIRST_S * 2**5
    pauses = [later - earlier for earlier, later in pairwise(times)]
    assert all(pause >= FIRST_S * 2 ** (number + 1) for number, pause in enumerate(pauses))


async def test_one_that_hangs_keeps_no_other() -> None:
    left: dict[str, Step] = {}
    done = asyncio.Event()

    async def hangs() -> None:
        await asyncio.Event().wait()

    async def works() -> None:
        del left["works"]
        done.set()

    async with trying(left) as retrying, asyncio.timeout(10):
        left["hangs"] = hangs
        retrying.wake()
        await asyncio.sleep(3 * FIRST_S)
        left["works"] = works
        retrying.wake()
        await done.wait()
    assert list(left) == ["hangs"]
