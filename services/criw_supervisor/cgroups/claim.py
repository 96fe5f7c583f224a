"""A crew's claim to the cgroup its pods are in: what is found there without a record is killed, so it must be ours."""

import contextlib
import errno
import fcntl
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from criw.errors import FailedPrecondition
from criw.ids import is_id
from criw.kernel import suppress_errno
from criw_supervisor.cgroups.hierarchies import Cgroups

log = logging.getLogger(__name__)
_MARK: Final = "trusted.criw.owner"  # of the directory in each hierarchy: whose pods are in it


@contextlib.contextmanager
def claimed(cgroups: Cgroups, parent: str, *, owner: Path) -> Iterator[None]:
    """Have the cgroup `parent`, made if need be, for the supervisor with the state directory `owner` alone.

    Its lock tells that a supervisor runs; its mark stays when that is stopped while its containers go on. Without pods
    in it the mark of another one is worth nothing. Where the kernel keeps no marks, only the lock does. Blocks.
    Raises FailedPrecondition if it is another's.
    """
    directories = cgroups.directories(parent)
    tops = {*cgroups.tops(parent, ours=frozenset), *map(os.fspath, directories)}
    try:
        cgroups.create(parent)
    except OSError as err:  # read-only: no pod can be made either, which Status tells with the handlers' reasons
        log.warning("cannot claim the cgroup of pods", extra={"cgroup": parent, "error": str(err)})
        yield
        return
    mark = os.fsencode(owner)
    with contextlib.ExitStack() as undo:
        for directory in directories:
            _lock(directory, undo)
            other = _marked(directory)
            if other not in {b"", mark} and any(is_id(one) for one in cgroups.children(parent)):
                raise _refusal(parent, f"it has pods of the supervisor with the state directory {os.fsdecode(other)}")
            with suppress_errno(errno.EOPNOTSUPP, errno.EPERM):
                os.setxattr(directory, _MARK, mark)
        try:
            yield
        finally:
            cgroups.remove_empty(parent, tops)


def _lock(directory: Path, undo: contextlib.ExitStack) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    undo.callback(os.close, fd)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as err:
        raise _refusal(os.fspath(directory), "another supervisor, which runs, has its pods in it") from err


def _marked(directory: Path) -> bytes:
    with suppress_errno(errno.ENODATA, errno.EOPNOTSUPP, errno.EPERM):
        return os.getxattr(directory, _MARK)
    return b""


def _refusal(cgroup: str, why: str) -> FailedPrecondition:
    return FailedPrecondition(f"cannot use cgroup {cgroup}: {why}; set cgroup_parent in [supervisor] to another")
