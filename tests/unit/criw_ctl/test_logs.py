import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from criw.errors import DataLoss
from criw_ctl.logs import Entry, LogReader, parse, tail_offset

TIME = b"2026-11-23T18:00:00.123456789+00:00"
contents = st.binary(max_size=40).map(lambda text: text.replace(b"\n", b""))
records = st.lists(st.tuples(st.sampled_from([b"stdout", b"stderr"]), st.booleans(), contents))


def record(stream: bytes, full: bool, content: bytes) -> bytes:
    return b" ".join([TIME, stream, b"F" if full else b"P", content]) + b"\n"


async def read_all(reader: LogReader) -> bytes:
    return b"".join([entry.content async for entry in reader.read()])


def test_a_full_line_ends_with_its_newline() -> None:
    assert parse(TIME + b" stdout F hello there") == Entry(b"stdout", b"hello there\n")


def test_a_part_of_a_line_does_not() -> None:
    assert parse(TIME + b" stderr P hello") == Entry(b"stderr", b"hello")


def test_an_empty_line_is_one() -> None:
    assert parse(TIME + b" stdout F ") == Entry(b"stdout", b"\n")


def test_further_tags_are_allowed() -> None:
    assert parse(TIME + b" stdout F:x hello") == Entry(b"stdout", b"hello\n")


@pytest.mark.parametrize("line", [b"", b"hello", TIME + b" stdin F x", TIME + b" stdout X x", TIME + b" stdout F"])
def test_another_format_is_refused(line: bytes) -> None:
    with pytest.raises(DataLoss, match="cannot read a log line"):
        parse(line)


@given(records)
async def test_what_was_written_is_read(written: list[tuple[bytes, bool, bytes]]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "0.log")
        path.write_bytes(b"".join(record(*each) for each in written))
        async with LogReader(path) as reader:
            entries = [entry async for entry in reader.read()]
    assert entries == [Entry(stream, content + b"\n" * full) for stream, full, content in written]


@given(records, st.integers(min_value=0, max_value=10))
def test_a_tail_is_the_last_lines(written: list[tuple[bytes, bool, bytes]], count: int) -> None:
    data = b"".join(record(*each) for each in written)
    lines: list[list[bytes]] = []
    inside = False
    for each in written:
        if not inside:
            lines.append([])
        lines[-1].append(record(*each))
        inside = not each[1]
    expected = lines[len(lines) - count :] if count < len(lines) else lines
    assert data[tail_offset(data, count) :] == b"".join(b"".join(line) for line in expected)


async def test_a_log_is_read_as_it_grows(tmp_path: Path) -> None:
    path = tmp_path / "0.log"
    async with LogReader(path) as reader:
        assert await read_all(reader) == b""
        line = record(b"stdout", True, b"one")
        path.write_bytes(line[:40])
        assert await read_all(reader) == b""
        with path.open("ab") as file:
            file.write(line[40:])
        assert await read_all(reader) == b"one\n"
        assert await read_all(reader) == b""


async def test_a_rotation_loses_and_doubles_nothing(tmp_path: Path) -> None:
    path = tmp_path / "0.log"
    path.write_bytes(record(b"stdout", True, b"one"))
    with path.open("ab") as old:
        async with LogReader(path) as reader:
            assert await read_all(reader) == b"one\n"
            path.rename(tmp_path / "0.log.1")
            old.write(record(b"stdout", True, b"two"))
            old.flush()
            assert await read_all(reader) == b"two\n"
            old.write(record(b"stdout", True, b"three"))
            old.flush()
            path.write_bytes(record(b"stdout", True, b"four"))
            assert await read_all(reader) == b"three\nfour\n"


async def test_a_tail_of_a_file_is_followed_by_what_comes(tmp_path: Path) -> None:
    path = tmp_path / "0.log"
    path.write_bytes(b"".join(record(b"stdout", True, b"%d" % number) for number in range(5)))
    async with LogReader(path) as reader:
        await reader.skip_to_tail(2)
        assert await read_all(reader) == b"3\n4\n"
        with path.open("ab") as file:
            file.write(record(b"stdout", True, b"5"))
        assert await read_all(reader) == b"5\n"


@pytest.mark.parametrize("exists", [True, False])
async def test_a_tail_of_nothing_is_nothing(tmp_path: Path, exists: bool) -> None:
    if exists:
        (tmp_path / "0.log").touch()
    async with LogReader(tmp_path / "0.log") as reader:
        await reader.skip_to_tail(3)
        assert await read_all(reader) == b""
