import contextlib
import hashlib
import io
import tarfile
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from criw_storage.worker import tar
from criw_storage.worker.stream import Refused, Stream
from criw_storage.worker.tar import Entry, entries


def stream_of(data: bytes, chunk: int = 700) -> Stream:
    """In chunks that end in the middle of blocks."""
    return Stream(iter([data[at : at + chunk] for at in range(0, len(data), chunk)]), limit=2**40)


def read(data: bytes, chunk: int = 700) -> list[tuple[Entry, bytes]]:
    stream = stream_of(data, chunk)
    return [(entry, stream.read(entry.size)) for entry in entries(stream)]


def archive(*members: tarfile.TarInfo, form: int = tarfile.PAX_FORMAT, data: bytes = b"") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as file:
        for member in members:
            member.size = len(data) if member.isreg() else 0
            file.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, **attributes: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    for attribute, value in attributes.items():
        setattr(info, attribute, value)
    return info


def header(**fields: bytes) -> bytes:
    """A header with the fields given as they are, and the checksum that makes it right."""
    at = {"name": 0, "mode": 100, "uid": 108, "size": 124, "mtime": 136, "kind": 156, "magic": 257, "prefix": 345}
    raw = bytearray(512)
    raw[156:157] = b"0"
    for name, value in fields.items():
        raw[at[name] : at[name] + len(value)] = value
    raw[148:156] = b"%06o\0 " % (sum(raw) + 8 * 0x20)
    return bytes(raw)


END = bytes(1024)
FORMATS = pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])


@FORMATS
def test_members_are_read_in_order_with_their_bytes(form: int) -> None:
    found = read(
        archive(
            member("usr/", tarfile.DIRTYPE, mode=0o1777, uid=7, gid=8, mtime=9),
            member("usr/file", mode=0o4755, uid=1000, gid=1001, mtime=1_600_000_000),
            member("usr/link", tarfile.LNKTYPE, linkname="usr/file"),
            member("usr/symlink", tarfile.SYMTYPE, linkname="/etc/passwd"),
            member("usr/null", tarfile.CHRTYPE, devmajor=1, devminor=3),
            member("usr/fifo", tarfile.FIFOTYPE),
            form=form,
            data=b"content" * 300,
        )
    )
    assert [(entry.name.rstrip(b"/"), entry.kind) for entry, _ in found] == [
        (b"usr", tar.DIRECTORY), (b"usr/file", tar.FILE), (b"usr/link", tar.LINK), (b"usr/symlink", tar.SYMLINK),
        (b"usr/null", tar.CHARACTER), (b"usr/fifo", tar.FIFO),
    ]  # fmt: skip
    directory, file, link, symlink, device, _ = (entry for entry, _ in found)
    assert (directory.mode, directory.uid, directory.gid, directory.mtime_ns) == (0o1777, 7, 8, 9_000_000_000)
    assert (file.mode, file.uid, file.gid, file.mtime_ns) == (0o4755, 1000, 1001, 1_600_000_000_000_000_000)
    assert found[1][1] == b"content" * 300
    assert (link.link, symlink.link) == (b"usr/file", b"/etc/passwd")
    assert (device.major, device.minor) == (1, 3)


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_longer_than_a_header_are_read(form: int) -> None:
    long, target = "d" * 90 + "/" + "ŵ" * 120, "t" * 300
    ((entry, _),) = read(archive(member(long, tarfile.SYMTYPE, linkname=target), form=form))
    assert (entry.name.decode(), entry.link.decode()) == (long, target)


def test_the_posix_prefix_is_part_of_the_name() -> None:
    ((entry, _),) = read(archive(member("p" * 100 + "/" + "n" * 90), form=tarfile.USTAR_FORMAT))
    assert entry.name.decode() == "p" * 100 + "/" + "n" * 90


def test_gnu_headers_have_no_prefix() -> None:
    ((entry, _),) = read(header(name=b"file", magic=b"ustar  \0", prefix=b"00000000001") + END)
    assert entry.name == b"file"


def test_a_v7_directory_is_a_file_with_a_slash() -> None:
    ((entry, _),) = read(header(name=b"directory/", kind=b"\0") + END)
    assert entry.kind == tar.DIRECTORY


def test_pax_gives_large_numbers_and_parts_of_seconds() -> None:
    info = member("file")
    info.pax_headers = {"uid": "3000000", "gid": "3000001", "mtime": "1600000000.123456789"}
    ((entry, _),) = read(archive(info))
    assert (entry.uid, entry.gid, entry.mtime_ns) == (3_000_000, 3_000_001, 1_600_000_000_123_456_789)


@pytest.mark.parametrize(
    ("text", "expected"), [("-1", -(10**9)), ("-1.5", -1_500_000_000), ("0.1", 10**8), ("2.1234567899", 2_123_456_789)]
)
def test_pax_times(text: str, expected: int) -> None:
    info = member("file")
    info.pax_headers = {"mtime": text}
    assert read(archive(info))[0][0].mtime_ns == expected


def test_extended_attributes_may_be_any_bytes() -> None:
    value = b"\x01\0\0\x02\n=\xff"
    record = b"SCHILY.xattr.security.capability=" + value + b"\n"
    record = b"%d %s" % (len(record) + 3, record)
    extended = header(name=b"pax", kind=b"x", size=b"%011o\0" % len(record)) + record.ljust(512, b"\0")
    ((entry, _),) = read(extended + header(name=b"ping") + END)
    assert entry.xattrs == {b"security.capability": value}


def test_a_global_header_holds_for_all_that_follow_and_a_local_one_for_one() -> None:
    def pax(kind: bytes, record: bytes) -> bytes:
        return header(name=b"pax", kind=kind, size=b"%011o\0" % len(record)) + record.ljust(512, b"\0")

    data = (
        pax(b"g", b"7 uid=5\n"[:8].replace(b"7", b"8"))
        + pax(b"x", b"8 uid=6\n")
        + header(name=b"a")
        + header(name=b"b")
    )
    assert [entry.uid for entry, _ in read(data + END)] == [6, 5]


def test_base_256_numbers() -> None:
    ((entry, _),) = read(header(name=b"file", uid=b"\x80\0\0\0\0\x10\0\0", mtime=b"\xff" * 12) + END)
    assert (entry.uid, entry.mtime_ns) == (0x100000, -1_000_000_000)


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513])
def test_an_archive_may_lack_its_last_padding(size: int) -> None:
    whole = header(name=b"file", size=b"%011o\0" % size) + b"x" * size
    assert read(whole)[0][1] == b"x" * size
    assert read(whole + bytes(min(5, -size % 512)))[0][1] == b"x" * size


def test_bytes_behind_the_end_are_of_the_stream_and_not_of_the_archive() -> None:
    data = header(name=b"file") + END + b"garbage" * 300 + header(name=b"other") + END
    stream = stream_of(data)
    assert [entry.name for entry in entries(stream)] == [b"file"]
    assert stream.position == len(data)
    assert stream.digest() == hashlib.sha256(data).hexdigest()


def test_a_checksum_may_be_of_signed_bytes_but_not_any() -> None:
    def summed(total: int) -> bytes:
        raw = bytearray(header(name="é".encode()))
        raw[148:156] = b"%06o\0 " % total
        return bytes(raw)

    unsigned = int(header(name="é".encode())[148:154], 8)
    assert len(read(summed(unsigned - 2 * 256) + END)) == 1
    for wrong in (unsigned - 256, unsigned - 3 * 256, unsigned + 1):
        with pytest.raises(Refused, match="no tar header"):
            read(summed(wrong) + END)


def test_an_archive_may_lack_its_end_but_not_half_a_block() -> None:
    whole = header(name=b"file")
    assert len(read(whole)) == 1
    assert read(b"") == []
    with pytest.raises(Refused, match="ends early"):
        read(whole + bytes(511))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"not a tar" * 100, "no tar header"),
        (header(name=b"file", size=b"00000001000\0") + bytes(511), "ends early"),
        (header(name=b"file") + bytes(512) + header(name=b"file") + END, "in the middle"),
        (header(name=b"file", kind=b"S") + END, "not supported"),
        (header(name=b"file", kind=b"M") + END, "not supported"),
        (header(name=b"file", size=b"\xff" * 12) + END, "negative size"),
        (header(name=b"file", uid=b"\x80\0\0\0\xff\xff\xff\xff") + END, "no owner"),
        (header(name=b"file", uid=b"\xff" * 8) + END, "no owner"),
        (header(name=b"file", uid=b"12345x7\0") + END, "octal"),
        (header(kind=b"x", size=b"00000001000\0") + bytes(512) + header(name=b"file") + END, "decimal number"),
        (header(kind=b"x", size=b"77777777777\0") + END, "at most"),
        (header(kind=b"L", size=b"00000000004\0") + b"name".ljust(512, b"\0"), "after an extended header"),
    ],
)  # fmt: skip
def test_what_is_no_archive_is_refused_with_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        read(data)


@pytest.mark.parametrize(
    "record", [b"x", b"5 path=x\n", b"999 path=x\n", b"9 =value\n", b"10 path x\n", b"0 path=x\n", b"-9 path=x\n"]
)
def test_malformed_pax_records_are_refused(record: bytes) -> None:
    extended = header(name=b"pax", kind=b"x", size=b"%011o\0" % len(record)) + record.ljust(512, b"\0")
    with pytest.raises(Refused):
        read(extended + header(name=b"file") + END)


def test_sparse_files_are_refused() -> None:
    info = member("file")
    info.pax_headers = {"GNU.sparse.major": "1"}
    with pytest.raises(Refused, match="sparse"):
        read(archive(info))


names = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=300)


@given(
    st.lists(st.tuples(names, st.binary(max_size=2000), st.integers(0, 0o7777), st.integers(0, 2**32 - 2)), max_size=4),
    st.integers(1, 3000),
)
def test_what_tarfile_writes_is_read_back(members: list[tuple[str, bytes, int, int]], chunk: int) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as file:
        for name, data, mode, uid in members:
            info = member(name, mode=mode, uid=uid, size=len(data))
            file.addfile(info, io.BytesIO(data))
    assert [(e.name.decode(), data, e.mode, e.uid) for e, data in read(buffer.getvalue(), chunk)] == members


def mutated() -> Iterator[st.SearchStrategy[bytes]]:
    whole = archive(
        member("d", tarfile.DIRTYPE),
        member("d/" + "n" * 120),
        member("l", tarfile.LNKTYPE, linkname="d"),
        data=b"x" * 600,
    )
    yield st.binary(max_size=2000)
    yield st.tuples(st.integers(0, len(whole) - 1), st.binary(min_size=1, max_size=20)).map(
        lambda change: whole[: change[0]] + change[1] + whole[change[0] + len(change[1]) :]
    )
    yield st.integers(0, len(whole)).map(lambda length: whole[:length])


@given(st.one_of(*mutated()))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with contextlib.suppress(Refused):  # any other exception is a bug
        read(data)


@given(
    st.dictionaries(
        st.sampled_from(["mode", "uid", "size", "mtime", "kind", "magic", "prefix"]), st.binary(max_size=12)
    )
)
def test_any_header_with_a_right_checksum_is_read_or_refused(fields: dict[str, bytes]) -> None:
    with contextlib.suppress(Refused):
        read(header(name=b"file", **fields) + END)
