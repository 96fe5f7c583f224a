"""conmon: a small process for each container, which holds its standard streams, writes its log, keeps its exit code.

conmon starts the OCI runtime as its child and outlives the supervisor. It keeps its files in the container's bundle:
`conmon.pid`, `exit/<container id>` (the code, there before conmon ends), `ctl` (a FIFO for orders) and `attach` (a
socket). Nobody but this module reads them.
"""

import asyncio
import contextlib
import errno
import json
import logging
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from asyncinotify import Mask

from criw.errors import Failed, FailedPrecondition, Unavailable
from criw.inotify import watching
from criw.operations import until_gone
from criw.process import read_line, run, runtime_words
from criw_supervisor import processes
from criw_supervisor.runtimes.bundle import Bundle
from criw_supervisor.runtimes.handler import AttachSession, Launch

log = logging.getLogger(__name__)
CREATE_LIMIT_S: Final = 120.0
_REOPEN: Final = b"2 0 0\n"  # conmon's control message: type 2, two numbers it does not use
_REOPEN_LIMIT_S: Final = 10.0
_KILL_LIMIT_S: Final = 5.0


@dataclass(frozen=True)
class Exit:
    """What conmon tells of the end of its container; the code is 128 + the signal for one that was killed."""

    code: int
    at_ns: int


def command(conmon: str, runtime: Sequence[str], launch: Launch, bundle: Bundle) -> list[str]:
    """The command line that makes a container with `runtime` (program and global arguments)."""
    program, *arguments = runtime
    directory, container_id = bundle.directory, launch.task.id
    words = [
        conmon,
        *("--api-version", "1", "--cid", container_id, "--cuuid", container_id, "--name", launch.name),
        *("--runtime", program, "--bundle", os.fspath(directory)),
        *("--container-pidfile", os.fspath(directory / "pid"), "--conmon-pidfile", os.fspath(_pid_file(bundle))),
        *("--exit-dir", os.fspath(directory / "exit"), "--full-attach", "--log-level", "error"),
        *("--log-path", f"k8s-file:{launch.log_path}" if launch.log_path else "off:"),
        *(f"--runtime-arg={word}" for word in arguments),
    ]
    if launch.terminal:
        words.append("--terminal")
    if launch.stdin:
        words.append("--stdin")
        if not launch.stdin_once or launch.terminal:  # whoever leaves a terminal may come back to it
            words.append("--leave-stdin-open")
    return words


def _pid_file(bundle: Bundle) -> Path:
    return bundle.directory / "conmon.pid"


async def create(
    conmon: str, runtime: Sequence[str], launch: Launch, bundle: Bundle, place: Callable[[int], None]
) -> int:
    """Have conmon make the container; the pid of its first process, which waits to be started.

    `place` puts conmon, by its pid, into the cgroup it is to live in, and blocks; conmon does nothing before. The log's
    directory must be there. Raises Failed with what the runtime said.
    """
    (bundle.directory / "exit").mkdir()
    told, write_end = os.pipe()
    blocked, go = os.pipe()

    async def started(pid: int) -> None:
        await asyncio.to_thread(place, pid)
        os.write(go, b"\n")

    complaints = bundle.directory / "conmon.log"
    try:
        with complaints.open("wb") as stderr:  # no pipe: conmon would hold it for its whole life
            try:
                # conmon forks itself into the background; the sync pipe tells how the runtime fared.
                await run(
                    command(conmon, runtime, launch, bundle),
                    env={**os.environ, "_OCI_SYNCPIPE": str(write_end), "_OCI_STARTPIPE": str(blocked)},
                    cwd=bundle.directory,  # where it leaves a file if the container runs out of memory
                    pass_fds=[write_end, blocked],
                    stdout=asyncio.subprocess.DEVNULL,
                    stderr=stderr.fileno(),
                    timeout_s=CREATE_LIMIT_S,
                    started=started,
                )
            finally:
                for end in (write_end, blocked, go):
                    os.close(end)
        line = await asyncio.wait_for(read_line(told), CREATE_LIMIT_S)
    finally:
        os.close(told)
    return created_pid(launch.name, line, complaints)


def created_pid(name: str, line: bytes, complaints: Path) -> int:
    """The pid in what conmon wrote to its sync pipe. Raises Failed with the cause it gives there or in its log."""
    try:
        told = json.loads(line)
        pid = int(told.get("pid", told.get("data", -1)))
        message = str(told.get("message", ""))
    except ValueError:
        pid, message = -1, ""
    if pid > 0:
        return pid
    cause = message.strip() or complaints.read_text(errors="replace").strip() or "conmon ended without a word"
    raise Failed(f"cannot create container {name}: {runtime_words(cause)}")


def read_exit(bundle: Bundle) -> Exit | None:
    """The exit conmon recorded; None if the container has not ended, or conmon died or had no space to tell of it."""
    path = bundle.directory / "exit" / bundle.directory.name
    try:
        return Exit(int(path.read_text()), path.stat().st_mtime_ns)
    except (FileNotFoundError, ValueError):
        return None


def is_there(bundle: Bundle) -> bool:
    """Whether the container's conmon lives."""
    return bool(pid := _pid(bundle)) and os.fspath(bundle.directory) in processes.command_line(pid)


def _pid(bundle: Bundle) -> int:
    try:
        return int(_pid_file(bundle).read_text())
    except (FileNotFoundError, ValueError):
        return 0


async def kill_makers(bundle: Bundle) -> None:
    """Kill conmon and the runtime that work on a bundle, also ones whose pid files were never written.

    Raises Unavailable if some survive.
    """
    mark = os.fspath(bundle.directory)

    def look() -> list[int]:  # again and again: one may have started another before it died
        found = [pid for pid in processes.pids() if mark in processes.command_line(pid)]
        for pid in found:
            processes.send_signal(pid, processes.start_time(pid), signal.SIGKILL)
        return found

    if left := await until_gone(_KILL_LIMIT_S, look):
        raise Unavailable(f"cannot kill processes {left}, which work on {bundle.directory}; try again")


def open_pidfd(bundle: Bundle) -> int | None:
    """A pidfd of the container's conmon; None if it is gone. Raises OSError."""
    if not (pid := _pid(bundle)):
        return None
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    with contextlib.ExitStack() as undo:
        undo.callback(os.close, fd)
        if not is_there(bundle):  # asked while the descriptor holds whatever has the pid
            return None
        undo.pop_all()
    return fd


async def reopen_log(bundle: Bundle, path: Path) -> None:
    """Ask conmon to open the log anew; returns once the file is there.

    Its directory must be there. Raises FailedPrecondition if conmon has ended, Unavailable if it does not answer.
    """
    if await asyncio.to_thread(_is_open, bundle, path):
        return  # nobody renamed it; conmon would replace it with an empty one
    # conmon makes the file beside it and renames it into place.
    with watching(path.parent, Mask.MOVED_TO) as events:
        await asyncio.to_thread(_order, bundle, _REOPEN)
        try:
            async with asyncio.timeout(_REOPEN_LIMIT_S):
                while str((await events.get()).name) != path.name:
                    pass
        except TimeoutError as err:
            raise Unavailable(
                f"cannot reopen the log of container {bundle.directory.name}: its conmon does not answer"
            ) from err


def _is_open(bundle: Bundle, path: Path) -> bool:
    """Whether conmon writes to the file that has this path now."""
    try:
        log = path.stat()
        opened = list(Path(f"/proc/{_pid(bundle)}/fd").iterdir())
    except FileNotFoundError:
        return False
    for entry in opened:
        with contextlib.suppress(FileNotFoundError):  # it was closed meanwhile
            if os.path.samestat(entry.stat(), log):
                return True
    return False


def _order(bundle: Bundle, message: bytes) -> None:
    try:
        fd = os.open(bundle.directory / "ctl", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as err:
        if err.errno in {errno.ENXIO, errno.ENOENT}:
            raise _gone("reopen the log", bundle) from err
        raise
    try:
        os.write(fd, message)
    finally:
        os.close(fd)


def streams(bundle: Bundle) -> AttachSession:
    """Where the container's streams are served: packets of a stream number and its bytes.

    Raises FailedPrecondition if conmon has ended.
    """
    if not is_there(bundle):
        raise _gone("reach the streams", bundle)
    return AttachSession(socket=bundle.directory / "attach", control=bundle.directory / "ctl")


def _gone(what: str, bundle: Bundle) -> FailedPrecondition:
    return FailedPrecondition(f"cannot {what} of container {bundle.directory.name}: its conmon has ended")
