"""Space that is kept, so that on a full disk what frees more of it can still be recorded."""

import os
from pathlib import Path
from typing import Final

_SIZE: Final = 2 * 1024 * 1024  # bytes
_STEP: Final = 16 * 1024


class Reserve:
    """A file of real blocks that gives them back piece by piece: whatever fills the disk does not get all at once.

    The methods block.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def keep(self) -> None:
        """Make it whole, if that can be now; it is no reason for anything else to fail."""
        try:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:
            return
        try:
            held = os.fstat(fd).st_size
            if held < _SIZE:
                try:
                    os.posix_fallocate(fd, 0, _SIZE)
                except OSError:  # full still; the part that was got is given back
                    os.ftruncate(fd, held)
        finally:
            os.close(fd)

    def give(self) -> bool:
        """Give back a piece. False if nothing is left."""
        try:
            held = self._path.stat().st_size
        except FileNotFoundError:
            return False
        if held:
            os.truncate(self._path, max(held - _STEP, 0))
        return held > 0
