"""The socket a process serves on: systemd's if it handed one over, else one of our own."""

import contextlib
import grp
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from criw.errors import FailedPrecondition

SD_FIRST_FD: Final = 3  # sd_listen_fds(3)


def group_id(name: str) -> int:
    """The number of a group. Raises FailedPrecondition if there is none of that name."""
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError as err:
        raise FailedPrecondition(f"cannot give the socket to group {name}: there is no such group; make it") from err


def bind(path: Path) -> socket.socket:
    """A socket at `path`, mode 0660, on which nobody listens yet.

    What is there is of a process that was killed: hold its lock.
    """
    path.unlink(missing_ok=True)
    with contextlib.ExitStack() as undo:
        own = undo.enter_context(socket.socket(socket.AF_UNIX))
        previous = os.umask(0o117)
        try:
            own.bind(os.fspath(path))
        finally:
            os.umask(previous)
        own.setblocking(False)
        undo.pop_all()
    return own


@contextlib.contextmanager
def taken_away(path: Path) -> Iterator[None]:
    """Remove the socket at `path` in the end.

    But for the door's, once it is no longer root: that is in a directory of root's, and its next start removes it.
    """
    try:
        yield
    finally:
        if os.access(path.parent, os.W_OK, effective_ids=True):
            path.unlink(missing_ok=True)


def handed_over() -> socket.socket | None:
    """The socket of systemd's socket activation, if there is one for this process: sd_listen_fds(3)."""
    pid, count = os.environ.pop("LISTEN_PID", ""), os.environ.pop("LISTEN_FDS", "0")  # not for our children
    os.environ.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or count == "0":
        return None
    if count != "1":
        raise FailedPrecondition(f"cannot serve on {count} sockets: hand over one, with one ListenStream= in its unit")
    try:
        handed = socket.socket(fileno=SD_FIRST_FD)
        listens = handed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as err:
        raise FailedPrecondition(f"cannot serve on the descriptor that was handed over: {err.strerror}") from err
    if handed.family != socket.AF_UNIX or not listens:
        handed.close()
        raise FailedPrecondition("cannot serve on the socket that was handed over: it must be a listening unix socket")
    handed.set_inheritable(False)
    handed.setblocking(False)
    return handed
