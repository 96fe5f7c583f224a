"""Processes that were left to us, a subreaper: those somebody awaits, and those nobody does."""

import asyncio
import contextlib
import os
from pathlib import Path
from typing import Final

from criw.kernel import PR_SET_CHILD_SUBREAPER, prctl

_REAP_INTERVAL_S: Final = 0.5
_PATIENCE: Final = 20  # looks


def children(pid: int | str) -> set[int]:
    """The children of a process, or of "self"."""
    found: set[int] = set()
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # this one has ended, the others have not
                found.update(int(child) for child in (thread / "children").read_text().split())
    return found


def become_subreaper() -> None:
    """Have orphans below us given to us instead of to PID 1: the only way to learn a detached exec's exit code."""
    prctl(PR_SET_CHILD_SUBREAPER, 1)


def _finish(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def wait_adopted(pid: int) -> int:
    """Wait for a process that was left to us, reap it, and return its exit code (128 + signal when it was killed)."""
    loop = asyncio.get_running_loop()
    fd = os.pidfd_open(pid)
    ended: asyncio.Future[None] = loop.create_future()
    try:
        loop.add_reader(fd, _finish, ended)
        try:
            await ended
        finally:
            loop.remove_reader(fd)
        result = os.waitid(os.P_PIDFD, fd, os.WEXITED)  # noqa: ASYNC222 — it has ended: this does not wait
    finally:
        os.close(fd)
    assert result is not None
    return result.si_status if result.si_code == os.CLD_EXITED else 128 + result.si_status


def _zombie_children() -> dict[int, bool]:
    """Our zombies, and whether each lived in a PID namespace below ours."""
    return {pid: _is_nested(pid) for pid in children("self") if _is_zombie(pid)}


def _is_zombie(child: int) -> bool:
    try:
        return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:  # somebody has reaped it
        return False


def _is_nested(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for line in Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines():
            if line.startswith("NSpid:"):
                return len(line.split()) > 2
    return False


def _has_zombies() -> bool:
    try:
        return os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return False


async def reap_strays() -> None:
    """Reap, for ever, the zombies nobody awaits: conmons, and what runtimes left behind.

    A zombie that somebody awaits is gone within a few turns of the loop, so one that is seen again belongs to nobody.
    Those of containers are reaped as soon as that is known: the init of a PID namespace cannot end before they are
    (pid_namespaces(7)). With the others, which may be programs of our own, there is time to be sure.
    """
    seen: dict[int, int] = {}
    while True:
        await asyncio.sleep(_REAP_INTERVAL_S)
        nested = await asyncio.to_thread(_zombie_children) if _has_zombies() else {}
        seen = {pid: seen.get(pid, 0) + 1 for pid in nested}
        for pid, times in seen.items():
            if times > (1 if nested[pid] else _PATIENCE):
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)  # noqa: ASYNC222 — WNOHANG
