"""What has come on one channel of several and nobody has taken yet: so much, then whoever brings it waits."""

import asyncio
from typing import Final

ROOM: Final = 1024 * 1024  # bytes
_OVERHEAD: Final = 64  # bytes of memory that a piece takes beside its data


class Inbox:
    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._bytes = 0
        self._ended = False
        self._news = asyncio.Event()
        self._room = asyncio.Event()

    async def put(self, data: bytes) -> None:
        """Waits while there is no room. Dropped after the end."""
        if self._ended or not data:
            return
        self._pieces.append(data)
        self._bytes += len(data) + _OVERHEAD
        self._news.set()
        while self._bytes >= ROOM and not self._ended:
            self._room.clear()
            await self._room.wait()

    def end(self) -> None:
        """Nothing comes any more. What is there can still be had."""
        self._ended = True
        self._news.set()
        self._room.set()

    async def get(self) -> bytes:
        """All there is, as soon as there is something; b"" at the end."""
        while not self._pieces and not self._ended:
            self._news.clear()
            await self._news.wait()
        data = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        self._bytes = 0
        self._room.set()
        return data
