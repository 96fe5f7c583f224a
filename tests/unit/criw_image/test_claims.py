"""Claims: one at a time, over tasks and processes."""

import asyncio
import contextlib
import subprocess
import sys
from pathlib import Path

from criw_image.claims import Claims

KEY = "sha256:00"
HOLDER = """
import asyncio, sys
from pathlib import Path
from criw_image.claims import Claims

async def main():
    async with Claims(Path(sys.argv[1])).hold(sys.argv[2]):
        print("held", flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_one_at_a_time(tmp_path: Path) -> None:
    claims, elsewhere = Claims(tmp_path), Claims(tmp_path)
    inside = 0
    most = 0

    async def work(via: Claims) -> None:
        nonlocal inside, most
        async with via.hold(KEY):
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0)
            inside -= 1

    async with asyncio.TaskGroup() as tasks:
        for number in range(20):
            tasks.create_task(work(claims if number % 2 else elsewhere))
    assert most == 1
    assert list(tmp_path.iterdir()) == []


async def test_another_key_does_not_wait(tmp_path: Path) -> None:
    claims = Claims(tmp_path)
    async with claims.hold("a"), claims.hold("b"):
        assert len(list(tmp_path.iterdir())) == 2
    assert list(tmp_path.iterdir()) == []


async def test_hold_if_free_tells_and_does_not_wait(tmp_path: Path) -> None:
    claims, elsewhere = Claims(tmp_path), Claims(tmp_path)
    async with elsewhere.hold(KEY), claims.hold_if_free(KEY) as free:
        assert not free
    async with claims.hold_if_free(KEY) as free:
        assert free
        async with elsewhere.hold_if_free(KEY) as free_too:
            assert not free_too
    assert list(tmp_path.iterdir()) == []


async def test_a_waiting_task_may_be_cancelled(tmp_path: Path) -> None:
    claims, elsewhere = Claims(tmp_path), Claims(tmp_path)
    async with elsewhere.hold(KEY):
        waiting = asyncio.create_task(contextlib.AsyncExitStack().enter_async_context(claims.hold(KEY)))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait({waiting})
        assert waiting.cancelled()
    async with claims.hold(KEY):
        pass


async def test_a_killed_process_gives_its_claim_back(tmp_path: Path) -> None:
    path = [str(Path(__file__).parents[3] / name) for name in ("services", "shared", "proto")]
    holder = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", HOLDER, str(tmp_path), KEY),
        stdout=subprocess.PIPE,
        env={"PYTHONPATH": ":".join(path)},
    )
    assert holder.stdout is not None
    assert await holder.stdout.readline() == b"held\n"
    claims = Claims(tmp_path)
    async with claims.hold_if_free(KEY) as free:
        assert not free
    claims.sweep()
    assert [path.name for path in tmp_path.iterdir()] == ["sha256-00.lock"]
    holder.kill()
    await holder.wait()
    claims.sweep()
    assert list(tmp_path.iterdir()) == []
    async with claims.hold_if_free(KEY) as free:
        assert free
