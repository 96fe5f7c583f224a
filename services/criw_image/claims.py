"""Who works on an image: one task at a time, among all processes that share the state directory."""

import asyncio
import contextlib
import fcntl
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

from criw.locks import KeyedLocks

_PAUSE_S: Final = 0.02


class Claims:
    """Locks by key as files (flock(2)): the kernel gives back what a killed process held."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._here = KeyedLocks()

    @contextlib.asynccontextmanager
    async def hold(self, key: str) -> AsyncIterator[None]:
        """Wait for the claim, and give it back when the block is left."""
        async with self._here.hold(key):  # in order of arrival within this process
            while (held := self._try(key)) is None:  # noqa: ASYNC110 — no event tells what another process gives back
                await asyncio.sleep(_PAUSE_S)
            try:
                yield
            finally:
                self._give_back(key, held)

    @contextlib.asynccontextmanager
    async def hold_if_free(self, key: str) -> AsyncIterator[bool]:
        """Whether nobody else has the claim: then it is held until the block is left."""
        held = self._try(key)
        try:
            yield held is not None
        finally:
            if held is not None:
                self._give_back(key, held)

    def sweep(self) -> None:
        """Delete the files of claims that nobody has: a killed process left them."""
        for path in self._directory.glob("*.lock"):
            if (held := self._try(path.stem)) is not None:
                self._give_back(path.stem, held)

    def _path(self, key: str) -> Path:
        return self._directory / f"{key.replace(':', '-')}.lock"

    def _try(self, key: str) -> int | None:
        path = self._path(key)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The holder before us may have deleted the file between our open and our flock: then what we have locked
            # is nobody's.
            if path.stat().st_ino == os.fstat(descriptor).st_ino:
                return descriptor
        except (BlockingIOError, FileNotFoundError):
            pass  # somebody holds it, or has just deleted it: it is not ours
        os.close(descriptor)
        return None

    def _give_back(self, key: str, held: int) -> None:
        self._path(key).unlink()  # while it is ours, so that no image ever named leaves a file for good
        os.close(held)
