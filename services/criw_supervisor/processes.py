"""Processes of containers: naming one for sure, and signalling it."""

import contextlib
import logging
import os
import signal
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Final

from criw.errors import FailedPrecondition, Unavailable
from criw.operations import until_gone
from criw.orphans import children

log = logging.getLogger(__name__)

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


async def kill_family(leader: int, members: Callable[[], Collection[int]]) -> None:
    """SIGKILL a session's leader, its descendants and all of their sessions: an exec'd command and what it started.

    `members` are those who may be of the family: the processes of the container, among the thousands of a host.

    A process that has left both the session and its parent cannot be told from the container's own. What somebody has
    frozen on cgroup v1 is not thawed for it: it dies when it is. Raises Unavailable if some survive.
    """
    family = {leader}

    def look() -> set[int]:
        alive = _family(family, members())
        family.update(alive)  # a child that is seen only after its parent died is known by its session
        for pid, started in alive.items():
            send_signal(pid, started, signal.SIGKILL)
        return set(alive)

    if left := await until_gone(_KILL_LIMIT_S, look):
        raise Unavailable(f"cannot kill processes {sorted(left)}: they survive SIGKILL; are they stuck in I/O?")


def _family(known: set[int], candidates: Collection[int]) -> dict[int, int]:
    """The living processes among `known`, their descendants, and the members of the sessions they lead.

    With the start time of each (see `start_time`).
    """
    parents: dict[int, tuple[int, int]] = {}
    started: dict[int, int] = {}
    for pid in candidates:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
            if fields[0] not in {"Z", "X"}:
                parents[pid], started[pid] = (int(fields[1]), int(fields[3])), int(fields[19])
    found: set[int] = set()
    while more := {
        pid
        for pid, (parent, session) in parents.items()
        if pid not in found and (pid in known or not found.isdisjoint({parent, session}) or session in known)
    }:
        found |= more
    return {pid: started[pid] for pid in found}


def pids() -> list[int]:
    """All processes of the host."""
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]


def command_line(pid: int) -> list[str]:
    """A process's arguments; empty when it is gone or a zombie."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="surrogateescape").split("\0")[:-1]
    except (FileNotFoundError, ProcessLookupError):
        return []


async def kill_starter(mark: str) -> None:
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

    if left := await until_gone(_KILL_LIMIT_S, look):
        raise Unavailable(f"cannot kill processes {sorted(left)}: they survive SIGKILL; are they stuck in I/O?")


def _descendants(pid: int) -> Iterator[int]:
    for child in children(pid):
        yield child
        yield from _descendants(child)


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
