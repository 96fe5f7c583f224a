"""What the supervisor relies on in a runtime handler: conmon with a real runtime keeps it, and so does the fake."""

import asyncio
import contextlib
import os
import secrets
import shutil
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import pytest
import pytest_asyncio

from criw import kernel, orphans
from criw.config.supervisor import Runtime
from criw.errors import Failed, FailedPrecondition
from criw.ids import new_id
from criw.kernel import PR_SET_CHILD_SUBREAPER, prctl
from criw_supervisor.cgroups import hierarchies
from criw_supervisor.ledger.places import Places
from criw_supervisor.oci import JsonObject
from criw_supervisor.runtimes.bundle import Bundle
from criw_supervisor.runtimes.handler import Handler, Launch, NotRun, Task
from criw_supervisor.runtimes.oci import OciHandler
from support.fake_handler import FakeHandler

LIMIT_S: Final = 20.0
CLOCK_NS: Final = 20_000_000  # files have a coarser clock
WAITS: Final = ["sh", "-c", "while echo tick; do sleep 0.05; done"]
SHARES: Final = 512
MONITORS: Final = "monitors"


def exits(code: int) -> list[str]:
    return ["sh", "-c", f"exit {code}"]


class Case:
    """A handler, and tasks of its own that are gone at the end."""

    def __init__(self, handler: Handler, directory: Path, cgroup: str) -> None:
        self.handler = handler
        self.logs = directory / "logs"
        self.logs.mkdir()
        self._rootfs = directory / "rootfs"
        self._bundles = Places(directory / "run").bundles
        self._cgroup = cgroup
        self._made: list[Task] = []
        self._ends = handler.ends()

    async def create(self, command: list[str]) -> Task:
        """A created, watched task."""
        task_id = new_id()
        task = Task(task_id, f"{self._cgroup}/{task_id}")
        self._made.append(task)
        log = self.logs / f"{task_id}.log"
        made = await self.handler.create(Launch(task, "main", self._document(task, command), str(log)))
        self.handler.watch(made)
        return made

    async def run(self, command: list[str]) -> Task:
        task = await self.create(command)
        await self.handler.start(task)
        return task

    def shares(self, task: Task) -> int:
        """The CPU shares in force."""
        if isinstance(self.handler, FakeHandler):
            cpu = self.handler.held[task.id].resources["cpu"]
            assert isinstance(cpu, dict)
            return int(cpu["shares"])
        cgroups = hierarchies.of_host()
        directory = cgroups.directory("cpu", task.cgroup)
        assert directory is not None
        if cgroups.v2:  # as runc converts them
            weight = int((directory / "cpu.weight").read_text())
            return SHARES if weight == 1 + (SHARES - 2) * 9999 // 262142 else weight
        return int((directory / "cpu.shares").read_text())

    def oom_score(self, task: Task) -> int:
        """The score of the first process."""
        if isinstance(self.handler, FakeHandler):
            return self.handler.held[task.id].oom_score
        return int(Path(f"/proc/{task.pid}/oom_score_adj").read_text())

    def cgroups_of(self, pid: int) -> set[str]:
        """The cgroups a process is in, each named from the one all of this case's are in."""
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
        return {line.split(":")[2].removeprefix(self._cgroup) for line in lines}

    def bundle(self, task: Task) -> Bundle:
        return Bundle(self._bundles / task.id)

    def bundles(self) -> list[Path]:
        return list(self._bundles.iterdir())

    async def ended(self) -> str:
        """The next task that is told to have ended."""
        return await asyncio.wait_for(anext(self._ends), LIMIT_S)

    async def close(self) -> None:
        for task in self._made:
            await self.handler.delete(task, ended=False)
        self.handler.close()

    def _document(self, task: Task, command: list[str]) -> JsonObject:
        return {
            "ociVersion": "1.0.2",
            "root": {"path": os.fspath(self._rootfs)},
            "process": {"user": {"uid": 0, "gid": 0}, "args": command, "cwd": "/", "env": ["PATH=/bin"]},
            "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
            "linux": {
                "cgroupsPath": task.cgroup,
                "namespaces": [{"type": kind} for kind in ("pid", "mount", "ipc", "uts", "network")],
            },
        }


@contextlib.asynccontextmanager
async def real(directory: Path) -> AsyncIterator[Case]:
    conmon = shutil.which("conmon")
    assert conmon is not None
    busybox = Path("/bin/busybox")
    (directory / "rootfs/bin").mkdir(parents=True)
    shutil.copy(busybox, directory / "rootfs/bin/busybox")
    for name in ("sh", "sleep"):
        (directory / "rootfs/bin" / name).symlink_to("busybox")
    cgroups, parent = hierarchies.of_host(), f"/criw-unit-{secrets.token_hex(3)}"
    handler = OciHandler(
        "runc", Runtime(path=Path("runc")), monitor=conmon, monitors=f"{parent}/{MONITORS}",
        places=Places(directory / "run"), cgroups=cgroups,
    )  # fmt: skip
    yield Case(handler, directory, parent)
    await cgroups.remove(parent)
    assert not any(directory.exists() for directory in cgroups.directories(parent))
    prctl(PR_SET_CHILD_SUBREAPER, 0)  # other tests' orphans are none of ours


@pytest_asyncio.fixture(params=["fake", pytest.param("real", marks=pytest.mark.root)])
async def case(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Case]:
    if request.param == "fake":
        made = Case(FakeHandler(Places(tmp_path / "run")), tmp_path, "/criw")
        yield made
        await made.close()
        return
    orphans.become_subreaper()
    try:
        async with real(tmp_path) as made:
            try:
                yield made
            finally:
                await made.close()
    finally:
        kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 0)
        with contextlib.suppress(ChildProcessError):  # conmons, which were left to us
            while os.waitpid(-1, os.WNOHANG) != (0, 0):
                pass


async def test_a_task_waits_until_it_is_started(case: Case) -> None:
    task = await case.create(WAITS)
    assert task.pid > 0
    assert await case.handler.end_of(task) is None
    assert not await case.handler.recover(task)
    await case.handler.start(task)
    assert await case.handler.recover(task)


@pytest.mark.parametrize("code", [0, 3])
async def test_an_end_is_told_with_its_code_and_time(case: Case, code: int) -> None:
    begun = time.time_ns()
    task = await case.run(exits(code))
    assert await case.ended() == task.id
    end = await case.handler.end_of(task)
    assert end is not None
    assert (end.code, end.out_of_memory, end.lost) == (code, False, False)
    assert begun - CLOCK_NS <= end.at_ns <= time.time_ns()


async def test_a_signal_ends_a_task_and_is_its_code(case: Case) -> None:
    task = await case.run(WAITS)
    assert await case.handler.kill(task, signal.SIGKILL)
    assert await case.ended() == task.id
    end = await case.handler.end_of(task)
    assert end is not None
    assert end.code == 128 + signal.SIGKILL
    assert not await case.handler.kill(task, signal.SIGKILL)


async def test_a_task_that_is_killed_before_its_start_has_ended(case: Case) -> None:
    task = await case.create(WAITS)
    await case.handler.kill_all(task)
    assert await case.ended() == task.id
    with pytest.raises(Failed, match="cannot start container"):
        await case.handler.start(task)


async def test_an_end_before_the_watch_began_is_told_at_once(case: Case) -> None:
    task = await case.run(exits(0))
    assert await case.ended() == task.id
    case.handler.watch(task)
    assert await case.ended() == task.id


async def test_what_is_removed_is_gone_and_may_be_removed_again(case: Case) -> None:
    running = await case.run(WAITS)
    ended = await case.run(exits(0))
    assert await case.ended() == ended.id
    await case.handler.release(ended)
    await case.handler.delete(ended, ended=True)
    for _ in range(2):
        await case.handler.delete(running, ended=False)
    assert await case.handler.usage([running, ended]) == {}
    assert case.bundles() == []
    lost = await case.handler.end_of(running)
    assert lost is not None
    assert lost.lost


async def test_what_was_never_made_can_be_removed(case: Case) -> None:
    await case.handler.delete(Task(new_id(), "/criw-no-such/cgroup"), ended=False)


@pytest.mark.parametrize("code", [0, 7])
async def test_a_further_command_ends_with_its_code(case: Case, code: int) -> None:
    task = await case.run(WAITS)
    read, written = os.pipe()
    try:
        running = await case.handler.exec(task, _process(exits(code)), stdout=written, stderr=written)
        assert await asyncio.wait_for(running.wait(), LIMIT_S) == code
    finally:
        os.close(read)
        os.close(written)


async def test_a_further_command_can_be_killed(case: Case) -> None:
    task = await case.run(WAITS)
    with Path(os.devnull).open("wb") as nothing:
        running = await case.handler.exec(task, _process(WAITS), stdout=nothing.fileno(), stderr=nothing.fileno())
        await running.kill()
        assert await running.wait() == 128 + signal.SIGKILL


async def test_a_command_that_is_not_there_is_told_where_its_errors_go(case: Case) -> None:
    task = await case.run(WAITS)
    read, written = os.pipe()
    try:
        with pytest.raises(NotRun):
            await case.handler.exec(task, _process(["/no/such/program"]), stdout=written, stderr=written)
        assert b"no such file or directory" in os.read(read, 65536)
    finally:
        os.close(read)
        os.close(written)


async def test_the_log_is_written_to_a_new_file_once_the_old_one_was_renamed(case: Case) -> None:
    task = await case.run(WAITS)
    log = case.logs / f"{task.id}.log"
    log.rename(log.with_suffix(".1"))
    await case.handler.reopen_log(task, log)
    assert log.exists()
    assert not log.samefile(log.with_suffix(".1"))


async def test_an_ended_task_has_no_streams(case: Case) -> None:
    task = await case.run(WAITS)
    assert (await case.handler.streams(task)).socket.is_relative_to(case.bundle(task).directory)
    await case.handler.kill(task, signal.SIGKILL)
    assert await case.ended() == task.id
    with pytest.raises(FailedPrecondition):
        await case.handler.streams(task)
    with pytest.raises(FailedPrecondition):
        log = case.logs / f"{task.id}.log"
        log.unlink(missing_ok=True)
        await case.handler.reopen_log(task, log)


async def test_limits_change_and_use_is_told(case: Case) -> None:
    task = await case.run(WAITS)
    await case.handler.update(task, {"cpu": {"shares": SHARES}})
    assert case.shares(task) == SHARES
    usage = await case.handler.usage([task])
    assert usage[task.id].processes >= 1


async def test_an_oom_score_is_that_of_all_that_runs_and_of_what_is_run_later(case: Case) -> None:
    task = await case.run(WAITS)
    await case.handler.set_oom_score(task, 321)
    assert case.oom_score(task) == 321
    assert case.bundle(task).process(["true"])["oomScoreAdj"] == 321


def _process(command: list[str]) -> JsonObject:
    return {"user": {"uid": 0, "gid": 0}, "args": command, "cwd": "/", "env": ["PATH=/bin"], "terminal": False}


async def test_what_holds_a_task_is_in_neither_the_tasks_cgroup_nor_ours(case: Case) -> None:
    if isinstance(case.handler, FakeHandler):
        pytest.skip("nothing holds its tasks")
    task = await case.run(WAITS)
    conmon = int((case.bundle(task).directory / "conmon.pid").read_text())
    assert case.cgroups_of(conmon) == {f"/{MONITORS}"}
    assert case.cgroups_of(task.pid) == {f"/{task.id}"}
