"""What names in a layer mean: paths, and image-spec layer.md's whiteouts, which come from AUFS."""

from __future__ import annotations

from criw_storage.worker import tar
from criw_storage.worker.stream import Refused
from criw_storage.worker.tar import Entry

WHITEOUT = b".wh."
OPAQUE = b".wh..wh..opq"
PSEUDO_LINKED = b".wh..wh.plnk"  # a directory of the root, where AUFS keeps files that others are hard links to
_AUFS = b".wh..wh."  # what it keeps for itself: says nothing about the image's files


def cleaned(path: bytes, entry: Entry) -> list[bytes]:
    """The names of a path without those that mean nothing; `..` takes back the one before it, whatever that may be.

    Raises Refused for a path that leads out of the root.
    """
    parts: list[bytes] = []
    for part in path.split(b"/"):
        if part == b"..":
            if not parts:
                raise Refused(f"entry {entry} leads out of the layer by {path.decode(errors='replace')!a}")
            parts.pop()
        elif part not in {b"", b"."}:
            parts.append(part)
    return parts


def for_aufs_only(head: bytes, name: bytes, entry: Entry) -> bool:
    """Whether the entry, `name` in the directory `head`, is of no use to anybody else.

    Files that others may be hard links to are of use, until the last of these is made.
    """
    parts = [*cleaned(head, entry), name]
    if len(parts) == 2 and parts[0] == PSEUDO_LINKED and not name.startswith(WHITEOUT):
        return entry.kind != tar.FILE
    last = name.startswith(_AUFS) and name != OPAQUE
    return last or any(part.startswith(_AUFS) for part in parts[:-1])
