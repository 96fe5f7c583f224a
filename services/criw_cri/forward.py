"""Passing calls on: bytes in, bytes out, with deadline, metadata and errors as they are."""

import time
from collections.abc import Mapping
from typing import Any, Final

import grpclib.server
from grpclib.const import Handler
from grpclib.exceptions import StreamTerminatedError

from criw.config import AgentName
from criw.errors import DeadlineExceeded, Unavailable
from criw_cri.instances import Instances
from criw_cri.routes import Route

ServerStream = grpclib.server.Stream[Any, Any]
_BROKEN: Final = (StreamTerminatedError, ConnectionError)


class Forwarder:
    """A gRPC service whose methods are answered by the agents behind it."""

    def __init__(self, routes: Mapping[str, Route], instances: Mapping[AgentName, Instances]) -> None:
        self._routes = routes
        self._instances = instances

    def __mapping__(self) -> dict[str, Handler]:
        return {path: self.handler(route) for path, route in self._routes.items()}

    def handler(self, route: Route) -> Handler:
        async def answer(stream: ServerStream) -> None:
            request = await stream.recv_message()
            assert request is not None
            if route.cardinality.server_streaming:
                await self._forward_stream(route, request, stream)
            else:
                await stream.send_message(await self.unary(route, request, stream))

        return Handler(answer, route.cardinality, bytes, bytes)

    async def unary(self, route: Route, request: bytes, stream: ServerStream) -> bytes:
        """The reply. A call that broke is repeated if that is harmless. Raises Unavailable, DeadlineExceeded."""
        while True:
            instance = await self._instances[route.agent].connected(until=_until(stream))
            try:
                with instance.busy() as channel:
                    async with channel.request(
                        route.path, route.cardinality, bytes, bytes, deadline=stream.deadline, metadata=stream.metadata
                    ) as call:
                        await call.send_message(request, end=True)
                        reply = await call.recv_message()
            except _BROKEN as err:
                if not route.idempotent:
                    raise Unavailable(f"cannot finish the call: criw-{route.agent} went away in it; ask again") from err
            except TimeoutError as err:
                raise DeadlineExceeded(f"cannot answer in time: criw-{route.agent} did not") from err
            else:
                assert reply is not None
                return reply

    async def _forward_stream(self, route: Route, request: bytes, stream: ServerStream) -> None:
        instance = await self._instances[route.agent].connected(until=_until(stream))
        try:
            with instance.busy() as channel:
                async with channel.request(
                    route.path, route.cardinality, bytes, bytes, deadline=stream.deadline, metadata=stream.metadata
                ) as call:
                    await call.send_message(request, end=True)
                    async for reply in call:
                        await stream.send_message(reply)
        except _BROKEN as err:
            raise Unavailable(f"cannot go on with the stream: criw-{route.agent} went away; ask again") from err


def _until(stream: ServerStream) -> float | None:
    """The call's deadline as monotonic time, a moment early so that the caller gets the reason."""
    return None if stream.deadline is None else time.monotonic() + stream.deadline.time_remaining() - 0.1
