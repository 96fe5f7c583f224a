"""Header blocks: names and values, compressed by one zlib stream for each direction of a connection."""

import zlib
from collections.abc import Mapping
from typing import Final

from criw.spdy.dictionary import DICTIONARY

INFLATED_LIMIT: Final = 256 * 1024  # bytes of one block
HEADERS_LIMIT: Final = 1000  # headers of one block


class ProtocolError(Exception):
    """The peer sent what ends the connection; the message says what."""


class Inflater:
    """Headers from blocks, in the order these come."""

    def __init__(self) -> None:
        self._zlib = zlib.decompressobj(zdict=DICTIONARY)

    def headers(self, block: bytes) -> dict[str, str]:
        """Raises ProtocolError for a block that is corrupt, too large or not used up exactly."""
        try:
            inflated = self._zlib.decompress(block, INFLATED_LIMIT + 1)
        except zlib.error as err:
            raise ProtocolError(f"cannot inflate a header block: {err}") from err
        if len(inflated) > INFLATED_LIMIT:
            raise ProtocolError(f"cannot read a header block: it inflates to more than {INFLATED_LIMIT} bytes")
        if self._zlib.eof:
            raise ProtocolError("cannot read a header block: it ends the compression that the others need")
        return _parsed(inflated)


class Deflater:
    """Blocks from headers, to be sent in the order they are made."""

    def __init__(self) -> None:
        self._zlib = zlib.compressobj(9, zlib.DEFLATED, 15, 8, zlib.Z_DEFAULT_STRATEGY, DICTIONARY)

    def block(self, headers: Mapping[str, str]) -> bytes:
        texts = [text.encode("latin-1") for header in headers.items() for text in header]
        block = b"".join([_u32(len(headers)), *(_u32(len(text)) + text for text in texts)])
        return self._zlib.compress(block) + self._zlib.flush(zlib.Z_SYNC_FLUSH)


def _u32(number: int) -> bytes:
    return number.to_bytes(4, "big")


def _parsed(block: bytes) -> dict[str, str]:
    texts = []
    at = 0

    def number() -> int:
        nonlocal at
        at += 4
        if at > len(block):
            raise ProtocolError("cannot read a header block: it ends too early")
        return int.from_bytes(block[at - 4 : at], "big")

    count = number()
    if count > HEADERS_LIMIT:
        raise ProtocolError(f"cannot read a header block: {count} headers are more than {HEADERS_LIMIT}")
    for _ in range(2 * count):
        start = at + 4
        at = start + number()
        texts.append(block[start:at])
    if at != len(block):
        raise ProtocolError(f"cannot read a header block: {len(block)} bytes where its headers have {at}")
    names = texts[::2]
    if len(set(names)) != count or any(name != name.lower() for name in names):
        raise ProtocolError("cannot read a header block: a name comes twice or has upper case")
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in zip(names, texts[1::2], strict=True)}
