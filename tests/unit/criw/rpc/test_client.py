import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from grpclib.exceptions import StreamTerminatedError
from grpclib.protocol import H2Protocol

from criw.errors import DeadlineExceeded, NotFound, Unavailable
from criw.rpc.client import Channel, DirectChannel, ask, call, never_begun, watch
from criw_proto.criw.image.v1 import ImagesBase, ImagesStub, PullProgress, PullRequest
from criw_proto.criw.network.v1 import AttachRequest, DetachRequest, NetworkStub
from support.serving import Gate, Scripted, raising, serving

POD = AttachRequest(pod_id="p")


async def nothing(_: str) -> None:
    pass


async def test_a_client_waits_for_a_server_that_starts_later(path: Path, channel: Channel) -> None:
    waiting = asyncio.create_task(call(NetworkStub(channel).attach, POD, timeout_s=10))
    await asyncio.wait({waiting}, timeout=0.1)
    assert not waiting.done()
    async with serving(path, Scripted(nothing)):
        assert (await waiting).netns_path == "/netns/p"


async def test_a_socket_nobody_listens_on_any_more_is_waited_for(path: Path, channel: Channel) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(os.fspath(path))  # what a killed process leaves: a file, and nobody behind it
    waiting = asyncio.create_task(NetworkStub(channel).attach(POD, timeout=10))
    await asyncio.wait({waiting}, timeout=0.1)
    assert not waiting.done()
    path.unlink()
    async with serving(path, Scripted(nothing)):
        assert (await waiting).netns_path == "/netns/p"


async def test_a_call_whose_connection_nobody_took_up_was_never_begun(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(path))
        listener.listen()
        channel = DirectChannel(path)
        calling = asyncio.create_task(NetworkStub(channel).attach(POD))
        while not channel.connected:
            await asyncio.sleep(0)
        await asyncio.wait({calling}, timeout=0.05)
        assert not calling.done()
    with pytest.raises(StreamTerminatedError) as caught:
        await calling
    assert never_begun(caught.value)
    channel.close()


async def test_a_call_to_a_socket_nobody_listens_on_was_never_begun(path: Path) -> None:
    channel = DirectChannel(path)
    with pytest.raises(ConnectionRefusedError) as missing:
        await NetworkStub(channel).attach(POD)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(os.fspath(path))
        with pytest.raises(ConnectionRefusedError) as refused:
            await NetworkStub(channel).attach(POD)
    assert never_begun(missing.value)
    assert never_begun(refused.value)
    channel.close()


async def test_a_call_whose_connection_ends_without_a_word_may_have_been_begun(path: Path) -> None:
    """As when the server was killed."""
    gone = asyncio.Event()

    async def die(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"\0\0\0\x04\0\0\0\0\0")  # empty settings: it has taken up the connection
        await writer.drain()
        writer.close()
        gone.set()

    channel = DirectChannel(path)
    async with await asyncio.start_unix_server(die, path):
        with pytest.raises(StreamTerminatedError) as caught:
            await NetworkStub(channel).attach(POD)
    await gone.wait()
    assert not never_begun(caught.value)
    channel.close()


async def test_a_call_is_repeated_when_the_server_dies_in_it(path: Path, channel: Channel) -> None:
    gate = Gate()
    async with serving(path, Scripted(gate)):
        waiting = asyncio.create_task(call(NetworkStub(channel).attach, POD, timeout_s=10))
        await gate.begun.wait()
    assert gate.cancelled.is_set()
    second = Scripted(nothing)
    async with serving(path, second):
        assert (await waiting).netns_path == "/netns/p"
    assert second.calls == ["p"]


async def test_repeating_leaves_no_cancellation_behind(path: Path, channel: Channel) -> None:
    """grpclib interrupts a waiting call by cancelling its task; the caller's later timeouts must not mistake that."""
    gate = Gate()

    async def lose_the_server() -> None:
        async with serving(path, Scripted(gate)):
            await gate.begun.wait()

    task = asyncio.current_task()
    assert task is not None
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(lose_the_server())
        with pytest.raises(Unavailable):
            await call(NetworkStub(channel).attach, POD, timeout_s=0.3)
    assert task.cancelling() == 0


async def test_asking_once_leaves_no_cancellation_behind(path: Path, channel: Channel) -> None:
    gate, task = Gate(), asyncio.current_task()
    assert task is not None
    async with serving(path, Scripted(gate)):
        with pytest.raises(DeadlineExceeded, match=r"^cannot get an answer from the crew within 0\.2 s"):
            await ask(NetworkStub(channel).attach, POD, timeout_s=0.2)
    assert task.cancelling() == 0


async def test_what_was_asked_once_is_not_repeated_when_the_server_dies(path: Path, channel: Channel) -> None:
    gate = Gate()
    async with serving(path, Scripted(gate)):
        asking = asyncio.create_task(ask(NetworkStub(channel).attach, POD))
        await gate.begun.wait()
    with pytest.raises(Unavailable, match=r"^cannot finish the call: the crew went away"):
        await asking


async def test_a_deadline_nobody_answers_in_is_unavailable(path: Path, channel: Channel) -> None:
    started = asyncio.get_running_loop().time()
    with pytest.raises(Unavailable, match=r"^cannot reach criw-network within 0\.2 s"):
        await call(NetworkStub(channel).attach, POD, timeout_s=0.2, agent="criw-network")
    assert 0.2 <= asyncio.get_running_loop().time() - started < 2


async def test_a_deadline_the_server_exceeds_ends_the_work_there(path: Path, channel: Channel) -> None:
    gate = Gate()
    async with serving(path, Scripted(gate)):
        with pytest.raises(DeadlineExceeded, match=r"^cannot get an answer from criw-network within 0\.2 s"):
            await call(NetworkStub(channel).attach, POD, timeout_s=0.2, agent="criw-network")
        await asyncio.wait_for(gate.cancelled.wait(), 5)


async def test_an_agent_that_cannot_reach_something_is_not_asked_again(path: Path, channel: Channel) -> None:
    """Its UNAVAILABLE is an answer, say of a registry that is down; only its own death is waited out."""
    service = raising(Unavailable("cannot reach the registry"))
    async with serving(path, service):
        with pytest.raises(Unavailable, match="registry"):
            await call(NetworkStub(channel).attach, POD, timeout_s=5)
    assert service.calls == ["p"]


async def test_many_calls_share_a_connection(path: Path, channel: Channel) -> None:
    async with serving(path, Scripted(nothing)):
        ids = [f"pod{number}" for number in range(200)]
        replies = await asyncio.gather(*(call(NetworkStub(channel).attach, AttachRequest(pod_id=i)) for i in ids))
    assert [reply.netns_path for reply in replies] == [f"/netns/{i}" for i in ids]


class Pulls(ImagesBase):
    def __init__(self, progress: Callable[[], AsyncIterator[PullProgress]]) -> None:
        self._progress = progress

    async def pull(self, message: PullRequest) -> AsyncIterator[PullProgress]:
        async for progress in self._progress():
            yield progress


async def test_a_stream_is_watched_to_its_end(path: Path, channel: Channel) -> None:
    async def progress() -> AsyncIterator[PullProgress]:
        for number in range(3):
            yield PullProgress(image_id=str(number))

    async with serving(path, Pulls(progress)):
        seen = [message.image_id async for message in watch(ImagesStub(channel).pull, PullRequest())]
    assert seen == ["0", "1", "2"]


async def test_a_stream_ends_with_its_fault(path: Path, channel: Channel) -> None:
    async def progress() -> AsyncIterator[PullProgress]:
        yield PullProgress(image_id="0")
        raise NotFound("cannot find it")

    async with serving(path, Pulls(progress)):
        messages = watch(ImagesStub(channel).pull, PullRequest())
        assert (await anext(messages)).image_id == "0"
        with pytest.raises(NotFound, match="cannot find it"):
            await anext(messages)


async def test_a_stream_is_not_repeated_when_the_server_dies(path: Path, channel: Channel) -> None:
    async def progress() -> AsyncIterator[PullProgress]:
        yield PullProgress(image_id="0")
        await asyncio.Event().wait()

    async with serving(path, Pulls(progress)) as server:
        messages = watch(ImagesStub(channel).pull, PullRequest(), agent="criw-image")
        assert (await anext(messages)).image_id == "0"
        await asyncio.wait_for(server.drain(10), 5)  # nor does stopping wait for it
        with pytest.raises(Unavailable, match="criw-image went away"):
            await anext(messages)


async def test_watching_leaves_no_cancellation_behind(path: Path, channel: Channel) -> None:
    async def progress() -> AsyncIterator[PullProgress]:
        yield PullProgress(image_id="0")
        await asyncio.Event().wait()

    task = asyncio.current_task()
    assert task is not None
    async with serving(path, Pulls(progress)) as server, asyncio.TaskGroup() as tasks:
        messages = watch(ImagesStub(channel).pull, PullRequest())
        assert (await anext(messages)).image_id == "0"
        tasks.create_task(server.drain(10))
        with pytest.raises(Unavailable):
            await anext(messages)  # it waits when the server goes
    assert task.cancelling() == 0


async def test_a_watcher_that_is_cancelled_is_cancelled(path: Path, channel: Channel) -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def progress() -> AsyncIterator[PullProgress]:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        yield PullProgress()

    async with serving(path, Pulls(progress)):
        watching = asyncio.create_task(anext(watch(ImagesStub(channel).pull, PullRequest())))
        await begun.wait()
        watching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await watching
        await asyncio.wait_for(ended.wait(), 5)  # and the server does not go on for nobody


class Unlucky(Channel):
    """Loses its first connection in the moment it is made, before the call that wanted it runs again."""

    lost = 0

    def _protocol_factory(self) -> H2Protocol:
        protocol = super()._protocol_factory()
        made = protocol.connection_made

        def connection_made(transport: asyncio.BaseTransport) -> None:
            made(transport)
            if not self.lost:
                self.lost += 1
                protocol.connection_lost(ConnectionResetError())

        protocol.connection_made = connection_made  # type: ignore[method-assign]  # for this one
        return protocol


async def test_a_connection_that_is_lost_as_it_is_made_is_made_again(path: Path) -> None:
    async with serving(path, Scripted(nothing)):
        with contextlib.closing(Unlucky(path)) as channel:
            await call(NetworkStub(channel).detach, DetachRequest(pod_id="p"), timeout_s=5)
            assert channel.lost == 1
