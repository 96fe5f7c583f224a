"""The demo's sessions: a terminal in a container, one that outlives the supervisor, a port that leads to a pod."""

import asyncio
import contextlib
import fcntl
import os
import pty
import re
import signal
import struct
import sys
import termios
from collections.abc import AsyncIterator, Sequence
from typing import Final

from support.crew import Crew, python_environment

LIMIT_S: Final = 30.0
SIZE: Final = (40, 100)  # lines and columns of our terminal


class Interactive:
    """`criwctl` at a terminal of its own, at which somebody types."""

    def __init__(self, process: asyncio.subprocess.Process, keyboard: int) -> None:
        self._process = process
        self._keyboard = keyboard
        self.screen = ""  # all that was on it

    def type(self, text: str) -> None:
        os.write(self._keyboard, text.encode())

    async def see(self, pattern: str) -> re.Match[str]:
        """Wait until the screen shows it, behind what was seen before."""
        seen = len(self.screen)
        async with asyncio.timeout(LIMIT_S):
            while (found := re.compile(pattern).search(self.screen, seen)) is None:
                self.screen += (await asyncio.to_thread(os.read, self._keyboard, 4096)).decode(errors="replace")
        return found

    async def end(self) -> int:
        """Its exit code."""
        return await asyncio.wait_for(self._process.wait(), LIMIT_S)


@contextlib.asynccontextmanager
async def interactive(crew: Crew, argv: Sequence[str]) -> AsyncIterator[Interactive]:
    """Run criwctl at a terminal; it is killed if the block is left before its end."""
    keyboard, terminal = pty.openpty()
    try:
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", *SIZE, 0, 0))
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "criw_ctl", "--config", os.fspath(crew.config_path), *argv),
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            env=python_environment(),
            start_new_session=True,
        )
        try:
            yield Interactive(process, keyboard)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    finally:
        os.close(terminal)
        os.close(keyboard)


@contextlib.asynccontextmanager
async def forwarded(crew: Crew, pod: str, port: int) -> AsyncIterator[str]:
    """The local address that leads to a port of the pod while the block runs."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "criw_ctl", "--config", os.fspath(crew.config_path), "port-forward", pod, f":{port}"),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        env=python_environment(),
    )
    try:
        assert process.stdout is not None
        line = (await asyncio.wait_for(process.stdout.readline(), LIMIT_S)).decode()
        yield line.split(" ")[0]
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGINT)  # as Ctrl-C
        await asyncio.wait_for(process.wait(), LIMIT_S)
