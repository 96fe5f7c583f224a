"""Processes of containers: naming one for sure, signalling it, and reaping those that were left to us."""

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Final

from criw.errors import FailedPrecondition, Unavailable
from criw.kernel import PR_SET_CHILD_SUBREAPER, prctl
from criw.operations import until_gone

log = logging.getLogger(__name__)

_REAP_INTERVAL_S: Final = 0.5
_PATIENCE: Final = 20  # looks
_KILL_LIMIT_S: Final = 5.0


def start_time(pid: int) -> int:
    """When the process started, in clock ticks since boot; 0 if there is none or only a zombie (proc(5), stat)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return 0 if fields[0] in {"Z", "X"} else int(fields[19])


def send_signal(pid: int, started: int, number: int) -> bool:
    """Signal the process that had this pid at this start time. False if it is gone."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        if start_time(pid) != started:  # checked while the pidfd holds whatever has the pid now
            return False
        signal.pidfd_send_signal(fd, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(fd)
    return True


def kill_family(leader: int, members: Callable[[], Collection[int]]) -> None:
    """SIGKILL a session's leader, its descendants and all of their sessions: an exec'd command and what it started.

    `members` are those who may be of the family: the processes of the container, among the thousands of a host.

    A process that has left both the session and its parent cannot be told from the container's own. Raises Unavailable
    if some survive.
    """
    family = {leader}

    def look() -> set[int]:
        alive = _family(family, members())
        family.update(alive)  # a child that is seen only after its parent died is known by its session
        for pid in alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return alive

    if left := until_gone(_KILL_LIMIT_S, look):
        raise Unavailable(f"cannot kill processes {sorted(left)}: they survive SIGKILL; are they stuck in I/O?")


def _family(known: set[int], candidates: Collection[int]) -> set[int]:
    """The living processes among `known`, their descendants, and the members of the sessions they lead."""
    parents: dict[int, tuple[int, int]] = {}
    for pid in candidates:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
            if fields[0] not in {"Z", "X"}:
                parents[pid] = int(fields[1]), int(fields[3])
    found: set[int] = set()
    while more := {
        pid
        for pid, (parent, session) in parents.items()
        if pid not in found and (pid in known or not found.isdisjoint({parent, session}) or session in known)
    }:
        found |= more
    return found


def pids() -> list[int]:
    """All processes of the host."""
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]


def command_line(pid: int) -> list[str]:
    """A process's arguments; empty when it is gone or a zombie."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="surrogateescape").split("\0")[:-1]
    except (FileNotFoundError, ProcessLookupError):
        return []


def kill_starter(mark: str) -> None:
    """SIGKILL the program with `mark` among its arguments, and what it has started and not left to others yet.

    Raises Unavailable if some survive.
    """

    def look() -> set[int]:
        found = {pid for pid in pids() if mark in command_line(pid)}
        for pid in found:
            send_signal(pid, start_time(pid), signal.SIGSTOP)  # it is to start nothing more while its children are read
        started = {child for pid in found for child in _descendants(pid)}
        for pid in found | started:
            send_signal(pid, start_time(pid), signal.SIGKILL)
        return found

    if left := until_gone(_KILL_LIMIT_S, look):
        raise Unavailable(f"cannot kill processes {sorted(left)}: they survive SIGKILL; are they stuck in I/O?")


def _descendants(pid: int) -> Iterator[int]:
    for child in _children(pid):
        yield child
        yield from _descendants(child)


def _children(pid: int | str) -> set[int]:
    found: set[int] = set()
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # this one has ended, the others have not
                found.update(int(child) for child in (thread / "children").read_text().split())
    return found


@contextlib.contextmanager
def pid_namespace(pid: int, started: int) -> Iterator[str]:
    """A path to the PID namespace of the process that had this pid at this start time, as long as the block lasts.

    The path names an open descriptor: should the process end and another get its pid, it is not that one's namespace.
    Raises FailedPrecondition if the process is gone.
    """
    try:
        fd = os.open(f"/proc/{pid}/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError) as err:
        raise FailedPrecondition(f"cannot join the PID namespace of process {pid}: it has ended") from err
    try:
        if start_time(pid) != started:  # after the opening: what was opened is the namespace of that one
            raise FailedPrecondition(f"cannot join the PID namespace of process {pid}: it has ended")
        yield f"/proc/{os.getpid()}/fd/{fd}"
    finally:
        os.close(fd)


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
    return {pid: _is_nested(pid) for pid in _children("self") if start_time(pid) == 0}


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
