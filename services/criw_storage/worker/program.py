"""The program that unpacks one layer: reads a blob it was given open, in a world that is only the target directory.

`unpack` starts it and reads what it says on its standard output: messages of one byte that tells the kind, a payload
and a NUL. Its last message is an end: `DIGEST`, `REFUSED` or `NO_SPACE`; without one it has failed.
"""

from __future__ import annotations

import errno
import gc
import itertools
import os

from criw_storage.worker.confine import confine
from criw_storage.worker.stream import Refused, Stream, uncompressed
from criw_storage.worker.tar import Entry, entries
from criw_storage.worker.tree import Tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

IMPLIED, OPAQUE, WHITED, IGNORED = b"i", b"o", b"w", b"x"  # payload: a path in the layer; the name of an attribute
DIGEST = b"d"  # payload: sha256 of the uncompressed bytes, in hex
REFUSED = b"r"  # payload: why
NO_SPACE = b"s"  # no payload
_IGNORED_SHOWN = 20
_SAID_AT_ONCE = 1024  # payloads
_LOOKS = 16  # while as much is written as is to be kept, at least
_LOOK_EVERY = 16 * 1024 * 1024  # bytes written, an inode taken for a block of 4 KiB
_INODE = 4096
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
# The machine's state or our mistake, not what the archive asks for.
_OURS = _FULL | {errno.EIO, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EBADF, errno.EACCES}


def main(argv: Sequence[str]) -> None:
    """Arguments: descriptor of the blob, target directory, most bytes to unpack, most inodes to make; bytes and inodes
    of the file system that must stay free.
    """
    blob, max_bytes, max_inodes, keep_bytes, keep_inodes = int(argv[0]), *map(int, argv[2:6])
    gc.disable()  # nothing here makes cycles worth collecting
    os.umask(0)
    chunks = uncompressed(blob)
    confine(argv[1], max_file_bytes=max_bytes)
    stream = Stream(chunks, limit=max_bytes)
    root = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    tree = Tree(root, max_inodes=max_inodes, take_room=Room(root, keep_bytes, keep_inodes).take)
    try:
        unpack(stream, tree)
    except Refused as err:
        _say(REFUSED, [str(err).encode()])
    except MemoryError:
        _say(REFUSED, [b"it needs more memory than a layer may"])
    except OSError as err:
        if err.errno not in _FULL:
            raise
        _say(NO_SPACE, [b""])
    else:
        for kind, flag in ((IMPLIED, "implied"), (OPAQUE, "opaque"), (WHITED, "whited")):
            _say(kind, (path for path, found in tree.top.all() if getattr(found, flag)))
        _say(IGNORED, sorted(tree.ignored)[:_IGNORED_SHOWN])
        _say(DIGEST, [stream.digest().encode()])


class Room:
    """What is free of the file system of an open directory, shared with all who write to it at the same time."""

    def __init__(self, directory: int, keep_bytes: int, keep_inodes: int) -> None:
        self._directory = directory
        self._keep_bytes = keep_bytes
        self._keep_inodes = keep_inodes
        self._every = min(_LOOK_EVERY, keep_bytes // _LOOKS)  # several who write must not use up what is to be kept
        self._unseen = 0

    def take(self, size: int) -> None:
        """Count a write of so many bytes, or an inode. Raises OSError (ENOSPC) when less is free than is to be kept."""
        self._unseen -= size or _INODE
        if self._unseen < 0:
            self._unseen = self._every
            found = os.fstatvfs(self._directory)
            # A file system without a fixed number of inodes (btrfs) says 0.
            if found.f_bavail * found.f_frsize - size < self._keep_bytes or (
                found.f_files and found.f_favail < self._keep_inodes
            ):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def unpack(stream: Stream, tree: Tree) -> None:
    """Apply every entry of the archive. Raises Refused, OSError for a full disk or a broken one, MemoryError."""
    entry: Entry | None = None
    try:
        for entry in entries(stream):
            tree.apply(entry, stream)
        entry = None
        tree.finish()
    except OSError as err:
        if err.errno in _OURS:
            raise
        raise Refused(f"{_name(entry)} cannot be made: {err.strerror}") from err
    except (ValueError, OverflowError) as err:  # a NUL in a name, a number no kernel call can take
        raise Refused(f"{_name(entry)} cannot be made: {err}") from err


def _name(entry: Entry | None) -> str:
    return f"entry {entry}" if entry else "a directory"


def _say(kind: bytes, payloads: Iterable[bytes]) -> None:
    rest = iter(payloads)
    while some := b"".join(kind + payload + b"\0" for payload in itertools.islice(rest, _SAID_AT_ONCE)):
        data = memoryview(some)
        while data:
            data = data[os.write(1, data) :]
