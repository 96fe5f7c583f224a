"""SPDY frames as tests compare them, whatever the pieces they came in."""

from collections.abc import Iterable

from criw.spdy.frames import Data, Frame, Reader


def pieces(wire: bytes, sizes: Iterable[int]) -> Iterable[bytes]:
    """`wire` in pieces of these sizes, the last of what is left."""
    at = 0
    for size in sizes:
        yield wire[at : at + size]
        at += size
    yield wire[at:]


def read(wire: Iterable[bytes]) -> list[Frame]:
    reader = Reader()
    return joined(frame for piece in wire for frame in reader.feed(piece))


def joined(frames: Iterable[Frame]) -> list[Frame]:
    """Data that goes on where the frame before it was of the same stream and not its last is one with it."""
    whole: list[Frame] = []
    for frame in frames:
        last = whole[-1] if whole else None
        if isinstance(frame, Data) and isinstance(last, Data) and last.stream == frame.stream and not last.fin:
            whole[-1] = Data(frame.stream, last.data + frame.data, frame.fin)
        else:
            whole.append(frame)
    return whole
