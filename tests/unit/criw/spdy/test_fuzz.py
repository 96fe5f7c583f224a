"""Mutated conversations: nothing but ProtocolError comes out, memory stays bounded, and what is read is what the
reference reads. CRIW_FUZZ_FRAMES=1000000 goes on longer than the usual run.
"""

import os
import random
import resource
from typing import Final

from criw.spdy.connection import Connection
from criw.spdy.frames import Data, Frame, ProtocolError, Reader
from support import spdy_reference as reference
from support.spdy import Recorder, joined, pieces, told

FRAMES: Final = int(os.environ.get("CRIW_FUZZ_FRAMES", "20000"))
GROWTH_KIB: Final = 32 * 1024
SETTLED: Final = 200  # conversations after which memory grows no more
EDGES: Final = (b"\0", b"\1", b"\x7f", b"\x80", b"\xff", b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x80\3\0", b"\0\0\xff\xff")


def conversation(dice: random.Random, frames: int) -> bytes:
    told: list[reference.Told] = []
    for _ in range(frames):
        stream, fin = dice.choice((0, 1, 1, 3, 3, 5, 2**31 - 1)), dice.random() < 0.2
        headers: dict[bytes, bytes] = {
            dice.choice((b"streamtype", b"port", b"requestid", b"x" * dice.randrange(300))): dice.randbytes(
                dice.randrange(40)
            )
            for _ in range(dice.randrange(4))
        }
        told.append(
            dice.choice(
                (
                    ("syn_stream", stream, headers, fin, dice.random() < 0.1),
                    ("syn_reply", stream, headers, fin),
                    ("headers", stream, headers, fin),
                    ("data", stream, dice.randbytes(dice.randrange(200)), fin),
                    ("data", stream or 1, b"", fin),
                    ("rst_stream", stream or 1, dice.randrange(12)),
                    ("ping", dice.randrange(5)),
                    ("goaway", stream, dice.randrange(3)),
                    ("settings", *range(dice.randrange(4))),
                    ("window_update", stream, dice.randrange(2**31)),
                )
            )
        )
    return reference.write_all(told)


def mutated(dice: random.Random, wire: bytes) -> bytes:
    for _ in range(dice.choice((0, 1, 1, 1, 2, 5))):
        at = dice.randrange(len(wire) + 1)
        new = dice.choice((dice.choice(EDGES), dice.randbytes(dice.randrange(1, 9)), wire[: dice.randrange(40)]))
        gap = dice.choice((0, len(new), dice.randrange(12)))
        wire = wire[:at] + new + wire[at + gap :]
    return wire


def visible(frames: list[reference.Told]) -> list[reference.Told]:
    """As the reference reads it, what is said to a user of the package."""
    silent = {"settings", "window_update"}
    as_read: list[Frame] = []
    whole: list[reference.Told] = []
    for frame in frames:
        if frame[0] in silent:
            continue
        if frame[0] == "data":
            _, stream, data, fin = frame
            assert isinstance(stream, int)
            assert isinstance(data, bytes)
            as_read.append(Data(stream, data, bool(fin)))
            continue
        whole += [told(data) for data in joined(as_read)]
        as_read.clear()
        whole.append(frame)
    return whole + [told(data) for data in joined(as_read)]


def check(seed: int, frames: int) -> None:
    dice = random.Random(seed)
    wire = mutated(dice, conversation(dice, frames))
    expected, refused = reference.read_all(wire)
    reader, got = Reader(), list[Frame]()
    try:
        for piece in pieces(wire, [dice.randrange(1, 200) for _ in range(dice.choice((0, 5, 100)))]):
            got += reader.feed(piece)
    except ProtocolError:
        assert refused is not None, seed
        return
    assert refused is None, (seed, refused)
    unfinished = Data(reader._stream, b"") if reader._left else None
    said = [told(frame) for frame in joined(got)]
    want = visible(expected)
    if unfinished is not None and said != want:  # what has come of a frame that has not ended
        assert said[: len(want) - 1] == want[:-1], seed
        assert len(said) <= len(want) + 1, seed
    else:
        assert said == want, seed


async def hurt(seed: int, frames: int) -> None:
    """A server's connection is told a mutated conversation, and its peer reads what it says."""
    dice, sink = random.Random(seed), Recorder()
    connection = Connection(sink, server=True)
    wire = mutated(dice, conversation(dice, frames))
    for piece in pieces(wire, [dice.randrange(1, 200) for _ in range(10)]):
        connection.feed(piece)
        while connection._incoming:
            stream = await connection.accept()
            assert stream is not None
            dice.choice((stream.accept, stream.refuse))()
    _, refused = reference.read_all(b"".join(sink.written))
    assert refused is None, (seed, refused)
    connection.close()
    assert sink.closed == 1, seed


async def test_whatever_comes_a_connection_answers_by_the_protocol() -> None:
    for seed in range(FRAMES // 30):
        await hurt(seed, 6)


def test_whatever_comes_is_read_right_or_refused() -> None:
    most, seed, done = 0, 0, 0
    while done < FRAMES:
        frames = random.Random(seed).randrange(1, 12)
        check(seed, frames)
        seed, done = seed + 1, done + frames
        if seed == SETTLED:
            most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - most < GROWTH_KIB
