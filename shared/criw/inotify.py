"""Waiting for files, and what to do where the kernel lets nobody watch any more of them."""

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from asyncinotify import Inotify, Mask

from criw.errors import ResourceExhausted

_LIMITS: Final = {errno.EMFILE: "fs.inotify.max_user_instances", errno.ENOSPC: "fs.inotify.max_user_watches"}


@contextlib.contextmanager
def watching(path: Path, mask: Mask) -> Iterator[Inotify]:
    """What happens to a file or in a directory from now on: `get()` it (inotify(7)).

    Raises ResourceExhausted if this user has too many watches, OSError if `path` cannot be watched.
    """
    with contextlib.ExitStack() as stack:
        try:
            events = stack.enter_context(Inotify())
            events.add_watch(path, mask)
        except OSError as err:
            if err.errno not in _LIMITS:
                raise
            raise ResourceExhausted(f"cannot watch {path}: raise {_LIMITS[err.errno]}, which is reached") from err
        yield events
