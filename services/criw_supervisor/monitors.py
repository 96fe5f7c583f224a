"""Noticing that a conmon has ended: without an exit file it died before its container, and nobody else would tell."""

import asyncio
import contextlib
import os

from criw_supervisor.pod import Container


class Monitors:
    """One pidfd for each conmon. `ended` gets every container whose conmon is gone, for whatever reason."""

    def __init__(self) -> None:
        self.ended: asyncio.Queue[Container] = asyncio.Queue()
        self._fds: set[int] = set()

    def watch(self, container: Container) -> None:
        """Watch the conmon of a container that has not ended."""
        try:
            fd = os.pidfd_open(int((container.bundle / "conmon.pid").read_text()))
        except (FileNotFoundError, ProcessLookupError, ValueError):
            self.ended.put_nowait(container)
            return
        self._fds.add(fd)
        asyncio.get_running_loop().add_reader(fd, self._ended, container, fd)

    def _ended(self, container: Container, fd: int) -> None:
        with contextlib.suppress(ChildProcessError):  # it was left to us, unless an earlier supervisor started it
            os.waitid(os.P_PIDFD, fd, os.WEXITED | os.WNOHANG)
        self._close(fd)
        self.ended.put_nowait(container)

    def _close(self, fd: int) -> None:
        asyncio.get_running_loop().remove_reader(fd)
        os.close(fd)
        self._fds.discard(fd)

    def close(self) -> None:
        for fd in tuple(self._fds):
            self._close(fd)
