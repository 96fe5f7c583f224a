"""Looking at paths of the host that a request names: they may be on a file server (NFS, FUSE) that does not answer."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

from criw.errors import DeadlineExceeded, InvalidArgument
from criw.kernel import in_fresh_thread
from criw.operations import Operations, together
from criw_supervisor.oci import devices, mounts
from criw_supervisor.oci.document import Outside
from criw_supervisor.oci.parts import Parts

LIMIT_S: Final = 20.0
_LOG_DIRECTORY_MODE: Final = 0o755

T = TypeVar("T")


class Lookups:
    """Each path is looked at in a thread of its own, and by one thread at a time.

    A path that hangs costs its thread until the server is back, however often the kubelet asks again; the threads all
    others share stay free, and the process can end.
    """

    def __init__(self, *, limit_s: float = LIMIT_S) -> None:
        self._limit_s = limit_s
        self._operations = Operations()

    async def look(self, what: str, path: str, work: Callable[[], T]) -> T:
        """Do `work`, which blocks on `path`. The same `what` and `path` mean the same work.

        Raises DeadlineExceeded after the limit, whereupon the work goes on.
        """
        try:
            async with asyncio.timeout(self._limit_s):
                return await self._operations.run(f"{what} {path}", lambda: in_fresh_thread(work, may_hang=True))
        except TimeoutError as err:
            raise DeadlineExceeded(
                f"cannot look at {path}: no answer after {self._limit_s:g} s; is it on a file server that is away?"
            ) from err

    async def outside(self, parts: Parts) -> Outside:
        """What is at the paths a container is given. Raises InvalidArgument or DeadlineExceeded naming one of them."""
        propagation: dict[str, bool] = {}
        for mount in parts.mounts:
            propagation[mount.host_path] = propagation.get(mount.host_path, False) or mounts.needs_propagation(mount)
        given = sorted({device.host_path for device in parts.devices})
        sources = await together(*(self._source(path, needed) for path, needed in propagation.items()))
        found = await together(*(self._device(path) for path in given))
        return Outside(dict(zip(propagation, sources, strict=True)), dict(zip(given, found, strict=True)))

    async def _source(self, path: str, needs_propagation: bool) -> mounts.Source:
        what = "propagation of" if needs_propagation else "source"
        return await self.look(what, path, lambda: mounts.look(path, propagation=needs_propagation))

    async def _device(self, path: str) -> devices.Found:
        return await self.look("device", path, lambda: devices.look(path))

    async def log_directory(self, log_path: str) -> None:
        """Have the directory of a log where the kubelet has not made it. Raises InvalidArgument."""
        path = Path(log_path)
        await self.look("log", str(path.parent), lambda: make_log_directory(path))


def make_log_directory(log_path: Path) -> None:
    """Make the directory of a log where the kubelet has not. Raises InvalidArgument if it cannot be."""
    try:
        log_path.parent.mkdir(mode=_LOG_DIRECTORY_MODE, parents=True, exist_ok=True)
    except (FileExistsError, FileNotFoundError, NotADirectoryError, PermissionError) as err:
        raise InvalidArgument(f"cannot make the log directory {log_path.parent}: {err.strerror}") from err
