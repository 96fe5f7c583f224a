"""The entries of a tar stream: POSIX ustar and pax, GNU's long names and base-256 numbers, and the older V7 form.

All names are the bytes that the archive has.
"""

from __future__ import annotations

from criw_storage.worker.stream import BLOCK, Refused, Stream

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

FILE, LINK, SYMLINK, CHARACTER, BLOCK_DEVICE, DIRECTORY, FIFO = b"0", b"1", b"2", b"3", b"4", b"5", b"6"
_KNOWN = frozenset({FILE, LINK, SYMLINK, CHARACTER, BLOCK_DEVICE, DIRECTORY, FIFO})
_ZEROS = bytes(BLOCK)
_EXTENDED_LIMIT = 1024 * 1024  # of one pax header or GNU long name, bytes
_MAX_ID = 2**32 - 2  # the highest uid and gid; the number after it means "leave unchanged" to chown(2)
_XATTR = b"SCHILY.xattr."
_SECOND = 1_000_000_000


class Entry:
    """One member. `size` is 0 for everything but files, whose bytes follow in the stream."""

    __slots__ = ("gid", "kind", "link", "major", "minor", "mode", "mtime_ns", "name", "size", "uid", "xattrs")

    def __init__(self, header: bytes, pax: dict[bytes, bytes]) -> None:
        kind = header[156:157]
        name = header[:100].partition(b"\0")[0]
        if header[257:263] == b"ustar\0" and header[345]:
            # Only POSIX has a prefix here: GNU's magic is "ustar  ", and it keeps other things in these bytes.
            name = header[345:500].partition(b"\0")[0] + b"/" + name
        if kind == b"\0":  # V7 has files and links only: a directory is a file with a slash at the end
            kind = DIRECTORY if name.endswith(b"/") else FILE
        self.kind = FILE if kind == b"7" else kind
        self.name = name
        self.link = header[157:257].partition(b"\0")[0]
        self.mode = _number(header[100:108]) & 0o7777
        self.uid = _number(header[108:116])
        self.gid = _number(header[116:124])
        self.size = _number(header[124:136])
        self.mtime_ns = _number(header[136:148]) * _SECOND
        self.major = self.minor = 0
        if kind in (CHARACTER, BLOCK_DEVICE):
            self.major, self.minor = _number(header[329:337]), _number(header[337:345])
        self.xattrs: dict[bytes, bytes] = {}
        if pax:
            self._extend(pax)
        if self.kind not in _KNOWN:
            raise Refused(f"entry {self} has type {kind!r}, which is not supported")
        if not (0 <= self.uid <= _MAX_ID and 0 <= self.gid <= _MAX_ID):
            raise Refused(f"entry {self} belongs to {self.uid}:{self.gid}, which is no owner")
        if self.kind != FILE:
            self.size = 0
        elif self.size < 0:
            raise Refused(f"entry {self} has a negative size")

    def _extend(self, pax: dict[bytes, bytes]) -> None:
        for key, value in pax.items():
            if key == b"path":
                self.name = value
            elif key == b"linkpath":
                self.link = value
            elif key == b"size":
                self.size = _decimal(value)
            elif key == b"uid":
                self.uid = _decimal(value)
            elif key == b"gid":
                self.gid = _decimal(value)
            elif key == b"mtime":
                self.mtime_ns = _nanoseconds(value)
            elif key.startswith(_XATTR):
                self.xattrs[key[len(_XATTR) :]] = value
            elif key.startswith(b"GNU.sparse."):
                raise Refused(f"entry {self} is a sparse file, which is not supported: build the image without them")

    def __str__(self) -> str:
        return ascii(self.name.decode(errors="replace"))


def entries(stream: Stream) -> Iterator[Entry]:
    """The members of the archive, each at the time when the stream is at its bytes; those not read are skipped.

    The archive ends with its first end marks, or with its last member. What follows, such as a second archive, no tar
    program reads; its bytes are of the stream all the same. Returns when that is at its end. Raises Refused.
    """
    everywhere: dict[bytes, bytes] = {}
    pax: dict[bytes, bytes] = {}
    while (header := stream.block()) is not None:
        if header == _ZEROS:
            if stream.block() not in (_ZEROS, None):
                raise Refused("its end is marked in the middle")
            stream.drain()
            break
        if not _has_checksum(header):
            raise Refused(f"there is no tar header at byte {stream.position - BLOCK}")
        kind = header[156]
        if kind in b"xgLK":
            body = _extended(stream, header)
            if kind in b"xg":
                (pax if kind == ord("x") else everywhere).update(_pax_records(body))
            else:
                pax[b"path" if kind == ord("L") else b"linkpath"] = body.partition(b"\0")[0]
            continue
        entry = Entry(header, {**everywhere, **pax} if everywhere else pax)
        pax = {}
        end = stream.position + entry.size
        yield entry
        stream.skip(end - stream.position)
        if not stream.skip_padding(-entry.size % BLOCK):
            break
    if pax:
        raise Refused("it ends after an extended header")


def _has_checksum(header: bytes) -> bool:
    """Whether the sum of all bytes, its own eight counted as blanks, is the one the header states.

    Some old programs took bytes for signed numbers.
    """
    field = header[148:156]
    stated = field.strip(b"\0 ").lstrip(b"0")
    found = sum(header) - sum(field) + 256
    if stated == b"%o" % found:
        return True
    negative = sum(byte >> 7 for byte in header) - sum(byte >> 7 for byte in field)
    return bool(negative) and stated == b"%o" % (found - 256 * negative)


def _extended(stream: Stream, header: bytes) -> bytes:
    size = _number(header[124:136])
    if not 0 <= size <= _EXTENDED_LIMIT:
        raise Refused(f"it has an extended header of {size} bytes; at most {_EXTENDED_LIMIT} are allowed")
    body = stream.read(size)
    stream.skip(-size % BLOCK)
    return body


def _pax_records(body: bytes) -> dict[bytes, bytes]:
    """The records "<length> <key>=<value>\\n" of a pax header (POSIX.1-2001, pax, "Extended Header")."""
    records: dict[bytes, bytes] = {}
    at = 0
    while at < len(body):
        digits = body[at : at + 20].partition(b" ")[0]
        end = at + _decimal(digits)
        key, equals, value = body[at + len(digits) + 1 : end - 1].partition(b"=")
        if not (key and equals and body[end - 1 : end] == b"\n"):
            raise Refused("it has a malformed pax header")
        if value:
            records[key] = value
        else:
            records.pop(key, None)  # an empty value takes back an earlier one
        at = end
    return records


def _number(field: bytes) -> int:
    """Octal digits padded with spaces and NULs or, for what these cannot hold, two's complement marked by bit 7."""
    if field[0] & 0x80:
        bits = 8 * len(field) - 1
        value = int.from_bytes(field, "big") & ((1 << bits) - 1)
        return value - (1 << bits) if field[0] & 0x40 else value
    digits = field.strip(b"\0 ").partition(b"\0")[0]
    try:
        return int(digits, 8) if digits else 0
    except ValueError:
        raise Refused(f"it has {field!r} where an octal number should be") from None


def _decimal(text: bytes) -> int:
    if not text.isdigit() or len(text) > 20:
        raise Refused(f"it has {text[:30]!r} where a decimal number should be")
    return int(text)


def _nanoseconds(text: bytes) -> int:
    """A pax time: seconds since 1970 with any number of decimals, perhaps negative."""
    whole, _, fraction = text.removeprefix(b"-").partition(b".")
    value = _decimal(whole) * _SECOND + (_decimal(fraction[:9].ljust(9, b"0")) if fraction else 0)
    return -value if text.startswith(b"-") else value
