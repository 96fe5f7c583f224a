import asyncio

import pytest

from criw.locks import KeyedLocks


async def test_one_at_a_time_holds_a_key() -> None:
    locks, inside, most = KeyedLocks(), 0, 0

    async def work() -> None:
        nonlocal inside, most
        async with locks.hold("pod"):
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0)
            inside -= 1

    await asyncio.gather(*(work() for _ in range(20)))
    assert most == 1


async def test_other_keys_do_not_wait() -> None:
    locks = KeyedLocks()
    async with locks.hold("a"), asyncio.timeout(1), locks.hold("b"):
        pass


async def test_a_lock_nobody_wants_is_forgotten() -> None:
    locks = KeyedLocks()
    async with locks.hold("pod"):
        waiting = asyncio.create_task(hold(locks))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert len(locks._locks) == 1
    with pytest.raises(ValueError, match="inside"):
        async with locks.hold("pod"):
            raise ValueError("inside")
    assert locks._locks == {}


async def hold(locks: KeyedLocks) -> None:
    async with locks.hold("pod"):
        pass
