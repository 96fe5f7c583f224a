"""A directory for one process at a time."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from criw.errors import FailedPrecondition


@contextlib.contextmanager
def hold(path: Path, *, program: str) -> Iterator[None]:
    """Hold the lock file at `path`, which names this process to the next `program` that wants it.

    The kernel gives the lock back when the process is killed. A fork that leaves the block closes only its own copy.
    Raises FailedPrecondition if another process holds it, OSError if the file cannot be made.
    """
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as err:
            file.seek(0)
            raise FailedPrecondition(
                f"cannot use {path.parent}: another {program} (pid {file.read().strip() or 'unknown'}) is using it; "
                "stop that one, or set root and run to other directories"
            ) from err
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield
