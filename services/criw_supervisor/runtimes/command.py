"""Further commands in a container, run by an OCI runtime that then leaves them to us (we are a subreaper)."""

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Final

from criw import orphans
from criw.errors import DeadlineExceeded, FailedPrecondition, Unavailable
from criw.operations import run_to_end
from criw.process import Completed, run
from criw_supervisor import processes
from criw_supervisor.oci import JsonObject
from criw_supervisor.runtimes.bundle import encoded
from criw_supervisor.runtimes.handler import NotRun

log = logging.getLogger(__name__)
_START_LIMIT_S: Final = 45.0
_END_LIMIT_S: Final = 10.0


class OciExec:
    """A command the runtime has left to us (`runtimes.handler.Exec`).

    Its files stay until its end: should we die first, the next supervisor finds it by them and ends it.
    """

    def __init__(self, pid: int, files: Sequence[Path], members: Callable[[], Collection[int]]) -> None:
        self._pid = pid
        self._members = members
        self._ending = asyncio.create_task(orphans.wait_adopted(pid), name=f"exec {pid}")
        self._ending.add_done_callback(lambda ending: None if ending.cancelled() else _remove(files))

    def be_scored(self, score: object) -> None:
        """Give it the oom_score_adj of its container as that is now: runtimes know the one from its start, or none."""
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            Path(f"/proc/{self._pid}/oom_score_adj").write_text(str(score or 0))

    async def wait(self) -> int:
        return await asyncio.shield(self._ending)

    async def kill(self) -> None:
        if self._ending.done():  # it was reaped: its pid may be another's
            return
        try:
            await processes.kill_family(self._pid, self._members)
            await self._ending
        except Unavailable as err:
            log.warning("a command is left in a container", extra={"error": str(err)})
        finally:
            self._ending.cancel()


async def start_command(
    runtime: Sequence[str],
    container_id: str,
    process: JsonObject,
    *,
    files: tuple[Path, Path],
    members: Callable[[], Collection[int]],
    stdout: int,
    stderr: int,
) -> OciExec:
    """Run a command with `runtime` (program and global arguments): see `runtimes.handler.Handler.exec`.

    `files` are for the OCI process object and the pid; `members` are the processes of the container.
    """
    process_file, pid_file = files
    try:
        await asyncio.to_thread(_write_process, process_file, process)
        words = ("exec", "--detach", "--process", os.fspath(process_file), "--pid-file", os.fspath(pid_file))
        starting = asyncio.ensure_future(run([*runtime, *words, container_id], stdout=stdout, stderr=stderr))
        try:
            async with asyncio.timeout(_START_LIMIT_S):
                done = await asyncio.shield(starting)
        except (asyncio.CancelledError, TimeoutError):
            await run_to_end(_end_started(starting, files, members), limit_s=_END_LIMIT_S)
            raise
        if done.code:
            raise NotRun(f"exit code {done.code}")
        command = OciExec(int(pid_file.read_text()), files, members)
        command.be_scored(process.get("oomScoreAdj"))
        return command
    except BaseException as err:
        _remove(files)
        if isinstance(err, TimeoutError):
            raise DeadlineExceeded(
                f"cannot run a command in container {container_id}: it was not started in {_START_LIMIT_S:g} s"
            ) from err
        if isinstance(err, FileNotFoundError):
            raise FailedPrecondition(f"cannot run a command in container {container_id}: it is being removed") from err
        raise


def _remove(files: Sequence[Path]) -> None:
    for path in files:
        path.unlink(missing_ok=True)


async def _end_started(
    starting: asyncio.Future[Completed], files: Sequence[Path], members: Callable[[], Collection[int]]
) -> None:
    """End a command that may be about to start, and the runtime: it may wait for ever for a file of the container."""
    process_file, pid_file = files
    await processes.kill_starter(os.fspath(process_file))
    await starting
    # Not started, or over already, and perhaps reaped.
    with contextlib.suppress(FileNotFoundError, ValueError, ProcessLookupError, ChildProcessError):
        await OciExec(int(pid_file.read_text()), files, members).kill()


def _write_process(path: Path, process: JsonObject) -> None:
    path.write_bytes(encoded(process))
