"""Exec: a command in a container, with pipes or a terminal that lead to the client."""

import asyncio
import contextlib
import fcntl
import logging
import os
import signal
import socket
import struct
import subprocess
import termios
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Final

from criw import process
from criw.errors import DeadlineExceeded, Failed, Fault
from criw.orphans import wait_adopted
from criw_proto.criw.streams.v1 import Command, Ends
from criw_streams import fds
from criw_streams.client import Channel, Client, Gone, Size
from criw_streams.status import Status, of_exit

log = logging.getLogger(__name__)
_START_LIMIT_S: Final = 45.0
_COMPLAINT: Final = 4096  # bytes of what the runtime says


class Running:
    """A command that runs, and our ends of what it reads and writes."""

    def __init__(
        self,
        pid: int,
        stdin: fds.Writer | None,
        outputs: dict[Channel, fds.Reader],
        terminal: int | None,
    ) -> None:
        self.stdin = stdin
        self.outputs = outputs
        self._terminal = terminal
        self.ending = asyncio.create_task(wait_adopted(pid), name=f"exec {pid}")

    def resize(self, size: Size) -> None:
        if self._terminal is not None:
            fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, struct.pack("HHHH", size.height, size.width, 0, 0))

    def hang_up(self) -> None:
        """The client is gone: a terminal is closed, of which SIGHUP tells; else there is no more input."""
        if self.stdin is not None:
            self.stdin.close()
        if self._terminal is not None:
            self._terminal = None
            for reader in self.outputs.values():
                reader.close()


async def run(command: Command, client: Client) -> None:
    """Run the command for its client, to the end of either.

    A command without a terminal goes on when its client is gone, with its input at an end and its output dropped.
    """
    try:
        async with _started(command) as running:
            status = await _serve(running, client, terminal=_ends(command).terminal)
    except (Fault, OSError) as err:
        log.info("cannot run a command", extra={"container": command.container_id, "error": str(err)})
        status = Status(f"error executing command in container: {err}")
    await client.end(status)


def _ends(command: Command) -> Ends:
    return command.ends or Ends()


async def _serve(running: Running, client: Client, *, terminal: bool) -> Status:
    outputs = [
        asyncio.create_task(_send(reader, channel, client), name=f"{channel.name.lower()}")
        for channel, reader in running.outputs.items()
    ]
    serving = [
        asyncio.create_task(_feed(client, running.stdin, close=not terminal), name="stdin"),
        asyncio.create_task(_resize(client, running), name="resize"),
        asyncio.create_task(_hang_up(client, running), name="client"),
    ]
    try:
        code = await asyncio.shield(running.ending)
        for reader in running.outputs.values():
            reader.end_after_rest()
        await asyncio.gather(*outputs)
    finally:
        for task in (*outputs, *serving):
            task.cancel()
        await asyncio.gather(*outputs, *serving, return_exceptions=True)
    return of_exit(code)


async def _send(reader: fds.Reader, channel: Channel, client: Client) -> None:
    """Send what the command writes; drop it once the client does not want it."""
    wanted = channel in _channels(client.ends)
    while data := await reader.read():
        if wanted:
            try:
                await client.write(channel, data)
            except Gone:
                wanted = False


def _channels(ends: Ends) -> set[Channel]:
    return {channel for channel, there in ((Channel.STDOUT, ends.stdout), (Channel.STDERR, ends.stderr)) if there}


async def _feed(client: Client, stdin: fds.Writer | None, *, close: bool) -> None:
    """Give the command its input; what it does not read any more is dropped, so that it does not hold up the rest."""
    try:
        while data := await client.read():
            if stdin is not None:
                await stdin.write(data)
    except OSError:
        while await client.read():
            pass
    finally:
        if close and stdin is not None:
            stdin.close()


async def _resize(client: Client, running: Running) -> None:
    while (size := await client.size()) is not None:
        running.resize(size)


async def _hang_up(client: Client, running: Running) -> None:
    await client.gone.wait()
    running.hang_up()


# --- its start


@contextlib.asynccontextmanager
async def _started(command: Command) -> AsyncIterator[Running]:
    """The command while it runs. Leaving the block closes our ends; the command may go on.

    Raises Failed with what the runtime said.
    """
    process_file, pid_file = Path(command.process_file), Path(command.pid_file)
    ends = _ends(command)
    start = _start_with_terminal if ends.terminal else _start_with_pipes
    with ExitStack() as closing:
        try:
            await asyncio.to_thread(_write, process_file, command.process)
            async with AsyncExitStack() as undo:
                undo.push_async_callback(_end_started, pid_file)
                running = await start(command, ends, closing)
                undo.pop_all()
            _be_scored(Path(f"/proc/{_pid_in(command.pid_file)}/oom_score_adj"), command.oom_score_adj)
        finally:
            process_file.unlink(missing_ok=True)  # the environment is in it
            pid_file.unlink(missing_ok=True)
        try:
            yield running
        finally:
            if not running.ending.done():
                running.ending.add_done_callback(_told)


def _told(ending: asyncio.Task[int]) -> None:
    """The command outlived its session; it is reaped all the same."""
    if not ending.cancelled() and (err := ending.exception()) is not None:
        log.warning("cannot await a command", extra={"command": ending.get_name(), "error": str(err)})


def _write(path: Path, content: bytes) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)


def _be_scored(file: Path, score: int) -> None:
    """Runtimes give it the score that its container had when it was made, or none."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
        file.write_text(str(score))


async def _end_started(pid_file: Path) -> None:
    """A command whose start failed or was given up, and that may have begun."""
    with contextlib.suppress(FileNotFoundError, ValueError, ProcessLookupError, ChildProcessError):
        pid = int(pid_file.read_text())
        os.kill(pid, signal.SIGKILL)
        await wait_adopted(pid)


async def _start(command: Command, *, stdin: int | None, stdout: int, stderr: int) -> process.Completed:
    try:
        return await process.run(command.start, stdin=stdin, stdout=stdout, stderr=stderr, timeout_s=_START_LIMIT_S)
    except DeadlineExceeded as err:
        raise DeadlineExceeded(f"it was not started in {_START_LIMIT_S:g} s") from err


async def _start_with_pipes(command: Command, ends: Ends, closing: ExitStack) -> Running:
    outputs: dict[Channel, fds.Reader] = {}
    stdin: fds.Writer | None = None
    given: int | None = None
    with ExitStack() as theirs:
        if ends.stdin:
            given, ours = fds.pipe()
            theirs.callback(os.close, given)
            stdin = fds.Writer(ours)
            closing.callback(stdin.close)
        writing = {}
        for channel in Channel:
            ours, writing[channel] = fds.pipe()
            theirs.callback(os.close, writing[channel])
            outputs[channel] = fds.Reader(ours)
            closing.callback(outputs[channel].close)
        done = await _start(command, stdin=given, stdout=writing[Channel.STDOUT], stderr=writing[Channel.STDERR])
    if done.code:
        outputs[Channel.STDERR].end_after_rest()
        raise _refused(await outputs[Channel.STDERR].read(), done)
    return Running(_pid_in(command.pid_file), stdin, outputs, None)


async def _start_with_terminal(command: Command, ends: Ends, closing: ExitStack) -> Running:
    path = Path(command.console_socket)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as listener:
        closing.callback(path.unlink, missing_ok=True)
        listener.bind(command.console_socket)
        path.chmod(0o600)
        listener.listen(1)
        listener.setblocking(False)
        done = await _start(command, stdin=None, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        if done.code:
            raise _refused(done.stderr, done)
        try:
            connection, _ = listener.accept()
        except BlockingIOError as err:
            raise Failed("the runtime has sent no terminal") from err
    with connection:
        terminal = _received(connection)
    reader, stdin = fds.Reader(terminal, terminal=True), fds.Writer(os.dup(terminal))
    closing.callback(stdin.close)
    closing.callback(reader.close)
    return Running(_pid_in(command.pid_file), stdin, {Channel.STDOUT: reader}, terminal)


def _pid_in(file: str) -> int:
    """Raises Failed and FileNotFoundError."""
    text = Path(file).read_text()
    if not text.strip().isdecimal():
        raise Failed(f"the runtime has left no pid in {file}, but {text!r}")
    return int(text)


def _received(connection: socket.socket) -> int:
    """The terminal's other end, which the runtime had sent before it ended."""
    connection.setblocking(False)
    try:
        _, (terminal, *others), _, _ = socket.recv_fds(connection, 4096, 1)
    except (BlockingIOError, ValueError) as err:
        raise Failed("the runtime has sent no terminal") from err
    for other in others:
        os.close(other)
    os.set_inheritable(terminal, False)
    return terminal


def _refused(said: bytes, done: process.Completed) -> Failed:
    text = said[-_COMPLAINT:].decode(errors="replace").strip()
    return Failed(process.runtime_words(text) or done.message)
