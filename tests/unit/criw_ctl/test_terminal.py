"""criwctl in a pseudo-terminal of its own: raw while it lasts, as before at every end."""

import asyncio
import contextlib
import fcntl
import os
import pty
import signal
import sys
import termios
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Final

import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st

from criw_ctl.terminal import DETACH_KEYS, DetachKeys
from support.crew import python_environment
from support.fake_streaming import Peer, Streaming, ended_with, streaming

LIMIT_S: Final = 30.0


class Terminal:
    """What a person sits at, and the criwctl that runs in it. Use `at_terminal()`."""

    def __init__(self, master: int, slave: int) -> None:
        self.master = master
        self.slave = slave
        self.before = termios.tcgetattr(slave)
        self.shown = b""
        self.process: asyncio.subprocess.Process | None = None

    async def start(self, server: Streaming, *argv: str) -> None:
        def control() -> None:
            os.setsid()
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        self.process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "criw_ctl", "--config", os.fspath(server.config), *argv),
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            env=python_environment(),
            preexec_fn=control,
        )

    def resize(self, columns: int, rows: int) -> None:
        termios.tcsetwinsize(self.slave, (rows, columns))

    def press(self, keys: bytes) -> None:
        os.write(self.master, keys)

    @property
    def is_raw(self) -> bool:
        return not termios.tcgetattr(self.slave)[3] & (termios.ICANON | termios.ECHO | termios.ISIG)

    async def show(self, text: bytes) -> None:
        """Wait until it shows the text."""
        async with asyncio.timeout(LIMIT_S):
            while text not in self.shown:
                await self._read()

    async def _read(self) -> None:
        ready = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(self.master, ready.set)
        try:
            await ready.wait()
        finally:
            loop.remove_reader(self.master)
        self.shown += os.read(self.master, 4096)

    async def ended(self) -> int:
        assert self.process is not None
        code = await asyncio.wait_for(self.process.wait(), LIMIT_S)
        os.set_blocking(self.master, False)
        with contextlib.suppress(BlockingIOError, OSError):
            while data := os.read(self.master, 4096):
                self.shown += data
        return code

    @property
    def is_as_before(self) -> bool:
        return termios.tcgetattr(self.slave) == self.before


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    master, slave = pty.openpty()
    found = Terminal(master, slave)
    found.resize(100, 30)
    try:
        yield found
    finally:
        if found.process is not None and found.process.returncode is None:
            found.process.kill()
        os.close(master)
        os.close(slave)


@pytest_asyncio.fixture
async def server(tmp_path: Path) -> AsyncIterator[Streaming]:
    async with streaming(tmp_path) as server:
        yield server


async def next_size(peer: Peer) -> bytes:
    while (message := await peer.hear())[0] != 4:
        pass
    return message[1:]


async def test_keys_go_through_and_the_size_is_told_at_once_and_when_it_changes(
    server: Streaming, terminal: Terminal
) -> None:
    sizes: list[bytes] = []

    async def script(peer: Peer) -> None:
        sizes.append(await next_size(peer))
        assert terminal.is_raw
        await peer.say(1, b"$ ")
        assert await peer.until(0, b"\x04") == b"\x03\x1a\x1cls\r\x04"  # what a terminal would act on itself
        terminal.resize(120, 40)
        sizes.append(await next_size(peer))
        await peer.say(1, b"bye")
        await peer.end(ended_with(3))

    server.script = script
    await terminal.start(server, "exec", "-it", "web", "sh")
    await terminal.show(b"$ ")
    terminal.press(b"\x03\x1a\x1cls\r\x04")
    assert await terminal.ended() == 3
    assert sizes == [b'{"Width": 100, "Height": 30}', b'{"Width": 120, "Height": 40}']
    assert terminal.shown == b"$ bye"
    assert terminal.is_as_before


@pytest.mark.parametrize("argv", [("exec", "-it", "web", "sh"), ("attach", "web")])
async def test_the_detach_keys_leave(server: Streaming, terminal: Terminal, argv: tuple[str, ...]) -> None:
    heard: list[bytes] = []

    async def script(peer: Peer) -> None:
        await peer.say(1, b"$ ")
        heard.append(await peer.until(0, b"\x10x"))
        terminal.press(b"a\x10")
        heard.append(await peer.until(0, b"a"))
        terminal.press(b"\x11")
        while message := await peer.hear():
            assert message[0] == 4

    server.runtime.config = {"stdin": True, "tty": True}
    server.script = script
    await terminal.start(server, *argv)
    await terminal.show(b"$ ")
    terminal.press(b"\x10x")
    assert await terminal.ended() == 0
    assert heard == [b"\x10x", b"a"]
    assert b"criwctl: detached from " in terminal.shown
    assert terminal.is_as_before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
async def test_a_signal_gives_the_terminal_back(server: Streaming, terminal: Terminal, number: signal.Signals) -> None:
    async def script(peer: Peer) -> None:
        await next_size(peer)
        assert terminal.is_raw
        assert terminal.process is not None
        terminal.process.send_signal(number)
        while await peer.hear():
            pass

    server.script = script
    await terminal.start(server, "exec", "-it", "web", "sh")
    assert await terminal.ended() == 128 + number
    assert terminal.is_as_before


async def test_a_lost_connection_gives_the_terminal_back(server: Streaming, terminal: Terminal) -> None:
    async def script(peer: Peer) -> None:
        await next_size(peer)
        assert peer.websocket._req is not None
        transport = peer.websocket._req.transport
        assert transport is not None
        transport.abort()

    server.script = script
    await terminal.start(server, "exec", "-it", "web", "sh")
    assert await terminal.ended() == 1
    assert b"went away" in terminal.shown
    assert terminal.shown.endswith(b"\r\n")  # told after the terminal was given back
    assert terminal.is_as_before


RUN: Final = ["run_pod_sandbox", "create_container", "attach", "start_container"]


async def test_a_container_is_joined_before_it_starts_and_removed_at_its_end(
    server: Streaming, terminal: Terminal
) -> None:
    async def script(peer: Peer) -> None:
        await next_size(peer)  # it comes after the start
        assert server.runtime.calls == RUN
        await peer.say(1, b"$ ")
        await peer.until(0, b"\x10\x11exit\r")  # with --rm nobody can leave it behind
        server.runtime.exited.set()
        await peer.end()

    server.script = script
    await terminal.start(server, "run", "-it", "--rm", "--name", "new", "busybox", "sh")
    await terminal.show(b"$ ")
    terminal.press(b"\x10\x11exit\r")
    assert await terminal.ended() == 5
    assert server.runtime.calls == [*RUN, "remove_pod_sandbox"]
    made = server.runtime.created
    assert (made.stdin, made.tty, made.args) == (True, True, ["sh"])
    assert terminal.is_as_before
    assert list((server.config.parent / "lib" / "ctl" / "logs").iterdir()) == []


async def test_a_container_without_rm_can_be_left(server: Streaming, terminal: Terminal) -> None:
    async def script(peer: Peer) -> None:
        await next_size(peer)
        terminal.press(DETACH_KEYS)
        while await peer.hear():
            pass

    server.script = script
    await terminal.start(server, "run", "-it", "--name", "new", "busybox")
    assert await terminal.ended() == 0
    assert b"criwctl: detached from new, which runs on; criwctl attach new joins it again" in terminal.shown
    assert server.runtime.calls == RUN
    assert terminal.is_as_before


@pytest.mark.parametrize("options", [["--rm"], []])
async def test_a_signal_stops_the_container(server: Streaming, terminal: Terminal, options: list[str]) -> None:
    async def script(peer: Peer) -> None:
        await next_size(peer)
        assert terminal.process is not None
        terminal.process.terminate()
        await server.runtime.exited.wait()
        await peer.say(1, b"bye")
        await peer.end()

    server.script = script
    await terminal.start(server, "run", "-it", *options, "--name", "new", "busybox")
    assert await terminal.ended() == 5
    assert b"bye" in terminal.shown
    assert server.runtime.calls == [*RUN, "stop_container", *(["remove_pod_sandbox"] if options else [])]
    assert terminal.is_as_before


@given(st.lists(st.sampled_from([b"\x10", b"\x11", b"x", b"\x10\x11", b"xy"])))
def test_keys_are_found_however_they_arrive(pieces: list[bytes]) -> None:
    keys = DetachKeys()
    passed = b""
    for piece in pieces:
        passed += keys.pass_on(piece)
        if keys.pressed:
            break
    typed = b"".join(pieces)
    before, found, _ = typed.partition(DETACH_KEYS)
    assert keys.pressed == bool(found)
    held = b"\x10" if not found and typed.endswith(b"\x10") else b""
    assert passed + held == before
