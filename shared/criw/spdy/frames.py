"""SPDY/3 frames: from bytes in any pieces to values, and back.

Nothing here waits or keeps more than one control frame: a data frame comes out in the pieces it arrives in.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from criw.spdy.headers import Deflater, Inflater
from criw.spdy.headers import ProtocolError as ProtocolError  # what the readers of frames catch

MAX_STREAM: Final = 2**31 - 1
MAX_LENGTH: Final = 2**24 - 1
BLOCK_LIMIT: Final = 64 * 1024  # bytes of a header block, compressed
SETTINGS_LIMIT: Final = 1000

_CONTROL: Final = 0x8000_0000
_CONTROL_V3: Final = 0x8003_0000
_FIN: Final = 0x01
_UNIDIRECTIONAL: Final = 0x02
_HEAD: Final = struct.Struct(">II")
_U32: Final = struct.Struct(">I")
_TWO_U32: Final = struct.Struct(">II")
_SYN_STREAM_HEAD: Final = struct.Struct(">IIH")


class ResetStatus(IntEnum):
    """Why a stream is reset."""

    PROTOCOL_ERROR = 1
    INVALID_STREAM = 2
    REFUSED_STREAM = 3
    UNSUPPORTED_VERSION = 4
    CANCEL = 5
    INTERNAL_ERROR = 6
    FLOW_CONTROL_ERROR = 7
    STREAM_IN_USE = 8
    STREAM_ALREADY_CLOSED = 9
    INVALID_CREDENTIALS = 10
    FRAME_TOO_LARGE = 11


class GoAwayStatus(IntEnum):
    """Why a connection ends."""

    OK = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2


class _Kind(IntEnum):
    SYN_STREAM = 1
    SYN_REPLY = 2
    RST_STREAM = 3
    SETTINGS = 4
    PING = 6
    GOAWAY = 7
    HEADERS = 8
    WINDOW_UPDATE = 9


_LENGTHS: Final[Mapping[int, tuple[int, int]]] = {
    _Kind.SYN_STREAM: (10, 10 + BLOCK_LIMIT),
    _Kind.SYN_REPLY: (4, 4 + BLOCK_LIMIT),
    _Kind.RST_STREAM: (8, 8),
    _Kind.SETTINGS: (4, 4 + 8 * SETTINGS_LIMIT),
    _Kind.PING: (4, 4),
    _Kind.GOAWAY: (8, 8),
    _Kind.HEADERS: (4, 4 + BLOCK_LIMIT),
    _Kind.WINDOW_UPDATE: (8, 8),
}
_WITHOUT_FLAGS: Final = frozenset({_Kind.PING, _Kind.GOAWAY, _Kind.WINDOW_UPDATE})


@dataclass(frozen=True, slots=True)
class SynStream:
    """A stream is opened. Read from the wire, `stream` may be above `MAX_STREAM`: only that stream is wrong then."""

    stream: int
    headers: dict[str, str]  # names in lower case; what is beyond ASCII is Latin-1; NUL stands between many values
    fin: bool = False
    unidirectional: bool = False


@dataclass(frozen=True, slots=True)
class SynReply:
    """A stream is accepted."""

    stream: int
    headers: dict[str, str]
    fin: bool = False


@dataclass(frozen=True, slots=True)
class Data:
    """A data frame or a piece of one; only the last piece has the frame's `fin`."""

    stream: int
    data: bytes
    fin: bool = False


@dataclass(frozen=True, slots=True)
class Reset:
    """A stream is over in both directions. `status` is a `ResetStatus`, or a number nobody has named."""

    stream: int
    status: int


@dataclass(frozen=True, slots=True)
class Ping:
    """To be sent back if its parity is the sender's: odd for clients."""

    number: int


@dataclass(frozen=True, slots=True)
class GoAway:
    """The sender's last frame. `last_good` is the highest stream it accepted, 0 for none."""

    last_good: int
    status: int


@dataclass(frozen=True, slots=True)
class Headers:
    """More headers of an open stream."""

    stream: int
    headers: dict[str, str]
    fin: bool = False


Frame = SynStream | SynReply | Data | Reset | Ping | GoAway | Headers


class Reader:
    """Frames from bytes. After a ProtocolError it is of no more use."""

    def __init__(self) -> None:
        self._inflate = Inflater().headers
        self._held = bytearray()  # the beginning of a head, or of a control frame's body
        self._control: tuple[int, int, int] | None = None  # kind, flags and length: a body is next, not a head
        self._stream = 0
        self._left = 0  # bytes to come of a data frame
        self._fin = False

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that `data` completes, and the pieces of data frames in it.

        Raises ProtocolError for what ends the connection; frames before it in `data` are lost.
        """
        frames: list[Frame] = []
        at, end = 0, len(data)
        while at < end:
            if self._left:
                piece = data[at : at + self._left]
                at += len(piece)
                self._left -= len(piece)
                frames.append(Data(self._stream, piece, self._fin and not self._left))
                continue
            size = self._control[2] if self._control else _HEAD.size
            if self._held or end - at < size:
                part = data[at : at + size - len(self._held)]
                at += len(part)
                self._held += part
                if len(self._held) < size:
                    break
                whole = bytes(self._held)
                self._held.clear()
            else:
                whole = data[at : at + size]
                at += size
            frame = self._body(whole) if self._control else self._head(whole)
            if frame is not None:
                frames.append(frame)
        return frames

    def _head(self, head: bytes) -> Frame | None:
        word, rest = _HEAD.unpack(head)
        flags, length = rest >> 24, rest & MAX_LENGTH
        if word & _CONTROL:
            self._control = (_checked(word & 0xFFFF, flags, length), flags, length)
            return None
        self._stream, self._left, self._fin = _not_zero(word, "stream id"), length, bool(flags & _FIN)
        return Data(self._stream, b"", True) if self._fin and not length else None

    def _body(self, body: bytes) -> Frame | None:
        assert self._control is not None
        kind, flags, _ = self._control
        self._control = None
        first: int = _U32.unpack_from(body)[0]
        match kind:
            case _Kind.SYN_STREAM:
                unidirectional = bool(flags & _UNIDIRECTIONAL)
                return SynStream(
                    _not_zero(first, "stream id"), self._inflate(body[10:]), bool(flags & _FIN), unidirectional
                )
            case _Kind.SYN_REPLY:
                return SynReply(_not_zero(first, "stream id"), self._inflate(body[4:]), bool(flags & _FIN))
            case _Kind.HEADERS:
                return Headers(_not_zero(first, "stream id"), self._inflate(body[4:]), bool(flags & _FIN))
            case _Kind.RST_STREAM:
                return Reset(_not_zero(first, "stream id"), _not_zero(_U32.unpack_from(body, 4)[0], "reset status"))
            case _Kind.PING:
                return Ping(_not_zero(first, "ping"))
            case _Kind.GOAWAY:
                return GoAway(first, _U32.unpack_from(body, 4)[0])
            case _Kind.SETTINGS if len(body) != 4 + 8 * first:
                raise ProtocolError(f"cannot read SETTINGS: {first} settings are not {len(body) - 4} bytes")
        return None  # the others change nothing where nobody controls the flow


class Writer:
    """Frames to bytes, in the order they are sent: one compression goes through all header blocks."""

    def __init__(self) -> None:
        self._deflate = Deflater().block

    def encode(self, frame: Frame) -> bytes:
        match frame:
            case Data(stream, data, fin):
                return self.data_head(stream, len(data), fin) + data
            case SynStream(stream, headers, fin, unidirectional):
                flags = fin * _FIN | unidirectional * _UNIDIRECTIONAL
                return _control(_Kind.SYN_STREAM, flags, _SYN_STREAM_HEAD.pack(stream, 0, 0) + self._deflate(headers))
            case SynReply(stream, headers, fin):
                return _control(_Kind.SYN_REPLY, fin * _FIN, _U32.pack(stream) + self._deflate(headers))
            case Headers(stream, headers, fin):
                return _control(_Kind.HEADERS, fin * _FIN, _U32.pack(stream) + self._deflate(headers))
            case Reset(stream, status):
                return _control(_Kind.RST_STREAM, 0, _TWO_U32.pack(stream, status))
            case Ping(number):
                return _control(_Kind.PING, 0, _U32.pack(number))
            case GoAway(last_good, status):
                return _control(_Kind.GOAWAY, 0, _TWO_U32.pack(last_good, status))

    def data_head(self, stream: int, length: int, fin: bool) -> bytes:
        """What goes before `length` bytes of payload, of at most `MAX_LENGTH`."""
        assert length <= MAX_LENGTH
        return _HEAD.pack(stream, fin * _FIN << 24 | length)


def _control(kind: _Kind, flags: int, body: bytes) -> bytes:
    assert len(body) <= MAX_LENGTH
    return _HEAD.pack(_CONTROL_V3 | kind, flags << 24 | len(body)) + body


def _checked(kind: int, flags: int, length: int) -> int:
    if kind not in _LENGTHS:
        raise ProtocolError(f"cannot read a control frame of type {kind}: SPDY/3 has none")
    least, most = _LENGTHS[kind]
    if not least <= length <= most:
        raise ProtocolError(f"cannot read {_Kind(kind).name}: {length} bytes are not {least} to {most}")
    if flags and kind in _WITHOUT_FLAGS:
        raise ProtocolError(f"cannot read {_Kind(kind).name}: it has no flags, but these are {flags:#x}")
    return kind


def _not_zero(number: int, what: str) -> int:
    if number == 0:
        raise ProtocolError(f"cannot read a frame: its {what} is 0")
    return number
