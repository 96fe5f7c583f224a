"""What layers mean for each other: the small directories ("patches") that go between two of them where it matters.

Layers are unpacked without knowing which others will lie below them. Two things depend on those:

- A directory that a layer implies but does not list has the attributes of the same directory further down. (Of root
  directories only one matters: that of the writable layer on top, which takes them from the image.)
- overlayfs hides whiteouts only where it merges directories of several layers. In a directory that lower layers do not
  have, a whiteout, which then hides nothing, would be listed as a broken file.

Both are put right by a patch above the layer: just these directories, with the right attributes. overlayfs takes a
merged directory's attributes from its topmost layer.
"""

import errno
import hashlib
import os
import stat
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Final

from criw import kernel
from criw.errors import Failed

_OPAQUE: Final = "trusted.overlay.opaque"
_OVERLAY: Final = "trusted.overlay."


def patch_name(names: Sequence[str]) -> str:
    """The name of the patch above a chain of layers, lowest first: the same for every image that begins with them."""
    return f"patch-{hashlib.sha256(' '.join(names).encode()).hexdigest()}"


def is_opaque(directory: Path) -> bool:
    """Whether the directory hides what lower layers have in it."""
    with kernel.suppress_errno(errno.ENODATA, errno.ENOTSUP):
        return os.getxattr(directory, _OPAQUE, follow_symlinks=False) == b"y"
    return False


def plan(below: Sequence[Path], layer: Path, implied: Collection[bytes], whited: Collection[bytes]) -> dict[str, Path]:
    """The directories of the patch above `layer`, by path, and for each the one whose attributes it takes.

    `below` is the chain under the layer, lowest first, patches included. Empty if no patch is needed.
    """
    lower = below[::-1]
    inherited = {os.fsdecode(path) for path in implied}
    needed = set()
    for path in filter(None, inherited):
        found = _topmost(lower, path)
        if found is not None and _attributes(found) != _attributes(_own(layer, path)):
            needed.add(path)
    for path in map(os.fsdecode, filter(None, whited)):
        if _look(layer, path)[1] or _topmost(lower, path) is None:
            needed.add(path)
    for path in tuple(needed):  # a patch has them too, and it, not the layer, would decide how they look
        parts = path.split("/")
        needed |= {"/".join(parts[:depth]) for depth in range(1, len(parts))}
    return {
        path: (_topmost(lower, path) if path in inherited else None) or _own(layer, path) for path in sorted(needed)
    }


def build(target: Path, directories: Mapping[str, Path]) -> None:
    """Make what `plan` says in an empty directory."""
    for path, like in directories.items():  # sorted, so each comes after the one it is in
        here = target / path
        found = like.stat()
        here.mkdir()
        os.chown(here, found.st_uid, found.st_gid)
        here.chmod(stat.S_IMODE(found.st_mode))
        for name in _xattrs(like):
            os.setxattr(here, name, os.getxattr(like, name))
    for path, like in directories.items():
        found = like.stat()
        os.utime(target / path, ns=(found.st_mtime_ns, found.st_mtime_ns))


def _own(layer: Path, path: str) -> Path:
    found, _ = _look(layer, path)
    if found is None or not stat.S_ISDIR(found.st_mode):
        raise Failed(f"cannot put layers together: {layer} has no directory {path!r}; remove the image and pull it")
    return layer / path


def _topmost(lower: Sequence[Path], path: str) -> Path | None:
    """The directory that the layers `lower`, highest first, have at `path` together; None if they have none."""
    for layer in lower:
        found, hides = _look(layer, path)
        if found is not None:
            return layer / path if stat.S_ISDIR(found.st_mode) else None
        if hides:
            return None
    return None


def _look(layer: Path, path: str) -> tuple[os.stat_result | None, bool]:
    """What one layer has at `path`, and whether it hides what lower ones have there. Follows no symbolic link."""
    here = layer
    found = here.lstat()
    hides = is_opaque(here)
    for part in path.split("/"):
        if not stat.S_ISDIR(found.st_mode):
            return None, True
        here /= part
        try:
            found = here.lstat()
        except FileNotFoundError:
            return None, hides
        hides = hides or not stat.S_ISDIR(found.st_mode) or is_opaque(here)
    return found, hides


def _attributes(directory: Path) -> tuple[object, ...]:
    found = directory.stat()
    xattrs = [(name, os.getxattr(directory, name)) for name in _xattrs(directory)]
    return found.st_mode, found.st_uid, found.st_gid, xattrs


def _xattrs(directory: Path) -> list[str]:
    return sorted(name for name in os.listxattr(directory) if not name.startswith(_OVERLAY))
