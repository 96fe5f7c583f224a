"""A layer on top of others as overlayfs would show them, looked at before anything is mounted.

Names and links in layers were chosen by strangers. So paths are walked one name at a time, and a symbolic link is
followed here, inside the layers: an absolute one begins at their root, and `..` does not leave it.
"""

import errno
import os
import stat
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Final

from criw import kernel
from criw.errors import InvalidArgument

_OPAQUE: Final = "trusted.overlay.opaque"
_MAX_LINKS: Final = 40  # symbolic links followed for one path, as in the kernel
_MAX_STEPS: Final = 15_000_000  # names looked up for one image, all together: some half a minute
_MAX_KNOWN: Final = 10_000


class Steps:
    """How many names may still be looked up to put an image's layers together."""

    def __init__(self, left: int = _MAX_STEPS) -> None:
        self._left = left

    def take(self, steps: int) -> None:
        """Raises InvalidArgument if no more may be."""
        self._left -= steps
        if self._left < 0:
            raise InvalidArgument(
                "cannot put layers together: they imply too many directories, or lead through too many symbolic links, "
                "for their number; rebuild the image with fewer layers, or with all directories listed in each"
            )


class View:
    """`layer` over the chain `below` it, lowest first. Paths are relative to the root, which is "".

    At a directory in `implied` the layer only means what is there already: a link of the chain below stays a link.
    """

    def __init__(self, layer: Path, below: Sequence[Path], implied: Collection[str], steps: Steps) -> None:
        self._layer = os.fspath(layer)
        self._implied = implied
        self._root = _up_to_opaque([self._layer, *map(os.fspath, reversed(below))])
        self._known: dict[str, tuple[str, ...]] = {}
        self._steps = steps

    def own(self, path: str) -> str:
        """Where the layer itself has what is at `path`, if it has."""
        return f"{self._layer}/{path}" if path else self._layer

    def directories(self, path: str) -> tuple[str, ...]:
        """The directories that merge at `path`, highest first; none if something else is there, or nothing."""
        unknown = []
        while path and path not in self._known:
            path, _, name = path.rpartition("/")
            unknown.append(name)
        found = self._known[path] if path else self._root
        for name in reversed(unknown):
            path = join(path, name)
            self._steps.take(len(found) + 1)
            found = _merged(found, name)
            if len(self._known) >= _MAX_KNOWN:
                self._known.clear()
            self._known[path] = found
        return found

    def under(self, path: str) -> tuple[str, int]:
        """The topmost thing at `path` below the layer that the layer's parents of it do not hide, and its mode.

        The mode is 0 if there is nothing.
        """
        parent, _, name = path.rpartition("/")
        found = self.directories(parent)
        self._steps.take(len(found))
        return _topmost(found[1:] if self.own(parent) in found else found, name)

    def link(self, path: str) -> str | None:
        """The symbolic link at `path`, if there is one."""
        parent, _, name = path.rpartition("/")
        directories = self.directories(parent)
        self._steps.take(len(directories))
        found, mode = _topmost(directories, name)
        if stat.S_ISDIR(mode) and path in self._implied and found == self.own(path):
            found, mode = self.under(path)
        return found if stat.S_ISLNK(mode) else None

    def follow(self, path: str) -> str | None:
        """The directory that the symbolic link at `path` leads to, by its real path; None without both of them."""
        real, _, name = path.rpartition("/")
        todo = [name]
        links = 0
        while todo:
            part = todo.pop()
            if part in {"", "."}:
                continue
            if part == "..":
                real = real.rpartition("/")[0]
                continue
            path = join(real, part)
            if (link := self.link(path)) is not None:
                links += 1
                if links > _MAX_LINKS:
                    return None
                target = os.fspath(Path(link).readlink())
                parts = target.split("/")[::-1]
                self._steps.take(len(parts))
                if target.startswith("/"):
                    real = ""
                todo += parts
            elif self.directories(path):
                real = path
            else:
                return None
        return real if links else None


def is_opaque(directory: str | os.PathLike[str]) -> bool:
    """Whether the directory hides what lower layers have in it."""
    with kernel.suppress_errno(errno.ENODATA, errno.ENOTSUP):
        return os.getxattr(directory, _OPAQUE, follow_symlinks=False) == b"y"
    return False


def make_opaque(directory: int) -> None:
    """Let an open directory hide what lower layers have in it."""
    os.setxattr(directory, _OPAQUE, b"y")


def is_whiteout(found: os.stat_result) -> bool:
    """Whether it is overlayfs's mark that lower layers have nothing here."""
    return stat.S_ISCHR(found.st_mode) and not found.st_rdev


def join(parent: str, name: str) -> str:
    """The path of `name` in `parent`, which may be the root."""
    return f"{parent}/{name}" if parent else name


def _topmost(directories: Sequence[str], name: str) -> tuple[str, int]:
    """What the first of the directories that has something by that name has there, and its mode; 0 if none has."""
    for directory in directories:
        path = f"{directory}/{name}"
        # A link's target may have names that no file can have: there is nothing by these.
        with kernel.suppress_errno(errno.ENOENT, errno.ENAMETOOLONG):
            return path, os.lstat(path).st_mode
    return "", 0


def _merged(directories: Sequence[str], name: str) -> tuple[str, ...]:
    """The directories `name` that merge where these do."""
    found: list[str] = []
    for number in range(len(directories)):
        path, mode = _topmost(directories[number : number + 1], name)
        if stat.S_ISDIR(mode):
            found.append(path)
        elif mode:
            break
    return _up_to_opaque(found)


def _up_to_opaque(directories: Sequence[str]) -> tuple[str, ...]:
    for number, directory in enumerate(directories, start=1):
        if is_opaque(directory):
            return tuple(directories[:number])
    return tuple(directories)
