"""Status and Version, which speak of the whole crew."""

import asyncio
import contextlib
import json
import time

import pytest
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from criw import __version__
from criw_proto.criw.network.v1 import NetworkStatusBase, StatusRequest, StatusResponse
from criw_proto.runtime import v1 as cri
from support.door import Doorway, Supervisor


class Network(NetworkStatusBase):
    def __init__(self, *, ready: bool) -> None:
        self._ready = ready

    async def status(self, message: StatusRequest) -> StatusResponse:
        if self._ready:
            return StatusResponse(ready=True)
        return StatusResponse(ready=False, reason="NoPodCidr", message="no pod CIDR is configured")


def conditions(reply: cri.StatusResponse) -> dict[str, tuple[bool, str]]:
    assert reply.status is not None
    return {one.type: (one.status, one.reason) for one in reply.status.conditions}


async def test_status_has_both_conditions_and_the_rest_of_the_supervisors_answer(door: Doorway) -> None:
    async with door.agent("supervisor", Supervisor()), door.agent("network", Network(ready=True)):
        reply = await door.runtime.status(cri.StatusRequest(verbose=True))
    assert conditions(reply) == {"RuntimeReady": (True, ""), "NetworkReady": (True, "")}
    assert [handler.name for handler in reply.runtime_handlers] == ["runc"]
    assert reply.info["config"] == "{}"
    assert json.loads(reply.info["network"])["status"] is True


async def test_a_network_that_is_not_ready_says_why(door: Doorway) -> None:
    async with door.agent("supervisor", Supervisor()), door.agent("network", Network(ready=False)):
        reply = await door.runtime.status(cri.StatusRequest())
    assert conditions(reply) == {"RuntimeReady": (True, ""), "NetworkReady": (False, "NoPodCidr")}
    assert reply.info == {}


async def test_without_agents_status_still_answers_within_crictls_two_seconds(door: Doorway) -> None:
    started = time.monotonic()
    reply = await door.runtime.status(cri.StatusRequest())
    assert time.monotonic() - started < 2
    assert conditions(reply) == {"RuntimeReady": (False, "SupervisorDown"), "NetworkReady": (False, "NetworkAgentDown")}


async def test_status_answers_when_the_supervisor_dies_in_the_call_and_stays_away(door: Doorway) -> None:
    agent = Supervisor()
    agent.open.clear()
    async with door.agent("network", Network(ready=True)):
        async with contextlib.AsyncExitStack() as running:
            await running.enter_async_context(door.agent("supervisor", agent))
            call = asyncio.create_task(door.runtime.status(cri.StatusRequest()))
            await asyncio.wait_for(agent.begun.wait(), 5)
        assert conditions(await call) == {"RuntimeReady": (False, "SupervisorDown"), "NetworkReady": (True, "")}


async def test_status_answers_when_the_supervisor_hangs(door: Doorway) -> None:
    agent = Supervisor()
    agent.open.clear()
    async with door.agent("network", Network(ready=True)), door.agent("supervisor", agent):
        reply = await door.runtime.status(cri.StatusRequest())
    assert conditions(reply) == {"RuntimeReady": (False, "SupervisorDown"), "NetworkReady": (True, "")}


async def test_version_is_the_older_of_the_supervisors_and_the_doors(door: Doorway) -> None:
    async with door.agent("supervisor", Supervisor()):
        reply = await door.runtime.version(cri.VersionRequest())
    assert (reply.version, reply.runtime_name, reply.runtime_api_version) == ("0.1.0", "criw", "v1")
    assert reply.runtime_version == min("0.0.9", __version__)


async def test_version_without_a_supervisor_is_unavailable(door: Doorway) -> None:
    with pytest.raises(GRPCError) as caught:
        await cri.RuntimeServiceStub(door.client, timeout=0.3).version(cri.VersionRequest())
    assert caught.value.status is Status.UNAVAILABLE
