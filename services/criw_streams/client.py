"""The client's side of an exec or attach session, whatever protocol it speaks."""

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, Protocol

from criw_proto.criw.streams.v1 import Ends
from criw_streams.status import Status

_LONGEST_SIZE: Final = 4096  # characters of an unfinished size
_LARGEST: Final = 65535
_BETWEEN: Final = " \t\r\n"


class Channel(IntEnum):
    """What the client is sent, by WebSocket's numbers."""

    STDOUT = 1
    STDERR = 2


class Gone(Exception):  # noqa: N818 — news, as StopIteration is
    """The client is not there any more, or does not want this stream."""


@dataclass(frozen=True)
class Size:
    """Of a terminal, in characters."""

    width: int
    height: int


class Client(Protocol):
    ends: Ends
    gone: asyncio.Event  # it has left, without having been told an end

    async def read(self) -> bytes:
        """The next piece of stdin; b"" once it has sent all, or is gone. It cannot send more while nobody reads."""

    async def write(self, channel: Channel, data: bytes) -> None:
        """Send output; waits while the client does not read. Raises Gone."""

    async def size(self) -> Size | None:
        """The size its terminal has now, as soon as it is another; None when there will be no more."""

    async def end(self, status: Status) -> None:
        """Tell how the session ended, after all output, and part; waits for who reads late, as `write()` does."""


class Sizes:
    """Reads terminal sizes from a sequence of JSON objects; keeps the last one."""

    def __init__(self) -> None:
        self._text = ""
        self._last: Size | None = None
        self._ended = False
        self._news = asyncio.Event()

    def feed(self, data: bytes) -> None:
        """What comes after something that cannot be read is passed over."""
        if self._ended:
            return
        self._text += data.decode(errors="replace")
        try:
            for found in self._objects():
                width, height = int(found["Width"]), int(found["Height"])
                if 0 < width <= _LARGEST and 0 < height <= _LARGEST:
                    self._last = Size(width, height)
                    self._news.set()
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            self.end()

    def _objects(self) -> Iterator[dict[str, int]]:
        decoder, text, at = json.JSONDecoder(), self._text, 0
        while at < len(text):
            if text[at] in _BETWEEN:
                at += 1
                continue
            try:
                found, at = decoder.raw_decode(text, at)
            except ValueError:
                if len(text) - at > _LONGEST_SIZE or text[at] != "{":
                    raise
                break  # the rest is still to come
            yield found
        self._text = text[at:]

    def end(self) -> None:
        self._ended = True
        self._news.set()

    async def next(self) -> Size | None:
        while True:
            if self._last is not None:
                size, self._last = self._last, None
                return size
            if self._ended:
                return None
            await self._news.wait()
            self._news.clear()
