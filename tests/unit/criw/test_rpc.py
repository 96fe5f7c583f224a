import asyncio
import errno
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

import pytest
from grpclib.const import Cardinality, Handler, Status
from grpclib.exceptions import GRPCError, StreamTerminatedError

from criw.errors import STATUS, DeadlineExceeded, Failed, Fault, NotFound, Unavailable, Unimplemented, status_of
from criw.metrics import Metrics
from criw.rpc import Channel, Servable, call, never_begun, serialized, watch
from criw_proto.criw.image.v1 import ImagesBase, ImagesStub, PullProgress, PullRequest
from criw_proto.criw.network.v1 import (
    AttachRequest,
    AttachResponse,
    DetachRequest,
    ListRequest,
    NetworkStub,
)
from support.serving import Gate, Scripted, raising, serving

ATTACH = "/criw.network.v1.Network/Attach"
POD = AttachRequest(pod_id="p")


class OutOfPower(Unavailable):
    """A special case an agent might make of a fault."""


async def nothing(_: str) -> None:
    pass


def count(metrics: Metrics, code: str) -> float:
    return metrics.registry.get_sample_value("criw_rpc_total", {"method": ATTACH, "code": code}) or 0


@pytest.mark.parametrize("kind", STATUS)
async def test_a_fault_arrives_as_the_same_fault(kind: type[Fault], path: Path, channel: Channel) -> None:
    message = "cannot do it: 50 % of “ä”\nis missing"
    async with serving(path, raising(kind(message))):
        with pytest.raises(kind) as caught:
            await call(NetworkStub(channel).attach, POD)
        assert type(caught.value) is kind
        assert str(caught.value) == message


def test_faults_and_statuses_are_one_to_one() -> None:
    assert set(STATUS) == set(Fault.__subclasses__())
    assert len(set(STATUS.values())) == len(STATUS)


async def test_a_special_case_of_a_fault_arrives_as_that_fault(path: Path, channel: Channel) -> None:
    assert status_of(OutOfPower()) is Status.UNAVAILABLE
    async with serving(path, raising(OutOfPower("cannot go on"))):
        with pytest.raises(Unavailable, match="cannot go on"):
            await call(NetworkStub(channel).attach, POD)


async def test_a_fault_in_a_task_group_arrives_as_that_fault(path: Path, channel: Channel) -> None:
    async def fail() -> None:
        raise NotFound("cannot find it")

    async def work(_: str) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(fail())

    async with serving(path, Scripted(work)):
        with pytest.raises(NotFound, match="cannot find it"):
            await call(NetworkStub(channel).attach, POD)


async def test_a_status_without_a_fault_arrives_as_failed(path: Path, channel: Channel) -> None:
    async with serving(path, raising(GRPCError(Status.ABORTED, "try another transaction"))):
        with pytest.raises(Failed, match="try another transaction"):
            await call(NetworkStub(channel).attach, POD)


async def test_an_unexpected_error_is_logged_and_tells_the_client_nothing(
    path: Path, channel: Channel, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(path, raising(RuntimeError("secret"))):
        with pytest.raises(GRPCError) as caught:
            await NetworkStub(channel).attach(POD)
    assert caught.value.status is Status.INTERNAL
    assert "secret" not in (caught.value.message or "")
    (record,) = (record for record in caplog.records if record.levelno >= logging.ERROR and record.name == "criw.rpc")
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == "secret"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
async def test_a_full_disk_is_told(number: int, path: Path, channel: Channel) -> None:
    async with serving(path, raising(OSError(number, "full", "/var/lib/x"))):
        with pytest.raises(GRPCError, match="/var/lib/x") as caught:
            await NetworkStub(channel).attach(POD)
    assert caught.value.status is Status.RESOURCE_EXHAUSTED


async def test_what_is_not_built_is_unimplemented(path: Path, channel: Channel) -> None:
    async with serving(path, Scripted(nothing)):
        with pytest.raises(Unimplemented):
            await call(NetworkStub(channel).list, ListRequest())  # in the protocol, not in this service
        with pytest.raises(GRPCError) as caught:
            await raw_call(channel, "/criw.network.v1.Network/Nonsense", b"")
    assert caught.value.status is Status.UNIMPLEMENTED


async def raw_call(channel: Channel, method: str, request: bytes) -> bytes:
    async with channel.request(method, Cardinality.UNARY_UNARY, bytes, bytes) as stream:
        await stream.send_message(request, end=True)
        reply = await stream.recv_message()
        assert reply is not None
        return reply


async def test_serialised_requests_and_replies_pass_as_they_are(path: Path, channel: Channel) -> None:
    class Bytes(Servable):
        def __mapping__(self) -> Mapping[str, Handler]:
            return {**Scripted(nothing).__mapping__(), **serialized(ATTACH, AttachRequest, self.answer)}

        async def answer(self, request: AttachRequest) -> bytes:
            return bytes(AttachResponse(netns_path=f"/{request.pod_id}"))

    async with serving(path, Bytes()):
        assert await raw_call(channel, ATTACH, bytes(POD)) == bytes(AttachResponse(netns_path="/p"))
        assert await NetworkStub(channel).attach(POD) == AttachResponse(netns_path="/p")


async def test_bytes_that_are_no_message_are_refused(path: Path, channel: Channel) -> None:
    service = Scripted(nothing)
    async with serving(path, service):
        with pytest.raises(GRPCError, match="AttachRequest") as caught:
            await raw_call(channel, ATTACH, b"\x0a\xff")  # a string longer than the message
    assert caught.value.status is Status.INVALID_ARGUMENT
    assert service.calls == []


async def test_every_call_is_counted_and_timed(path: Path, channel: Channel) -> None:
    metrics, gate = Metrics("test"), Gate()
    value = metrics.registry.get_sample_value
    async with serving(path, Scripted(gate), metrics=metrics), asyncio.TaskGroup() as tasks:
        tasks.create_task(NetworkStub(channel).attach(POD))
        await gate.begun.wait()
        assert value("criw_rpc_in_flight", {"method": ATTACH}) == 1
        gate.open.set()
    assert value("criw_rpc_in_flight", {"method": ATTACH}) == 0
    assert count(metrics, "OK") == 1
    assert value("criw_rpc_duration_seconds_count", {"method": ATTACH}) == 1


async def test_failures_are_counted_by_their_code(path: Path, channel: Channel) -> None:
    metrics = Metrics("test")
    async with serving(path, raising(NotFound("cannot find it")), metrics=metrics):
        for _ in range(2):
            with pytest.raises(NotFound):
                await call(NetworkStub(channel).attach, POD)
    assert (count(metrics, "NOT_FOUND"), count(metrics, "OK")) == (2, 0)


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


async def test_the_work_of_a_client_that_goes_away_is_cancelled(path: Path, channel: Channel) -> None:
    gate, metrics = Gate(), Metrics("test")
    async with serving(path, Scripted(gate), metrics=metrics):
        calling = asyncio.create_task(call(NetworkStub(channel).attach, POD))
        await gate.begun.wait()
        calling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await calling
        await asyncio.wait_for(gate.cancelled.wait(), 5)
    assert count(metrics, "CANCELLED") == 1


async def test_an_agent_that_cannot_reach_something_is_not_asked_again(path: Path, channel: Channel) -> None:
    """Its UNAVAILABLE is an answer, say of a registry that is down; only its own death is waited out."""
    service = raising(Unavailable("cannot reach the registry"))
    async with serving(path, service):
        with pytest.raises(Unavailable, match="registry"):
            await call(NetworkStub(channel).attach, POD, timeout_s=5)
    assert service.calls == ["p"]


async def test_a_stopping_server_finishes_what_it_began_and_refuses_the_rest(path: Path, channel: Channel) -> None:
    gate, second = Gate(), Scripted(nothing)
    first = Scripted(gate)
    async with serving(path, first) as server:
        begun = asyncio.create_task(NetworkStub(channel).attach(POD))
        await gate.begun.wait()
        draining = asyncio.create_task(server.drain(10))
        while not server.in_flight.stopping:
            await asyncio.sleep(0)
        late = asyncio.create_task(call(NetworkStub(channel).attach, AttachRequest(pod_id="late"), timeout_s=10))
        await asyncio.wait({late, draining}, timeout=0.1)
        assert not late.done()
        assert not draining.done()
        gate.open.set()
        assert (await begun).netns_path == "/netns/p"
        await draining
    async with serving(path, second):
        assert (await late).netns_path == "/netns/late"
    assert (first.calls, second.calls) == (["p"], ["late"])


async def test_a_refused_call_can_be_told_from_a_broken_one(path: Path, channel: Channel) -> None:
    gate = Gate()
    service = Scripted(gate)
    async with serving(path, service) as server:
        begun = asyncio.create_task(NetworkStub(channel).attach(POD))
        await gate.begun.wait()
        draining = asyncio.create_task(server.drain(0.2))
        while not server.in_flight.stopping:
            await asyncio.sleep(0)
        with pytest.raises(StreamTerminatedError) as refused:
            await asyncio.create_task(NetworkStub(channel).detach(DetachRequest(pod_id="late")))
        with pytest.raises(StreamTerminatedError) as broken:
            await begun
        await draining
    assert (never_begun(refused.value), never_begun(broken.value)) == (True, False)
    assert service.calls == ["p"]


async def test_a_stopping_server_takes_no_new_connection(path: Path, channel: Channel) -> None:
    gate = Gate()
    async with serving(path, Scripted(gate)) as server:
        begun = asyncio.create_task(NetworkStub(channel).attach(POD))
        await gate.begun.wait()
        draining = asyncio.create_task(server.drain(10))
        while not server.in_flight.stopping:
            await asyncio.sleep(0)
        async with Channel(path) as newcomer:
            with pytest.raises(Unavailable):
                await call(NetworkStub(newcomer).detach, DetachRequest(pod_id="q"), timeout_s=0.2)
            assert not newcomer.connected
        gate.open.set()
        await asyncio.gather(begun, draining)


async def test_calls_that_do_not_end_are_ended(path: Path, channel: Channel) -> None:
    gate = Gate()
    async with serving(path, Scripted(gate)) as server:
        calling = asyncio.create_task(call(NetworkStub(channel).attach, POD, timeout_s=1))
        await gate.begun.wait()
        await asyncio.wait_for(server.drain(0.05), 5)
        assert gate.cancelled.is_set()
        assert not channel.connected or await lost(channel)
        with pytest.raises((Unavailable, DeadlineExceeded)):
            await calling


async def lost(channel: Channel) -> bool:
    """Whether the connection ends soon: the client hears of it a turn of the loop later."""
    for _ in range(100):
        if not channel.connected:
            return True
        await asyncio.sleep(0.01)
    return False


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
        with pytest.raises(Unavailable, match="cannot reach criw-image"):
            await anext(messages)
