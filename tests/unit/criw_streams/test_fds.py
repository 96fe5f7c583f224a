"""Readers and writers on real pipes and terminals."""

import asyncio
import errno
import os
import random
import tty
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import pytest_asyncio

from criw_streams import fds


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def all_of(reader: fds.Reader) -> bytes:
    pieces = []
    while piece := await reader.read():
        pieces.append(piece)
    return b"".join(pieces)


def descriptors() -> set[str]:
    return {fd.name for fd in Path("/proc/self/fd").iterdir()}


@pytest_asyncio.fixture
async def closing() -> AsyncIterator[ExitStack]:
    """What closes the ends of a test."""
    with ExitStack() as closing:
        yield closing


def terminal(closing: ExitStack) -> tuple[fds.Reader, int]:
    """Its reader, and the end that a command has; that one is to be closed by the test."""
    ours, theirs = os.openpty()
    tty.setraw(theirs)
    reader = fds.Reader(ours, terminal=True)
    closing.callback(reader.close)
    return reader, theirs


async def test_a_mebibyte_goes_through_a_pipe_exactly(closing: ExitStack) -> None:
    theirs, ours = fds.pipe()
    reader, writer = fds.Reader(theirs), fds.Writer(ours)
    closing.callback(reader.close)
    sent = random.Random(1).randbytes(5 * 1024 * 1024 + 3)

    async def write() -> None:
        await writer.write(sent)
        writer.close()

    writing = asyncio.create_task(write())
    assert await all_of(reader) == sent
    await writing


async def test_a_reader_waits_for_the_next_piece_and_for_the_end(closing: ExitStack) -> None:
    theirs, ours = os.pipe()
    reader = fds.Reader(theirs)
    closing.callback(reader.close)
    reading = asyncio.create_task(reader.read())
    await turns()
    assert not reading.done()
    os.write(ours, b"x")
    assert await reading == b"x"
    reading = asyncio.create_task(reader.read())
    await turns()
    os.close(ours)
    assert await reading == b""


async def test_the_rest_of_a_pipe_is_read_though_another_holds_it(closing: ExitStack) -> None:
    theirs, ours = os.pipe()
    closing.callback(os.close, ours)
    reader = fds.Reader(theirs)
    closing.callback(reader.close)
    os.write(ours, b"rest")
    reader.end_after_rest()
    os.write(ours, b"of another")
    assert await all_of(reader) == b"rest"


async def test_who_waits_for_a_pipe_is_told_that_there_is_no_rest(closing: ExitStack) -> None:
    theirs, ours = os.pipe()
    closing.callback(os.close, ours)
    reader = fds.Reader(theirs)
    closing.callback(reader.close)
    reading = asyncio.create_task(reader.read())
    await turns()
    reader.end_after_rest()
    assert await reading == b""


async def test_the_rest_of_a_terminal_is_read_until_it_is_silent(closing: ExitStack) -> None:
    reader, theirs = terminal(closing)
    closing.callback(os.close, theirs)
    os.write(theirs, b"rest")
    reader.end_after_rest()
    assert await all_of(reader) == b"rest"


async def test_a_terminal_that_never_falls_silent_is_not_read_for_ever(closing: ExitStack) -> None:
    reader, theirs = terminal(closing)
    closing.callback(os.close, theirs)
    writer = fds.Writer(os.dup(theirs))
    closing.callback(writer.close)

    async def chatter() -> None:
        while True:
            await writer.write(b"x" * 1000)

    chattering = asyncio.create_task(chatter())
    await reader.read()
    reader.end_after_rest()
    assert 0 < len(await all_of(reader)) <= 128 * 1024
    chattering.cancel()
    await asyncio.gather(chattering, return_exceptions=True)


async def test_a_terminal_ends_when_nobody_has_it(closing: ExitStack) -> None:
    reader, theirs = terminal(closing)
    os.write(theirs, b"last")
    os.close(theirs)
    assert await all_of(reader) == b"last"
    assert await reader.read() == b""


@pytest.mark.parametrize("of_terminal", [False, True])
async def test_closing_lets_go_of_who_reads(of_terminal: bool, closing: ExitStack) -> None:
    before = descriptors()
    if of_terminal:
        reader, theirs = terminal(closing)
    else:
        ours, theirs = os.pipe()
        reader = fds.Reader(ours)
    reading = asyncio.create_task(reader.read())
    await turns()
    reader.close()
    reader.close()
    os.close(theirs)
    assert await reading == b""
    reader.end_after_rest()
    assert descriptors() == before


async def test_closing_lets_go_of_who_writes(closing: ExitStack) -> None:
    theirs, ours = os.pipe()
    closing.callback(os.close, theirs)
    writer = fds.Writer(ours)
    writing = asyncio.create_task(writer.write(bytes(1024 * 1024)))
    await turns()
    writer.close()
    writer.close()
    with pytest.raises(BrokenPipeError):
        await writing


async def test_who_writes_is_told_when_nobody_reads_any_more() -> None:
    theirs, ours = os.pipe()
    writer = fds.Writer(ours)
    writing = asyncio.create_task(writer.write(bytes(1024 * 1024)))
    await turns()
    os.close(theirs)
    with pytest.raises(OSError) as caught:
        await writing
    assert caught.value.errno == errno.EPIPE
    writer.close()


async def test_giving_up_waiting_leaves_nothing_to_wake(closing: ExitStack) -> None:
    theirs, ours = os.pipe()
    reader, writer = fds.Reader(theirs), fds.Writer(ours)
    reading = asyncio.create_task(reader.read())
    await turns()
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    await writer.write(b"x")
    assert await reader.read() == b"x"
    writing = asyncio.create_task(writer.write(bytes(1024 * 1024)))
    await turns()
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)
    assert asyncio.get_running_loop().remove_writer(ours) is False
    writer.close()
    assert asyncio.get_running_loop().remove_reader(theirs) is False
    reader.close()
