"""Blobs, as the image agent hands them over: by name.

That agent parses what the internet sends, and this one can read every file of the machine. Should the first be taken
over, the second must not do its reading for it: whatever is named, only files of the image agent's own are opened.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from criw import kernel
from criw.errors import InvalidArgument, NotFound

_MISSING: Final = frozenset({errno.ENOENT, errno.ENOTDIR})
# A link; a way out of the directory, or a mount; a way out that cannot be judged while somebody renames things, or a
# file whose owner took a lease on it (fcntl(2)), for which only the others would wait; a name that no file can have.
_REFUSED: Final = frozenset({errno.ELOOP, errno.EXDEV, errno.EAGAIN, errno.ENAMETOOLONG})
_NAME_SHOWN: Final = 200


class Blobs:
    """Regular files of the user `owner` below `directory`, which that user may have replaced by anything, too."""

    def __init__(self, directory: Path, *, owner: int) -> None:
        self._directory = directory
        self._owner = owner

    @contextmanager
    def opened(self, name: str) -> Iterator[int]:
        """A descriptor to read a blob from; `name` is its path below the directory.

        Raises NotFound if there is none, InvalidArgument if it is not a blob.
        """
        try:
            blob = self._open(name)
        except OSError as err:
            if err.errno in _MISSING:
                raise NotFound(f"cannot read blob {name[:_NAME_SHOWN]!r}: there is none; pull the image again") from err
            if err.errno in _REFUSED:
                raise _refusal(name) from err
            raise
        try:
            yield blob
        finally:
            os.close(blob)

    def _open(self, name: str) -> int:
        if not name or "\0" in name:
            raise _refusal(name)
        with (
            _closing(os.open(self._directory.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)) as parent,
            _closing(kernel.open_beneath(parent, os.fsencode(self._directory.name), os.O_PATH)) as directory,
            _closing(kernel.open_beneath(directory, os.fsencode(name), os.O_PATH)) as found,
        ):
            # Judged before it is opened: opening a device or a FIFO does something already.
            judged = os.fstat(found)
            if not stat.S_ISREG(judged.st_mode) or judged.st_uid != self._owner:
                raise _refusal(name)
            return os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)


@contextmanager
def _closing(descriptor: int) -> Iterator[int]:
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _refusal(name: str) -> InvalidArgument:
    return InvalidArgument(
        f"cannot read blob {name[:_NAME_SHOWN]!r}: a blob is a file of the image agent's own below its blob directory, "
        "with no link on the way"
    )
