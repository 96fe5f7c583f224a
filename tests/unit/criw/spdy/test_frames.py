"""Frames, held against the slow reading of the protocol in `support.spdy_reference`, and against its limits."""

import tracemalloc
import zlib
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from criw.spdy.frames import (
    Data,
    Frame,
    GoAway,
    Headers,
    Ping,
    ProtocolError,
    Reader,
    Reset,
    SynReply,
    SynStream,
    Writer,
)
from support import spdy_reference as reference
from support.spdy import joined, pieces, read, told

NUMBERS: Final = st.integers(1, 2**31 - 1)
LATIN: Final = st.text(st.characters(max_codepoint=255), max_size=40)
HEADERS: Final = st.dictionaries(LATIN.filter(lambda name: name.isascii()).map(str.lower), LATIN, max_size=8)
FRAMES: Final = st.lists(
    st.one_of(
        st.builds(SynStream, NUMBERS, HEADERS, st.booleans(), st.booleans()),
        st.builds(SynReply, NUMBERS, HEADERS, st.booleans()),
        st.builds(Headers, NUMBERS, HEADERS, st.booleans()),
        st.builds(Data, st.integers(1, 3), st.binary(max_size=300), st.booleans()),
        st.builds(Reset, NUMBERS, NUMBERS),
        st.builds(Ping, NUMBERS),
        st.builds(GoAway, st.integers(0, 2**31 - 1), st.integers(0, 2**32 - 1)),
    ),
    max_size=12,
)
SIZES: Final = st.lists(st.integers(0, 60), max_size=200)
DATA_HEAD: Final = bytes.fromhex("00000001 00 000000")


@given(FRAMES, SIZES)
def test_what_the_reference_writes_is_read_in_any_pieces(frames: list[Frame], sizes: list[int]) -> None:
    wire = reference.write_all([told(frame) for frame in frames])
    assert read(pieces(wire, sizes)) == joined(frames)


@given(FRAMES)
def test_what_is_written_is_read_by_the_reference(frames: list[Frame]) -> None:
    writer = Writer()
    wire = b"".join(writer.encode(frame) for frame in frames)
    assert reference.read_all(wire) == ([told(frame) for frame in frames], None)


@given(st.lists(st.integers(0, 2**32 - 1), max_size=5), NUMBERS)
def test_settings_and_window_updates_are_read_and_told_to_nobody(settings: list[int], delta: int) -> None:
    wire = reference.write_all([("settings", *settings), ("window_update", 0, delta), ("ping", 1)])
    assert Reader().feed(wire) == [Ping(1)]


def test_data_of_a_frame_comes_out_as_it_arrives() -> None:
    reader = Reader()
    head = Writer().data_head(7, 2**24 - 1, True)
    assert reader.feed(head[:5]) == []
    assert reader.feed(head[5:] + b"ab") == [Data(7, b"ab")]
    rest = bytes(2**24 - 4)
    assert reader.feed(rest) == [Data(7, rest)]
    assert reader.feed(b"c" + DATA_HEAD) == [Data(7, b"c", True)]


def test_data_in_a_chunk_of_its_own_is_not_copied() -> None:
    reader, chunk = Reader(), bytes(1000)
    reader.feed(Writer().data_head(1, 3000, False))
    (frame,) = reader.feed(chunk)
    assert isinstance(frame, Data)
    assert frame.data is chunk


def test_empty_frames_cost_no_memory() -> None:
    wire = DATA_HEAD * 50_000
    reader = Reader()
    tracemalloc.start()
    try:
        assert reader.feed(wire) == []
        assert tracemalloc.get_traced_memory()[1] < 20_000
    finally:
        tracemalloc.stop()


def test_the_largest_control_frame_may_come_byte_by_byte() -> None:
    noise = bytes(range(256)) * 255
    wire = reference.write_all([("syn_reply", 1, {b"a": noise}, False)], level=0)
    assert len(wire) > 65_000
    assert read(pieces(wire, [1] * len(wire))) == [SynReply(1, {"a": noise.decode("latin-1")})]


def block(plain: bytes) -> bytes:
    deflater = zlib.compressobj(9, zlib.DEFLATED, 15, 8, zlib.Z_DEFAULT_STRATEGY, reference.DICTIONARY)
    return deflater.compress(plain) + deflater.flush(zlib.Z_SYNC_FLUSH)


def reply(block: bytes) -> str:
    return reference.control(2, 0, reference.u32(1) + block).hex()


U32: Final = reference.u32
MANY: Final = b"".join(U32(4) + b"%04d" % number + U32(0) for number in range(1001))
WRONG: Final = {
    "cannot read a frame: its stream id is 0": [
        "00000000 00 000000",
        "80030003 00 000008 00000000 00000005",
        reference.control(2, 0, U32(0) + block(U32(0))).hex(),
    ],
    "cannot read a frame: its reset status is 0": ["80030003 00 000008 00000001 00000000"],
    "cannot read a frame: its ping is 0": ["80030006 00 000004 00000000"],
    "of type": ["80030000 00 000004", "80030005 00 000000", "8003000a 00 000004", "8003ffff 00 000004"],
    "has no flags": ["80030006 01 000004", "80030007 80 000008", "80030009 01 000008"],
    "bytes are not": [
        *("80030001 00 000009", "80030001 00 01000b", "80030002 00 000003", "80030002 00 010005"),
        *("80030003 00 000009", "80030004 00 000003", "80030004 00 001f45", "80030006 00 000005"),
        *("80030007 00 000004", "80030008 00 ffffff", "80030009 00 000000"),
    ],
    "2 settings are not 8 bytes": ["80030004 00 00000c 00000002 00000001 00000001"],
    "cannot inflate": [
        reply(b"x" * 50),
        reply(block(U32(0))[:6] + b"\xff" * 20),
        reply(zlib.compress(b"")[:-1] + b"!"),
    ],
    "inflates to more": [reply(block(U32(1) + U32(1) + b"a" + U32(262_132) + bytes(262_132)))],
    "ends the compression": [reply(zlib.compress(U32(0)))],
    "ends too early": [reply(b""), reply(block(b"\0\0\0")), reply(block(U32(1) + U32(0)))],
    "where its headers have": [reply(block(U32(0) + b"x")), reply(block(U32(1) + U32(0) + U32(2**32 - 1)))],
    "are more than 1000": [reply(block(U32(1001) + MANY))],
    "twice or has upper case": [
        reply(block(U32(2) + 2 * (U32(1) + b"a" + U32(0)))),
        reply(block(U32(1) + U32(2) + b"aB" + U32(0))),
    ],
}


@pytest.mark.parametrize(("why", "wire"), [(why, wire) for why, wires in WRONG.items() for wire in wires])
def test_what_breaks_the_protocol_is_refused_with_a_reason(why: str, wire: str) -> None:
    with pytest.raises(ProtocolError, match=why):
        read(pieces(bytes.fromhex(wire), [1] * 20))


def test_blocks_up_to_the_limits_are_read() -> None:
    plain = U32(1000) + MANY[:-12]
    (frame,) = read([bytes.fromhex(reply(block(plain)))])
    assert isinstance(frame, SynReply)
    assert len(frame.headers) == 1000
    (frame,) = read([bytes.fromhex(reply(block(U32(1) + U32(1) + b"a" + U32(262_131) + bytes(262_131))))])
    assert frame == SynReply(1, {"a": "\0" * 262_131})


def test_a_small_block_that_inflates_without_end_takes_bounded_memory() -> None:
    bomb = block(bytes(60_000_000))
    assert len(bomb) < 64 * 1024
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError, match="inflates to more"):
            Reader().feed(bytes.fromhex(reply(bomb)))
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


def test_compression_goes_on_from_block_to_block() -> None:
    writer, headers = Writer(), {"streamtype": "data", "port": "8080", "requestid": "10"}
    first, second = (writer.encode(SynStream(stream, headers)) for stream in (1, 3))
    assert len(second) < len(first)
    assert read([first, second]) == [SynStream(1, headers), SynStream(3, headers)]
    with pytest.raises(ProtocolError):
        Reader().feed(second)


def test_a_block_that_is_flushed_otherwise_is_read() -> None:
    deflater = zlib.compressobj(9, zlib.DEFLATED, 15, 8, zlib.Z_DEFAULT_STRATEGY, reference.DICTIONARY)
    wire = ""
    for how in (zlib.Z_FULL_FLUSH, zlib.Z_PARTIAL_FLUSH, zlib.Z_SYNC_FLUSH):
        wire += reply(deflater.compress(U32(1) + U32(1) + b"a" + U32(1) + b"b") + deflater.flush(how))
    assert read([bytes.fromhex(wire)]) == [SynReply(1, {"a": "b"})] * 3
