"""Reading and writing our own descriptors beside an event loop.

None is made non-blocking: a terminal is shared with the shell that started us, and would be so for it, too.
"""

import asyncio
import contextlib
import errno
import os
import queue
import threading
from typing import Final

CHUNK: Final = 32 * 1024  # bytes; what every server of the protocol takes in one message


async def read(descriptor: int) -> bytes:
    """What there is, at most `CHUNK` bytes, once there is something; b"" at the end, or when the terminal is gone."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    try:
        loop.add_reader(descriptor, ready.set)
    except PermissionError:  # of epoll_ctl(2): a file or /dev/null, which is always ready
        return await asyncio.to_thread(os.read, descriptor, CHUNK)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(descriptor)
    try:
        return os.read(descriptor, CHUNK)
    except OSError as err:
        if err.errno != errno.EIO:
            raise
        return b""


class Output:
    """Writes to a descriptor in a thread of its own, so that a slow reader stops nothing but this output.

    The thread is a daemon: one stuck in a write must not keep the program from ending.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._jobs: queue.SimpleQueue[tuple[bytes, asyncio.Future[None]] | None] = queue.SimpleQueue()
        self._loop = asyncio.get_running_loop()
        threading.Thread(target=self._work, name=f"output {descriptor}", daemon=True).start()

    async def write(self, data: bytes) -> None:
        """Raises BrokenPipeError if nobody reads any more, and other OSErrors of write(2)."""
        done = self._loop.create_future()
        self._jobs.put((data, done))
        await done

    def close(self) -> None:
        """End the thread; the descriptor stays open."""
        self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            data, done = job
            error = None
            try:
                _write_all(self._descriptor, data)
            except OSError as err:
                error = err
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                self._loop.call_soon_threadsafe(_finish, done, error)


def _write_all(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _finish(done: asyncio.Future[None], error: OSError | None) -> None:
    if done.done():  # nobody waits any more
        return
    if error is None:
        done.set_result(None)
    else:
        done.set_exception(error)
