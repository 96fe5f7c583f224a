"""The two calls that speak of the whole crew: Status and Version."""

import asyncio
import json
from typing import Any, Final

import grpclib.server
from grpclib.const import Cardinality, Handler

from criw import __version__
from criw.errors import Fault, Unavailable
from criw.rpc.client import Channel, call
from criw_cri.forward import Forwarder
from criw_cri.routes import Route
from criw_proto.criw.network.v1 import NetworkStatusStub
from criw_proto.criw.network.v1 import StatusRequest as NetworkStatusRequest
from criw_proto.runtime.v1 import (
    RuntimeCondition,
    RuntimeStatus,
    StatusRequest,
    StatusResponse,
    VersionRequest,
    VersionResponse,
)

ServerStream = grpclib.server.Stream[Any, Any]
_SERVICE: Final = "/runtime.v1.RuntimeService/"
# Below crictl's 2 s for a call: a crew that is half down must be able to say so.
_AGENT_LIMIT_S: Final = 1.5


class Merged:
    """Status (RuntimeReady from the supervisor, NetworkReady from the network agent) and Version."""

    def __init__(self, forwarder: Forwarder, network: Channel) -> None:
        self._forwarder = forwarder
        self._network = NetworkStatusStub(network)

    def __mapping__(self) -> dict[str, Handler]:
        return {
            f"{_SERVICE}Status": Handler(self._status, Cardinality.UNARY_UNARY, StatusRequest, StatusResponse),
            f"{_SERVICE}Version": Handler(self._version, Cardinality.UNARY_UNARY, VersionRequest, VersionResponse),
        }

    async def _status(self, stream: ServerStream) -> None:
        request = await stream.recv_message()
        assert request is not None
        reply, network = await asyncio.gather(self._of_supervisor(request, stream), self._of_network())
        assert reply.status is not None
        reply.status.conditions.append(network)
        if request.verbose:
            reply.info["network"] = json.dumps(network.to_dict())
        await stream.send_message(reply)

    async def _of_supervisor(self, request: StatusRequest, stream: ServerStream) -> StatusResponse:
        route = Route(f"{_SERVICE}Status", "supervisor", Cardinality.UNARY_UNARY, repeated=True)
        try:
            async with asyncio.timeout(_AGENT_LIMIT_S):
                return StatusResponse.parse(await self._forwarder.unary(route, bytes(request), stream))
        except (TimeoutError, Unavailable):
            down = RuntimeCondition(
                type="RuntimeReady",
                status=False,
                reason="SupervisorDown",
                message="criw-supervisor does not answer; containers run on, and it is needed for everything else",
            )
            return StatusResponse(status=RuntimeStatus(conditions=[down]))

    async def _of_network(self) -> RuntimeCondition:
        try:
            reply = await call(
                self._network.status, NetworkStatusRequest(), timeout_s=_AGENT_LIMIT_S, agent="criw-network"
            )
        except Fault as err:
            return RuntimeCondition(type="NetworkReady", status=False, reason="NetworkAgentDown", message=str(err))
        return RuntimeCondition(type="NetworkReady", status=reply.ready, reason=reply.reason, message=reply.message)

    async def _version(self, stream: ServerStream) -> None:
        """The supervisor's version; in the middle of an upgrade, the older of its and the door's."""
        request = await stream.recv_message()
        assert request is not None
        route = Route(f"{_SERVICE}Version", "supervisor", Cardinality.UNARY_UNARY, repeated=True)
        reply = VersionResponse.parse(await self._forwarder.unary(route, bytes(request), stream))
        reply.runtime_version = min(reply.runtime_version, __version__, key=_version_key)
        await stream.send_message(reply)


def _version_key(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part.isdecimal())
