"""Which extended attributes of a layer's files are kept."""

from __future__ import annotations

import errno
import os

from criw_storage.worker.stream import Refused
from criw_storage.worker.tar import Entry

# Those that belong to the file, not to the host or the overlay: SELinux labels and the like are the host's affair.
_KEPT = (b"user.", b"security.capability", b"system.posix_acl_")


def set_xattrs(file: int, entry: Entry) -> set[bytes]:
    """Give an open file or directory the attributes of its entry; the names of those that were not kept."""
    ignored = set()
    for name, value in entry.xattrs.items():
        if name.startswith(b"trusted.overlay."):
            raise Refused(f"entry {entry} has the attribute {name!r}, which belongs to overlayfs")
        try:
            if not name.startswith(_KEPT):
                raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
            os.setxattr(file, name, value)
        except OSError as err:
            if err.errno != errno.ENOTSUP:
                raise
            ignored.add(name)
    return ignored
