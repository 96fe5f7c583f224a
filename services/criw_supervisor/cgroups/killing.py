"""Killing what is in a cgroup, also what is frozen there and what forks faster than it is killed.

`top` is the directory of a cgroup in one hierarchy; every cgroup below it is meant, too. All functions block.
"""

import contextlib
import errno
import itertools
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from criw.kernel import suppress_errno

_GONE: Final = (errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP)  # gone, going, or of threads only (cgroups(7))
_AT_ONCE: Final = 64  # pidfds that are held at the same time
_FREEZE_LIMIT_S: Final = 0.1  # one in the kernel, in I/O for example, freezes later
_FREEZE_PAUSE_S: Final = 0.001


@dataclass(frozen=True)
class _Freezer:
    order: str  # the file that takes the words `stop` and `go_on`
    stop: str
    go_on: str
    state: str  # the file that has the words `stopped` once nothing runs any more
    stopped: str


_V1: Final = _Freezer("freezer.state", "FROZEN", "THAWED", "freezer.state", "FROZEN")
_V2: Final = _Freezer("cgroup.freeze", "1", "0", "cgroup.events", "frozen 1")


def members(top: Path) -> set[int]:
    """The processes of the cgroup and those below it."""
    return set().union(*(_of_one(below) for below in _all_below(top)))


def kill_members(top: Path) -> None:
    """SIGKILL the processes of the cgroup and of those below it, as they are now."""
    for below in _all_below(top):
        if (below / "cgroup.kill").exists():  # Linux 5.14: no fork gets away from it
            with suppress_errno(*_GONE):
                (below / "cgroup.kill").write_text("1")
                continue
        pids = iter(_of_one(below))
        while some := list(itertools.islice(pids, _AT_ONCE)):
            _kill_some(below, some)


def freeze(top: Path) -> None:
    """Stop the processes of the cgroup, and whatever they fork, until `thaw`."""
    for freezer in _freezers(top):
        with suppress_errno(*_GONE):
            (top / freezer.order).write_text(freezer.stop)
            until = time.monotonic() + _FREEZE_LIMIT_S
            while freezer.stopped not in (top / freezer.state).read_text() and time.monotonic() < until:
                time.sleep(_FREEZE_PAUSE_S)


def thaw(top: Path) -> None:
    """Have nothing in the cgroup or below it be frozen, whoever has frozen it: on version 1 it could not die."""
    for freezer in _freezers(top):
        for below in _all_below(top):
            with suppress_errno(*_GONE):
                (below / freezer.order).write_text(freezer.go_on)


def _freezers(top: Path) -> list[_Freezer]:
    return [one for one in (_V1, _V2) if (top / one.order).exists()]


def _all_below(top: Path) -> Iterator[Path]:
    return (Path(below) for below, _, _ in os.walk(top))


def _of_one(directory: Path) -> set[int]:
    """The processes of one cgroup. One that is shown as 0, being in no PID namespace of ours, has no name here."""
    with suppress_errno(*_GONE):
        return {int(pid) for pid in (directory / "cgroup.procs").read_text().split()} - {0}
    return set()


def _kill_some(directory: Path, pids: list[int]) -> None:
    """A pid may be another's by now: each is held by a pidfd, and killed if it is in the cgroup while that is held."""
    with contextlib.ExitStack() as held:
        fds: dict[int, int] = {}
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                fds[pid] = os.pidfd_open(pid)
                held.callback(os.close, fds[pid])
        for pid in _of_one(directory) & fds.keys():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(fds[pid], signal.SIGKILL)
