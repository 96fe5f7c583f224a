"""The uncompressed bytes of a layer's blob, hashed while they are read."""

from __future__ import annotations

import errno
import io
import os
from _hashlib import openssl_sha256  # what hashlib.sha256 is, without importing hashlib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

BLOCK = 512  # a tar archive is a sequence of blocks
_COMPRESSED_CHUNK = 128 * 1024
_CHUNK = 512 * 1024  # what is in memory at once
_ZSTD_WINDOW = 128 * 1024 * 1024  # the memory a frame may demand: what zstd's own program allows (--long=27)
_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
_ZSTD_SKIPPABLE = b"\x2a\x4d\x18"  # after a byte that says which of 16 kinds of frame to skip it is


class Refused(Exception):  # noqa: N818 — it is what happens to the archive
    """The archive is broken, uses what is not supported, or asks for something no layer may do."""


def uncompressed(blob: int) -> Iterator[bytes]:
    """The bytes of the file `blob` in chunks, decompressed if its first bytes are those of gzip or zstd.

    All imports happen before this returns, all but these bytes are read afterwards. The chunks raise Refused.
    """
    magic = os.pread(blob, 4, 0)
    if magic.startswith(_GZIP):
        return _gunzipped(blob)
    if magic == _ZSTD or magic[1:] == _ZSTD_SKIPPABLE:
        return _unzstd(blob)
    return _plain(blob)


def _plain(blob: int) -> Iterator[bytes]:
    while chunk := os.read(blob, _CHUNK):
        yield chunk


def _gunzipped(blob: int) -> Iterator[bytes]:
    from isal import igzip_lib

    def chunks() -> Iterator[bytes]:
        compressed = os.read(blob, _COMPRESSED_CHUNK)
        while compressed:  # a file may have several members (RFC 1952, section 2.2)
            member = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
            while not member.eof:
                try:
                    chunk = member.decompress(compressed, _CHUNK)
                except igzip_lib.IsalError as err:  # type: ignore[misc]  # the stub takes the class for an instance
                    raise Refused(f"its gzip compression is broken: {err}") from None
                if chunk:
                    yield chunk
                compressed = b""
                if member.needs_input and not member.eof:
                    compressed = os.read(blob, _COMPRESSED_CHUNK)
                    if not compressed:
                        raise Refused("its gzip compression ends early")
            compressed = member.unused_data or os.read(blob, _COMPRESSED_CHUNK)

    return chunks()


def _unzstd(blob: int) -> Iterator[bytes]:
    import zstandard

    def chunks() -> Iterator[bytes]:
        decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
        with io.FileIO(blob, closefd=False) as file:
            # A frame cut short looks like an end: the tar is then cut short, too, or not what its digest says.
            reader = decompressor.stream_reader(file, read_size=_COMPRESSED_CHUNK, read_across_frames=True)
            try:
                while chunk := reader.read(_CHUNK):
                    yield chunk
            except zstandard.ZstdError as err:
                raise Refused(f"its zstd compression is broken: {err}") from None

    return chunks()


class Stream:
    """Reads chunks as tar's blocks and files. Every byte of every chunk goes into the digest.

    Raises OSError (ENOSPC) after `limit` bytes: more than the disk has room for.
    """

    def __init__(self, chunks: Iterator[bytes], *, limit: int) -> None:
        self.position = 0
        self._chunks = chunks
        self._chunk = b""
        self._at = 0
        self._limit = limit
        self._total = 0
        self._hash = openssl_sha256()

    def _next_chunk(self) -> bool:
        """Go on to the next chunk when the last is used up; False at the end."""
        self._chunk = next(self._chunks, b"")
        self._at = 0
        self._hash.update(self._chunk)
        self._total += len(self._chunk)
        if self._total > self._limit:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return bool(self._chunk)

    def block(self) -> bytes | None:
        """The next 512 bytes; None at the end."""
        end = self._at + BLOCK
        if end <= len(self._chunk):  # nearly always
            block = self._chunk[self._at : end]
            self._at = end
            self.position += BLOCK
            return block
        if self._at == len(self._chunk) and not self._next_chunk():
            return None
        return self.read(BLOCK)

    def read(self, size: int) -> bytes:
        """Exactly `size` bytes. Raises Refused if there are fewer."""
        return b"".join(self.pieces(size))

    def pieces(self, size: int) -> Iterator[memoryview]:
        """The next `size` bytes, as they come. Raises Refused if there are fewer."""
        while size:
            if self._at == len(self._chunk) and not self._next_chunk():
                raise Refused(f"it ends early, at byte {self.position}")
            piece = memoryview(self._chunk)[self._at : self._at + size]
            self._at += len(piece)
            self.position += len(piece)
            size -= len(piece)
            yield piece

    def skip(self, size: int) -> None:
        """Pass over `size` bytes. Raises Refused if there are fewer."""
        if self._at + size <= len(self._chunk):  # nearly always
            self._at += size
            self.position += size
            return
        for _ in self.pieces(size):
            pass

    def skip_padding(self, size: int) -> bool:
        """Pass over `size` bytes; False if there are fewer."""
        while size > len(self._chunk) - self._at:
            size -= len(self._chunk) - self._at
            self.position += len(self._chunk) - self._at
            self._at = len(self._chunk)
            if not self._next_chunk():
                return False
        self._at += size
        self.position += size
        return True

    def drain(self) -> None:
        """Read to the end."""
        self.position += len(self._chunk) - self._at
        while self._next_chunk():
            self.position += len(self._chunk)

    def digest(self) -> str:
        """sha256 of all chunks so far, in hex."""
        return self._hash.hexdigest()
