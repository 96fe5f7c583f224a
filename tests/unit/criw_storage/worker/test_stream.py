import bz2
import contextlib
import errno
import gzip
import hashlib
import os
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from criw_storage.worker.stream import Refused, Stream, uncompressed

DATA = os.urandom(1000) * 2000  # several chunks
SKIPPABLE = b"\x50\x2a\x4d\x18\x03\0\0\0abc"  # a zstd frame that says nothing


def chunks(tmp_path: Path, blob: bytes) -> list[bytes]:
    path = tmp_path / "blob"
    path.write_bytes(blob)
    with path.open("rb") as file:
        return list(uncompressed(file.fileno()))


@pytest.mark.parametrize(
    "blob",
    [
        DATA,
        gzip.compress(DATA, 1),
        gzip.compress(DATA[:70_000]) + gzip.compress(b"") + gzip.compress(DATA[70_000:]),
        zstandard.compress(DATA),
        zstandard.compress(DATA[:70_000]) + SKIPPABLE + zstandard.compress(DATA[70_000:]),
        SKIPPABLE + zstandard.compress(DATA),
    ],
    ids=["plain", "gzip", "gzip members", "zstd", "zstd frames", "zstd after a skippable frame"],
)
def test_the_first_bytes_tell_the_compression(tmp_path: Path, blob: bytes) -> None:
    assert b"".join(chunks(tmp_path, blob)) == DATA


@pytest.mark.parametrize("blob", [b"", b"\x1f", bz2.compress(b"x"), b"\xfd7zXZ\0"])
def test_other_bytes_are_passed_on(tmp_path: Path, blob: bytes) -> None:
    assert b"".join(chunks(tmp_path, blob)) == blob


@pytest.mark.parametrize(
    "blob",
    [
        gzip.compress(DATA)[:-1],
        gzip.compress(DATA)[:-5000],
        gzip.compress(DATA) + b"garbage",
        gzip.compress(DATA)[:-6] + b"\0\0" + gzip.compress(DATA)[-4:],
        b"\x1f\x8b\x08",
        zstandard.compress(DATA) + b"garbage",
        zstandard.compress(DATA)[:9] + b"\xff" * 500,
    ],
)
def test_broken_compression_is_refused(tmp_path: Path, blob: bytes) -> None:
    with pytest.raises(Refused, match="compression"):
        chunks(tmp_path, blob)


def test_a_bomb_comes_in_small_chunks(tmp_path: Path) -> None:
    for blob in (gzip.compress(bytes(50_000_000)), zstandard.compress(bytes(50_000_000))):
        assert max(map(len, chunks(tmp_path, blob))) <= 512 * 1024


@given(st.binary(max_size=300), st.sampled_from([b"", b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", b"\x51\x2a\x4d\x18"]))
def test_any_bytes_are_decompressed_or_refused(data: bytes, magic: bytes) -> None:
    file = os.memfd_create("blob")
    try:
        os.write(file, magic + data)
        os.lseek(file, 0, os.SEEK_SET)
        with contextlib.suppress(Refused):  # any other exception is a bug
            list(uncompressed(file))
    finally:
        os.close(file)


@given(st.binary(max_size=3000), st.integers(1, 1500), st.lists(st.integers(0, 700)))
def test_reading_and_skipping_walk_through_the_bytes(data: bytes, chunk: int, sizes: list[int]) -> None:
    stream = Stream(iter([data[at : at + chunk] for at in range(0, len(data), chunk)]), limit=len(data))
    at = 0
    for number, size in enumerate(sizes):
        if at + size > len(data):
            with pytest.raises(Refused, match="ends early"):
                stream.read(size)
            return
        if number % 2:
            stream.skip(size)
        else:
            assert stream.read(size) == data[at : at + size]
        at += size
        assert stream.position == at


def test_the_digest_is_of_all_bytes() -> None:
    stream = Stream(iter([b"head", bytes(600), bytes(10)]), limit=1000)
    assert stream.read(4) == b"head"
    stream.drain()
    assert stream.digest() == hashlib.sha256(b"head" + bytes(610)).hexdigest()
    assert stream.block() is None


def test_more_than_the_limit_is_a_full_disk() -> None:
    stream = Stream(iter([bytes(512), bytes(512)]), limit=1023)
    assert stream.block() == bytes(512)
    with pytest.raises(OSError) as caught:
        stream.block()
    assert caught.value.errno == errno.ENOSPC
