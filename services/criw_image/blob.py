"""A blob on its way to the disk: hashed while it is written, there under its own name only when its digest is right."""

import hashlib
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from criw.errors import DataLoss
from criw_image.manifest import Descriptor


class PartialBlob:
    """Use as a context manager; what is not finished when it is left is deleted.

    `write`, `restart` and `finish` block: call them in threads, one at a time.
    """

    def __init__(self, path: Path, descriptor: Descriptor) -> None:
        self.size = 0
        self._path = path
        self._partial = path.with_name(f"{path.name}.part")
        self._descriptor = descriptor
        self._algorithm = descriptor.digest.partition(":")[0]
        self._hash = hashlib.new(self._algorithm)
        # A thread whose caller was cancelled may still write: it must not find the descriptor closed, or another's.
        self._busy = threading.Lock()
        self._file = -1

    def __enter__(self) -> Self:
        self._file = os.open(self._partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._busy:
            os.close(self._file)
            self._file = -1
        self._partial.unlink(missing_ok=True)

    def write(self, pieces: Sequence[bytes]) -> None:
        """Append. Raises DataLoss for more bytes than were promised."""
        with self._busy:
            if self._file < 0:
                return
            for piece in pieces:
                if self.size + len(piece) > self._descriptor.size:
                    raise DataLoss(
                        f"cannot use blob {self._descriptor.digest}: it is longer than its manifest says "
                        f"({self._descriptor.size} bytes)"
                    )
                self._hash.update(piece)
                left = memoryview(piece)
                while left:
                    left = left[os.write(self._file, left) :]
                self.size += len(piece)

    def restart(self) -> None:
        """Forget all that was written."""
        with self._busy:
            self._hash = hashlib.new(self._algorithm)
            self.size = 0
            os.ftruncate(self._file, 0)
            os.lseek(self._file, 0, os.SEEK_SET)

    def verify(self) -> None:
        """Raises DataLoss unless all is there and has its digest."""
        found = f"{self._algorithm}:{self._hash.hexdigest()}"
        if self.size != self._descriptor.size or found != self._descriptor.digest:
            raise DataLoss(
                f"cannot use blob {self._descriptor.digest}: {self.size} of {self._descriptor.size} bytes came, "
                f"and their digest is {found}"
            )

    def finish(self) -> None:
        """Give it its name. Not synced: the blob is gone again before its image is recorded."""
        self._partial.rename(self._path)
