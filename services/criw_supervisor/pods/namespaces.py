"""What a pod has on the host besides its network: IPC and UTS namespaces, pinned by bind mounts, and shared memory.

They need no process. All functions block.
"""

import errno
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from criw import kernel
from criw.errors import InvalidArgument
from criw.kernel import suppress_errno
from criw.mountinfo import mounts_below
from criw.namespaces import is_pinned, pin
from criw.namespaces import unpin as unpin_namespace
from criw_supervisor.ledger.places import PodFiles

_SHM_OPTIONS: Final = "mode=1777,size=67108864"


@dataclass(frozen=True)
class NamespacesPlan:
    """Which namespaces are the pod's own; the others are the host's."""

    own_uts: bool
    own_ipc: bool
    hostname: str
    sysctls: Mapping[str, str] = field(default_factory=dict)  # of these namespaces, with dotted names


def create(files: PodFiles, plan: NamespacesPlan) -> None:
    """Make the pod's directory with its namespaces and shared memory. Changes the calling thread's namespaces.

    Raises InvalidArgument for a sysctl the kernel does not take. What was made stays until `remove`.
    """
    files.ipc.parent.mkdir(parents=True)
    files.directory.chmod(0o711)
    kinds = (kernel.CLONE_NEWUTS if plan.own_uts else 0) | (kernel.CLONE_NEWIPC if plan.own_ipc else 0)
    if kinds:
        kernel.unshare(kinds)
    if plan.own_uts:
        kernel.sethostname(plan.hostname)
        pin("uts", files.uts)
    for name, value in plan.sysctls.items():
        try:
            Path("/proc/sys", *name.split(".")).write_text(value)
        except OSError as err:
            raise InvalidArgument(f"cannot set sysctl {name} to {value!r}: {err.strerror}") from err
    if plan.own_ipc:
        pin("ipc", files.ipc)
        files.shm.mkdir()
        flags = kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC
        kernel.mount("shm", files.shm, fstype="tmpfs", flags=flags, data=_SHM_OPTIONS)


def unpin(files: PodFiles) -> None:
    """Give back namespaces, shared memory and the files in /etc. Repeating it is a success."""
    unpin_namespace(files.ipc)
    unpin_namespace(files.uts)
    for directory in (files.shm, files.own_etc):
        with suppress_errno(errno.ENOENT, errno.EINVAL):  # never made, or made but not mounted
            kernel.umount2(directory, flags=kernel.MNT_DETACH)


def remove(files: PodFiles) -> None:
    """Remove everything of the pod's directory. Repeating it is a success."""
    if files.directory.exists():
        unpin(files)
        for point in mounts_below(files.directory):
            kernel.umount2(point, flags=kernel.MNT_DETACH)
        shutil.rmtree(files.directory)


def are_whole(files: PodFiles, *, own_uts: bool, own_ipc: bool) -> bool:
    """Whether the pod still has the namespaces it was made with (a reboot takes them)."""
    pins = [*([files.uts] if own_uts else []), *([files.ipc] if own_ipc else [])]
    return files.directory.is_dir() and all(is_pinned(pin) for pin in pins)
