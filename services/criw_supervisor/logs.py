"""Making conmon write a container's log to a new file at the same path, after the kubelet has renamed the old one."""

import asyncio
import contextlib
import errno
import os
from pathlib import Path
from typing import Final

from asyncinotify import Mask

from criw.errors import FailedPrecondition, Unavailable
from criw.inotify import watching
from criw.locks import KeyedLocks
from criw_supervisor.launch import make_log_directory
from criw_supervisor.pod import Container
from criw_supervisor.records import ContainerState

_REOPEN: Final = b"2 0 0\n"  # conmon's control message: type 2, two numbers it does not use
_LIMIT_S: Final = 10.0


async def reopen(container: Container, locks: KeyedLocks) -> None:
    """Ask conmon to open the log anew; returns once the file is there.

    One at a time for a container: a second request would have conmon replace the file it has just begun.

    Raises FailedPrecondition if the container does not run or has no log, InvalidArgument if its directory is gone and
    cannot be made, Unavailable if conmon does not answer.
    """
    async with locks.hold(container.id):
        if container.record.state is not ContainerState.RUNNING:
            raise FailedPrecondition(
                f"cannot reopen the log of container {container.id}: it is {container.record.state}, not running"
            )
        if not container.record.log_path:
            raise FailedPrecondition(f"cannot reopen the log of container {container.id}: it was created without one")
        await _reopen(container, Path(container.record.log_path))


async def _reopen(container: Container, path: Path) -> None:
    if await asyncio.to_thread(_is_open, container, path):
        return  # nobody renamed it; conmon would replace it with an empty one
    await asyncio.to_thread(make_log_directory, path)
    # conmon makes the file beside it and renames it into place.
    with watching(path.parent, Mask.MOVED_TO) as events:
        await asyncio.to_thread(_tell, container)
        try:
            async with asyncio.timeout(_LIMIT_S):
                while str((await events.get()).name) != path.name:
                    pass
        except TimeoutError as err:
            raise Unavailable(f"cannot reopen the log of container {container.id}: its conmon does not answer") from err


def _is_open(container: Container, path: Path) -> bool:
    """Whether conmon writes to the file that has this path now."""
    try:
        log = path.stat()
        conmon = int((container.bundle / "conmon.pid").read_text())
        opened = list(Path(f"/proc/{conmon}/fd").iterdir())
    except FileNotFoundError:
        return False
    for entry in opened:
        with contextlib.suppress(FileNotFoundError):  # it was closed meanwhile
            if os.path.samestat(entry.stat(), log):
                return True
    return False


def _tell(container: Container) -> None:
    try:
        fd = os.open(container.bundle / "ctl", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as err:
        if err.errno in {errno.ENXIO, errno.ENOENT}:
            raise FailedPrecondition(
                f"cannot reopen the log of container {container.id}: its conmon has ended"
            ) from err
        raise
    try:
        os.write(fd, _REOPEN)
    finally:
        os.close(fd)
