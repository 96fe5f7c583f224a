import asyncio
import sys

from criw_streams.inbox import ROOM, Inbox


async def turns() -> None:
    """Let others go on until they wait again."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_what_is_there_is_had_at_once_and_in_order() -> None:
    inbox = Inbox()
    await inbox.put(b"a")
    await inbox.put(b"")
    await inbox.put(b"b")
    assert await inbox.get() == b"ab"
    getting = asyncio.create_task(inbox.get())
    await turns()
    assert not getting.done()
    await inbox.put(b"c")
    assert await getting == b"c"


async def test_the_end_comes_after_the_rest() -> None:
    inbox = Inbox()
    await inbox.put(b"rest")
    inbox.end()
    await inbox.put(b"late")
    assert await inbox.get() == b"rest"
    assert await inbox.get() == b""
    assert await inbox.get() == b""


async def test_whoever_brings_too_much_waits_for_who_takes_it() -> None:
    inbox = Inbox()
    putting = asyncio.create_task(inbox.put(bytes(ROOM)))
    await turns()
    assert not putting.done()
    assert len(await inbox.get()) == ROOM
    await putting


async def test_the_end_lets_go_of_who_waits() -> None:
    inbox = Inbox()
    putting = asyncio.create_task(inbox.put(bytes(ROOM)))
    await turns()
    inbox.end()
    await putting


async def test_pieces_of_a_byte_fill_it_by_the_memory_they_take() -> None:
    inbox, brought = Inbox(), 0

    async def bring() -> None:
        nonlocal brought
        while True:
            await inbox.put(b"%d" % (brought % 10))
            brought += 1

    bringing = asyncio.create_task(bring())
    await turns()
    assert brought * (sys.getsizeof(b"x") + 8) <= ROOM
    bringing.cancel()
    await asyncio.gather(bringing, return_exceptions=True)
