"""ExecSync: running a further command in a container and collecting what it says."""

import asyncio
import logging
import os
from dataclasses import dataclass
from typing import Final

from criw.errors import DeadlineExceeded, Failed, FailedPrecondition, InvalidArgument
from criw.operations import run_to_end
from criw.process import runtime_words
from criw_supervisor.ledger.container import Container
from criw_supervisor.ledger.places import Places
from criw_supervisor.runtimes.bundle import Bundle
from criw_supervisor.runtimes.handler import Exec, NotRun, task_of
from criw_supervisor.runtimes.handlers import Handlers

log = logging.getLogger(__name__)
_PIPE_READ: Final = 65536
_KILL_LIMIT_S: Final = 10.0
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
        self._ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(self._read_end, self._read)

    def _read(self) -> None:
        data = os.read(self._read_end, _PIPE_READ)
        self._kept += data[: self._limit - len(self._kept)]
        if not data:
            asyncio.get_running_loop().remove_reader(self._read_end)
            self._ended.set()

    def close_write_end(self) -> None:
        if self.write_end >= 0:
            os.close(self.write_end)
            self.write_end = -1

    async def wait_for_rest(self) -> None:
        """Wait until the last writer is gone, or a moment if something the command left behind holds the pipe."""
        try:
            await asyncio.wait_for(self._ended.wait(), _AFTER_END_S)
        except TimeoutError:
            log.debug("an exec left a process that holds its pipe")

    def text(self) -> bytes:
        """What has come so far."""
        return bytes(self._kept)

    def close(self) -> bytes:
        """Stop reading; everything kept."""
        self.close_write_end()
        asyncio.get_running_loop().remove_reader(self._read_end)
        os.close(self._read_end)
        return self.text()


class Execs:
    def __init__(self, handlers: Handlers, places: Places, *, output_limit: int) -> None:
        self._handlers = handlers
        self._places = places
        self._output_limit = output_limit

    async def run_sync(self, container: Container, command: list[str], *, timeout_s: float) -> ExecResult:
        """Run `command` and wait for its end, at most `timeout_s` seconds (0: for ever), its start included.

        It has the container's user, environment and limits. Raises FailedPrecondition if the container does not run,
        DeadlineExceeded after the timeout, with the command and what it started killed; Failed if it cannot be run.
        """
        if not command:
            raise InvalidArgument(f"cannot run a command in container {container.id}: cmd is empty")
        if timeout_s < 0:
            raise InvalidArgument(f"cannot run a command in container {container.id}: timeout must not be negative")
        if not container.running:
            raise FailedPrecondition(
                f"cannot run a command in container {container.id}: it is {container.record.state}"
            )
        out, err = Capture(self._output_limit), Capture(self._output_limit)
        try:
            try:
                async with asyncio.timeout(timeout_s or None):
                    running = await self._start(container, command, out, err)
                    code = await _wait(running)
            except TimeoutError as late:
                raise DeadlineExceeded(f"cannot finish the command within {timeout_s:g} s: it was killed") from late
            for pipe in (out, err):
                await pipe.wait_for_rest()
        finally:
            stdout, stderr = out.close(), err.close()
        return ExecResult(stdout, stderr, code)

    async def _start(self, container: Container, command: list[str], out: Capture, err: Capture) -> Exec:
        handler = self._handlers.of_record(container.record.runtime)
        process = await asyncio.to_thread(Bundle(self._places.bundle(container.id)).process, command)
        try:
            return await handler.exec(task_of(container.record), process, stdout=out.write_end, stderr=err.write_end)
        except NotRun as refused:
            err.close_write_end()
            await err.wait_for_rest()
            why = runtime_words(err.text().decode(errors="replace").strip()) or str(refused)
            raise Failed(f"cannot run a command in container {container.id}: {why}") from refused
        finally:
            out.close_write_end()
            err.close_write_end()


async def _wait(running: Exec) -> int:
    try:
        return await running.wait()
    except asyncio.CancelledError:
        await run_to_end(running.kill(), limit_s=_KILL_LIMIT_S)
        raise
