"""The door between a client and agents that misbehave on demand."""

import asyncio
import contextlib
from collections.abc import Mapping

import grpclib.metadata
import grpclib.server
import pytest
from grpclib.const import Cardinality, Handler, Status
from grpclib.exceptions import GRPCError

from criw.errors import Fault
from criw.rpc.faults import STATUS
from criw_proto.runtime import v1 as cri
from support.door import Doorway, Supervisor
from support.serving import serving

STOP = cri.StopContainerRequest(container_id="c")
START = cri.StartContainerRequest(container_id="c")
LARGEST = 16 * 1024 * 1024


class Failing(cri.RuntimeServiceBase):
    def __init__(self, err: Exception) -> None:
        self._err = err

    async def container_status(self, message: cri.ContainerStatusRequest) -> cri.ContainerStatusResponse:
        raise self._err


class Raw:
    """Answers any one method with what the test says, and keeps the last call's stream."""

    def __init__(
        self,
        path: str,
        *replies: bytes,
        cardinality: Cardinality = Cardinality.UNARY_UNARY,
        ended: asyncio.Event | None = None,
    ) -> None:
        self._path = path
        self._replies = replies
        self._cardinality = cardinality
        self._ended = ended or asyncio.Event()
        self.requests: list[bytes] = []
        self.metadata: list[tuple[str, str | bytes]] = []
        self.time_left: float | None = None
        self.go_on = asyncio.Event()
        self.go_on.set()

    def __mapping__(self) -> Mapping[str, Handler]:
        return {self._path: Handler(self._answer, self._cardinality, bytes, bytes)}

    async def _answer(self, stream: "grpclib.server.Stream[bytes, bytes]") -> None:
        request = await stream.recv_message()
        assert request is not None
        self.requests.append(request)
        self.metadata = list(stream.metadata.items()) if stream.metadata else []
        self.time_left = stream.deadline.time_remaining() if stream.deadline else None
        try:
            for reply in self._replies:
                await stream.send_message(reply)
                await self.go_on.wait()
        finally:
            self._ended.set()


RUNTIME = "/runtime.v1.RuntimeService/"


async def raw(
    door: Doorway, path: str, request: bytes, metadata: Mapping[str, str | bytes] | None = None, timeout: float = 10
) -> bytes:
    async with door.client.request(
        path, Cardinality.UNARY_UNARY, bytes, bytes, timeout=timeout, metadata=metadata
    ) as call:
        await call.send_message(request, end=True)
        reply = await call.recv_message()
    assert reply is not None
    return reply


async def until(condition: asyncio.Event) -> None:
    await asyncio.wait_for(condition.wait(), 5)


# --- what passes


async def test_requests_and_replies_pass_as_the_bytes_they_are(door: Doorway) -> None:
    unknown_fields = b"\xfa\x3f\x03abc"
    agent = Raw(f"{RUNTIME}ListContainers", b"\x0a\x00" + unknown_fields)
    async with door.agent("supervisor", agent):
        assert await raw(door, f"{RUNTIME}ListContainers", unknown_fields) == b"\x0a\x00" + unknown_fields
    assert agent.requests == [unknown_fields]


async def test_replies_of_the_largest_size_the_kubelet_takes_pass(door: Doorway) -> None:
    big = bytes(range(256)) * (LARGEST // 256)
    async with door.agent("supervisor", Raw(f"{RUNTIME}ListContainers", big)):
        for _ in range(3):  # the flow-control windows are given back
            assert await raw(door, f"{RUNTIME}ListContainers", b"", timeout=60) == big


async def test_large_requests_pass(door: Doorway) -> None:
    agent = Raw(f"{RUNTIME}ListContainers", b"")
    async with door.agent("supervisor", agent):
        for _ in range(3):
            await raw(door, f"{RUNTIME}ListContainers", bytes(LARGEST), timeout=60)
    assert [len(request) for request in agent.requests] == [LARGEST] * 3


async def test_metadata_passes_and_what_cannot_be_sent_spoils_nothing(door: Doorway) -> None:
    agent = Raw(f"{RUNTIME}ListContainers", b"")
    sent: dict[str, str | bytes] = {
        "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "baggage": "a=b",
        "id-bin": b"\0",
    }
    async with door.agent("supervisor", agent):
        await raw(door, f"{RUNTIME}ListContainers", b"", sent)
    assert sorted(agent.metadata) == sorted(sent.items())


async def test_metadata_grpclib_would_not_send_is_left_out(door: Doorway, monkeypatch: pytest.MonkeyPatch) -> None:
    strict = grpclib.metadata.encode_metadata
    encoders = iter([lambda metadata: list(metadata.items())])  # the test's own client sends as grpc-go does
    monkeypatch.setattr("grpclib.client.encode_metadata", lambda metadata: next(encoders, strict)(metadata))
    agent = Raw(f"{RUNTIME}ListContainers", b"")
    async with door.agent("supervisor", agent):
        await raw(door, f"{RUNTIME}ListContainers", b"", {"tracestate": "", "traceparent": "00-1"})
    assert agent.metadata == [("traceparent", "00-1")]


async def test_the_deadline_passes(door: Doorway) -> None:
    agent = Raw(f"{RUNTIME}ListContainers", b"")
    async with door.agent("supervisor", agent):
        await raw(door, f"{RUNTIME}ListContainers", b"", timeout=7)
    assert agent.time_left is not None
    assert 6 < agent.time_left <= 7


@pytest.mark.parametrize("kind", STATUS)
async def test_errors_pass_as_they_are(kind: type[Fault], door: Doorway) -> None:
    message = "cannot find “ä”: 100 % gone\ntry another"
    async with door.agent("supervisor", Failing(kind(message))):
        with pytest.raises(GRPCError) as caught:
            await door.runtime.container_status(cri.ContainerStatusRequest(container_id="x"))
    assert (caught.value.status, caught.value.message) == (STATUS[kind], message)


async def test_image_calls_go_to_the_image_agent(door: Doorway) -> None:
    async with (
        door.agent("supervisor", Supervisor()),
        door.agent("image", Raw("/runtime.v1.ImageService/ListImages", b"")),
    ):
        assert (await door.images.list_images(cri.ListImagesRequest())).images == []


async def test_what_the_agent_has_not_built_is_unimplemented(door: Doorway) -> None:
    async with door.agent("supervisor", Supervisor()):
        for path in (f"{RUNTIME}ReopenContainerLog", "/runtime.v1.RuntimeService/Nonsense", "/no.Such/Service"):
            with pytest.raises(GRPCError) as caught:
                await raw(door, path, b"")
            assert caught.value.status is Status.UNIMPLEMENTED


# --- streams of replies


async def test_a_stream_passes_each_message_when_it_comes(door: Doorway) -> None:
    agent = Raw(f"{RUNTIME}GetContainerEvents", b"first", b"second", cardinality=Cardinality.UNARY_STREAM)
    agent.go_on.clear()
    async with (
        door.agent("supervisor", agent),
        door.client.request(f"{RUNTIME}GetContainerEvents", Cardinality.UNARY_STREAM, bytes, bytes) as call,
    ):
        await call.send_message(b"", end=True)
        assert await call.recv_message() == b"first"
        agent.go_on.set()
        assert await call.recv_message() == b"second"
        assert await call.recv_message() is None


async def test_a_stream_whose_agent_goes_away_ends_with_unavailable(door: Doorway) -> None:
    agent = Raw(f"{RUNTIME}GetContainerEvents", b"first", b"second", cardinality=Cardinality.UNARY_STREAM)
    agent.go_on.clear()
    async with contextlib.AsyncExitStack() as running:
        await running.enter_async_context(door.agent("supervisor", agent))
        with pytest.raises(GRPCError) as caught:
            async with door.client.request(
                f"{RUNTIME}GetContainerEvents", Cardinality.UNARY_STREAM, bytes, bytes
            ) as call:
                await call.send_message(b"", end=True)
                assert await call.recv_message() == b"first"
                await running.aclose()
                await call.recv_message()
    assert caught.value.status is Status.UNAVAILABLE
    assert "criw-supervisor" in (caught.value.message or "")


async def test_a_stream_of_a_client_that_goes_away_is_ended_at_the_agent(door: Doorway) -> None:
    ended = asyncio.Event()

    agent = Raw(f"{RUNTIME}GetContainerEvents", b"first", cardinality=Cardinality.UNARY_STREAM, ended=ended)
    agent.go_on.clear()
    async with door.agent("supervisor", agent):
        async with door.client.request(f"{RUNTIME}GetContainerEvents", Cardinality.UNARY_STREAM, bytes, bytes) as call:
            await call.send_message(b"", end=True)
            assert await call.recv_message() == b"first"
            await call.cancel()
        await until(ended)


async def test_a_stream_with_a_deadline_ends_with_it_and_without_a_traceback(
    door: Doorway, caplog: pytest.LogCaptureFixture
) -> None:
    ended = asyncio.Event()
    agent = Raw(f"{RUNTIME}GetContainerEvents", b"first", cardinality=Cardinality.UNARY_STREAM, ended=ended)
    agent.go_on.clear()
    async with door.agent("supervisor", agent):
        with pytest.raises((GRPCError, TimeoutError)):
            async with door.client.request(
                f"{RUNTIME}GetContainerEvents", Cardinality.UNARY_STREAM, bytes, bytes, timeout=0.3
            ) as call:
                await call.send_message(b"", end=True)
                async for _ in call:
                    pass
        await until(ended)
    assert "call failed" not in caplog.messages


# --- agents that come, go, and are several


async def test_calls_are_balanced_over_the_instances(door: Doorway) -> None:
    agents = [Raw("/runtime.v1.ImageService/ListImages", b""), Raw("/runtime.v1.ImageService/ListImages", b"")]
    async with door.agent("image", agents[0], instance=0), door.agent("image", agents[1], instance=1):
        for _ in range(10):
            await door.images.list_images(cri.ListImagesRequest())
    assert [len(agent.requests) for agent in agents] == [5, 5]


async def test_a_busy_instance_is_spared(door: Doorway) -> None:
    path = "/runtime.v1.ImageService/ListImages"
    slow, quick = Raw(path, b""), Raw(path, b"")
    slow.go_on.clear()
    async with door.agent("image", slow, instance=0):
        waiting = asyncio.create_task(door.images.list_images(cri.ListImagesRequest()))
        while not slow.requests:
            await asyncio.sleep(0.001)
        async with door.agent("image", quick, instance=1):
            for _ in range(5):
                await door.images.list_images(cri.ListImagesRequest())
            slow.go_on.set()
            await waiting
    assert (len(slow.requests), len(quick.requests)) == (1, 5)


async def test_an_instance_that_is_gone_is_asked_no_more(door: Doorway) -> None:
    path = "/runtime.v1.ImageService/ListImages"
    stays, goes = Raw(path, b""), Raw(path, b"")
    async with door.agent("image", stays, instance=0):
        async with door.agent("image", goes, instance=1):
            for _ in range(2):
                await door.images.list_images(cri.ListImagesRequest())
        for _ in range(4):
            await door.images.list_images(cri.ListImagesRequest())
    assert (len(stays.requests), len(goes.requests)) == (5, 1)


async def test_a_socket_nobody_listens_on_is_passed_over(door: Doorway) -> None:
    async with serving(door.directory / "image" / "left", Supervisor()):
        (door.directory / "image" / "left").rename(door.directory / "image" / "0.sock")
        (door.directory / "image" / "left").touch()  # for serving() to remove
    live = Raw("/runtime.v1.ImageService/ListImages", b"")
    async with door.agent("image", live, instance=1):
        await door.images.list_images(cri.ListImagesRequest())
    assert len(live.requests) == 1


async def test_a_call_waits_for_an_agent_that_is_starting(door: Doorway) -> None:
    call = asyncio.create_task(door.runtime.start_container(START))
    await asyncio.wait({call}, timeout=0.2)
    assert not call.done()
    async with door.agent("supervisor", Supervisor()):
        await call


async def test_without_an_agent_the_caller_learns_why_before_its_deadline(door: Doorway) -> None:
    with pytest.raises(GRPCError) as caught:
        await cri.RuntimeServiceStub(door.client, timeout=0.5).start_container(START)
    assert caught.value.status is Status.UNAVAILABLE
    assert "cannot reach criw-supervisor" in (caught.value.message or "")


async def test_an_agent_that_does_not_answer_is_told_with_the_deadline(door: Doorway) -> None:
    agent = Supervisor()
    agent.open.clear()
    async with door.agent("supervisor", agent):
        with pytest.raises((GRPCError, TimeoutError)) as caught:
            await cri.RuntimeServiceStub(door.client, timeout=0.3).start_container(START)
    assert not isinstance(caught.value, GRPCError) or caught.value.status is Status.DEADLINE_EXCEEDED


async def test_an_idempotent_call_is_repeated_when_its_agent_dies_in_it(door: Doorway) -> None:
    first, second = Supervisor(), Supervisor()
    first.open.clear()
    async with contextlib.AsyncExitStack() as running:
        await running.enter_async_context(door.agent("supervisor", first))
        call = asyncio.create_task(door.runtime.stop_container(STOP))
        await until(first.begun)
    async with door.agent("supervisor", second):
        await call
    assert (first.calls, second.calls) == (["c"], ["c"])


async def test_another_call_is_not_repeated(door: Doorway) -> None:
    first, second = Supervisor(), Supervisor()
    first.open.clear()
    async with contextlib.AsyncExitStack() as running:
        await running.enter_async_context(door.agent("supervisor", first))
        call = asyncio.create_task(door.runtime.start_container(START))
        await until(first.begun)
    async with door.agent("supervisor", second):
        with pytest.raises(GRPCError) as caught:
            await call
    assert caught.value.status is Status.UNAVAILABLE
    assert "went away" in (caught.value.message or "")
    assert second.calls == []


async def test_any_call_a_stopping_agent_refuses_is_made_to_the_next(door: Doorway) -> None:
    first, second = Supervisor(), Supervisor()
    first.open.clear()
    socket = door.directory / "supervisor" / "0.sock"
    async with serving(socket, first) as server:
        begun = asyncio.create_task(door.runtime.stop_container(STOP))
        await until(first.begun)
        draining = asyncio.create_task(server.drain(5))
        while not server.in_flight.stopping:
            await asyncio.sleep(0)
        late = asyncio.create_task(door.runtime.start_container(cri.StartContainerRequest(container_id="late")))
        await asyncio.wait({late}, timeout=0.2)
        assert not late.done()
        first.open.set()
        await begun
        await draining
    async with door.agent("supervisor", second):
        await late
    assert (first.calls, second.calls) == (["c"], ["late"])


async def test_no_call_is_lost_or_made_twice_while_its_agent_is_stopped_again_and_again(door: Doorway) -> None:
    """Calls that may not be repeated meet every moment of an agent's end: between two of its turns, on the way to it,
    in the queue of its socket."""
    agents: list[Supervisor] = []
    made: list[str] = []
    over = False

    async def keep_calling(caller: int) -> None:
        number = 0
        while not over:
            number += 1
            container = f"{caller}-{number}"
            await door.runtime.start_container(cri.StartContainerRequest(container_id=container))
            made.append(container)

    async with asyncio.TaskGroup() as tasks:
        calling = [tasks.create_task(keep_calling(caller)) for caller in range(8)]
        for _ in range(12):
            agents.append(Supervisor())
            async with door.agent("supervisor", agents[-1]):
                while len(agents[-1].calls) < 10:
                    await asyncio.sleep(0)
        agents.append(Supervisor())
        async with door.agent("supervisor", agents[-1]):
            over = True
            await asyncio.wait(calling)
    assert sorted(call for agent in agents for call in agent.calls) == sorted(made)


async def test_a_client_that_goes_away_ends_the_call_to_the_agent(door: Doorway) -> None:
    cancelled = asyncio.Event()

    class Waiting(Supervisor):
        async def stop_container(self, message: cri.StopContainerRequest) -> cri.StopContainerResponse:
            try:
                return await super().stop_container(message)
            except asyncio.CancelledError:
                cancelled.set()
                raise

    agent = Waiting()
    agent.open.clear()
    async with door.agent("supervisor", agent):
        call = asyncio.create_task(door.runtime.stop_container(STOP))
        await until(agent.begun)
        call.cancel()
        await until(cancelled)
        with pytest.raises(asyncio.CancelledError):
            await call
    assert agent.calls == ["c"]


async def test_a_waiting_call_of_a_client_that_goes_away_is_never_made(door: Doorway) -> None:
    call = asyncio.create_task(door.runtime.stop_container(STOP))
    await asyncio.wait({call}, timeout=0.1)
    call.cancel()
    await asyncio.wait({call})
    agent = Supervisor()
    async with door.agent("supervisor", agent):
        await door.runtime.start_container(START)
    assert agent.calls == ["c"]  # the second one alone


class Draining(cri.RuntimeServiceBase):
    """A node that is being drained: every stop waits for its grace, which lasts until the test is over."""

    def __init__(self) -> None:
        self.stopping = 0
        self.all_there = asyncio.Event()
        self.over = asyncio.Event()

    async def stop_container(self, message: cri.StopContainerRequest) -> cri.StopContainerResponse:
        self.stopping += 1
        if self.stopping == DRAINED:
            self.all_there.set()
        await self.over.wait()
        return cri.StopContainerResponse()

    async def list_containers(self, message: cri.ListContainersRequest) -> cri.ListContainersResponse:
        return cri.ListContainersResponse()


DRAINED = 300


async def test_a_node_that_is_drained_still_answers(door: Doorway) -> None:
    node, runtime = Draining(), cri.RuntimeServiceStub(door.client, timeout=60)
    async with door.agent("supervisor", node), asyncio.TaskGroup() as tasks:
        for _ in range(DRAINED):
            tasks.create_task(runtime.stop_container(STOP))
        await asyncio.wait_for(node.all_there.wait(), 30)
        await asyncio.wait_for(runtime.list_containers(cri.ListContainersRequest()), 5)
        node.over.set()
