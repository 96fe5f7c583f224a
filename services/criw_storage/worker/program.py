"""The program that unpacks one layer: reads a blob it was given open, in a world that is only the target directory.

`unpack` starts it and reads what it says on its standard output: messages of one byte that tells the kind, a payload
and a NUL. Its last message is an end: `DIGEST`, `REFUSED` or `NO_SPACE`; without one it has failed.
"""

from __future__ import annotations

import errno
import gc
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
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
# The machine's state or our mistake, not what the archive asks for.
_OURS = _FULL | {errno.EIO, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EBADF, errno.EACCES}


def main(argv: Sequence[str]) -> None:
    """Arguments: descriptor of the blob, target directory, most bytes to unpack, most inodes to make."""
    blob, max_bytes, max_inodes = int(argv[0]), int(argv[2]), int(argv[3])
    gc.disable()  # nothing here makes cycles worth collecting
    os.umask(0)
    chunks = uncompressed(blob)
    confine(argv[1], max_file_bytes=max_bytes)
    stream = Stream(chunks, limit=max_bytes)
    tree = Tree(os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), max_inodes=max_inodes)
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
        _say(IMPLIED, tree.implied)
        _say(OPAQUE, tree.opaque)
        _say(WHITED, tree.whited)
        _say(IGNORED, sorted(tree.ignored)[:_IGNORED_SHOWN])
        _say(DIGEST, [stream.digest().encode()])


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
    data = memoryview(b"".join(kind + payload + b"\0" for payload in payloads))
    while data:
        data = data[os.write(1, data) :]
