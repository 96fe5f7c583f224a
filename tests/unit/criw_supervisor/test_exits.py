import asyncio
import contextlib
import os
from pathlib import Path

from criw_supervisor.exits import Exit, exits, read_exit

A, B, C = ("a" * 64, "b" * 64, "c" * 64)


def conmon_writes(directory: Path, container_id: str, text: str) -> None:
    """As conmon does it: a draft beside the file, renamed."""
    draft = directory / f"{container_id}.X7Y2Z1"
    draft.write_text(text)
    draft.rename(directory / container_id)


def test_an_exit_has_its_code_and_the_time_conmon_wrote_it(tmp_path: Path) -> None:
    conmon_writes(tmp_path, A, "137")
    os.utime(tmp_path / A, ns=(5, 1_234_567_890_123_456_789))
    assert read_exit(tmp_path, A) == Exit(A, 137, 1_234_567_890_123_456_789)
    assert read_exit(tmp_path, B) is None


def test_a_file_without_a_code_is_no_exit(tmp_path: Path) -> None:
    conmon_writes(tmp_path, A, "")
    conmon_writes(tmp_path, B, "nonsense")
    assert read_exit(tmp_path, A) is None
    assert read_exit(tmp_path, B) is None


async def test_exits_recorded_before_and_after_the_watch_began_are_told(tmp_path: Path) -> None:
    conmon_writes(tmp_path, A, "0")
    (tmp_path / f"{C}.X7Y2Z1").write_text("")  # a draft is no news
    async with contextlib.aclosing(exits(tmp_path)) as news, asyncio.timeout(5):
        assert (await anext(news)).container_id == A
        later = asyncio.create_task(anext(news))
        await asyncio.sleep(0)
        conmon_writes(tmp_path, B, "3")
        found = await later
        assert (found.container_id, found.code) == (B, 3)


async def test_an_unreadable_file_does_not_end_the_watch(tmp_path: Path) -> None:
    async with contextlib.aclosing(exits(tmp_path)) as news, asyncio.timeout(5):
        first = asyncio.create_task(anext(news))
        await asyncio.sleep(0)
        conmon_writes(tmp_path, A, "")
        conmon_writes(tmp_path, B, "1")
        assert (await first).container_id == B


async def test_a_removed_file_does_not_end_the_watch(tmp_path: Path) -> None:
    async with contextlib.aclosing(exits(tmp_path)) as news, asyncio.timeout(5):
        first = asyncio.create_task(anext(news))
        await asyncio.sleep(0)
        conmon_writes(tmp_path, A, "1")
        (tmp_path / A).unlink()
        conmon_writes(tmp_path, B, "1")
        assert (await first).container_id == B


async def test_the_watch_closes_its_descriptor(tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    async with contextlib.aclosing(exits(tmp_path)) as news:
        conmon_writes(tmp_path, A, "1")
        await anext(news)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
