"""Running a further command in a container and collecting what it says (ExecSync)."""

import asyncio
import contextlib
import json
import logging
import os
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from criw.errors import DeadlineExceeded, Failed, FailedPrecondition, InvalidArgument, Unavailable
from criw.operations import run_to_end
from criw.process import Completed, run
from criw_supervisor import processes
from criw_supervisor.cgroups import Cgroups
from criw_supervisor.containers import read_spec
from criw_supervisor.pod import Container
from criw_supervisor.records import ContainerState
from criw_supervisor.runtime import Handlers, runtime_words

log = logging.getLogger(__name__)
_PIPE_READ: Final = 65536
_END_LIMIT_S: Final = 10.0
_PAUSE_S: Final = 0.005
_AFTER_END_S: Final = 0.2  # for what the command wrote last, if something it left behind keeps the pipe open


@dataclass(frozen=True)
class ExecResult:
    stdout: bytes
    stderr: bytes
    exit_code: int


class Capture:
    """The reading end of a pipe: keeps up to `limit` bytes and drops what comes after them."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept = bytearray()
        self._read_end, self.write_end = os.pipe()
        os.set_blocking(self._read_end, False)
        self.ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(self._read_end, self._read)

    def _read(self) -> None:
        data = os.read(self._read_end, _PIPE_READ)
        self._kept += data[: self._limit - len(self._kept)]
        if not data:
            asyncio.get_running_loop().remove_reader(self._read_end)
            self.ended.set()

    def close_write_end(self) -> None:
        if self.write_end >= 0:
            os.close(self.write_end)
            self.write_end = -1

    def text(self) -> bytes:
        """What has come so far."""
        return bytes(self._kept)

    def close(self) -> bytes:
        """Stop reading; everything kept."""
        self.close_write_end()
        asyncio.get_running_loop().remove_reader(self._read_end)
        os.close(self._read_end)
        return bytes(self._kept)


class Execs:
    """Needs this process to be a subreaper: the command is left to us by the runtime (see `processes`)."""

    def __init__(self, handlers: Handlers, *, output_limit: int) -> None:
        self._handlers = handlers
        self._output_limit = output_limit

    async def run_sync(self, container: Container, command: list[str], *, timeout_s: float) -> ExecResult:
        """Run `command` and wait for its end, at most `timeout_s` seconds (0: for ever).

        It has the container's user, environment and limits. Raises FailedPrecondition if the container does not run,
        DeadlineExceeded after the timeout, with the command and what it started killed; Failed if it cannot be run.
        """
        if not command:
            raise InvalidArgument(f"cannot run a command in container {container.id}: cmd is empty")
        if container.record.state is not ContainerState.RUNNING:
            raise FailedPrecondition(
                f"cannot run a command in container {container.id}: it is {container.record.state}"
            )
        token = secrets.token_hex(8)
        process_file = container.bundle / f"exec-{token}.json"
        pid_file = container.bundle / f"exec-{token}.pid"
        out, err = Capture(self._output_limit), Capture(self._output_limit)
        try:
            await asyncio.to_thread(_write_process, container, command, process_file)
            pid = await self._spawn(container, process_file, pid_file, out, err)
            code = await self._wait(pid, timeout_s)
            for pipe in (out, err):
                try:
                    await asyncio.wait_for(pipe.ended.wait(), _AFTER_END_S)
                except TimeoutError:
                    log.debug("an exec left a process that holds its pipe", extra={"container": container.id})
        except FileNotFoundError as missing:
            raise FailedPrecondition(
                f"cannot run a command in container {container.id}: it is being removed"
            ) from missing
        finally:
            stdout, stderr = out.close(), err.close()
            process_file.unlink(missing_ok=True)
            pid_file.unlink(missing_ok=True)
        return ExecResult(stdout, stderr, code)

    async def _spawn(self, container: Container, process_file: Path, pid_file: Path, out: Capture, err: Capture) -> int:
        handler = self._handlers.of_record(container.record.runtime)
        starting = asyncio.ensure_future(
            run(
                handler.exec_command(container.id, process_file, pid_file),
                stdout=out.write_end,
                stderr=err.write_end,
            )
        )
        try:
            done = await asyncio.shield(starting)
        except asyncio.CancelledError:
            await run_to_end(_end_started(starting, pid_file), limit_s=_END_LIMIT_S)
            raise
        out.close_write_end()
        err.close_write_end()
        if done.code:
            with contextlib.suppress(TimeoutError):  # something it left behind holds the pipe
                await asyncio.wait_for(err.ended.wait(), _AFTER_END_S)
            message = err.text().decode(errors="replace").strip() or f"exit code {done.code}"
            raise Failed(f"cannot run a command in container {container.id}: {runtime_words(message)}")
        return int(pid_file.read_text())

    async def _wait(self, pid: int, timeout_s: float) -> int:
        ending = asyncio.create_task(processes.wait_adopted(pid), name=f"exec {pid}")
        try:
            done, _ = await asyncio.wait({ending}, timeout=timeout_s or None)
        except asyncio.CancelledError:
            await run_to_end(_end(pid, ending), limit_s=_END_LIMIT_S)
            raise
        if done:
            return ending.result()
        await run_to_end(_end(pid, ending), limit_s=_END_LIMIT_S)
        raise DeadlineExceeded(f"cannot finish the command within {timeout_s:g} s: it was killed")


async def _end_started(starting: asyncio.Future[Completed], pid_file: Path) -> None:
    """End a command that may be about to start: once it is known whether it has."""
    await starting
    if pid_file.exists():
        pid = int(pid_file.read_text())
        await _end(pid, asyncio.create_task(processes.wait_adopted(pid), name=f"exec {pid}"))


async def _end(pid: int, ending: asyncio.Task[int]) -> None:
    try:
        await asyncio.to_thread(processes.kill_family, pid)
        await ending
    except Unavailable as err:
        log.warning("a command is left in a container", extra={"error": str(err)})
    finally:
        ending.cancel()


def end_leftovers(containers: Sequence[Container], cgroups: Cgroups) -> None:
    """End the commands whose caller went away with the supervisor that ran them. Blocking, for its next start."""
    for container in containers:
        if not any(container.bundle.glob("exec-*")):
            continue
        mark = os.fspath(container.bundle / "exec-")
        until = time.monotonic() + _END_LIMIT_S
        while any(word.startswith(mark) for pid in processes.pids() for word in processes.command_line(pid)):
            if time.monotonic() > until:
                log.warning("a runtime does not finish an exec", extra={"container": container.id})
                break
            time.sleep(_PAUSE_S)  # the runtime writes the pid file last
        for pid_file in container.bundle.glob("exec-*.pid"):
            pid = int(pid_file.read_text() or 0)
            if pid in cgroups.processes(container.record.cgroup):  # and not another's by now
                processes.kill_family(pid)
        for left in container.bundle.glob("exec-*"):
            left.unlink()


def _write_process(container: Container, command: list[str], path: Path) -> None:
    process = read_spec(container).get("process")
    if not isinstance(process, dict):
        raise FailedPrecondition(f"cannot run a command in container {container.id}: its bundle is gone")
    path.write_text(
        json.dumps({**process, "args": command, "terminal": False}), encoding="utf-8", errors="surrogateescape"
    )
