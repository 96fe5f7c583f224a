"""Learning that containers have ended: conmon leaves the exit code in a file named after the container."""

import logging
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path

from asyncinotify import Mask

from criw.ids import is_id
from criw.inotify import watching

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Exit:
    """How and when a container's first process ended; the code is 128 + the signal for one that was killed."""

    container_id: str
    code: int
    at_ns: int


def read_exit(directory: Path, container_id: str) -> Exit | None:
    """The exit conmon recorded; None if the container has not ended (or conmon died or had no space to tell of it)."""
    path = directory / container_id
    try:
        return Exit(container_id, int(path.read_text()), path.stat().st_mtime_ns)
    except FileNotFoundError:
        return None
    except ValueError:
        log.warning("an exit file has no exit code in it", extra={"container": container_id})
        return None


async def exits(directory: Path) -> AsyncGenerator[Exit, None]:
    """Every exit: those recorded already, then each as it happens, for ever. One may come twice."""
    with watching(directory, Mask.MOVED_TO) as events:  # conmon renames the finished file into place
        names = _recorded(directory)
        while True:
            for name in names:
                if (found := read_exit(directory, name)) is not None:
                    yield found
            event = await events.get()
            if Mask.Q_OVERFLOW in event.mask:
                log.warning("many containers ended at once; reading all exit files again")
                names = _recorded(directory)
            else:
                names = [str(event.name)]


def _recorded(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir() if is_id(path.name)]  # not the drafts conmon renames
