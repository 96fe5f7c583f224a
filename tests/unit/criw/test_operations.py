import asyncio
import logging
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from criw.errors import NotFound
from criw.operations import Operations, run_to_end, together, until_gone


class Steps:
    """Work that waits to be let go, and remembers how often it was begun and ended."""

    def __init__(self) -> None:
        self.begun = 0
        self.ended = 0
        self.go = asyncio.Event()

    async def __call__(self) -> int:
        self.begun += 1
        await self.go.wait()
        self.ended += 1
        return self.begun


async def started(steps: Steps) -> None:
    while not steps.begun:
        await asyncio.sleep(0)


async def test_a_second_call_joins_the_first() -> None:
    operations, steps = Operations(), Steps()
    first, second = (asyncio.create_task(operations.run("pod", steps)) for _ in range(2))
    await started(steps)
    steps.go.set()
    assert (await first, await second, steps.begun) == (1, 1, 1)
    assert await operations.run("pod", steps) == 2  # a later one is a new one


async def test_other_keys_run_on_their_own() -> None:
    operations, steps = Operations(), Steps()
    steps.go.set()
    assert {await operations.run("a", steps), await operations.run("b", steps)} == {1, 2}


async def test_a_caller_that_goes_away_stops_nothing() -> None:
    operations, steps = Operations(), Steps()
    caller = asyncio.create_task(operations.run("pod", steps))
    await started(steps)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    retry = asyncio.create_task(operations.run("pod", steps))
    steps.go.set()
    assert (await retry, steps.begun, steps.ended) == (1, 1, 1)


async def test_all_callers_get_the_error_and_the_next_starts_afresh() -> None:
    operations = Operations()

    async def fail() -> None:
        raise NotFound("cannot find it")

    outcomes = await asyncio.gather(*(operations.run("pod", fail) for _ in range(3)), return_exceptions=True)
    assert [str(outcome) for outcome in outcomes] == ["cannot find it"] * 3
    steps = Steps()
    steps.go.set()
    assert await operations.run("pod", steps) == 1


async def test_a_call_that_comes_when_the_first_has_just_ended_does_not_join_it() -> None:
    operations, last_step = Operations(), asyncio.Event()

    async def fail() -> int:
        last_step.set()  # wakes the other before the end of this task is told to anybody
        raise NotFound("cannot find it")

    async def succeed() -> int:
        return 2

    async def call_then() -> int:
        await last_step.wait()
        return await operations.run("pod", succeed)

    calling = asyncio.create_task(call_then())
    await asyncio.sleep(0)
    with pytest.raises(NotFound):
        await operations.run("pod", fail)
    assert await calling == 2


async def test_work_that_is_cancelled_before_it_begins_is_forgotten() -> None:
    operations, steps = Operations(), Steps()
    caller = asyncio.create_task(operations.run("pod", steps))
    await asyncio.sleep(0)
    await operations.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert steps.begun == 0
    steps.go.set()
    assert await operations.run("pod", steps) == 1


async def test_an_error_nobody_waits_for_is_not_reported_as_never_retrieved(caplog: pytest.LogCaptureFixture) -> None:
    operations, go = Operations(), asyncio.Event()

    async def fail() -> None:
        await go.wait()
        raise NotFound("cannot find it")

    caller = asyncio.create_task(operations.run("pod", fail))
    await asyncio.sleep(0)
    caller.cancel()
    with caplog.at_level(logging.WARNING):
        go.set()
        await operations.drain()
    assert caplog.records == []


async def test_draining_waits_for_all_that_runs() -> None:
    operations, steps = Operations(), Steps()
    callers = [asyncio.create_task(operations.run(key, steps)) for key in "ab"]
    await started(steps)
    for caller in callers:
        caller.cancel()
    draining = asyncio.create_task(operations.drain())
    await asyncio.wait({draining}, timeout=0.02)
    assert not draining.done()
    steps.go.set()
    await draining
    assert steps.ended == 2


async def test_cleanup_outlives_the_cancellation() -> None:
    steps = Steps()

    async def clean() -> None:
        await steps()

    cleaning = asyncio.create_task(run_to_end(clean(), limit_s=5))
    await started(steps)
    for _ in range(3):  # however often
        cleaning.cancel()
        await asyncio.sleep(0)
    assert not cleaning.done()
    steps.go.set()
    with pytest.raises(asyncio.CancelledError):
        await cleaning
    assert steps.ended == 1


async def test_cleanup_that_fails_says_so() -> None:
    async def fail() -> None:
        raise NotFound("cannot find it")

    with pytest.raises(NotFound):
        await run_to_end(fail(), limit_s=5)


async def test_an_error_in_the_cleanup_of_a_cancelled_caller_rides_along() -> None:
    go = asyncio.Event()

    async def fail() -> None:
        await go.wait()
        raise NotFound("cannot find it")

    cleaning = asyncio.create_task(run_to_end(fail(), limit_s=5))
    await asyncio.sleep(0)
    cleaning.cancel()
    go.set()
    with pytest.raises(asyncio.CancelledError) as caught:
        await cleaning
    assert isinstance(caught.value.__cause__, NotFound)


async def test_cleanup_has_a_limit() -> None:
    with pytest.raises(TimeoutError):
        await run_to_end(Steps()(), limit_s=0.01)  # type: ignore[arg-type]  # its result is of no interest


async def test_what_runs_together_is_run_to_the_end_of_each_also_when_one_fails() -> None:
    steps = Steps()

    async def fail() -> int:
        raise NotFound("cannot find it")

    both = asyncio.create_task(together(fail(), steps()))
    await started(steps)
    assert not both.done()
    steps.go.set()
    with pytest.raises(NotFound):
        await both
    assert steps.ended == 1


async def test_the_results_of_what_runs_together_come_in_its_order() -> None:
    async def late(number: int) -> int:
        for _ in range(5 - number):
            await asyncio.sleep(0)
        return number

    assert await together(*(late(number) for number in range(5))) == [0, 1, 2, 3, 4]


async def test_it_is_looked_again_until_nothing_is_left() -> None:
    there = [{1, 2}, {2}, {2}, set[int]()]
    assert await until_gone(5, lambda: there.pop(0)) == set()
    assert there == []


async def test_what_does_not_go_is_told_after_the_limit() -> None:
    looks = []

    def look() -> list[int]:
        looks.append(time.monotonic())
        return [7]

    assert await until_gone(0.02, look) == [7]
    assert looks[-1] - looks[0] >= 0.02
    assert await until_gone(0, look) == [7]


async def test_what_does_not_go_holds_no_thread_that_others_wait_for() -> None:
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    stay = [asyncio.create_task(until_gone(1, lambda: [7])) for _ in range(30)]
    await asyncio.sleep(0.1)
    async with asyncio.timeout(0.5):
        assert await asyncio.to_thread(lambda: 1) == 1
    assert await asyncio.gather(*stay) == [[7]] * 30
