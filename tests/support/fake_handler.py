"""A runtime handler without processes (`criw_supervisor.runtimes.handler.Handler`), held to the real one's contract.

It knows the two commands that the contract suite gives it: `sh -c "exit N"` ends at once with N, everything else runs
until it gets a signal.
"""

import asyncio
import itertools
import os
import signal
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from criw.errors import Failed, FailedPrecondition
from criw_supervisor.cgroups.usage import CgroupUsage
from criw_supervisor.ledger.places import Places
from criw_supervisor.oci import JsonObject
from criw_supervisor.runtimes.bundle import Bundle, encoded
from criw_supervisor.runtimes.handler import LOST_CODE, AttachSession, End, ExecSession, Launch, NotRun, Task

_USAGE: Final = CgroupUsage(
    at_ns=1, cpu_ns=1, memory=1, working_set=1, rss=1, page_faults=0, major_page_faults=0, memory_limit=None,
    swap=None, processes=1,
)  # fmt: skip


class _Held:
    """A task the handler holds."""

    def __init__(self, task: Task, command: list[str]) -> None:
        self.task = task
        self.command = command
        self.started = False
        self.end: End | None = None
        self.resources: JsonObject = {}
        self.oom_score = 0


def _code(command: Sequence[str]) -> int | None:
    """What `sh -c "exit N"` ends with; None for a command that goes on."""
    word = command[-1].removeprefix("exit ")
    return int(word) if word != command[-1] else None


class FakeExec:
    def __init__(self, command: list[str]) -> None:
        self._ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        if (code := _code(command)) is not None:
            self._ended.set_result(code)

    async def wait(self) -> int:
        return await asyncio.shield(self._ended)

    async def kill(self) -> None:
        if not self._ended.done():
            self._ended.set_result(128 + signal.SIGKILL)


class FakeHandler:
    """`fail[method]` is raised by the method's next call, after it has done its work."""

    name = "fake"

    def __init__(self, places: Places) -> None:
        self._places = places
        self.fail: dict[str, Exception] = {}
        self.held: dict[str, _Held] = {}
        self._pids = itertools.count(4_000_000)  # above pid_max's default: no signal of a test meets a stranger
        self._watched: set[str] = set()
        self._ends: asyncio.Queue[str] = asyncio.Queue()

    def _may_fail(self, method: str) -> None:
        if (fault := self.fail.pop(method, None)) is not None:
            raise fault

    def _end(self, held: _Held, code: int) -> None:
        if held.end is None:
            held.end = End(code, time.time_ns())
            if held.task.id in self._watched:
                self._ends.put_nowait(held.task.id)

    async def create(self, launch: Launch) -> Task:
        Bundle(self._places.bundle(launch.task.id)).write(launch.document)
        process = launch.document["process"]
        assert isinstance(process, dict)
        made = Task(launch.task.id, launch.task.cgroup, next(self._pids), 1)
        self.held[made.id] = _Held(made, list(process["args"]))
        if launch.log_path:
            Path(launch.log_path).parent.mkdir(parents=True, exist_ok=True)
            Path(launch.log_path).touch()
        self._may_fail("create")
        return made

    async def start(self, task: Task) -> None:
        held = self.held.get(task.id)
        if held is None or held.end is not None:
            raise Failed(f"cannot start container {task.id}: it does not exist")
        held.started = True
        self._may_fail("start")
        if (code := _code(held.command)) is not None:
            self._end(held, code)

    async def kill(self, task: Task, number: int) -> bool:
        held = self.held.get(task.id)
        if held is None or held.end is not None:
            return False
        self._end(held, 128 + number)
        return True

    async def kill_all(self, task: Task) -> None:
        await self.kill(task, signal.SIGKILL)

    async def update(self, task: Task, resources: JsonObject) -> None:
        self._may_fail("update")
        self.held[task.id].resources |= resources

    async def set_oom_score(self, task: Task, score: int) -> None:
        self.held[task.id].oom_score = score
        Bundle(self._places.bundle(task.id)).change_process(oomScoreAdj=score)

    async def exec(self, task: Task, process: JsonObject, *, stdout: int, stderr: int) -> FakeExec:
        held = self.held.get(task.id)
        if held is None:
            raise FailedPrecondition(f"cannot run a command in container {task.id}: it is being removed")
        command = process["args"]
        assert isinstance(command, list)
        if command[0].startswith("/no/such"):
            os.write(stderr, b"no such file or directory")
            raise NotRun("exit code 1")
        return FakeExec(command)

    async def release(self, task: Task) -> None:
        self._may_fail("release")

    async def delete(self, task: Task, *, ended: bool) -> None:
        self._may_fail("delete")
        self.held.pop(task.id, None)
        Bundle(self._places.bundle(task.id)).remove()

    def watch(self, task: Task) -> None:
        self._watched.add(task.id)
        held = self.held.get(task.id)
        if held is None or held.end is not None:
            self._ends.put_nowait(task.id)

    async def ends(self) -> AsyncIterator[str]:
        while True:
            yield await self._ends.get()

    async def end_of(self, task: Task) -> End | None:
        held = self.held.get(task.id)
        return End(LOST_CODE, time.time_ns(), lost=True) if held is None else held.end

    async def recover(self, task: Task) -> bool:
        held = self.held.get(task.id)
        return held is not None and held.started and held.end is None

    async def reopen_log(self, task: Task, path: Path) -> None:
        held = self.held.get(task.id)
        if held is None or held.end is not None:
            raise FailedPrecondition(f"cannot reopen the log of container {task.id}: nobody writes it any more")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

    def session(self, task: Task, process: JsonObject, *, scratch: Path) -> ExecSession:
        return ExecSession(("true",), scratch / "process", encoded(process), scratch / "pid", None, 0)

    async def streams(self, task: Task) -> AttachSession:
        held = self.held.get(task.id)
        if held is None or held.end is not None:
            raise FailedPrecondition(f"cannot reach the streams of container {task.id}: nobody holds them any more")
        directory = self._places.bundle(task.id)
        return AttachSession(directory / "attach", directory / "ctl")

    async def usage(self, tasks: Sequence[Task]) -> Mapping[str, CgroupUsage]:
        return {task.id: _USAGE for task in tasks if task.id in self.held}

    def close(self) -> None:
        self._watched.clear()
