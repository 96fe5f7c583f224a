"""What layers mean for each other: the small directories ("patches") that go between two of them where it matters.

Layers are unpacked without knowing which others will lie below them. Three things depend on those:

- A directory that a layer implies but does not list has the attributes of the same directory further down. (Of root
  directories only one matters: that of the writable layer on top, which takes them from the image.)
- If further down a symbolic link to a directory is in its place, the layer means that directory: `bin/x` is put into
  `usr/bin` where `bin` is a link to that. A link that leads to no directory is replaced, as by a listed directory.
- overlayfs hides whiteouts only where it merges directories of several layers. In a directory that lower layers do not
  have, a whiteout, which then hides nothing, would be listed as a broken file.

All are put right by a patch above the layer: just these directories, with the right attributes, the links, and what
the layer has in their place by a second name (a hard link). overlayfs takes a merged directory's attributes from its
topmost layer.
"""

import errno
import hashlib
import os
import stat
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from criw import kernel
from criw.errors import Failed, InvalidArgument
from criw_storage.view import Steps, View, is_opaque, is_whiteout, join, make_opaque

_PATH_MAX: Final = 4095  # bytes
_OVERLAY: Final = "trusted.overlay."


@dataclass
class Directory:
    """A directory of a patch. It looks like the directory `like`."""

    like: str
    sources: list[str] = field(default_factory=list)  # directories of the layer whose files it has, by path
    opaque: bool = False
    hides: bool = False  # whether lower layers may have something that whiteouts in it hide
    own: bool = False  # whether the layer has this directory itself, and so may have files in it


@dataclass
class Patch:
    """What goes above `layer`, by path. Nothing in it lies below a link."""

    layer: Path
    directories: dict[str, Directory] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)  # and where each is in the chain
    leads: dict[str, str] = field(default_factory=dict)  # the directory that each link leads to
    moved: set[str] = field(default_factory=set)  # directories of the layer that are not seen where it has them

    def __bool__(self) -> bool:
        return bool(self.directories or self.links)


def patch_name(names: Sequence[str]) -> str:
    """The name of the patch above a chain of layers, lowest first: the same for every image that begins with them."""
    return f"patch-{hashlib.sha256(' '.join(names).encode()).hexdigest()}"


def plan(
    below: Sequence[Path], layer: Path, implied: Collection[bytes], whited: Collection[bytes], steps: Steps
) -> Patch:
    """The patch above `layer`, false if none is needed.

    `below` is the chain under the layer, lowest first, patches included; `steps` are the image's.
    Raises InvalidArgument for a layer that makes too much work, Failed for one that is broken.
    """
    inherited = {os.fsdecode(path) for path in implied if path}
    hiding = [os.fsdecode(path) for path in whited if path]
    view = View(layer, below, inherited, steps)
    patch = Patch(layer)
    for path in sorted(inherited):  # each after the one it is in
        _check_own(view, path)
        link = view.link(path)
        if link is None or path in patch.moved or path in patch.directories:
            continue
        place = view.follow(path)
        if place is not None:
            patch.links[path] = link
            patch.leads[path] = place
            with _opened(layer) as descriptor:
                _move(patch, descriptor, view, inherited, path)
    needed = {*patch.links, *patch.directories}
    for path in inherited - patch.moved:
        like = _inherited(view, path)
        if like is not None and _attributes(like) != _attributes(view.own(path)):
            needed.add(path)
    for path in hiding:
        _check_own(view, path)
        if path not in patch.moved and len(view.directories(path)) < 2:
            needed.add(path)
    for path in tuple(needed):  # a patch has them too, and it, not the layer, would decide how they look
        parts = path.split("/")
        needed |= {"/".join(parts[:depth]) for depth in range(1, len(parts))}
    for path in needed - patch.directories.keys() - patch.links.keys():
        patch.directories[path] = Directory(_like(view, inherited, path))
    return patch


def _move(patch: Patch, layer: int, view: View, implied: Collection[str], link: str) -> None:
    """Plan that all the layer has at `link`, a directory there, comes to where the link leads."""
    todo = [(link, patch.leads[link], False)]
    while todo:
        source, place, hidden = todo.pop()  # hidden: no lower layer's files are seen there
        patch.moved.add(source)
        directory = patch.directories.get(place)
        if directory is None:
            merged = () if hidden else view.directories(place)
            directory = Directory(
                _like(view, implied, place) if merged else view.own(source),
                hides=bool(merged),
                own=view.own(place) in merged,
            )
            patch.directories[place] = directory
        if source in directory.sources:
            continue
        directory.sources.append(source)
        if source not in implied and source != place:
            directory.like = view.own(source)
        if place and source != place and is_opaque(view.own(source)):
            directory.opaque = hidden = True
            if directory.own:  # it is not to be hidden, as it is of the same layer
                todo.append((place, place, True))
        for name in _directories_in(layer, source):
            child, there = join(source, name), join(place, name)
            if there in patch.leads:
                there = patch.leads[there]
            elif child in implied and not hidden:
                there = view.follow(there) or there
            todo.append((child, there, hidden))


def build(target: Path, patch: Patch) -> None:
    """Make what `plan` says in an empty directory.

    Raises InvalidArgument if a file has as many names already as the file system allows.
    """
    # First all directories, when there is no link yet that could lead out of the target.
    directories = [(path, patch.directories[path]) for path in sorted(patch.directories) if path]
    for path, directory in directories:
        here = target / path
        found = os.lstat(directory.like)
        here.mkdir()
        os.chown(here, found.st_uid, found.st_gid)
        here.chmod(stat.S_IMODE(found.st_mode))
        for name in _xattrs(directory.like):
            os.setxattr(here, name, os.getxattr(directory.like, name))
    with _opened(target) as root, _opened(patch.layer) as layer:
        for path, link in patch.links.items():
            parent, _, name = path.rpartition("/")
            with _beneath(root, parent) as into:
                _link(link, name, into)
        for path, directory in patch.directories.items():
            with _beneath(root, path) as into:
                if directory.opaque:
                    make_opaque(into)
                for source in directory.sources:
                    _link_files(layer, source, into, directory, path if directory.own else None)
    for path, directory in directories:
        found = os.lstat(directory.like)
        os.utime(target / path, ns=(found.st_mtime_ns, found.st_mtime_ns))


def _link_files(layer: int, source: str, into: int, directory: Directory, own: str | None) -> None:
    """Give all that is no directory in the layer's directory `source` a second name in the open directory `into`.

    `own` is the same directory of the layer itself, if it has one: a whiteout is about lower layers' files only.
    """
    with _beneath(layer, source) as found, os.scandir(found) as items:
        for item in items:
            if item.is_dir(follow_symlinks=False):
                continue
            marks = is_whiteout(item.stat(follow_symlinks=False))
            if marks and (directory.opaque or not directory.hides):
                continue
            if own is not None and marks:
                with _beneath(layer, own) as beside:
                    if _mode(item.name, beside):
                        continue
            there = _mode(item.name, into)
            if there and (marks or stat.S_ISDIR(there)):
                continue
            if there:
                os.unlink(item.name, dir_fd=into)
            _link(item.name, item.name, into, found)


def _link(source: str, name: str, into: int, found: int | None = None) -> None:
    """Give a file, which may be a symbolic link, a second name in the directory `into`."""
    try:
        os.link(source, name, src_dir_fd=found, dst_dir_fd=into, follow_symlinks=False)
    except OSError as err:
        if err.errno != errno.EMLINK:
            raise
        raise InvalidArgument(
            f"cannot put layers together: {source!r} has as many names as a file may have; rebuild the image"
        ) from err


def _mode(name: str, directory: int) -> int:
    with kernel.suppress_errno(errno.ENOENT):
        return os.lstat(name, dir_fd=directory).st_mode
    return 0


@contextmanager
def _opened(directory: Path) -> Iterator[int]:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _beneath(root: int, path: str) -> Iterator[int]:
    """A directory below an open one, opened through no symbolic link."""
    descriptor = kernel.open_beneath(root, os.fsencode(path) or b".")
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _directories_in(layer: int, path: str) -> list[str]:
    with _beneath(layer, path) as directory, os.scandir(directory) as items:
        return [item.name for item in items if item.is_dir(follow_symlinks=False)]


def _check_own(view: View, path: str) -> None:
    if len(os.fsencode(view.own(path))) > _PATH_MAX:
        raise InvalidArgument(f"cannot put layers together: {path[:100]!r}… is too long a path; rebuild the image")
    if view.own(path) not in view.directories(path):
        raise Failed(
            f"cannot put layers together: there is no directory {view.own(path)!r}; remove the image and pull it"
        )


def _inherited(view: View, path: str) -> str | None:
    """The directory below the layer whose attributes one that it implies has."""
    found, mode = view.under(path)
    return found if stat.S_ISDIR(mode) else None


def _like(view: View, implied: Collection[str], path: str) -> str:
    """What the directory that is seen at `path` looks like."""
    return (_inherited(view, path) if path in implied else None) or view.directories(path)[0]


def _attributes(directory: str) -> tuple[object, ...]:
    found = os.lstat(directory)
    xattrs = [(name, os.getxattr(directory, name)) for name in _xattrs(directory)]
    return found.st_mode, found.st_uid, found.st_gid, xattrs


def _xattrs(directory: str) -> list[str]:
    return sorted(name for name in os.listxattr(directory) if not name.startswith(_OVERLAY))
