"""A container's file tree as it will be: where the paths lead at which the runtime mounts and makes something.

The runtime works as root on the host. One that follows a link of the image leaves the container (runc 1.1.5 makes
what belongs into /dev wherever that leads), so none is ever given a path with a link in it. Nobody else has the image's
files under this root yet; of a volume that another container writes to, no more can be told than how it is now.
"""

import errno
import os
import posixpath
import stat
from pathlib import Path
from typing import Final

from criw.errors import InvalidArgument

_LINKS: Final = 40  # as many as the kernel follows
_NO_LINK: Final = (errno.EINVAL, errno.ENOENT, errno.ENOTDIR)


class Tree:
    """Paths given and returned are those in the container. All methods block."""

    def __init__(self, rootfs: Path) -> None:
        self._places: dict[str, Path | None] = {"/": rootfs}

    def mount(self, destination: str, source: Path | None) -> None:
        """Have something mounted at a resolved path; `source` is None for what is no directory or file of the host."""
        self._places[destination] = source

    def mount_point(self, path: str) -> str:
        """The mount a resolved path is on; "/" for the image's own tree."""
        while path not in self._places:
            path = posixpath.dirname(path)
        return path

    def on_host(self, path: str) -> Path | None:
        """Where on the host a resolved path is, if it is a directory's or file's."""
        point = self.mount_point(path)
        place = self._places[point]
        return None if place is None else place / path[len(point) :].lstrip("/")

    def resolve(self, path: str) -> str:
        """The path without links, as the kernel would follow it in the container; what is missing stays as it is.

        Raises InvalidArgument if it leads nowhere.
        """
        if "\0" in path:
            raise InvalidArgument(f"cannot use {path!r} in the container: there is a NUL in it")
        left, links = path.split("/")[::-1], 0
        way = [("/", "/")]  # directories from the root on, each with the mount it is on: none is looked for twice
        while left:
            name = left.pop()
            if name == "..":
                del way[max(len(way) - 1, 1) :]  # above the root there is the root
            elif name not in {"", "."}:
                here, point = way[-1]
                there = posixpath.join(here, name)
                target = None if there in self._places else self._link(there, point, path)
                if target is None:
                    way.append((there, there if there in self._places else point))
                    continue
                links += 1
                if links > _LINKS:
                    raise InvalidArgument(f"cannot use {path} in the container: there are too many links on the way")
                way = way[:1] if target.startswith("/") else way
                left += target.split("/")[::-1]
        return way[-1][0]

    def _link(self, path: str, point: str, asked: str) -> str | None:
        """Where the link at a path on the mount `point` leads; None if there is none."""
        if (place := self._places[point]) is None:
            return None
        try:
            return os.readlink(f"{place}/{path[len(point) :]}")  # noqa: PTH115 — Path takes apart all of it
        except OSError as err:
            if err.errno in _NO_LINK:
                return None
            raise InvalidArgument(f"cannot use {asked} in the container: {err.strerror}") from err

    def refuse_links(self, *paths: str) -> None:
        """Raises InvalidArgument if one of these is a link in the image: the runtime makes things below them."""
        for path in paths:
            if (found := self.resolve(path)) != path:
                raise InvalidArgument(f"cannot use the image: its {path} is a link, which leads to {found}")

    def refuse_endless(self, *paths: str) -> None:
        """Raises InvalidArgument if one of these is there and no plain file: the runtime would read it without end."""
        for path in paths:
            place = self.on_host(found := self.resolve(path))
            try:
                plain = place is not None and stat.S_ISREG(place.lstat().st_mode)
            except (FileNotFoundError, NotADirectoryError):
                continue
            if not plain:
                raise InvalidArgument(f"cannot use {path} of the container: {found}, where it is, is no plain file")
