"""Running programs: argument lists only, output captured, nothing left running when the caller goes away.

Programs are started by `subprocess`, which uses vfork(2), and watched through a pidfd. asyncio's own way is uvloop's
fork(2) here: it copies the page tables of a process of this size, which takes longer than most programs run.
"""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from criw.errors import DeadlineExceeded, FailedPrecondition
from criw.operations import run_to_end

_MESSAGE_LIMIT: Final = 2000
_CHUNK: Final = 65536
_OUTPUT_LIMIT: Final = 1024 * 1024
_KILL_LIMIT_S: Final = 10.0
_OWN_OOM_SCORE: Final = Path("/proc/self/oom_score_adj")


@dataclass(frozen=True)
class Completed:
    """What a program left: its exit code (negative: the signal that ended it) and its output."""

    code: int
    stdout: bytes
    stderr: bytes

    @property
    def message(self) -> str:
        """What it said about its failure, for an error message."""
        said = (self.stderr.strip() or self.stdout.strip()).decode(errors="replace")
        return said[-_MESSAGE_LIMIT:] or f"exit code {self.code}"


async def run(
    argv: Sequence[str],
    *,
    stdin: bytes | int | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    pass_fds: Sequence[int] = (),
    stdout: int = subprocess.PIPE,
    stderr: int = subprocess.PIPE,
    timeout_s: float = 60.0,
    started: Callable[[int], Awaitable[None]] | None = None,
) -> Completed:
    """Run a program to its end. If the caller is cancelled or `timeout_s` passes it is killed and reaped.

    Killed with it is whatever it started that has not made a session of its own. `stdin` is its input or a descriptor
    to read that from; none is an empty one. Output that is sent to a descriptor of the caller's is empty in the result;
    of what is more than a mebibyte the end is kept. `started` is awaited with the program's pid once it runs; what it
    raises ends the program.

    Raises FailedPrecondition if there is no such program, DeadlineExceeded after `timeout_s`.
    """
    process = _start(
        argv,
        stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE if isinstance(stdin, bytes) else stdin,
        stdout=stdout,
        stderr=stderr,
        env=env,
        cwd=cwd,
        pass_fds=pass_fds,
    )
    try:
        async with asyncio.timeout(timeout_s):
            if started is not None:
                await started(process.pid)
            async with asyncio.TaskGroup() as tasks:
                said = tasks.create_task(_read(process.stdout))
                complained = tasks.create_task(_read(process.stderr))
                tasks.create_task(_write(process.stdin, stdin if isinstance(stdin, bytes) else b""))
                tasks.create_task(_ended(process))
    except TimeoutError as err:
        raise DeadlineExceeded(f"cannot finish {argv[0]} {' '.join(argv[1:3])}: no end after {timeout_s:g} s") from err
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            await run_to_end(_ended(process), limit_s=_KILL_LIMIT_S)
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
    return Completed(process.returncode, said.result(), complained.result())


def _start(
    argv: Sequence[str],
    *,
    stdin: int,
    stdout: int,
    stderr: int,
    env: Mapping[str, str] | None,
    cwd: Path | None,
    pass_fds: Sequence[int],
) -> subprocess.Popen[bytes]:
    try:
        process = subprocess.Popen(
            argv,
            bufsize=0,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            env=env,
            cwd=cwd,
            pass_fds=pass_fds,
            start_new_session=True,
        )
    except FileNotFoundError as err:
        raise FailedPrecondition(f"cannot run {argv[0]}: there is no such program; install it") from err
    except (PermissionError, NotADirectoryError) as err:
        raise FailedPrecondition(f"cannot run {argv[0]}: {err.strerror}; is it the right path?") from err
    _let_be_killed(process.pid)
    return process


def _let_be_killed(pid: int) -> None:
    """What an agent starts is not spared when memory runs out, as the agent is: some runtimes pass that on."""
    if int(_OWN_OOM_SCORE.read_text()) < 0:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            Path(f"/proc/{pid}/oom_score_adj").write_text("0")


async def _ended(process: subprocess.Popen[bytes]) -> None:
    """Wait for the end of a program, and reap it."""
    pidfd = os.pidfd_open(process.pid)
    try:
        await _readable(pidfd)
        process.wait()
    finally:
        os.close(pidfd)


async def _read(pipe: IO[bytes] | None) -> bytes:
    """What comes out of a pipe until its last writer closes it; its last part if it is a lot."""
    if pipe is None:
        return b""
    fd, kept = pipe.fileno(), bytearray()
    os.set_blocking(fd, False)
    while True:
        await _readable(fd)
        if not (chunk := os.read(fd, _CHUNK)):
            return bytes(kept[-_OUTPUT_LIMIT:])
        kept += chunk
        if len(kept) > 2 * _OUTPUT_LIMIT:
            del kept[:-_OUTPUT_LIMIT]


async def read_line(fd: int) -> bytes:
    """The first line that comes out of a pipe; less where its last writer closes it before, or it is a mebibyte."""
    said = bytearray()
    os.set_blocking(fd, False)
    while not said.endswith(b"\n") and len(said) < _OUTPUT_LIMIT:
        await _readable(fd)
        if not (chunk := os.read(fd, _CHUNK)):
            break
        said += chunk
    return bytes(said)


async def _readable(fd: int) -> None:
    loop = asyncio.get_running_loop()
    await _ready(fd, loop.add_reader, loop.remove_reader)


async def _write(pipe: IO[bytes] | None, data: bytes) -> None:
    """Give a program its input, or as much of it as it reads."""
    if pipe is None:
        return
    loop, fd, rest = asyncio.get_running_loop(), pipe.fileno(), memoryview(data)
    os.set_blocking(fd, False)
    with contextlib.suppress(BrokenPipeError):
        while rest:
            await _ready(fd, loop.add_writer, loop.remove_writer)
            rest = rest[os.write(fd, rest) :]
    pipe.close()


async def _ready(fd: int, add: Callable[[int, Callable[[], None]], None], remove: Callable[[int], bool | None]) -> None:
    """Wait until a descriptor can be read or written, or is at its end."""
    event = asyncio.Event()
    add(fd, event.set)
    try:
        await event.wait()
    finally:
        remove(fd)


def runtime_words(text: str) -> str:
    """The message inside the log line the runtime wrote (runc: `level=error msg="…"`), else the text."""
    with contextlib.suppress(ValueError):
        _, found, quoted = text.rpartition('msg="')
        if found:
            return str(json.loads(f'"{quoted[: quoted.rindex(chr(34))]}"'))
    return text
