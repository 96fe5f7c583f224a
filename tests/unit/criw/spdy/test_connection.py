"""One side of a connection: what it answers to each frame, and what it does when nobody reads."""

import asyncio
from collections.abc import Coroutine
from typing import TypeVar

import pytest

from criw.spdy.connection import (
    STREAM_UNREAD_LIMIT,
    UNREAD_LIMIT,
    WAITING_FRAMES,
    WAITING_PINGS,
    Closed,
    Connection,
    Stream,
)
from criw.spdy.frames import (
    Data,
    Frame,
    GoAway,
    GoAwayStatus,
    Headers,
    Ping,
    Reset,
    ResetStatus,
    SynReply,
    SynStream,
    Writer,
)
from support.spdy import Recorder

T = TypeVar("T")


class Side:
    """A connection, its sink and its peer's writer of frames."""

    def __init__(self, *, server: bool = True, **bounds: int) -> None:
        self.sink = Recorder()
        self.connection = Connection(self.sink, server=server, **bounds)
        self.peer = Writer()

    def feed(self, *frames: Frame) -> None:
        self.connection.feed(b"".join(self.peer.encode(frame) for frame in frames))

    async def opened(self, number: int = 1) -> Stream:
        """A stream the peer opened, accepted."""
        self.feed(SynStream(number, {"streamtype": "data"}))
        stream = await self.connection.accept()
        assert stream is not None
        stream.accept()
        assert self.sink.frames() == [SynReply(number, {})]
        return stream


async def begun(work: Coroutine[None, None, T]) -> asyncio.Task[T]:
    """A task that has run until it waits for something."""
    task = asyncio.create_task(work)
    await asyncio.sleep(0)
    return task


async def test_streams_are_accepted_or_refused() -> None:
    side = Side()
    first = await begun(side.connection.accept())
    side.feed(SynStream(1, {"a": "b"}), SynStream(5, {}))
    stream, other = await first, await side.connection.accept()
    assert stream is not None
    assert other is not None
    assert (stream.id, stream.headers, other.id) == (1, {"a": "b"}, 5)
    assert side.sink.frames() == []
    stream.accept()
    stream.accept()
    other.refuse()
    assert side.sink.frames() == [SynReply(1, {}), Reset(5, ResetStatus.CANCEL)]
    assert other.gone
    assert not stream.gone


@pytest.mark.parametrize("number", [2, 3, 4, 5, 2**31 + 1, 2**32 - 1])
async def test_a_wrong_id_is_reset_and_the_connection_lives(number: int) -> None:
    side = Side()
    await side.opened(3)
    await side.opened(5)
    side.feed(SynStream(number, {"x": "y"}))
    assert side.sink.frames() == [Reset(number, ResetStatus.PROTOCOL_ERROR)]
    await side.opened(7)


async def test_an_open_stream_whose_id_is_used_again_ends_on_both_sides() -> None:
    side = Side()
    stream = await side.opened()
    side.feed(SynStream(1, {}))
    assert side.sink.frames() == [Reset(1, ResetStatus.PROTOCOL_ERROR)]
    assert stream.gone


async def test_more_streams_than_may_be_open_are_refused_until_others_are_gone() -> None:
    side = Side(max_streams=2)
    first, _ = await side.opened(1), await side.opened(3)
    side.feed(SynStream(5, {}))
    assert side.sink.frames() == [Reset(5, ResetStatus.REFUSED_STREAM)]
    first.reset()
    side.sink.frames()
    await side.opened(7)


async def test_more_streams_than_may_wait_are_refused() -> None:
    side = Side(max_waiting=2)
    for number in (1, 3, 5):
        side.feed(SynStream(number, {}), Reset(number, 5))
    assert side.sink.frames() == [Reset(5, ResetStatus.REFUSED_STREAM)]


async def test_a_stream_with_headers_beyond_measure_is_refused() -> None:
    side = Side()
    side.feed(SynStream(1, {"a": 20_000 * "b"}), SynStream(3, {str(number): "" for number in range(200)}))
    assert side.sink.frames() == [Reset(number, ResetStatus.REFUSED_STREAM) for number in (1, 3)]


async def test_frames_for_unknown_and_finished_streams_are_ignored() -> None:
    side = Side()
    stream = await side.opened()
    stream.reset()
    assert side.sink.frames() == [Reset(1, ResetStatus.CANCEL)]
    for number in (1, 9, 2):
        side.feed(Data(number, b"x"), Headers(number, {}), SynReply(number, {}), Reset(number, 1))
    assert side.sink.frames() == []
    assert not side.sink.closed


@pytest.mark.parametrize(("server", "answered"), [(True, 3), (False, 4)])
async def test_a_ping_of_the_peer_is_answered_and_ours_is_not(server: bool, answered: int) -> None:
    side = Side(server=server)
    side.feed(Ping(3), Ping(4))
    assert side.sink.frames() == [Ping(answered)]


async def test_bytes_of_a_stream_come_in_order_and_end_with_fin() -> None:
    side = Side()
    stream = await side.opened()
    reading = await begun(stream.read())
    side.feed(Data(1, b"a"), Data(1, b"b"), Data(1, b"c", fin=True), Data(1, b"late"))
    assert [await reading, await stream.read(), await stream.read(), await stream.read()] == [b"a", b"b", b"c", b""]
    assert stream.peer_half_closed
    assert not stream.peer_reset
    await stream.write(b"still open")
    stream.close_write()
    stream.close_write()
    assert side.sink.frames() == [Data(1, b"still open", fin=True)]
    await stream.wait_gone()


@pytest.mark.parametrize("opening", [[SynStream(1, {}, fin=True)], [SynStream(1, {}), Headers(1, {}, fin=True)]])
async def test_fin_on_frames_with_headers_half_closes(opening: list[Frame]) -> None:
    side = Side()
    side.feed(*opening)
    stream = await side.connection.accept()
    assert stream is not None
    stream.accept()
    assert await stream.read() == b""
    assert not stream.gone


async def test_nothing_is_written_on_a_unidirectional_stream() -> None:
    side = Side()
    side.feed(SynStream(1, {}, unidirectional=True))
    stream = await side.connection.accept()
    assert stream is not None
    stream.accept()
    assert side.sink.frames() == [SynReply(1, {}, fin=True)]
    with pytest.raises(Closed):
        await stream.write(b"x")
    side.feed(Data(1, b"", fin=True))
    assert stream.gone


async def test_a_reset_ends_both_directions_after_what_came_before_it() -> None:
    side = Side()
    stream = await side.opened()
    side.feed(Data(1, b"last"), Reset(1, ResetStatus.CANCEL), Data(1, b"late"))
    assert stream.peer_reset
    assert stream.gone
    assert [await stream.read(), await stream.read()] == [b"last", b""]
    with pytest.raises(Closed, match="CANCEL"):
        await stream.write(b"")
    stream.reset()
    stream.close_write()
    assert side.sink.frames() == []


async def test_large_writes_are_many_frames() -> None:
    side = Side()
    stream = await side.opened()
    data = bytes(range(256)) * 1000
    await stream.write(data)
    assert max(map(len, side.sink.written)) <= 64 * 1024
    assert side.sink.frames() == [Data(1, data)]


async def test_writers_wait_while_the_sink_is_paused_and_take_turns() -> None:
    side = Side()
    streams = [await side.opened(number) for number in (1, 3, 5)]
    side.connection.pause_writing()
    writers = [await begun(stream.write(bytes(256 * 1024))) for stream in streams]
    order: list[int] = []

    def one_by_one(written: bytes) -> None:
        if len(written) == 8:  # a head
            order.append(written[3])
            side.connection.pause_writing()

    side.sink.after_write = one_by_one
    while not all(writer.done() for writer in writers):
        side.connection.resume_writing()
        await asyncio.sleep(0)
    assert order == [1, 3, 5] * 4


async def test_a_cancelled_writer_sends_no_more_and_leaves_others_their_turn() -> None:
    side = Side()
    first, second = await side.opened(1), await side.opened(3)
    side.connection.pause_writing()
    cancelled, waiting = await begun(first.write(b"a")), await begun(second.write(b"b"))
    cancelled.cancel()
    side.connection.resume_writing()
    side.connection.pause_writing()
    await waiting
    assert side.sink.frames() == [Data(3, b"b")]
    later = await begun(first.write(b"c"))
    later.cancel()
    await asyncio.wait({cancelled, later})
    assert cancelled.cancelled()
    assert later.cancelled()
    assert not side.connection._waiting_data


async def test_fin_goes_behind_writes_under_way() -> None:
    side = Side()
    stream = await side.opened()
    side.connection.pause_writing()
    writers = [await begun(stream.write(bytes(70_000))) for _ in range(2)]
    stream.close_write()
    with pytest.raises(Closed):
        await stream.write(b"too late")
    assert side.sink.frames() == []
    side.connection.resume_writing()
    await asyncio.gather(*writers)
    assert side.sink.frames() == [Data(1, bytes(140_000), fin=True)]


@pytest.mark.parametrize("end", ["reset", "reset here", "close", "abort", "eof", "goaway", "wrong"])
async def test_whatever_ends_a_stream_wakes_who_waits_for_it(end: str) -> None:
    side = Side()
    stream, other = await side.opened(), await side.opened(3)
    side.connection.pause_writing()
    writing, reading = await begun(stream.write(b"x")), await begun(stream.read())
    neighbour = await begun(other.write(b"y"))
    match end:
        case "reset":
            side.feed(Reset(1, 5))
        case "reset here":
            stream.reset()
        case "close":
            side.connection.close()
        case "abort":
            side.connection.abort()
        case "eof":
            side.connection.feed_eof()
        case "goaway":
            side.feed(GoAway(0, 0))
        case _:
            side.connection.feed(bytes(8))
    async with asyncio.timeout(5):
        await stream.wait_gone()
        assert await reading == b""
        with pytest.raises(Closed):
            await writing
        if end.startswith("reset"):
            side.connection.resume_writing()
            await neighbour
        else:
            with pytest.raises(Closed):
                await neighbour
            await side.connection.closed()
            assert await side.connection.accept() is None
            side.connection.resume_writing()
    said = side.sink.frames()
    assert Data(1, b"x") not in said
    assert (Data(3, b"y") in said) is end.startswith("reset")
    assert stream.peer_reset is (end == "reset")


async def test_a_stuck_reader_pauses_the_pipe_until_it_has_taken_enough() -> None:
    side = Side()
    stream = await side.opened()
    chunk = bytes(32 * 1024)
    chunks = 0
    while side.sink.reading:
        side.feed(Data(1, chunk))
        chunks += 1
    assert chunks * len(chunk) == pytest.approx(STREAM_UNREAD_LIMIT, rel=0.05)
    for _ in range(chunks // 2 - 1):
        await stream.read()
    assert not side.sink.reading
    await stream.read()
    await stream.read()
    assert side.sink.reading


async def test_tiny_chunks_count_what_they_take() -> None:
    side = Side()
    await side.opened()
    side.feed(*(Data(1, b"x") for _ in range(STREAM_UNREAD_LIMIT // 60)))
    assert not side.sink.reading


@pytest.mark.parametrize("how", ["discard", "reset", "peer reset"])
async def test_a_reader_that_has_gone_blocks_nobody(how: str) -> None:
    side = Side()
    stream, busy = await side.opened(1), await side.opened(3)
    side.feed(Data(1, bytes(STREAM_UNREAD_LIMIT)))
    assert not side.sink.reading
    if how == "peer reset":
        side.feed(Reset(1, 5))
    if how == "reset":
        stream.reset()
    else:
        stream.discard()
    assert side.sink.reading
    assert await stream.read() == b""
    side.feed(*(Data(1, bytes(100_000)) for _ in range(20)), Data(3, b"lives"), Data(1, b"", fin=True))
    assert side.sink.reading
    assert await busy.read() == b"lives"
    assert stream.peer_half_closed


async def test_many_slow_readers_together_pause_the_pipe() -> None:
    side = Side()
    streams: list[Stream] = []
    while side.sink.reading:
        streams.append(await side.opened(2 * len(streams) + 1))
        side.feed(Data(streams[-1].id, bytes(STREAM_UNREAD_LIMIT // 2)))
    assert len(streams) == UNREAD_LIMIT // (STREAM_UNREAD_LIMIT // 2)
    for stream in streams[: len(streams) // 2 + 1]:
        assert not side.sink.reading
        await stream.read()
    assert side.sink.reading


async def test_answers_to_a_peer_that_never_reads_do_not_pile_up() -> None:
    side = Side()
    side.connection.pause_writing()
    side.feed(*(Ping(1) for _ in range(5000)))
    assert side.sink.frames() == [Ping(1)] * WAITING_PINGS
    side.connection.resume_writing()
    side.feed(Ping(3))
    assert side.sink.frames() == [Ping(3)]
    side.connection.pause_writing()
    side.feed(*(SynStream(2, {}) for _ in range(WAITING_FRAMES + 1)))
    assert side.sink.closed == 1
    assert len(side.sink.frames()) == WAITING_FRAMES


async def test_closing_resets_what_is_open_and_says_the_last_stream_accepted() -> None:
    side = Side()
    for number in (1, 3, 5):
        await side.opened(number)
    side.feed(SynStream(7, {}))
    side.connection.close()
    side.connection.close()
    side.connection.feed_eof()
    assert side.sink.frames() == [*(Reset(number, 5) for number in (1, 3, 5, 7)), GoAway(5, GoAwayStatus.OK)]
    assert side.sink.closed == 1


async def test_aborting_says_nothing() -> None:
    side = Side()
    await side.opened()
    side.connection.abort()
    assert side.sink.frames() == []
    assert side.sink.closed == 1


async def test_a_broken_protocol_ends_the_connection_and_what_came_can_be_read() -> None:
    side = Side()
    stream = await side.opened()
    side.feed(Data(1, b"good"))
    side.connection.feed(bytes(8) + b"whatever else")
    side.connection.feed(b"and more")
    assert side.sink.frames() == [GoAway(1, GoAwayStatus.PROTOCOL_ERROR)]
    assert side.sink.closed == 1
    assert [await stream.read(), await stream.read()] == [b"good", b""]


async def test_a_goaway_of_the_peer_ends_the_connection_and_what_came_can_be_read() -> None:
    side = Side()
    stream = await side.opened()
    side.feed(Data(1, b"good"), GoAway(0, 0), Data(1, b"after"), SynStream(3, {}))
    assert side.sink.frames() == [GoAway(1, GoAwayStatus.OK)]
    assert side.sink.closed == 1
    assert [await stream.read(), await stream.read()] == [b"good", b""]


async def test_a_client_opens_streams_with_odd_ids_and_waits_for_the_answer() -> None:
    side = Side(server=False)
    opening = [await begun(side.connection.open({"streamtype": kind})) for kind in ("error", "data")]
    assert side.sink.frames() == [SynStream(1, {"streamtype": "error"}), SynStream(3, {"streamtype": "data"})]
    side.feed(SynReply(3, {}), SynReply(1, {}, fin=True), SynReply(1, {}))
    first, second = await asyncio.gather(*opening)
    assert (first.id, second.id) == (1, 3)
    assert await first.read() == b""
    await second.write(b"x")
    assert side.sink.frames() == [Data(3, b"x")]


async def test_a_client_hears_of_a_refusal() -> None:
    side = Side(server=False)
    opening = await begun(side.connection.open({}))
    side.feed(Reset(1, ResetStatus.REFUSED_STREAM))
    with pytest.raises(Closed, match="REFUSED_STREAM"):
        await opening
    opening = await begun(side.connection.open({}))
    side.connection.feed_eof()
    with pytest.raises(Closed, match="closed the connection"):
        await opening
    with pytest.raises(Closed, match="has ended"):
        await side.connection.open({})


async def test_a_client_that_waits_no_longer_resets_the_stream() -> None:
    side = Side(server=False)
    opening = await begun(side.connection.open({}))
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    side.feed(SynReply(1, {}))
    assert side.sink.frames() == [SynStream(1, {}), Reset(1, ResetStatus.CANCEL)]


async def test_a_client_opens_no_stream_for_a_server() -> None:
    side = Side(server=False)
    side.feed(SynStream(2, {}))
    assert side.sink.frames() == [Reset(2, ResetStatus.PROTOCOL_ERROR)]


async def test_activity_is_whatever_comes_and_goes() -> None:
    side = Side()
    stream = await side.opened()
    side.connection.last_activity = 0
    side.feed(Ping(2))
    assert side.connection.last_activity > 0
    side.connection.last_activity = 0
    await stream.write(b"x")
    assert side.connection.last_activity > 0
