"""What holds for every test: nothing is left behind, and what needs root is skipped for everybody else."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from support.crew import running

TESTS = Path(__file__).parent
NEED_ROOT = (TESTS / "system", TESTS / "chaos")
ENDING_LIMIT_S = 2.0


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "root: needs root and a real kernel (all of tests/system and tests/chaos do)")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if any(item.path.is_relative_to(directory) for directory in NEED_ROOT):
            item.add_marker(pytest.mark.root)
        if os.geteuid() != 0 and item.get_closest_marker("root"):
            item.add_marker(pytest.mark.skip(reason="needs root: it makes mounts, namespaces, cgroups or other users"))


def children() -> dict[int, str]:
    """Our child processes, zombies included, by pid: command and state."""
    found = {}
    for thread in Path("/proc/self/task").iterdir():
        try:
            pids = (thread / "children").read_text().split()
        except FileNotFoundError:  # the thread has ended: its children are the others' now
            continue
        for pid in pids:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # reaped since
                stat = Path("/proc", pid, "stat").read_text(errors="replace")
                found[int(pid)] = stat[stat.index("(") : stat.rindex(")") + 3]
    return found


@pytest_asyncio.fixture(autouse=True)
async def nothing_left_behind() -> AsyncIterator[None]:
    """No task and no child process outlives the test; those of fixtures of a wider scope are not its own.

    A crew of a wider scope may have other processes afterwards: the test has restarted them.
    """
    children_before, tasks_before, crews = children(), asyncio.all_tasks(), set(running)
    yield
    tasks = asyncio.all_tasks() - tasks_before - {asyncio.current_task()}
    if tasks:  # one that was cancelled may need a turn of the loop to end
        await asyncio.wait(tasks, timeout=ENDING_LIMIT_S)
    assert [task for task in tasks if not task.done()] == []
    agents = {process.pid for crew in crews for process in crew.processes.values()}
    assert {pid: what for pid, what in children().items() if pid not in children_before and pid not in agents} == {}
