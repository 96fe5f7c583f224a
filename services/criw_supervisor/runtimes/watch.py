"""Noticing that conmons end."""

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator
from typing import Final

from criw_supervisor.runtimes.bundle import Bundle
from criw_supervisor.runtimes.conmon import open_pidfd

log = logging.getLogger(__name__)
_AGAIN_S: Final = 1.0


class Watch:
    """Notices that conmons end, each by a pidfd: the container has ended then, and its exit is there, or lost."""

    def __init__(self) -> None:
        self._ended: asyncio.Queue[str] = asyncio.Queue()
        self._fds: set[int] = set()

    def add(self, container_id: str, bundle: Bundle) -> None:
        """Watch the conmon of a container; one that is gone is told at once."""
        try:
            fd = open_pidfd(bundle)
        except OSError as err:  # no descriptor is free now
            log.warning("cannot watch a container yet", extra={"container": container_id, "error": str(err)})
            asyncio.get_running_loop().call_later(_AGAIN_S, self.add, container_id, bundle)
            return
        if fd is None:
            self._ended.put_nowait(container_id)
            return
        self._fds.add(fd)
        asyncio.get_running_loop().add_reader(fd, self._tell, container_id, fd)

    def _tell(self, container_id: str, fd: int) -> None:
        with contextlib.suppress(ChildProcessError):  # it was left to us, unless an earlier supervisor started it
            os.waitid(os.P_PIDFD, fd, os.WEXITED | os.WNOHANG)
        self._close(fd)
        self._ended.put_nowait(container_id)

    async def ended(self) -> AsyncIterator[str]:
        """Ids of containers whose conmon has ended, for ever."""
        while True:
            yield await self._ended.get()

    def _close(self, fd: int) -> None:
        asyncio.get_running_loop().remove_reader(fd)
        os.close(fd)
        self._fds.discard(fd)

    def close(self) -> None:
        for fd in tuple(self._fds):
            self._close(fd)
