"""Mounting a writable layer over unpacked ones: overlayfs, on kernels old and new."""

import errno
import functools
import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from criw import kernel

_MOST_LAYERS: Final = 500  # OVL_MAX_STACK
_MOST_IN_OPTIONS: Final = 200
_SOURCE: Final = "criw"  # what the first column of /proc/mounts shows


@functools.cache
def most_layers() -> int:
    """How many can be mounted below a writable one here."""
    with ExitStack() as opened:
        try:
            context = kernel.fsopen("overlay")
            opened.callback(os.close, context)
            kernel.fsconfig_string(context, "lowerdir+", "/")
        except OSError as err:
            if err.errno not in {errno.ENOSYS, errno.EINVAL}:
                raise
            return _MOST_IN_OPTIONS
    return _MOST_LAYERS


def mount(target: Path, lower: Sequence[Path], *, upper: Path, work: Path) -> None:
    """Mount `upper` over the directories of `lower`, lowest first and at least one, at `target`.

    Raises OSError; the kernel's log has overlayfs's own words for it.
    """
    try:
        mount_by_descriptor(target, lower, upper=upper, work=work)
    except OSError as err:
        # ENOSYS: before Linux 5.2. EINVAL: before 6.7, which has no `lowerdir+`; or a path of more than 255 bytes.
        if err.errno not in {errno.ENOSYS, errno.EINVAL}:
            raise
        mount_by_options(target, lower, upper=upper, work=work)


def mount_by_descriptor(target: Path, lower: Sequence[Path], *, upper: Path, work: Path) -> None:
    """As `mount`, one layer at a time (Linux 6.7): as many as overlayfs takes, which is 500."""
    with ExitStack() as opened:
        context = kernel.fsopen("overlay")
        opened.callback(os.close, context)
        kernel.fsconfig_string(context, "source", _SOURCE)
        for directory in reversed(lower):
            kernel.fsconfig_string(context, "lowerdir+", directory)
        kernel.fsconfig_string(context, "upperdir", _escaped(upper))
        kernel.fsconfig_string(context, "workdir", _escaped(work))
        kernel.fsconfig_create(context)
        mounted = kernel.fsmount(context)
        opened.callback(os.close, mounted)
        kernel.move_mount(mounted, target)


def mount_by_options(target: Path, lower: Sequence[Path], *, upper: Path, work: Path) -> None:
    """As `mount`, by mount(2), whose options have to fit in a page.

    So the layers are named by descriptors: 200 of them fit, and no character of a path needs escaping.
    """
    with ExitStack() as opened:

        def name(directory: Path) -> str:
            descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            opened.callback(os.close, descriptor)
            return f"/proc/self/fd/{descriptor}"

        layers = ":".join(name(directory) for directory in reversed(lower))
        data = f"lowerdir={layers},upperdir={name(upper)},workdir={name(work)}"
        kernel.mount(_SOURCE, target, fstype="overlay", data=data)


def _escaped(path: Path) -> str:
    """overlayfs takes a backslash in these two for the mark of an escaped character."""
    return os.fspath(path).replace("\\", "\\\\")
