import asyncio
import errno
import os
import socket
import threading
from pathlib import Path

import pytest

from criw import kernel


def test_a_failed_call_tells_errno_and_paths(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    with pytest.raises(OSError, match=r"/source on .*/missing") as caught:
        kernel.mount("/source", missing, flags=kernel.MS_BIND)
    assert caught.value.errno in {errno.ENOENT, errno.EPERM}
    with pytest.raises(OSError, match="missing") as caught:
        kernel.umount2(missing)
    assert caught.value.errno in {errno.ENOENT, errno.EPERM}


def test_only_the_errors_named_are_suppressed() -> None:
    with kernel.suppress_errno(errno.ENOENT, errno.EINVAL):
        raise OSError(errno.EINVAL, "expected")
    with pytest.raises(OSError, match="other"), kernel.suppress_errno(errno.ENOENT):
        raise OSError(errno.EIO, "other")


async def test_a_fresh_thread_is_nobody_elses_and_ends() -> None:
    seen = [await kernel.in_fresh_thread(threading.current_thread) for _ in range(3)]
    assert len({*seen, threading.current_thread()}) == 4
    for thread in seen:
        thread.join(timeout=5)
        assert not thread.is_alive()


async def test_an_error_in_a_fresh_thread_is_the_callers() -> None:
    def fail() -> None:
        raise OSError(errno.EIO, "in the thread")

    with pytest.raises(OSError, match="in the thread"):
        await kernel.in_fresh_thread(fail)


async def test_a_cancelled_caller_waits_for_the_end_of_its_thread() -> None:
    begun, go, ended = asyncio.Event(), threading.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def work() -> None:
        loop.call_soon_threadsafe(begun.set)
        go.wait(5)
        loop.call_soon_threadsafe(ended.set)
        raise OSError(errno.EIO, "dropped")

    caller = asyncio.create_task(kernel.in_fresh_thread(work))
    await begun.wait()
    for _ in range(2):  # however often
        caller.cancel()
        await asyncio.sleep(0)
    assert not caller.done()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert ended.is_set()


@pytest.mark.root
async def test_namespaces_change_in_the_fresh_thread_only(tmp_path: Path) -> None:
    handle = tmp_path / "uts"
    handle.touch()
    name = socket.gethostname()

    def make() -> str:
        kernel.unshare(kernel.CLONE_NEWUTS)
        kernel.sethostname("criw-test")
        kernel.mount("/proc/thread-self/ns/uts", handle, flags=kernel.MS_BIND)
        return socket.gethostname()

    def enter() -> str:
        namespace = os.open(handle, os.O_RDONLY | os.O_CLOEXEC)
        try:
            kernel.setns(namespace, kernel.CLONE_NEWUTS)
        finally:
            os.close(namespace)
        return socket.gethostname()

    try:
        assert await kernel.in_fresh_thread(make) == "criw-test"
        assert await kernel.in_fresh_thread(enter) == "criw-test"
        assert await asyncio.to_thread(socket.gethostname) == name
        assert socket.gethostname() == name
        with pytest.raises(OSError, match="Invalid argument"):  # a namespace of another kind
            await kernel.in_fresh_thread(lambda: set_network(handle))
    finally:
        kernel.umount2(handle, flags=kernel.MNT_DETACH)


def set_network(handle: Path) -> None:
    namespace = os.open(handle, os.O_RDONLY | os.O_CLOEXEC)
    try:
        kernel.setns(namespace, kernel.CLONE_NEWNET)
    finally:
        os.close(namespace)


def test_a_name_with_a_nul_is_refused_and_not_cut(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    root = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with pytest.raises(ValueError, match="NUL"):
            kernel.open_in_root(tmp_path, "file\0.txt")
        with pytest.raises(ValueError, match="NUL"):
            kernel.open_beneath(root, b"file\0.txt", os.O_RDONLY)
    finally:
        os.close(root)


async def test_a_thread_that_hangs_keeps_nobody_who_may_leave_it() -> None:
    go_on = threading.Event()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await kernel.in_fresh_thread(go_on.wait, may_hang=True)
    go_on.set()
