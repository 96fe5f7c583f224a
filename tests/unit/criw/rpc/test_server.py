import asyncio
import os
import socket
from pathlib import Path

import pytest
from grpclib.const import Status
from grpclib.exceptions import GRPCError, StreamTerminatedError

from criw.errors import DeadlineExceeded, NotFound, Unavailable, Unimplemented
from criw.metrics import Metrics
from criw.rpc.client import Channel, call, never_begun
from criw.rpc.peers import Callers
from criw.rpc.server import Server
from criw_proto.criw.network.v1 import (
    AttachRequest,
    DetachRequest,
    ListRequest,
    NetworkStub,
)
from support.serving import Gate, Scripted, raising, raw_call, serving

ATTACH = "/criw.network.v1.Network/Attach"
POD = AttachRequest(pod_id="p")


async def nothing(_: str) -> None:
    pass


def count(metrics: Metrics, code: str) -> float:
    return metrics.registry.get_sample_value("criw_rpc_total", {"method": ATTACH, "code": code}) or 0


async def test_what_is_not_built_is_unimplemented(path: Path, channel: Channel) -> None:
    async with serving(path, Scripted(nothing)):
        with pytest.raises(Unimplemented):
            await call(NetworkStub(channel).list, ListRequest())  # in the protocol, not in this service
        with pytest.raises(GRPCError) as caught:
            await raw_call(channel, "/criw.network.v1.Network/Nonsense", b"")
    assert caught.value.status is Status.UNIMPLEMENTED


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


async def test_a_client_that_does_not_hang_up_is_hung_up_on(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("criw.rpc.connections.PARTING_S", 0.05)
    async with serving(path, Scripted(nothing)) as server:
        reader, writer = await asyncio.open_unix_connection(path)
        await reader.readexactly(9)  # the server's settings: it has taken up the connection
        await asyncio.wait_for(server.drain(10), 5)
        await asyncio.wait_for(reader.read(), 5)
        writer.close()
        await writer.wait_closed()


async def test_more_calls_than_usual_may_come_before_the_server_has_said_a_word(path: Path, channel: Channel) -> None:
    with socket.socket(socket.AF_UNIX) as listener:  # as systemd holds it while the process starts
        listener.bind(os.fspath(path))
        listener.listen()
        listener.setblocking(False)
        calls = [asyncio.create_task(NetworkStub(channel).attach(POD, timeout=20)) for _ in range(300)]
        await asyncio.wait(calls, timeout=0.2)
        server = Server([Scripted(nothing)], Metrics("test"), Callers())
        await server.start(sock=listener)
        try:
            assert {reply.netns_path for reply in await asyncio.gather(*calls)} == {"/netns/p"}
        finally:
            await server.drain(0.1)
            path.unlink()
