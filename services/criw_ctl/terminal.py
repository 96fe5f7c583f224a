"""Our own terminal while it belongs to a program in a container: raw, its size told, and the keys that leave it."""

import asyncio
import contextlib
import os
import signal
import termios
import tty
from collections.abc import Iterator
from typing import Final

from criw.errors import FailedPrecondition

DETACH_KEYS: Final = b"\x10\x11"  # Ctrl-P Ctrl-Q, as people know them from other engines


@contextlib.contextmanager
def raw(descriptor: int) -> Iterator[None]:
    """Every key goes to the program as it is; the terminal is as before once the block is left."""
    before = termios.tcgetattr(descriptor)
    # At once, both times: to drain what is written would wait for ever for a terminal that nobody reads.
    tty.setraw(descriptor, termios.TCSANOW)
    try:
        yield
    finally:
        with contextlib.suppress(termios.error):  # the terminal is gone
            termios.tcsetattr(descriptor, termios.TCSANOW, before)


def check_input(descriptor: int, *, instead: str) -> None:
    """Raises FailedPrecondition, with what to do `instead`, unless it is a terminal."""
    if not os.isatty(descriptor):
        raise FailedPrecondition(f"cannot use the input as a terminal: it is not one; {instead}")


class Window:
    """The size of our terminal. Use `window()`."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._changed = asyncio.Event()
        self._changed.set()

    def change(self) -> None:
        self._changed.set()

    async def size(self) -> tuple[int, int]:
        """Columns and rows: at once the first time, later when they have changed; 0 if not known."""
        await self._changed.wait()
        self._changed.clear()
        try:
            rows, columns = termios.tcgetwinsize(self._descriptor)
        except termios.error:  # the terminal is gone
            return 0, 0
        return columns, rows


@contextlib.contextmanager
def window() -> Iterator[Window | None]:
    """None if neither stdout nor stdin is a terminal."""
    descriptor = next((each for each in (1, 0) if os.isatty(each)), None)
    if descriptor is None:
        yield None
        return
    found = Window(descriptor)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGWINCH, found.change)
    try:
        yield found
    finally:
        loop.remove_signal_handler(signal.SIGWINCH)


class DetachKeys:
    """Looks for `DETACH_KEYS` in what is typed."""

    def __init__(self) -> None:
        self._held = b""
        self.pressed = False

    def pass_on(self, typed: bytes) -> bytes:
        """What of it is for the program; the first of the keys is held back until the next one is known."""
        text = self._held + typed
        before, keys, _ = text.partition(DETACH_KEYS)
        if keys:
            self.pressed = True
            return before
        self._held = DETACH_KEYS[:1] if text.endswith(DETACH_KEYS[:1]) else b""
        return text[: len(text) - len(self._held)]
