"""What the Go library has sent, byte by byte."""

import hashlib
import zlib
from typing import Final

import pytest

from criw.spdy.dictionary import DICTIONARY
from criw.spdy.frames import Data, Frame, GoAway, Ping, Reader, Reset, SynReply, SynStream, Writer
from support.spdy import joined, pieces, read

CLIENT: Final[list[tuple[str, Frame]]] = [
    (
        "80030001 0000002a 00000001 00000000 000078f9e3c6a7c26260606004a7b392a2d4c45c6851c29a5a54945f04000000ffff",
        SynStream(1, {"streamtype": "error"}),
    ),
    (
        "80030001 00000017 00000003 00000000 0000 c22e555c92929907000000ffff",
        SynStream(3, {"streamtype": "stdin"}),
    ),
    (
        "80030001 00000033 00000005 00000000 0000"
        "62606060c6900215408990b2bca884818181c9c280818181b30812f399290c0c0c8c0600000000ffff",
        SynStream(5, {"streamtype": "data", "port": "80", "requestid": "0"}),
    ),
    ("00000003 00000003 68690a", Data(3, b"hi\n")),
    ("00000003 01000000", Data(3, b"", fin=True)),
    ("80030003 00000008 00000003 00000005", Reset(3, 5)),
    ("80030006 00000004 00000001", Ping(1)),
    ("80030007 00000008 00000005 00000000", GoAway(5, 0)),
]
SERVER: Final[list[tuple[str, Frame]]] = [
    ("80030002 00000014 00000001 78f9e3c6a7c202a6230600000000ffff", SynReply(1, {})),
    ("80030002 0000000c 00000003 020100000000ffff", SynReply(3, {})),
]


def test_the_dictionary_is_that_of_the_draft() -> None:
    assert len(DICTIONARY) == 1423
    assert zlib.adler32(DICTIONARY) == 0xE3C6A7C2
    assert hashlib.sha256(DICTIONARY).hexdigest() == "51d27341373f923f3cd88e1eb7162aeaa3723d7585ff2399201dc06498407f02"


@pytest.mark.parametrize("size", [1, 3, 8, 1000])
@pytest.mark.parametrize("conversation", [CLIENT, SERVER])
def test_what_go_has_sent_and_taken_is_read(conversation: list[tuple[str, Frame]], size: int) -> None:
    wire = bytes.fromhex("".join(text for text, _ in conversation))
    expected = joined(frame for _, frame in conversation)
    assert read(pieces(wire, [size] * (len(wire) // size))) == expected


def test_what_go_has_taken_is_written_the_same() -> None:
    writer = Writer()
    assert [writer.encode(frame).hex() for _, frame in SERVER] == [text.replace(" ", "") for text, _ in SERVER]


def test_what_go_has_sent_is_written_so_that_it_reads_the_same() -> None:
    """Two compressors need not make the same bytes; frames without headers have but one form."""
    writer, reader = Writer(), Reader()
    for text, frame in CLIENT:
        wire = writer.encode(frame)
        assert reader.feed(wire) == [frame]
        if isinstance(frame, SynStream):
            assert wire[:4] + wire[8:18] == bytes.fromhex(text)[:4] + bytes.fromhex(text)[8:18]
            assert wire.endswith(b"\x00\x00\xff\xff")
        else:
            assert wire == bytes.fromhex(text)
