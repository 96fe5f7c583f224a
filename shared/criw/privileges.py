"""Whom a process runs as and what it may do: an agent that is started by root drops the rest before anything else.

The kernel keeps user, groups and capabilities for each thread, so this comes before the second one and the event loop.
An agent that somebody else has started (systemd, as its user) has nothing to drop.
"""

import contextlib
import os
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Final

from criw import kernel
from criw.config.common import AgentName, Common
from criw.errors import FailedPrecondition


class Capability(IntEnum):
    """By the numbers of linux/capability.h: those an agent keeps."""

    CHOWN = 0
    DAC_OVERRIDE = 1
    FOWNER = 3
    FSETID = 4
    LINUX_IMMUTABLE = 9
    NET_ADMIN = 12
    SYS_ADMIN = 21
    MKNOD = 27
    SETFCAP = 31


# The supervisor and the streams process keep all: they start OCI runtimes, which need most of them.
KEPT: Final[Mapping[AgentName, frozenset[Capability]]] = {
    "cri": frozenset(),
    "image": frozenset(),
    # What a container does to its files, overlayfs does with the capabilities of who mounted it; and mounting itself.
    "storage": frozenset(
        {
            Capability.CHOWN,
            Capability.DAC_OVERRIDE,
            Capability.FOWNER,
            Capability.FSETID,
            Capability.LINUX_IMMUTABLE,
            Capability.MKNOD,
            Capability.SETFCAP,
            Capability.SYS_ADMIN,
        }
    ),
    "network": frozenset({Capability.DAC_OVERRIDE, Capability.NET_ADMIN, Capability.SYS_ADMIN}),
}


@dataclass(frozen=True)
class Identity:
    """User and group of a process. `kept` are its capabilities; None where nothing is to be dropped."""

    uid: int
    gid: int
    kept: frozenset[Capability] | None

    @contextlib.contextmanager
    def assumed(self) -> Iterator[None]:
        """Until the block is left, what touches files is done as this user and of this group.

        In a directory of the user's, that is: root must follow no link somebody has put there.
        """
        uid, gid = os.geteuid(), os.getegid()
        os.setegid(self.gid)
        os.seteuid(self.uid)
        try:
            yield
        finally:
            os.seteuid(uid)
            os.setegid(gid)

    def make(self, directory: Path, mode: int) -> None:
        """Make a directory of this user's where there is none.

        In one step: a client that met it while it was still root's would be told that it may not use the agent.
        """
        if directory.exists():
            return
        fresh = directory.with_name(f".{directory.name}.{os.getpid()}")
        with contextlib.suppress(FileNotFoundError):
            fresh.rmdir()  # of one that was killed here
        fresh.mkdir(mode=mode)
        os.chown(fresh, self.uid, self.gid)
        try:
            fresh.rename(directory)
        except OSError:  # another instance was faster
            fresh.rmdir()

    def take(self, directory: Path) -> None:
        """Make a directory this user's and group's, with what whoever had it before has left there.

        An agent that may not override permissions must own all of it. The others get what is directly in it: further
        down are files of layers, whose owners are the layers' business.
        """
        before = directory.stat()
        if (before.st_uid, before.st_gid) == (self.uid, self.gid):
            return
        whole = self.kept is not None and Capability.DAC_OVERRIDE not in self.kept
        for path in directory.rglob("*") if whole else directory.iterdir():
            if path.lstat().st_uid == before.st_uid:  # not what is there only by a hard link
                os.chown(path, self.uid, self.gid, follow_symlinks=False)
        os.chown(directory, self.uid, self.gid)  # last: an attempt that was interrupted is made again

    def become(self) -> None:
        """Be this user from now on, with the capabilities it keeps; what it executes has them too, and no more.

        Raises FailedPrecondition if the process has not all it takes, as in a container that was given little.
        """
        if self.kept is None:
            return
        assert len(list(Path("/proc/self/task").iterdir())) == 1, "the other threads would keep what this one drops"
        mask = sum(1 << capability for capability in self.kept) & kernel.permitted_capabilities()
        try:
            kernel.prctl(kernel.PR_SET_KEEPCAPS, 1)
            for number in range(int(Path("/proc/sys/kernel/cap_last_cap").read_text()) + 1):
                if not mask >> number & 1:
                    kernel.prctl(kernel.PR_CAPBSET_DROP, number)
            os.setgroups([])
            os.setresgid(self.gid, self.gid, self.gid)
            os.setresuid(self.uid, self.uid, self.uid)
            kernel.set_capabilities(mask)
            for capability in self.kept:
                if mask >> capability & 1:
                    kernel.prctl(kernel.PR_CAP_AMBIENT, kernel.PR_CAP_AMBIENT_RAISE, capability)
            kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
        except PermissionError as err:
            raise FailedPrecondition(
                f"cannot become user {self.uid}: {err.strerror}; start it as that user, or as a root that has "
                "CAP_SETUID, CAP_SETGID and CAP_SETPCAP"
            ) from err


def identity_of(agent: AgentName, settings: Common) -> Identity:
    """Whom the process is to be: what the configuration says if it is root now, else whoever it is."""
    if os.geteuid():
        return Identity(os.geteuid(), os.getegid(), None)
    return Identity(settings.facts(agent).user, settings.crew_gid, KEPT.get(agent))


@contextlib.contextmanager
def death_signal_kept() -> Iterator[None]:
    """Have the signal that the parent's death sends survive a change of user, which forgets it: prctl(2)."""
    parent, number = os.getppid(), kernel.death_signal()
    yield
    if number:
        kernel.prctl(kernel.PR_SET_PDEATHSIG, number)
        if os.getppid() != parent:
            signal.raise_signal(number)  # it died meanwhile
