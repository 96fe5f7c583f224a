"""What could not be done at once is tried again by itself."""

import asyncio

import pytest

from criw.errors import Failed, Unavailable
from criw_supervisor.recovery import unfinished
from support.rooms import Rooms


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unfinished, "_FIRST_PAUSE_S", 0.01)


async def test_what_an_undo_could_not_do_is_done_without_a_restart(rooms: Rooms) -> None:
    before = await rooms.contents()
    running = asyncio.create_task(rooms.unfinished.run())
    rooms.handler.fail = {"create": Failed("injected"), "delete": Unavailable("stuck in I/O")}
    with pytest.raises(Failed):
        await rooms.run_pod()
    assert rooms.ledger.abandoned()
    rooms.handler.fail = {"delete": Unavailable("stuck still")}
    async with asyncio.timeout(10):
        while rooms.ledger.unfinished or rooms.unfinished.failed:
            await asyncio.sleep(0.005)
    assert rooms.unfinished.failures == 1
    assert await rooms.contents() == before
    running.cancel()


async def test_a_step_is_tried_until_it_succeeds_and_keeps_no_other(rooms: Rooms) -> None:
    done: list[str] = []

    async def fails_twice() -> None:
        done.append("try")
        if len(done) < 3:
            raise OSError("not yet")

    async def stuck() -> None:
        raise Unavailable("never")

    running = asyncio.create_task(rooms.unfinished.run())
    await rooms.unfinished.attempt("one", stuck)
    await rooms.unfinished.attempt("two", fails_twice)
    assert rooms.unfinished.failed == {"one": "never", "two": "not yet"}
    async with asyncio.timeout(10):
        while "two" in rooms.unfinished.failed:
            await asyncio.sleep(0.005)
    assert len(done) == 3
    assert list(rooms.unfinished.failed) == ["one"]
    running.cancel()
